//! Defaults that an application gives its workers: what a builder takes over where the code sets nothing.

use std::sync::Arc;

use super::builder::{WorkerBuilder, WorkerDefaults};
use crate::app::AppBuilder;

impl AppBuilder {
    /// Sets the defaults of the workers of this application: `set` is applied to a new builder, and a worker takes over from
    /// it what its own builder does not set. Queues, tags, hours of sleep and periodic tasks are added to the worker's own.
    pub fn worker_defaults(
        mut self,
        set: impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static,
    ) -> Self {
        let set: WorkerDefaults = Arc::new(set);
        self.worker_defaults = Some(Arc::new(set));
        self
    }
}

impl WorkerBuilder {
    /// Leaves out the defaults of the application
    /// ([`AppBuilder::worker_defaults`](crate::AppBuilder::worker_defaults)).
    pub fn without_defaults(mut self) -> Self {
        self.defaults = None;
        self
    }

    /// Takes over the defaults of the application for what the code does not set. Queues, tags and periodic tasks of both
    /// are kept.
    pub(super) fn over_defaults(mut self) -> Self {
        let Some(defaults) = self.defaults.take() else { return self };
        let base = defaults(Self::new(self.app.clone()).without_defaults());
        Self {
            app: self.app,
            defaults: None,
            name: self.name.or(base.name),
            queues: joined(base.queues, self.queues),
            task_queues: joined(base.task_queues, self.task_queues),
            tags: joined(base.tags, self.tags),
            concurrency: self.concurrency.or(base.concurrency),
            look_ahead: self.look_ahead.or(base.look_ahead),
            keep_args: self.keep_args.or(base.keep_args),
            grace: self.grace.or(base.grace),
            lease: self.lease.or(base.lease),
            consumer_timeout: self.consumer_timeout.or(base.consumer_timeout),
            restart_exit_code: self.restart_exit_code.or(base.restart_exit_code),
            max_tasks: self.max_tasks.or(base.max_tasks),
            max_memory: self.max_memory.or(base.max_memory),
            set_log_level: self.set_log_level.or(base.set_log_level),
            sleep: joined(base.sleep, self.sleep),
            gate: self.gate.or(base.gate),
            tasks: joined(base.tasks, self.tasks),
            options: joined(base.options, self.options),
            adjustments: joined(base.adjustments, self.adjustments),
            // Both begin with the middleware of the application.
            middleware: self.middleware,
            failures: joined(base.failures, self.failures),
            rules: joined(base.rules, self.rules),
            queue_limits: joined(base.queue_limits, self.queue_limits),
            weights: joined(base.weights, self.weights),
            queue_concurrency: joined(base.queue_concurrency, self.queue_concurrency),
            strict_order: self.strict_order.or(base.strict_order),
            periodic: joined(base.periodic, self.periodic),
            roles: joined(base.roles, self.roles),
            state: self.state.over(base.state),
        }
    }
}

fn joined<T>(mut first: Vec<T>, second: Vec<T>) -> Vec<T> {
    first.extend(second);
    first
}
