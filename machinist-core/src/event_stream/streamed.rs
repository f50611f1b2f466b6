//! An event as it is published: owned, and readable by other processes and later versions. Pure.

use serde::{Deserialize, Serialize};

use crate::{
    event::{Event, EventKind, EventTask, WorkerState},
    record::{ErrorText, TaskState},
};

/// Maximum size of an error or a note in an event, in bytes.
const MAX_TEXT: usize = 500;

/// An event of any process of the installation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StreamedEvent {
    /// Backend time, after RFC 3339.
    pub at: String,
    /// Name of the event; `gap` if events are missing here, because a process dropped some or the reader was too slow.
    pub event: String,
    /// Task id.
    pub id: Option<String>,
    /// Task name.
    pub task: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// State of the task after the event, or the state of a worker.
    pub state: Option<String>,
    /// Attempt.
    pub attempt: Option<u32>,
    /// Name of the worker; `None` for an event of a sender.
    pub worker: Option<String>,
    /// Kind of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Error of a failure, without its causes. Left out where the record encrypts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Reason of a refusal, a dead letter or a parking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Time of the next run or the return, after RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<String>,
    /// Progress, as `DONE/TOTAL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Number of events that are missing at least, of a gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
}

impl StreamedEvent {
    /// Returns what is published of an event.
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut streamed = Self {
            at: event.at().to_string(),
            event: event.name().to_owned(),
            worker: event.worker.map(str::to_owned),
            ..Self::default()
        };
        if let Some(task) = event.task() {
            streamed.set_task(task);
        }
        streamed.set_data(&event.kind);
        streamed
    }

    /// Creates the event that tells of missing ones.
    pub(super) fn gap(at: String, worker: Option<String>, missing: u64) -> Self {
        Self { at, event: "gap".to_owned(), worker, missing: Some(missing), ..Self::default() }
    }

    fn set_task(&mut self, task: EventTask<'_>) {
        self.id = Some(task.id.to_string());
        self.task = Some(task.name.to_string());
        self.queue = Some(task.queue.to_string());
        self.attempt = Some(task.attempt);
    }

    fn set_data(&mut self, kind: &EventKind<'_>) {
        let state = |state: TaskState| Some(state.as_str().to_owned());
        let clear = |error: &ErrorText, encrypted: bool| (!encrypted).then(|| short(error.message()));
        match *kind {
            EventKind::Sent { eta, .. } => {
                self.state = state(TaskState::Pending);
                self.due = eta.map(|eta| eta.to_string());
            }
            EventKind::Received { .. } => self.state = state(TaskState::Received),
            EventKind::Started { .. } | EventKind::TakenOver { .. } => self.state = state(TaskState::Started),
            EventKind::Progress { progress, .. } => {
                self.state = state(TaskState::Started);
                self.progress = Some(format!("{}/{}", progress.done, progress.total));
            }
            EventKind::Retried { due, kind, error, encrypted, .. } => {
                self.state = state(TaskState::Retry);
                self.due = Some(due.to_string());
                self.kind = Some(kind.as_str().to_owned());
                self.error = clear(error, encrypted);
            }
            EventKind::Ended { state: ended, failure, encrypted, .. } => {
                self.state = state(ended);
                if let Some((kind, error)) = failure {
                    self.kind = Some(kind.as_str().to_owned());
                    self.error = clear(error, encrypted);
                }
            }
            EventKind::Refused { queue, reason, error, .. } => {
                self.queue = Some(queue.to_string());
                self.reason = Some(reason.to_owned());
                self.error = Some(short(error));
            }
            EventKind::Deferred { queue, reason, .. } | EventKind::DeadLettered { queue, reason, .. } => {
                self.queue = Some(queue.to_string());
                self.reason = Some(reason.to_owned());
            }
            EventKind::Parked { reason, until, .. } => {
                self.state = state(TaskState::Pending);
                self.reason = Some(reason.to_owned());
                self.due = Some(until.to_string());
            }
            EventKind::Overdue { due, .. } => self.due = Some(due.to_string()),
            EventKind::WorkerState { state, .. } => self.state = Some(WorkerState::name(&state).to_owned()),
            _ => {}
        }
    }
}

fn short(text: &str) -> String {
    let mut text = ErrorText::from(text);
    text.shorten(MAX_TEXT);
    text.chain.pop().unwrap_or_default()
}
