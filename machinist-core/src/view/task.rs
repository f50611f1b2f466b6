//! A task, as `status` prints it.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::ArgsView;
use crate::{
    QueueName, TaskId,
    clock::Timestamp,
    record::{Attempt, ErrorText, FailureKind, Record, TaskState},
};

/// Time after the due time from which a task is overdue.
const OVERDUE_AFTER: Duration = Duration::from_secs(120);

/// Task as `status --json` and `send --wait --json` print it. Instants are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskView {
    /// Id.
    pub id: String,
    /// Name; `None` if the part of the record that the sender writes is missing.
    pub name: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// State.
    pub state: TaskState,
    /// Kind of its failure.
    pub kind: Option<FailureKind>,
    /// 0 for success, below zero for a failure, `None` before the end.
    pub code: Option<i32>,
    /// Number of the newest attempt.
    pub attempt: u32,
    /// Worker that ran it last.
    pub worker: Option<String>,
    /// Time of sending.
    pub sent_at: Option<String>,
    /// Time at which a worker last received it.
    pub received_at: Option<String>,
    /// Time at which a handler was last started.
    pub started_at: Option<String>,
    /// Time of its end.
    pub ended_at: Option<String>,
    /// Time before which it is not run.
    pub eta: Option<String>,
    /// Time after which it is not started.
    pub expires_at: Option<String>,
    /// Duration of the last run, in seconds.
    pub duration: Option<f64>,
    /// Arguments.
    #[serde(flatten)]
    pub args: ArgsView,
    /// Results.
    pub results: Vec<Value>,
    /// Error of its end, or of its last attempt so far.
    pub error: Option<ErrorView>,
    /// Id of its trace.
    pub trace_id: Option<String>,
    /// Address of the trace, if there is a template of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_link: Option<String>,
    /// Earlier attempts, the oldest first.
    pub history: Vec<AttemptView>,
    /// Log of the last finished run.
    pub log: String,
    /// Progress of the newest attempt, if its handler reports it.
    pub progress: Option<ProgressView>,
    /// Reason that its outcome cannot be shown.
    pub locked: Option<String>,
    /// `true` if a key proves that a worker wrote the outcome, `None` before the end.
    pub verified: Option<bool>,
    /// Parking of the task, while a rule of admission refuses its start.
    pub parked: Option<ParkedView>,
    /// Seconds since its due time, if that is long ago and no worker has received it.
    pub overdue: Option<u64>,
    /// `true` if it was asked to end, and still runs.
    pub revoked: bool,
    /// Failed task that this one repeats.
    pub retry_of: Option<String>,
    /// Task that repeats this failed one.
    pub retried_as: Option<String>,
    /// Task whose end counts in the place of this one.
    pub continued_by: Option<String>,
    /// Root of the workflow that it belongs to.
    pub workflow: Option<String>,
}

/// Parking of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ParkedView {
    /// Reason, as `CODE:SUBJECT`.
    pub reason: String,
    /// Time since when it waits for this reason.
    pub since: String,
    /// Time at which its message comes back by itself.
    pub until: String,
}

/// Progress that a handler has reported.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ProgressView {
    /// Number of steps that are done.
    pub done: u64,
    /// 0 if unknown.
    pub total: u64,
    /// Note of the handler.
    pub note: String,
    /// Time of the report.
    pub at: String,
}

/// Error with its causes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ErrorView {
    /// The message alone.
    pub message: String,
    /// The message and its causes, outermost first.
    pub chain: Vec<String>,
}

/// Attempt that is over and was followed by another.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AttemptView {
    /// Its number.
    pub attempt: u32,
    /// Kind of its failure.
    pub kind: FailureKind,
    /// Worker that ran it.
    pub worker: String,
    /// Time of its end.
    pub ended_at: String,
    /// Due time of the next run.
    pub next_run: String,
    /// Error of its end, or of its last attempt so far.
    pub error: ErrorView,
}

impl From<&ErrorText> for ErrorView {
    fn from(error: &ErrorText) -> Self {
        Self { message: error.message().to_owned(), chain: error.chain.clone() }
    }
}

impl From<&Attempt> for AttemptView {
    fn from(attempt: &Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            kind: attempt.kind,
            worker: attempt.worker.clone(),
            ended_at: attempt.ended_at.to_string(),
            next_run: attempt.next_run.to_string(),
            error: (&attempt.error).into(),
        }
    }
}

