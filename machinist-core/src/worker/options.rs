//! How a registered task is run where its signature does not say: retries, limits, which errors are worth another run.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    error::{Disposition, TaskError},
    retry::{Backoff, RetryPolicy},
};

/// How one task is run where its signature does not say.
#[derive(Clone, Default)]
pub struct TaskOptions {
    pub(super) retry: Option<RetryPolicy>,
    pub(super) timeout: Option<Duration>,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) classify: Option<Arc<dyn Classify>>,
}

/// What should follow from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// Tried again as the retry policy says.
    Retry,
    /// Tried again if a retry is left, after this while instead of the policy's.
    RetryAfter(Duration),
    /// Tried again after this while, without spending a retry, as [`TaskError::retry_in`] does.
    Postpone(Duration),
    /// Never tried again.
    Permanent,
}

/// Tells which errors are worth another run. Every function from an error to a [`Class`] does.
///
/// It is asked about the errors of which the handler did not say itself what should follow. What it answers must
/// follow from the error alone.
///
/// # Examples
/// ```
/// use machinist_core::{TaskError, worker::{Class, TaskOptions}};
/// use std::{io, time::Duration};
///
/// let options = TaskOptions::new().retries(5).classify(|error: &TaskError| match error.downcast_ref::<io::Error>() {
///     Some(error) if error.kind() == io::ErrorKind::NotFound => Class::Permanent,
///     Some(_) => Class::RetryAfter(Duration::from_secs(30)),
///     None => Class::Retry,
/// });
/// ```
pub trait Classify: Send + Sync + 'static {
    /// What should follow from this error.
    fn classify(&self, error: &TaskError) -> Class;
}

impl<F: Fn(&TaskError) -> Class + Send + Sync + 'static> Classify for F {
    fn classify(&self, error: &TaskError) -> Class {
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

    /// Waits so before a retry.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.retry.get_or_insert_default().backoff = backoff;
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
    pub fn classify(mut self, classify: impl Classify) -> Self {
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

    /// What the handler itself did not decide about an error is decided here.
    pub(super) fn classified(&self, error: TaskError) -> TaskError {
        let (Disposition::Failed, Some(classify)) = (error.disposition, &self.classify) else { return error };
        let disposition = match classify.classify(&error) {
            Class::Retry => Disposition::Failed,
            Class::RetryAfter(delay) => Disposition::RetryAfter(delay),
            Class::Postpone(delay) => Disposition::RetryIn(delay),
            Class::Permanent => Disposition::Permanent,
        };
        TaskError { disposition, ..error }
    }
}
