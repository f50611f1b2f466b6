//! Defaults that an application gives its workers: what a builder takes over where the code sets nothing.

use std::{fmt, sync::Arc};

use super::WorkerBuilder;

/// Function that sets the defaults of a worker.
#[derive(Clone)]
pub(crate) struct WorkerDefaults(Arc<dyn Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync>);

impl WorkerDefaults {
    pub(crate) fn new(set: impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static) -> Self {
        Self(Arc::new(set))
    }
}

impl fmt::Debug for WorkerDefaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerDefaults")
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
        let base = (defaults.0)(Self::new(self.app.clone()).without_defaults());
        Self {
            app: self.app,
            defaults: None,
            name: self.name.or(base.name),
            queues: joined(base.queues, self.queues),
            task_queues: joined(base.task_queues, self.task_queues),
            tags: joined(base.tags, self.tags),
            concurrency: self.concurrency.or(base.concurrency),
            look_ahead: self.look_ahead.or(base.look_ahead),
            grace: self.grace.or(base.grace),
            lease: self.lease.or(base.lease),
            consumer_timeout: self.consumer_timeout.or(base.consumer_timeout),
            tasks: joined(base.tasks, self.tasks),
            options: joined(base.options, self.options),
            adjustments: joined(base.adjustments, self.adjustments),
            // Both begin with the middleware of the application.
            middleware: self.middleware,
            failures: joined(base.failures, self.failures),
            rules: joined(base.rules, self.rules),
            periodic: joined(base.periodic, self.periodic),
            state: self.state.over(base.state),
        }
    }
}

fn joined<T>(mut first: Vec<T>, second: Vec<T>) -> Vec<T> {
    first.extend(second);
    first
}
