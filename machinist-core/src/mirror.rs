//! Mirrors: what another program expects of the tasks of its queue, beside their messages.
//!
//! A program that shares a queue with machinist looks for states in its own store, and lets other tasks follow. A mirror
//! translates an outcome that is recorded already; the worker owes it like any other follow-up, and acknowledges the
//! delivery afterwards. So a mirror decides nothing about a task of machinist.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    args::Arg,
    backend::BackendError,
    broker::Message,
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
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
}

impl MirroredTask {
    /// Creates the task of a message, guarded, for tests of a mirror.
    pub fn new(id: TaskId, name: TaskName, message: Arc<Message>, at: Timestamp) -> Self {
        Self { id, name, message, at, guarded: true }
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
}

/// State of a task that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PassingState {
    /// A worker has the task, and waits for a slot.
    Received,
    /// A run has started.
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
