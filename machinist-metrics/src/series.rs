//! Series of tasks and queues: instruments that are bound to their labels once, and the bounds on the number of labels.
//!
//! A name that no worker of this process has registered is `_unknown`: every process that can publish could otherwise make series without
//! end. What is above the bound is `_other`, and counted.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use opentelemetry::{
    KeyValue, StringValue,
    metrics::{BoundCounter, BoundHistogram},
};

use crate::{
    catalog::{DESTINATION, SYSTEM},
    instruments::Instruments,
};

/// Number of series that one metric has at most.
pub(crate) const MAX_SERIES: usize = 2000;
/// Number of pairs of queue and task that have series: each has up to eight of one metric.
pub(crate) const MAX_PAIRS: usize = MAX_SERIES / 8;
/// Name in the place of one that is not registered.
pub(crate) const UNKNOWN: &str = "_unknown";
/// Name in the place of those above the bound.
pub(crate) const OTHER: &str = "_other";

/// Stages of a task, in the order of their series.
pub(crate) const STAGES: [&str; 8] =
    ["confirm", "broker", "prefetch", "slot", "start", "run", "record", "follow-up"];

/// Stage of a task.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Confirm,
    Broker,
    Prefetch,
    Slot,
    Start,
    Run,
    Record,
    FollowUp,
}

/// Series of one task in one queue.
pub(crate) struct TaskSeries {
    /// Queue and task, as labels.
    pub(crate) labels: [KeyValue; 2],
    waits: [BoundHistogram<f64>; 8],
    pub(crate) succeeded: BoundCounter<u64>,
    pub(crate) retries: BoundCounter<u64>,
}

impl TaskSeries {
    fn new(instruments: &Instruments, queue: &str, task: &str) -> Self {
        let labels = [label("queue", queue), label("task", task)];
        let [of_queue, of_task] = &labels;
        let with = |extra: KeyValue| [of_queue.clone(), of_task.clone(), extra];
        Self {
            waits: STAGES.map(|stage| instruments.wait.bind(&with(KeyValue::new("stage", stage)))),
            succeeded: instruments.ended.bind(&with(KeyValue::new("state", "SUCCESS"))),
            retries: instruments.retries.bind(&labels),
            labels,
        }
    }

    /// Records the time of a stage.
    pub(crate) fn wait(&self, stage: Stage, took: std::time::Duration) {
        self.waits[stage as usize].record(took.as_secs_f64());
    }
}

/// Series of one queue.
pub(crate) struct QueueSeries {
    pub(crate) sent: BoundCounter<u64>,
    pub(crate) consumed: BoundCounter<u64>,
    pub(crate) operation: BoundHistogram<f64>,
    pub(crate) process: BoundHistogram<f64>,
    pub(crate) lateness: BoundHistogram<f64>,
    /// System and queue, as labels.
    pub(crate) labels: [KeyValue; 2],
}

impl QueueSeries {
    fn new(instruments: &Instruments, queue: &str) -> Self {
        let labels = [KeyValue::new(SYSTEM, "machinist"), label(DESTINATION, queue)];
        Self {
            sent: instruments.sent.bind(&labels),
            consumed: instruments.consumed.bind(&labels),
            operation: instruments.operation.bind(&labels),
            process: instruments.process.bind(&labels),
            lateness: instruments.lateness.bind(&[label("queue", queue)]),
            labels,
        }
    }
}

/// Returns a label whose value is shared by its copies.
pub(crate) fn label(key: &'static str, value: &str) -> KeyValue {
    KeyValue::new(key, StringValue::from(Arc::<str>::from(value)))
}

/// All series of a process.
#[derive(Default)]
pub(crate) struct Series {
    known: RwLock<KnownNames>,
    tasks: RwLock<TaskTable>,
    queues: RwLock<HashMap<Box<str>, Arc<QueueSeries>>>,
}

/// Names that have labels.
#[derive(Default)]
struct KnownNames {
    tasks: HashSet<Box<str>>,
    queues: HashSet<Box<str>>,
}

/// Series by queue and task.
#[derive(Default)]
struct TaskTable {
    by_queue: HashMap<Box<str>, HashMap<Box<str>, Arc<TaskSeries>>>,
    pairs: usize,
}

impl TaskTable {
    fn find(&self, queue: &str, task: &str) -> Option<Arc<TaskSeries>> {
        self.by_queue.get(queue)?.get(task).cloned()
    }
}

impl Series {
    /// Registers names of tasks and queues.
    pub(crate) fn register<'a>(
        &self,
        tasks: impl IntoIterator<Item = &'a str>,
        queues: impl IntoIterator<Item = &'a str>,
    ) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.tasks.extend(tasks.into_iter().map(Box::from));
        known.queues.extend(queues.into_iter().map(Box::from));
    }

    /// Returns the series of a task. Costs two look-ups, unless a name is not registered.
    pub(crate) fn of_task(&self, instruments: &Instruments, queue: &str, task: &str) -> Arc<TaskSeries> {
        if let Some(found) = self.tasks.read().unwrap_or_else(PoisonError::into_inner).find(queue, task) {
            return found;
        }
        let queue = self.queue_label(queue);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let task = if known.tasks.contains(task) { task } else { UNKNOWN };
        drop(known);
        let mut table = self.tasks.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = table.find(queue, task) {
            return found;
        }
        let (queue, task) = if table.pairs < MAX_PAIRS {
            (queue, task)
        } else {
            instruments.series_dropped.add(1, &[]);
            (OTHER, OTHER)
        };
        let of_queue = table.by_queue.entry(queue.into()).or_default();
        let before = of_queue.len();
        let created = || Arc::new(TaskSeries::new(instruments, queue, task));
        let found = Arc::clone(of_queue.entry(task.into()).or_insert_with(created));
        table.pairs += usize::from(table.by_queue.get(queue).map_or(0, HashMap::len) > before);
        found
    }

    /// Returns the series of a queue. A process that only sends need not register its queues.
    pub(crate) fn of_queue(&self, instruments: &Instruments, queue: &str) -> Arc<QueueSeries> {
        if let Some(found) = self.queues.read().unwrap_or_else(PoisonError::into_inner).get(queue) {
            return Arc::clone(found);
        }
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        let queue = if queues.len() < MAX_PAIRS {
            queue
        } else {
            instruments.series_dropped.add(1, &[]);
            OTHER
        };
        let created = || Arc::new(QueueSeries::new(instruments, queue));
        Arc::clone(queues.entry(queue.into()).or_insert_with(created))
    }

    /// Returns the label of a queue.
    pub(crate) fn queue_label<'q>(&self, queue: &'q str) -> &'q str {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if known.queues.contains(queue) { queue } else { UNKNOWN }
    }
}
