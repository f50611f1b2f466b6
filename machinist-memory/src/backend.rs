//! Records and indexes in memory.
//!
//! Time is the host's clock at the moment when the backend was created, and advances with tokio's clock: it never goes
//! back, and it stands still while a test pauses it.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::lock;
use machinist_adapter::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::{self, Clock, Timestamp},
    diagnose::{Diagnose, Finding},
    facts::Facts,
    id::RecordId,
};

/// A backend inside this process. Clones share everything.
#[derive(Debug, Clone)]
pub struct MemoryBackend {
    state: Arc<Mutex<Records>>,
    clock: Clock,
}

impl MemoryBackend {
    /// Creates an empty backend.
    pub fn new() -> Self {
        Self::starting_at(clock::wall())
    }

    /// Creates an empty backend whose time is now this instant, whatever the host's clock says.
    pub fn starting_at(now: Timestamp) -> Self {
        Self { state: Arc::default(), clock: Clock::starting_at(now) }
    }

    /// Loses all records and indexes, as if an operator had emptied the backend. For tests of code that uses a backend.
    pub fn lose_all(&self) {
        self.with_state(|state, _| {
            state.records.clear();
            state.expiries.clear();
            state.indexes.clear();
        });
    }

    /// Calls `f` with the current state. Expired entries are removed first, before anybody can see them.
    fn with_state<T>(&self, f: impl FnOnce(&mut Records, Timestamp) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        state.forget_expired(now);
        f(&mut state, now)
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities { durable: false, shared: false }
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        self.with_state(|state, now| batch.iter().map(|commit| Ok(state.commit(commit, now))).collect())
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        Ok(self.with_state(|state, _| state.read(ids)))
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        let mut state = lock(&self.state);
        let signal = state.watches.entry(id.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe();
        let guard = WatchEntry { state: Arc::clone(&self.state), id: id.clone() };
        Ok(Watch::new(signal, Some(Box::new(guard))))
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        Ok(self.clock.now())
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        let mut state = lock(&self.state);
        updates.into_iter().for_each(|update| state.update_index(update));
        Ok(())
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        let state = lock(&self.state);
        let Some(members) = state.indexes.get(index) else { return Ok(Vec::new()) };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(members.ordered.range((from, Bound::Unbounded)).take(limit).cloned().collect())
    }
}

#[async_trait]
impl Diagnose for MemoryBackend {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        let records = self.with_state(|state, _| state.records.len());
        vec![
            Finding::good("records", records.to_string()),
            Finding::warning(
                "durability",
                "records are lost when this process ends",
                "use a backend that keeps them: sqlite://FILE or redis://HOST",
            ),
        ]
    }
}

#[derive(Debug, Default)]
struct Records {
    records: HashMap<RecordId, MemoryRecord>,
    /// Records that expire, earliest first.
    expiries: BTreeSet<(Timestamp, RecordId)>,
    indexes: HashMap<Index, Members>,
    watches: HashMap<RecordId, watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct MemoryRecord {
    facts: Facts,
    expires: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Members {
    ordered: BTreeSet<(Timestamp, String)>,
    instants: HashMap<String, Timestamp>,
}

impl Records {
    fn forget_expired(&mut self, now: Timestamp) {
        while self.expiries.first().is_some_and(|(expires, _)| *expires <= now) {
            if let Some((_, id)) = self.expiries.pop_first() {
                self.records.remove(&id);
            }
        }
    }

    fn read(&self, ids: &[RecordId]) -> Vec<Facts> {
        let facts = |id| self.records.get(id).map(|record: &MemoryRecord| record.facts.clone());
        ids.iter().map(|id| facts(id).unwrap_or_default()).collect()
    }

    fn commit(&mut self, commit: &Commit, now: Timestamp) -> Committed {
        // An earlier commit of the same batch may have made the record expire at once.
        self.forget_expired(now);
        let mut record = self.records.remove(&commit.id).unwrap_or_default();
        let answer = if commit.apply(&mut record.facts) {
            let before = record.expires;
            record.expires = commit.expiry.at(before, now);
            self.reschedule(&commit.id, before, &record);
            if commit.wake
                && let Some(watch) = self.watches.get(&commit.id)
            {
                watch.send_modify(|count| *count = count.wrapping_add(1));
            }
            commit.done(&record.facts)
        } else {
            Committed::Refused(record.facts.clone())
        };
        if !record.facts.is_empty() {
            self.records.insert(commit.id.clone(), record);
        }
        answer
    }

    fn reschedule(&mut self, id: &RecordId, before: Option<Timestamp>, record: &MemoryRecord) {
        if let Some(before) = before {
            self.expiries.remove(&(before, id.clone()));
        }
        if let Some(expires) = record.expires.filter(|_| !record.facts.is_empty()) {
            self.expiries.insert((expires, id.clone()));
        }
    }

    fn update_index(&mut self, update: IndexUpdate) {
        let (index, member, at) = match update {
            IndexUpdate::Put { index, at, member } => (index, member, Some(at)),
            IndexUpdate::Remove { index, member } => (index, member, None),
        };
        let members = self.indexes.entry(index).or_default();
        if let Some(before) = members.instants.remove(&member) {
            members.ordered.remove(&(before, member.clone()));
        }
        if let Some(at) = at {
            members.ordered.insert((at, member.clone()));
            members.instants.insert(member, at);
        }
    }
}

/// Guard of every watch of one record; the last one removes the signal.
#[derive(Debug)]
struct WatchEntry {
    state: Arc<Mutex<Records>>,
    id: RecordId,
}

impl Drop for WatchEntry {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        if state.watches.get(&self.id).is_some_and(|signal| signal.receiver_count() == 0) {
            state.watches.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use bytes::Bytes;
    use machinist_adapter::{backend::Expiry, id::TaskId};

    fn put(id: &RecordId, name: &str, expiry: Expiry) -> Commit {
        Commit { facts: vec![(name.to_owned().into(), Bytes::new())], expiry, ..Commit::new(id.clone()) }
    }

    #[tokio::test(start_paused = true)]
    async fn expiries_follow_paused_time() {
        let backend = MemoryBackend::new();
        let id = RecordId::from(TaskId::fresh());
        let day = Duration::from_secs(86400);
        backend.commit(vec![put(&id, "name", Expiry::After(day)).into()]).await;
        tokio::time::advance(day - Duration::from_millis(1)).await;
        assert!(!backend.read(std::slice::from_ref(&id)).await.unwrap()[0].is_empty());
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(backend.read(&[id]).await.unwrap()[0].is_empty());
    }

    #[tokio::test]
    async fn expired_records_and_ended_watches_leave_nothing_behind() {
        let backend = MemoryBackend::new();
        let id = RecordId::from(TaskId::fresh());
        drop((backend.watch(&id).await.unwrap(), backend.watch(&id).await.unwrap()));
        backend.commit(vec![put(&id, "name", Expiry::After(Duration::ZERO)).into()]).await;
        backend.read(&[]).await.unwrap();
        let state = lock(&backend.state);
        assert!(state.watches.is_empty() && state.records.is_empty() && state.expiries.is_empty());
    }
}
