//! Consequences of a handler's error, and the error types that name theirs.

use std::time::Duration;

/// Consequence of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// The task is tried again according to the retry policy.
    Retry,
    /// The task is tried again if a retry is left, after this duration instead of the policy's.
    RetryAfter(Duration),
    /// The task is tried again after this duration, without using up a retry, as with
    /// [`TaskError::retry_in`](crate::TaskError::retry_in).
    Postpone(Duration),
    /// The task is postponed, and the tasks that share its rate limit too, as with
    /// [`TaskError::rate_limited`](crate::TaskError::rate_limited).
    RateLimited(Duration),
    /// The task is never tried again.
    Permanent,
}

impl ErrorClass {
    pub(crate) const fn disposition(self) -> Disposition {
        match self {
            Self::Retry => Disposition::Failed,
            Self::RetryAfter(delay) => Disposition::RetryAfter(delay),
            Self::Postpone(delay) => Disposition::RetryIn(delay),
            Self::RateLimited(delay) => Disposition::RateLimited(delay),
            Self::Permanent => Disposition::Permanent,
        }
    }
}

/// Consequence that a handler asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Retry as the retry policy says.
    Failed,
    /// Not again.
    Permanent,
    /// Retry after this time instead of the policy's, if a retry is left.
    RetryAfter(Duration),
    /// Again after this while, whatever the retry policy says.
    RetryIn(Duration),
    /// Like `RetryIn`; the tasks that share the limit start no earlier either.
    RateLimited(Duration),
    /// The arguments do not fit the handler.
    Malformed,
}

/// Error that says what follows from it. `#[derive(machinist::TaskFailure)]` implements it from attributes.
///
/// Handlers return it with `?`, as any error. The worker asks it if
/// [`WorkerBuilder::failure`](crate::WorkerBuilder::failure) names its type, and the task has no classifier. Without a
/// worker that knows the type, [`TaskError::of`](crate::TaskError::of) asks it at once.
///
/// An `anyhow::Error` without context hides the type of the error in it. With a context, the error in it is found as its
/// cause.
///
/// `TaskError` accepts every error by a blanket implementation, so `impl From<MyError> for TaskError` is refused by the
/// compiler (E0119). Implement this trait instead.
///
/// # Examples
/// ```
/// use machinist_core::worker::{ErrorClass, TaskFailure};
/// use std::{fmt, time::Duration};
///
/// #[derive(Debug)]
/// enum MailError {
///     NoSuchAddress,
///     Busy,
/// }
///
/// impl TaskFailure for MailError {
///     fn class(&self) -> ErrorClass {
///         match self {
///             Self::NoSuchAddress => ErrorClass::Permanent,
///             Self::Busy => ErrorClass::Postpone(Duration::from_secs(30)),
///         }
///     }
/// }
/// # impl fmt::Display for MailError {
/// #     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{self:?}") }
/// # }
/// # impl std::error::Error for MailError {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what follows from it",
    note = "derive `machinist::TaskFailure` for it, or implement it by hand"
)]
pub trait TaskFailure {
    /// Returns the consequence of this error.
    fn class(&self) -> ErrorClass;
}
