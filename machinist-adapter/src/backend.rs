//! Seam to result backends, which remember facts and wake those who wait for them.
//!
//! A backend holds no rule of the delivery protocol. It does one thing atomically, [`commit`](Backend::commit): it
//! writes facts of one record if certain facts are absent and others are there. Tasks, sessions of workers and
//! everything else are records of different kinds. Every decision is made in `machinist_core`, which needs no server to
//! be tested. The docs of each method state what an implementation must guarantee, and
//! `machinist-conformance` proves it.
//!
//! # Why not `set_state`
//! A backend with one method per state (as in Go machinery) must know which change is allowed after which, and every
//! adapter repeats that knowledge. A lost reply leaves the caller uncertain. Write-once facts have no order to break,
//! and a caller whose reply was lost writes them again.

use std::{any::Any, borrow::Cow, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    clock::Timestamp,
    diagnose::Diagnose,
    error::BoxError,
    facts::{FactName, Facts},
    id::RecordId,
};

/// Time at which a record expires, counted from the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expiry {
    /// After this long from now, whatever was set before.
    After(Duration),
    /// After this long from now, unless an expiry is set already.
    AfterUnlessSet(Duration),
    /// Leaves the expiry as it was.
    Keep,
}

impl Expiry {
    /// Returns the time at which a record expires after a commit made at `now`; `before` is the expiry that was set.
    pub fn at(self, before: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        match (self, before) {
            (Self::After(duration), _) | (Self::AfterUnlessSet(duration), None) => Some(now.plus(duration)),
            (Self::AfterUnlessSet(_) | Self::Keep, set) => set,
        }
    }
}

/// One atomic change of one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Commit {
    /// The record that is changed.
    pub id: RecordId,
    /// Refused if the record holds any of these.
    pub unless: Vec<FactName>,
    /// Refused unless the record holds each of these with exactly this value. A name may also be in `drop` and in
    /// `facts`: then the commit replaces the value that the caller knows (compare and swap).
    pub require: Vec<(FactName, Bytes)>,
    /// Refused if the record holds one of these with another value; written back where it is absent.
    pub equal_or_absent: Vec<(FactName, Bytes)>,
    /// Removed, before `facts` are written.
    pub drop: Vec<FactName>,
    /// Written, each unless the record holds a fact of that name: the first writer wins.
    pub facts: Vec<(FactName, Bytes)>,
    /// Expiry of the record. A record without facts does not exist.
    pub expiry: Expiry,
    /// Wakes those who watch this record.
    pub wake: bool,
    /// Asks for the number of facts that the record holds after the commit. Of commits of one record that are made together, the
    /// last gets this number, and those before it a smaller one.
    pub count: bool,
}

impl Commit {
    /// Creates an empty commit.
    pub fn new(id: impl Into<RecordId>) -> Self {
        Self {
            id: id.into(),
            unless: Vec::new(),
            require: Vec::new(),
            equal_or_absent: Vec::new(),
            drop: Vec::new(),
            facts: Vec::new(),
            expiry: Expiry::Keep,
            wake: false,
            count: false,
        }
    }

    /// Applies the commit to the facts of the record, in one step. Returns `false`, with nothing changed, if the record
    /// refuses it. Every backend must have this effect. Backends that hold the facts themselves call this function, and
    /// so does every search over what workers commit.
    pub fn apply(&self, facts: &mut Facts) -> bool {
        let contradicts =
            |(name, value): &(FactName, Bytes)| facts.get(name).is_some_and(|stored| stored != value);
        let missing = |(name, value): &(FactName, Bytes)| facts.get(name) != Some(value);
        if self.unless.iter().any(|name| facts.has(name))
            || self.require.iter().any(missing)
            || self.equal_or_absent.iter().any(contradicts)
        {
            return false;
        }
        for name in &self.drop {
            facts.remove(name);
        }
        for (name, value) in self.equal_or_absent.iter().chain(&self.facts) {
            if !facts.has(name) {
                facts.put(name.clone(), value.clone());
            }
        }
        true
    }

    /// Returns the result of this commit once it is made; `facts` is the record after it.
    pub fn done(&self, facts: &Facts) -> Committed {
        Committed::Done { count: self.count.then(|| facts.len() as u64) }
    }
}

