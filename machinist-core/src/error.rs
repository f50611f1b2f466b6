//! Errors of the core, by what the caller can do about them.
//!
//! A failed task is no error of the worker: [`TaskError`] becomes an outcome of its attempt and is recorded. The other
//! errors are answers to the caller.

use std::time::Duration;

use crate::{backend::BackendError, broker::PublishError, id::InvalidName};

pub use machinist_adapter::error::{BoxError, chain_text};

pub use crate::task_error::TaskError;

/// Error of a signature that was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// A name in the signature is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Something in the signature contradicts itself; the text says what.
    #[error("{0}")]
    Invalid(String),
    /// The message is larger than this application sends (see [`MaxSizes`](crate::MaxSizes)).
    #[error("task {id}: {what}: {size}, and {limit} is the limit; send a reference instead")]
    TooLarge {
        /// The task.
        id: crate::id::TaskId,
        /// The part that is too large.
        what: &'static str,
        /// Its size, in bytes; for arguments their number.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// It cannot be signed: no key is active, or the active one is not for this task, queue or time.
    #[error("task {id} cannot be signed: {why}")]
    Key {
        /// The task.
        id: crate::id::TaskId,
        /// The reason, and the remedy.
        why: String,
    },
    /// It requires a live worker, and the backend could not be asked for one. It was not sent.
    #[error("task {id} requires a live worker, and the backend could not be asked for one; it was not sent")]
    Workers {
        /// The task.
        id: crate::id::TaskId,
        /// The backend's error.
        source: crate::backend::BackendError,
    },
    /// Its queue has as many tasks as it may have ([`AppBuilder::max_depth`](crate::AppBuilder::max_depth)). It was not sent.
    #[error("task {id} was not sent: queue {queue} has {depth} tasks that wait, and {most} is its maximum")]
    QueueFull {
        /// The task.
        id: crate::id::TaskId,
        /// The queue.
        queue: crate::id::QueueName,
        /// Number of tasks that wait.
        depth: u64,
        /// Maximum of that number.
        most: u64,
    },
    /// The buffer of the application has as many tasks as it may have ([`AppBuilder::buffer`](crate::AppBuilder::buffer)). It was
    /// not accepted.
    #[error(
        "task {id} was not accepted: {tasks} tasks with {bytes} bytes are buffered, and the buffer takes no more"
    )]
    BufferFull {
        /// The task.
        id: crate::id::TaskId,
        /// Number of tasks in the buffer.
        tasks: usize,
        /// Size of their messages, in bytes.
        bytes: usize,
    },
    /// It was accepted by the buffer of the application, and left it without a confirm: its time was over, the buffer was flushed,
    /// or its runtime has ended.
    #[error("task {id} was dropped from the buffer after {waited:?}, before the broker had confirmed it")]
    Dropped {
        /// The task.
        id: crate::id::TaskId,
        /// Time that it was buffered; zero if its runtime has ended.
        waited: Duration,
        /// `true` if a try may have queued it. Sending it again by its id is safe.
        may_be_queued: bool,
        /// Error of the last try.
        source: Option<Box<Self>>,
    },
    /// Another task has the key of this unique task, which was not sent.
    #[error("task {id} was not sent: task {of} has its unique key")]
    Duplicate {
        /// The task.
        id: crate::id::TaskId,
        /// The task that has the key.
        of: crate::id::TaskId,
    },
    /// The backend could not be asked for the key of this unique task, which was not sent.
    #[error("task {id} is unique, and the backend could not be asked for its key; it was not sent")]
    Unique {
        /// The task.
        id: crate::id::TaskId,
        /// The backend's error.
        source: crate::backend::BackendError,
    },
    /// Something that others have to find before they run it could not be written: its state for the program that shares
    /// its queue, or the plan of a workflow in the format of that program. It was not sent.
    #[error("task {id} was not sent: what other programs have to know of it could not be written")]
    Record {
        /// The task.
        id: crate::id::TaskId,
        /// The backend's error.
        source: crate::backend::BackendError,
    },
    /// The broker did not take it; the [`PublishError`] says whether sending again is safe, or pointless.
    #[error("task {id} was not sent")]
    Publish {
        /// The task.
        id: crate::id::TaskId,
        /// The broker's error.
        source: PublishError,
    },
}

impl SendError {
    /// Returns `true` if the task may have been queued, because the broker's confirmation is missing or negative. Sending
    /// the same signature again is safe: it keeps its id.
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Publish { source, .. } => {
                matches!(source, PublishError::Unknown(_) | PublishError::Nacked { .. })
            }
            Self::Dropped { may_be_queued, .. } => *may_be_queued,
            _ => false,
        }
    }
}

/// Error of a result that is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// The task has not ended within the time that was given. It goes on.
    #[error("task {id} has not ended within {waited:?}")]
    Timeout {
        /// The task.
        id: crate::id::TaskId,
        /// Time waited.
        waited: Duration,
    },
    /// The task ended in FAILURE.
    #[error("task {id} failed ({kind}): {message}")]
    Failed {
        /// The task.
        id: crate::id::TaskId,
        /// Kind of the failure.
        kind: crate::record::FailureKind,
        /// The outermost message of its error.
        message: String,
        /// The whole error, outermost first.
        chain: Vec<String>,
    },
    /// The backend knows no task of this id: it was never sent, or its record was forgotten.
    #[error("task {id} is unknown: it was never sent, or its record has expired")]
    Unknown {
        /// The task.
        id: crate::id::TaskId,
    },
    /// The task succeeded, and its results are not what the caller expects.
    #[error("the results of task {id} are not as expected: {reason}")]
    Undecodable {
        /// The task.
        id: crate::id::TaskId,
        /// The mismatch.
        reason: String,
    },
    /// The task has ended, and how is encrypted: the key is not in the ring here, or is another.
    #[error("task {id} has ended, and how cannot be read: {why}")]
    Undecryptable {
        /// The task.
        id: crate::id::TaskId,
        /// The missing key.
        why: String,
    },
    /// The record says that the task has ended, and nobody whose key is trusted here has signed that: somebody
    /// else wrote into the backend, or the worker has a key that is not in the ring here.
    #[error("the result of task {id} is not to be believed: {reason}")]
    Forged {
        /// The task.
        id: crate::id::TaskId,
        /// The evidence.
        reason: String,
    },
    /// The backend could not be asked.
    #[error("the backend could not be asked")]
    Backend(#[from] BackendError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_a_task_error() {
        fn io() -> Result<(), TaskError> {
            Err(std::io::Error::other("disk"))?
        }
        fn text() -> Result<(), TaskError> {
            Err("plain text")?
        }
        fn through_anyhow() -> Result<(), TaskError> {
            Err(anyhow::Error::from(std::io::Error::other("inner")).context("outer"))?
        }
        assert_eq!(io().unwrap_err().chain(), ["disk"]);
        assert!(io().unwrap_err().downcast_ref::<std::io::Error>().is_some());
        assert_eq!(text().unwrap_err().chain(), ["plain text"]);
        assert_eq!(through_anyhow().unwrap_err().chain(), ["outer", "inner"]);
    }
}
