//! `redis://` and its relatives: a backend over Redis.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_backend_redis::{RedisBackend, RedisOptions};
use machinist_core::backend::Backend;

use super::{ConnectRequest, Connector, ConnectorError, schemes::REDIS};
use crate::url::Scheme;

#[derive(Debug)]
pub(super) struct RedisConnector;

#[async_trait]
impl Connector for RedisConnector {
    fn schemes(&self) -> Vec<Scheme> {
        REDIS.to_vec()
    }

    async fn backend(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        Ok(Arc::new(open(request).await?))
    }
}

/// Connects to a Redis.
pub(crate) async fn open(request: &ConnectRequest<'_>) -> Result<RedisBackend, ConnectorError> {
    let options = RedisOptions {
        prefix: request.namespace.to_owned(),
        tls: request.tls()?,
        loopback_only: request.loopback_only,
        ..RedisOptions::default()
    };
    Ok(RedisBackend::connect(request.url.expose(), options).await?)
}
