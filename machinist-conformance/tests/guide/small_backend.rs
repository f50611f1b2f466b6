//! The complete backend of the guide: the guide shows all that is below.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use machinist_adapter::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::{self, Clock, Timestamp},
    diagnose::{Diagnose, Finding},
    facts::Facts,
    id::RecordId,
};
use tokio::sync::watch;

/// A backend in the memory of one process. Clones are connections to the same records.
#[derive(Debug, Clone)]
pub struct SmallBackend {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Facts and expiry of each record.
    records: HashMap<RecordId, (Facts, Option<Timestamp>)>,
    indexes: HashMap<Index, BTreeSet<(Timestamp, String)>>,
    watches: HashMap<RecordId, watch::Sender<u64>>,
}

impl State {
    /// Returns what a record holds now. A record that has expired is the same as one that never was.
    fn record(&self, id: &RecordId, now: Timestamp) -> (Facts, Option<Timestamp>) {
        match self.records.get(id) {
            Some((facts, expires)) if expires.is_none_or(|at| at > now) => (facts.clone(), *expires),
            _ => (Facts::new(), None),
        }
    }

    fn commit(&mut self, commit: &Commit, now: Timestamp) -> Committed {
        let (mut facts, expires) = self.record(&commit.id, now);
        if !commit.apply(&mut facts) {
            return Committed::Refused(facts);
        }
        let answer = commit.done(&facts);
        if facts.is_empty() {
            self.records.remove(&commit.id);
        } else {
            self.records.insert(commit.id.clone(), (facts, commit.expiry.at(expires, now)));
        }
        if commit.wake
            && let Some(signal) = self.watches.get(&commit.id)
        {
            signal.send_modify(|count| *count = count.wrapping_add(1));
        }
        answer
    }

    fn update_index(&mut self, update: IndexUpdate) {
        let (index, member, at) = match update {
            IndexUpdate::Put { index, at, member } => (index, member, Some(at)),
            IndexUpdate::Remove { index, member } => (index, member, None),
        };
        let members = self.indexes.entry(index).or_default();
        members.retain(|(_, other)| *other != member);
        members.extend(at.map(|at| (at, member)));
    }
}

impl SmallBackend {
    /// Creates an empty backend.
    pub fn new() -> Self {
        Self { clock: Clock::starting_at(clock::wall()), state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SmallBackend {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Backend for SmallBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities { durable: false, shared: false }
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let mut state = self.lock();
        let now = self.clock.now();
        batch.iter().map(|commit| Ok(state.commit(commit, now))).collect()
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        let state = self.lock();
        let now = self.clock.now();
        Ok(ids.iter().map(|id| state.record(id, now).0).collect())
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        let mut state = self.lock();
        state.watches.retain(|_, signal| signal.receiver_count() > 0);
        let signal = state.watches.entry(id.clone()).or_insert_with(|| watch::Sender::new(0));
        Ok(Watch::new(signal.subscribe(), None))
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        Ok(self.clock.now())
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        let mut state = self.lock();
        updates.into_iter().for_each(|update| state.update_index(update));
        Ok(())
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        let state = self.lock();
        let Some(members) = state.indexes.get(index) else { return Ok(Vec::new()) };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(members.range((from, Bound::Unbounded)).take(limit).cloned().collect())
    }
}

#[async_trait]
impl Diagnose for SmallBackend {
    fn location(&self) -> String {
        "small".to_owned()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        vec![Finding::good("records", self.lock().records.len().to_string())]
    }
}
