//! The program with the adapters of another crate, which its settings name by their own URL scheme.
//!
//! In two terminals:
//!
//! ```text
//! cargo run --bin connector -- worker --broker notebook://jobs.db --backend notebook://jobs.db
//! cargo run --bin connector -- send shout hello --wait --broker notebook://jobs.db --backend notebook://jobs.db
//! ```
//!
//! The adapters stand for your own: here they are those of the embedded file.

use std::{process::ExitCode, sync::Arc};

use async_trait::async_trait;
use machinist::{
    Connector, Connectors,
    backend::Backend,
    broker::Broker,
    connector::{ConnectRequest, ConnectorError},
    prelude::*,
    sqlite::{SqliteOptions, SqliteStore},
    url::{Reach, Scheme},
};
use machinist_cli::Program;

const SHOUT: TaskDef<String, String> = TaskDef::new("shout");

async fn shout(text: String) -> Result<String, TaskError> {
    Ok(text.to_uppercase())
}

/// Connector of `notebook://FILE`.
#[derive(Debug)]
struct Notebook;

async fn open(request: &ConnectRequest<'_>) -> Result<SqliteStore, ConnectorError> {
    let options = SqliteOptions { namespace: request.namespace.to_owned(), ..SqliteOptions::default() };
    let file = request.url.file().unwrap_or_default();
    SqliteStore::open(file, options).await.map_err(|error| ConnectorError::File(error.into()))
}

#[async_trait]
impl Connector for Notebook {
    fn schemes(&self) -> Vec<Scheme> {
        vec![Scheme::both("notebook", Reach::File)]
    }

    async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        Ok(Arc::new(open(request).await?.broker()))
    }

    async fn backend(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        Ok(Arc::new(open(request).await?.backend()))
    }
}

fn main() -> ExitCode {
    let connectors = Connectors::default().with(Notebook);
    Program::new().connectors(connectors).run(async |worker| Ok(worker.task(SHOUT, shout)))
}
