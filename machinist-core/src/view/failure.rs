//! A group of failures.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::FailureGroup;

/// Failed tasks of one cause, as `failures` prints them.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct FailureGroupView<'a> {
    /// Digest of name, kind and error.
    pub fingerprint: &'a str,
    /// Name of the tasks.
    pub task: &'a str,
    /// Kind of the failures.
    pub kind: &'a str,
    /// First line of the error, without what differs from task to task.
    pub error: &'a str,
    /// Number of failures.
    pub count: u64,
    /// Number of failures in the last hour.
    pub last_hour: u64,
    /// Number of failures in the last 24 hours.
    pub last_day: u64,
    /// Number of failures in the last seven days.
    pub last_week: u64,
    /// Time of the first.
    pub first_seen: String,
    /// Time of the last.
    pub last_seen: String,
    /// Id of the task that failed last.
    pub example: &'a str,
    /// Versions of machinist in whose workers they failed.
    pub versions: &'a BTreeSet<String>,
    /// Queues in which they failed.
    pub queues: &'a BTreeSet<String>,
    /// Time until which the group is silenced.
    pub silenced_until: Option<String>,
}

impl<'a> From<&'a FailureGroup> for FailureGroupView<'a> {
    fn from(group: &'a FailureGroup) -> Self {
        Self {
            fingerprint: &group.fingerprint,
            task: &group.task,
            kind: &group.kind,
            error: &group.error,
            count: group.count,
            last_hour: group.last_hour,
            last_day: group.last_day,
            last_week: group.last_week,
            first_seen: group.first_seen.to_string(),
            last_seen: group.last_seen.to_string(),
            example: group.example.as_str(),
            versions: &group.versions,
            queues: &group.queues,
            silenced_until: group.silenced_until.map(|until| until.to_string()),
        }
    }
}
