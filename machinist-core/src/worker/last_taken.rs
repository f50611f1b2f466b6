//! Messages that a worker took last, from which the age of its queues follows, and that a delayed message is no longer in
//! its queue.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{
    clock::Timestamp,
    event::{Event, EventKind, Observer},
    id::QueueName,
};

/// For each queue, the latest time from which a message could have run that this worker took. Every message is noted, and
/// the queues are the worker's own: nobody chooses names that collide.
#[derive(Debug, Default)]
pub(super) struct LastTaken(Mutex<HashMap<QueueName, LatestInstant, foldhash::fast::RandomState>>);

#[derive(Debug)]
struct LatestInstant {
    at: Timestamp,
    stored: bool,
}

impl Observer for LastTaken {
    fn observe(&self, event: &Event<'_>) {
        let EventKind::Received { task, generation: 0, broker_wait, .. } = event.kind else { return };
        let at = event.at().minus(broker_wait);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(task.queue) {
            Some(latest) if latest.at >= at => {}
            Some(latest) => *latest = LatestInstant { at, stored: false },
            // A worker has few queues, and messages come from no other.
            None => drop(taken.insert(task.queue.clone(), LatestInstant { at, stored: false })),
        }
    }
}

impl LastTaken {
    /// Returns the latest time from which a message of this queue could have run that this worker took.
    pub(super) fn of(&self, queue: &QueueName) -> Option<Timestamp> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get(queue).map(|latest| latest.at)
    }

    /// Returns what is not stored yet, and notes it as stored.
    pub(super) fn unstored(&self) -> Vec<(QueueName, Timestamp)> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unstored = taken.iter_mut().filter(|(_, latest)| !latest.stored);
        unstored
            .map(|(queue, latest)| {
                latest.stored = true;
                (queue.clone(), latest.at)
            })
            .collect()
    }
}
