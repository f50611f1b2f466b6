//! Text of a task's view: a page for people, one line for `--watch`, the outcome for `send --wait`. Pure.

use std::{fmt::Write, time::Duration};

use machinist::{
    record::TaskState,
    settings::{TraceLink, show_duration},
    view::{ParkedView, ProgressView, TaskView},
};

use crate::{args_view::ArgsText, people::People, spelling::as_argument, visible};

/// Returns the view with the address of its trace, if it has one and there is a template.
pub(crate) fn linked(mut view: TaskView, template: Option<&TraceLink>) -> TaskView {
    if let Some(template) = template {
        template.add_to(&mut view);
    }
    view
}

/// Returns the progress as text: `[######----] 60%  640 of 1000  resizing`.
fn progress_text(progress: &ProgressView) -> String {
    let mut bar = bar(progress.done, progress.total);
    if !progress.note.is_empty() {
        let _ = write!(bar, "  {}", visible::one_line(&progress.note));
    }
    bar
}

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

/// The view of a task, as text.
pub(crate) trait TaskText {
    /// Returns everything as a page for people, as these people read it.
    fn page(&self, people: &People) -> String;
    /// Returns the current state in one line, for `--watch`.
    fn line(&self, people: &People) -> String;
    /// Returns the results, or the reason that there are none, for `send --wait`.
    fn outcome(&self) -> String;
}

impl TaskText for TaskView {
    fn page(&self, people: &People) -> String {
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
        row("state", &people.state(self.state, &state_and_kind(self)));
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
            row("progress", &progress_text(progress));
        }
        if let Some(ParkedView { reason, since, until, .. }) = &self.parked {
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
            let values = values(self);
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

    fn line(&self, people: &People) -> String {
        let state = people.state(self.state, &format!("{:<8}", self.state));
        let mut line = format!("{state}  attempt {}", self.attempt);
        if let Some(worker) = &self.worker {
            let _ = write!(line, "  {}", visible::one_line(worker));
        }
        if let Some(error) = &self.error {
            let _ = write!(line, "  {}", visible::one_line(&error.message));
        }
        if let (TaskState::Started, Some(progress)) = (self.state, &self.progress) {
            let _ = write!(line, "  {}", progress_text(progress));
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

    fn outcome(&self) -> String {
        match self.state {
            TaskState::Success => values(self),
            _ => {
                let mut text = state_and_kind(self);
                for cause in self.error.iter().flat_map(|error| &error.chain) {
                    let _ = write!(text, ": {}", visible::lines(cause));
                }
                text
            }
        }
    }
}

/// Returns the results, one per line, as they would be written as arguments: text without quotes, unless it would be
/// read as something else.
fn values(view: &TaskView) -> String {
    visible::lines(&view.results.iter().map(as_argument).collect::<Vec<_>>().join("\n"))
}

fn state_and_kind(view: &TaskView) -> String {
    match (view.kind, view.code) {
        (Some(kind), Some(code)) => format!("{} ({kind}, {code})", view.state),
        _ => view.state.to_string(),
    }
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
    use machinist::{
        QueueName, TaskId,
        record::{ErrorText, FailureKind},
    };

    fn failed() -> TaskView {
        let (id, queue) = (TaskId::parse("t-1").unwrap(), QueueName::parse("images").unwrap());
        let mut view = TaskView::pending(&id, "resize", &queue);
        (view.kind, view.code, view.state) = (Some(FailureKind::Timeout), Some(-2), TaskState::Failure);
        view.worker = Some("host-1".into());
        view.started_at = Some("2026-11-20T23:37:14.000000Z".into());
        view.ended_at = Some("2026-11-20T23:37:15.500000Z".into());
        view.duration = Some(1.5);
        view.error = Some((&ErrorText::new(["too slow".into(), "disk\u{1b}[31m".into()])).into());
        view.log = "one\ntwo\n".into();
        view
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
    fn an_overdue_task_says_so() {
        let mut late = failed();
        late.overdue = Some(180);
        let page = late.page(&People::plain(TimeZone::UTC));
        assert!(page.contains("\noverdue   by 3m: no worker has received it"), "{page}");
    }

    #[test]
    fn outcomes_are_short() {
        assert_eq!(failed().outcome(), "FAILURE (timeout, -2): too slow: disk\\u{1b}[31m");
        let mut done = failed();
        (done.state, done.results) = (TaskState::Success, vec![5.into(), "x y".into(), "5".into()]);
        assert_eq!(done.outcome(), "5\nx y\n\"5\"");
    }
}
