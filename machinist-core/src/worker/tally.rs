//! Counts of the work of a worker, shown by its session and reported when it ends.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Drained;
use crate::{
    event::{Event, EventKind, Observer},
    record::{TaskState, WorkCounts},
};

/// Counts of deliveries, of runs that were handed back and of refused messages.
#[derive(Debug, Default)]
pub(super) struct Tally {
    arrived: AtomicU64,
    settled: AtomicU64,
    handed_back: AtomicU64,
    refused: AtomicU64,
    processed: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
}

impl Tally {
    /// Counts a delivery, of whatever message.
    pub(super) fn arrived(&self) {
        add_one(&self.arrived);
    }

    /// Counts the settlement of a delivery.
    pub(super) fn settled(&self) {
        add_one(&self.settled);
    }

    /// Returns the counts of what the worker has done so far.
    pub(super) fn counts(&self) -> WorkCounts {
        let [processed, failed, retried] =
            [&self.processed, &self.failed, &self.retried].map(|count| count.load(Ordering::Relaxed));
        WorkCounts { processed, failed, retried }
    }

    /// Returns the counts of the work that the worker leaves behind when it ends.
    pub(super) fn drained(&self) -> Drained {
        let [arrived, settled, handed_back, refused] =
            [&self.arrived, &self.settled, &self.handed_back, &self.refused]
                .map(|count| count.load(Ordering::Relaxed));
        let unfinished = arrived.saturating_sub(settled);
        Drained { handed_back, unfinished, refused, restart_exit_code: None }
    }
}

impl Observer for Tally {
    fn observe(&self, event: &Event<'_>) {
        match event.kind {
            EventKind::HandedBack { cut_off: true, draining: true, .. } => add_one(&self.handed_back),
            EventKind::Refused { .. } => add_one(&self.refused),
            EventKind::Retried { .. } => add_one(&self.retried),
            EventKind::Ended { state, .. } => {
                add_one(&self.processed);
                if state == TaskState::Failure {
                    add_one(&self.failed);
                }
            }
            _ => {}
        }
    }
}

fn add_one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
