//! `memory://`: broker and backend of one process.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_core::{backend::Backend, broker::Broker};
use machinist_memory::{MemoryBackend, MemoryBroker};

use super::{ConnectRequest, Connector, ConnectorError};
use crate::url::{Reach, Scheme};

#[derive(Debug)]
pub(super) struct MemoryConnector;

#[async_trait]
impl Connector for MemoryConnector {
    fn schemes(&self) -> Vec<Scheme> {
        vec![Scheme::both("memory", Reach::Process)]
    }

    async fn broker(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        Ok(Arc::new(MemoryBroker::new()))
    }

    async fn backend(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        Ok(Arc::new(MemoryBackend::new()))
    }
}
