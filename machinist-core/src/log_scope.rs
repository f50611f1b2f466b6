//! `tracing` events of a handler, as lines of its task's log.
//!
//! [`TaskLogLayer`] is a layer for the subscriber of the application. It knows the run by the place where an event happens:
//! in the future of a handler, or within a span that began there, also on another thread.

use crate::context::TaskContext;

#[cfg(feature = "task-log")]
pub use layer::TaskLogLayer;

#[cfg(feature = "task-log")]
tokio::task_local! {
    /// The run that is called here.
    static RUN: TaskContext;
}

/// Calls a handler so that its events belong to the log of its run.
pub(crate) fn scope<F: Future>(cx: TaskContext, future: F) -> impl Future<Output = F::Output> {
    #[cfg(feature = "task-log")]
    return RUN.scope(cx, future);
    #[cfg(not(feature = "task-log"))]
    {
        drop(cx);
        future
    }
}

/// Begins a span that belongs to a run.
pub(crate) fn within<T>(cx: &TaskContext, begin: impl FnOnce() -> T) -> T {
    #[cfg(feature = "task-log")]
    return RUN.sync_scope(cx.clone(), begin);
    #[cfg(not(feature = "task-log"))]
    {
        let _ = cx;
        begin()
    }
}

#[cfg(feature = "task-log")]
mod layer {
    use std::fmt::{self, Write};

    use tracing::{
        Event, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id},
    };
    use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

    use super::RUN;
    use crate::{context::TaskContext, task_log::LogLevel};

    /// Crates whose events within the span of a task are about machinist's work, and not of the handler.
    const OWN_CRATES: [&str; 5] = [
        "machinist_core",
        "machinist_broker_amqp",
        "machinist_backend_redis",
        "machinist_sqlite",
        "machinist_memory",
    ];

    /// Layer that puts the `tracing` events of handlers into the logs of their tasks. The program has it. Elsewhere, add it to
    /// the subscriber, with a filter for the level.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::TaskLogLayer;
    /// use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt};
    ///
    /// let lines = TaskLogLayer::new().with_filter(LevelFilter::INFO);
    /// let subscriber = tracing_subscriber::registry().with(lines);
    /// # drop(subscriber);
    /// ```
    #[derive(Debug, Clone, Copy, Default)]
    #[non_exhaustive]
    pub struct TaskLogLayer;

    impl TaskLogLayer {
        /// Creates the layer.
        pub const fn new() -> Self {
            Self
        }
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TaskLogLayer {
        fn on_new_span(&self, _: &Attributes<'_>, id: &Id, subscriber: Context<'_, S>) {
            if let Ok(run) = RUN.try_with(Clone::clone)
                && let Some(span) = subscriber.span(id)
            {
                span.extensions_mut().insert(run);
            }
        }

        fn on_event(&self, event: &Event<'_>, subscriber: Context<'_, S>) {
            if RUN.try_with(|run| add(run, event)).is_ok() {
                return;
            }
            let target = event.metadata().target();
            if OWN_CRATES.iter().any(|name| target.split("::").next() == Some(name)) {
                return;
            }
            for span in subscriber.event_scope(event).into_iter().flatten() {
                let run = span.extensions().get::<TaskContext>().cloned();
                if let Some(run) = run {
                    return add(&run, event);
                }
            }
        }
    }

    fn add(run: &TaskContext, event: &Event<'_>) {
        let mut line = EventText::default();
        event.record(&mut line);
        let EventText { mut message, fields } = line;
        message.push_str(&fields);
        run.log_event(LogLevel::from(*event.metadata().level()), message.trim_start());
    }

    /// Text of an event: its message, then its fields.
    #[derive(Default)]
    struct EventText {
        message: String,
        fields: String,
    }

    impl Visit for EventText {
        fn record_str(&mut self, field: &Field, value: &str) {
            if field.name() == "message" {
                self.message.push_str(value);
            } else {
                self.record_debug(field, &value);
            }
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            // INVARIANT: writing to a String does not fail.
            let _ = match field.name() {
                "message" => write!(self.message, "{value:?}"),
                name => write!(self.fields, " {name}={value:?}"),
            };
        }
    }
}
