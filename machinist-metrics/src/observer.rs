//! Translation of events into measurements.

use std::time::Duration;

use machinist_core::{
    event::{Event, EventKind, EventTask, Observer, WorkerState},
    record::{FailureKind, TaskState},
};
use opentelemetry::KeyValue;
use tokio::time::Instant;

use crate::{
    Metrics,
    catalog::ERROR_TYPE,
    queues::MeasuredQueue,
    series::{Stage, TaskSeries, label},
};

impl Observer for Metrics {
    fn observe(&self, event: &Event<'_>) {
        match event.kind {
            EventKind::Sent { task, confirm_wait, .. } => self.sent(task, confirm_wait),
            EventKind::Received { task, generation, broker_wait, delayed, .. } => {
                let queue = self.queue(task);
                queue.consumed.add(1);
                if delayed && generation == 0 {
                    queue.lateness.record(broker_wait.as_secs_f64());
                }
                // A guard is a copy that comes back: the task has waited in a worker, not in the broker.
                if generation == 0 {
                    self.task(task).wait(Stage::Broker, broker_wait);
                }
            }
            EventKind::Started { task, prefetch_wait, slot_wait, start_wait, .. } => {
                let series = self.task(task);
                series.wait(Stage::Prefetch, prefetch_wait);
                series.wait(Stage::Slot, slot_wait);
                series.wait(Stage::Start, start_wait);
            }
            EventKind::Retried { task, kind, run_time, record_wait, .. } => {
                let series = self.task(task);
                series.retries.add(1);
                self.ran(&series, task, run_time, Some(kind));
                series.wait(Stage::Record, record_wait);
            }
            EventKind::Ended { task, state, failure, run_time, record_wait, .. } => {
                let kind = failure.map(|(kind, _)| kind);
                self.ended(task, state, kind, run_time, record_wait);
            }
            EventKind::FollowedUp { task, follow_up_wait, .. } => {
                self.task(task).wait(Stage::FollowUp, follow_up_wait);
            }
            EventKind::Parked { task, reason, .. } => {
                let series = self.task(task);
                let [queue, name] = series.labels.clone();
                // Only the code: what it is about may hold a key.
                let code = reason.split(':').next().unwrap_or_default();
                self.0.instruments.parked.add(1, &[queue, name, label("reason", code)]);
            }
            EventKind::TakenOver { task, .. } => {
                self.0.instruments.taken_over.add(1, &self.task(task).labels);
            }
            other => self.observe_rare(&other),
        }
    }

    fn measures_queues(&self) -> bool {
        true
    }
}

impl Metrics {
    /// Counts what does not belong to the ordinary life of a task.
    fn observe_rare(&self, kind: &EventKind<'_>) {
        let instruments = &self.0.instruments;
        let of_queue = |queue: &str| label("queue", self.0.series.queue_label(queue));
        match *kind {
            EventKind::Refused { queue, reason, .. } => {
                instruments.refused.add(1, &[of_queue(queue.as_str()), KeyValue::new("reason", reason)]);
            }
            EventKind::DeadLettered { queue, reason, .. } => {
                instruments.dead_letters.add(1, &[of_queue(queue.as_str()), KeyValue::new("reason", reason)]);
            }
            EventKind::SendDropped { task, .. } => {
                // A process that only sends registers no queue.
                let [_, destination] = self.queue(task).labels.clone();
                instruments.send_dropped.add(1, &[KeyValue::new("queue", destination.value)]);
            }
            EventKind::Overdue { task, .. } => {
                instruments.overdue.add(1, &[of_queue(task.queue.as_str())]);
            }
            EventKind::QueueMeasured {
                queue, ready, dead, consumers, oldest_age, delayed, unacked, ..
            } => {
                let measured = MeasuredQueue { ready, dead, consumers, oldest_age, delayed, unacked };
                self.0.queues.put(queue.as_str(), measured);
            }
            EventKind::WorkerMeasured { history_lag, events_dropped, hook_failures, .. } => {
                *self.0.history_lag.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = history_lag;
                instruments.events_dropped.add(events_dropped, &[]);
                instruments.hook_failures.add(hook_failures, &[]);
            }
            EventKind::WorkerStarted { queues, tasks, .. } => {
                let queues = queues.iter().map(|queue| queue.as_str());
                self.0.series.register(tasks.iter().map(|task| task.as_str()), queues);
            }
            EventKind::WorkerState { state, .. } => self.worker_state(state),
            _ => {}
        }
    }

    fn worker_state(&self, state: WorkerState<'_>) {
        let [broker, backend] = &self.0.away_since;
        match state {
            WorkerState::BrokerAway => note_away(broker),
            WorkerState::BackendAway => note_away(backend),
            WorkerState::BrokerBack => self.back("broker", broker),
            WorkerState::BackendBack => self.back("backend", backend),
            WorkerState::SessionExpired { .. } => self.0.instruments.sessions_lost.add(1, &[]),
            WorkerState::Resubscribed { queues, .. } => {
                self.0.series.register([], queues.iter().map(|queue| queue.as_str()));
            }
            _ => {}
        }
    }

    fn back(&self, server: &'static str, since: &AwaySince) {
        let labels = [KeyValue::new("server", server)];
        let since = since.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        self.0.instruments.reconnects.add(1, &labels);
        let away = since.map_or(Duration::ZERO, |since| since.elapsed());
        self.0.instruments.away.add(away.as_secs_f64(), &labels);
    }

    fn sent(&self, task: EventTask<'_>, confirm_wait: Duration) {
        let queue = self.queue(task);
        queue.sent.add(1);
        queue.operation.record(confirm_wait.as_secs_f64());
        self.task(task).wait(Stage::Confirm, confirm_wait);
    }

    fn ended(
        &self,
        task: EventTask<'_>,
        state: TaskState,
        kind: Option<FailureKind>,
        run_time: Option<Duration>,
        record_wait: Duration,
    ) {
        let series = self.task(task);
        match kind {
            None => series.succeeded.add(1),
            Some(kind) => {
                let [queue, name] = series.labels.clone();
                let state = KeyValue::new("state", state.as_str());
                self.0.instruments.ended.add(1, &[queue, name, state, KeyValue::new("kind", kind.as_str())]);
            }
        }
        if let Some(run_time) = run_time {
            self.ran(&series, task, run_time, kind);
        }
        series.wait(Stage::Record, record_wait);
    }

    /// Records the time of a run.
    fn ran(&self, series: &TaskSeries, task: EventTask<'_>, took: Duration, kind: Option<FailureKind>) {
        series.wait(Stage::Run, took);
        let queue = self.queue(task);
        match kind {
            None => queue.process.record(took.as_secs_f64()),
            Some(kind) => {
                let [system, destination] = queue.labels.clone();
                let labels = [system, destination, KeyValue::new(ERROR_TYPE, kind.as_str())];
                self.0.instruments.process.record(took.as_secs_f64(), &labels);
            }
        }
    }
}

/// Time since when a server is away.
pub(crate) type AwaySince = std::sync::Mutex<Option<Instant>>;

fn note_away(since: &AwaySince) {
    since.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert_with(Instant::now);
}
