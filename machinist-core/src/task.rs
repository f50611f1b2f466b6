//! The typed name of a task: what producer and worker share.

use std::{fmt, marker::PhantomData, time::Duration};

use crate::{
    args::{ArgInfo, ArgList, FromResults, IntoArgs, IntoResults, TaskShape},
    definition::DefinedOptions,
    retry::Backoff,
    signature::Signature,
    unique::Unique,
};

/// A task's name together with the types of its arguments and of what it returns.
///
/// It is a `const` in a place that both the producer and the worker can see; it holds no code. The producer makes
/// signatures from it, the worker registers a handler for it, and the compiler checks both against the same types.
///
/// `A` is `()`, one type, or a tuple of up to eight types that travel (see [`WireArg`](crate::args::WireArg)); the
/// last one may be [`Rest`](crate::Rest). `R` is `()`, one type, or a tuple: several results. (Clippy may find a long
/// list too complex a type: `#[allow(clippy::type_complexity)]`, or one [`Json`](crate::Json) of a struct.)
///
/// # Examples
/// ```
/// use machinist_core::{Json, Rest, TaskDef};
/// # #[derive(serde::Serialize, serde::Deserialize)] pub struct Options { width: u32 }
///
/// pub const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// pub const GREET: TaskDef<String, ()> = TaskDef::new("greet");
/// pub const RESIZE: TaskDef<(String, Json<Options>), (u32, u32)> = TaskDef::new("resize");
/// pub const SUM: TaskDef<Rest<i64>, i64> = TaskDef::new("sum");
/// pub const CLEAN_UP: TaskDef<(), u64> = TaskDef::new("clean_up");
///
/// let signature = ADD.call((2, 3)).retries(5);
/// let signature = GREET.call("Ada");
/// let signature = RESIZE.call(("cat.png", Json(Options { width: 640 })));
/// let signature = SUM.call(vec![1, 2, 3]);
/// let signature = CLEAN_UP.call(());
/// ```
///
/// A definition can also hold options. The sender uses the queue, the priority, the expiry, the keys and the rule for unique
/// tasks; the worker uses the retry policy and the time limits. A call and the settings of a worker override them: see `docs/options.md`.
/// ```
/// use machinist_core::{Backoff, TaskDef};
/// use std::time::Duration;
///
/// pub const MAIL: TaskDef<String, ()> = TaskDef::new("send_mail")
///     .queue("mail")
///     .retries(5)
///     .backoff(Backoff::fixed(Duration::from_secs(30)))
///     .timeout(Duration::from_secs(60));
///
/// let signature = MAIL.call("ada@example.org").queue("urgent_mail");
/// ```
pub struct TaskDef<A, R> {
    name: &'static str,
    options: DefinedOptions,
    /// Names of the types of its arguments and results.
    arg_types: fn() -> Vec<String>,
    result_types: fn() -> Option<Vec<&'static str>>,
    types: PhantomData<fn(A) -> R>,
}

impl<A: ArgList, R: IntoResults + FromResults> TaskDef<A, R> {
    /// The task `name`. The name is checked when the task is registered or sent.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            options: DefinedOptions::NONE,
            arg_types: A::type_names,
            result_types: R::type_names,
            types: PhantomData,
        }
    }
}

impl<A, R> TaskDef<A, R> {
    /// The name.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Sends the task to this queue instead of the application's default queue. A worker that registers the task consumes
    /// the queue, unless its queues are set.
    pub const fn queue(mut self, queue: &'static str) -> Self {
        self.options.queue = Some(queue);
        self
    }

