//! A worker and what it runs.

use serde::Serialize;

use crate::{WorkerInfo, clock::Timestamp, record::Record, rfc3339};

/// Worker with its runs, as `workers show` prints it.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct WorkerView<'a> {
    /// The worker.
    #[serde(flatten)]
    pub worker: &'a WorkerInfo,
    /// Some of the tasks that it runs.
    pub runs: Vec<WorkerRunView<'a>>,
}

/// Task that a worker runs.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct WorkerRunView<'a> {
    /// Id of the task.
    pub id: &'a str,
    /// Name of the task, if its record was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<&'a str>,
    /// Time of its start, if its record was read.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rfc3339::if_known")]
    pub since: Option<Timestamp>,
}

impl<'a> WorkerView<'a> {
    /// Creates the view of a worker and the records of its runs ([`Client::worker_runs`](crate::Client::worker_runs)).
    pub fn with_runs(worker: &'a WorkerInfo, runs: &'a [Record]) -> Self {
        let view = |run: &'a Record| WorkerRunView {
            id: run.id.as_str(),
            task: run.name.as_deref(),
            since: run.started_at,
        };
        Self { worker, runs: runs.iter().map(view).collect() }
    }
}

impl<'a> From<&'a WorkerInfo> for WorkerView<'a> {
    fn from(worker: &'a WorkerInfo) -> Self {
        let view = |id: &'a String| WorkerRunView { id, task: None, since: None };
        Self { worker, runs: worker.runs.iter().map(view).collect() }
    }
}
