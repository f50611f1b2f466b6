//! Views of a task's record: JSON for scripts, and a page for people. Pure.

use std::{fmt::Write, time::Duration};

use machinist::{
    QueueName, TaskId,
    clock::Timestamp,
    record::{Attempt, FailureKind, Record, TaskState},
    settings::{TraceLink, TracedTask, show_duration},
};
use serde::Serialize;
use serde_json::Value;

use crate::{args_view::ArgsView, people::People, spelling::as_argument, visible};

/// Task as `status --json` and `send --wait --json` print it. Instants are RFC 3339 in UTC.
#[derive(Debug, Serialize)]
pub(crate) struct TaskView {
    id: String,
    name: Option<String>,
    queue: Option<String>,
    pub(crate) state: TaskState,
    /// Kind of its failure.
    kind: Option<FailureKind>,
    /// 0 for success, below zero for a failure, `None` before the end.
    code: Option<i32>,
    attempt: u32,
    worker: Option<String>,
    sent_at: Option<String>,
    received_at: Option<String>,
    started_at: Option<String>,
    ended_at: Option<String>,
    /// Time before which it is not run.
    eta: Option<String>,
    /// Time after which it is not started.
    expires_at: Option<String>,
    /// Duration of the last run, in seconds.
    duration: Option<f64>,
    #[serde(flatten)]
    args: ArgsView,
    results: Vec<Value>,
    error: Option<ErrorView>,
    trace_id: Option<String>,
    /// Address of the trace, if there is a template of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_link: Option<String>,
    /// Earlier attempts, the oldest first.
    history: Vec<AttemptView>,
    /// Log of the last finished run.
    log: String,
    /// Progress of the newest attempt, if its handler reports it.
    pub(crate) progress: Option<ProgressView>,
    /// Reason that its outcome cannot be shown.
    locked: Option<String>,
    /// `true` if a key proves that a worker wrote the outcome, `None` before the end.
    verified: Option<bool>,
    /// Parking of the task, while a rule of admission refuses its start.
    parked: Option<ParkedView>,
    /// Seconds since its due time, if that is long ago and no worker has received it.
    overdue: Option<u64>,
    /// `true` if it was asked to end, and still runs.
    revoked: bool,
    /// Failed task that this one repeats.
    retry_of: Option<String>,
    /// Task that repeats this failed one.
    retried_as: Option<String>,
    /// Task whose end counts in the place of this one.
    continued_by: Option<String>,
    /// Root of the workflow that it belongs to.
    workflow: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct ParkedView {
    /// Reason, as `CODE:SUBJECT`.
    reason: String,
    /// Time since when it waits for this reason.
    since: String,
    /// Time at which its message comes back by itself.
    until: String,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ProgressView {
    pub(crate) done: u64,
    /// 0 if unknown.
    pub(crate) total: u64,
    note: String,
    at: String,
}

impl ProgressView {
    /// Returns the progress as text: `[######----] 60%  640 of 1000  resizing`.
    fn bar(&self) -> String {
        let Self { done, total, note, .. } = self;
        let mut bar = bar(*done, *total);
        if !note.is_empty() {
            let _ = write!(bar, "  {}", visible::one_line(note));
        }
        bar
    }
}

/// Time after the due time from which a task is overdue.
const OVERDUE_AFTER: Duration = Duration::from_secs(120);
/// Remark about an overdue task.
const NOT_RECEIVED: &str = "no worker has received it. It waits in its queue for a worker, or its message or the newest \
                            part of its record is lost; workers publish a lost message again";
/// Remark about an outcome that no key proves.
const NOT_VERIFIED: &str = "no: without a key here, anybody who can write to the backend may have written it";

/// Returns a progress bar; the number alone if the total is 0, which means unknown.
pub(crate) fn bar(done: u64, total: u64) -> String {
    if total == 0 {
        return done.to_string();
    }
    let share = (u128::from(done) * 100 / u128::from(total)).min(100) as usize;
    let filled = share * BAR_WIDTH / 100;
    format!("[{}{}] {share}%  {done} of {total}", "#".repeat(filled), "-".repeat(BAR_WIDTH - filled))
}

/// Width of a progress bar, in characters.
const BAR_WIDTH: usize = 20;

#[derive(Debug, Serialize)]
struct ErrorView {
    message: String,
    /// The message and its causes, outermost first.
    chain: Vec<String>,
}

#[derive(Debug, Serialize)]
struct AttemptView {
    attempt: u32,
    kind: FailureKind,
    worker: String,
    ended_at: String,
    next_run: String,
    error: ErrorView,
}

impl From<&machinist::record::ErrorText> for ErrorView {
    fn from(error: &machinist::record::ErrorText) -> Self {
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
    pub(crate) fn pending(id: &TaskId, name: &str, queue: &QueueName) -> Self {
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

    /// Adds the address of its trace, if it has one and there is a template.
    pub(crate) fn linked(self, template: Option<&TraceLink>) -> Self {
        let trace_link = self.trace_id.as_deref().zip(template).map(|(trace_id, template)| {
            template.of(TracedTask {
                trace_id,
                id: &self.id,
                task: self.name.as_deref().unwrap_or_default(),
                queue: self.queue.as_deref().unwrap_or_default(),
            })
        });
        Self { trace_link, ..self }
    }

    /// Adds whether a key proves that a worker wrote the outcome, if there is one.
    pub(crate) fn verified(self, verified: bool) -> Self {
        Self { verified: self.state.is_final().then_some(verified), ..self }
    }

    /// Adds whether the next run should have begun long ago.
    pub(crate) fn at(self, record: &Record, now: Timestamp) -> Self {
        let due = record.eta.filter(|_| record.parked.is_none());
        Self { overdue: overdue(record.state, due, now), ..self }
    }

    /// Adds the arguments of the task.
    #[must_use]
    pub(crate) fn with_args(self, args: ArgsView) -> Self {
        Self { args, ..self }
    }

    /// Names the root of the workflow that the task belongs to.
    #[must_use]
    pub(crate) fn of_workflow(self, workflow: Option<String>) -> Self {
        Self { workflow, ..self }
    }

    /// Returns everything as a page for people, as these people read it.
    pub(crate) fn page(&self, people: &People) -> String {
        let mut page = String::new();
        let mut row = |label: &str, value: &str| {
            let mut lines = value.lines();
            put(&mut page, format_args!("{label:<10}{}", lines.next().unwrap_or_default()));
            for line in lines {
                put(&mut page, format_args!("{:<10}{line}", ""));
            }
        };
        let optional = |value: &Option<String>| value.as_deref().map(visible::one_line);
        row("id", &visible::one_line(&self.id));
        if let Some(workflow) = optional(&self.workflow) {
            row("workflow", &workflow);
        }
        for (label, value) in [("name", &self.name), ("queue", &self.queue)] {
            row(
                label,
                &optional(value)
                    .unwrap_or_else(|| "unknown: the sender's part of the record is missing".into()),
            );
        }
        if let Some(args) = self.args.text() {
            row("args", &args);
        }
        row("state", &people.state(self.state, &self.state_and_kind()));
        row("attempt", &self.attempt.to_string());
        row("worker", &optional(&self.worker).unwrap_or_else(|| "-".into()));
        for (label, value) in [
            ("sent", &self.sent_at),
            ("received", &self.received_at),
            ("started", &self.started_at),
            ("ended", &self.ended_at),
        ] {
            row(label, &value.as_deref().map_or_else(|| "-".into(), |at| people.time(at)));
        }
        row("duration", &self.duration.map_or_else(|| "-".to_owned(), seconds));
        for (label, value) in [("eta", &self.eta), ("expires", &self.expires_at)] {
            if let Some(at) = value {
                row(label, &people.time(at));
            }
        }
        if let Some(seconds) = self.overdue {
            let late = show_duration(Duration::from_secs(seconds));
            row("overdue", &format!("by {late}: {NOT_RECEIVED}"));
        }
        // The last report of a task that has succeeded says nothing any more.
        if let Some(progress) = self.progress.as_ref().filter(|_| self.state != TaskState::Success) {
            row("progress", &progress.bar());
        }
        if let Some(ParkedView { reason, since, until }) = &self.parked {
            row(
                "parked",
                &format!(
                    "{} since {}, asks again at {}",
                    visible::one_line(reason),
                    people.time(since),
                    people.time(until)
                ),
            );
        }
        if self.revoked {
            row("revoked", "it was asked to end");
        }
        let others =
            [("repeats", &self.retry_of), ("repeated", &self.retried_as), ("continued", &self.continued_by)];
        for (label, value) in others {
            if let Some(value) = optional(value) {
                row(label, &value);
            }
        }
        if let Some(locked) = &self.locked {
            row("locked", &visible::lines(locked));
        }
        if self.state == TaskState::Success && self.locked.is_none() {
            let values = self.values();
            row("results", if values.is_empty() { "-" } else { &values });
        }
        if let Some(error) = &self.error {
            row("error", &visible::lines(&error.chain.join("\ncaused by: ")));
        }
        if self.verified == Some(false) {
            row("verified", NOT_VERIFIED);
        }
        row("trace", &optional(&self.trace_id).unwrap_or_else(|| "-".into()));
        if let Some(link) = &self.trace_link {
            row("link", link);
        }
        for attempt in &self.history {
            let kind = attempt.kind;
            let worker = visible::one_line(&attempt.worker);
            row(
                "history",
                &format!(
                    "attempt {} ended {} on {worker} ({kind}: {}), next run {}",
                    attempt.attempt,
                    people.time(&attempt.ended_at),
                    visible::one_line(&attempt.error.message),
                    people.time(&attempt.next_run)
                ),
            );
        }
        if !self.log.is_empty() {
            row("log", &visible::lines(self.log.trim_end()));
        }
        page
    }

    /// Returns the current state in one line, for `--watch`.
    pub(crate) fn line(&self, people: &People) -> String {
        let state = people.state(self.state, &format!("{:<8}", self.state));
        let mut line = format!("{state}  attempt {}", self.attempt);
        if let Some(worker) = &self.worker {
            let _ = write!(line, "  {}", visible::one_line(worker));
        }
        if let Some(error) = &self.error {
            let _ = write!(line, "  {}", visible::one_line(&error.message));
        }
        if let (TaskState::Started, Some(progress)) = (self.state, &self.progress) {
            let _ = write!(line, "  {}", progress.bar());
        }
        if let Some(parked) = &self.parked {
            return line + "  parked: " + &visible::one_line(&parked.reason);
        }
        match (self.state, &self.eta) {
            (TaskState::Retry, Some(eta)) => line + "  next run " + &people.time(eta),
            (TaskState::Pending, Some(eta)) => line + "  not before " + &people.time(eta),
            _ => line,
        }
    }

    /// Returns the results, or the reason that there are none, for `send --wait`.
    pub(crate) fn outcome(&self) -> String {
        match self.state {
            TaskState::Success => self.values(),
            _ => {
                let mut text = self.state_and_kind();
                for cause in self.error.iter().flat_map(|error| &error.chain) {
                    let _ = write!(text, ": {}", visible::lines(cause));
                }
                text
            }
        }
    }

    /// Returns the results, one per line, as they would be written as arguments: text without quotes, unless it would be
    /// read as something else.
    fn values(&self) -> String {
        visible::lines(&self.results.iter().map(as_argument).collect::<Vec<_>>().join("\n"))
    }

    fn state_and_kind(&self) -> String {
        match (self.kind, self.code) {
            (Some(kind), Some(code)) => format!("{} ({kind}, {code})", self.state),
            _ => self.state.to_string(),
        }
    }
}

/// Returns the seconds since the due time of a task, if that is long ago and no worker has received it.
fn overdue(state: TaskState, due: Option<Timestamp>, now: Timestamp) -> Option<u64> {
    let late = now.since(due.filter(|_| matches!(state, TaskState::Pending | TaskState::Retry))?);
    (late >= OVERDUE_AFTER).then_some(late.as_secs())
}

pub(crate) fn put(page: &mut String, line: std::fmt::Arguments<'_>) {
    // INVARIANT: writing to a String does not fail.
    let _ = write!(page, "{line}");
    page.truncate(page.trim_end_matches(' ').len());
    page.push('\n');
}

pub(crate) fn seconds(seconds: f64) -> String {
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    // A record holds microseconds.
    show_duration(Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;
    use machinist::record::ErrorText;

    fn failed() -> TaskView {
        TaskView {
            kind: Some(FailureKind::Timeout),
            code: Some(-2),
            state: TaskState::Failure,
            worker: Some("host-1".into()),
            started_at: Some("2026-11-20T23:37:14.000000Z".into()),
            ended_at: Some("2026-11-20T23:37:15.500000Z".into()),
            duration: Some(1.5),
            error: Some((&ErrorText::new(["too slow".into(), "disk\u{1b}[31m".into()])).into()),
            log: "one\ntwo\n".into(),
            ..TaskView::pending(
                &TaskId::parse("t-1").unwrap(),
                "resize",
                &QueueName::parse("images").unwrap(),
            )
        }
    }

    #[test]
    fn people_see_everything() {
        assert_eq!(
            failed().page(&People::plain(TimeZone::UTC)),
            "\
id        t-1
name      resize
queue     images
state     FAILURE (timeout, -2)
attempt   1
worker    host-1
sent      -
received  -
started   2026-11-20 23:37:14.000 UTC
ended     2026-11-20 23:37:15.500 UTC
duration  1s 500ms
error     too slow
          caused by: disk\\u{1b}[31m
trace     -
log       one
          two
"
        );
    }

    #[test]
    fn scripts_see_the_agreed_names() {
        let json = serde_json::to_value(failed()).unwrap();
        for name in [
            "id",
            "name",
            "queue",
            "state",
            "kind",
            "code",
            "attempt",
            "worker",
            "sent_at",
            "received_at",
            "started_at",
            "ended_at",
            "eta",
            "results",
            "error",
            "trace_id",
            "history",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
        assert_eq!(json["state"], "FAILURE");
        assert_eq!(json["kind"], "timeout");
        assert_eq!(json["error"]["chain"][0], "too slow");
        assert_eq!(json["results"], serde_json::json!([]));
    }

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
        let page = TaskView { overdue: Some(180), ..failed() }.page(&People::plain(TimeZone::UTC));
        assert!(page.contains("\noverdue   by 3m: no worker has received it"), "{page}");
    }

    #[test]
    fn outcomes_are_short() {
        assert_eq!(failed().outcome(), "FAILURE (timeout, -2): too slow: disk\\u{1b}[31m");
        let done = TaskView {
            state: TaskState::Success,
            results: vec![5.into(), "x y".into(), "5".into()],
            ..failed()
        };
        assert_eq!(done.outcome(), "5\nx y\n\"5\"");
    }
}
