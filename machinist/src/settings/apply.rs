//! Settings of a worker and of its tasks, applied to the builder of a worker.

use machinist_core::{
    WorkerBuilder,
    worker::{Tag, TaskOptions},
};

use super::{Settings, TaskSettings};

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
    /// let worker = settings.configure(Worker::builder(&app)).task(ADD, add).build()?;
    /// # drop(worker);
    /// # Ok(())
    /// # }
    /// ```
    pub fn configure(&self, mut builder: WorkerBuilder) -> WorkerBuilder {
        let worker = &self.worker;
        if let Some(name) = &worker.name {
            builder = builder.name(&name.value);
        }
        if let Some(look_ahead) = &worker.look_ahead {
            builder = builder.look_ahead(look_ahead.value);
        }
        if let Some(code) = &worker.restart_exit_code {
            builder = builder.restart_exit_code(code.value);
        }
        if let Some(kept) = &worker.keep_args {
            builder = builder.keep_args(kept.value);
        }
        for queue in &worker.queues.value {
            builder = builder.queue(queue.as_str());
        }
        builder = builder
            .tags(worker.tags.value.iter().map(Tag::as_str))
            .concurrency(worker.concurrency.value)
            .grace(worker.grace.value)
            .consumer_timeout(worker.consumer_timeout.value);
        for (name, task) in &self.tasks {
            builder = task.adjust(builder, name);
        }
        for (queue, limit) in &self.queue_limits {
            builder = builder.limit_queue(queue.as_str(), limit.value.clone());
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