/// Result of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// All of it is written.
    Done {
        /// Number of facts that the record holds now, if the commit asked for it.
        count: Option<u64>,
    },
    /// None of it is written. Holds the record as it is.
    Refused(Facts),
}

/// Error of a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend cannot be reached, did not answer in time, or cannot take writes for now (it is loading, failing
    /// over or full). The request may have been carried out. Try again: every commit may be repeated.
    #[error("the backend is unavailable")]
    Unavailable(#[source] BoxError),
    /// The backend can be reached and refuses, and will refuse until somebody changes something: credentials,
    /// permissions, keys of another program. The text names the remedy.
    #[error("the backend refused: {reason}")]
    Refused {
        /// Answer of the backend, and the remedy.
        reason: String,
    },
    /// One record or index cannot be used: what is stored there was not written by machinist, or the change is too large
    /// for one record. Every other record can be used, and the backend answers. The text names the record and the
    /// remedy.
    #[error("one record cannot be used: {reason}")]
    Record {
        /// Name of the record as the server knows it, what is wrong with it, and the remedy.
        reason: String,
    },
    /// A setting of the adapter is wrong.
    #[error("{0}")]
    Configuration(String),
}

impl BackendError {
    /// Returns `true` if the error belongs to one record, so that the same request for other records can succeed.
    pub fn is_of_one_record(&self) -> bool {
        matches!(self, Self::Record { .. })
    }
}

/// Wake-ups for one record. They are level-triggered and may be missed, but spurious ones are rare.
///
/// A waiter reads the record, then awaits [`changed`](Self::changed) with a bound, then reads again.
#[derive(Debug)]
pub struct Watch {
    signal: watch::Receiver<u64>,
    /// Dropped with the watch, so that the adapter can forget it.
    _guard: Option<Box<dyn WatchGuard>>,
}

/// Value that an adapter wants dropped when the watch ends.
pub trait WatchGuard: fmt::Debug + Send + Sync {}
impl<T: fmt::Debug + Send + Sync> WatchGuard for T {}

impl Watch {
    /// Creates a watch that wakes whenever the number in `signal` changes.
    pub fn new(signal: watch::Receiver<u64>, guard: Option<Box<dyn WatchGuard>>) -> Self {
        Self { signal, _guard: guard }
    }

    /// Returns when the record may have changed since the last call (the first call: since the watch was created).
    /// Waits forever if the adapter can no longer tell, so the caller needs a timeout.
    ///
    /// # Cancel safety
    /// Safe: a dropped future loses no wake-up.
    pub async fn changed(&mut self) {
        if self.signal.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Lists that are kept in addition to the facts. They make lookups cheap, but no decision is based on them: an entry
/// may be missing or stale, and every reader checks the records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Index {
    /// Names of declared queues, by the time of declaration.
    Queues,
    /// Tasks that wait for their time, by due time.
    Scheduled,
    /// Dead letters of tasks, by the time at which they became one.
    DeadLetters,
    /// Dead letters of messages that were not believed, by the time at which they became one.
    Refused,
    /// Sessions of workers, by the time at which they were opened.
    Sessions,
    /// Names of periodic tasks, by the time at which they were added or announced.
    Periodic,
    /// Batches of events, by the time at which they were published.
    Events,
    /// Batches of ended tasks, by the time of the last end.
    Ended,
    /// Tasks that wait for this reason, by the time at which they began to wait.
    Parked(Arc<str>),
}

impl Index {
    /// Every index that exists once.
    pub const ALL: [Self; 8] = [
        Self::Queues,
        Self::Scheduled,
        Self::DeadLetters,
        Self::Refused,
        Self::Sessions,
        Self::Periodic,
        Self::Events,
        Self::Ended,
    ];

    /// Returns the name under which the index is stored.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::Queues => "queues".into(),
            Self::Scheduled => "scheduled".into(),
            Self::DeadLetters => "dead".into(),
            Self::Refused => "refused".into(),
            Self::Sessions => "sessions".into(),
            Self::Periodic => "periodic".into(),
            Self::Events => "events".into(),
            Self::Ended => "ended".into(),
            Self::Parked(reason) => format!("parked:{reason}").into(),
        }
    }
}

