//! Views of a workflow: JSON for scripts, and a page with a tree for people. Pure.

use std::fmt::Write;

use machinist::{
    record::{FailureKind, Record, TaskState},
    workflow_status::{MemberCounts, StepStatus, WorkflowProgress, WorkflowStatus},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    spelling::as_argument,
    view::{TaskView, bar, put, seconds},
    visible::{lines, one_line},
};

/// Workflow as `status ROOT --json` and `send --flow --wait --json` print it: the fields of a task, and its steps.
#[derive(Debug, Serialize)]
pub(crate) struct WorkflowView {
    #[serde(flatten)]
    task: Value,
    /// Name that the file gives it.
    workflow_name: Option<String>,
    pub(crate) state: TaskState,
    /// Kind of the first failure of a step that ran.
    kind: Option<FailureKind>,
    code: Option<i32>,
    error: Option<Value>,
    /// Results of the last steps.
    results: Vec<Value>,
    started_at: Option<String>,
    ended_at: Option<String>,
    duration: Option<f64>,
    progress: WorkflowProgress,
    incomplete: bool,
    steps: Vec<StepView>,
}

/// Step of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct StepView {
    name: String,
    pub(crate) id: String,
    task: String,
    after: Vec<String>,
    pub(crate) state: TaskState,
    kind: Option<FailureKind>,
    error: Option<String>,
    results: Vec<Value>,
    started_at: Option<String>,
    ended_at: Option<String>,
    duration: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<MemberCounts>,
    /// `true` if it runs only when another step has failed.
    error_callback: bool,
}

/// Member of a group, with the fields of its task once it has a record.
#[derive(Debug, Serialize)]
pub(crate) struct MemberView {
    pub(crate) index: u32,
    #[serde(flatten)]
    task: Value,
}

impl MemberView {
    pub(crate) fn new(index: u32, id: &machinist::TaskId, record: Option<&Record>) -> Self {
        let pending = || json!({"id": id, "state": TaskState::Pending});
        let task = record.and_then(|record| serde_json::to_value(TaskView::from(record)).ok());
        Self { index, task: task.unwrap_or_else(pending) }
    }

    /// Returns the cells of its row for people.
    pub(crate) fn cells(&self) -> Vec<String> {
        let text = |key: &str| self.task[key].as_str().unwrap_or_default().to_owned();
        let kind = self.task["kind"].as_str().map(|kind| format!(" ({kind})")).unwrap_or_default();
        let outcome = match self.task["results"].as_array() {
            Some(results) if !results.is_empty() => {
                results.iter().map(as_argument).collect::<Vec<_>>().join("  ")
            }
            _ => self.task["error"]["message"].as_str().unwrap_or_default().to_owned(),
        };
        let outcome = outcome.lines().next().unwrap_or_default().to_owned();
        vec![self.index.to_string(), text("state") + &kind, text("ended_at"), outcome]
    }
}

impl From<&StepStatus> for StepView {
    fn from(step: &StepStatus) -> Self {
        let took = step.started_at.zip(step.ended_at);
        Self {
            name: step.name.clone(),
            id: step.id.to_string(),
            task: step.task.clone(),
            after: step.after.clone(),
            state: step.state,
            kind: step.kind,
            error: step.error.clone(),
            results: values(step),
            started_at: step.started_at.map(|at| at.to_string()),
            ended_at: step.ended_at.map(|at| at.to_string()),
            duration: took.map(|(start, end)| end.since(start).as_secs_f64()),
            members: step.members,
            error_callback: step.is_error_callback,
        }
    }
}

/// Returns the results of a single task.
fn values(step: &StepStatus) -> Vec<Value> {
    step.results.iter().flat_map(|results| &results.0).map(|arg| arg.value.clone()).collect()
}

/// Returns the steps that nothing follows, without error callbacks.
pub(crate) fn tails(status: &WorkflowStatus) -> Vec<&StepStatus> {
    let followed = |step: &StepStatus| status.steps.iter().any(|other| other.after.contains(&step.name));
    status.steps.iter().filter(|step| !step.is_error_callback && !followed(step)).collect()
}

/// Results of the last steps of a workflow, by name. A single task has its results, a group the list of its members' results.
pub(crate) type LastResults = Vec<(String, Vec<Value>)>;

