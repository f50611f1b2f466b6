//! The progress that handlers report, published for those who watch a task.
//!
//! Nothing depends on it: a report that cannot be written is skipped, and the next report supersedes it anyway. The last
//! report is written with the outcome.

use std::{convert::Infallible, time::Duration};

use super::{WorkerContext, session::RegisteredRun};
use crate::{
    context::TaskContext,
    event::{EventKind, EventTask},
    record::progress_commit,
    security::encrypt_outcome,
    sign::Key,
};

/// Minimum time between two writes of a run's progress.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);

impl WorkerContext {
    /// Writes the progress of a run for as long as the run lasts. Never completes.
    pub(super) async fn publish_progress(
        &self,
        cx: &TaskContext,
        registered: &RegisteredRun,
        outcome_key: Option<&Key>,
    ) -> Infallible {
        let mut reports = cx.watch_progress();
        // The handler may have reported before it first waited.
        if reports.borrow().is_some() {
            reports.mark_changed();
        }
        loop {
            if reports.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let progress = reports.borrow_and_update().clone();
            if let (Some(progress), Some(claim)) = (progress, registered.claim()) {
                let task = EventTask::new(cx.task_id(), cx.task_name(), cx.queue(), cx.attempt());
                let encrypted = outcome_key.is_some();
                self.emit(EventKind::Progress { task, progress: &progress, encrypted });
                let commit = progress_commit(&claim, &progress);
                let commit = if let Some(key) = outcome_key { encrypt_outcome(commit, key) } else { commit };
                let answers = self.app.backend().commit(vec![commit.into()]).await;
                if let Some(Err(error)) = answers.first() {
                    tracing::debug!(%error, "a progress report was not written");
                }
            }
            tokio::time::sleep(WRITE_INTERVAL).await;
        }
    }
}
