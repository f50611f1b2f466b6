//! Reasons that a worker cannot be built.

use super::{InvalidTag, MAX_TAGS};
use crate::{id::QueueName, limit::LimitTarget, periodic::PeriodicError};

/// Error of a worker that cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A queue or task name is not allowed.
    #[error(transparent)]
    Name(#[from] crate::id::InvalidName),
    /// Two handlers were registered for one name.
    #[error("task {0:?} is registered twice")]
    Twice(String),
    /// Options were given for a task that was not registered.
    #[error("options were given for task {0:?}, which is not registered")]
    NoSuchTask(String),
    /// A handler asks for a `State<T>` that was not registered: add `.state(value)` to the builder.
    #[error("task {task:?} takes State<{missing}>, which was not registered: add .state(…) of that type")]
    MissingState {
        /// The task.
        task: String,
        /// The type of the missing value.
        missing: &'static str,
    },
    /// The application's key cannot sign what this worker would publish again: retries, guards.
    #[error(
        "a worker signs the retries of its tasks, but it cannot sign those of {task:?} in queue {queue}: {why}"
    )]
    Key {
        /// The task.
        task: String,
        /// The queue.
        queue: QueueName,
        /// Reason that the key cannot sign, and the remedy.
        why: String,
    },
    /// A periodic task cannot be followed.
    #[error(transparent)]
    Periodic(#[from] PeriodicError),
    /// Two periodic tasks have one name.
    #[error("periodic task {0:?} is defined twice; rename one")]
    PeriodicTwice(String),
    /// A text is not allowed as a tag.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// The worker has more tags than a listing shows.
    #[error("a worker has at most {MAX_TAGS} tags, and these are {0}")]
    TooManyTags(usize),
    /// A limit contradicts itself.
    #[error("the limit of {target} is wrong: {why}")]
    Limit {
        /// The task or the queue.
        target: LimitTarget,
        /// The contradiction and the remedy.
        why: String,
    },
    /// A batch holds more tasks than run at once.
    #[error(
        "a batch of task {task:?} has up to {max} tasks, and {concurrency} run at once: raise the concurrency to {max}, or make \
         the batch smaller"
    )]
    Batch {
        /// The task.
        task: String,
        /// Maximum number of tasks in a batch.
        max: usize,
        /// Number of tasks that run at once.
        concurrency: usize,
    },
    /// The worker would end at a bound, and nothing tells its supervisor to start it again.
    #[error("{0} ends the worker, so that its supervisor starts it again: set restart_exit_code too")]
    NobodyRestarts(&'static str),
    /// The number of handlers that run at once cannot change now.
    #[error("the concurrency cannot change now: {0}")]
    NotNow(&'static str),
    /// The queues that are new cannot be taken now, so nothing has changed.
    #[error("the queues that are new cannot be taken: {0}")]
    NewQueues(String),
    /// A number that must not be zero is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}
