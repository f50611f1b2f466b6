//! The name of a worker.
//!
//! Its session decides which name a worker holds: a second live process of a name is `NAME#2`. Log, events, attempts and health
//! checks tell that name, so that they agree with the list of workers.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

/// The name that a worker was given, and the one that its session holds.
pub(super) struct WorkerName {
    given: Arc<str>,
    held: RwLock<Arc<str>>,
}

impl WorkerName {
    /// Creates a name that is held as it was given, until a session says otherwise.
    pub(super) fn new(given: impl Into<Arc<str>>) -> Arc<Self> {
        let given = given.into();
        Arc::new(Self { held: RwLock::new(Arc::clone(&given)), given })
    }

    /// Returns the name that the worker was given.
    pub(super) fn given(&self) -> &str {
        &self.given
    }

    /// Returns the name that the session holds: the given one, with a number if another live worker has it.
    pub(super) fn held(&self) -> Arc<str> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes the name that the session holds from now on.
    pub(super) fn hold(&self, name: Arc<str>) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = name;
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.held())
    }
}

impl fmt::Debug for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WorkerName").field(&self.held()).finish()
    }
}
