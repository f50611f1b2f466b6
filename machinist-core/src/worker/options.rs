//! Options of a registered task: retries, time limits, classification of errors. A task's signature overrides them.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::circuits::CircuitBreaker;
use crate::{
    consequence::{Disposition, ErrorClass},
    definition::DefinedOptions,
    limit::Limit,
    retry::{Backoff, RetryPolicy},
    task_error::TaskError,
};

/// Options of a task. They hold for everything that the task's signature does not set.
///
/// # Examples
/// ```
/// use machinist_core::{Backoff, WorkerBuilder, worker::TaskOptions};
/// use std::time::Duration;
///
/// fn with_patience(worker: WorkerBuilder) -> WorkerBuilder {
///     let options = TaskOptions::new()
///         .retries(8)
///         .backoff(Backoff::fixed(Duration::from_secs(30)))
///         .timeout(Duration::from_secs(120))
///         .keep_args(true);
///     worker.options("send_mail", options)
/// }
/// ```
#[derive(Clone, Default)]
pub struct TaskOptions {
    pub(super) retry: Option<RetryPolicy>,
    pub(super) timeout: Option<Duration>,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) classify: Option<Arc<dyn ErrorClassifier>>,
    pub(super) backoff_with: Option<BackoffFunction>,
    pub(super) limit: Option<Limit>,
    pub(super) keep_args: Option<bool>,
    pub(super) concurrency: Option<usize>,
    pub(super) circuit: Option<CircuitBreaker>,
}

/// Function from the number of retries so far to the wait before the next run.
type BackoffFunction = Arc<dyn Fn(u32) -> Duration + Send + Sync>;

/// Decides which errors are worth another run. Every function from an error to an [`ErrorClass`] is a classifier.
///
/// It is called for errors whose consequence the handler did not decide itself. The class must depend on the error
/// alone.
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
    /// Returns the class of this error.
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
            .field("limit", &self.limit)
            .field("keep_args", &self.keep_args)
            .field("concurrency", &self.concurrency)
            .field("circuit", &self.circuit)
            .finish()
    }
}

impl TaskOptions {
    /// Creates options without retries and without time limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the options that a definition sets.
    pub(super) fn defined(definition: &DefinedOptions) -> Self {
        Self {
            retry: definition.retry_policy(),
            timeout: definition.timeout,
            soft_timeout: definition.soft_timeout,
            ..Self::default()
        }
    }

    /// Tries the task again up to `max_retries` times when it fails.
    #[must_use]
    pub fn retries(mut self, max_retries: u32) -> Self {
        self.retry.get_or_insert_default().max_retries = max_retries;
        self
    }

