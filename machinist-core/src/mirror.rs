//! Mirrors: what another program expects of the tasks of its queue, beside their messages.
//!
//! A program that shares a queue with machinist looks for states in its own store, and lets other tasks follow. A mirror
//! translates an outcome that is recorded already; the worker owes it like any other follow-up, and acknowledges the
//! delivery afterwards. So a mirror decides nothing about a task of machinist.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    args::{Arg, Results},
    backend::BackendError,
    broker::Message,
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
    record::TaskState,
};

/// Store of another program, to which the states of the tasks of its queue are written
/// ([`QueueOptions::mirror`](crate::QueueOptions::mirror)).
///
/// Everything may be repeated: a worker that dies in between is followed by one that starts from the recorded outcome.
#[async_trait]
pub trait Mirror: fmt::Debug + Send + Sync + 'static {
    /// Shows that a task was received or started. Best effort: nobody waits for it, and it may come after the outcome of
    /// the task, which it must not replace.
    ///
    /// # Cancel safety
    /// Safe: the state is shown or not.
    async fn show(&self, task: &MirroredTask, state: PassingState);

    /// Shows a recorded outcome, and returns the messages that follow the task in the other program. The worker publishes
    /// them, each confirmed, before it acknowledges the delivery.
    ///
    /// A mirror that is about to write something by which the other program believes the task to be done with, such as a
    /// flag, returns [`Followed::NeedsGuard`] unless the task is [`guarded`](MirroredTask::guarded). The worker publishes a
    /// guard and asks again.
    ///
    /// A mirror that cannot tell what follows before another task has ended returns [`Followed::Later`]. Waiting would keep
    /// a slot, which that task may need.
    ///
    /// # Errors
    /// [`BackendError`]: the worker asks again, with pauses, until the process ends.
    ///
    /// # Cancel safety
    /// A dropped future leaves part of it done, which a repetition completes.
    async fn follow(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError>;

    /// Shows the recorded end of a task once more, after all that follows it was published. Called when its message comes
    /// again, but not for a guard: the other program may have run that message meanwhile, and shown a state that passes. An
    /// end that is shown there stays, and so does a state that has expired.
    ///
    /// # Errors
    /// [`BackendError`]: the worker tries again, with pauses, until the process ends.
    ///
    /// # Cancel safety
    /// Safe: the end is shown or not.
    async fn show_again(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<(), BackendError> {
        let _ = (task, outcome);
        Ok(())
    }

    /// Returns what a task owes by now of which all that followed it was published before. Called when its message or a guard
    /// of it comes again: what depends on other tasks, such as the callback of a group, was perhaps not owed then, and nobody
    /// else may know that it is owed now. Messages that [`follow`](Self::follow) has returned are not among them.
    ///
    /// The same answers are possible as those of `follow`, with [`MirroredTask::followed`] set. The worker publishes the
    /// messages, and asks no more.
    ///
    /// # Errors
    /// [`BackendError`]: the worker asks again, with pauses, until the process ends.
    ///
    /// # Cancel safety
    /// A dropped future leaves part of it done, which a repetition completes.
    async fn owed_since(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError> {
        let _ = (task, outcome);
        Ok(Followed::Owes(Vec::new()))
    }

    /// Shows that tasks are about to be sent, with the groups that they form. The client calls it before it publishes
    /// their messages. A record that is there stays as it is: the same task may be sent again.
    ///
    /// # Errors
    /// [`BackendError`]: the tasks are not sent.
    ///
    /// # Cancel safety
    /// A dropped future leaves part of it shown.
    async fn sending(&self, tasks: &[SentTask], groups: &[SentGroup]) -> Result<(), BackendError>;

    /// Takes back what [`sending`](Self::sending) has shown of tasks that are certainly not queued, unless it has changed
    /// since.
    ///
    /// # Errors
    /// [`BackendError`]: the states remain.
    ///
    /// # Cancel safety
    /// A dropped future leaves part of it done.
    async fn not_sent(&self, tasks: &[SentTask]) -> Result<(), BackendError>;

    /// Takes a tick of a periodic task, if the other program ticks too and takes each tick once. Returns `false` if somebody
    /// else has it. Taking the same tick again succeeds, for a worker that died before it was sent.
    ///
    /// # Errors
    /// [`BackendError`]: the tick is tried again.
    ///
    /// # Cancel safety
    /// A dropped future leaves the tick taken or not; taking it again is fine.
    async fn take_tick(&self, tick: &MirroredTick<'_>) -> Result<bool, BackendError> {
        let _ = tick;
        Ok(true)
    }

    /// Reads states as the other program has written them, one for each id; `None` where there is none.
    ///
    /// # Errors
    /// [`BackendError`] of the store. A record that cannot be read counts as none.
    ///
    /// # Cancel safety
    /// Safe.
    async fn states(&self, ids: &[TaskId]) -> Result<Vec<Option<MirroredState>>, BackendError>;
}

/// Tick of a periodic task whose tasks go to a queue with a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirroredTick<'a> {
    /// Name of the periodic task.
    pub name: &'a str,
    /// Its cron expression.
    pub cron: &'a str,
    /// Time of the tick.
    pub at: Timestamp,
    /// Time of the next one.
    pub next: Timestamp,
    /// Time now.
    pub now: Timestamp,
}

impl<'a> MirroredTick<'a> {
    /// Creates a tick that is taken at its time, for tests of a mirror.
    pub fn new(name: &'a str, cron: &'a str, at: Timestamp, next: Timestamp) -> Self {
        Self { name, cron, at, next, now: at }
    }
}

/// A task that a client sends to a queue with a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SentTask {
    /// Id of the task.
    pub id: TaskId,
    /// Name of the task.
    pub name: TaskName,
    /// Time of sending.
    pub at: Timestamp,
    /// Time before which it does not run.
    pub due: Timestamp,
}

