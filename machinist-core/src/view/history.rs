//! The history in buckets of time.

use serde::Serialize;

use crate::{History, HistoryCount, HistoryMark, HistoryPoint, QueueGauges, TaskHistory};

/// History, as `history` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HistoryView {
    /// Length of a bucket, in seconds.
    pub step: u64,
    /// Buckets, the earliest first.
    pub points: Vec<HistoryPointView>,
    /// Marks, the earliest first.
    pub marks: Vec<HistoryMarkView>,
    /// Number of things that were counted and could not be stored.
    pub lost: u64,
}

/// Mark of the history, as `mark` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HistoryMarkView {
    /// Time of the mark.
    pub at: String,
    /// Text of the mark.
    pub text: String,
}

/// Bucket of the history.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HistoryPointView {
    /// Begin of the bucket.
    pub at: String,
    /// Numbers of the tasks of each name in each queue.
    pub tasks: Vec<TaskHistoryView>,
    /// Measurements of each queue.
    pub queues: Vec<QueueGaugesView>,
}

/// Numbers of the tasks of one name in one queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskHistoryView {
    /// Queue.
    pub queue: String,
    /// Name of the tasks.
    pub task: String,
    /// Messages that workers have received, with the time that they waited.
    pub received: HistoryCountView,
    /// Tasks that have ended in SUCCESS.
    pub success: HistoryCountView,
    /// Tasks that have ended in FAILURE.
    pub failure: HistoryCountView,
    /// Attempts that were followed by another.
    pub retry: HistoryCountView,
}

/// Number of things, and how long they took, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HistoryCountView {
    /// Number.
    pub count: u64,
    /// Time that half of them did not exceed.
    pub p50: Option<f64>,
    /// Time that 95 % of them did not exceed.
    pub p95: Option<f64>,
    /// Time that 99 % of them did not exceed.
    pub p99: Option<f64>,
}

/// Measurement of a queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueueGaugesView {
    /// Queue.
    pub queue: String,
    /// Messages that waited for a worker.
    pub ready: u64,
    /// Dead letters.
    pub dead: u64,
    /// Live workers that took tasks from the queue.
    pub consumers: u64,
    /// Time for which the oldest message had waited at most, in seconds.
    pub oldest_age: f64,
    /// Handlers that ran in these workers.
    pub busy: u64,
    /// Handlers that these workers run at once at most.
    pub slots: u64,
}

impl From<&History> for HistoryView {
    fn from(history: &History) -> Self {
        Self {
            step: history.step.width().as_secs(),
            points: history.points.iter().map(HistoryPointView::from).collect(),
            marks: history.marks.iter().map(HistoryMarkView::from).collect(),
            lost: history.lost,
        }
    }
}

impl From<&HistoryMark> for HistoryMarkView {
    fn from(mark: &HistoryMark) -> Self {
        Self { at: mark.at.to_string(), text: mark.text.clone() }
    }
}

impl From<&HistoryPoint> for HistoryPointView {
    fn from(point: &HistoryPoint) -> Self {
        let tasks = point
            .tasks
            .iter()
            .flat_map(|(queue, tasks)| tasks.iter().map(move |(name, history)| (queue, name, history)));
        Self {
            at: point.at.to_string(),
            tasks: tasks.map(|(queue, name, history)| task_view(queue, name, history)).collect(),
            queues: point.queues.iter().map(|(queue, gauges)| gauges_view(queue, gauges)).collect(),
        }
    }
}

impl From<&HistoryCount> for HistoryCountView {
    fn from(count: &HistoryCount) -> Self {
        let quantile = |share| {
            let told = count.times.quantile(share)?.as_secs_f64();
            Some((told * 1e6).round() / 1e6)
        };
        Self { count: count.count, p50: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99) }
    }
}

fn task_view(queue: &str, task: &str, history: &TaskHistory) -> TaskHistoryView {
    TaskHistoryView {
        queue: queue.to_owned(),
        task: task.to_owned(),
        received: (&history.received).into(),
        success: (&history.succeeded).into(),
        failure: (&history.failed).into(),
        retry: (&history.retried).into(),
    }
}

fn gauges_view(queue: &str, gauges: &QueueGauges) -> QueueGaugesView {
    QueueGaugesView {
        queue: queue.to_owned(),
        ready: gauges.ready,
        dead: gauges.dead,
        consumers: gauges.consumers,
        oldest_age: gauges.oldest_age().as_secs_f64(),
        busy: gauges.busy,
        slots: gauges.slots,
    }
}
