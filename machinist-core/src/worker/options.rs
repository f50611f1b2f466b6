//! How a registered task is run where its signature does not say: retries, limits, which errors are worth another run.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use crate::{
    retry::{Backoff, RetryPolicy},
    task_error::{Disposition, TaskError},
};

/// How one task is run where its signature does not say.
#[derive(Clone, Default)]
pub struct TaskOptions {
    pub(super) retry: Option<RetryPolicy>,
    pub(super) timeout: Option<Duration>,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) classify: Option<Arc<dyn ErrorClassifier>>,
    pub(super) backoff_with: Option<BackoffFunction>,
}

/// The wait before the next run, from the retries so far.
type BackoffFunction = Arc<dyn Fn(u32) -> Duration + Send + Sync>;

/// What should follow from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Tried again as the retry policy says.
    Retry,
    /// Tried again if a retry is left, after this while instead of the policy's.
    RetryAfter(Duration),
    /// Tried again after this while, without spending a retry, as [`TaskError::retry_in`] does.
    Postpone(Duration),
    /// Never tried again.
    Permanent,
}

/// Tells which errors are worth another run. Every function from an error to a [`ErrorClass`] does.
///
/// It is asked about the errors of which the handler did not say itself what should follow. What it answers must
/// follow from the error alone.
///
/// # Examples
/// ```
/// use machinist_core::{TaskError, worker::{ErrorClass, TaskOptions}};
/// use std::{io, time::Duration};
///
/// let options = TaskOptions::new().retries(5).classify(|error: &TaskError| match error.downcast_ref::<io::Error>() {
///     Some(error) if error.kind() == io::ErrorKind::NotFound => ErrorClass::Permanent,
///     Some(_) => ErrorClass::RetryAfter(Duration::from_secs(30)),
///     None => ErrorClass::Retry,
/// });
/// ```
pub trait ErrorClassifier: Send + Sync + 'static {
    /// What should follow from this error.
    fn classify(&self, error: &TaskError) -> ErrorClass;
}

impl<F: Fn(&TaskError) -> ErrorClass + Send + Sync + 'static> ErrorClassifier for F {
    fn classify(&self, error: &TaskError) -> ErrorClass {
        self(error)
    }
}

impl fmt::Debug for TaskOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskOptions")
            .field("retry", &self.retry)
            .field("timeout", &self.timeout)
            .field("soft_timeout", &self.soft_timeout)
            .field("classify", &self.classify.is_some())
            .field("backoff_with", &self.backoff_with.is_some())
            .finish()
    }
}

impl TaskOptions {
    /// No retries and no time limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tries the task again up to so many times when it fails.
    #[must_use]
    pub fn retries(mut self, max_retries: u32) -> Self {
        self.retry.get_or_insert_default().max_retries = max_retries;
        self
    }

    /// UnrecordedOutcome so before a retry.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.retry.get_or_insert_default().backoff = backoff;
        self
    }

    /// UnrecordedOutcome before a retry as this function says, which is given how many retries there were before: 0, 1, 2, …
    ///
    /// It is asked once after each run that failed, and what it answers is recorded, so it may draw random numbers. A
    /// function does not travel: where the signature brings a retry policy of its own, that holds. One that panics is
    /// answered for by the default back-off.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::worker::TaskOptions;
    /// use std::time::Duration;
    ///
    /// // 1, 4, 9, … seconds, at most five minutes.
    /// let options = TaskOptions::new()
    ///     .retries(20)
    ///     .backoff_with(|retries| Duration::from_secs(u64::from(retries + 1).pow(2).min(300)));
    /// ```
    #[must_use]
    pub fn backoff_with(mut self, wait: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        self.backoff_with = Some(Arc::new(wait));
        self
    }

    /// The whole retry policy at once.
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Tries the task again when it fails, however often, but begins no retry later than `limit` after it was due.
    #[must_use]
    pub fn retry_for(mut self, limit: Duration) -> Self {
        self.retry.get_or_insert_default().bound_by_time(limit);
        self
    }

    /// Tries the task again, too, when a run was ended by a time limit.
    #[must_use]
    pub fn retry_timeouts(mut self) -> Self {
        self.retry.get_or_insert_default().retry_timeouts = true;
        self
    }

    /// Tells by the error what should follow from it.
    #[must_use]
    pub fn classify(mut self, classify: impl ErrorClassifier) -> Self {
        self.classify = Some(Arc::new(classify));
        self
    }

    /// Ends a run that takes longer than this: FAILURE/timeout, or another run where the retry policy
    /// [says so](RetryPolicy::retry_timeouts).
    ///
    /// A function that blocks its thread cannot be ended: its token is fired, and five seconds later nobody waits
    /// for it any more.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Fires the cancellation token of a run that takes longer than this. What the handler then returns counts; an
    /// error means FAILURE/timeout as [`timeout`](Self::timeout) does.
    #[must_use]
    pub fn soft_timeout(mut self, limit: Duration) -> Self {
        self.soft_timeout = Some(limit);
        self
    }

    /// The policy for what failed after so many retries and did not bring one of its own.
    pub(super) fn policy_after(&self, retries: u32) -> RetryPolicy {
        let policy = self.retry.clone().unwrap_or_default();
        let Some(wait) = &self.backoff_with else { return policy };
        match caught("a back-off function", || wait(retries)) {
            Some(wait) => policy.backoff(Backoff::fixed(wait)),
            None => policy.backoff(Backoff::default()),
        }
    }

    /// What the handler itself did not decide about an error is decided here.
    pub(super) fn classified(&self, error: TaskError) -> TaskError {
        let (Disposition::Failed, Some(classify)) = (error.disposition, &self.classify) else { return error };
        let class =
            caught("a classification of errors", || classify.classify(&error)).unwrap_or(ErrorClass::Retry);
        let disposition = match class {
            ErrorClass::Retry => Disposition::Failed,
            ErrorClass::RetryAfter(delay) => Disposition::RetryAfter(delay),
            ErrorClass::Postpone(delay) => Disposition::RetryIn(delay),
            ErrorClass::Permanent => Disposition::Permanent,
        };
        TaskError { disposition, ..error }
    }
}

/// What the user's function answers; `None` if it panicked: that must not take the delivery with it.
fn caught<T>(what: &str, ask: impl FnOnce() -> T) -> Option<T> {
    // What it leaves half done is its own.
    let answer = catch_unwind(AssertUnwindSafe(ask));
    if answer.is_err() {
        tracing::error!("{what} of a task panicked: the default holds");
    }
    answer.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_panics_is_answered_for() {
        let options = TaskOptions::new()
            .retries(3)
            .backoff_with(|retries| Duration::from_secs(10 / u64::from(2 - retries)))
            .classify(|error: &TaskError| match error.to_string().as_str() {
                "never" => ErrorClass::Permanent,
                other => panic!("{other} is unknown"),
            });
        let wait = |retries| options.policy_after(retries).next_delay(retries, 0.0);
        assert_eq!((wait(0), wait(1)), (Some(Duration::from_secs(5)), Some(Duration::from_secs(10))));
        assert_eq!(options.policy_after(2).backoff, Backoff::default());
        assert_eq!(options.classified(TaskError::new("never")).disposition, Disposition::Permanent);
        assert_eq!(options.classified(TaskError::new("else")).disposition, Disposition::Failed);
    }
}