    /// Sets the wait before a retry, in place of a function that [`backoff_with`](Self::backoff_with) set.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff_with = None;
        self.retry.get_or_insert_default().backoff = backoff;
        self
    }

    /// Sets a function that returns the wait before a retry. Its argument is the number of earlier retries: 0, 1, 2, …
    ///
    /// It is called once after each failed run, and its result is recorded, so it may use random numbers. A function
    /// does not travel with the message: if the signature has a retry policy, that policy holds. If the function panics,
    /// the default back-off holds.
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

    /// Sets the whole retry policy at once.
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Tries the task again when it fails, any number of times, but starts no retry later than `limit` after the task was
    /// due.
    #[must_use]
    pub fn retry_for(mut self, limit: Duration) -> Self {
        self.retry.get_or_insert_default().bound_by_time(limit);
        self
    }

    /// Also tries the task again when a time limit ended the run.
    #[must_use]
    pub fn retry_timeouts(self) -> Self {
        self.retry_timeouts_if(true)
    }

    /// Sets whether the task is tried again when a time limit ended the run.
    #[must_use]
    pub fn retry_timeouts_if(mut self, retried: bool) -> Self {
        self.retry.get_or_insert_default().retry_timeouts = retried;
        self
    }

    /// Sets the classifier that decides the consequence of an error.
    #[must_use]
    pub fn classify(mut self, classify: impl ErrorClassifier) -> Self {
        self.classify = Some(Arc::new(classify));
        self
    }

    /// Limits the starts and runs of the task in all workers together. A limit that was set live wins over this one.
    #[must_use]
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Sets the maximum number of runs of the task at once in one worker. [`limit`](Self::limit) limits it in all workers
    /// together.
    #[must_use]
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = Some(handlers);
        self
    }

    /// Lets a worker that fails the task `failures` times in a row leave it to others for a `pause`. Then it tries one run, and
    /// the pause doubles, up to 16 times its length, until a run succeeds. 0 failures: never.
    ///
    /// Errors, panics and timeouts count; postponements and arguments that do not fit do not. Every worker counts its own
    /// runs. Tasks that it refuses are parked, and come back after 15 s or later, here or elsewhere.
    #[must_use]
    pub fn circuit(mut self, failures: u32, pause: Duration) -> Self {
        self.circuit = Some(CircuitBreaker { failures, pause });
        self
    }

    /// Ends a run that takes longer than this: FAILURE/timeout, or another run where the retry policy
    /// [says so](RetryPolicy::retry_timeouts).
    ///
    /// A function that blocks its thread cannot be ended: its token fires, and the worker stops waiting for it five
    /// seconds later.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Fires the cancellation token of a run that takes longer than this. A result that the handler then returns counts;
    /// an error means FAILURE/timeout, as with [`timeout`](Self::timeout).
    #[must_use]
    pub fn soft_timeout(mut self, limit: Duration) -> Self {
        self.soft_timeout = Some(limit);
        self
    }

    /// Sets whether the records of this task keep its arguments, so that people see them: `machinist status`,
    /// [`Client::arguments`](crate::Client::arguments). Default: what [`WorkerBuilder::keep_args`] says.
    ///
    /// The records of delayed and failed tasks keep them anyhow. Encrypted arguments stay encrypted.
    ///
    /// [`WorkerBuilder::keep_args`]: crate::WorkerBuilder::keep_args
    #[must_use]
    pub fn keep_args(mut self, kept: bool) -> Self {
        self.keep_args = Some(kept);
        self
    }

    /// Returns these options, with those of `base` for what they do not set. A retry policy is taken as a whole.
    #[must_use]
    pub(super) fn over(mut self, base: Self) -> Self {
        self.retry = self.retry.or(base.retry);
        self.timeout = self.timeout.or(base.timeout);
        self.soft_timeout = self.soft_timeout.or(base.soft_timeout);
        self.keep_args = self.keep_args.or(base.keep_args);
        self.limit = self.limit.or(base.limit);
        self.concurrency = self.concurrency.or(base.concurrency);
        self.circuit = self.circuit.or(base.circuit);
        self
    }

    /// Returns the retry policy of a failed task whose signature has none, after this number of retries.
    pub(super) fn policy_after(&self, retries: u32) -> RetryPolicy {
        let policy = self.retry.clone().unwrap_or_default();
        let Some(wait) = &self.backoff_with else { return policy };
        match catch_panic("the back-off function", || wait(retries)) {
            Some(wait) => policy.backoff(Backoff::fixed(wait)),
            None => policy.backoff(Backoff::default()),
        }
    }

    /// Classifies an error whose consequence the handler did not decide itself.
    pub(super) fn classified(&self, error: TaskError) -> TaskError {
        let (Disposition::Failed, Some(classify)) = (error.disposition, &self.classify) else { return error };
        let class =
            catch_panic("the error classifier", || classify.classify(&error)).unwrap_or(ErrorClass::Retry);
        TaskError { disposition: class.disposition(), ..error }
    }
}

/// Calls a user's function. Returns `None` if it panicked: a panic must not end the processing of the delivery.
fn catch_panic<T>(name: &str, function: impl FnOnce() -> T) -> Option<T> {
    // Unwind safe: only the user's own state may be left inconsistent.
    let result = catch_unwind(AssertUnwindSafe(function));
    if result.is_err() {
        tracing::error!("{name} of a task panicked: the default is used");
    }
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_panics_is_replaced_by_the_default() {
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
