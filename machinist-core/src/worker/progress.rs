//! What a handler says of its progress, on its way to those who watch.
//!
//! Nothing depends on it: what cannot be written is left out, and the next word says more anyway. The last word goes
//! with the outcome.

use std::{convert::Infallible, time::Duration};

use super::{processor::TaskProcessor, session::Registered};
use crate::{context::TaskContext, record::say};

/// How often at most a run's progress is written.
const EVERY: Duration = Duration::from_millis(500);

impl TaskProcessor {
    /// Writes the progress of a run, for as long as it runs. Never completes.
    pub(super) async fn tell_progress(&self, cx: &TaskContext, registered: &Registered) -> Infallible {
        let mut said = cx.watch_progress();
        loop {
            if said.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let progress = said.borrow_and_update().clone();
            if let (Some(progress), Some(held)) = (progress, registered.held()) {
                let answers = self.app.backend().commit(vec![say(&held, &progress)]).await;
                if let Some(Err(error)) = answers.first() {
                    tracing::debug!(%error, "a word of progress was not written");
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}
