//! The parts of a worker, as the code sets them.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Fleet, Gate, GateContext, RunningRole, SleepHours, TaskOptions,
    fleet::TakePart,
    gate::AskGate,
    lease::Lease,
    order_book::SetLogLevel,
    task_failure::{ClassOfType, class_of},
};
use crate::{
    admission::AdmissionRule,
    app::App,
    args::TaskShape,
    consequence::TaskFailure,
    context::StateMap,
    extract::Requirement,
    handler::{BatchHandler, Binding, BlockingHandler, DynHandler, Handler},
    limit::Limit,
    middleware::Middleware,
    periodic::Periodic,
    slot::RoleError,
    task::TaskDef,
};

/// Function that sets the defaults of a worker.
pub(super) type WorkerDefaults = Arc<dyn Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync>;

/// Task before its registration.
pub(super) struct NewTask {
    pub(super) name: String,
    pub(super) handler: Arc<dyn DynHandler>,
    pub(super) requires: Vec<Requirement>,
    pub(super) shape: TaskShape,
    pub(super) options: TaskOptions,
    /// Maximum number of tasks in a call, if the handler takes many at once.
    pub(super) batch: Option<usize>,
}

/// Change of a task's options, if there is such a task.
pub(super) type AdjustOptions = Box<dyn FnOnce(Option<&mut TaskOptions>) + Send>;

/// Builds a [`Worker`](super::Worker). [`build`](Self::build) checks everything.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use machinist_core::App;
/// # use machinist_memory::{MemoryBackend, MemoryBroker};
/// # let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build().await?;
/// use machinist_core::{State, TaskDef, TaskError, Worker};
/// use std::{sync::Arc, time::Duration};
///
/// struct Mailer;
///
/// const WELCOME: TaskDef<String, ()> = TaskDef::new("welcome");
///
/// async fn welcome(State(mailer): State<Arc<Mailer>>, address: String) -> Result<(), TaskError> {
///     # let _ = (mailer, address);
///     Ok(())
/// }
///
/// let worker = Worker::builder(&app)
///     .queue("mail")
///     .concurrency(4)
///     .grace(Duration::from_secs(60))
///     .state(Arc::new(Mailer))
///     .task(WELCOME, welcome)
///     .build()?;
/// assert_eq!(worker.tasks()[0].as_str(), "welcome");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct WorkerBuilder {
    pub(super) app: App,
    /// Defaults of the application.
    pub(super) defaults: Option<WorkerDefaults>,
    pub(super) name: Option<String>,
    pub(super) queues: Vec<String>,
    pub(super) tags: Vec<String>,
    pub(super) concurrency: Option<usize>,
    pub(super) look_ahead: Option<usize>,
    pub(super) keep_args: Option<bool>,
    pub(super) grace: Option<Duration>,
    pub(super) lease: Option<Lease>,
    pub(super) consumer_timeout: Option<Duration>,
    pub(super) restart_exit_code: Option<u8>,
    pub(super) max_tasks: Option<usize>,
    pub(super) max_memory: Option<usize>,
    pub(super) set_log_level: Option<SetLogLevel>,
    pub(super) sleep: Vec<SleepHours>,
    pub(super) gate: Option<AskGate>,
    pub(super) tasks: Vec<NewTask>,
    /// Queues of task definitions and command tasks, consumed if `queues` is empty.
    pub(super) task_queues: Vec<String>,
    pub(super) options: Vec<(String, TaskOptions)>,
    pub(super) adjustments: Vec<(String, AdjustOptions)>,
    pub(super) middleware: Vec<Arc<dyn Middleware>>,
    pub(super) failures: Vec<ClassOfType>,
    pub(super) rules: Vec<Arc<dyn AdmissionRule>>,
    pub(super) queue_limits: Vec<(String, Limit)>,
    /// Weights of queues.
    pub(super) weights: Vec<(String, u32)>,
    /// Maximum numbers of runs at once in this worker, by queue.
    pub(super) queue_concurrency: Vec<(String, usize)>,
    pub(super) strict_order: Option<bool>,
    pub(super) periodic: Vec<Periodic>,
    pub(super) roles: Vec<TakePart>,
    pub(super) state: StateMap,
}

impl WorkerBuilder {
    pub(super) fn new(app: App) -> Self {
        Self {
            defaults: app
                .0
                .worker_defaults
                .as_deref()
                .and_then(|set| set.downcast_ref::<WorkerDefaults>())
                .cloned(),
            middleware: app.0.middleware.clone(),
            app,
            name: None,
            queues: Vec::new(),
            tags: Vec::new(),
            concurrency: None,
            look_ahead: None,
            keep_args: None,
            grace: None,
            lease: None,
            consumer_timeout: None,
            restart_exit_code: None,
            max_tasks: None,
            max_memory: None,
            set_log_level: None,
            sleep: Vec::new(),
            gate: None,
            tasks: Vec::new(),
            task_queues: Vec::new(),
            options: Vec::new(),
            adjustments: Vec::new(),
            failures: Vec::new(),
            rules: Vec::new(),
            queue_limits: Vec::new(),
            weights: Vec::new(),
            queue_concurrency: Vec::new(),
            strict_order: None,
            periodic: Vec::new(),
            roles: Vec::new(),
            state: StateMap::default(),
        }
    }