/// A change of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexUpdate {
    /// Adds a member, or moves it to another instant.
    Put {
        /// Index that is changed.
        index: Index,
        /// Instant by which the member is ordered.
        at: Timestamp,
        /// Member of the index.
        member: String,
    },
    /// Removes a member.
    Remove {
        /// Index that is changed.
        index: Index,
        /// Member of the index.
        member: String,
    },
}

/// Capabilities of a backend adapter beyond the minimum. The conformance suite prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendCapabilities {
    /// Records survive the end of the process that wrote them.
    pub durable: bool,
    /// Several processes can share it. A worker then renews its session on a separate thread with its own runtime, so
    /// that an adapter with connections keeps one for each runtime.
    pub shared: bool,
}

/// Result backend: remembers facts about tasks and workers.
#[async_trait]
pub trait Backend: Diagnose + fmt::Debug + Send + Sync + 'static {
    /// Returns the capabilities of this adapter.
    fn capabilities(&self) -> BackendCapabilities;

    /// Returns the adapter itself, for what only its kind of server can do, such as sends in a transaction of its database. A
    /// backend that wraps another returns that of the other. Nothing unless it is implemented.
    fn adapter(&self) -> Option<&dyn Any> {
        None
    }

    /// Makes changes, each atomic by itself. Returns one answer for each, in their order. Changes of the same record
    /// are made in that order too.
    ///
    /// In one step for each record: if it holds a fact named in `unless`, lacks one of `require` or has it with another
    /// value, or has one of `equal_or_absent` with another value, nothing is written and the whole record is returned.
    /// Otherwise the facts named in `drop` are removed, then every fact of `equal_or_absent` and `facts` whose name is
    /// absent is written, then the expiry is set. A commit that sets only an expiry extends a record; a record that does
    /// not exist stays so. The number of facts is returned if the commit asks for it, at a cost that does not depend on
    /// the size of the record.
    ///
    /// Commits are shared, so that a caller can keep one for a repetition without copying it.
    ///
    /// # Errors
    /// [`BackendError`]; after an error, that change may or may not have been made, and may be repeated. A record that
    /// cannot be used ([`BackendError::Record`]) fails only its changes: those of other records are made.
    ///
    /// # Cancel safety
    /// Dropping the future leaves each change either made or not made.
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>>;

    /// Reads these records, in their order; empty where there is none.
    ///
    /// # Errors
    /// [`BackendError`]; [`BackendError::Record`] if any of them cannot be read.
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError>;

    /// Reads these records, in their order, each with its own answer: facts, empty where there is no record, or
    /// [`BackendError::Record`] for a record that cannot be read. The provided method reads one by one only if one of them
    /// cannot be read.
    ///
    /// # Errors
    /// [`BackendError`] if the backend gave no answer; never [`BackendError::Record`].
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    async fn read_each(&self, ids: &[RecordId]) -> Result<Vec<Result<Facts, BackendError>>, BackendError> {
        match self.read(ids).await {
            Ok(records) => return Ok(records.into_iter().map(Ok).collect()),
            Err(error) if !error.is_of_one_record() => return Err(error),
            Err(_) => {}
        }
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            records.push(match self.read(std::slice::from_ref(id)).await {
                Ok(mut facts) => Ok(facts.pop().unwrap_or_default()),
                Err(error) if error.is_of_one_record() => Err(error),
                Err(error) => return Err(error),
            });
        }
        Ok(records)
    }

    /// Starts watching one record.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError>;

    /// Returns the backend's time.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn now(&self) -> Result<Timestamp, BackendError>;

    /// Changes indexes. Best effort: the caller goes on if it fails. An index that cannot be changed does not keep the
    /// others from being changed.
    ///
    /// # Errors
    /// [`BackendError`]; any part may have been done, and all of it may be repeated.
    ///
    /// # Cancel safety
    /// Safe.
    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError>;

    /// Lists at most `limit` members of an index from the earliest, ordered by (instant, member), starting after the
    /// entry `after` if one is given.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError>;
}

#[cfg(test)]
fn _object_safe(_: &dyn Backend) {}