/// Returns one value for the results of a task, as the next step gets them in a list.
pub(crate) fn one_value(mut results: Vec<Value>) -> Value {
    match results.len() {
        0 => Value::Null,
        1 => results.remove(0),
        _ => Value::Array(results),
    }
}

impl WorkflowView {
    pub(crate) fn new(status: &WorkflowStatus, last: LastResults) -> Self {
        let steps: Vec<StepView> = status.steps.iter().map(StepView::from).collect();
        let failed = first_failure(&status.steps).filter(|_| status.state == TaskState::Failure);
        let kind = failed.and_then(|step| step.kind);
        let root = TaskView::from(&status.record);
        let mut task = serde_json::to_value(&root).unwrap_or_default();
        if let Value::Object(task) = &mut task {
            for replaced in [
                "state",
                "kind",
                "code",
                "error",
                "results",
                "started_at",
                "ended_at",
                "duration",
                "progress",
            ] {
                task.remove(replaced);
            }
        }
        let started = status.steps.iter().filter_map(|step| step.started_at).min();
        let ended =
            status.steps.iter().filter_map(|step| step.ended_at).max().filter(|_| status.state.is_final());
        let mut last = last;
        let results = match last.len() {
            _ if status.state != TaskState::Success => Vec::new(),
            1 => last.remove(0).1,
            _ => vec![Value::Object(
                last.into_iter().map(|(name, values)| (name, one_value(values))).collect(),
            )],
        };
        Self {
            task,
            workflow_name: status.name.clone(),
            state: status.state,
            kind,
            code: match status.state {
                TaskState::Success => Some(0),
                _ => kind.map(FailureKind::code),
            },
            error: failed
                .and_then(|step| step.error.as_ref())
                .map(|error| json!({"message": error, "chain": [error]})),
            results,
            started_at: started.map(|at| at.to_string()),
            ended_at: ended.map(|at| at.to_string()),
            duration: started.zip(ended).map(|(start, end)| end.since(start).as_secs_f64()),
            progress: status.progress,
            incomplete: status.incomplete,
            steps,
        }
    }

    /// Returns the workflow as a page for people.
    pub(crate) fn page(&self) -> String {
        let mut page = String::new();
        let mut row =
            |label: &str, value: &str| put(&mut page, format_args!("{label:<10}{}", one_line(value)));
        row("workflow", self.task["id"].as_str().unwrap_or_default());
        if let Some(name) = &self.workflow_name {
            row("name", name);
        }
        let incomplete = if self.incomplete { ", not all of it is sent yet" } else { "" };
        row("state", &format!("{}{incomplete}", self.state));
        row("progress", &bar(self.progress.done.into(), self.progress.total.into()));
        row("sent", self.task["sent_at"].as_str().unwrap_or("-"));
        row("started", self.started_at.as_deref().unwrap_or("-"));
        row("ended", self.ended_at.as_deref().unwrap_or("-"));
        row("duration", &self.duration.map_or_else(|| "-".to_owned(), seconds));
        for (label, key) in
            [("eta", "eta"), ("expires", "expires_at"), ("repeats", "retry_of"), ("repeated", "retried_as")]
        {
            if let Some(value) = self.task[key].as_str() {
                row(label, value);
            }
        }
        page
    }

