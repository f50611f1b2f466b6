//! Parts of the description that a session gives of its worker, for people and other processes.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use crate::{
    args::TaskShape,
    id::{QueuePattern, TaskName},
    limit::{Limit, LimitTarget},
    record::MAX_DESCRIBED_TASKS,
};

/// Maximum number of arguments of a task that the description of a worker holds.
const DESCRIBED_ARGS: usize = 32;

/// Returns the names of tasks as a session shows them.
pub(super) fn described_tasks(mut names: Vec<&TaskName>) -> Value {
    names.sort_unstable();
    names.truncate(MAX_DESCRIBED_TASKS);
    names.into_iter().map(TaskName::as_str).collect::<Vec<_>>().into()
}

/// Returns what is known of the arguments and results of tasks as a session shows it.
pub(super) fn described_shapes<'t>(tasks: impl Iterator<Item = (&'t TaskName, &'t TaskShape)>) -> Value {
    let known = tasks.filter(|(_, shape)| **shape != TaskShape::default());
    let mut shown: BTreeMap<&str, &TaskShape> = known.map(|(name, shape)| (name.as_str(), shape)).collect();
    shown.retain(|_, shape| shape.args.as_ref().is_none_or(|args| args.len() <= DESCRIBED_ARGS));
    while shown.len() > MAX_DESCRIBED_TASKS {
        shown.pop_last();
    }
    json!(shown)
}

/// Returns limits as a session shows them.
pub(super) fn described_limits(limits: &[(LimitTarget, Arc<Limit>)]) -> Value {
    let shown: BTreeMap<_, _> = limits.iter().map(|(target, limit)| (target.to_string(), &**limit)).collect();
    json!(shown)
}

/// Returns the patterns that stand for more than one queue.
pub(super) fn described_patterns<'p>(own: impl IntoIterator<Item = &'p QueuePattern>) -> Vec<&'p str> {
    own.into_iter().filter(|pattern| pattern.is_prefix()).map(QueuePattern::as_str).collect()
}
