//! Counts of one process, and their way into the backend without keeping any task from its work.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    HistoryBucket, HistoryStep, QueueGauges, TaskHistory, UNMERGED_KEPT_FOR,
    bucket::{MAX_PAIRS, OTHER},
};
use crate::{
    backend::{Backend, BackendError, Commit, Committed, Expiry},
    clock::Timestamp,
    event::{Event, EventKind},
    id::{QueueName, RunId, TaskName},
    record::{TaskState, json},
};

/// Maximum number of parts that wait for the backend. The oldest above is dropped and counted.
const MAX_WAITING: usize = 360;
/// Fact of the measurements of the queues, which one worker makes for all.
const GAUGES: &str = "queues";

/// Counts of one process.
#[derive(Debug)]
pub(crate) struct HistoryRecorder {
    is_on: bool,
    /// Random, because a process that starts again counts from 1.
    process: RunId,
    counts: Mutex<ProcessCounts>,
    waiting: tokio::sync::Mutex<WaitingParts>,
}

/// Counts since the last part.
#[derive(Debug, Default)]
struct ProcessCounts {
    by_queue: HashMap<QueueName, HashMap<TaskName, TaskHistory>>,
    pairs: usize,
    /// Tasks for which there was no room.
    other: TaskHistory,
}

/// Parts that are not certainly stored.
#[derive(Debug, Default)]
struct WaitingParts {
    last: u64,
    /// Number of things in parts that were dropped.
    lost: u64,
    parts: VecDeque<WaitingPart>,
}

#[derive(Debug)]
struct WaitingPart {
    begin: Timestamp,
    name: String,
    content: HistoryBucket,
    /// Buckets to which it was written without an answer, the first one first.
    tried: Vec<HistoryStep>,
}

impl ProcessCounts {
    #[inline]
    fn count(&mut self, queue: &QueueName, task: &TaskName, add: impl FnOnce(&mut TaskHistory)) {
        if let Some(history) = self.by_queue.get_mut(queue).and_then(|tasks| tasks.get_mut(task)) {
            return add(history);
        }
        if self.pairs >= MAX_PAIRS {
            return add(&mut self.other);
        }
        self.pairs += 1;
        add(self.by_queue.entry(queue.clone()).or_default().entry(task.clone()).or_default());
    }

    fn into_bucket(self) -> HistoryBucket {
        let mut bucket = HistoryBucket::default();
        for (queue, tasks) in &self.by_queue {
            for (task, history) in tasks {
                bucket.add(queue.as_str(), task.as_str(), history);
            }
        }
        if self.other.total() > 0 {
            bucket.add(OTHER, OTHER, &self.other);
        }
        bucket
    }
}

/// Creates the commit that writes a part once.
fn put_part(step: HistoryStep, begin: Timestamp, name: String, content: &HistoryBucket) -> Arc<Commit> {
    let mut commit = Commit::new(step.record(begin));
    commit.facts = vec![(name.into(), json(content))];
    commit.expiry = Expiry::After(UNMERGED_KEPT_FOR);
    Arc::new(commit)
}

/// Creates the commit that writes what one worker has measured for all.
pub(crate) fn put_gauges(now: Timestamp, queues: BTreeMap<String, QueueGauges>) -> Arc<Commit> {
    let step = HistoryStep::TenSeconds;
    let content = HistoryBucket { queues, ..HistoryBucket::default() };
    put_part(step, step.begin(now), GAUGES.to_owned(), &content)
}

/// Returns the bucket that takes a part now, and its begin: the shortest that is not merged into a longer one.
fn place_of(begin: Timestamp, now: Timestamp) -> (HistoryStep, Timestamp) {
    let mut step = HistoryStep::TenSeconds;
    while let Some(longer) = step.longer()
        && longer.is_due(longer.begin(begin), now)
    {
        step = longer;
    }
    (step, step.begin(begin))
}

impl HistoryRecorder {
    pub(crate) fn new(is_on: bool) -> Self {
        Self {
            is_on,
            process: RunId::fresh(),
            counts: Mutex::default(),
            waiting: tokio::sync::Mutex::default(),
        }
    }

    /// Returns `true` if it counts.
    pub(crate) const fn is_on(&self) -> bool {
        self.is_on
    }

    fn counts(&self) -> MutexGuard<'_, ProcessCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an event. Never waits for a server.
    #[inline]
    pub(crate) fn note(&self, event: &Event<'_>) {
        if !self.is_on {
            return;
        }
        match event.kind {
            EventKind::Received { task, generation: 0, broker_wait, .. } => {
                self.counts().count(task.queue, task.name, |history| history.received.add(Some(broker_wait)));
            }
            EventKind::Ended { task, state, run_time, .. } => {
                self.counts().count(task.queue, task.name, |history| match state {
                    TaskState::Success => history.succeeded.add(run_time),
                    _ => history.failed.add(run_time),
                });
            }
            EventKind::Retried { task, run_time, .. } => {
                self.counts().count(task.queue, task.name, |history| history.retried.add(Some(run_time)));
            }
            _ => {}
        }
    }

