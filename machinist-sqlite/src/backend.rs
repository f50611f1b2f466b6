//! The file as a result backend.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use machinist_core::{
    backend::{
        Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Renewed,
        SessionEntry, Watch,
    },
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    id::{SessionId, TaskId},
    record::Facts,
};

use crate::{
    error::{StoreError, StoreErrorKind},
    file_reader::Query,
    store::StoreHandle,
    write_request::{ChangeOutcome, StoreChange},
};

/// Records, sessions and lists in an SQLite file. Made by [`SqliteStore::backend`](crate::SqliteStore::backend).
///
/// Its time is the host's clock, which never goes back while a process runs. What has expired is gone at once for
/// every reader, and deleted in the background; the file's pages are used again, the file does not shrink.
#[derive(Debug, Clone)]
pub struct SqliteBackend {
    shared: Arc<StoreHandle>,
}

impl SqliteBackend {
    pub(crate) fn new(shared: Arc<StoreHandle>) -> Self {
        Self { shared }
    }

    fn unexpected(&self) -> BackendError {
        StoreError::new(
            StoreErrorKind::Other,
            &self.shared.path,
            &"the writer gave another answer than it was asked for",
        )
        .into()
    }
}

#[async_trait]
impl Diagnose for SqliteBackend {
    fn location(&self) -> String {
        self.shared.path.display().to_string()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.shared.diagnose().await
    }
}

#[async_trait]
impl Backend for SqliteBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities { durable: true, shared: true }
    }

    async fn commit(&self, batch: Vec<Commit>) -> Vec<Result<Committed, BackendError>> {
        let answers = self.shared.change(batch.into_iter().map(StoreChange::Commit).collect()).await;
        answers
            .into_iter()
            .map(|answer| match answer? {
                ChangeOutcome::Committed(committed) => Ok(committed),
                _ => Err(self.unexpected()),
            })
            .collect()
    }

    async fn read(&self, ids: &[TaskId]) -> Result<Vec<Facts>, BackendError> {
        let ids = ids.to_vec();
        Ok(self.shared.ask(|reply| Query::Records(ids, reply)).await?)
    }

    async fn watch(&self, id: &TaskId) -> Result<Watch, BackendError> {
        let (signal, watcher) = self.shared.hub.watch(id);
        Ok(Watch::new(signal, Some(Box::new(watcher))))
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        Ok(self.shared.now())
    }

    async fn open_session(
        &self,
        session: &SessionId,
        lease: Duration,
        info: Bytes,
    ) -> Result<Timestamp, BackendError> {
        match self
            .shared
            .change_one(StoreChange::OpenSession { session: session.clone(), lease, info })
            .await?
        {
            ChangeOutcome::At(now) => Ok(now),
            _ => Err(self.unexpected()),
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
        match self.shared.change_one(renew).await? {
            ChangeOutcome::Renewed(renewed) => Ok(renewed),
            _ => Err(self.unexpected()),
        }
    }

    async fn close_session(&self, session: &SessionId) -> Result<(), BackendError> {
        self.shared.change_one(StoreChange::CloseSession(session.clone())).await?;
        Ok(())
    }

    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>, BackendError> {
        let ids = sessions.to_vec();
        Ok(self.shared.ask(|reply| Query::Alive(ids, reply)).await?)
    }

    async fn sessions(&self) -> Result<Vec<SessionEntry>, BackendError> {
        Ok(self.shared.ask(Query::Sessions).await?)
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.shared.change_one(StoreChange::UpdateIndexes(updates)).await?;
        Ok(())
    }

    async fn list(
        &self,
        index: Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        Ok(self.shared.ask(|reply| Query::List { index, after, limit, reply }).await?)
    }
}
