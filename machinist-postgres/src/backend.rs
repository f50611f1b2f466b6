//! PostgreSQL as a result backend.

use std::{any::Any, sync::Arc};

use async_trait::async_trait;
use machinist_adapter::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    facts::Facts,
    id::RecordId,
};
use tokio::sync::oneshot;

use crate::{commits::AwaitedCommit, diagnose, error::PostgresError, records, store::Store};

/// Result backend in a PostgreSQL. Created by [`PostgresStore::backend`](crate::PostgresStore::backend).
///
/// A record is one row, and its time is that of the server. A record whose time is over is absent for every reader at once, and
/// is deleted in the background.
#[derive(Debug, Clone)]
pub struct PostgresBackend {
    pub(crate) store: Arc<Store>,
}

impl PostgresBackend {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Diagnose for PostgresBackend {
    fn location(&self) -> String {
        self.store.location.clone()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        diagnose::examine(&self.store).await
    }
}

#[async_trait]
impl Backend for PostgresBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities { durable: true, shared: true }
    }

    fn adapter(&self) -> Option<&dyn Any> {
        Some(self)
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let asked: Vec<_> = batch
            .into_iter()
            .map(|commit| {
                let (caller, told) = oneshot::channel();
                self.store.commit(AwaitedCommit { commit, caller }).map(|()| told)
            })
            .collect();
        let mut outcomes = Vec::with_capacity(asked.len());
        for told in asked {
            outcomes.push(match told {
                Ok(told) => told.await.unwrap_or_else(|_| Err(PostgresError::closed().into())),
                Err(closed) => Err(closed.into()),
            });
        }
        outcomes
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        self.read_each(ids).await?.into_iter().collect()
    }

    async fn read_each(&self, ids: &[RecordId]) -> Result<Vec<Result<Facts, BackendError>>, BackendError> {
        let ids = ids.to_vec();
        let records = self.store.ask(|link| async move { records::read(&link, &ids).await }).await?;
        Ok(records.into_iter().map(|record| record.map_err(BackendError::from)).collect())
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.store.listen();
        let (signal, watcher) = self.store.watches.watch(id);
        Ok(Watch::new(signal, Some(Box::new(watcher))))
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        Ok(self.store.ask(|link| async move { records::now(&link).await }).await?)
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        Ok(self.store.ask(|link| async move { records::update_indexes(&link, updates).await }).await?)
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        let index = index.clone();
        Ok(self.store.ask(|link| async move { records::list(&link, &index, after, limit).await }).await?)
    }
}
