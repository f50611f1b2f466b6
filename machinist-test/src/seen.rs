//! Ends of attempts, as the observer of a worker sees them.

use std::{
    mem,
    sync::{Mutex, PoisonError},
};

use machinist_core::event::{Event, EventKind};
use tokio::sync::Notify;

use crate::run::{RunResult, TaskRun};

/// Runs that the observer of a worker has seen.
#[derive(Default)]
pub(super) struct Seen {
    runs: Mutex<Vec<TaskRun>>,
    /// Notified of every event.
    pub(super) changed: Notify,
}

impl Seen {
    /// Keeps the end of an attempt.
    pub(super) fn see(&self, event: &Event<'_>) {
        let (task, end) = match event.kind {
            EventKind::Ended { task, failure: None, .. } => (task, RunResult::Success),
            EventKind::Ended { task, failure: Some((kind, error)), .. } => {
                (task, RunResult::Failure { kind, error: error.clone() })
            }
            EventKind::Retried { task, due, kind, error, .. } => {
                (task, RunResult::Retry { after: due.since(event.at()), kind, error: error.clone() })
            }
            _ => {
                self.changed.notify_one();
                return;
            }
        };
        let run = TaskRun {
            id: task.id.clone(),
            name: task.name.clone(),
            queue: task.queue.clone(),
            attempt: task.attempt,
            end,
        };
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(run);
        self.changed.notify_one();
    }

    /// Returns the runs that were seen since the last call.
    pub(super) fn take_runs(&self) -> Vec<TaskRun> {
        mem::take(&mut *self.runs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
