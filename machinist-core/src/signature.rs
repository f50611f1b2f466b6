//! A signature: one invocation of a task, ready to be sent.
//!
//! It names the task, its arguments and everything about when and how it should run. It holds no handler and no
//! connection, so producers need neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    time::Duration,
};

use serde_json::Value;

use crate::{
    affinity::{completed, requiring},
    args::{Arg, Results},
    clock::Timestamp,
    definition::DefinedOptions,
    flow::Flow,
    id::{InvalidName, QueueName, TaskId},
    instant::IntoInstant,
    limit::LimitKey,
    retry::{Backoff, RetryPolicy},
    tag::{MAX_TAGS, Tag},
    unique::Unique,
    wire::{Body, Envelope},
};

/// One invocation of a task; `R` is what its result will be read as.
///
/// [`TaskDef::call`](crate::TaskDef::call) makes one whose arguments the compiler has checked;
/// [`Signature::new`] is the untyped door, for tasks written in other languages. Names are checked when it is
/// sent. A signature keeps its id, so sending the same one again never makes a second task.
///
/// # Examples
/// ```
/// use machinist_core::Signature;
/// use std::time::Duration;
///
/// let signature = Signature::new("resize").arg("cat.png").arg(640).queue("images").retries(3)
///     .countdown(Duration::from_secs(10));
/// assert_eq!(signature.name(), "resize");
/// ```
#[must_use = "a signature does nothing until it is sent"]
pub struct Signature<R = Results> {
    pub(crate) parts: SignatureParts,
    result: PhantomData<fn() -> R>,
}

/// A signature without the type of its result.
#[derive(Debug, Clone)]
pub(crate) struct SignatureParts {
    pub(crate) id: TaskId,
    pub(crate) name: String,
    pub(crate) args: Vec<Arg>,
    pub(crate) queue: Option<String>,
    /// Tags that a worker must have.
    pub(crate) requires: BTreeSet<Tag>,
    pub(crate) when: When,
    pub(crate) expires: Option<When>,
    pub(crate) retry: Option<RetryPolicy>,
    /// Policy of the definition, for the parts that `retry` does not set.
    pub(crate) defined_retry: Option<RetryPolicy>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) soft_timeout: Option<Duration>,
    pub(crate) priority: Option<u8>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Steps that follow it, if it begins a workflow.
    pub(crate) flow: Option<Box<Flow>>,
    pub(crate) limit_key: Option<String>,
    /// Template of the definition for the key of its limits, where `limit_key` is not set.
    pub(crate) limit_template: Option<LimitKey>,
    pub(crate) limit_cost: Option<u32>,
    /// Key of its share of a fair queue, if its sender has chosen it.
    pub(crate) fair_key: Option<String>,
    pub(crate) unique: Option<Unique>,
    /// The task is sent only if a live worker can run it.
    pub(crate) require_worker: bool,
    /// Reason that it cannot be sent: an argument without a form on the wire.
    pub(crate) unsendable: Option<String>,
}

impl SignatureParts {
    /// Returns the name of its queue, with the tags that it requires; without a queue, that of the default is still to be
    /// added.
    pub(crate) fn queue_text(&self) -> String {
        let queue = self.queue.as_deref().unwrap_or_default();
        requiring(queue, self.requires.iter().map(Tag::as_str))
    }

    /// Returns the reason that only a client can send it, and no worker in the course of a workflow, a run or a schedule.
    pub(crate) fn for_clients_alone(&self) -> Option<&'static str> {
        if self.unique.is_some() {
            return Some(
                "its task is unique, and only a client checks the key: leave the rule out (`not_unique()` drops that of a \
                 definition), or send the task by itself",
            );
        }
        let why = "its task requires a live worker, and only a client looks for one: leave it out";
        self.require_worker.then_some(why)
    }

    /// Returns the key of its limits, if the call or the definition says how to find it.
    pub(crate) fn key_of_limits(&self) -> Option<String> {
        let made = || self.limit_template.as_ref().map(|template| template.of(&self.args, &self.headers));
        self.limit_key.clone().or_else(made)
    }

    /// Returns the queue to which it is sent.
    pub(crate) fn queue_name(&self, default: &QueueName) -> Result<QueueName, InvalidName> {
        QueueName::parse(&completed(&self.queue_text(), default.as_str()))
    }
}

