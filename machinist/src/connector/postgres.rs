//! `postgres://`: broker and backend in one PostgreSQL.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_core::{backend::Backend, broker::Broker};
use machinist_postgres::{PostgresOptions, PostgresStore, SchemaMode, check_url, is_over_tls};

use super::{ConnectRequest, Connector, ConnectorError, schemes::POSTGRES};
use crate::{
    topology::Topology,
    url::{Reach, Role, Scheme, ServerUrl},
};

#[derive(Debug)]
pub(super) struct PostgresConnector;

/// Returns the options of a connection.
pub(crate) fn options(request: &ConnectRequest<'_>) -> Result<PostgresOptions, ConnectorError> {
    Ok(PostgresOptions {
        namespace: request.namespace.to_owned(),
        schema_mode: match request.topology {
            Topology::Declare => SchemaMode::Declare,
            Topology::Verify => SchemaMode::Verify,
        },
        tls: request.tls()?,
    })
}

async fn open(request: &ConnectRequest<'_>, role: Role) -> Result<PostgresStore, ConnectorError> {
    let store = PostgresStore::connect(request.url.expose(), options(request)?).await;
    store.map_err(|error| match role {
        Role::Broker => ConnectorError::Broker(error.into()),
        Role::Backend => ConnectorError::Backend(error.into()),
    })
}

#[async_trait]
impl Connector for PostgresConnector {
    fn schemes(&self) -> Vec<Scheme> {
        POSTGRES.to_vec()
    }

    fn check(&self, url: &ServerUrl) -> Result<(), String> {
        check_url(url.expose())
    }

    fn reach(&self, url: &ServerUrl) -> Reach {
        if is_over_tls(url.expose()) { Reach::Tls } else { url.scheme().reach() }
    }

    async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        Ok(Arc::new(open(request, Role::Broker).await?.broker()))
    }

    async fn backend(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        Ok(Arc::new(open(request, Role::Backend).await?.backend()))
    }

    async fn both(
        &self,
        request: &ConnectRequest<'_>,
    ) -> Result<(Arc<dyn Broker>, Arc<dyn Backend>), ConnectorError> {
        let store = open(request, Role::Broker).await?;
        Ok((Arc::new(store.broker()), Arc::new(store.backend())))
    }
}
