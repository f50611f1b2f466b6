//! Content of the stores about a task or a queue: all that the decision depends on. Pure.

use std::time::Duration;

use crate::{
    broker::QueueDepth,
    clock::Timestamp,
    fleet::WorkerInfo,
    id::{QueueName, TaskId},
    record::{Parked, PresenceState, Record},
};

/// Content of the stores about a task.
pub(super) struct TaskSituation {
    pub(super) id: TaskId,
    /// `None` if there is no record.
    pub(super) record: Option<Record>,
    /// `false` if the session that holds the newest start is gone.
    pub(super) session_lives: bool,
    /// Last parking of the task, also if it is over.
    pub(super) parked_last: Option<Parked>,
    /// `true` if its time is long past, and no worker has received it.
    pub(super) overdue: bool,
    pub(super) disabled: bool,
    /// Source of the limit that holds the task back.
    pub(super) limit_source: Option<String>,
    /// `true` if that limit is zero, so that nothing starts until people change it.
    pub(super) limit_is_zero: bool,
    /// Its dead letter.
    pub(super) letter: Option<Letter>,
    /// Reason that the workers of its queue cannot read a message that claims to be this task.
    pub(super) waits_unread: Option<String>,
    /// Workflow, if it is the root of one, or a step that is not sent.
    pub(super) workflow: Option<WorkflowPart>,
    /// Its queue, if it has a record.
    pub(super) queue: Option<QueueSituation>,
    pub(super) now: Timestamp,
}

/// Content of the stores about a queue.
pub(super) struct QueueSituation {
    pub(super) name: QueueName,
    /// Workers that are live.
    pub(super) workers: Vec<WorkerInfo>,
    /// Names of the tasks that the workers of the queue run, as far as their sessions tell.
    pub(super) running: Vec<String>,
    pub(super) paused: bool,
    /// Depth of the queue, or the error of the broker.
    pub(super) depth: Result<QueueDepth, String>,
    /// Other queues that are known.
    pub(super) known: Vec<String>,
    /// Reason that messages of the queue wait, because no worker can read them, and their number so far.
    pub(super) unread: Option<(String, u64)>,
}

/// A dead letter.
pub(super) struct Letter {
    pub(super) id: String,
    pub(super) reason: String,
    pub(super) error: String,
}

/// Workflow of a task.
pub(super) struct WorkflowPart {
    pub(super) root: TaskId,
    pub(super) done: u32,
    pub(super) total: u32,
    /// Names of steps that have not ended: those before the task, or all of a root.
    pub(super) missing: Vec<String>,
    /// `true` while not all first steps are certainly sent.
    pub(super) incomplete: bool,
    /// `true` if the workflow has ended.
    pub(super) ended: bool,
}

impl TaskSituation {
    /// Returns the time since the last step of the task that its record tells, or since its time, if that was later.
    pub(super) fn quiet_for(&self) -> Duration {
        let parked = self.parked_last.as_ref().map(|parked| parked.until);
        let instants = self.record.as_ref().map(|of| [of.sent_at, of.received_at, of.started_at, of.eta]);
        let last = instants.into_iter().flatten().chain([parked]).flatten().max();
        last.map(|last| self.now.since(last)).unwrap_or_default()
    }

    /// Returns `true` if its queue is known to hold no message.
    pub(super) fn queue_is_empty(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.ready() == Some(0))
    }
}

impl QueueSituation {
    /// Returns the workers that take tasks from the queue.
    pub(super) fn consumers(&self) -> impl Iterator<Item = &WorkerInfo> {
        let takes =
            |worker: &&WorkerInfo| worker.state != PresenceState::Draining && worker.takes_from(&self.name);
        self.workers.iter().filter(takes)
    }

    /// Returns the number of messages that wait in the queue, if it is known.
    pub(super) fn ready(&self) -> Option<u64> {
        self.depth.as_ref().ok()?.ready
    }
}
