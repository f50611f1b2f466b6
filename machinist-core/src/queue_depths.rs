//! Bounds on the depth of queues, which senders keep: back-pressure for those who send faster than workers run.
//!
//! A sender asks the broker for the depth at most once a second, and adds what it has sent since. What workers publish,
//! such as retries, is never refused.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{affinity::with_base, broker::Broker, id::QueueName};

/// Time for which a depth is believed.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// Bounds of queues, and their depths as this process last knew them.
#[derive(Debug, Default)]
pub(crate) struct QueueDepths {
    most: HashMap<QueueName, u64>,
    known: Mutex<HashMap<QueueName, KnownDepth>>,
}

#[derive(Debug, Clone, Copy)]
struct KnownDepth {
    /// Messages that waited when the broker was asked, and those that were sent from here since.
    ready: u64,
    at: Instant,
}

/// A queue that has as many messages as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueIsFull {
    pub(crate) depth: u64,
    pub(crate) most: u64,
}

impl QueueDepths {
    pub(crate) fn new(most: HashMap<QueueName, u64>) -> Self {
        Self { most, known: Mutex::default() }
    }

    /// Returns `true` if no queue has a bound: the usual case, which costs no more than this.
    pub(crate) fn is_empty(&self) -> bool {
        self.most.is_empty()
    }

    /// Maximum number of tasks that may wait in a queue, if it has one. A queue of tasks that require tags has that of its base.
    pub(crate) fn most_of(&self, queue: &QueueName) -> Option<u64> {
        with_base(queue).find_map(|queue| self.most.get(&*queue)).copied()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<QueueName, KnownDepth>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one message that is about to be sent to a queue. A broker that cannot be asked refuses nothing: the publish
    /// tells what is wrong with it.
    pub(crate) async fn count(&self, broker: &dyn Broker, queue: &QueueName) -> Result<(), QueueIsFull> {
        let Some(most) = self.most_of(queue) else { return Ok(()) };
        let is_new = |known: &KnownDepth| known.at.elapsed() < BELIEVED_FOR;
        if !self.known().get(queue).is_some_and(is_new) {
            let depths = match broker.depth(std::slice::from_ref(queue)).await {
                Ok(depths) => depths,
                Err(error) => {
                    tracing::debug!(%error, %queue, "the depth of the queue is not known");
                    return Ok(());
                }
            };
            let ready = depths.first().and_then(|depth| depth.ready).unwrap_or(0);
            self.known().insert(queue.clone(), KnownDepth { ready, at: Instant::now() });
        }
        let mut known = self.known();
        let Some(known) = known.get_mut(queue) else { return Ok(()) };
        if known.ready >= most {
            return Err(QueueIsFull { depth: known.ready, most });
        }
        known.ready += 1;
        Ok(())
    }

    /// Takes back the count of a message that was not sent after all.
    pub(crate) fn discount(&self, queue: &QueueName) {
        if let Some(known) = self.known().get_mut(queue) {
            known.ready = known.ready.saturating_sub(1);
        }
    }
}
