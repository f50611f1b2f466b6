//! The connectors of this crate.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_core::{backend::Backend, broker::Broker};

use super::{
    ConnectRequest, Connector, ConnectorError, Connectors,
    memory::MemoryConnector,
    schemes::{AMQP, POSTGRES, REDIS, SQLITE},
};
use crate::url::Scheme;

impl Default for Connectors {
    fn default() -> Self {
        // A compiled connector replaces the one that names the missing feature.
        let connectors = Self::none()
            .with(NotCompiled { schemes: &AMQP, feature: "amqp" })
            .with(NotCompiled { schemes: &REDIS, feature: "redis" })
            .with(NotCompiled { schemes: &POSTGRES, feature: "postgres" })
            .with(NotCompiled { schemes: &SQLITE, feature: "sqlite" })
            .with(MemoryConnector);
        #[cfg(feature = "amqp")]
        let connectors = connectors.with(super::amqp::AmqpConnector);
        #[cfg(feature = "redis")]
        let connectors = connectors.with(super::redis::RedisConnector);
        #[cfg(feature = "postgres")]
        let connectors = connectors.with(super::postgres::PostgresConnector);
        #[cfg(feature = "sqlite")]
        let connectors = connectors.with(super::sqlite::SqliteConnector);
        connectors
    }
}

/// Connector of this crate that was not compiled in. Settings with its URLs can be read, but not connected to.
#[derive(Debug)]
struct NotCompiled {
    schemes: &'static [Scheme],
    feature: &'static str,
}

#[async_trait]
impl Connector for NotCompiled {
    fn schemes(&self) -> Vec<Scheme> {
        self.schemes.to_vec()
    }

    async fn broker(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        Err(ConnectorError::Feature { feature: self.feature })
    }

    async fn backend(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        Err(ConnectorError::Feature { feature: self.feature })
    }
}
