//! The log of a worker's events. Refused messages are logged without letting their sender fill the log.

use std::time::Duration;

use super::Drained;
use crate::{
    event::{Event, EventKind, EventTask, Observer, WorkerState},
    id::QueueName,
    log_lines::LogLines,
    refused::remedy,
};

/// Logs events.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    refusals: LogLines,
    deferrals: LogLines,
}

impl Observer for EventLog {
    fn observe(&self, event: &Event<'_>) {
        match event.kind {
            // Arguments and results are not logged: they belong to the user.
            // One line for each run, in the span of the run, which names worker, task, id, queue and attempt.
            EventKind::Ended { failure: None, run_time: Some(took), .. } => {
                tracing::info!(outcome = "SUCCESS", duration_ms = millis(took), "ended");
            }
            EventKind::Ended { failure: Some((kind, error)), run_time: Some(took), .. } => {
                let error = error.message();
                tracing::error!(outcome = "FAILURE", duration_ms = millis(took), %kind, error, "ended");
            }
            EventKind::Retried { due, kind, error, run_time: took, .. } => {
                let error = error.message();
                tracing::warn!(outcome = "RETRY", duration_ms = millis(took), %kind, %due, error, "ended");
            }
            EventKind::Superseded { task } => {
                tracing::warn!(id = %task.id, "another run has taken this task over: the outcome of this run does not count");
            }
            EventKind::Deferred { queue, task, reason, error, remaining } => {
                self.log_deferral(event.worker, queue, task, reason, error, remaining);
            }
            EventKind::Refused { queue, reason, error, .. } => {
                self.log_refusal(event.worker, queue, reason, error)
            }
            EventKind::WorkerStarted { queues, .. } => {
                tracing::info!(worker = event.worker, queues = ?queues, "ready");
            }
            EventKind::WorkerState { state } => log_state(event.worker.unwrap_or_default(), state),
            EventKind::WorkerEnded { handed_back, unfinished, refused, dead_letters } => {
                let drained = Drained { handed_back, unfinished, refused, restart_exit_code: None };
                tracing::info!(worker = event.worker, ?drained, ?dead_letters, "stopped");
            }
            _ => {}
        }
    }
}

/// Returns a duration in milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Returns a duration in whole minutes, or in seconds below two minutes.
fn round(duration: Duration) -> String {
    match duration.as_secs_f64().round() {
        seconds if seconds < 120.0 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", (seconds / 60.0).round()),
    }
}

fn log_state(worker: &str, state: WorkerState<'_>) {
    match state {
        WorkerState::Draining { running } => tracing::info!(worker, running, "draining"),
        WorkerState::BackendAway => {
            tracing::error!(worker, "the backend is away: taking no deliveries until it answers");
        }
        WorkerState::BackendBack => tracing::info!(worker, "the backend is back"),
        // The adapter logs it, with the error.
        WorkerState::BrokerAway | WorkerState::BrokerBack => {}
        WorkerState::SessionExpired { running } => {
            tracing::warn!(
                worker,
                running,
                "the session has expired: opening a new one and adopting what runs"
            )
        }
        WorkerState::CutOff { running } => tracing::error!(
            worker,
            running,
            "the backend and the broker are away, and the lease has expired: other workers may run the same tasks, so \
             all runs are cancelled"
        ),
        WorkerState::Withdrawn { running, away } => tracing::error!(
            worker,
            running,
            "the backend has been away for {away:?}: cancelling all runs, handing back all deliveries, and taking no \
             more until it answers. Unrecorded outcomes are kept"
        ),
        WorkerState::Asleep { running } => {
            tracing::info!(worker, running, "asleep: taking no deliveries until the worker is resumed")
        }
        WorkerState::Resubscribed { queues } => tracing::info!(worker, queues = ?queues, "subscribed again"),
    }
}

impl EventLog {
    /// Logs a refused message, if a line about this reason and queue is due.
    fn log_refusal(&self, worker: Option<&str>, queue: &QueueName, reason: &'static str, error: &str) {
        if let Some(suppressed) = self.refusals.due(reason, queue.as_str()) {
            tracing::warn!(worker, %queue, reason, error, suppressed, "a message was refused and is a dead letter now");
        }
    }

    /// Logs a message that waits for a worker that can run or read it, if a line about this reason and task is due, or
    /// about this reason and queue if the message was not read.
    fn log_deferral(
        &self,
        worker: Option<&str>,
        queue: &QueueName,
        task: Option<EventTask<'_>>,
        reason: &'static str,
        error: &str,
        remaining: Duration,
    ) {
        let name = task.map_or(queue.as_str(), |task| task.name.as_str());
        if let Some(suppressed) = self.deferrals.due(reason, name) {
            let id = task.map(|task| tracing::field::display(task.id));
            let remedy = remedy(reason, true);
            if remaining == Duration::MAX {
                tracing::warn!(
                    worker, %queue, id, reason, error, suppressed,
                    "no worker here accepts a message: it is left to the program that shares the queue, and is offered again \
                     until that takes it"
                );
                return;
            }
            tracing::warn!(
                worker, %queue, id, reason, error, suppressed, remedy,
                "no worker here accepts a message: it is offered again for {}, and is a dead letter then",
                round(remaining)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_round() {
        assert_eq!(round(Duration::from_millis(3_599_871)), "60 minutes");
        assert_eq!(round(Duration::from_millis(119_400)), "119 seconds");
        assert!((millis(Duration::from_nanos(12_345_678)) - 12.346).abs() < 1e-9);
    }
}
