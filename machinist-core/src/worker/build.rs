//! Checks of the parts of a worker, before it starts.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    BuildError, ErrorClassifier, Health, Stages, Tag, TaskOptions, Worker,
    admissions::{Admissions, DisabledTasks},
    builder::{NewTask, WorkerBuilder},
    capacity::SlotPool,
    circuits::Circuits,
    described::{described_limits, described_patterns, described_shapes, described_tasks},
    events::WorkerEvents,
    exclusive::ExclusiveSlots,
    lease::Lease,
    left_to_others::LeftToOthers,
    limits::Limits,
    look_ahead::LookAhead,
    order_book::OrderBook,
    parts::ReplaceableParts,
    peers::Peers,
    place_waits::PlaceWaits,
    processor::{RegisteredTask, RegisteredTasks, TaskProcessor},
    recycling::Recycling,
    revoked_roots::RevokedRoots,
    roles::Roles,
    server_calls::ServerCalls,
    session::Sessions,
    slot_order::SlotShares,
    task_failure::FailureTypes,
    worker_context::WorkerContext,
    worker_name::WorkerName,
};
use crate::{
    app::App,
    args::{Arg, Results, TaskShape},
    builtin::WORKFLOW_TASK,
    context::TaskContext,
    id::{QueueName, QueuePattern, TaskName},
    limit::{Limit, LimitTarget},
    panics::note_places,
    periodic::Periodic,
    record::MAX_DESCRIBED_TASKS,
};

/// RabbitMQ's default `consumer_timeout`.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Default time for which running handlers may continue when the worker is told to stop.
const DEFAULT_GRACE: Duration = Duration::from_secs(20);

