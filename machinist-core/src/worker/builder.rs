//! The parts of a worker, checked before it starts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, mem,
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    Health, InvalidTag, MAX_TAGS, Stages, Tag, TaskOptions, Worker,
    admissions::{Admissions, DisabledTasks},
    capacity::SlotPool,
    events::WorkerEvents,
    exclusive::ExclusiveSlots,
    lease::Lease,
    limits::Limits,
    look_ahead::LookAhead,
    order_book::{OrderBook, SetLogLevel},
    peers::Peers,
    processor::{RegisteredTask, TaskProcessor},
    revoked_roots::RevokedRoots,
    server_calls::ServerCalls,
    session::Sessions,
    worker_context::WorkerContext,
};
use crate::{
    admission::AdmissionRule,
    app::App,
    args::{Arg, Results},
    builtin::WORKFLOW_TASK,
    context::{StateMap, TaskContext},
    extract::Requirement,
    handler::{Binding, BlockingHandler, DynHandler, Handler},
    id::{QueueName, TaskName},
    limit::{Limit, LimitTarget},
    middleware::Middleware,
    periodic::{Periodic, PeriodicError},
    task::TaskDef,
};

/// RabbitMQ's default `consumer_timeout`.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Default time for which running handlers may continue when the worker is told to stop.
const DEFAULT_GRACE: Duration = Duration::from_secs(20);

