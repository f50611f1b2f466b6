//! Parts of the description that a session gives of its worker, for people and other processes.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use crate::{
    id::{QueuePattern, TaskName},
    limit::{Limit, LimitTarget},
};

/// Maximum number of task names that the description of a worker holds.
pub(super) const DESCRIBED_TASKS: usize = 500;

/// Returns the names of tasks as a session shows them.
pub(super) fn described_tasks(mut names: Vec<&TaskName>) -> Value {
    names.sort_unstable();
    names.truncate(DESCRIBED_TASKS);
    names.into_iter().map(TaskName::as_str).collect::<Vec<_>>().into()
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
