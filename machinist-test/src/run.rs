//! Runs of handlers: those of a worker, and a single call without one.

use std::time::Duration;

use machinist_core::{
    QueueName, TaskContext, TaskDef, TaskError, TaskId, TaskName,
    args::{FromResults, IntoArgs},
    handler::{Binding, Handler},
    record::{ErrorText, FailureKind},
};

/// End of an attempt, as a worker has recorded it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskRun {
    /// Id of the task.
    pub id: TaskId,
    /// Name of the task.
    pub name: TaskName,
    /// Queue of the task.
    pub queue: QueueName,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Outcome.
    pub end: RunResult,
}

/// Outcome of an attempt.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RunResult {
    /// The task has succeeded.
    Success,
    /// The task has failed and is not tried again.
    Failure {
        /// Kind of the failure.
        kind: FailureKind,
        /// The error.
        error: ErrorText,
    },
    /// The task is tried again.
    Retry {
        /// Time until the next attempt.
        after: Duration,
        /// Kind of the failure.
        kind: FailureKind,
        /// The error.
        error: ErrorText,
    },
}

impl TaskRun {
    /// Returns `true` if the task has succeeded.
    pub fn is_success(&self) -> bool {
        self.end == RunResult::Success
    }

    /// Returns `true` if the task has failed and is not tried again.
    pub fn is_failure(&self) -> bool {
        matches!(self.end, RunResult::Failure { .. })
    }

    /// Returns `true` if the task is tried again.
    pub fn is_retry(&self) -> bool {
        matches!(self.end, RunResult::Retry { .. })
    }
}

/// Calls a handler once, without a worker: its arguments take the way over the wire, and its result too. Make the context
/// with [`TaskContext::builder`]: attempt, token, headers, shared values, cancellation.
///
/// [`TaskError::class`] says what would follow from an error. Middleware, time limits and classifiers belong to a worker:
/// see [`TestApp`](crate::TestApp).
///
/// # Errors
/// The error of the handler; an argument or a result without a wire form.
///
/// # Cancel safety
/// Dropping the future drops that of the handler.
///
/// # Examples
/// ```
/// use machinist_core::{TaskContext, TaskDef, TaskError, worker::ErrorClass};
/// use machinist_test::run_one;
///
/// const FETCH: TaskDef<String, u64> = TaskDef::new("fetch");
///
/// async fn fetch(url: String, cx: TaskContext) -> Result<u64, TaskError> {
///     match cx.attempt() {
///         3 => Err(TaskError::permanent("gone")),
///         _ => Ok(url.len() as u64),
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let cx = TaskContext::builder().attempt(3).build();
/// let error = run_one(FETCH, fetch, "https://example.org", cx).await.unwrap_err();
/// assert_eq!(error.class(), ErrorClass::Permanent);
/// # }
/// ```
pub async fn run_one<A, R, Via, H>(
    def: TaskDef<A, R>,
    handler: H,
    args: impl IntoArgs<A>,
    cx: TaskContext,
) -> Result<R, TaskError>
where
    H: Handler<Via, A, R>,
    R: FromResults,
{
    let args = args.into_args().map_err(TaskError::malformed)?;
    let results = Binding::new(def, handler).handler.call(cx, args).await?;
    R::from_results(results).map_err(TaskError::malformed)
}
