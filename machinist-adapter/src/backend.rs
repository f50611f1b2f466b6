//! The seam to result backends: something that remembers facts, and wakes those who wait for them.
//!
//! A backend holds no rule of the delivery protocol. It can do one thing atomically,
//! [`commit`](Backend::commit): write facts of one record unless certain facts are there. Every decision is made
//! in `machinist_core::record`, which needs no server to be tested. What an implementation must hold is written
//! on each method and proven by `machinist-conformance`.
//!
//! # Why not `set_state`
//! A backend with one method per state (as in Go machinery) has to know which change is allowed after which, in
//! every adapter anew, and a lost reply leaves the caller not knowing. Write-once facts have no order to break,
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

/// When a record is forgotten, counted from the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expiry {
    /// After this long from now, whatever was set before.
    After(Duration),
    /// After this long from now, unless an expiry is set already.
    AfterUnlessSet(Duration),
    /// As it was.
    Keep,
}

impl Expiry {
    /// When a record is forgotten after a commit that says this, made now; `before` is what was set.
    pub fn at(self, before: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        match (self, before) {
            (Self::After(while_), _) | (Self::AfterUnlessSet(while_), None) => Some(now.plus(while_)),
            (Self::AfterUnlessSet(_) | Self::Keep, set) => set,
        }
    }
}

/// One atomic change of one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Commit {
    /// Whose record.
    pub id: TaskId,
    /// Refused if the record holds any of these.
    pub unless: Vec<FactName>,
    /// Refused if the record holds one of these with another value; written back where it is absent.
    pub equal_or_absent: Vec<(FactName, Bytes)>,
    /// Taken out, before `facts` are written.
    pub drop: Vec<FactName>,
    /// Written, each unless the record holds a fact of that name: the first writer wins.
    pub facts: Vec<(FactName, Bytes)>,
    /// When the record is forgotten. A record without facts does not exist.
    pub expiry: Expiry,
    /// Wake those who watch this record.
    pub wake: bool,
}

impl Commit {
    /// A commit of nothing, to be filled in.
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

    /// What every backend does with the facts of the record, in one step; `false`, and nothing changed, where it
    /// refuses. Those that hold the facts themselves do it with this, and so does every search over what workers
    /// commit.
    pub fn apply(&self, facts: &mut Facts) -> bool {
        let contradicts =
            |(name, value): &(FactName, Bytes)| facts.get(name).is_some_and(|have| have != value);
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

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// All of it is written.
    Done,
    /// None of it is written: the record as it is.
    Refused(Facts),
}

/// Why a backend could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// It cannot be reached, did not answer in time, or cannot take writes for now (it loads, fails over or is
    /// full); what was asked may have been done. Try again: every commit may be repeated.
    #[error("the backend is unavailable")]
    Unavailable(#[source] BoxError),
    /// It can be reached and says no, and will until somebody changes something: credentials, permissions, keys of
    /// another program. The text names the remedy.
    #[error("the backend refused: {reason}")]
    Refused {
        /// What it said, and the remedy.
        reason: String,
    },
    /// A setting of the adapter is wrong.
    #[error("{0}")]
    Configuration(String),
}

/// What a renewal tells.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// Whether the session was still alive. Once `false`, it never comes back.
    pub alive: bool,
    /// Backend time.
    pub now: Timestamp,
    /// The records that were asked for, in their order; empty where there is none.
    pub records: Vec<Facts>,
}

/// A session as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEntry {
    /// The session.
    pub id: SessionId,
    /// What its process published about itself with its last renewal.
    pub info: Bytes,
}

/// Wake-ups for one record: level-triggered, allowed to be missed, never to be invented often.
///
/// A waiter reads the record, then awaits [`changed`](Self::changed) with a bound, then reads again.
#[derive(Debug)]
pub struct Watch {
    signal: watch::Receiver<u64>,
    /// Dropped with the watch, so that the adapter can forget it.
    _guard: Option<Box<dyn WatchGuard>>,
}

/// Whatever an adapter wants to be dropped when nobody watches any more.
pub trait WatchGuard: fmt::Debug + Send + Sync {}
impl<T: fmt::Debug + Send + Sync> WatchGuard for T {}

impl Watch {
    /// A watch that wakes whenever the number in `signal` changes.
    pub fn new(signal: watch::Receiver<u64>, guard: Option<Box<dyn WatchGuard>>) -> Self {
        Self { signal, _guard: guard }
    }

