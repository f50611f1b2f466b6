//! Result backend over three ordered tables, as a key-value store or a database would hold them. Each fact is a row of
//! its own, so a commit writes only the rows that it names.
//!
//! The tables are in memory and have one lock. That makes a commit one step, and nothing is awaited under the lock.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use machinist_adapter::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::{self, Clock, Timestamp},
    diagnose::{Diagnose, Finding},
    facts::Facts,
    id::RecordId,
};
use tokio::sync::watch;

/// Number of signals for all records: more of them only make wake-ups of the wrong waiter rarer.
const SIGNALS: usize = 64;

/// Result backend in the memory of one process. Clones are connections to the same tables.
#[derive(Debug, Clone, Default)]
pub struct ToyBackend {
    store: Arc<Store>,
}

#[derive(Debug)]
struct Store {
    clock: Clock,
    tables: Mutex<Tables>,
    signals: Signals,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            clock: Clock::starting_at(clock::wall()),
            tables: Mutex::default(),
            signals: Signals::default(),
        }
    }
}

/// Tables of the backend. The order of a table is the order in which it is read.
#[derive(Debug, Default)]
struct Tables {
    /// One row for each fact, so those of a record are neighbours.
    facts: BTreeMap<(RecordId, String), Bytes>,
    /// Expiry of each record that has one. Each row leaves together with the last fact of its record.
    expiries: BTreeMap<RecordId, Timestamp>,
    /// Entries of all indexes, in the order of `list`.
    entries: BTreeSet<(String, Timestamp, String)>,
    /// Instant of each member of an index: it finds the entry that an update replaces.
    instants: BTreeMap<(String, String), Timestamp>,
}

impl Tables {
    /// Reads the facts of a record. A record whose expiry has passed is absent, though its rows are still here.
    fn read(&self, id: &RecordId, now: Timestamp) -> Facts {
        let mut facts = Facts::new();
        if self.is_expired(id, now) {
            return facts;
        }
        let rows = self.facts.range((id.clone(), String::new())..);
        for ((_, name), value) in rows.take_while(|((row, _), _)| row == id) {
            facts.put(name.clone(), value.clone());
        }
        facts
    }

    fn is_expired(&self, id: &RecordId, now: Timestamp) -> bool {
        self.expiries.get(id).is_some_and(|at| *at <= now)
    }

    /// Deletes the rows of a record whose expiry has passed, so that a later record of that name starts without them.
    fn forget_expired(&mut self, id: &RecordId, now: Timestamp) {
        if !self.is_expired(id, now) {
            return;
        }
        self.expiries.remove(id);
        let from = (id.clone(), String::new());
        while let Some((row, _)) = self.facts.range(&from..).next().filter(|((row, _), _)| row == id) {
            let row = row.clone();
            self.facts.remove(&row);
        }
    }

    fn commit(&mut self, commit: &Commit, now: Timestamp) -> Committed {
        self.forget_expired(&commit.id, now);
        let mut facts = self.read(&commit.id, now);
        if !commit.apply(&mut facts) {
            return Committed::Refused(facts);
        }
        self.write_facts(commit, &facts);
        self.write_expiry(commit, &facts, now);
        commit.done(&facts)
    }

    /// Makes the rows that the commit names equal to the record after it. All other rows are so already.
    fn write_facts(&mut self, commit: &Commit, after: &Facts) {
        let written = commit.equal_or_absent.iter().chain(&commit.facts).map(|(name, _)| name);
        for name in commit.drop.iter().chain(written) {
            let row = (commit.id.clone(), name.to_string());
            match after.get(name) {
                Some(value) => self.facts.insert(row, value.clone()),
                None => self.facts.remove(&row),
            };
        }
    }

    fn write_expiry(&mut self, commit: &Commit, after: &Facts, now: Timestamp) {
        let before = self.expiries.get(&commit.id).copied();
        match commit.expiry.at(before, now).filter(|_| !after.is_empty()) {
            Some(at) => self.expiries.insert(commit.id.clone(), at),
            None => self.expiries.remove(&commit.id),
        };
    }

    fn update_index(&mut self, update: IndexUpdate) {
        let (index, member, at) = match update {
            IndexUpdate::Put { index, at, member } => (index, member, Some(at)),
            IndexUpdate::Remove { index, member } => (index, member, None),
        };
        let index = index.name().into_owned();
        let key = (index.clone(), member.clone());
        if let Some(old) = self.instants.remove(&key) {
            self.entries.remove(&(index.clone(), old, member.clone()));
        }
        if let Some(at) = at {
            self.instants.insert(key, at);
            self.entries.insert((index, at, member));
        }
    }

    fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Vec<(Timestamp, String)> {
        let index = index.name().into_owned();
        let from = match after {
            Some((at, member)) => Bound::Excluded((index.clone(), at, member)),
            None => Bound::Included((index.clone(), Timestamp::from_micros(i64::MIN), String::new())),
        };
        let rows = self.entries.range((from, Bound::Unbounded));
        let rows = rows.take_while(|(other, ..)| *other == index).take(limit);
        rows.map(|(_, at, member)| (*at, member.clone())).collect()
    }
}

/// Fixed set of signals that all records share. A shared signal wakes a few waiters in vain, which costs each of them
/// a read. In return there is nothing to clean up when a watch ends.
#[derive(Debug)]
struct Signals {
    hasher: RandomState,
    senders: [watch::Sender<u64>; SIGNALS],
}

impl Default for Signals {
    fn default() -> Self {
        Self { hasher: RandomState::new(), senders: std::array::from_fn(|_| watch::Sender::new(0)) }
    }
}

impl Signals {
    fn of(&self, id: &RecordId) -> &watch::Sender<u64> {
        let hash = self.hasher.hash_one(id) % SIGNALS as u64;
        &self.senders[hash as usize]
    }

    fn wake(&self, id: &RecordId) {
        self.of(id).send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl ToyBackend {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.store.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit_one(&self, commit: &Commit) -> Committed {
        let mut tables = self.tables();
        // The clock is read under the lock, so that later commits have later times.
        let answer = tables.commit(commit, self.store.clock.now());
        drop(tables);
        if commit.wake && matches!(answer, Committed::Done { .. }) {
            self.store.signals.wake(&commit.id);
        }
        answer
    }
}

#[async_trait]
impl Backend for ToyBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities { durable: false, shared: false }
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        batch.iter().map(|commit| Ok(self.commit_one(commit))).collect()
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        let tables = self.tables();
        let now = self.store.clock.now();
        Ok(ids.iter().map(|id| tables.read(id, now)).collect())
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        Ok(Watch::new(self.store.signals.of(id).subscribe(), None))
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        Ok(self.store.clock.now())
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        let mut tables = self.tables();
        updates.into_iter().for_each(|update| tables.update_index(update));
        Ok(())
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        Ok(self.tables().list(index, after, limit))
    }
}

#[async_trait]
impl Diagnose for ToyBackend {
    fn location(&self) -> String {
        "toy".to_owned()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        vec![Finding::good("facts", self.tables().facts.len().to_string())]
    }
}
