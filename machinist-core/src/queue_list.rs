//! The list of queues in the backend, for brokers that cannot list their own. Workers add their queues when they start, and
//! senders add those that they name.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    backend::{Backend, Index, IndexUpdate},
    clock::Timestamp,
    id::QueueName,
};

/// Time after which a sender lists a queue again: workers may follow it, and the backend may have lost its data. A reader
/// forgets queues that have not existed for a day.
const LIST_AGAIN_AFTER: Duration = Duration::from_secs(300);
/// Maximum number of queues that a sender remembers. It lists more of them more often.
const MAX_REMEMBERED: usize = 1000;

/// Queues that this process has listed, with the time of the listing.
#[derive(Debug, Default)]
pub(crate) struct ListedQueues(Mutex<HashMap<QueueName, Instant>>);

impl ListedQueues {
    /// Returns those of these queues that are not listed yet, or were listed long ago, and remembers them as listed.
    fn unlisted<'a>(&self, queues: impl Iterator<Item = &'a QueueName>) -> Vec<&'a QueueName> {
        let now = Instant::now();
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unlisted = Vec::new();
        for queue in queues {
            let is_listed = |at: &Instant| now.saturating_duration_since(*at) < LIST_AGAIN_AFTER;
            if listed.get(queue).is_some_and(is_listed) {
                continue;
            }
            if listed.len() >= MAX_REMEMBERED {
                listed.clear();
            }
            listed.insert(queue.clone(), now);
            unlisted.push(queue);
        }
        unlisted
    }

    /// Lists the queues of a batch that is being sent, unless this process has done so. Best effort: the messages count.
    pub(crate) async fn list<'q>(
        &self,
        backend: &dyn Backend,
        now: Timestamp,
        queues: impl Iterator<Item = &'q QueueName>,
    ) {
        let unlisted = self.unlisted(queues);
        if !unlisted.is_empty() && !list_queues(backend, now, &unlisted).await {
            self.forget(&unlisted);
        }
    }

    fn forget(&self, queues: &[&QueueName]) {
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in queues {
            listed.remove(*queue);
        }
    }
}

/// Lists queues in the backend. Returns `false` if that was not possible.
pub(crate) async fn list_queues(backend: &dyn Backend, at: Timestamp, queues: &[&QueueName]) -> bool {
    let update =
        |queue: &&QueueName| IndexUpdate::Put { index: Index::Queues, at, member: queue.to_string() };
    let listed = backend.update_indexes(queues.iter().map(update).collect()).await;
    if let Err(error) = &listed {
        tracing::debug!(%error, "queues were not listed in the backend");
    }
    listed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_listed_once_in_a_while() {
        let queue = |name: &str| QueueName::parse(name).unwrap();
        let (a, b) = (queue("a"), queue("b"));
        let listed = ListedQueues::default();
        assert_eq!(listed.unlisted([&a, &a].into_iter()), [&a]);
        assert_eq!(listed.unlisted([&a, &b].into_iter()), [&b]);
        listed.forget(&[&b]);
        assert_eq!(listed.unlisted([&a, &b].into_iter()), [&b], "a listing that failed is repeated");
        tokio::time::advance(LIST_AGAIN_AFTER).await;
        assert_eq!(listed.unlisted([&a].into_iter()), [&a]);
    }

    #[tokio::test]
    async fn the_memory_of_a_process_is_bounded() {
        let listed = ListedQueues::default();
        for number in 0..3 * MAX_REMEMBERED {
            let queue = QueueName::parse(&format!("q{number}")).unwrap();
            assert_eq!(listed.unlisted([&queue].into_iter()).len(), 1);
        }
        assert!(listed.0.lock().unwrap().len() <= MAX_REMEMBERED);
    }
}