/// Error of a worker that cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A queue or task name is not allowed.
    #[error(transparent)]
    Name(#[from] crate::id::InvalidName),
    /// Two handlers were registered for one name.
    #[error("task {0:?} is registered twice")]
    Twice(String),
    /// Options were given for a task that was not registered.
    #[error("options were given for task {0:?}, which is not registered")]
    NoSuchTask(String),
    /// A handler asks for a `State<T>` that was not registered: add `.state(value)` to the builder.
    #[error("task {task:?} takes State<{missing}>, which was not registered: add .state(…) of that type")]
    MissingState {
        /// The task.
        task: String,
        /// The type of the missing value.
        missing: &'static str,
    },
    /// The application's key cannot sign what this worker would publish again: retries, guards.
    #[error(
        "a worker signs the retries of its tasks, but it cannot sign those of {task:?} in queue {queue}: {why}"
    )]
    Key {
        /// The task.
        task: String,
        /// The queue.
        queue: QueueName,
        /// Reason that the key cannot sign, and the remedy.
        why: String,
    },
    /// A periodic task cannot be followed.
    #[error(transparent)]
    Periodic(#[from] PeriodicError),
    /// Two periodic tasks have one name.
    #[error("periodic task {0:?} is defined twice; rename one")]
    PeriodicTwice(String),
    /// A text is not allowed as a tag.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// The worker has more tags than a listing shows.
    #[error("a worker has at most {MAX_TAGS} tags, and these are {0}")]
    TooManyTags(usize),
    /// A limit contradicts itself.
    #[error("the limit of {target} is wrong: {why}")]
    Limit {
        /// The task or the queue.
        target: LimitTarget,
        /// The contradiction and the remedy.
        why: String,
    },
    /// A number that must not be zero is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

/// Change of a task's options, if there is such a task.
type AdjustOptions = Box<dyn FnOnce(Option<&mut TaskOptions>) + Send>;

/// Builds a [`Worker`]. [`build`](Self::build) checks everything.
#[must_use]
pub struct WorkerBuilder {
    app: App,
    name: Option<String>,
    queues: Vec<String>,
    tags: Vec<String>,
    concurrency: usize,
    look_ahead: Option<usize>,
    keep_args: bool,
    grace: Duration,
    lease: Lease,
    consumer_timeout: Duration,
    restart_exit_code: Option<u8>,
    set_log_level: Option<SetLogLevel>,
    tasks: Vec<(String, Arc<dyn DynHandler>, Vec<Requirement>)>,
    options: Vec<(String, TaskOptions)>,
    adjustments: Vec<(String, AdjustOptions)>,
    middleware: Vec<Arc<dyn Middleware>>,
    rules: Vec<Arc<dyn AdmissionRule>>,
    queue_limits: Vec<(String, Limit)>,
    periodic: Vec<Periodic>,
    state: StateMap,
}

impl WorkerBuilder {
    pub(super) fn new(app: App) -> Self {
        Self {
            app,
            name: None,
            queues: Vec::new(),
            tags: Vec::new(),
            concurrency: 16,
            look_ahead: None,
            keep_args: false,
            grace: DEFAULT_GRACE,
            lease: Lease::DEFAULT,
            consumer_timeout: CONSUMER_TIMEOUT,
            restart_exit_code: None,
            set_log_level: None,
            tasks: Vec::new(),
            options: Vec::new(),
            adjustments: Vec::new(),
            middleware: Vec::new(),
            rules: Vec::new(),
            queue_limits: Vec::new(),
            periodic: Vec::new(),
            state: StateMap::default(),
        }
    }

    /// Name of the worker in records and listings; the host name unless set. A second live process
    /// of one name is listed as `NAME#2`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a queue from which the worker takes tasks. Without any, it takes tasks from the application's default queue.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queues.push(queue.into());
        self
    }

    /// Adds tags, at most 16 in all: words like `gpu` or `zone:eu` that are shown with the worker. See [`Tag`].
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Maximum number of handlers that run at once; 16 unless set.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// Maximum number of deliveries that are held in addition to those that run, so that a free slot finds work. Unless
    /// set, it is the number of handlers that run at once, but at least 16.
    ///
    /// The worker holds that many only while runs are short. As soon as a delivery has waited for 2 s for a slot, all
    /// that wait go back to the broker, and the worker takes what it has slots for until its runs are short again.
    pub fn look_ahead(mut self, deliveries: usize) -> Self {
        self.look_ahead = Some(deliveries);
        self
    }

    /// Sets whether the records of tasks keep their arguments for people, where the
    /// [options](TaskOptions::keep_args) of a task do not say. Default: `false`.
    pub fn keep_args(mut self, kept: bool) -> Self {
        self.keep_args = kept;
        self
    }

    /// Time for which running handlers may continue when the worker is told to stop; 20 s unless set.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Time for which this worker counts as alive without renewing its session; 15 s unless set. Other workers take over
    /// its tasks about one and a half times this duration after its death.
    pub fn session_lease(mut self, lease: Duration) -> Self {
        self.lease = Lease::new(lease);
        self
    }

    /// Maximum time for which the broker lets a delivery stay unacknowledged (RabbitMQ's `consumer_timeout`); 30 minutes
    /// unless set, which is RabbitMQ's default. After half of it a copy of the message that comes back later replaces
    /// the delivery, so a task may run for days.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.consumer_timeout = timeout;
        self
    }

    /// Exit code with which the program ends so that its supervisor starts it again. Unless it is set, orders to restart are
    /// refused. A worker that was ordered to restart returns it in [`Drained`](super::Drained), and the program has to exit
    /// with it.
    pub fn restart_exit_code(mut self, code: u8) -> Self {
        self.restart_exit_code = Some(code);
        self
    }

    /// Sets the function by which an order changes the log level of the program. Unless it is set, such orders are refused.
    /// Its error is the answer to the order.
    pub fn set_log_level(mut self, set: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.set_log_level = Some(Arc::new(set));
        self
    }

    /// Registers an `async fn` that runs a task. A function that does not fit the task's definition does not compile.
    pub fn task<A, R, Via, H>(self, def: TaskDef<A, R>, handler: H) -> Self
    where
        H: Handler<Via, A, R>,
    {
        self.bind(Binding::new(def, handler))
    }

    /// Registers a function that blocks its thread; it runs on tokio's pool of blocking threads.
    pub fn task_blocking<A, R, Via, H>(self, def: TaskDef<A, R>, handler: H) -> Self
    where
        H: BlockingHandler<Via, A, R>,
    {
        self.bind(Binding::blocking(def, handler))
    }

    /// Registers a handler that was bound to its task elsewhere.
    pub fn bind(self, binding: Binding) -> Self {
        self.register(binding.name.to_owned(), binding.handler, binding.requires)
    }

    /// Registers a handler whose arguments are not known to the compiler.
    pub fn task_dyn(self, name: impl Into<String>, handler: impl DynHandler) -> Self {
        self.register(name.into(), Arc::new(handler), Vec::new())
    }

    /// Adds a rule of admission. A task starts only when no rule refuses it; until then it is parked.
    pub fn admission(mut self, rule: impl AdmissionRule) -> Self {
        self.rules.push(Arc::new(rule));
        self
    }

    /// Limits the starts and runs of a queue's tasks in all workers together, in addition to the limits of each task. A
    /// limit that was set live wins over this one.
    pub fn limit_queue(mut self, queue: impl Into<String>, limit: Limit) -> Self {
        self.queue_limits.push((queue.into(), limit));
        self
    }

    /// Adds a periodic task. This worker, or another one with the same definition, sends its ticks; the queue and the workers
    /// that run them are those of its signature.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{Signature, WorkerBuilder, periodic::{Periodic, PeriodicError, Schedule}};
    ///
    /// fn with_nightly_report(worker: WorkerBuilder) -> Result<WorkerBuilder, PeriodicError> {
    ///     let schedule = Schedule::cron("0 3 * * *")?.time_zone("Europe/Berlin")?;
    ///     Ok(worker.periodic(Periodic::new("nightly", schedule, Signature::new("report"))?))
    /// }
    /// ```
    pub fn periodic(mut self, periodic: Periodic) -> Self {
        self.periodic.push(periodic);
        self
    }

    /// Sets the options of a registered task. They hold for everything that the task's signature does not set.
    pub fn options(mut self, task: impl Into<String>, options: TaskOptions) -> Self {
        self.options.push((task.into(), options));
        self
    }

    /// Changes the options of a task when the worker is built, after all [`options`](Self::options). For options from a
    /// configuration, which apply whatever the code sets; `adjust` gets `None` if the task is not registered.
    pub fn adjust_options(
        mut self,
        task: impl Into<String>,
        adjust: impl FnOnce(Option<&mut TaskOptions>) + Send + 'static,
    ) -> Self {
        self.adjustments.push((task.into(), Box::new(adjust)));
        self
    }

    /// Adds a middleware around all handlers. It runs inside those that were added before.
    pub fn middleware(mut self, middleware: impl Middleware) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }

    /// Adds a value that handlers can take as `State<T>`; one for each type.
    pub fn state<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.state.insert(value);
        self
    }

    fn register(mut self, name: String, handler: Arc<dyn DynHandler>, requires: Vec<Requirement>) -> Self {
        self.tasks.push((name, handler, requires));
        self
    }

    /// Returns the registered tasks with their options.
    fn registered_tasks(&mut self) -> Result<HashMap<TaskName, RegisteredTask>, BuildError> {
        let mut tasks = HashMap::new();
        for (name, handler, requires) in mem::take(&mut self.tasks) {
            if let Some((_, missing)) = requires.iter().find(|(id, _)| !self.state.has(*id)) {
                return Err(BuildError::MissingState { task: name, missing });
            }
            let registration = RegisteredTask { handler, options: TaskOptions::default() };
            if tasks.insert(TaskName::parse(&name)?, registration).is_some() {
                return Err(BuildError::Twice(name));
            }
        }
        let handler = Arc::new(async |_cx: TaskContext, args: Vec<Arg>| Ok(Results(args)));
        let workflow = RegisteredTask { handler, options: TaskOptions::default() };
        tasks.insert(TaskName::parse(WORKFLOW_TASK)?, workflow);
        for (name, options) in mem::take(&mut self.options) {
            let task = TaskName::parse(&name)?;
            tasks.get_mut(&task).ok_or(BuildError::NoSuchTask(name))?.options = options;
        }
        for (name, adjust) in mem::take(&mut self.adjustments) {
            adjust(tasks.get_mut(&TaskName::parse(&name)?).map(|task| &mut task.options));
        }
        Ok(tasks)
    }

    /// Checks everything and builds the worker.
    ///
    /// # Errors
    /// [`BuildError`] names what is wrong.
    pub fn build(mut self) -> Result<Worker, BuildError> {
        for (setting, number) in [
            ("concurrency", self.concurrency),
            ("session_lease", self.lease.millis()),
            ("consumer_timeout", usize::try_from(self.consumer_timeout.as_millis()).unwrap_or(usize::MAX)),
        ] {
            if number == 0 {
                return Err(BuildError::Zero(setting));
            }
        }
        let mut queues =
            self.queues.iter().map(|q| QueueName::parse(q)).collect::<Result<BTreeSet<_>, _>>()?;
        if queues.is_empty() {
            queues.insert(self.app.default_queue().clone());
        }
        let mut tasks = self.registered_tasks()?;
        for task in tasks.values_mut() {
            task.options.keep_args.get_or_insert(self.keep_args);
        }
        can_sign(&self.app, &tasks, &queues)?;
        check_periodic(&self.app, &self.periodic)?;
        let tags = checked_tags(&self.tags)?;
        let limits = Arc::new(Limits::new(checked_limits(&tasks, mem::take(&mut self.queue_limits))?));
        let look_ahead = self.look_ahead.unwrap_or_else(|| self.concurrency.max(16));
        let name: Arc<str> = self.name.unwrap_or_else(default_name).into();
        let queues: Vec<_> = queues.into_iter().collect();
        let about = about(&queues, &tags, &tasks, self.concurrency, &limits, &self.app);
        let stages = Stages::default();
        let capacity = SlotPool::new(self.concurrency);
        let orders =
            OrderBook::new(self.restart_exit_code, self.set_log_level, tasks.keys().cloned().collect());
        let events = WorkerEvents::new(self.app.clone(), Arc::clone(&name));
        let disabled: Arc<DisabledTasks> = Arc::default();
        let peers = Arc::new(Peers::new(self.lease));
        let worker = Arc::new(WorkerContext {
            sessions: Sessions::new(
                self.app.clone(),
                Arc::clone(&name),
                about,
                Arc::clone(&disabled),
                Arc::clone(&limits),
                Arc::clone(&events),
                Arc::clone(&peers),
            ),
            admissions: Admissions::new(disabled, self.rules, look_ahead),
            limits,
            capacity: Arc::clone(&capacity),
            orders,
            look_ahead: LookAhead::new(self.concurrency, look_ahead),
            calls: ServerCalls::new(self.app.clone(), stages.clone(), Arc::clone(&events), peers),
            app: self.app,
            name,
            max_hold: self.consumer_timeout / 2,
            stages: stages.clone(),
            events,
            refused: crate::refused::RefusedTally::default(),
            revoked_roots: RevokedRoots::default(),
        });
        worker.sessions.presence.want_queues(queues.iter().cloned());
        let health = Health::new(Arc::clone(&worker), stages.clone());
        let processor = Arc::new(TaskProcessor {
            worker,
            tasks,
            middleware: self.middleware.into(),
            state: Arc::new(self.state),
            exclusive: ExclusiveSlots::new(capacity),
        });
        let ready = CancellationToken::new();
        let periodic = self.periodic;
        Ok(Worker { processor, queues, tags, grace: self.grace, stages, ready, health, periodic })
    }
}