    /// Name of the worker in records and listings; the host name unless set. A second live process
    /// of one name is listed as `NAME#2`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a queue from which the worker takes tasks. Without any, it takes tasks from the application's default queue and
    /// from the queues that the definitions of its tasks name.
    ///
    /// The beginning of names and a `*` stands for all queues that are called so: `tenant-*`. The worker follows them as
    /// they appear, within 10 s, and at most 500 of them.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queues.push(queue.into());
        self
    }

    /// Adds a queue that the worker consumes unless [`queue`](Self::queue) names one: the queue of a task.
    pub fn queue_of_task(mut self, queue: impl Into<String>) -> Self {
        self.task_queues.push(queue.into());
        self
    }

    /// Adds tags, at most 16 in all: words like `gpu` or `zone:eu` that are shown with the worker. See [`Tag`](super::Tag).
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Maximum number of handlers that run at once; 16 unless set.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = Some(handlers);
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
        self.keep_args = Some(kept);
        self
    }

    /// Time for which running handlers may continue when the worker is told to stop; 20 s unless set.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Time for which this worker counts as alive without renewing its session; 15 s unless set. Other workers take over
    /// its tasks about one and a half times this duration after its death.
    pub fn session_lease(mut self, lease: Duration) -> Self {
        self.lease = Some(Lease::new(lease));
        self
    }

    /// Maximum time for which the broker lets a delivery stay unacknowledged (RabbitMQ's `consumer_timeout`); 30 minutes
    /// unless set, which is RabbitMQ's default. After half of it a copy of the message that comes back later replaces
    /// the delivery, so a task may run for days.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.consumer_timeout = Some(timeout);
        self
    }

    /// Exit code with which the program ends so that its supervisor starts it again. Unless it is set, orders to restart are
    /// refused. A worker that was ordered to restart returns it in [`Drained`](super::Drained), and the program has to exit
    /// with it.
    pub fn restart_exit_code(mut self, code: u8) -> Self {
        self.restart_exit_code = Some(code);
        self
    }

    /// Number of ended tasks after which the worker drains and ends with its [exit code](Self::restart_exit_code), so that it
    /// is started again. It is looked at with each renewal of the session (a third of the lease), so a few more can end.
    pub fn max_tasks(mut self, tasks: usize) -> Self {
        self.max_tasks = Some(tasks);
        self
    }

    /// Resident memory of the process in bytes at which the worker drains and ends with its
    /// [exit code](Self::restart_exit_code), so that it is started again. It is looked at with each renewal of the session,
    /// where the system tells it (Linux).
    pub fn max_memory(mut self, bytes: usize) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Adds hours in which the worker sleeps: it unsubscribes and starts nothing, and what runs ends. They hold beside a pause,
    /// and go by the clock of the backend.
    pub fn sleep(mut self, hours: SleepHours) -> Self {
        self.sleep.push(hours);
        self
    }

    /// Sets the gate of the worker: a function that is asked before the worker subscribes, and each second after that. While
    /// it is closed, the worker is asleep and shows the reason. A gate that panics, or gives no answer in 10 s, stays as it
    /// was; before its first answer it is closed.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{WorkerBuilder, worker::{Gate, GateContext}};
    ///
    /// async fn while_mounted(_: GateContext) -> Gate {
    ///     if std::path::Path::new("/mnt/videos/ready").exists() { Gate::Open } else { Gate::closed("/mnt/videos is not mounted") }
    /// }
    ///
    /// fn gated(worker: WorkerBuilder) -> WorkerBuilder {
    ///     worker.gate(while_mounted)
    /// }
    /// ```
    pub fn gate<F, A>(mut self, gate: F) -> Self
    where
        F: Fn(GateContext) -> A + Send + Sync + 'static,
        A: Future<Output = Gate> + Send + 'static,
    {
        self.gate = Some(Arc::new(move |context| Box::pin(gate(context))));
        self
    }

    /// Sets the function by which an order changes the log level of the program. Unless it is set, such orders are refused.
    /// Its error is the answer to the order; a panic is a refusal.
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
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskDef, TaskError, WorkerBuilder};
    ///
    /// const SIZE: TaskDef<String, u64> = TaskDef::new("size");
    ///
    /// fn size(path: String) -> Result<u64, TaskError> {
    ///     Ok(std::fs::metadata(path)?.len())
    /// }
    ///
    /// fn with_size(worker: WorkerBuilder) -> WorkerBuilder {
    ///     worker.task_blocking(SIZE, size)
    /// }
    /// ```
    pub fn task_blocking<A, R, Via, H>(self, def: TaskDef<A, R>, handler: H) -> Self
    where
        H: BlockingHandler<Via, A, R>,
    {
        self.bind(Binding::blocking(def, handler))
    }

    /// Registers an `async fn` that runs many tasks of one name in one call: at most `max` of them, and those that have come
    /// `within` this time after the first one. It takes a list of tuples, each with the parameters of one task, and returns one
    /// result for each, in their order.
    ///
    /// Every task has its own record, retries, limits and acknowledgement. While it waits for others, it holds a slot, so the
    /// concurrency must be at least `max`. When the run of one task is cancelled, the call goes on for the others.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskContext, TaskDef, TaskError, WorkerBuilder};
    /// use std::time::Duration;
    ///
    /// const SAVE: TaskDef<(String, i64), ()> = TaskDef::new("save");
    ///
    /// async fn save(rows: Vec<(TaskContext, String, i64)>) -> Vec<Result<(), TaskError>> {
    ///     // One statement inserts all rows.
    ///     rows.iter().map(|(_cx, name, _)| if name.is_empty() { Err("no name".into()) } else { Ok(()) }).collect()
    /// }
    ///
    /// fn with_save(worker: WorkerBuilder) -> WorkerBuilder {
    ///     worker.concurrency(100).task_batch(SAVE, 100, Duration::from_millis(50), save)
    /// }
    /// ```
    pub fn task_batch<A, R, Via, H>(
        self,
        def: TaskDef<A, R>,
        max: usize,
        within: Duration,
        handler: H,
    ) -> Self
    where
        H: BatchHandler<Via, A, R>,
    {
        self.bind(Binding::batch(def, max, within, handler))
    }

    /// Registers a handler that was bound to its task elsewhere.
    pub fn bind(mut self, binding: Binding) -> Self {
        let Binding { name, handler, requires, options, shape, batch } = binding;
        self.task_queues.extend(options.queue.map(str::to_owned));
        self.register(NewTask {
            name: name.to_owned(),
            handler,
            requires,
            shape,
            options: TaskOptions::defined(&options),
            batch,
        })
    }

    /// Registers a handler whose arguments are not known to the compiler.
    pub fn task_dyn(self, name: impl Into<String>, handler: impl DynHandler) -> Self {
        let shape = TaskShape { args: handler.arguments(), results: None };
        self.register(NewTask {
            name: name.into(),
            shape,
            handler: Arc::new(handler),
            requires: Vec::new(),
            options: TaskOptions::default(),
            batch: None,
        })
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

    /// Sets the weight of a queue that this worker consumes, or of each one that a pattern stands for; 1 unless set. While the tasks of several queues wait, a queue of
    /// weight 6 gets six slots for each one that a queue of weight 1 gets.
    ///
    /// Weights order what this worker starts. They do not stop what runs: long tasks of one queue can still take all slots,
    /// unless [`queue_concurrency`](Self::queue_concurrency) keeps them from it.
    pub fn queue_weight(mut self, queue: impl Into<String>, weight: u32) -> Self {
        self.weights.push((queue.into(), weight));
        self
    }

    /// Sets whether the tasks of a queue start only while no queue of a larger weight has tasks that wait. Default: `false`.
    /// A queue of a small weight may then wait for long.
    pub fn strict_order(mut self, strict: bool) -> Self {
        self.strict_order = Some(strict);
        self
    }

    /// Sets the maximum number of tasks of a queue, or of each one that a pattern stands for, that run at once in this worker, so that a slow queue cannot take the slots
    /// of a quick one. [`limit_queue`](Self::limit_queue) limits a queue in all workers together.
    pub fn queue_concurrency(mut self, queue: impl Into<String>, handlers: usize) -> Self {
        self.queue_concurrency.push((queue.into(), handlers));
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

    /// Adds a role in which the worker takes part from its start to its end: a leader or shards. See [`Fleet`].
    ///
    /// # Examples
    /// ```
    /// use machinist_core::WorkerBuilder;
    ///
    /// fn with_billing(worker: WorkerBuilder) -> WorkerBuilder {
    ///     worker.role(|fleet| fleet.leader("billing").run(|slot| async move { slot.lost().await }))
    /// }
    /// ```
    pub fn role(
        mut self,
        take_part: impl FnOnce(&Fleet) -> Result<RunningRole, RoleError> + Send + 'static,
    ) -> Self {
        self.roles.push(Box::new(take_part));
        self
    }

    /// Sets the options of a registered task. They hold for everything that the task's signature does not set, and go before
    /// those of the task's definition.
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

    /// Asks errors of type `E` what follows from them: see [`TaskFailure`]. The error may have become a cause of another one.
    /// A consequence that the handler itself chose goes before it, and so does a classifier of the task.
    pub fn failure<E: TaskFailure + std::error::Error + 'static>(mut self) -> Self {
        self.failures.push(class_of::<E>);
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

    fn register(mut self, task: NewTask) -> Self {
        self.tasks.push(task);
        self
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").field("queues", &self.queues).finish_non_exhaustive()
    }
}