/// A group of tasks that a client sends to a queue with a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SentGroup {
    /// Id of the group.
    pub id: TaskId,
    /// Ids of its members.
    pub members: Vec<TaskId>,
    /// Time of sending.
    pub at: Timestamp,
    /// Time before which its members do not run.
    pub due: Timestamp,
}

impl SentTask {
    /// Creates a task that is sent and may run at once, for tests of a mirror.
    pub fn new(id: TaskId, name: TaskName, at: Timestamp) -> Self {
        Self { id, name, at, due: at }
    }
}

impl SentGroup {
    /// Creates a group that is sent and may run at once, for tests of a mirror.
    pub fn new(id: TaskId, members: Vec<TaskId>, at: Timestamp) -> Self {
        Self { id, members, at, due: at }
    }
}

/// State of a task in the store of another program.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MirroredState {
    /// State of the task.
    pub state: TaskState,
    /// Name of the task.
    pub name: String,
    /// Results of a success.
    pub results: Results,
    /// Error of a failure.
    pub error: String,
    /// Time at which the task was sent.
    pub sent_at: Option<Timestamp>,
}

impl MirroredState {
    /// Creates a state without results and without an error.
    pub fn new(state: TaskState, name: impl Into<String>) -> Self {
        Self { state, name: name.into(), results: Results(Vec::new()), error: String::new(), sent_at: None }
    }
}

/// Task of a queue with a mirror.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MirroredTask {
    /// Id of the task.
    pub id: TaskId,
    /// Name of the task.
    pub name: TaskName,
    /// Message of the attempt, in the format of the queue.
    pub message: Arc<Message>,
    /// Time of the state.
    pub at: Timestamp,
    /// `true` if the message comes back to a worker of machinist when this one dies, and not to the other program.
    pub guarded: bool,
    /// `true` if the outcome was found recorded: some of what follows may have been done by a worker that died.
    pub repeated: bool,
    /// `true` if the record says that all that follows the task was published.
    pub followed: bool,
}

impl MirroredTask {
    /// Creates the task of a message, guarded, not repeated and not followed.
    pub fn new(id: TaskId, name: TaskName, message: Arc<Message>, at: Timestamp) -> Self {
        Self { id, name, message, at, guarded: true, repeated: false, followed: false }
    }
}

/// Answer of a mirror to a recorded outcome.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Followed {
    /// The outcome is shown. These messages follow the task.
    Owes(Vec<OwedMessage>),
    /// The task is not guarded, and must be before more is written.
    NeedsGuard,
    /// The outcome is shown. What follows depends on a task that runs once more: the worker publishes a guard, which comes
    /// back and asks again.
    Later,
}

/// State of a task that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PassingState {
    /// A worker has the task, and waits for a slot.
    Received,
    /// A run has started, and has not ended soon.
    Started,
}

/// Recorded outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum MirroredOutcome<'a> {
    /// The task has succeeded.
    Success(&'a [Arg]),
    /// The task has failed for good, with this text.
    Failure(&'a str),
    /// The task runs again: its next message is published afterwards.
    Retry,
}

/// Message that a worker owes to another program.
#[derive(Debug, Clone, PartialEq)]
pub struct OwedMessage {
    /// Message, in the format of that program.
    pub message: Message,
    /// Queue of the message. Without one it becomes a dead letter (`unroutable`) with this text.
    pub queue: Result<QueueName, String>,
    /// Time for which the broker keeps it.
    pub delay: Duration,
}