/// Checks that the application's key can sign every task in every queue. A message that is published again is signed
/// again, and a worker that cannot sign it would lose it.
fn can_sign(
    app: &App,
    tasks: &HashMap<TaskName, RegisteredTask>,
    queues: &BTreeSet<QueueName>,
) -> Result<(), BuildError> {
    for (task, queue) in tasks.keys().flat_map(|task| queues.iter().map(move |queue| (task, queue))) {
        app.0.trust.may_sign(task, queue, app.clock().now()).map_err(|why| BuildError::Key {
            task: task.to_string(),
            queue: queue.clone(),
            why,
        })?;
    }
    Ok(())
}

/// Checks the periodic tasks, and that the application's key can sign their ticks.
fn check_periodic(app: &App, periodic: &[Periodic]) -> Result<(), BuildError> {
    let mut names = BTreeSet::new();
    for one in periodic {
        one.check()?;
        let outline = one.outline(app)?;
        if !names.insert(one.name()) {
            return Err(BuildError::PeriodicTwice(one.name().to_owned()));
        }
        let queue = outline.queue;
        app.may_publish(&outline.task, &queue).map_err(|why| BuildError::Key {
            task: outline.task.to_string(),
            queue,
            why,
        })?;
    }
    Ok(())
}

/// Returns the limits of the tasks and queues.
fn checked_limits(
    tasks: &HashMap<TaskName, RegisteredTask>,
    queues: Vec<(String, Limit)>,
) -> Result<HashMap<LimitTarget, Arc<Limit>>, BuildError> {
    let of_tasks = tasks
        .iter()
        .filter_map(|(name, task)| Some((LimitTarget::Task(name.clone()), task.options.limit.clone()?)));
    let of_queues = queues.into_iter().map(|(name, limit)| -> Result<_, BuildError> {
        Ok((LimitTarget::Queue(QueueName::parse(&name)?), limit))
    });
    let mut limits = HashMap::new();
    for limit in of_tasks.map(Ok).chain(of_queues) {
        let (target, limit) = limit?;
        if let Err(why) = limit.check() {
            return Err(BuildError::Limit { target, why });
        }
        if !limit.is_empty() {
            limits.insert(target, Arc::new(limit));
        }
    }
    Ok(limits)
}