    /// Lets only workers with all these tags run the task. See [`Signature::requires`].
    pub const fn requires(mut self, tags: &'static [&'static str]) -> Self {
        self.options.requires = tags;
        self
    }

    /// Tries the task again up to so many times when it fails.
    pub const fn retries(mut self, max_retries: u32) -> Self {
        self.options = self.options.retries(max_retries);
        self
    }

    /// Sets the wait before a retry.
    ///
    /// # Panics
    /// If it is a list, which [`backoff_list`](Self::backoff_list) takes. In a `const` that is an error of the compiler.
    pub const fn backoff(mut self, backoff: Backoff) -> Self {
        self.options = self.options.backoff(backoff);
        self
    }

    /// Sets the waits before the first retry, the second, and so on; the last one holds for every later retry.
    pub const fn backoff_list(mut self, waits: &'static [Duration]) -> Self {
        self.options = self.options.backoff_list(waits);
        self
    }

    /// Begins no retry later than `limit` after the task was due. Without [`retries`](Self::retries) only the time bounds
    /// the retries.
    pub const fn retry_for(mut self, limit: Duration) -> Self {
        self.options = self.options.retry_for(limit);
        self
    }

    /// Also tries the task again when a time limit ended the run.
    pub const fn retry_timeouts(mut self) -> Self {
        self.options = self.options.retry_timeouts();
        self
    }

    /// Sets the maximum number of postponements ([`TaskError::retry_in`](crate::TaskError::retry_in)).
    pub const fn max_postponements(mut self, postponements: u32) -> Self {
        self.options = self.options.postponements(postponements);
        self
    }

    /// Ends a run that takes longer than this.
    pub const fn timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// Fires the cancellation token of a run that takes longer than this, so that its handler can end by itself.
    pub const fn soft_timeout(mut self, limit: Duration) -> Self {
        self.options.soft_timeout = Some(limit);
        self
    }

    /// Sets the priority, 0 to 9; a task of a larger one is delivered sooner where broker and queue can.
    pub const fn priority(mut self, priority: u8) -> Self {
        self.options.priority = Some(priority);
        self
    }

    /// Never starts the task later than so long after it is sent: FAILURE/expired instead.
    pub const fn expires_in(mut self, while_: Duration) -> Self {
        self.options.expires_in = Some(while_);
        self
    }

    /// Makes the key of its [limits](crate::limit) of arguments and headers, such as `{0}`, `{name}` or `{header:NAME}`. The
    /// sender makes it of the arguments that it sends; for a step of a workflow, the worker makes the key as its limit says.
    /// A wrong template is reported when a signature is sent.
    pub const fn limit_key(mut self, template: &'static str) -> Self {
        self.options.limit_key = Some(template);
        self
    }

    /// Sets the number of starts for which it counts in its limits of rate. See [`Signature::limit_cost`].
    pub const fn limit_cost(mut self, starts: u32) -> Self {
        self.options.limit_cost = Some(starts);
        self
    }

    /// Allows one task for each key, which is made of all arguments, or as [`unique_by`](Self::unique_by) says. A step of a
    /// workflow, a spawned task and a periodic task cannot be unique: see [`Signature::not_unique`].
    ///
    /// # Panics
    /// If the rule has a key. In a `const` that is an error of the compiler.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskDef, Unique};
    /// use std::time::Duration;
    ///
    /// // One unfinished report for each customer; the year does not count.
    /// const REPORT: TaskDef<(String, u32), ()> = TaskDef::new("report").unique_by("{0}");
    /// // At most one reminder in an hour with the same arguments.
    /// const REMIND: TaskDef<String, ()> =
    ///     TaskDef::new("remind").unique(Unique::throttle(Duration::from_secs(3600)));
    ///
    /// let anyway = REMIND.call("anna").not_unique();
    /// ```
    pub const fn unique(mut self, rule: Unique) -> Self {
        self.options = self.options.unique(rule);
        self
    }

    /// Makes the key of unique tasks of arguments and headers, such as `{0}`, `{name}` or `{header:NAME}`. Without
    /// [`unique`](Self::unique) there is one unfinished task for each key, and sending another returns it.
    pub const fn unique_by(mut self, template: &'static str) -> Self {
        self.options = self.options.unique_by(template);
        self
    }

    /// Returns the types of its arguments and results.
    pub(crate) fn shape(&self) -> TaskShape {
        let args = (self.arg_types)().into_iter().map(ArgInfo::of_type).collect();
        let results = (self.result_types)().map(|types| types.into_iter().map(str::to_owned).collect());
        TaskShape { args: Some(args), results }
    }

    pub(crate) const fn options(&self) -> &DefinedOptions {
        &self.options
    }

    /// An invocation with these arguments, ready to be sent: a tuple for a tuple, one value for one type; `&str`
    /// will do for a `String`, and a `Vec` for [`Rest`](crate::Rest).
    ///
    /// A value that has no form on the wire (a float that is not a number, a [`Json`](crate::Json) that does not
    /// serialize) is reported when the signature is sent.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::TaskDef;
    ///
    /// const MAIL: TaskDef<(String, u32), ()> = TaskDef::new("send_mail").queue("mail").retries(5);
    ///
    /// let signature = MAIL.call(("ada@example.org", 7)).retries(1).label("team", "shop");
    /// assert_eq!(signature.name(), "send_mail");
    /// ```
    pub fn call(self, args: impl IntoArgs<A>) -> Signature<R> {
        match args.into_args() {
            Ok(args) => Signature::typed(self.name.to_owned(), args).defined(&self.options),
            Err(misfit) => Signature::unsendable(self.name.to_owned(), misfit.to_string()),
        }
    }
}

impl<A, R> Clone for TaskDef<A, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, R> Copy for TaskDef<A, R> {}

impl<A, R> fmt::Debug for TaskDef<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TaskDef").field(&self.name).finish()
    }
}
