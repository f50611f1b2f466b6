//! Reading of the history: from the longest buckets for what is long ago, and the shorter ones for the rest. And the marks
//! that people leave in it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    backend::BackendError,
    client::Client,
    clock::Timestamp,
    history::{
        HistoryBucket, HistoryMark, HistoryStep, MarkError, QueueGauges, TaskHistory, cursor_record,
        merged_until, put_mark, read_marks,
    },
    id::{QueueName, RecordId, TaskName},
};

/// Number of buckets that are read at once.
const READ_AT_ONCE: usize = 200;
/// Maximum number of short buckets that are merged while the history is read.
const MAX_UNMERGED: u32 = 2000;

/// Selection of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistorySelection {
    /// Only this queue.
    pub queue: Option<QueueName>,
    /// Only tasks of this name.
    pub task: Option<TaskName>,
}

impl HistorySelection {
    /// Selects everything.
    pub fn new() -> Self {
        Self::default()
    }
}

/// History of the queues and tasks since an instant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct History {
    /// Length of the buckets: the shortest that are kept for so long.
    pub step: HistoryStep,
    /// Buckets in which something was counted or measured, the earliest first. The last one is not over.
    pub points: Vec<HistoryPoint>,
    /// Marks, the earliest first.
    pub marks: Vec<HistoryMark>,
    /// Number of things that were counted and could not be stored.
    pub lost: u64,
}

/// Bucket of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryPoint {
    /// Begin of the bucket.
    pub at: Timestamp,
    /// Numbers of tasks, by queue and name.
    pub tasks: BTreeMap<String, BTreeMap<String, TaskHistory>>,
    /// Measurements, by queue.
    pub queues: BTreeMap<String, QueueGauges>,
}

impl HistoryPoint {
    /// Returns what happened to all tasks of the bucket.
    pub fn sum(&self) -> TaskHistory {
        let mut sum = TaskHistory::default();
        self.tasks.values().flat_map(BTreeMap::values).for_each(|history| sum.merge(history));
        sum
    }

    /// Returns the measurements of all queues as one: the sums of their messages, and the largest of the other numbers,
    /// because workers take tasks from several queues.
    pub fn of_all_queues(&self) -> QueueGauges {
        let mut all = QueueGauges::default();
        self.queues.values().for_each(|gauges| all.merge(gauges));
        all.ready = self.queues.values().map(|gauges| gauges.ready).sum();
        all.dead = self.queues.values().map(|gauges| gauges.dead).sum();
        all
    }
}

impl Client {
    /// Marks this moment in the history, for those who read it later.
    ///
    /// # Errors
    /// [`MarkError::Text`] for a text that is empty, longer than 200 bytes or has several lines,
    /// [`MarkError::TooMany`] for more than 1,000 marks of a day, [`MarkError::Backend`].
    ///
    /// # Cancel safety
    /// The mark is stored or not.
    pub async fn mark(&self, text: &str) -> Result<HistoryMark, MarkError> {
        put_mark(self.app.backend().as_ref(), self.app.clock().now(), text).await
    }

    /// Returns the history since an instant, of 30 days at most. Its buckets have ten seconds for the last hour, a minute
    /// for the last day, and ten minutes for what is longer ago. What has just happened is there after ten seconds.
    ///
    /// Workers record it unless [`AppBuilder::events`](crate::AppBuilder::events) is off.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn history(
        &self,
        since: Timestamp,
        selection: &HistorySelection,
    ) -> Result<History, BackendError> {
        let now = self.app.clock().now();
        let age = now.since(since);
        // The caller has read the time a moment ago.
        let fits = |step: &HistoryStep| age <= step.kept_for() + step.width();
        let step = HistoryStep::ALL.into_iter().find(fits).unwrap_or(HistoryStep::TenMinutes);
        let since = step.begin(since.max(now.minus(step.kept_for())));
        let mut buckets = BTreeMap::new();
        let mut from = since;
        let cursors = self.app.backend().read(&[cursor_record()]).await?.pop().unwrap_or_default();
        // What is merged comes from the long buckets, and the rest from the next shorter ones.
        let mut source = Some(step);
        while let Some(at) = source {
            source = at.shorter();
            let until = match source {
                Some(_) => merged_until(&cursors, at).unwrap_or(from).max(from).min(now),
                None => now.plus(Duration::from_micros(1)),
            };
            let most = at.width() * MAX_UNMERGED;
            if at == step || until.since(from) <= 2 * most {
                self.read_buckets(at, from, until, step, &mut buckets).await?;
            } else {
                // Nobody has merged for long, so nobody has recorded for long: what there is was recorded at the begin of
                // that time, or just now.
                let middle = from.plus(most);
                self.read_buckets(at, from, middle, step, &mut buckets).await?;
                let end = at.begin(until.minus(most));
                self.read_buckets(at, end, until, step, &mut buckets).await?;
            }
            from = until;
        }
        let marks = read_marks(self.app.backend().as_ref(), since, now).await?;
        let lost = buckets.values().map(|bucket| bucket.lost).sum();
        let points = buckets.into_iter().filter_map(|(at, bucket)| point(at, bucket, selection)).collect();
        Ok(History { step, points, marks, lost })
    }

    /// Reads the buckets of one length between two instants, and merges them into those that the reader wants.
    async fn read_buckets(
        &self,
        source: HistoryStep,
        from: Timestamp,
        until: Timestamp,
        into: HistoryStep,
        buckets: &mut BTreeMap<Timestamp, HistoryBucket>,
    ) -> Result<(), BackendError> {
        let begins: Vec<Timestamp> = source.begins(from, until).collect();
        for begins in begins.chunks(READ_AT_ONCE) {
            let records: Vec<RecordId> = begins.iter().map(|begin| source.record(*begin)).collect();
            let read = self.app.backend().read_each(&records).await?;
            for (begin, facts) in begins.iter().zip(read) {
                // A record that another program has spoilt is left out.
                if let Some(facts) = facts.ok().filter(|facts| !facts.is_empty()) {
                    buckets.entry(into.begin(*begin)).or_default().merge_facts(&facts);
                }
            }
        }
        Ok(())
    }
}

/// Returns what a selection leaves of a bucket; `None` if that is nothing.
fn point(at: Timestamp, bucket: HistoryBucket, selection: &HistorySelection) -> Option<HistoryPoint> {
    let HistoryBucket { mut tasks, mut queues, .. } = bucket;
    if let Some(wanted) = &selection.queue {
        tasks.retain(|queue, _| queue == wanted.as_str());
        queues.retain(|queue, _| queue == wanted.as_str());
    }
    if let Some(wanted) = &selection.task {
        tasks.values_mut().for_each(|tasks| tasks.retain(|task, _| task == wanted.as_str()));
        tasks.retain(|_, tasks| !tasks.is_empty());
        queues.clear();
    }
    (!tasks.is_empty() || !queues.is_empty()).then_some(HistoryPoint { at, tasks, queues })
}
