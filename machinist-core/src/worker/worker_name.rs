//! The name of a worker.
//!
//! Its session decides which name a worker holds: a second live process of a name is `NAME#2`. Log, events, attempts and health
//! checks tell that name, so that they agree with the list of workers.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// The name that a worker was given, and the one that its session holds.
///
/// Every event reads the name, so reading takes no lock: names are only appended, and the last one counts. A worker changes its
/// name only when another one has it.
pub(super) struct WorkerName {
    given: AppendedName,
}

struct AppendedName {
    name: Arc<str>,
    /// The name that has replaced this one.
    next: OnceLock<Box<Self>>,
}

impl AppendedName {
    fn new(name: Arc<str>) -> Self {
        Self { name, next: OnceLock::new() }
    }
}

impl WorkerName {
    /// Creates a name that is held as it was given, until a session says otherwise.
    pub(super) fn new(given: impl Into<Arc<str>>) -> Arc<Self> {
        Arc::new(Self { given: AppendedName::new(given.into()) })
    }

    /// Returns the name that the worker was given.
    pub(super) fn given(&self) -> &str {
        &self.given.name
    }

    /// Returns the name that the session holds: the given one, with a number if another live worker has it.
    pub(super) fn held(&self) -> &Arc<str> {
        &self.last().name
    }

    /// Notes the name that the session holds from now on.
    pub(super) fn hold(&self, name: Arc<str>) {
        let mut appended = Box::new(AppendedName::new(name));
        while let Err(refused) = self.last().next.set(appended) {
            appended = refused;
        }
    }

    fn last(&self) -> &AppendedName {
        let mut last = &self.given;
        while let Some(next) = last.next.get() {
            last = next;
        }
        last
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.held())
    }
}

impl fmt::Debug for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WorkerName").field(self.held()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_that_was_held_counts() {
        let name = WorkerName::new("one");
        assert_eq!((name.given(), &**name.held()), ("one", "one"));
        for held in ["one#2", "one", "one#3"] {
            name.hold(held.into());
            assert_eq!((name.given(), &**name.held(), name.to_string().as_str()), ("one", held, held));
        }
    }
}
