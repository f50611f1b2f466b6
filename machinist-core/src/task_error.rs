//! A handler's error: the attempt failed, and what follows from that.
//!
//! A task that fails is no error of the worker. What a handler says by [`TaskError`] becomes an outcome of its attempt
//! and is recorded.

use std::{fmt, time::Duration};

use machinist_adapter::error::{BoxError, chain};

use crate::consequence::{Disposition, ErrorClass, TaskFailure};

/// A handler's *no*: the attempt failed, and what should follow from that.
///
/// Any error turns into one with `?`, and then counts as an ordinary failure: it is tried again as the retry
/// policy says. [`permanent`](Self::permanent) and [`retry_in`](Self::retry_in) say something else, and so does your error
/// type if it implements [`TaskFailure`].
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
    /// `true` if another worker should run the next attempt.
    pub(crate) elsewhere: bool,
}

impl TaskError {
    /// An ordinary failure: tried again as the retry policy says.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskError, worker::ErrorClass};
    ///
    /// let error = TaskError::new("the shop does not answer");
    /// assert_eq!(error.class(), ErrorClass::Retry);
    /// ```
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self::with(Disposition::Failed, error)
    }

    /// A failure that trying again cannot mend: the task ends in FAILURE now, whatever retries are left.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskError, worker::ErrorClass};
    ///
    /// let error = TaskError::permanent("there is no such customer");
    /// assert_eq!(error.class(), ErrorClass::Permanent);
    /// ```
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self::with(Disposition::Permanent, error)
    }

    /// A failure whose consequence its type says. See [`TaskFailure`].
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskError, worker::TaskFailure};
    ///
    /// fn failed<E: std::error::Error + TaskFailure + Send + Sync + 'static>(error: E) -> Result<(), TaskError> {
    ///     Err(error).map_err(TaskError::of)
    /// }
    /// ```
    pub fn of<E: TaskFailure + Into<BoxError>>(error: E) -> Self {
        Self::with(error.class().disposition(), error)
    }

    /// Not now: run the task again after `delay`.
    ///
    /// This spends none of the retries; a separate cap on postponements
    /// ([`RetryPolicy::max_postponements`](crate::RetryPolicy::max_postponements)) stops an endless loop.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskError, worker::ErrorClass};
    /// use std::time::Duration;
    ///
    /// let error = TaskError::retry_in(Duration::from_secs(30)).because("the export is not ready");
    /// assert_eq!(error.class(), ErrorClass::Postpone(Duration::from_secs(30)));
    /// assert_eq!(error.to_string(), "the export is not ready");
    /// ```
    #[doc(alias = "ErrRetryTaskLater")]
    pub fn retry_in(delay: Duration) -> Self {
        Self::with(Disposition::RetryIn(delay), "the task asked to be run later")
    }

    /// Not now, and none of the tasks that share the rate limit: a service asked for a pause, as HTTP 429 with `Retry-After`
    /// does. The task runs again after `delay`, as with [`retry_in`](Self::retry_in), and no task of the same limit and key
    /// starts before that. Without a rate limit it is the same as `retry_in`.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::TaskError;
    /// use std::time::Duration;
    ///
    /// fn check(status: u16, retry_after: u64) -> Result<(), TaskError> {
    ///     match status {
    ///         429 => Err(TaskError::rate_limited(Duration::from_secs(retry_after))),
    ///         _ => Ok(()),
    ///     }
    /// }
    /// ```
    pub fn rate_limited(delay: Duration) -> Self {
        Self::with(Disposition::RateLimited(delay), "the rate limit of a service was reached")
    }

    /// The arguments do not fit the handler: FAILURE/malformed, never tried again.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::TaskError;
    ///
    /// fn user_of(address: &str) -> Result<&str, TaskError> {
    ///     let (user, _host) = address.split_once('@').ok_or_else(|| TaskError::malformed("an address has an @"))?;
    ///     Ok(user)
    /// }
    /// # assert!(user_of("ada").is_err());
    /// ```
    pub fn malformed(error: impl Into<BoxError>) -> Self {
        Self::with(Disposition::Malformed, error)
    }

    /// Leaves the next attempt to another worker: something is wrong with this one, such as a full disk.
    ///
    /// This worker refuses the task for some seconds, about one second at a time. If no other worker has taken it by then, it runs
    /// here again. How the error counts, and when the next attempt is due, does not change.
    ///
    /// ```
    /// use machinist_core::TaskError;
    ///
    /// fn no_space(error: std::io::Error) -> TaskError {
    ///     TaskError::new(error).elsewhere()
    /// }
    /// ```
    #[must_use]
    pub fn elsewhere(self) -> Self {
        Self { elsewhere: true, ..self }
    }

    fn with(disposition: Disposition, error: impl Into<BoxError>) -> Self {
        Self { disposition, error: error.into(), elsewhere: false }
    }

    /// Says why, keeping what should follow: `TaskError::retry_in(delay).because(error)`.
    #[must_use]
    pub fn because(self, error: impl Into<BoxError>) -> Self {
        Self { error: error.into(), ..self }
    }

    /// Returns what follows from it, as far as the handler has said: for tests of handlers. A classifier of the task decides
    /// over [`ErrorClass::Retry`].
    pub fn class(&self) -> ErrorClass {
        match self.disposition {
            Disposition::Failed => ErrorClass::Retry,
            Disposition::Permanent | Disposition::Malformed => ErrorClass::Permanent,
            Disposition::RetryAfter(delay) => ErrorClass::RetryAfter(delay),
            Disposition::RetryIn(delay) => ErrorClass::Postpone(delay),
            Disposition::RateLimited(delay) => ErrorClass::RateLimited(delay),
        }
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
