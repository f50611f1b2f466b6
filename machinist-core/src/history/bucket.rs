//! Content of a bucket of the history, and how two of them merge. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::Latencies;
use crate::record::Facts;

/// Maximum number of pairs of queue and task in a bucket. The rest is counted under [`OTHER`].
pub(super) const MAX_PAIRS: usize = 500;
/// Maximum number of queues with measurements in a bucket. Further ones are left out.
const MAX_QUEUES: usize = 1000;
/// Queue and task under which the rest is counted.
pub(super) const OTHER: &str = "_other";

/// Number of things that happened, and how long they took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HistoryCount {
    /// Number. It is larger than that of the durations where some took no time, such as the end of a task without a run.
    #[serde(rename = "n", default)]
    pub count: u64,
    /// Durations.
    #[serde(rename = "d", default, skip_serializing_if = "Latencies::is_empty")]
    pub times: Latencies,
}

impl HistoryCount {
    pub(super) fn add(&mut self, took: Option<Duration>) {
        self.count += 1;
        if let Some(took) = took {
            self.times.add(took);
        }
    }

    /// Adds another count.
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.times.merge(&other.times);
    }

    fn is_zero(&self) -> bool {
        self.count == 0 && self.times.is_empty()
    }
}

/// Numbers of the tasks of one name in one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskHistory {
    /// Messages that workers have received, with the time for which the broker held them after they were due.
    #[serde(rename = "r", default, skip_serializing_if = "HistoryCount::is_zero")]
    pub received: HistoryCount,
    /// Tasks that have ended in SUCCESS, with the time of the last run.
    #[serde(rename = "s", default, skip_serializing_if = "HistoryCount::is_zero")]
    pub succeeded: HistoryCount,
    /// Tasks that have ended in FAILURE, with the time of the last run.
    #[serde(rename = "f", default, skip_serializing_if = "HistoryCount::is_zero")]
    pub failed: HistoryCount,
    /// Attempts that were followed by another, with the time of the run.
    #[serde(rename = "t", default, skip_serializing_if = "HistoryCount::is_zero")]
    pub retried: HistoryCount,
}

impl TaskHistory {
    /// Adds another history.
    pub fn merge(&mut self, other: &Self) {
        self.received.merge(&other.received);
        self.succeeded.merge(&other.succeeded);
        self.failed.merge(&other.failed);
        self.retried.merge(&other.retried);
    }

    /// Returns the number of all that happened.
    pub(super) fn total(&self) -> u64 {
        [&self.received, &self.succeeded, &self.failed, &self.retried].iter().map(|count| count.count).sum()
    }
}

/// Measurement of a queue. In a bucket that several measurements were merged into, each number is the largest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueGauges {
    /// Messages that waited for a worker.
    #[serde(rename = "r", default)]
    pub ready: u64,
    /// Dead letters.
    #[serde(rename = "d", default)]
    pub dead: u64,
    /// Live workers that took tasks from the queue.
    #[serde(rename = "c", default)]
    pub consumers: u64,
    /// Time for which the oldest ready message had waited at most, in milliseconds.
    #[serde(rename = "a", default)]
    pub oldest_age_millis: u64,
    /// Handlers that ran in these workers, for whatever queue.
    #[serde(rename = "b", default)]
    pub busy: u64,
    /// Handlers that these workers run at once at most.
    #[serde(rename = "s", default)]
    pub slots: u64,
}

impl QueueGauges {
    pub(crate) fn new(
        [ready, dead, consumers]: [u64; 3],
        oldest_age: Duration,
        [busy, slots]: [u64; 2],
    ) -> Self {
        let oldest_age_millis = u64::try_from(oldest_age.as_millis()).unwrap_or(u64::MAX);
        Self { ready, dead, consumers, oldest_age_millis, busy, slots }
    }

    /// Returns the time for which the oldest ready message had waited at most.
    pub const fn oldest_age(&self) -> Duration {
        Duration::from_millis(self.oldest_age_millis)
    }

    /// Takes the larger of each number.
    pub fn merge(&mut self, other: &Self) {
        self.ready = self.ready.max(other.ready);
        self.dead = self.dead.max(other.dead);
        self.consumers = self.consumers.max(other.consumers);
        self.oldest_age_millis = self.oldest_age_millis.max(other.oldest_age_millis);
        self.busy = self.busy.max(other.busy);
        self.slots = self.slots.max(other.slots);
    }
}

