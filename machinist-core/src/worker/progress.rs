//! What a handler says of its progress, on its way to those who watch.
//!
//! Nothing depends on it: what cannot be written is left out, and the next word says more anyway. The last word goes
//! with the outcome.

use std::{convert::Infallible, time::Duration};

use super::{WorkerContext, session::RegisteredRun};
use crate::{context::TaskContext, record::progress_commit, security::encrypt_outcome, sign::Key};

/// How often at most a run's progress is written.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);

impl WorkerContext {
    /// Writes the progress of a run, for as long as it runs. Never completes.
    pub(super) async fn publish_progress(
        &self,
        cx: &TaskContext,
        registered: &RegisteredRun,
        outcome_key: Option<&Key>,
    ) -> Infallible {
        let mut said = cx.watch_progress();
        loop {
            if said.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let progress = said.borrow_and_update().clone();
            if let (Some(progress), Some(claim)) = (progress, registered.claim()) {
                let said = progress_commit(&claim, &progress);
                let said = if let Some(key) = outcome_key { encrypt_outcome(said, key) } else { said };
                let answers = self.app.backend().commit(vec![said.into()]).await;
                if let Some(Err(error)) = answers.first() {
                    tracing::debug!(%error, "a word of progress was not written");
                }
            }
            tokio::time::sleep(WRITE_INTERVAL).await;
        }
    }
}
