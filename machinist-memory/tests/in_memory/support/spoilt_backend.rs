//! A backend in which another program has written: some records and indexes cannot be used.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use machinist_core::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    id::RecordId,
    record::Facts,
};
use machinist_memory::MemoryBackend;

/// A backend in this process, in which records and indexes can be spoilt. Clones share everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpoiltBackend {
    pub(crate) backend: MemoryBackend,
    records: Arc<Mutex<HashSet<RecordId>>>,
    indexes: Arc<Mutex<HashSet<Index>>>,
}

impl SpoiltBackend {
    /// Puts something else in the place of a record.
    pub(crate) fn spoil(&self, id: impl Into<RecordId>) {
        self.records.lock().unwrap().insert(id.into());
    }

    /// Puts something else in the place of an index.
    pub(crate) fn spoil_index(&self, index: Index) {
        self.indexes.lock().unwrap().insert(index);
    }

    /// Puts everything back in its place.
    pub(crate) fn mend(&self) {
        self.records.lock().unwrap().clear();
        self.indexes.lock().unwrap().clear();
    }

    fn usable(&self, id: &RecordId) -> Result<(), BackendError> {
        match self.records.lock().unwrap().contains(id) {
            true => Err(BackendError::Record { reason: format!("{id} is a string") }),
            false => Ok(()),
        }
    }

    fn usable_index(&self, index: &Index) -> Result<(), BackendError> {
        match self.indexes.lock().unwrap().contains(index) {
            true => Err(BackendError::Record { reason: format!("index {} is a string", index.name()) }),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Diagnose for SpoiltBackend {
    fn location(&self) -> String {
        "memory".to_owned()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        Vec::new()
    }
}

#[async_trait]
impl Backend for SpoiltBackend {
    fn capabilities(&self) -> BackendCapabilities {
        self.backend.capabilities()
    }
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let mut answers = Vec::new();
        for commit in batch {
            answers.extend(match self.usable(&commit.id) {
                Ok(()) => self.backend.commit(vec![commit]).await,
                Err(error) => vec![Err(error)],
            });
        }
        answers
    }
    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        ids.iter().try_for_each(|id| self.usable(id))?;
        self.backend.read(ids).await
    }
    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.backend.watch(id).await
    }
    async fn now(&self) -> Result<Timestamp, BackendError> {
        self.backend.now().await
    }
    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        let mut spoilt = Ok(());
        for update in updates {
            let (IndexUpdate::Put { index, .. } | IndexUpdate::Remove { index, .. }) = &update;
            match self.usable_index(index) {
                Ok(()) => self.backend.update_indexes(vec![update]).await?,
                Err(error) => spoilt = Err(error),
            }
        }
        spoilt
    }
    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        self.usable_index(index)?;
        self.backend.list(index, after, limit).await
    }
}