/// Bucket of the history, or a part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HistoryBucket {
    /// By queue and task.
    #[serde(rename = "t", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) tasks: BTreeMap<String, BTreeMap<String, TaskHistory>>,
    /// By queue.
    #[serde(rename = "q", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) queues: BTreeMap<String, QueueGauges>,
    /// Number of things that were counted and could not be stored.
    #[serde(rename = "x", default, skip_serializing_if = "is_zero")]
    pub(crate) lost: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl HistoryBucket {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.queues.is_empty() && self.lost == 0
    }

    /// Adds what happened to the tasks of a name in a queue.
    pub(super) fn add(&mut self, queue: &str, task: &str, history: &TaskHistory) {
        let known = self.tasks.get(queue).is_some_and(|tasks| tasks.contains_key(task));
        let is_full = !known && self.tasks.values().map(BTreeMap::len).sum::<usize>() >= MAX_PAIRS;
        let (queue, task) = if is_full { (OTHER, OTHER) } else { (queue, task) };
        let tasks = self.tasks.entry(queue.to_owned()).or_default();
        tasks.entry(task.to_owned()).or_default().merge(history);
    }

    /// Adds another bucket.
    pub(super) fn merge(&mut self, other: &Self) {
        for (queue, tasks) in &other.tasks {
            for (task, history) in tasks {
                self.add(queue, task, history);
            }
        }
        for (queue, gauges) in &other.queues {
            if self.queues.len() < MAX_QUEUES || self.queues.contains_key(queue) {
                self.queues.entry(queue.clone()).or_default().merge(gauges);
            }
        }
        self.lost = self.lost.saturating_add(other.lost);
    }

    /// Adds the parts that a record holds. Another program's part is left out.
    pub(crate) fn merge_facts(&mut self, facts: &Facts) {
        for (name, _) in facts.iter() {
            if let Some(part) = facts.read::<Self>(name) {
                self.merge(&part);
            }
        }
    }

    /// Returns the number of all that happened.
    pub(super) fn total(&self) -> u64 {
        self.tasks.values().flat_map(BTreeMap::values).map(TaskHistory::total).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(count: u64, took: u64) -> TaskHistory {
        let mut history = TaskHistory::default();
        (0..count).for_each(|_| history.succeeded.add(Some(Duration::from_millis(took))));
        history
    }

    #[test]
    fn buckets_merge_by_addition_and_measurements_by_the_largest() {
        let mut bucket = HistoryBucket::default();
        bucket.add("q", "a", &ended(2, 10));
        bucket.queues.insert("q".into(), QueueGauges::new([5, 0, 1], Duration::from_secs(3), [1, 4]));
        let mut other = HistoryBucket::default();
        other.add("q", "a", &ended(3, 20));
        other.add("p", "a", &ended(1, 20));
        other.queues.insert("q".into(), QueueGauges::new([2, 1, 1], Duration::from_secs(9), [4, 4]));
        let mut there = bucket.clone();
        there.merge(&other);
        let mut back = other.clone();
        back.merge(&bucket);
        assert_eq!(there, back, "in whatever order");
        assert_eq!((there.total(), there.tasks["q"]["a"].succeeded.count), (6, 5));
        assert_eq!(there.queues["q"], QueueGauges::new([5, 1, 1], Duration::from_secs(9), [4, 4]));
        let read: HistoryBucket = serde_json::from_str(&serde_json::to_string(&there).unwrap()).unwrap();
        assert_eq!(read, there);
    }

    #[test]
    fn ten_thousand_names_are_bounded_and_counted() {
        let mut bucket = HistoryBucket::default();
        for number in 0..10_000 {
            bucket.add(&format!("q{}", number % 100), &format!("t{number}"), &ended(1, 1));
        }
        let pairs: usize = bucket.tasks.values().map(BTreeMap::len).sum();
        assert_eq!((pairs, bucket.total()), (MAX_PAIRS + 1, 10_000));
    }

    /// Returns the size of what is stored about one task of one queue in one bucket, in bytes.
    fn stored_bytes(durations: impl Iterator<Item = Duration>) -> usize {
        let mut history = TaskHistory::default();
        for took in durations {
            history.received.add(Some(took));
            history.succeeded.add(Some(took));
            history.failed.add(Some(took));
            history.retried.add(Some(took));
        }
        let mut bucket = HistoryBucket::default();
        bucket.add("a-queue-with-a-name", "a.task.with.a.name", &history);
        let gauges = QueueGauges::new([100_000, 1_000, 100], Duration::from_secs(100_000), [1_000, 1_000]);
        bucket.queues.insert("a-queue-with-a-name".into(), gauges);
        serde_json::to_vec(&bucket).unwrap().len()
    }

    #[test]
    fn the_bytes_of_a_queue_and_day_are_those_of_the_docs() {
        const BUCKETS_OF_DAY: usize = 24 * 6;
        // All four sketches, with durations that differ by a factor of eight.
        let usual = stored_bytes((100..800).map(Duration::from_millis));
        assert!(usual <= 500, "{usual} bytes in a bucket; docs/observing.md says 500");
        // Every bucket of every sketch, with numbers of six digits.
        let lengths =
            (0..58).map(|bucket| Duration::from_secs_f64(2_f64.powf(f64::from(bucket) / 2.0) / 1e3 * 1.01));
        let of_one: Vec<Duration> = lengths.collect();
        let one = stored_bytes(of_one.iter().copied());
        let worst = one + 4 * 58 * 5;
        assert!(worst <= 3_000, "{worst} bytes in a bucket; docs/observing.md says 3,000");
        assert!(usual * BUCKETS_OF_DAY <= 72_000 && worst * BUCKETS_OF_DAY <= 432_000);
    }
}