impl From<&Record> for TaskView {
    fn from(record: &Record) -> Self {
        let instant = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let took = match (record.started_at, record.ended_at) {
            (Some(start), Some(end)) => Some(end.since(start).as_secs_f64()),
            _ => None,
        };
        Self {
            id: record.id.to_string(),
            name: record.name.clone(),
            queue: record.queue.clone(),
            state: record.state,
            kind: record.kind,
            code: match record.state {
                TaskState::Success => Some(0),
                _ => record.kind.map(FailureKind::code),
            },
            attempt: record.attempt,
            worker: record.worker.clone(),
            sent_at: instant(record.sent_at),
            received_at: instant(record.received_at),
            started_at: instant(record.started_at),
            ended_at: instant(record.ended_at),
            eta: instant(record.eta),
            expires_at: instant(record.expires_at),
            duration: took,
            args: ArgsView::default(),
            results: record.results.iter().flat_map(|r| &r.0).map(|arg| arg.value.clone()).collect(),
            error: record.error.as_ref().map(Into::into),
            trace_id: record.trace_id().map(str::to_owned),
            trace_link: None,
            history: record.history.iter().map(Into::into).collect(),
            log: record.log.clone(),
            progress: record.progress.as_ref().map(|progress| ProgressView {
                done: progress.done,
                total: progress.total,
                note: progress.note.clone(),
                at: progress.at.to_string(),
            }),
            locked: record.locked.clone(),
            verified: None,
            parked: record.parked.as_ref().map(|parked| ParkedView {
                reason: parked.reason.clone(),
                since: parked.since.to_string(),
                until: parked.until.to_string(),
            }),
            overdue: None,
            revoked: record.revoked,
            retry_of: record.retry_of.as_ref().map(TaskId::to_string),
            retried_as: record.retried_as.as_ref().map(TaskId::to_string),
            continued_by: record.continued_by.as_ref().map(TaskId::to_string),
            workflow: None,
        }
    }
}

impl TaskView {
    /// Returns the view of a task that was sent, and whose record is still empty.
    pub fn pending(id: &TaskId, name: &str, queue: &QueueName) -> Self {
        Self {
            id: id.to_string(),
            name: Some(name.to_owned()),
            queue: Some(queue.to_string()),
            state: TaskState::Pending,
            kind: None,
            code: None,
            attempt: 1,
            worker: None,
            sent_at: None,
            received_at: None,
            started_at: None,
            ended_at: None,
            eta: None,
            expires_at: None,
            duration: None,
            args: ArgsView::default(),
            results: Vec::new(),
            error: None,
            trace_id: None,
            trace_link: None,
            history: Vec::new(),
            log: String::new(),
            progress: None,
            locked: None,
            verified: None,
            parked: None,
            overdue: None,
            revoked: false,
            retry_of: None,
            retried_as: None,
            continued_by: None,
            workflow: None,
        }
    }

    /// Adds whether a key proves that a worker wrote the outcome, if there is one.
    #[must_use]
    pub fn verified(self, verified: bool) -> Self {
        Self { verified: self.state.is_final().then_some(verified), ..self }
    }

    /// Adds whether the next run should have begun long ago.
    #[must_use]
    pub fn at(self, record: &Record, now: Timestamp) -> Self {
        let due = record.eta.filter(|_| record.parked.is_none());
        Self { overdue: overdue(record.state, due, now), ..self }
    }

    /// Adds the arguments of the task.
    #[must_use]
    pub fn with_args(self, args: ArgsView) -> Self {
        Self { args, ..self }
    }

    /// Names the root of the workflow that the task belongs to.
    #[must_use]
    pub fn of_workflow(self, workflow: Option<String>) -> Self {
        Self { workflow, ..self }
    }
}

/// Returns the seconds since the due time of a task, if that is long ago and no worker has received it.
fn overdue(state: TaskState, due: Option<Timestamp>, now: Timestamp) -> Option<u64> {
    let late = now.since(due.filter(|_| matches!(state, TaskState::Pending | TaskState::Retry))?);
    (late >= OVERDUE_AFTER).then_some(late.as_secs())
}

/// Serializes a record with the fields of [`TaskView`].
impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TaskView::from(self).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_nobody_receives_is_overdue_after_its_time() {
        let due = Timestamp::from_micros(1_000_000_000);
        let overdue = |state, due, late| {
            overdue(state, due, Timestamp::from_micros(1_000_000_000).plus(Duration::from_secs(late)))
        };
        assert_eq!(overdue(TaskState::Pending, None, 500), None, "it was not delayed");
        assert_eq!(overdue(TaskState::Pending, Some(due), 119), None);
        assert_eq!(overdue(TaskState::Retry, Some(due), 120), Some(120));
        assert_eq!(overdue(TaskState::Started, Some(due), 500), None);
    }
}
