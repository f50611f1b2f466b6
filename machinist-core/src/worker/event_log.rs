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
            EventKind::Ended { failure: None, run_time: Some(took), .. } => {
                tracing::debug!(?took, "SUCCESS");
            }
            EventKind::Ended { failure: Some((kind, error)), run_time: Some(took), .. } => {
                tracing::error!(?took, %kind, error = error.message(), "FAILURE");
            }
            EventKind::Retried { due, error, run_time: took, .. } => {
                tracing::warn!(?took, %due, error = error.message(), "RETRY");
            }
            EventKind::Superseded { task } => {
                tracing::warn!(id = %task.id, "another run has taken this task over: the outcome of this run does not count");
            }
            EventKind::Deferred { queue, task, reason, error, remaining } => {
                self.log_deferral(queue, task, reason, error, remaining);
            }
            EventKind::Refused { queue, reason, error, .. } => self.log_refusal(queue, reason, error),
            EventKind::WorkerStarted { queues } => {
                tracing::info!(worker = event.worker, queues = ?queues, "ready");
            }
            EventKind::WorkerState { state } => log_state(state),
            EventKind::WorkerEnded { handed_back, unfinished, refused, dead_letters } => {
                let drained = Drained { handed_back, unfinished, refused, restart_exit_code: None };
                tracing::info!(?drained, ?dead_letters, "stopped");
            }
            _ => {}
        }
    }
}

fn log_state(state: WorkerState<'_>) {
    match state {
        WorkerState::Draining { running } => tracing::info!(running, "draining"),
        WorkerState::BackendAway => {
            tracing::error!("the backend is away: taking no deliveries until it answers");
        }
        WorkerState::BackendBack => tracing::info!("the backend is back"),
        // The adapter logs it, with the error.
        WorkerState::BrokerAway | WorkerState::BrokerBack => {}
        WorkerState::SessionExpired { running } => {
            tracing::warn!(running, "the session has expired: opening a new one and adopting what runs")
        }
        WorkerState::CutOff { running } => tracing::error!(
            running,
            "the backend and the broker are away, and the lease has expired: other workers may run the same tasks, so \
             all runs are cancelled"
        ),
        WorkerState::Withdrawn { running, away } => tracing::error!(
            running,
            "the backend has been away for {away:?}: cancelling all runs, handing back all deliveries, and taking no \
             more until it answers. Unrecorded outcomes are kept"
        ),
        WorkerState::Asleep { running } => {
            tracing::info!(running, "asleep: taking no deliveries until the worker is resumed")
        }
        WorkerState::Resubscribed { queues } => tracing::info!(queues = ?queues, "subscribed again"),
    }
}

impl EventLog {
    /// Logs a refused message, if a line about this reason and queue is due.
    fn log_refusal(&self, queue: &QueueName, reason: &'static str, error: &str) {
        if let Some(suppressed) = self.refusals.due(reason, queue.as_str()) {
            tracing::warn!(%queue, reason, error, suppressed, "a message was refused and is a dead letter now");
        }
    }

    /// Logs a message that waits for a worker that can run or read it, if a line about this reason and task is due, or
    /// about this reason and queue if the message was not read.
    fn log_deferral(
        &self,
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
            tracing::warn!(
                %queue, id, reason, error, suppressed, remedy,
                "no worker here accepts a message: it is offered again for {remaining:?}, and is a dead letter then"
            );
        }
    }
}