    /// Returns when the record may have changed since the last call (the first: since the watch was made).
    /// Waits for ever where the adapter can no longer tell, so it needs a bound.
    ///
    /// # Cancel safety
    /// Safe: a dropped future loses no wake-up.
    pub async fn changed(&mut self) {
        if self.signal.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Lists that are kept beside the facts. They make finding cheap and are never decided on: an entry may be missing
/// or stale, and whoever reads them checks the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Index {
    /// Queue names that were declared, by the time of it.
    Queues,
    /// Tasks that wait for their time, by due time.
    Scheduled,
    /// Dead letters, by the time of it.
    DeadLetters,
}

impl Index {
    /// Every index, for listings.
    pub const ALL: [Self; 3] = [Self::Queues, Self::Scheduled, Self::DeadLetters];

    /// The name under which it is stored.
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
    /// Put a member there, or move it to another instant.
    Put {
        /// Which index.
        index: Index,
        /// By what it is ordered.
        at: Timestamp,
        /// What is noted.
        member: String,
    },
    /// Take a member away.
    Remove {
        /// Which index.
        index: Index,
        /// What was noted.
        member: String,
    },
}

/// What a backend adapter can do beyond the minimum. The conformance suite prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendCapabilities {
    /// Records survive the end of the process that wrote them.
    pub durable: bool,
    /// Several processes can share it.
    pub shared: bool,
}

/// Something that remembers facts about tasks.
#[async_trait]
pub trait Backend: Diagnose + fmt::Debug + Send + Sync + 'static {
    /// What this adapter can do.
    fn capabilities(&self) -> BackendCapabilities;

    /// Makes changes, each atomic by itself; one answer for each, in their order, which is also the order in
    /// which changes of the same record are made.
    ///
    /// In one step for each record: if it holds a fact named in `unless`, or one of `equal_or_absent` with
    /// another value, nothing is written and the whole record comes back. Otherwise what `drop` names is taken
    /// out, then every fact of `equal_or_absent` and `facts` whose name is absent is written, then the expiry
    /// is set.
    ///
    /// Commits are shared, so that a caller keeps one for a repetition without copying it.
    ///
    /// # Errors
    /// [`BackendError`]; after one, that change may have been made or not, and may be asked for again.
    ///
    /// # Cancel safety
    /// A dropped future leaves each change either made or not.
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>>;

    /// The records of these tasks, in their order; empty where there is none.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    async fn read(&self, ids: &[TaskId]) -> Result<Vec<Facts>, BackendError>;

    /// Wake-ups for one record, from now on.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn watch(&self, id: &TaskId) -> Result<Watch, BackendError>;

    /// Backend time.
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
    /// A dropped future leaves the session open or not; it expires by itself.
    async fn open_session(
        &self,
        session: &SessionId,
        lease: Duration,
        info: Bytes,
    ) -> Result<Timestamp, BackendError>;

    /// Lets a session live for another `lease` if it is still alive, publishes `info` about it, and reads
    /// records in the same round trip.
    ///
    /// # Errors
    /// [`BackendError`]; the session may have been renewed.
    ///
    /// # Cancel safety
    /// Safe: renewing twice is renewing.
    async fn renew_session(
        &self,
        session: &SessionId,
        lease: Duration,
        info: Bytes,
        running: &[TaskId],
    ) -> Result<Renewed, BackendError>;

    /// Ends a session at once. Closing one that is gone is fine.
    ///
    /// # Errors
    /// [`BackendError`]; it then expires by itself.
    ///
    /// # Cancel safety
    /// Safe.
    async fn close_session(&self, session: &SessionId) -> Result<(), BackendError>;

    /// Which of these sessions are alive, in their order.
    ///
    /// # Errors
    /// [`BackendError`]; nothing may be concluded from one.
    ///
    /// # Cancel safety
    /// Safe.
    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>, BackendError>;

    /// Every session that is alive, for people to look at.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    async fn sessions(&self) -> Result<Vec<SessionEntry>, BackendError>;

    /// Changes indexes. Best effort beside the facts: the caller goes on when it fails.
    ///
    /// # Errors
    /// [`BackendError`]; any part may have been done, and all of it may be repeated.
    ///
    /// # Cancel safety
    /// Safe.
    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError>;

    /// The members of an index from the earliest, at most `limit`, by (instant, member), beginning after the
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
