//! Views of a workflow: JSON for scripts, and a tree for people. Pure.

use std::fmt::Write;

use machinist::{
    Results,
    record::{FailureKind, Record, TaskState},
    workflow_status::{MemberCounts, StepStatus, WorkflowStatus},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{view::TaskView, visible::one_line};

/// Step as `status --json` prints it.
#[derive(Debug, Serialize)]
struct StepView<'a> {
    name: &'a str,
    id: &'a str,
    task: &'a str,
    after: &'a [String],
    state: TaskState,
    kind: Option<FailureKind>,
    error: Option<&'a str>,
    results: Vec<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<MemberCounts>,
    /// `true` if it runs only when another step has failed.
    error_callback: bool,
}

/// A workflow as `status --json` and `send --flow --wait --json` print it: the fields of a task, and its steps.
pub(crate) fn json(status: &WorkflowStatus) -> Value {
    let mut view = serde_json::to_value(TaskView::from(&status.record)).unwrap_or_default();
    let failed = status.steps.iter().find(|step| step.state == TaskState::Failure);
    let kind = failed.filter(|_| status.state == TaskState::Failure).and_then(|step| step.kind);
    let steps: Vec<StepView<'_>> = status.steps.iter().map(StepView::from).collect();
    let ended_at = if status.state.is_final() { view["ended_at"].take() } else { Value::Null };
    for (field, value) in [
        ("workflow", json!(status.name)),
        ("state", json!(status.state)),
        ("kind", json!(kind)),
        (
            "code",
            if status.state == TaskState::Success { json!(0) } else { json!(kind.map(FailureKind::code)) },
        ),
        ("ended_at", ended_at),
        (
            "results",
            json!(last_results(status).into_iter().flat_map(|(_, values)| values).collect::<Vec<_>>()),
        ),
        ("progress", json!(status.progress)),
        ("incomplete", json!(status.incomplete)),
        ("steps", json!(steps)),
    ] {
        view[field] = value;
    }
    view
}

impl<'a> From<&'a StepStatus> for StepView<'a> {
    fn from(step: &'a StepStatus) -> Self {
        Self {
            name: &step.name,
            id: step.id.as_str(),
            task: &step.task,
            after: &step.after,
            state: step.state,
            kind: step.kind,
            error: step.error.as_deref(),
            results: values(step.results.as_ref()),
            members: step.members,
            error_callback: step.is_error_callback,
        }
    }
}

fn values(results: Option<&Results>) -> Vec<&Value> {
    results.iter().flat_map(|results| &results.0).map(|arg| &arg.value).collect()
}

/// Returns the results of the steps that nothing follows, by name.
fn last_results(status: &WorkflowStatus) -> Vec<(&str, Vec<&Value>)> {
    let last = status.steps.iter().filter(|step| step.is_last);
    last.map(|step| (step.name.as_str(), values(step.results.as_ref()))).collect()
}

/// Returns what a workflow has come to: the results of its last step, by name where there are several, or the error of the step
/// that failed.
pub(crate) fn outcome(status: &WorkflowStatus) -> String {
    if status.state == TaskState::Failure {
        let first_cause =
            |step: &&StepStatus| step.state == TaskState::Failure && step.kind != Some(FailureKind::Upstream);
        let failed = status.steps.iter().find(first_cause);
        let failed = failed.or_else(|| status.steps.iter().find(|step| step.state == TaskState::Failure));
        return failed.map_or_else(
            || "FAILURE".to_owned(),
            |step| format!("{}  {}", one_line(&step.name), failure(step)),
        );
    }
    if status.state != TaskState::Success {
        return format!("{}  {} of {}", status.state, status.progress.done, status.progress.total);
    }
    let last = last_results(status);
    let shown = |values: &[&Value]| values.iter().map(|value| text(value)).collect::<Vec<_>>().join("  ");
    match last.as_slice() {
        [(_, values)] => shown(values),
        several => {
            let lines = several
                .iter()
                .map(|(name, values)| format!("{name}  {}", shown(values)).trim_end().to_owned());
            lines.collect::<Vec<_>>().join("\n")
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => one_line(text),
        other => other.to_string(),
    }
}

fn failure(step: &StepStatus) -> String {
    let kind = step.kind.map(|kind| format!("/{kind}")).unwrap_or_default();
    let error = step.error.as_deref().map(|error| format!("  {}", one_line(error))).unwrap_or_default();
    format!("{}{kind}{error}", step.state)
}

/// Returns the state of a workflow in one line.
pub(crate) fn line(status: &WorkflowStatus) -> String {
    let name = status.name.as_deref().map(|name| format!("  {}", one_line(name))).unwrap_or_default();
    let incomplete = if status.incomplete { "  not all of it is sent yet" } else { "" };
    let WorkflowStatus { state, progress, .. } = status;
    format!("workflow {}{name}  {state}  {}/{}{incomplete}", status.root, progress.done, progress.total)
}

/// Returns a page: one line for the workflow, and one for each step.
pub(crate) fn page(status: &WorkflowStatus) -> String {
    let mut page = format!("{}\n", line(status));
    let width = status.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
    let task_width = status.steps.iter().map(|step| one_line(&step.task).chars().count()).max().unwrap_or(0);
    for step in &status.steps {
        let members =
            step.members.map(|members| format!("  {}/{}", members.done, members.total)).unwrap_or_default();
        let said = match step.state {
            TaskState::Success => {
                let values = values(step.results.as_ref());
                let values: Vec<String> = values.into_iter().map(text).collect();
                let shown = values.join("  ");
                let short: String = shown.chars().take(60).collect();
                let more = if short.len() < shown.len() { "…" } else { "" };
                if short.is_empty() { String::new() } else { format!("  {short}{more}") }
            }
            TaskState::Failure => failure(step).trim_start_matches("FAILURE").to_owned(),
            _ if step.is_error_callback => "  only after a failure".to_owned(),
            _ => String::new(),
        };
        let after =
            if step.after.is_empty() { String::new() } else { format!("  after {}", step.after.join(", ")) };
        let _ = writeln!(
            page,
            "{}",
            format!(
                "  {:width$}  {:task_width$}  {:7}{members}{said}{after}",
                step.name,
                one_line(&step.task),
                step.state.as_str()
            )
            .trim_end()
        );
    }
    page
}

/// Member of a group as `status --members` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct MemberView {
    index: u32,
    id: String,
    state: TaskState,
    kind: Option<FailureKind>,
    error: Option<String>,
    results: Vec<Value>,
}

impl MemberView {
    pub(crate) fn new(index: u32, id: &machinist::TaskId, record: Option<&Record>) -> Self {
        Self {
            index,
            id: id.to_string(),
            state: record.map_or(TaskState::Pending, |record| record.state),
            kind: record.and_then(|record| record.kind),
            error: record.and_then(|record| Some(record.error.as_ref()?.message().to_owned())),
            results: values(record.and_then(|record| record.results.as_ref())).into_iter().cloned().collect(),
        }
    }

    /// Returns the cells of a row.
    pub(crate) fn row(&self) -> Vec<String> {
        let results: Vec<String> = self.results.iter().map(text).collect();
        let kind = self.kind.map(|kind| kind.to_string()).unwrap_or_default();
        let said = self.error.clone().unwrap_or_else(|| results.join("  "));
        vec![self.index.to_string(), self.state.to_string(), kind, said, self.id.clone()]
    }
}
