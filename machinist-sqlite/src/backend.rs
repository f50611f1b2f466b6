//! The file as a result backend: every operation becomes a change or a query of the store's threads.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_adapter::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    facts::Facts,
    id::RecordId,
};

use crate::{
    error::{StoreError, StoreErrorKind},
    file_reader::Query,
    store_handle::StoreHandle,
    write_request::{ChangeOutcome, StoreChange},
};

/// Result backend in an SQLite file. Created by [`SqliteStore::backend`](crate::SqliteStore::backend).
///
/// It stores records and indexes. Its time is the clock of the host, which all processes on it share, and never goes back
/// if that clock does.
/// Expired records are invisible to every reader at once and are deleted in the background. Their pages in the file
/// are reused; the file does not shrink.
#[derive(Debug, Clone)]
pub struct SqliteBackend {
    store: Arc<StoreHandle>,
}

impl SqliteBackend {
    pub(crate) fn new(store: Arc<StoreHandle>) -> Self {
        Self { store }
    }

    fn unexpected_outcome(&self) -> BackendError {
        StoreError::new(
            StoreErrorKind::Other,
            &self.store.path,
            &"the writer returned the outcome of another change",
        )
        .into()
    }
}

#[async_trait]
impl Diagnose for SqliteBackend {
    fn location(&self) -> String {
        self.store.path.display().to_string()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.store.diagnose().await
    }
}

#[async_trait]
impl Backend for SqliteBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities { durable: true, shared: true }
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let outcomes = self.store.apply_changes(batch.into_iter().map(StoreChange::Commit).collect()).await;
        outcomes
            .into_iter()
            .map(|outcome| match outcome? {
                ChangeOutcome::Committed(committed) => Ok(committed),
                _ => Err(self.unexpected_outcome()),
            })
            .collect()
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        let ids = ids.to_vec();
        Ok(self.store.query(|reply| Query::Records(ids, reply)).await?)
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        let (signal, watcher) = self.store.watches.watch(id);
        Ok(Watch::new(signal, Some(Box::new(watcher))))
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        Ok(self.store.query(Query::Now).await?)
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.store.apply_change(StoreChange::UpdateIndexes(updates)).await?;
        Ok(())
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        let index = index.clone();
        Ok(self.store.query(|reply| Query::List { index, after, limit, reply }).await?)
    }
}
