//! Reload of a running worker: other tasks of a configuration, other queues, tags and hours of sleep, and other options,
//! limits and periodic tasks.
//!
//! All of it is checked before anything changes.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{
    BuildError, SleepHours, Tag, TaskOptions, WorkerBuilder, WorkerContext,
    build::{can_sign, check_periodic, checked_limits},
    described::described_shapes,
    followed_queues::follows,
    orders::PREPARE_TIMEOUT,
    parts::ReplaceableParts,
    processor::{RegisteredTask, RegisteredTasks, TaskProcessor},
};
use crate::{
    id::{QueueName, QueuePattern, TaskName},
    limit::{Limit, LimitTarget},
    periodic::Periodic,
    sign::{Key, KeyError, Keyring},
};

/// Replaces what a worker has from its configuration, while it runs ([`Worker::reloader`](super::Worker::reloader)). Cheap to
/// clone; outlives the worker.
#[derive(Clone)]
pub struct Reloader {
    pub(super) processor: Arc<TaskProcessor>,
    /// Parts that the code and the configuration in force give.
    pub(super) parts: Arc<Mutex<ReplaceableParts>>,
    pub(super) periodic: Arc<watch::Sender<Vec<Periodic>>>,
    pub(super) sleep: Arc<watch::Sender<Vec<SleepHours>>>,
}

/// Checked parts that a reload puts in the place of those that the worker has.
struct ReloadPlan {
    parts: ReplaceableParts,
    queues: BTreeSet<QueuePattern>,
    /// Queues that the worker did not name before.
    new_queues: Vec<QueueName>,
    tags: Vec<Tag>,
    tasks: RegisteredTasks,
    periodic: Vec<Periodic>,
    limits: HashMap<LimitTarget, Arc<Limit>>,
}

impl Reloader {
    /// Puts the configuration `new` in the place of `old`. Both builders hold nothing but what the configuration says, without
    /// the defaults of the application: the tasks that it defines, options of tasks
    /// ([`adjust_options`](WorkerBuilder::adjust_options)), limits of queues, periodic tasks, queues, tags, hours of sleep, the
    /// concurrency and whether arguments are kept. What the worker has from code stays. What orders have changed of its queues
    /// and its concurrency is taken back. Runs go on as they began.
    ///
    /// `keys` replaces the key ring of the application, as [`App::replace_keyring`](crate::App::replace_keyring) does. Returns
    /// the reason that it does not, if there is one: all else is replaced then, and what the ring revokes is revoked.
    ///
    /// # Errors
    /// [`BuildError`]: nothing has changed.
    ///
    /// # Cancel safety
    /// A dropped future has changed nothing. The broker may have declared queues that are new.
    pub async fn reload(
        &self,
        old: WorkerBuilder,
        new: WorkerBuilder,
        keys: Option<Keyring>,
    ) -> Result<Option<KeyError>, BuildError> {
        let worker = &self.processor.worker;
        let _changing = worker.orders.changing.lock().await;
        let plan = self.plan(old, new, keys.as_ref())?;
        worker.prepare(&plan.new_queues, PREPARE_TIMEOUT).await.map_err(BuildError::NewQueues)?;
        let concurrency = plan.parts.concurrency();
        // The last thing that can fail.
        worker.capacity.set_limit(concurrency).map_err(BuildError::NotNow)?;
        worker.capacity.give();
        worker.look_ahead.set_concurrency(concurrency);
        worker.limits.set_own(plan.limits);
        worker.orders.set_tasks(plan.tasks.keys().cloned().collect());
        self.processor.set_tasks(plan.tasks);
        self.periodic.send_replace(plan.periodic);
        self.sleep.send_replace(plan.parts.sleep.clone());
        worker.sessions.presence.want_tags(plan.tags);
        worker.sessions.presence.want_queues(plan.queues);
        *self.parts() = plan.parts;
        worker.describe_tasks(&self.processor);
        worker.describe_queues();
        Ok(keys.and_then(|keys| worker.app.replace_keyring(keys).err()))
    }

