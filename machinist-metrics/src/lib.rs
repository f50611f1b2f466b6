//! Metrics of machinist: an [observer](machinist_core::event::Observer) that turns events into one set of OpenTelemetry
//! instruments, read by Prometheus and by OTLP.
//!
//! Core only emits events, so a process without metrics pays nothing for them. Labels are bounded: no worker, host, id, key or
//! tenant is a label, names that no worker has registered are `_unknown`, and each metric has a maximum number of series.
//! `docs/metrics.md` lists the metrics.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use machinist_core::App;
//! use machinist_memory::{MemoryBackend, MemoryBroker};
//! use machinist_metrics::Metrics;
//! use std::sync::Arc;
//!
//! let metrics = Metrics::builder().build();
//! let backend = metrics.timed(Arc::new(MemoryBackend::new()));
//! let app = App::builder(Arc::new(MemoryBroker::new()), backend).observer(metrics.clone()).build().await?;
//! assert!(metrics.prometheus().contains("machinist_build_info"));
//! # Ok(())
//! # }
//! ```

mod catalog;
mod instruments;
mod observer;
mod queues;
mod series;
mod timed_backend;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use machinist_core::{backend::Backend, worker::Health};
use opentelemetry::{InstrumentationScope, KeyValue, metrics::MeterProvider};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    metrics::{Instrument, MeterProviderBuilder, SdkMeterProvider, Stream, reader::MetricReader},
};
use prometheus::TextEncoder;

pub use catalog::{BUCKETS, METRICS, MetricInfo, MetricKind};

use instruments::{Instruments, gauge};
use observer::AwaySince;
use queues::MeasuredQueues;
use series::{MAX_SERIES, Series, label};
use timed_backend::TimedBackend;

/// Version of OpenTelemetry's semantic conventions that the names follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

/// Metrics of one process. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub struct Metrics(Arc<MetricsState>);

struct MetricsState {
    provider: SdkMeterProvider,
    registry: prometheus::Registry,
    instruments: Instruments,
    series: Series,
    queues: Arc<MeasuredQueues>,
    workers: Arc<Mutex<Vec<Health>>>,
    history_lag: Arc<Mutex<Duration>>,
    /// Since when the broker and the backend are away.
    away_since: [AwaySince; 2],
}

/// Makes [`Metrics`].
#[must_use]
pub struct MetricsBuilder {
    provider: MeterProviderBuilder,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl fmt::Debug for MetricsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsBuilder").finish_non_exhaustive()
    }
}

impl MetricsBuilder {
    /// Adds a reader of the instruments, such as a periodic one that exports by OTLP. Prometheus needs none.
    pub fn reader(self, reader: impl MetricReader) -> Self {
        Self { provider: self.provider.with_reader(reader) }
    }

    /// Sets the resource that the readers export: the name of the service, for example.
    pub fn resource(self, resource: Resource) -> Self {
        Self { provider: self.provider.with_resource(resource) }
    }

    /// Makes the metrics.
    pub fn build(self) -> Metrics {
        let registry = prometheus::Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
        let exporter = exporter.without_target_info().scope_info_enabled(false).build();
        // INVARIANT: a registry that was just made has no other collector.
        let exporter = exporter.expect("an empty registry");
        let bounded = |_: &Instrument| Stream::builder().with_cardinality_limit(MAX_SERIES).build().ok();
        let provider = self.provider.with_reader(exporter).with_view(bounded).build();
        let scope = InstrumentationScope::builder("machinist").with_schema_url(SCHEMA);
        let meter = provider.meter_with_scope(scope.build());
        let queues = Arc::new(MeasuredQueues::default());
        let workers: Arc<Mutex<Vec<Health>>> = Arc::default();
        observe_queues(&meter, &queues);
        observe_slots(&meter, &workers);
        let history_lag: Arc<Mutex<Duration>> = Arc::default();
        let lag = Arc::clone(&history_lag);
        let _lag = gauge(&meter, catalog::HISTORY_LAG, move |to| {
            to.observe(lag.lock().unwrap_or_else(PoisonError::into_inner).as_secs_f64(), &[]);
        });
        let version = [KeyValue::new("version", env!("CARGO_PKG_VERSION"))];
        let _info = gauge(&meter, catalog::BUILD_INFO, move |to| to.observe(1.0, &version));
        Metrics(Arc::new(MetricsState {
            instruments: Instruments::new(&meter),
            provider,
            registry,
            series: Series::default(),
            queues,
            workers,
            history_lag,
            away_since: Default::default(),
        }))
    }
}