/// An instant, or a while from the moment of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    At(Timestamp),
    In(Duration),
}

impl When {
    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(instant) => instant,
            Self::In(while_) => now.plus(while_),
        }
    }
}

impl Signature {
    /// An invocation of the task `name`, without arguments yet; its results are read as they come.
    pub fn new(name: impl Into<String>) -> Self {
        Self::typed(name.into(), Vec::new())
    }
}

impl Signature {
    /// Creates a signature of the call of another task.
    pub(crate) fn of_call(envelope: &Envelope, body: Body) -> Self {
        let (timeout, soft_timeout) = (body.timeout(), body.soft_timeout());
        let mut signature = Self::typed(envelope.name.to_string(), body.args);
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        signature.parts = SignatureParts {
            queue: Some(envelope.queue.to_string()),
            retry: body.retry,
            timeout,
            soft_timeout,
            priority: envelope.priority,
            headers: body.headers,
            labels: envelope.pairs.labels().map(owned).collect(),
            limit_key: body.limit_key,
            limit_cost: body.limit_cost,
            ..signature.parts
        };
        signature
    }
}

impl<R> Signature<R> {
    /// Replaces an argument: the one of this name, or the one at this position, counted from 0.
    ///
    /// # Errors
    /// There is no such argument: the names and the number of those that there are.
    pub fn replace_arg(mut self, which: &str, value: impl Into<Value>) -> Result<Self, String> {
        let args = &mut self.parts.args;
        let position = which.parse::<usize>().ok();
        let by_position = || args.iter().filter(|arg| arg.name.is_empty()).count();
        let found = match args.iter().position(|arg| arg.name == which && !which.is_empty()) {
            Some(found) => Some(found),
            None => position.and_then(|position| {
                let mut unnamed = args.iter().enumerate().filter(|(_, arg)| arg.name.is_empty());
                unnamed.nth(position).map(|(found, _)| found)
            }),
        };
        let Some(found) = found else {
            let names: Vec<_> =
                args.iter().filter(|arg| !arg.name.is_empty()).map(|arg| arg.name.as_str()).collect();
            let named = if names.is_empty() { "none with a name".to_owned() } else { names.join(", ") };
            return Err(format!(
                "there is no argument {which:?}; the task has {} by position, counted from 0, and {named}",
                by_position()
            ));
        };
        let name = std::mem::take(&mut args[found].name);
        args[found] = Arg { name, ..Arg::from_value(value) };
        Ok(self)
    }

    pub(crate) fn typed(name: String, args: Vec<Arg>) -> Self {
        let parts = SignatureParts {
            id: TaskId::fresh(),
            name,
            args,
            queue: None,
            requires: BTreeSet::new(),
            when: When::In(Duration::ZERO),
            expires: None,
            retry: None,
            defined_retry: None,
            timeout: None,
            soft_timeout: None,
            priority: None,
            headers: BTreeMap::new(),
            labels: BTreeMap::new(),
            flow: None,
            limit_key: None,
            limit_template: None,
            limit_cost: None,
            fair_key: None,
            unique: None,
            require_worker: false,
            unsendable: None,
        };
        Self { parts, result: PhantomData }
    }

    /// Takes over the options of the definition that a sender uses.
    pub(crate) fn defined(mut self, options: &DefinedOptions) -> Self {
        self.parts.queue = options.queue.map(str::to_owned);
        self = self.requires(options.requires.iter().copied());
        self.parts.priority = options.priority;
        self.parts.expires = options.expires_in.map(When::In);
        self.parts.defined_retry = options.retry_policy();
        self.parts.limit_cost = options.limit_cost;
        match options.limit_key.map(LimitKey::template).transpose() {
            Ok(template) => self.parts.limit_template = template,
            Err(why) => self.parts.unsendable = Some(format!("limit_key of its definition: {why}")),
        }
        match options.unique_rule() {
            Ok(rule) => self.parts.unique = rule,
            Err(why) => self.parts.unsendable = Some(format!("unique_by of its definition: {why}")),
        }
        self
    }