    /// Stores what was counted since the last call, and what is not stored yet. Returns the age of the oldest part that is
    /// not stored.
    ///
    /// # Cancel safety
    /// A part that was being written waits for the next call, and is counted once.
    pub(crate) async fn flush(&self, backend: &dyn Backend, now: Timestamp) -> Duration {
        if !self.is_on {
            return Duration::ZERO;
        }
        let mut waiting = self.waiting.lock().await;
        self.take(&mut waiting, now);
        while let Some(part) = waiting.parts.front_mut() {
            if let Err(error) = write(backend, part, now).await {
                tracing::debug!(%error, "a part of the history was not stored; trying again");
                return now.since(part.begin);
            }
            waiting.parts.pop_front();
        }
        Duration::ZERO
    }

    /// Makes a part of what was counted. Most of it belongs to the bucket of some seconds ago.
    fn take(&self, waiting: &mut WaitingParts, now: Timestamp) {
        let counted = mem::take(&mut *self.counts());
        let mut content = counted.into_bucket();
        if content.is_empty() {
            return;
        }
        content.lost = mem::take(&mut waiting.lost);
        waiting.last += 1;
        let step = HistoryStep::TenSeconds;
        let begin = step.begin(now.minus(step.width() / 2));
        let name = format!("{} {}", self.process, waiting.last);
        waiting.parts.push_back(WaitingPart { begin, name, content, tried: Vec::new() });
        if waiting.parts.len() > MAX_WAITING
            && let Some(dropped) = waiting.parts.pop_front()
        {
            waiting.lost += dropped.content.total() + dropped.content.lost;
        }
    }
}

/// Writes a part, unless an earlier try has done it.
async fn write(backend: &dyn Backend, part: &mut WaitingPart, now: Timestamp) -> Result<(), BackendError> {
    let (step, begin) = place_of(part.begin, now);
    for earlier in part.tried.iter().filter(|earlier| **earlier != step) {
        let facts = backend.read(&[earlier.record(earlier.begin(part.begin))]).await?;
        if facts.iter().any(|facts| facts.has(&part.name)) {
            return Ok(());
        }
    }
    if !part.tried.contains(&step) {
        part.tried.push(step);
    }
    for answer in backend.commit(vec![put_part(step, begin, part.name.clone(), &part.content)]).await {
        // Only a repetition of the same write could be refused.
        let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use machinist_memory::MemoryBackend;

    use super::*;
    use crate::{
        clock::Clock,
        event::EventTask,
        id::TaskId,
        record::{ErrorText, FailureKind},
    };

    const START: Timestamp = Timestamp::from_micros(1_764_547_200_000_000);

    fn fail(recorder: &HistoryRecorder, task: &str, times: usize) {
        let clock = Clock::starting_at(START);
        let (name, queue) = (TaskName::parse(task).unwrap(), QueueName::parse("q").unwrap());
        let error = ErrorText::default();
        for _ in 0..times {
            let id = TaskId::fresh();
            let task = EventTask::new(&id, &name, &queue, 1);
            let kind = EventKind::ended_without_run(task, FailureKind::Error, &error, Duration::ZERO);
            recorder.note(&Event::new(kind, Some("w"), &clock));
        }
    }

    async fn stored(backend: &MemoryBackend, step: HistoryStep, begin: Timestamp) -> HistoryBucket {
        let mut bucket = HistoryBucket::default();
        for facts in backend.read(&[step.record(begin)]).await.unwrap() {
            bucket.merge_facts(&facts);
        }
        bucket
    }

    #[tokio::test]
    async fn a_process_writes_once_for_many_tasks_and_nothing_without_any() {
        let (recorder, backend) = (HistoryRecorder::new(true), MemoryBackend::new());
        fail(&recorder, "n", 1000);
        let now = START.plus(Duration::from_secs(10));
        assert_eq!(recorder.flush(&backend, now).await, Duration::ZERO);
        recorder.flush(&backend, now).await;
        let facts = backend.read(&[HistoryStep::TenSeconds.record(START)]).await.unwrap();
        assert_eq!(facts[0].len(), 1);
        let bucket = stored(&backend, HistoryStep::TenSeconds, START).await;
        assert_eq!((bucket.total(), bucket.tasks["q"]["n"].failed.count), (1000, 1000));
    }

    #[tokio::test]
    async fn a_part_that_comes_late_goes_to_the_bucket_that_is_not_merged_yet_and_only_there() {
        let backend = MemoryBackend::new();
        let (late, later) = (START.plus(Duration::from_secs(120)), START.plus(Duration::from_secs(3600)));
        for (now, step) in [(late, HistoryStep::Minute), (later, HistoryStep::TenMinutes)] {
            assert_eq!(place_of(START, now), (step, START));
            let mut part = WaitingPart {
                begin: START,
                name: format!("p {step:?}"),
                content: HistoryBucket { lost: 1, ..HistoryBucket::default() },
                tried: vec![HistoryStep::TenSeconds],
            };
            write(&backend, &mut part, now).await.unwrap();
            assert_eq!(stored(&backend, step, START).await.lost, 1);
            assert!(stored(&backend, HistoryStep::TenSeconds, START).await.is_empty());
        }
        // The answer to the first try was lost, and it was done all the same.
        let name = "p done".to_owned();
        let content = HistoryBucket { lost: 5, ..HistoryBucket::default() };
        backend.commit(vec![put_part(HistoryStep::TenSeconds, START, name.clone(), &content)]).await;
        let tried = vec![HistoryStep::TenSeconds];
        write(&backend, &mut WaitingPart { begin: START, name, content, tried }, late).await.unwrap();
        assert_eq!(stored(&backend, HistoryStep::Minute, START).await.lost, 1, "nothing is counted twice");
    }
}