fn observe_queues(meter: &opentelemetry::metrics::Meter, queues: &Arc<MeasuredQueues>) {
    let of = |queue: &str| label("queue", queue);
    let measured = Arc::clone(queues);
    let _messages = gauge(meter, catalog::QUEUE_MESSAGES, move |to| {
        measured.each(|queue, measured| {
            to.observe(measured.ready as f64, &[of(queue), KeyValue::new("state", "ready")]);
            to.observe(measured.dead as f64, &[of(queue), KeyValue::new("state", "dead")]);
            // Absent where nobody tells: 0 would be a lie.
            for (state, count) in [("delayed", measured.delayed), ("unacked", measured.unacked)] {
                if let Some(count) = count {
                    to.observe(count as f64, &[of(queue), KeyValue::new("state", state)]);
                }
            }
        });
    });
    let measured = Arc::clone(queues);
    let _age = gauge(meter, catalog::QUEUE_OLDEST_AGE, move |to| {
        measured.each(|queue, measured| to.observe(measured.oldest_age.as_secs_f64(), &[of(queue)]));
    });
    let measured = Arc::clone(queues);
    let _consumers = gauge(meter, catalog::QUEUE_CONSUMERS, move |to| {
        measured.each(|queue, measured| to.observe(measured.consumers as f64, &[of(queue)]));
    });
    let measured = Arc::clone(queues);
    let _measured_age = gauge(meter, catalog::QUEUE_MEASURED_AGE, move |to| {
        if let Some(age) = measured.age() {
            to.observe(age.as_secs_f64(), &[]);
        }
    });
}

fn observe_slots(meter: &opentelemetry::metrics::Meter, workers: &Arc<Mutex<Vec<Health>>>) {
    let sum = |workers: &Mutex<Vec<Health>>, of: fn(&Health) -> usize| {
        workers.lock().unwrap_or_else(PoisonError::into_inner).iter().map(of).sum::<usize>() as f64
    };
    let attached = Arc::clone(workers);
    let _busy = gauge(meter, catalog::SLOTS_BUSY, move |to| to.observe(sum(&attached, Health::running), &[]));
    let attached = Arc::clone(workers);
    let _session = gauge(meter, catalog::SESSION_AGE, {
        let attached = Arc::clone(workers);
        move |to| {
            let attached = attached.lock().unwrap_or_else(PoisonError::into_inner);
            // That of the worker that is worst off.
            if let Some(age) = attached.iter().map(Health::session_age).max() {
                to.observe(age.as_secs_f64(), &[]);
            }
        }
    });
    let _limit = gauge(meter, catalog::SLOTS_LIMIT, move |to| to.observe(sum(&attached, Health::slots), &[]));
}

impl Metrics {
    /// Starts to make metrics.
    pub fn builder() -> MetricsBuilder {
        MetricsBuilder { provider: SdkMeterProvider::builder() }
    }

    /// Shows the slots of a worker of this process. Its events reach the metrics as those of every observer.
    pub fn attach(&self, worker: Health) {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }

    /// Registers names of tasks and queues as labels, in a process that only sends. A worker registers its own.
    pub fn register<'a>(
        &self,
        tasks: impl IntoIterator<Item = &'a str>,
        queues: impl IntoIterator<Item = &'a str>,
    ) {
        self.0.series.register(tasks, queues);
    }

    /// Wraps a backend so that its calls are timed.
    pub fn timed(&self, backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(TimedBackend::new(backend, self.0.instruments.store.clone()))
    }

    /// Returns all metrics in the text format of Prometheus.
    pub fn prometheus(&self) -> String {
        // INVARIANT: the text is made of what the exporter has just checked; an empty one is shown as a scrape that failed.
        TextEncoder::new().encode_to_string(&self.0.registry.gather()).unwrap_or_default()
    }

    /// Exports what the readers have not exported yet, and ends them. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// A reader could not export.
    pub fn shutdown(&self) -> Result<(), OTelSdkError> {
        self.0.provider.shutdown_with_timeout(Duration::from_secs(3))
    }

    fn task(&self, task: machinist_core::event::EventTask<'_>) -> Arc<series::TaskSeries> {
        self.0.series.of_task(&self.0.instruments, task.queue.as_str(), task.name.as_str())
    }

    fn queue(&self, task: machinist_core::event::EventTask<'_>) -> Arc<series::QueueSeries> {
        self.0.series.of_queue(&self.0.instruments, task.queue.as_str())
    }
}
