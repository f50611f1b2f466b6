//! Text of a workflow's view: a page with a tree for people, changes for `--watch`, the outcome for `send --wait`. Pure.

use std::fmt::Write;

use machinist::{
    record::{FailureKind, TaskState},
    view::{LastResults, MemberView, StepView, WorkflowView, one_value},
    workflow_status::{MemberCounts, WorkflowProgress},
};
use serde_json::Value;

use crate::{
    spelling::as_argument,
    view::{bar, put, seconds},
    visible::{lines, one_line},
};

/// Returns the cells of the row of a member, for people.
pub(crate) fn member_cells(member: &MemberView) -> Vec<String> {
    let text = |key: &str| member.task[key].as_str().unwrap_or_default().to_owned();
    let kind = member.task["kind"].as_str().map(|kind| format!(" ({kind})")).unwrap_or_default();
    let outcome = match member.task["results"].as_array() {
        Some(results) if !results.is_empty() => {
            results.iter().map(as_argument).collect::<Vec<_>>().join("  ")
        }
        _ => member.task["error"]["message"].as_str().unwrap_or_default().to_owned(),
    };
    let outcome = outcome.lines().next().unwrap_or_default().to_owned();
    vec![member.index.to_string(), text("state") + &kind, text("ended_at"), outcome]
}

/// The view of a workflow, as text.
pub(crate) trait WorkflowText: Sized {
    /// Returns the workflow as a page for people.
    fn page(&self) -> String;
    /// Returns the rows of the tree for people: step, task, state, start, duration, note.
    fn rows(&self) -> Vec<Vec<String>>;
    /// Returns the results, or the failure, for `send --wait`.
    fn outcome(&self, last: &LastResults) -> String;
    /// Returns a line for each step that differs from an earlier view, for `--watch`.
    fn changes(&self, earlier: Option<&Self>) -> Vec<String>;
}

impl WorkflowText for WorkflowView {
    fn page(&self) -> String {
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

    fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let top = self.steps.iter().enumerate().filter(|(_, step)| parent(self, step).is_none());
        let mut open: Vec<(usize, usize)> = top.map(|(at, _)| (at, 0)).collect();
        open.reverse();
        while let Some((at, depth)) = open.pop() {
            rows.push(tree_row(&self.steps[at], depth));
            let below = self.steps.iter().enumerate().filter(|(_, step)| parent(self, step) == Some(at));
            let mut below: Vec<(usize, usize)> = below.map(|(at, _)| (at, depth + 1)).collect();
            below.reverse();
            open.append(&mut below);
        }
        rows
    }

    fn outcome(&self, last: &LastResults) -> String {
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

    fn changes(&self, earlier: Option<&Self>) -> Vec<String> {
        let unchanged = |step: &StepView| match earlier {
            None => step.state == TaskState::Pending,
            Some(earlier) => earlier.steps.contains(step),
        };
        let line = |step: &StepView| {
            let at = step.ended_at.as_ref().or(step.started_at.as_ref()).or(self.started_at.as_ref());
            let WorkflowProgress { done, total, .. } = self.progress;
            let note = step_note(step);
            let at = at.map_or("-", String::as_str);
            format!("{at}  {done}/{total}  {}  {}  {note}", step.name, step_state(step)).trim_end().to_owned()
        };
        self.steps.iter().filter(|step| !unchanged(step)).map(line).collect()
    }
}

/// Returns the index of the step under which a step is shown: the last one before it.
fn parent(workflow: &WorkflowView, step: &StepView) -> Option<usize> {
    let before = step.after.last()?;
    workflow.steps.iter().position(|other| other.name == *before)
}

/// Returns `true` for a step that failed, and was not merely ended by the failure of another.
fn failed_itself(state: TaskState, kind: Option<FailureKind>) -> bool {
    state == TaskState::Failure && kind != Some(FailureKind::Upstream)
}

fn step_state(step: &StepView) -> String {
    match step.kind {
        Some(kind) if step.state == TaskState::Failure => format!("{} ({kind})", step.state),
        _ => step.state.to_string(),
    }
}

/// Returns the numbers of a group, and the first line of an error.
fn step_note(step: &StepView) -> String {
    let mut notes = Vec::new();
    if let Some(MemberCounts { total, done, failed, .. }) = step.members {
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        notes.push(format!("{done}/{total}{failed}"));
    }
    if let Some(line) = step.error.as_deref().and_then(|error| error.lines().next()) {
        notes.push(one_line(line));
    }
    if step.error_callback && step.state == TaskState::Pending {
        notes.push("only after a failure".to_owned());
    }
    if step.after.len() > 1 {
        notes.push(format!("after {}", step.after.join(", ")));
    }
    notes.join("; ")
}

/// Returns a step as a page for people.
pub(crate) fn step_page(step: &StepView, root: &str) -> String {
    let mut page = String::new();
    let mut row = |label: &str, value: &str| put(&mut page, format_args!("{label:<10}{}", one_line(value)));
    row("id", &step.id);
    row("workflow", root);
    row("name", &step.task);
    row("state", &step_state(step));
    if let Some(members) = step.members {
        row("members", &bar(members.done.into(), members.total.into()));
        row("failed", &members.failed.to_string());
    }
    for (label, value) in [("started", &step.started_at), ("ended", &step.ended_at)] {
        row(label, value.as_deref().unwrap_or("-"));
    }
    if let Some(error) = &step.error {
        row("error", error);
    }
    page
}

fn tree_row(step: &StepView, depth: usize) -> Vec<String> {
    let branch = if depth == 0 { String::new() } else { format!("{}└ ", "  ".repeat(depth - 1)) };
    vec![
        branch + &step.name,
        step.task.clone(),
        step_state(step),
        step.started_at.clone().unwrap_or_else(|| "-".to_owned()),
        step.duration.map_or_else(|| "-".to_owned(), seconds),
        step_note(step),
    ]
}