    fn parts(&self) -> MutexGuard<'_, ReplaceableParts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the configuration `new`, and returns what it puts in the place of what the worker has.
    fn plan(
        &self,
        mut old: WorkerBuilder,
        mut new: WorkerBuilder,
        keys: Option<&Keyring>,
    ) -> Result<ReloadPlan, BuildError> {
        let worker = &self.processor.worker;
        let (before, after) = (ReplaceableParts::take(&mut old), ReplaceableParts::take(&mut new));
        let parts = self.parts().replaced(&before, &after);
        if parts.concurrency() == 0 {
            return Err(BuildError::Zero("concurrency"));
        }
        let (queues, tags) = (parts.own_queues(&worker.app)?, parts.all_tags(&worker.app)?);
        let tasks = self.tasks(&old, &mut new, parts.keeps_args())?;
        let presence = &worker.sessions.presence;
        let named = presence.own_queues();
        let new_queues = queues.difference(&named).filter_map(QueuePattern::queue).collect();
        // Those that it goes on to follow, and those that it names.
        let followed = presence.followed().into_iter().filter(|queue| follows(&queues, &tags, queue));
        let taken: BTreeSet<QueueName> =
            followed.chain(queues.iter().filter_map(QueuePattern::queue)).collect();
        match keys.map(Keyring::signing_key) {
            Some(Some(key)) => may_all(key, tasks.keys(), &taken)?,
            // Without a key that signs, no tasks are taken.
            Some(None) => {}
            None if !worker.app.0.trust.can_sign() => {}
            None => can_sign(&worker.app, tasks.keys(), &taken)?,
        }
        let periodic = self.periodic(&old, mem::take(&mut new.periodic));
        check_periodic(&worker.app, &periodic)?;
        let options = tasks.iter().map(|(name, task)| (name, &task.options));
        let limits = checked_limits(options, &parts.queue_limits)?;
        Ok(ReloadPlan { parts, queues, new_queues, tags, tasks, periodic, limits })
    }

    /// Returns the tasks: those of the code with other options, and those of the new configuration.
    fn tasks(
        &self,
        old: &WorkerBuilder,
        new: &mut WorkerBuilder,
        keeps_args: bool,
    ) -> Result<RegisteredTasks, BuildError> {
        let was_configured = |name: &TaskName| old.tasks.iter().any(|task| task.name == name.as_str());
        let mut tasks: HashMap<TaskName, RegisteredTask> = self
            .processor
            .tasks()
            .iter()
            .filter(|(name, _)| !was_configured(name))
            .map(|(name, task)| (name.clone(), task.as_coded()))
            .collect();
        for task in mem::take(&mut new.tasks) {
            let registered = RegisteredTask::new(task.handler, task.shape, TaskOptions::default());
            if tasks.insert(TaskName::parse(&task.name)?, registered).is_some() {
                return Err(BuildError::Twice(task.name));
            }
        }
        for (name, adjust) in mem::take(&mut new.adjustments) {
            adjust(tasks.get_mut(&TaskName::parse(&name)?).map(|task| &mut task.options));
        }
        let finished = |(name, mut task): (_, RegisteredTask)| {
            task.options.keep_args.get_or_insert(keeps_args);
            (name, Arc::new(task))
        };
        Ok(tasks.into_iter().map(finished).collect())
    }

    /// Returns the periodic tasks: those of the code, and those of the new configuration.
    fn periodic(&self, old: &WorkerBuilder, new: Vec<Periodic>) -> Vec<Periodic> {
        let was_configured = |one: &&Periodic| old.periodic.iter().any(|old| old.name() == one.name());
        let mut periodic: Vec<_> =
            self.periodic.borrow().iter().filter(|one| !was_configured(one)).cloned().collect();
        periodic.extend(new);
        periodic
    }
}

/// Checks that a key that is about to sign may do so for every task in every queue.
fn may_all<'t>(
    key: &Key,
    tasks: impl Iterator<Item = &'t TaskName>,
    queues: &BTreeSet<QueueName>,
) -> Result<(), BuildError> {
    for (task, queue) in tasks.flat_map(|task| queues.iter().map(move |queue| (task, queue))) {
        key.may(task.as_str(), queue.as_str()).map_err(|why| BuildError::Key {
            task: task.to_string(),
            queue: queue.clone(),
            why: why.to_string(),
        })?;
    }
    Ok(())
}

impl WorkerContext {
    /// Shows the tasks, limits and number of slots that the worker has now.
    fn describe_tasks(&self, processor: &TaskProcessor) {
        let limits = self.limits.own();
        let tasks = processor.tasks();
        let shapes = described_shapes(tasks.iter().map(|(name, task)| (name, &task.shape)));
        self.sessions.describe_tasks(&processor.task_names(), shapes, &limits, self.capacity.limit());
    }
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("worker", &self.processor.worker.name).finish_non_exhaustive()
    }
}