/// Returns the tags, sorted and each once.
fn checked_tags(tags: &[String]) -> Result<Vec<Tag>, BuildError> {
    let tags = tags.iter().map(|tag| Tag::parse(tag)).collect::<Result<BTreeSet<_>, _>>()?;
    if tags.len() > MAX_TAGS {
        Err(BuildError::TooManyTags(tags.len()))
    } else {
        Ok(tags.into_iter().collect())
    }
}

/// Maximum number of task names that the description of a worker holds.
const DESCRIBED_TASKS: usize = 500;

/// Returns the description of the worker that is stored with its session, without its name.
fn about(
    queues: &[QueueName],
    tags: &[Tag],
    tasks: &HashMap<TaskName, RegisteredTask>,
    concurrency: usize,
    limits: &Limits,
    app: &App,
) -> serde_json::Value {
    let queues: Vec<_> = queues.iter().map(QueueName::as_str).collect();
    let tags: Vec<_> = tags.iter().map(Tag::as_str).collect();
    let mut names: Vec<_> =
        tasks.keys().map(TaskName::as_str).filter(|name| *name != WORKFLOW_TASK).collect();
    names.sort_unstable();
    names.truncate(DESCRIBED_TASKS);
    serde_json::json!({
        "host": host_name(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "queues": queues,
        "tasks": names,
        "more_tasks": tasks.len() - names.len(),
        "tags": tags,
        "concurrency": concurrency,
        "limits": limits.own().map(|(target, limit)| (target.to_string(), limit)).collect::<BTreeMap<_, _>>(),
        "since": app.clock().now(),
    })
}

/// Returns the host name, if it is known.
fn host_name() -> Option<String> {
    std::fs::read_to_string("/etc/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|host| host.trim().to_owned())
        .filter(|host| !host.is_empty())
}

/// Returns the host name, with `worker` in place of an unknown one.
fn default_name() -> String {
    host_name().unwrap_or_else(|| "worker".to_owned())
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").field("queues", &self.queues).finish_non_exhaustive()
    }
}
