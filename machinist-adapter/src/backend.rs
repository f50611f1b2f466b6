//! Seam to result backends, which remember facts and wake those who wait for them.
//!
//! A backend holds no rule of the delivery protocol. It does one thing atomically, [`commit`](Backend::commit): it
//! writes facts of one record unless certain facts are there. Every decision is made in `machinist_core::record`, which
//! needs no server to be tested. The docs of each method state what an implementation must guarantee, and
//! `machinist-conformance` proves it.
//!
//! # Why not `set_state`
//! A backend with one method per state (as in Go machinery) must know which change is allowed after which, and every
//! adapter repeats that knowledge. A lost reply leaves the caller uncertain. Write-once facts have no order to break,
//! and a caller whose reply was lost writes them again.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    clock::Timestamp,
    diagnose::Diagnose,
    error::BoxError,
    facts::{FactName, Facts},
    id::{SessionId, TaskId},
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
    /// Id of the task whose record is changed.
    pub id: TaskId,
    /// Refused if the record holds any of these.
    pub unless: Vec<FactName>,
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
}

impl Commit {
    /// Creates an empty commit.
    pub fn new(id: TaskId) -> Self {
        Self {
            id,
            unless: Vec::new(),
            equal_or_absent: Vec::new(),
            drop: Vec::new(),
            facts: Vec::new(),
            expiry: Expiry::Keep,
            wake: false,
        }
    }

    /// Applies the commit to the facts of the record, in one step. Returns `false`, with nothing changed, if the record
    /// refuses it. Every backend must have this effect. Backends that hold the facts themselves call this function, and
    /// so does every search over what workers commit.
    pub fn apply(&self, facts: &mut Facts) -> bool {
        let contradicts =
            |(name, value): &(FactName, Bytes)| facts.get(name).is_some_and(|stored| stored != value);
        if self.unless.iter().any(|name| facts.has(name)) || self.equal_or_absent.iter().any(contradicts) {
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
}

/// Result of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// All of it is written.
    Done,
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
    /// A setting of the adapter is wrong.
    #[error("{0}")]
    Configuration(String),
}

/// Result of a renewal.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// `true` if the session was still alive. After `false`, the session never comes back.
    pub alive: bool,
    /// Backend time.
    pub now: Timestamp,
    /// The requested records, in the order of the request; empty where there is none.
    pub records: Vec<Facts>,
}

/// A session as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEntry {
    /// The session.
    pub id: SessionId,
    /// Information that the session's process published with its last renewal.
    pub info: Bytes,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Index {
    /// Names of declared queues, by the time of declaration.
    Queues,
    /// Tasks that wait for their time, by due time.
    Scheduled,
    /// Dead letters, by the time at which they became one.
    DeadLetters,
}

impl Index {
    /// Every index, for listings.
    pub const ALL: [Self; 3] = [Self::Queues, Self::Scheduled, Self::DeadLetters];

    /// Returns the name under which the index is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queues => "queues",
            Self::Scheduled => "scheduled",
            Self::DeadLetters => "dead",
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
    /// Several processes can share it.
    pub shared: bool,
}

/// Result backend: remembers facts about tasks.
#[async_trait]
pub trait Backend: Diagnose + fmt::Debug + Send + Sync + 'static {
    /// Returns the capabilities of this adapter.
    fn capabilities(&self) -> BackendCapabilities;

    /// Makes changes, each atomic by itself. Returns one answer for each, in their order. Changes of the same record
    /// are made in that order too.
    ///
    /// In one step for each record: if it holds a fact named in `unless`, or one of `equal_or_absent` with another
    /// value, nothing is written and the whole record is returned. Otherwise the facts named in `drop` are removed,
    /// then every fact of `equal_or_absent` and `facts` whose name is absent is written, then the expiry is set.
    ///
    /// Commits are shared, so that a caller can keep one for a repetition without copying it.
    ///
    /// # Errors
    /// [`BackendError`]; after an error, that change may or may not have been made, and may be repeated.
    ///
    /// # Cancel safety
    /// Dropping the future leaves each change either made or not made.
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>>;

    /// Reads the records of these tasks, in their order; empty where there is none.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    async fn read(&self, ids: &[TaskId]) -> Result<Vec<Facts>, BackendError>;

    /// Starts watching one record.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn watch(&self, id: &TaskId) -> Result<Watch, BackendError>;

    /// Returns the backend's time.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn now(&self) -> Result<Timestamp, BackendError>;

    /// Opens a session that lives for `lease` unless it is renewed. Opening it again is a renewal.
    ///
    /// # Errors
    /// [`BackendError`]; the session may have been opened.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the session open or not; it expires by itself.
    async fn open_session(
        &self,
        session: &SessionId,
        lease: Duration,
        info: Bytes,
    ) -> Result<Timestamp, BackendError>;

    /// Extends a session by another `lease` if it is still alive, publishes `info` about it, and reads records in the
    /// same round trip.
    ///
    /// # Errors
    /// [`BackendError`]; the session may have been renewed.
    ///
    /// # Cancel safety
    /// Safe: renewing twice is the same as renewing once.
    async fn renew_session(
        &self,
        session: &SessionId,
        lease: Duration,
        info: Bytes,
        running: &[TaskId],
    ) -> Result<Renewed, BackendError>;

    /// Ends a session at once. Closing a session that is gone is not an error.
    ///
    /// # Errors
    /// [`BackendError`]; the session then expires by itself.
    ///
    /// # Cancel safety
    /// Safe.
    async fn close_session(&self, session: &SessionId) -> Result<(), BackendError>;

    /// Reports which of these sessions are alive, in their order.
    ///
    /// # Errors
    /// [`BackendError`]; nothing may be concluded from it.
    ///
    /// # Cancel safety
    /// Safe.
    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>, BackendError>;

    /// Lists every session that is alive, for display.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn sessions(&self) -> Result<Vec<SessionEntry>, BackendError>;

    /// Changes indexes. Best effort: the caller goes on if it fails.
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
        index: Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError>;
}

#[cfg(test)]
fn _object_safe(_: &dyn Backend) {}