    /// Returns the rows of the tree for people: step, task, state, start, duration, note.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let top = self.steps.iter().enumerate().filter(|(_, step)| self.parent(step).is_none());
        let mut open: Vec<(usize, usize)> = top.map(|(at, _)| (at, 0)).collect();
        open.reverse();
        while let Some((at, depth)) = open.pop() {
            rows.push(self.steps[at].row(depth));
            let below = self.steps.iter().enumerate().filter(|(_, step)| self.parent(step) == Some(at));
            let mut below: Vec<(usize, usize)> = below.map(|(at, _)| (at, depth + 1)).collect();
            below.reverse();
            open.append(&mut below);
        }
        rows
    }

    /// Returns the index of the step under which a step is shown: the last one before it.
    fn parent(&self, step: &StepView) -> Option<usize> {
        let before = step.after.last()?;
        self.steps.iter().position(|other| other.name == *before)
    }

    /// Returns the results, or the failure, for `send --wait`.
    pub(crate) fn outcome(&self, last: &LastResults) -> String {
        match self.state {
            TaskState::Success => match last.as_slice() {
                [(_, values)] => lines(&values.iter().map(as_argument).collect::<Vec<_>>().join("\n")),
                several => {
                    let line = |(name, values): &(String, Vec<Value>)| {
                        let value = as_argument(&one_value(values.clone()));
                        one_line(format!("{name}  {value}").trim_end())
                    };
                    several.iter().map(line).collect::<Vec<_>>().join("\n")
                }
            },
            TaskState::Failure => {
                let mut text = self.state.to_string();
                if let Some(step) = self.steps.iter().find(|step| failed_itself(step.state, step.kind)) {
                    if let Some(kind) = step.kind {
                        let _ = write!(text, " ({kind}, {})", kind.code());
                    }
                    let _ = write!(text, ": step {}", step.name);
                    if let Some(error) = &step.error {
                        let _ = write!(text, ": {}", one_line(error));
                    }
                }
                text
            }
            state => format!("{state}  {} of {}", self.progress.done, self.progress.total),
        }
    }

    /// Returns a line for each step that differs from an earlier view, for `--watch`.
    pub(crate) fn changes(&self, earlier: Option<&Self>) -> Vec<String> {
        let unchanged = |step: &StepView| match earlier {
            None => step.state == TaskState::Pending,
            Some(earlier) => earlier.steps.contains(step),
        };
        let line = |step: &StepView| {
            let at = step.ended_at.as_ref().or(step.started_at.as_ref()).or(self.started_at.as_ref());
            let WorkflowProgress { done, total, .. } = self.progress;
            let note = step.note();
            let at = at.map_or("-", String::as_str);
            format!("{at}  {done}/{total}  {}  {}  {note}", step.name, step.state_and_kind())
                .trim_end()
                .to_owned()
        };
        self.steps.iter().filter(|step| !unchanged(step)).map(line).collect()
    }
}

/// Returns `true` for a step that failed, and was not merely ended by the failure of another.
fn failed_itself(state: TaskState, kind: Option<FailureKind>) -> bool {
    state == TaskState::Failure && kind != Some(FailureKind::Upstream)
}

/// Returns the first step that failed itself; the first that failed at all if there is none.
fn first_failure(steps: &[StepStatus]) -> Option<&StepStatus> {
    let main = || steps.iter().filter(|step| !step.is_error_callback);
    main()
        .find(|step| failed_itself(step.state, step.kind))
        .or_else(|| main().find(|step| step.state == TaskState::Failure))
}

impl StepView {
    fn state_and_kind(&self) -> String {
        match self.kind {
            Some(kind) if self.state == TaskState::Failure => format!("{} ({kind})", self.state),
            _ => self.state.to_string(),
        }
    }

    /// Returns the numbers of a group, and the first line of an error.
    fn note(&self) -> String {
        let mut notes = Vec::new();
        if let Some(MemberCounts { total, done, failed, .. }) = self.members {
            let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
            notes.push(format!("{done}/{total}{failed}"));
        }
        if let Some(line) = self.error.as_deref().and_then(|error| error.lines().next()) {
            notes.push(one_line(line));
        }
        if self.error_callback && self.state == TaskState::Pending {
            notes.push("only after a failure".to_owned());
        }
        if self.after.len() > 1 {
            notes.push(format!("after {}", self.after.join(", ")));
        }
        notes.join("; ")
    }

    /// Returns the step as a page for people.
    pub(crate) fn page(&self, root: &str) -> String {
        let mut page = String::new();
        let mut row =
            |label: &str, value: &str| put(&mut page, format_args!("{label:<10}{}", one_line(value)));
        row("id", &self.id);
        row("workflow", root);
        row("name", &self.task);
        row("state", &self.state_and_kind());
        if let Some(members) = self.members {
            row("members", &bar(members.done.into(), members.total.into()));
            row("failed", &members.failed.to_string());
        }
        for (label, value) in [("started", &self.started_at), ("ended", &self.ended_at)] {
            row(label, value.as_deref().unwrap_or("-"));
        }
        if let Some(error) = &self.error {
            row("error", error);
        }
        page
    }

    fn row(&self, depth: usize) -> Vec<String> {
        let branch = if depth == 0 { String::new() } else { format!("{}└ ", "  ".repeat(depth - 1)) };
        vec![
            branch + &self.name,
            self.task.clone(),
            self.state_and_kind(),
            self.started_at.clone().unwrap_or_else(|| "-".to_owned()),
            self.duration.map_or_else(|| "-".to_owned(), seconds),
            self.note(),
        ]
    }
}
