//! The file as a result backend: every operation becomes a change or a query of the store's threads.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use machinist_adapter::{
    backend::{
        Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Renewed,
        SessionEntry, Watch,
    },
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    facts::Facts,
    id::{SessionId, TaskId},
};

use crate::{
    error::{StoreError, StoreErrorKind},
    file_reader::Query,
    store_handle::StoreHandle,
    write_request::{ChangeOutcome, StoreChange},
};

/// Result backend in an SQLite file. Created by [`SqliteStore::backend`](crate::SqliteStore::backend).
///
/// It stores records, sessions and indexes. Its time is the clock of the host, made monotonic within a process.
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

    async fn read(&self, ids: &[TaskId]) -> Result<Vec<Facts>, BackendError> {
        let ids = ids.to_vec();
        Ok(self.store.query(|reply| Query::Records(ids, reply)).await?)
    }

    async fn watch(&self, id: &TaskId) -> Result<Watch, BackendError> {
        let (signal, watcher) = self.store.watches.watch(id);
        Ok(Watch::new(signal, Some(Box::new(watcher))))
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        Ok(self.store.now())
    }

    async fn open_session(
        &self,
        session: &SessionId,
        lease: Duration,
        info: Bytes,
    ) -> Result<Timestamp, BackendError> {
        match self
            .store
            .apply_change(StoreChange::OpenSession { session: session.clone(), lease, info })
            .await?
        {
            ChangeOutcome::At(now) => Ok(now),
            _ => Err(self.unexpected_outcome()),
        }
    }

    async fn renew_session(
        &self,
        session: &SessionId,
        lease: Duration,
        info: Bytes,
        running: &[TaskId],
    ) -> Result<Renewed, BackendError> {
        let renew =
            StoreChange::RenewSession { session: session.clone(), lease, info, running: running.to_vec() };
        match self.store.apply_change(renew).await? {
            ChangeOutcome::Renewed(renewed) => Ok(renewed),
            _ => Err(self.unexpected_outcome()),
        }
    }

    async fn close_session(&self, session: &SessionId) -> Result<(), BackendError> {
        self.store.apply_change(StoreChange::CloseSession(session.clone())).await?;
        Ok(())
    }

    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>, BackendError> {
        let ids = sessions.to_vec();
        Ok(self.store.query(|reply| Query::Alive(ids, reply)).await?)
    }

    async fn sessions(&self) -> Result<Vec<SessionEntry>, BackendError> {
        Ok(self.store.query(Query::Sessions).await?)
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.store.apply_change(StoreChange::UpdateIndexes(updates)).await?;
        Ok(())
    }

    async fn list(
        &self,
        index: Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        Ok(self.store.query(|reply| Query::List { index, after, limit, reply }).await?)
    }
}