impl WorkerBuilder {
    /// Returns the registered tasks with their options.
    fn registered_tasks(
        &mut self,
        concurrency: usize,
    ) -> Result<HashMap<TaskName, RegisteredTask>, BuildError> {
        let mut tasks = HashMap::new();
        for NewTask { name, handler, requires, shape, options, batch } in mem::take(&mut self.tasks) {
            match batch {
                Some(0) => return Err(BuildError::Zero("the size of a batch")),
                Some(max) if max > concurrency => {
                    return Err(BuildError::Batch { task: name, max, concurrency });
                }
                _ => {}
            }
            if let Some((_, missing)) = requires.iter().find(|(id, _)| !self.state.has(*id)) {
                return Err(BuildError::MissingState { task: name, missing });
            }
            let registration = RegisteredTask::new(handler, shape, options);
            if tasks.insert(TaskName::parse(&name)?, registration).is_some() {
                return Err(BuildError::Twice(name));
            }
        }
        let handler = Arc::new(async |_cx: TaskContext, args: Vec<Arg>| Ok(Results(args)));
        let workflow = RegisteredTask::new(handler, TaskShape::default(), TaskOptions::default());
        tasks.insert(TaskName::parse(WORKFLOW_TASK)?, workflow);
        for (name, options) in mem::take(&mut self.options) {
            let task = TaskName::parse(&name)?;
            let registered = tasks.get_mut(&task).ok_or(BuildError::NoSuchTask(name))?;
            registered.options = options.over(mem::take(&mut registered.options));
        }
        if !self.failures.is_empty() {
            let types: Arc<dyn ErrorClassifier> = Arc::new(FailureTypes(mem::take(&mut self.failures)));
            for task in tasks.values_mut() {
                task.options.classify.get_or_insert_with(|| Arc::clone(&types));
            }
        }
        for task in tasks.values_mut() {
            task.coded = task.options.clone();
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
    pub fn build(self) -> Result<Worker, BuildError> {
        note_places();
        let mut this = self.over_defaults();
        let parts = ReplaceableParts::take(&mut this);
        let concurrency = parts.concurrency();
        let lease = this.lease.unwrap_or(Lease::DEFAULT);
        let consumer_timeout = this.consumer_timeout.unwrap_or(CONSUMER_TIMEOUT);
        for (setting, number) in [
            ("concurrency", concurrency),
            ("max_tasks", this.max_tasks.unwrap_or(1)),
            ("max_memory", this.max_memory.unwrap_or(1)),
            ("session_lease", lease.millis()),
            ("consumer_timeout", usize::try_from(consumer_timeout.as_millis()).unwrap_or(usize::MAX)),
        ] {
            if number == 0 {
                return Err(BuildError::Zero(setting));
            }
        }
        for (setting, bound) in [("max_tasks", this.max_tasks), ("max_memory", this.max_memory)] {
            if bound.is_some() && this.restart_exit_code.is_none() {
                return Err(BuildError::NobodyRestarts(setting));
            }
        }
        let queues = parts.own_queues(&this.app)?;
        let mut tasks = this.registered_tasks(concurrency)?;
        let keeps_args = parts.keeps_args();
        for task in tasks.values_mut() {
            task.options.keep_args.get_or_insert(keeps_args);
        }
        can_sign(&this.app, tasks.keys(), &queues.iter().filter_map(QueuePattern::queue).collect())?;
        check_periodic(&this.app, &this.periodic)?;
        let tags = parts.all_tags(&this.app)?;
        let limits = Arc::new(Limits::new(checked_limits(
            tasks.iter().map(|(name, task)| (name, &task.options)),
            &parts.queue_limits,
        )?));
        let look_ahead = this.look_ahead.unwrap_or_else(|| concurrency.max(16));
        let capacity = SlotPool::new(concurrency, slot_shares(&this, &tasks)?);
        // Where queues have an order, each has a separate credit, and what waits does so on purpose.
        let held = if capacity.is_ordered() { 0 } else { look_ahead };
        let sleep = Arc::new(watch::Sender::new(parts.sleep.clone()));
        let name = WorkerName::new(this.name.unwrap_or_else(default_name));
        let queues: Vec<QueuePattern> = queues.into_iter().collect();
        let about = about(&queues, &tags, &tasks, concurrency, &limits, &this.app);
        let stages = Stages::default();
        let orders =
            OrderBook::new(this.restart_exit_code, this.set_log_level, tasks.keys().cloned().collect());
        let events = WorkerEvents::new(this.app.clone(), Arc::clone(&name));
        let disabled: Arc<DisabledTasks> = Arc::default();
        let peers = Arc::new(Peers::new(lease));
        let worker = Arc::new(WorkerContext {
            sessions: Sessions::new(
                this.app.clone(),
                Arc::clone(&name),
                about,
                Arc::clone(&disabled),
                Arc::clone(&limits),
                Arc::clone(&events),
                Arc::clone(&peers),
            ),
            admissions: Admissions::new(disabled, this.rules, look_ahead),
            limits,
            place_waits: PlaceWaits::default(),
            capacity: Arc::clone(&capacity),
            circuits: Circuits::default(),
            left_to_others: LeftToOthers::default(),
            orders,
            look_ahead: LookAhead::new(concurrency, held),
            calls: ServerCalls::new(this.app.clone(), stages.clone(), Arc::clone(&events), peers),
            app: this.app,
            name,
            max_hold: consumer_timeout / 2,
            stages: stages.clone(),
            events,
            refused: crate::refused::RefusedTally::default(),
            revoked_roots: RevokedRoots::default(),
            roles: Roles::default(),
            recycling: Recycling { max_tasks: this.max_tasks, max_memory: this.max_memory },
        });
        worker.sessions.presence.want_queues(queues.iter().cloned().collect());
        worker.sessions.presence.want_tags(tags.clone());
        let tasks: RegisteredTasks = tasks.into_iter().map(|(name, task)| (name, Arc::new(task))).collect();
        let health = Health::new(Arc::clone(&worker), stages.clone());
        let processor = Arc::new(TaskProcessor {
            worker,
            tasks: RwLock::new(Arc::new(tasks)),
            middleware: this.middleware.into(),
            state: Arc::new(this.state),
            exclusive: ExclusiveSlots::new(capacity),
        });
        let ready = CancellationToken::new();
        let (periodic, roles) = (Arc::new(watch::Sender::new(this.periodic)), this.roles);
        let tasks = processor.task_names();
        let grace = this.grace.unwrap_or(DEFAULT_GRACE);
        Ok(Worker {
            processor,
            tasks,
            queues,
            tags,
            sleep,
            gate: this.gate,
            grace,
            stages,
            ready,
            health,
            parts: Arc::new(Mutex::new(parts)),
            periodic,
            roles,
        })
    }
}

/// Checks that the application's key can sign every task in every queue. A message that is published again is signed
/// again, and a worker that cannot sign it would lose it.
pub(super) fn can_sign<'t>(
    app: &App,
    tasks: impl Iterator<Item = &'t TaskName>,
    queues: &BTreeSet<QueueName>,
) -> Result<(), BuildError> {
    for (task, queue) in tasks.flat_map(|task| queues.iter().map(move |queue| (task, queue))) {
        app.0.trust.may_sign(task, queue, app.clock().now()).map_err(|why| BuildError::Key {
            task: task.to_string(),
            queue: queue.clone(),
            why,
        })?;
    }
    Ok(())
}

/// Checks the periodic tasks, and that the application's key can sign their ticks.
pub(super) fn check_periodic(app: &App, periodic: &[Periodic]) -> Result<(), BuildError> {
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
pub(super) fn checked_limits<'t>(
    tasks: impl Iterator<Item = (&'t TaskName, &'t TaskOptions)>,
    queues: &[(String, Limit)],
) -> Result<HashMap<LimitTarget, Arc<Limit>>, BuildError> {
    let of_tasks =
        tasks.filter_map(|(name, options)| Some((LimitTarget::Task(name.clone()), options.limit.clone()?)));
    let of_queues = queues.iter().map(|(name, limit)| -> Result<_, BuildError> {
        Ok((LimitTarget::Queue(QueueName::parse(name)?), limit.clone()))
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

/// Returns the shares of queues and tasks in the slots.
fn slot_shares(
    worker: &WorkerBuilder,
    tasks: &HashMap<TaskName, RegisteredTask>,
) -> Result<SlotShares, BuildError> {
    let mut shares = SlotShares {
        strict: worker.strict_order.unwrap_or(false),
        by_class: !worker.app.0.priority_queues.is_empty() || !worker.app.0.fair_queues.is_empty(),
        ..SlotShares::default()
    };
    for (name, weight) in &worker.weights {
        if *weight == 0 {
            return Err(BuildError::Zero("the weight of a queue"));
        }
        shares.queues.entry(QueuePattern::parse(name)?).or_default().weight = *weight;
    }
    for (name, most) in &worker.queue_concurrency {
        if *most == 0 {
            return Err(BuildError::Zero("the concurrency of a queue"));
        }
        shares.queues.entry(QueuePattern::parse(name)?).or_default().concurrency = Some(*most);
    }
    for (name, task) in tasks {
        let Some(most) = task.options.concurrency else { continue };
        if most == 0 {
            return Err(BuildError::Zero("the concurrency of a task"));
        }
        shares.tasks.insert(name.clone(), most);
    }
    Ok(shares)
}

/// Returns the description of the worker that is stored with its session, without its name.
fn about(
    own: &[QueuePattern],
    tags: &[Tag],
    tasks: &HashMap<TaskName, RegisteredTask>,
    concurrency: usize,
    limits: &Limits,
    app: &App,
) -> serde_json::Value {
    let queues: Vec<_> = own.iter().filter_map(QueuePattern::queue).collect();
    let tags: Vec<_> = tags.iter().map(Tag::as_str).collect();
    let names: Vec<_> = tasks.keys().filter(|name| name.as_str() != WORKFLOW_TASK).collect();
    let more = names.len().saturating_sub(MAX_DESCRIBED_TASKS);
    serde_json::json!({
        "host": host_name(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "queues": queues,
        "patterns": described_patterns(own),
        "tasks": described_tasks(names),
        "more_tasks": more,
        "shapes": described_shapes(tasks.iter().map(|(name, task)| (name, &task.shape))),
        "tags": tags,
        "concurrency": concurrency,
        "limits": described_limits(&limits.own()),
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
