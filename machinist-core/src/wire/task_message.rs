//! A task as a message in any format describes it, with what follows it inside that message.
//!
//! Workflows of machinist are more than that: joins of any steps, policies for failures. What is here is the part that
//! other programs have too.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    args::Arg,
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
    retry::RetryPolicy,
};

/// A task as a message describes it, in any format.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskMessage {
    /// Id of the task: the same for all attempts.
    pub id: TaskId,
    /// Name of the task.
    pub name: TaskName,
    /// Arguments. Those with a name come after the others.
    pub args: Vec<Arg>,
    /// Number of the attempt, from 1. A profile whose format counts retries sets it; otherwise it is 1, and machinist counts.
    pub attempt: u32,
    /// Retries among the earlier attempts. The others were postponements. `None`: all of them were retries.
    pub retries: Option<u32>,
    /// Earliest time of this attempt.
    pub eta: Option<Timestamp>,
    /// Latest time at which the first attempt may start.
    pub expires: Option<Timestamp>,
    /// Retry policy; without one the worker's options apply.
    pub retry: Option<RetryPolicy>,
    /// Hard timeout of a run.
    pub timeout: Option<Duration>,
    /// Soft timeout of a run.
    pub soft_timeout: Option<Duration>,
    /// Priority, 0 to 9.
    pub priority: Option<u8>,
    /// Text by name, for the handler.
    pub headers: BTreeMap<String, String>,
    /// Tasks that follow a new task, for a format that [nests](crate::Profile::nests) them. A task that was read has none: they stay
    /// in its message.
    pub nested: NestedTasks,
    /// Reason that the task cannot run as its message says. Such a task ends in FAILURE without a run, so that those
    /// who wait for it are told.
    pub invalid: Option<String>,
}

impl TaskMessage {
    /// Creates the first attempt of a task without arguments.
    pub fn new(id: TaskId, name: TaskName) -> Self {
        Self {
            id,
            name,
            args: Vec::new(),
            attempt: 1,
            retries: None,
            eta: None,
            expires: None,
            retry: None,
            timeout: None,
            soft_timeout: None,
            priority: None,
            headers: BTreeMap::new(),
            nested: NestedTasks::default(),
            invalid: None,
        }
    }
}

/// Tasks that follow a task, inside its message.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct NestedTasks {
    /// Tasks that are sent when it has succeeded.
    pub on_success: Vec<NestedTask>,
    /// Tasks that are sent when it has failed for good, with the error's text before their arguments.
    pub on_error: Vec<NestedTask>,
    /// Group that it is a member of.
    pub group: Option<NestedGroup>,
}

/// A task inside the message of another.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NestedTask {
    /// The task, with what follows it in turn.
    pub task: TaskMessage,
    /// Queue of the task.
    pub queue: QueueName,
    /// `true` if it does not get the results of what it follows.
    pub ignores_results: bool,
}

/// Place of a task in a group.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NestedGroup {
    /// Id of the group.
    pub id: TaskId,
    /// Number of its members.
    pub size: u32,
    /// Task that is sent when all members have succeeded, with their results after its arguments.
    pub callback: Option<Box<NestedTask>>,
}

impl NestedTask {
    /// Creates a task that gets the results of what it follows.
    pub fn new(task: TaskMessage, queue: QueueName) -> Self {
        Self { task, queue, ignores_results: false }
    }
}

impl NestedGroup {
    /// Creates the place of a task in a group for which nothing waits.
    pub fn new(id: TaskId, size: u32) -> Self {
        Self { id, size, callback: None }
    }
}
