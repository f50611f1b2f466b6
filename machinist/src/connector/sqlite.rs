//! `sqlite://FILE`: broker and backend in one file.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_core::{backend::Backend, broker::Broker};
use machinist_sqlite::{SqliteOptions, SqliteStore};

use super::{ConnectRequest, Connector, ConnectorError, schemes::SQLITE};
use crate::url::Scheme;

#[derive(Debug)]
pub(super) struct SqliteConnector;

async fn open(request: &ConnectRequest<'_>) -> Result<SqliteStore, ConnectorError> {
    let options = SqliteOptions { namespace: request.namespace.to_owned(), ..SqliteOptions::default() };
    let file = request.url.file().unwrap_or_default();
    SqliteStore::open(file, options).await.map_err(|error| ConnectorError::File(error.into()))
}

#[async_trait]
impl Connector for SqliteConnector {
    fn schemes(&self) -> Vec<Scheme> {
        SQLITE.to_vec()
    }

    async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        Ok(Arc::new(open(request).await?.broker()))
    }

    async fn backend(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        Ok(Arc::new(open(request).await?.backend()))
    }

    async fn both(
        &self,
        request: &ConnectRequest<'_>,
    ) -> Result<(Arc<dyn Broker>, Arc<dyn Backend>), ConnectorError> {
        let store = open(request).await?;
        Ok((Arc::new(store.broker()), Arc::new(store.backend())))
    }
}