    /// Returns the retry policy of this call. It begins as that of the definition.
    fn retry(&mut self) -> &mut RetryPolicy {
        let defined = &self.parts.defined_retry;
        self.parts.retry.get_or_insert_with(|| defined.clone().unwrap_or_default())
    }

    /// A signature that sending will refuse, and why.
    pub(crate) fn unsendable(name: String, why: String) -> Self {
        let mut signature = Self::typed(name, Vec::new());
        signature.parts.unsendable = Some(why);
        signature
    }

    /// The task's id, made with the signature.
    pub fn id(&self) -> &TaskId {
        &self.parts.id
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// Adds an argument after the others. Its type name is told from the value: `int64`, `uint64`, `float64`,
    /// `string`, `bool`, else `json`.
    pub fn arg(self, value: impl Into<Value>) -> Self {
        self.named_arg("", value)
    }

    /// Adds an argument with a name, for tasks that take them by name (command tasks).
    pub fn named_arg(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.parts.args.push(Arg { name: name.into(), ..Arg::from_value(value) });
        self
    }

    /// Gives it an id of your choice. Two signatures of one id are one task. The id must not contain `!` or `+`, which mark
    /// the ids that machinist derives from it.
    pub fn with_id(mut self, id: TaskId) -> Self {
        self.parts.id = id;
        self
    }

    /// Sends it to this queue instead of the application's default queue.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.parts.queue = Some(queue.into());
        self
    }

