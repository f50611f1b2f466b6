//! Row of the list: what is known of a task at its end, also after its record has expired. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    event::{Event, EventKind},
    id::TaskId,
    record::{ErrorText, FailureKind, Record, TaskState},
};

/// Maximum size of an error with its causes, in bytes.
const MAX_ERROR_BYTES: usize = 300;

/// Task that has ended. The names are short, because there are many rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedRow {
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
    #[serde(rename = "i")]
    pub(crate) id: TaskId,
    #[serde(rename = "n")]
    pub(crate) name: String,
    #[serde(rename = "q")]
    pub(crate) queue: String,
    #[serde(rename = "a")]
    attempt: u32,
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    /// Kind of its failure, as a word: a newer program may know more.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    /// Error and its causes. Left out where the record encrypts it.
    #[serde(rename = "e", default, skip_serializing_if = "Vec::is_empty")]
    error: Vec<String>,
    /// Version of machinist in the process in which it ended.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    #[serde(rename = "l", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
}

impl EndedRow {
    /// Returns the row of an event; `None` if no task has ended by it.
    pub(crate) fn of(event: &Event<'_>) -> Option<Self> {
        let EventKind::Ended { task, failure, encrypted, .. } = event.kind else { return None };
        let error = failure.filter(|_| !encrypted).map(|(_, error)| {
            let mut error = error.clone();
            error.shorten(MAX_ERROR_BYTES);
            error.chain
        });
        Some(Self {
            at: event.at(),
            id: task.id.clone(),
            name: task.name.to_string(),
            queue: task.queue.to_string(),
            attempt: task.attempt,
            worker: event.worker.map(str::to_owned),
            kind: failure.map(|(kind, _)| kind.as_str().to_owned()),
            error: error.unwrap_or_default(),
            // Only failures are grouped by it.
            version: failure.map(|_| env!("CARGO_PKG_VERSION").to_owned()),
            labels: task.labels().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        })
    }

    /// Returns its error without the causes.
    pub(crate) fn error_message(&self) -> &str {
        self.error.first().map_or("", String::as_str)
    }

    /// Returns `true` if the task has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.kind.is_some()
    }

    /// Returns what the row says, as far as it goes.
    pub(crate) fn record(&self) -> Record {
        let state = if self.has_failed() { TaskState::Failure } else { TaskState::Success };
        Record {
            name: Some(self.name.clone()),
            queue: Some(self.queue.clone()),
            kind: self.kind.as_deref().and_then(FailureKind::parse),
            attempt: self.attempt,
            worker: self.worker.clone(),
            ended_at: Some(self.at),
            error: self.has_failed().then(|| ErrorText { chain: self.error.clone() }),
            ..Record::of(self.id.clone(), state)
        }
    }
}
