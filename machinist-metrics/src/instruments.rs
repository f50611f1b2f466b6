//! Instruments of one meter, made from the catalog.

use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram, Meter, ObservableGauge};

use crate::catalog::{self, BUCKETS, MetricInfo};

/// Instruments that events are counted with.
pub(crate) struct Instruments {
    pub(crate) sent: Counter<u64>,
    pub(crate) consumed: Counter<u64>,
    pub(crate) operation: Histogram<f64>,
    pub(crate) process: Histogram<f64>,
    pub(crate) store: Histogram<f64>,
    pub(crate) wait: Histogram<f64>,
    pub(crate) lateness: Histogram<f64>,
    pub(crate) ended: Counter<u64>,
    pub(crate) retries: Counter<u64>,
    pub(crate) refused: Counter<u64>,
    pub(crate) parked: Counter<u64>,
    pub(crate) taken_over: Counter<u64>,
    pub(crate) overdue: Counter<u64>,
    pub(crate) send_dropped: Counter<u64>,
    pub(crate) dead_letters: Counter<u64>,
    pub(crate) reconnects: Counter<u64>,
    pub(crate) away: Counter<f64>,
    pub(crate) sessions_lost: Counter<u64>,
    pub(crate) events_dropped: Counter<u64>,
    pub(crate) hook_failures: Counter<u64>,
    pub(crate) series_dropped: Counter<u64>,
}

impl Instruments {
    pub(crate) fn new(meter: &Meter) -> Self {
        let counter = |info: MetricInfo| {
            meter.u64_counter(info.name).with_unit(info.unit).with_description(info.meaning).build()
        };
        let histogram = |info: MetricInfo| {
            let histogram = meter.f64_histogram(info.name).with_unit(info.unit);
            histogram.with_description(info.meaning).with_boundaries(BUCKETS.to_vec()).build()
        };
        let away = catalog::AWAY;
        Self {
            sent: counter(catalog::SENT),
            consumed: counter(catalog::CONSUMED),
            operation: histogram(catalog::OPERATION),
            process: histogram(catalog::PROCESS),
            store: histogram(catalog::STORE),
            wait: histogram(catalog::WAIT),
            lateness: histogram(catalog::LATENESS),
            ended: counter(catalog::ENDED),
            retries: counter(catalog::RETRIES),
            refused: counter(catalog::REFUSED),
            parked: counter(catalog::PARKED),
            taken_over: counter(catalog::TAKEN_OVER),
            overdue: counter(catalog::OVERDUE),
            send_dropped: counter(catalog::SEND_DROPPED),
            dead_letters: counter(catalog::DEAD_LETTERS),
            reconnects: counter(catalog::RECONNECTS),
            away: meter.f64_counter(away.name).with_unit(away.unit).with_description(away.meaning).build(),
            sessions_lost: counter(catalog::SESSIONS_LOST),
            events_dropped: counter(catalog::EVENTS_DROPPED),
            hook_failures: counter(catalog::HOOK_FAILURES),
            series_dropped: counter(catalog::SERIES_DROPPED),
        }
    }
}

/// Makes a gauge that is read whenever somebody collects.
pub(crate) fn gauge(
    meter: &Meter,
    info: MetricInfo,
    read: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
) -> ObservableGauge<f64> {
    let gauge = meter.f64_observable_gauge(info.name).with_unit(info.unit);
    gauge.with_description(info.meaning).with_callback(read).build()
}
