//! Limits of a task or a queue: how many starts per period, and how many runs at once, for the whole cluster.
//!
//! This module holds the definition and the pure part: which limits a task has, and under which key. The state of each
//! limit is a record (`bucket`, `places`); workers change it by compare-and-swap.

pub(crate) mod bucket;
mod definition;
mod key;
mod live;
pub(crate) mod places;
mod rate;
#[cfg(test)]
mod search;

use std::sync::Arc;

pub(crate) use definition::MAX_BURST;
pub use definition::{Limit, MAX_RUNNING};
pub use key::LimitKey;
pub use rate::Rate;

use bucket::Terms;
pub(crate) use key::{KEY_HASH, before_key, hidden_key, stored_key};
pub(crate) use live::{live_limits, remove_limit, set_limit};

use crate::{
    admission::WaitReason,
    id::{QueueName, RecordId, RecordKind, TaskName},
};

/// Thing that a limit belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitTarget {
    /// All tasks of this name.
    Task(TaskName),
    /// All tasks of this queue.
    Queue(QueueName),
}

impl LimitTarget {
    /// Reads `task:NAME` or `queue:NAME`.
    ///
    /// # Errors
    /// The text is neither, in words for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("task", name)) => TaskName::parse(name).map(Self::Task).map_err(|error| error.to_string()),
            Some(("queue", name)) => {
                QueueName::parse(name).map(Self::Queue).map_err(|error| error.to_string())
            }
            _ => Err(format!("{text:?} is no target of a limit; write task:NAME or queue:NAME")),
        }
    }

    /// Returns the target as it stands in names of records and in reasons, before a key or without one.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::Task(name) => format!("task:{}", before_key(name.as_str())),
            Self::Queue(name) => format!("queue:{}", before_key(name.as_str())),
        }
    }
}

impl std::fmt::Display for LimitTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task(name) => write!(f, "task:{name}"),
            Self::Queue(name) => write!(f, "queue:{name}"),
        }
    }
}

/// A limit as it applies to one task: its definition, and the records that hold its state under the key of the task.
#[derive(Debug, Clone)]
pub(crate) struct AppliedLimit {
    pub(crate) limit: Arc<Limit>,
    /// Target and key: `task:call`, `task:call:customer-7`.
    pub(crate) subject: String,
    /// Number of starts for which the task counts, if its sender has chosen it.
    cost: Option<u32>,
}

impl AppliedLimit {
    pub(crate) fn new(target: &LimitTarget, limit: Arc<Limit>, key: Option<&str>) -> Self {
        let mut subject = target.subject();
        if let Some(key) = key {
            subject.extend([":", key]);
        }
        Self { limit, subject, cost: None }
    }

    /// Lets the task count for as many starts as its sender has chosen.
    pub(crate) fn counting(self, cost: Option<u32>) -> Self {
        Self { cost, ..self }
    }

    /// Returns the numbers of the rate for this task.
    pub(crate) fn terms(&self) -> Option<Terms> {
        self.limit.terms(self.cost)
    }

    /// Record of the next free start.
    pub(crate) fn bucket(&self) -> RecordId {
        RecordId::new(RecordKind::Limit, &format!("rate/{}", self.subject))
    }

    /// Record of the places of what runs.
    pub(crate) fn places(&self) -> RecordId {
        RecordId::new(RecordKind::Limit, &format!("run/{}", self.subject))
    }

    /// Reason of tasks that wait for their start.
    pub(crate) fn rate_reason(&self) -> WaitReason {
        WaitReason::new("rate", &self.subject)
    }

    /// Reason of tasks that wait for a limit of zero to be raised.
    pub(crate) fn paused_reason(&self) -> WaitReason {
        if self.limit.max_running == Some(0) { self.places_reason() } else { self.rate_reason() }
    }

    /// Reason of tasks that wait for a place.
    pub(crate) fn places_reason(&self) -> WaitReason {
        WaitReason::new("max_running", &self.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_different_names_and_keys_have_different_records() {
        let record = |target: &str, key| {
            let target = LimitTarget::parse(target).unwrap();
            AppliedLimit::new(&target, Arc::default(), key).bucket().id().to_owned()
        };
        assert_eq!(record("task:call", Some("a")), "rate/task:call:a");
        assert_eq!(record("task:call", Some("b:c")), "rate/task:call:b:c");
        assert_eq!(record("task:call:b", Some("c")), "rate/task:call%3Ab:c");
        assert_ne!(record("task:call:a", None), record("task:call", Some("a")));
    }
}
