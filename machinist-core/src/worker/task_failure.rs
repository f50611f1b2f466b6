//! Error types that say themselves what follows from them.

use std::error::Error;

use super::options::{ErrorClass, ErrorClassifier};
use crate::task_error::TaskError;

/// Error that says what follows from it. `#[derive(machinist::TaskFailure)]` implements it from attributes.
///
/// Handlers return it with `?`, as any error. The worker asks it if
/// [`WorkerBuilder::failure`](crate::WorkerBuilder::failure) names its type, and the task has no classifier. Without a
/// worker that knows the type, [`TaskError::of`] asks it at once.
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

/// Returns the class of an error if the type that it was made for is in its chain.
pub(super) type ClassOfType = fn(&(dyn Error + 'static)) -> Option<ErrorClass>;

/// Returns the class of the outermost `E` in the chain of an error.
pub(super) fn class_of<E: TaskFailure + Error + 'static>(
    error: &(dyn Error + 'static),
) -> Option<ErrorClass> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found.class());
        }
        next = error.source();
    }
    None
}

/// Classifier of tasks that have none: it asks the error types that the worker knows.
pub(super) struct FailureTypes(pub(super) Vec<ClassOfType>);

impl ErrorClassifier for FailureTypes {
    fn classify(&self, error: &TaskError) -> ErrorClass {
        let error: &(dyn Error + 'static) = error.error.as_ref();
        self.0.iter().find_map(|class_of| class_of(error)).unwrap_or(ErrorClass::Retry)
    }
}
