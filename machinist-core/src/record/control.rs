//! The control record: orders of people to all workers at once.

use super::facts::{Facts, json, name};
use crate::{
    backend::Commit,
    clock::Timestamp,
    id::{RecordId, RecordKind, TaskName},
};

/// Returns the record that all workers read with each renewal, and watch.
pub(crate) fn control_record() -> RecordId {
    RecordId::new(RecordKind::Control, "tasks")
}

/// Returns the task names that are disabled for all workers.
pub(crate) fn disabled_tasks(control: &Facts) -> impl Iterator<Item = TaskName> {
    let named = |(fact, _): (&str, _)| TaskName::parse(fact.strip_prefix(name::DISABLED)?).ok();
    control.iter().filter_map(named)
}

/// Creates the commit that disables a task name for all workers.
pub(crate) fn disable(task: &TaskName, now: Timestamp) -> Commit {
    let mut commit = Commit::new(control_record());
    commit.facts = vec![(name::disabled(task.as_str()), json(&now))];
    commit.wake = true;
    commit
}

/// Creates the commit that enables a task name again.
pub(crate) fn enable(task: &TaskName) -> Commit {
    let mut commit = Commit::new(control_record());
    commit.drop = vec![name::disabled(task.as_str())];
    commit.wake = true;
    commit
}
