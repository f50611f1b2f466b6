//! Counts of one worker until they are in the backend, and the bound of what it lets wait.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{MAX_ERROR_BYTES, RefusedMessages, add_counts};
use crate::{
    app::App,
    clock::Timestamp,
    id::QueueName,
    record::{DeadReason, ErrorText},
};

/// Maximum number of messages of one queue that a worker lets wait at once.
const MAX_WAITING: usize = 1000;
/// Maximum size of the messages of one queue that a worker lets wait at once, in bytes.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// Interval between two additions to the backend.
const ADD_INTERVAL: Duration = Duration::from_secs(2);

/// Counts of one worker.
#[derive(Debug, Default)]
pub(crate) struct RefusedTally {
    counts: Mutex<Vec<RefusedMessages>>,
    changed: Notify,
    waiting: Mutex<HashMap<QueueName, Waiting>>,
}

/// Messages of one queue that wait in the broker, by the time at which each comes back.
#[derive(Debug, Default)]
struct Waiting {
    until: VecDeque<(Timestamp, usize)>,
    bytes: usize,
}

impl Waiting {
    /// Admits a message of this size that comes back at `until`, if there is room for it.
    fn admit(&mut self, size: usize, now: Timestamp, until: Timestamp) -> bool {
        while let Some((_, back)) = self.until.front().filter(|(until, _)| *until <= now) {
            self.bytes -= back;
            self.until.pop_front();
        }
        let admitted = self.until.len() < MAX_WAITING && self.bytes.saturating_add(size) <= MAX_WAITING_BYTES;
        if admitted {
            self.until.push_back((until, size));
            self.bytes += size;
        }
        admitted
    }
}

impl RefusedTally {
    /// Returns `true` if a message may wait until then. Beyond the bound of its queue it must not.
    pub(crate) fn may_wait(&self, queue: &QueueName, size: usize, now: Timestamp, until: Timestamp) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(queue.clone()).or_default().admit(size, now, until)
    }

    /// Counts so many messages; none if they were counted before, and are only seen again.
    pub(crate) fn add(
        &self,
        queue: &QueueName,
        reason: DeadReason,
        waiting: bool,
        count: u64,
        error: &str,
        now: Timestamp,
    ) {
        let mut error = ErrorText::from(error);
        error.shorten(MAX_ERROR_BYTES);
        let newer = RefusedMessages {
            queue: queue.clone(),
            reason: reason.as_str().to_owned(),
            waiting,
            count,
            last: now,
            error: error.chain.join(": "),
        };
        self.add_all([newer]);
        self.changed.notify_one();
    }

    fn add_all(&self, newer: impl IntoIterator<Item = RefusedMessages>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for newer in newer {
            match counts.iter_mut().find(|count| count.fact() == newer.fact()) {
                Some(count) => count.add(&newer),
                None => counts.push(newer),
            }
        }
    }

    /// Adds the counts to the backend, forever: the first at once.
    pub(crate) async fn keep_adding(&self, app: &App) {
        loop {
            self.changed.notified().await;
            self.flush(app).await;
            tokio::time::sleep(ADD_INTERVAL).await;
        }
    }

    /// Adds the counts to the backend once. What cannot be added is kept.
    pub(crate) async fn flush(&self, app: &App) {
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return;
        }
        let added = add_counts(&**app.backend(), &counts).await;
        if let Err(error) = &added {
            tracing::debug!(%error, "the counts of refused messages were not written");
        }
        if !matches!(added, Ok(true)) {
            self.add_all(counts);
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_micros(0).plus(Duration::from_secs(secs))
    }

    #[test]
    fn number_and_size_of_what_waits_are_bounded() {
        let mut waiting = Waiting::default();
        for _ in 0..MAX_WAITING {
            assert!(waiting.admit(1, at(0), at(60)));
        }
        assert!(!waiting.admit(1, at(59), at(119)));
        assert!(waiting.admit(MAX_WAITING_BYTES, at(60), at(120)), "the others are back");
        assert!(!waiting.admit(1, at(61), at(121)));
        assert!(waiting.admit(MAX_WAITING_BYTES, at(120), at(180)));
    }
}
