//! A worker and what it runs.

use serde::Serialize;

use crate::WorkerInfo;

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
}

impl<'a> From<&'a WorkerInfo> for WorkerView<'a> {
    fn from(worker: &'a WorkerInfo) -> Self {
        Self { worker, runs: worker.runs.iter().map(|id| WorkerRunView { id }).collect() }
    }
}
