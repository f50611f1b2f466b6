//! The events of a worker: the one place from which they go to the log, the counts and the observers.

use std::{fmt, sync::Arc};

use super::{
    DeadLetterCounts, event_log::EventLog, last_taken::LastTaken, tally::Tally, worker_name::WorkerName,
};
use crate::{
    app::App,
    event::{Event, EventKind, Observer, Stopwatch},
};

/// Emits the events of one worker.
pub(super) struct WorkerEvents {
    app: App,
    worker: Arc<WorkerName>,
    log: EventLog,
    pub(super) tally: Tally,
    pub(super) dead_letter_counts: DeadLetterCounts,
    pub(super) last_taken: LastTaken,
}

impl WorkerEvents {
    pub(super) fn new(app: App, worker: Arc<WorkerName>) -> Arc<Self> {
        let (log, tally, dead_letter_counts, last_taken) = Default::default();
        Arc::new(Self { app, worker, log, tally, dead_letter_counts, last_taken })
    }

    /// Passes an event to the log, the counts and the observers of the application.
    ///
    /// The worker's own observers are called directly: for an event that none of them uses, nothing is left of the call.
    #[inline]
    pub(super) fn emit(&self, kind: EventKind<'_>) {
        let event = Event::new(kind, Some(self.worker.held()), self.app.clock());
        self.log.observe(&event);
        self.tally.observe(&event);
        self.dead_letter_counts.observe(&event);
        self.last_taken.observe(&event);
        self.app.0.history.note(&event);
        self.app.0.published_events.note(&event);
        self.app.0.observers.notify(&event);
    }

    /// Starts a stopwatch, if the application has observers.
    pub(super) fn stopwatch(&self) -> Stopwatch {
        self.app.0.observers.stopwatch()
    }
}

impl fmt::Debug for WorkerEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerEvents").field("worker", &self.worker).finish_non_exhaustive()
    }
}
