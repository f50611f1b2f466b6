//! Errors of the core, by what the caller can do about them.
//!
//! A task that fails is not an error of the worker: what a handler says by [`TaskError`] becomes an outcome of its
//! attempt and is recorded. The other errors are answers to the one who called.

use std::{fmt, time::Duration};

use crate::{backend::BackendError, broker::PublishError, id::InvalidName};

pub use machinist_adapter::error::BoxError;
pub(crate) use machinist_adapter::error::chain;

/// A handler's *no*: the attempt failed, and what should follow from that.
///
/// Any error turns into one with `?`, and then counts as an ordinary failure: it is tried again as the retry
/// policy says. [`permanent`](Self::permanent) and [`retry_in`](Self::retry_in) say something else.
///
/// `TaskError` is not a [`std::error::Error`] itself; that is what allows the conversion from every type that is.
///
/// # Examples
/// ```
/// use machinist_core::TaskError;
/// use std::time::Duration;
///
/// async fn fetch(url: String) -> Result<u64, TaskError> {
///     let port: u64 = url.parse()?;                                   // an ordinary failure
///     match port {
///         0 => Err(TaskError::permanent("port 0 never answers")),     // never tried again
///         1 => Err(TaskError::retry_in(Duration::from_secs(30))),     // later, without spending a retry
///         port => Ok(port),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct TaskError {
    pub(crate) disposition: Disposition,
    pub(crate) error: BoxError,
}

/// What a handler wants to follow from its failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// As the retry policy says.
    Failed,
    /// Not again.
    Permanent,
    /// If a retry is left, then after this while instead of the policy's.
    RetryAfter(Duration),
    /// Again after this while, whatever the retry policy says.
    RetryIn(Duration),
    /// The arguments do not fit the handler.
    Malformed,
}

impl TaskError {
    /// An ordinary failure: tried again as the retry policy says.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self { disposition: Disposition::Failed, error: error.into() }
    }

    /// A failure that trying again cannot mend: the task ends in FAILURE now, whatever retries are left.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self { disposition: Disposition::Permanent, error: error.into() }
    }

    /// Not now: run the task again after `delay`.
    ///
    /// This spends none of the retries; a separate cap on postponements
    /// ([`RetryPolicy::max_postponements`](crate::RetryPolicy::max_postponements)) stops an endless loop.
    #[doc(alias = "ErrRetryTaskLater")]
    pub fn retry_in(delay: Duration) -> Self {
        Self { disposition: Disposition::RetryIn(delay), error: "the task asked to be run later".into() }
    }

    /// The arguments do not fit the handler: FAILURE/malformed, never tried again.
    pub fn malformed(error: impl Into<BoxError>) -> Self {
        Self { disposition: Disposition::Malformed, error: error.into() }
    }

    /// Says why, keeping what should follow: `TaskError::retry_in(delay).because(error)`.
    #[must_use]
    pub fn because(self, error: impl Into<BoxError>) -> Self {
        Self { error: error.into(), ..self }
    }

    /// The error that was given, if it is an `E`.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.error.downcast_ref()
    }

    /// The text of the error and of everything that caused it, outermost first.
    pub fn chain(&self) -> Vec<String> {
        chain(self.error.as_ref())
    }
}

impl<E: Into<BoxError>> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// Why a signature was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// A name in the signature is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Something in the signature contradicts itself; the text says what.
    #[error("{0}")]
    Invalid(String),
    /// It is larger than this application sends (see [`MaxSizes`](crate::MaxSizes)).
    #[error("task {id}: {what}: {size}, and {limit} is the limit; send a reference instead")]
    TooLarge {
        /// The task.
        id: crate::id::TaskId,
        /// What is too large.
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
        /// Why, and the remedy.
        why: String,
    },
    /// The broker did not take it; the [`PublishError`] says whether sending again is safe, or pointless.
    #[error("task {id} was not sent")]
    Publish {
        /// The task.
        id: crate::id::TaskId,
        /// What the broker said.
        source: PublishError,
    },
}

impl SendError {
    /// Whether the task may have been queued all the same, because the broker's confirmation is missing. Sending
    /// the same signature again is safe: it keeps its id.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Publish { source: PublishError::Unknown(_), .. })
    }
}

/// Why a result was not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// The task has not ended within the time that was given. It goes on.
    #[error("task {id} has not ended within {waited:?}")]
    Timeout {
        /// The task.
        id: crate::id::TaskId,
        /// How long was waited.
        waited: Duration,
    },
    /// The task ended in FAILURE.
    #[error("task {id} failed ({kind}): {message}")]
    Failed {
        /// The task.
        id: crate::id::TaskId,
        /// How it failed.
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
        /// What does not fit.
        reason: String,
    },
    /// The task has ended, and how is encrypted: the key is not in the ring here, or is another.
    #[error("task {id} has ended, and how cannot be read: {why}")]
    Undecryptable {
        /// The task.
        id: crate::id::TaskId,
        /// Which key is missing.
        why: String,
    },
    /// The record says that the task has ended, and nobody whose key is trusted here has signed that: somebody
    /// else wrote into the backend, or the worker has a key that is not in the ring here.
    #[error("the result of task {id} is not to be believed: {reason}")]
    Forged {
        /// The task.
        id: crate::id::TaskId,
        /// What speaks against it.
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
