//! Catalog of the metrics: name, type, unit, labels and meaning of each, in one place.
//!
//! The instruments are made from it, and a test compares it with the table in `docs/metrics.md` and with what a scrape shows.

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// Durations in buckets.
    Histogram,
    /// A number of this moment.
    Gauge,
}

impl MetricKind {
    /// Returns the type as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Histogram => "histogram",
            Self::Gauge => "gauge",
        }
    }
}

/// Description of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricInfo {
    /// Name in OpenTelemetry.
    pub name: &'static str,
    /// Type.
    pub kind: MetricKind,
    /// Unit after UCUM; `s` for seconds, `{task}` for a count of tasks.
    pub unit: &'static str,
    /// Names of its labels in OpenTelemetry.
    pub labels: &'static [&'static str],
    /// Meaning, in one line.
    pub meaning: &'static str,
}

impl MetricInfo {
    /// Returns the name under which Prometheus shows it.
    pub fn prometheus_name(&self) -> String {
        let unit = if self.unit == "s" { "_seconds" } else { "" };
        let total = if self.kind == MetricKind::Counter { "_total" } else { "" };
        format!("{}{unit}{total}", self.name.replace('.', "_"))
    }
}

/// Upper bounds of the buckets of every histogram, in seconds: 1 ms to 6 h.
pub const BUCKETS: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0, 21600.0,
];

/// Name of a queue, after OpenTelemetry.
pub(crate) const DESTINATION: &str = "messaging.destination.name";
/// Messaging system, after OpenTelemetry.
pub(crate) const SYSTEM: &str = "messaging.system";
/// Reason of a failure, after OpenTelemetry.
pub(crate) const ERROR_TYPE: &str = "error.type";

/// Defines the metrics, and the list of all.
macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal, $unit:literal, [$($label:expr),*], $meaning:literal;)+) => {
        $(pub(crate) const $constant: MetricInfo = MetricInfo {
            name: $name,
            kind: MetricKind::$kind,
            unit: $unit,
            labels: &[$($label),*],
            meaning: $meaning,
        };)+

        /// All metrics, in the order of the table in `docs/metrics.md`.
        pub const METRICS: &[MetricInfo] = &[$($constant),+];
    };
}

metrics! {
    SENT = Counter "messaging.client.sent.messages", "{message}", [SYSTEM, DESTINATION],
        "Tasks that the broker has confirmed";
    CONSUMED = Counter "messaging.client.consumed.messages", "{message}", [SYSTEM, DESTINATION],
        "Messages of tasks that workers have received and verified";
    OPERATION = Histogram "messaging.client.operation.duration", "s", [SYSTEM, DESTINATION],
        "Time from the publish of a task to its confirm";
    PROCESS = Histogram "messaging.process.duration", "s", [SYSTEM, DESTINATION, ERROR_TYPE],
        "Time of a run; of a failed one with the failure kind";
    STORE = Histogram "db.client.operation.duration", "s", ["db.system.name", "db.operation.name", ERROR_TYPE],
        "Time of a call to the backend";
    WAIT = Histogram "machinist.task.wait.duration", "s", ["queue", "task", "stage"],
        "Time of a stage of a task, without a delay or back-off that was asked for";
    LATENESS = Histogram "machinist.delay.lateness", "s", ["queue"],
        "Time from the due time of a delayed task until a worker has received it";
    ENDED = Counter "machinist.task.ended", "{task}", ["queue", "task", "state", "kind"],
        "Tasks that have ended; a failure has its kind";
    RETRIES = Counter "machinist.task.retries", "{attempt}", ["queue", "task"],
        "Attempts that have ended in RETRY";
    REFUSED = Counter "machinist.task.refused", "{message}", ["queue", "reason"],
        "Messages that a worker did not accept";
    PARKED = Counter "machinist.task.parked", "{task}", ["queue", "task", "reason"],
        "Tasks that left a worker because a rule of admission refuses their start";
    TAKEN_OVER = Counter "machinist.task.taken.over", "{task}", ["queue", "task"],
        "Attempts that were started again because their worker was gone";
    OVERDUE = Counter "machinist.task.overdue", "{task}", ["queue"],
        "Delayed tasks that were published again, because the broker had lost them";
    SEND_DROPPED = Counter "machinist.send.dropped", "{task}", ["queue"],
        "Tasks that were dropped from the buffer of their sender before the broker has confirmed them";
    DEAD_LETTERS = Counter "machinist.dead.letters", "{message}", ["queue", "reason"],
        "Dead letters that the broker has confirmed";
    QUEUE_MESSAGES = Gauge "machinist.queue.messages", "{message}", ["queue", "state"],
        "Messages of a queue that are ready, delayed, unacked or dead letters, as far as the broker tells";
    QUEUE_OLDEST_AGE = Gauge "machinist.queue.oldest.age", "s", ["queue"],
        "Time for which the oldest ready message waits at most; 0 for an empty queue";
    QUEUE_CONSUMERS = Gauge "machinist.queue.consumers", "{worker}", ["queue"],
        "Live workers that take tasks from a queue";
    QUEUE_MEASURED_AGE = Gauge "machinist.queue.measured.age", "s", [],
        "Time since this process has measured the queues; absent in processes that do not measure";
    SLOTS_BUSY = Gauge "machinist.slots.busy", "{slot}", [],
        "Handlers that run in this process";
    SLOTS_LIMIT = Gauge "machinist.slots.limit", "{slot}", [],
        "Handlers that this process runs at once at most";
    RECONNECTS = Counter "machinist.server.reconnects", "{reconnect}", ["server"],
        "Times that the broker or the backend has come back";
    AWAY = Counter "machinist.server.away", "s", ["server"],
        "Time for which the broker or the backend was away, counted when it has come back";
    SESSION_AGE = Gauge "machinist.session.age", "s", [],
        "Time since the session of this process was last renewed";
    SESSIONS_LOST = Counter "machinist.session.expired", "{session}", [],
        "Sessions of this process that have expired";
    EVENTS_DROPPED = Counter "machinist.events.dropped", "{event}", [],
        "Events that this process has not published, because too many waited";
    HOOK_FAILURES = Counter "machinist.hook.failures", "{failure}", [],
        "Panics of observers, gates and other hooks, and gates that gave no answer in time";
    HISTORY_LAG = Gauge "machinist.history.lag", "s", [],
        "Age of the oldest part of the history that this process has not stored";
    SERIES_DROPPED = Counter "machinist.series.dropped", "{measurement}", [],
        "Measurements that were counted under _other, because there are too many label values";
    BUILD_INFO = Gauge "machinist.build.info", "{process}", ["version"],
        "1, with the version of machinist";
}
