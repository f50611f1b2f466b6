//! Settings of a worker and of its tasks, applied to the builder of a worker.

use std::collections::BTreeMap;

use machinist_core::{
    QueueName, WorkerBuilder,
    limit::Limit,
    periodic::Periodic,
    worker::{Tag, TaskOptions},
};

use super::{Setting, SettingOrigin, Settings, TaskSettings, WorkerSettings};

impl Settings {
    /// Applies `[worker]`, the options of `[tasks.NAME]`, the limits of `[queues.NAME]` and the periodic tasks of `[periodic.NAME]` to a worker. The options of a task go before those that the
    /// code sets, and after those of its signature. Options of a task that is not registered are logged as a warning,
    /// unless they belong to a command task.
    ///
    /// # Examples
    /// ```
    /// use machinist::{prelude::*, settings::{Overrides, Settings}};
    ///
    /// const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    ///
    /// async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    ///     Ok(a + b)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&folder)?;
    /// // [worker] concurrency = 4, [tasks.add] retries = 5, and so on
    /// let settings = Settings::load(Overrides::default())?;
    /// let app = App::from_settings(&settings).await?;
    /// let worker = Worker::builder(&app).task(ADD, add).build()?;
    /// // The same, with settings that are not those of the application:
    /// let worker = settings.configure(Worker::builder(&app)).task(ADD, add).build()?;
    /// # drop(worker);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A worker of an application that was built from settings needs this only for other settings than those: it takes
    /// over its application's (see [`AppExt`](crate::AppExt)), which this replaces.
    pub fn configure(&self, builder: WorkerBuilder) -> WorkerBuilder {
        let settings = WorkerPart {
            worker: &self.worker,
            tasks: &self.tasks,
            queue_limits: &self.queue_limits,
            queue_concurrency: &self.queue_concurrency,
            periodic: &self.periodic,
        };
        let builder = settings.apply(builder.without_defaults());
        match self.worker.queues.origin {
            SettingOrigin::Default => {
                let queues = self.worker.queues.value.iter();
                queues.fold(builder, |builder, queue| builder.queue_of_task(queue.as_str()))
            }
            _ => builder,
        }
    }

    /// Returns the function that gives these settings to the workers of an application. Queues that nothing sets are left
    /// to the worker: those of command tasks belong to the program.
    pub(crate) fn worker_defaults(&self) -> impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static {
        let (worker, tasks, periodic) = (self.worker.clone(), self.tasks.clone(), self.periodic.clone());
        let (queue_limits, queue_concurrency) = (self.queue_limits.clone(), self.queue_concurrency.clone());
        move |builder| {
            let part = WorkerPart {
                worker: &worker,
                tasks: &tasks,
                queue_limits: &queue_limits,
                queue_concurrency: &queue_concurrency,
                periodic: &periodic,
            };
            part.apply(builder)
        }
    }
}

/// The settings of a worker.
struct WorkerPart<'a> {
    worker: &'a WorkerSettings,
    tasks: &'a BTreeMap<String, TaskSettings>,
    queue_limits: &'a BTreeMap<QueueName, Setting<Limit>>,
    queue_concurrency: &'a BTreeMap<QueueName, Setting<usize>>,
    periodic: &'a BTreeMap<String, Setting<Periodic>>,
}

impl WorkerPart<'_> {
    fn apply(&self, mut builder: WorkerBuilder) -> WorkerBuilder {
        let worker = self.worker;
        if let Some(name) = &worker.name {
            builder = builder.name(&name.value);
        }
        if let Some(look_ahead) = &worker.look_ahead {
            builder = builder.look_ahead(look_ahead.value);
        }
        if let Some(code) = &worker.restart_exit_code {
            builder = builder.restart_exit_code(code.value);
        }
        if let Some(tasks) = &worker.max_tasks {
            builder = builder.max_tasks(tasks.value);
        }
        if let Some(bytes) = &worker.max_memory {
            builder = builder.max_memory(bytes.value);
        }
        if let Some(kept) = &worker.keep_args {
            builder = builder.keep_args(kept.value);
        }
        if worker.queues.origin != SettingOrigin::Default {
            for queue in &worker.queues.value {
                builder = builder.queue(queue.as_str());
            }
        }
        builder = builder
            .tags(worker.tags.value.iter().map(Tag::as_str))
            .concurrency(worker.concurrency.value)
            .grace(worker.grace.value)
            .consumer_timeout(worker.consumer_timeout.value);
        for (name, task) in self.tasks {
            builder = task.adjust(builder, name);
        }
        for (queue, limit) in self.queue_limits {
            builder = builder.limit_queue(queue.as_str(), limit.value.clone());
        }
        for (queue, weight) in worker.weights.iter().flat_map(|weights| &weights.value) {
            builder = builder.queue_weight(queue.as_str(), *weight);
        }
        for hours in &worker.sleep {
            builder = builder.sleep(hours.value.clone());
        }
        if let Some(strict) = &worker.strict {
            builder = builder.strict_order(strict.value);
        }
        for (queue, most) in self.queue_concurrency {
            builder = builder.queue_concurrency(queue.as_str(), most.value);
        }
        for periodic in self.periodic.values() {
            builder = builder.periodic(periodic.value.clone());
        }
        builder
    }
}

impl TaskSettings {
    /// Returns these options with those of the file in their place.
    #[must_use]
    pub fn apply(&self, mut options: TaskOptions) -> TaskOptions {
        if let Some(retries) = &self.retries {
            options = options.retries(retries.value);
        }
        if let Some(backoff) = &self.backoff {
            options = options.backoff(backoff.value.clone());
        }
        if let Some(timeout) = &self.timeout {
            options = options.timeout(timeout.value);
        }
        if let Some(limit) = &self.soft_timeout {
            options = options.soft_timeout(limit.value);
        }
        // After the number of retries, which it makes unlimited if there is none.
        if let Some(limit) = &self.retry_for {
            options = options.retry_for(limit.value);
        }
        if let Some(kept) = &self.keep_args {
            options = options.keep_args(kept.value);
        }
        if let Some(retried) = &self.retry_timeouts {
            options = options.retry_timeouts_if(retried.value);
        }
        if let Some(circuit) = &self.circuit {
            let (failures, pause) = circuit.value;
            options = options.circuit(failures, pause);
        }
        if let Some(most) = &self.concurrency {
            options = options.concurrency(most.value);
        }
        if let Some(limit) = &self.limit {
            options = options.limit(limit.value.clone());
        }
        options
    }

    fn adjust(&self, builder: WorkerBuilder, name: &str) -> WorkerBuilder {
        let (task, name) = (self.clone(), name.to_owned());
        builder.adjust_options(name.clone(), move |options| match options {
            Some(options) => *options = task.apply(std::mem::take(options)),
            None if task.command.is_some() => {}
            None => tracing::warn!(
                from = %task.origin,
                "[tasks.{name}] has options for a task that this worker does not know; register it, or give it a command"
            ),
        })
    }
}