    /// Lets only workers with all these tags run it, in place of those of the definition. It goes to a separate queue:
    /// with the queue `render` and the tags `gpu` and `zone:eu`, to `render+gpu+zone:eu`. A worker of `render` with the
    /// tags consumes that queue within 10 s of its first use. Without such a worker, the task waits.
    pub fn requires<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.parts.requires.clear();
        for tag in tags {
            match Tag::parse(&tag.into()) {
                Ok(tag) => drop(self.parts.requires.insert(tag)),
                Err(wrong) => self.parts.unsendable = Some(wrong.to_string()),
            }
        }
        let number = self.parts.requires.len();
        if number > MAX_TAGS {
            let why = format!("it requires {number} tags, and a worker has at most {MAX_TAGS}");
            self.parts.unsendable = Some(why);
        }
        self
    }

    /// Returns the queue to which it is sent, with the tags that it requires, where `default` is the application's default
    /// queue.
    ///
    /// # Errors
    /// [`InvalidName`]: no queue can be called so.
    pub fn queue_name(&self, default: &QueueName) -> Result<QueueName, InvalidName> {
        self.parts.queue_name(default)
    }

    /// Runs it no earlier than a while after it is sent.
    pub fn countdown(mut self, while_: Duration) -> Self {
        self.parts.when = When::In(while_);
        self
    }

    /// Runs it no earlier than at an instant of backend time. Text that is not an instant is reported when the signature is
    /// sent. See [`IntoInstant`].
    ///
    /// # Examples
    /// ```
    /// use machinist_core::Signature;
    /// use std::time::{Duration, SystemTime};
    ///
    /// let signature = Signature::new("report").eta("2026-12-01T03:00:00+01:00");
    /// let signature = Signature::new("report").eta(SystemTime::now() + Duration::from_secs(3600));
    /// ```
    pub fn eta(mut self, instant: impl IntoInstant) -> Self {
        match instant.into_instant() {
            Ok(instant) => self.parts.when = When::At(instant),
            Err(why) => self.parts.unsendable = Some(format!("its ETA: {why}")),
        }
        self
    }

    /// Never starts it later than a while after it is sent: FAILURE/expired instead.
    pub fn expires_in(mut self, while_: Duration) -> Self {
        self.parts.expires = Some(When::In(while_));
        self
    }

    /// Never starts it later than an instant of backend time: FAILURE/expired instead. See [`IntoInstant`].
    pub fn expires_at(mut self, instant: impl IntoInstant) -> Self {
        match instant.into_instant() {
            Ok(instant) => self.parts.expires = Some(When::At(instant)),
            Err(why) => self.parts.unsendable = Some(format!("its expiry: {why}")),
        }
        self
    }

    /// Tries it again up to so many times when it fails, instead of as its worker would.
    pub fn retries(mut self, max_retries: u32) -> Self {
        self.retry().max_retries = max_retries;
        self
    }

    /// Waits so before a retry, instead of as its worker would.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.retry().backoff = backoff;
        self
    }

    /// The whole retry policy at once, instead of its worker's.
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.parts.retry = Some(policy);
        self
    }

    /// Tries it again when it fails, however often, but begins no retry later than `limit` after it was due (its
    /// ETA, or when it was sent).
    pub fn retry_for(mut self, limit: Duration) -> Self {
        self.retry().bound_by_time(limit);
        self
    }

    /// Tries it again, too, when a run was ended by a time limit.
    pub fn retry_timeouts(mut self) -> Self {
        self.retry().retry_timeouts = true;
        self
    }

    /// Ends a run that takes longer than this: FAILURE/timeout, or another run where the retry policy
    /// [says so](RetryPolicy::retry_timeouts).
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.parts.timeout = Some(limit);
        self
    }

    /// Fires the cancellation token of a run that takes longer than this, so that its handler can end by itself.
    pub fn soft_timeout(mut self, limit: Duration) -> Self {
        self.parts.soft_timeout = Some(limit);
        self
    }

    /// 0 to 9; a larger one is delivered sooner where broker and queue can.
    pub fn priority(mut self, priority: u8) -> Self {
        self.parts.priority = Some(priority);
        self
    }

    /// Adds a header: text that travels with the task and that its handler can read.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.parts.headers.insert(name.into(), value.into());
        self
    }

    /// Adds a label: a short text that can be read without the body, such as a team or a tenant. Up to 8 labels, with keys
    /// of up to 32 letters, digits, `.`, `_` or `-`, and values of up to 128 bytes; checked when the signature is sent.
    ///
    /// Labels stay readable when arguments are encrypted. A task with labels is of wire version 2: a worker of an
    /// earlier version leaves it to newer ones.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.parts.labels.insert(key.into(), value.into());
        self
    }

    /// Sets the key of its [limits](crate::limit), in place of the one that workers make of its arguments: tasks with one key
    /// share a limit that has keys.
    pub fn limit_key(mut self, key: impl Into<String>) -> Self {
        self.parts.limit_key = Some(key.into());
        self
    }

    /// Sets the key by which it has a share of a [fair queue](crate::AppBuilder::fair_queue), such as a tenant, in place of the
    /// one that the queue makes of its arguments. It has no effect on a queue without shares.
    pub fn fair_key(mut self, key: impl Into<String>) -> Self {
        self.parts.fair_key = Some(key.into());
        self
    }

    /// Sets the number of starts for which it counts in its [limits](crate::limit) of rate, 1 to 1,000,000, in place of the
    /// cost that the limit has for all tasks.
    pub fn limit_cost(mut self, starts: u32) -> Self {
        self.parts.limit_cost = Some(starts);
        self
    }

    /// Sends it only if no other task has its key, as the rule says. A workflow and its steps, a spawned task and a periodic
    /// task cannot be unique: sending them fails.
    pub fn unique(mut self, rule: Unique) -> Self {
        self.parts.unique = Some(rule);
        self
    }

    /// Sends it whatever else has its key: the rule of the definition for unique tasks does not hold. A step of a workflow, a
    /// spawned task and a periodic task need this where their definition has such a rule.
    pub fn not_unique(mut self) -> Self {
        self.parts.unique = None;
        self
    }

    /// Sends it only if a live worker consumes its queue and knows its task. Otherwise nothing is sent, and the task ends in
    /// FAILURE/no_worker. A paused worker counts, a draining one does not.
    pub fn require_worker(mut self) -> Self {
        self.parts.require_worker = true;
        self
    }

    /// Forgets what the result will be read as, so that signatures of different tasks fit into one batch.
    pub fn untyped(self) -> Signature {
        Signature { parts: self.parts, result: PhantomData }
    }
}

impl<R> Clone for Signature<R> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone(), result: PhantomData }
    }
}

/// Arguments are not printed: they belong to the user, and logs do not.
impl<R> fmt::Debug for Signature<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signature")
            .field("id", &self.parts.id)
            .field("name", &self.parts.name)
            .field("args", &self.parts.args.len())
            .finish_non_exhaustive()
    }
}
