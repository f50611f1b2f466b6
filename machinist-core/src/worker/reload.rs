//! Reload of a running worker: other tasks of a configuration, and other options, limits and periodic tasks.
//!
//! All of it is checked before anything changes.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, mem,
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    BuildError, TaskOptions, WorkerBuilder, WorkerContext,
    build::{can_sign, check_periodic, checked_limits},
    described::described_shapes,
    processor::{RegisteredTask, RegisteredTasks, TaskProcessor},
};
use crate::{
    id::{QueueName, TaskName},
    limit::LimitTarget,
    periodic::Periodic,
    sign::{Key, KeyError, Keyring},
};

/// Replaces what a worker has from its configuration, while it runs ([`Worker::reloader`](super::Worker::reloader)). Cheap to
/// clone; outlives the worker.
#[derive(Clone)]
pub struct Reloader {
    processor: Arc<TaskProcessor>,
    periodic: Arc<watch::Sender<Vec<Periodic>>>,
}

impl Reloader {
    pub(super) fn new(processor: Arc<TaskProcessor>, periodic: Arc<watch::Sender<Vec<Periodic>>>) -> Self {
        Self { processor, periodic }
    }

    /// Puts the configuration `new` in the place of `old`. Both builders hold nothing but what the configuration says, without
    /// the defaults of the application: the tasks that it defines, options of tasks ([`adjust_options`](WorkerBuilder::adjust_options)), limits of queues,
    /// periodic tasks and the concurrency. What the worker has from code stays. Runs go on as they began.
    ///
    /// `keys` replaces the key ring of the application, as [`App::replace_keyring`](crate::App::replace_keyring) does. Returns
    /// the reason that it does not, if there is one: all else is replaced then, and what the ring revokes is revoked.
    ///
    /// # Errors
    /// [`BuildError`]: nothing has changed.
    pub fn reload(
        &self,
        old: &WorkerBuilder,
        mut new: WorkerBuilder,
        keys: Option<Keyring>,
    ) -> Result<Option<KeyError>, BuildError> {
        let worker = &self.processor.worker;
        let concurrency = new.concurrency.unwrap_or(super::build::DEFAULT_CONCURRENCY);
        if concurrency == 0 {
            return Err(BuildError::Zero("concurrency"));
        }
        let tasks = self.tasks(old, &mut new)?;
        let queues: BTreeSet<QueueName> = worker.sessions.presence.queues().into_iter().collect();
        match keys.as_ref().map(Keyring::signing_key) {
            Some(Some(key)) => may_all(key, tasks.keys(), &queues)?,
            // Without a key that signs, no tasks are taken.
            Some(None) => {}
            None if !worker.app.0.trust.can_sign() => {}
            None => can_sign(&worker.app, tasks.keys(), &queues)?,
        }
        let periodic = self.periodic(old, mem::take(&mut new.periodic));
        check_periodic(&worker.app, &periodic)?;
        let own = worker.limits.own();
        let of_old = |queue: &QueueName| old.queue_limits.iter().any(|(name, _)| *name == queue.as_str());
        let coded = own.into_iter().filter_map(|(target, limit)| match target {
            LimitTarget::Queue(queue) if !of_old(&queue) => Some((queue.to_string(), (*limit).clone())),
            _ => None,
        });
        let limits = coded.chain(mem::take(&mut new.queue_limits)).collect();
        let limits = checked_limits(tasks.iter().map(|(name, task)| (name, &task.options)), limits)?;
        // The last thing that can fail.
        worker.capacity.set_limit(concurrency).map_err(BuildError::NotNow)?;
        worker.capacity.give();
        worker.look_ahead.set_concurrency(concurrency);
        worker.limits.set_own(limits);
        worker.orders.set_tasks(tasks.keys().cloned().collect());
        self.processor.set_tasks(tasks);
        self.periodic.send_replace(periodic);
        worker.describe_tasks(&self.processor);
        Ok(keys.and_then(|keys| worker.app.replace_keyring(keys).err()))
    }

    /// Returns the tasks: those of the code with other options, and those of the new configuration.
    fn tasks(&self, old: &WorkerBuilder, new: &mut WorkerBuilder) -> Result<RegisteredTasks, BuildError> {
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
        let keep_args = new.keep_args.unwrap_or(false);
        let finished = |(name, mut task): (_, RegisteredTask)| {
            task.options.keep_args.get_or_insert(keep_args);
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
