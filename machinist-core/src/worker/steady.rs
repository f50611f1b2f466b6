//! The patience with which backend and broker are asked: again and again, with jittered pauses, until they answer
//! or the process has to leave.
//!
//! Neither an acknowledgement nor a failure follows from a server that is away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::Stages;
use crate::{
    app::App,
    backend::{BackendError, Commit, Committed},
    broker::{Publish, PublishError},
    id::TaskId,
    record::Facts,
};

/// After so many failures in a row the backend counts as away, and no deliveries are taken.
const AWAY: u32 = 2;
/// Bounds of the pause before the next try; it doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The process has to leave, and the answer is not there. What was asked may have been done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving;

/// What a publish that does not come back to be tried again ended in.
#[derive(Debug)]
pub(super) enum Unpublished {
    /// It can never be published so.
    Never(PublishError),
    Leaving,
}

#[derive(Debug)]
pub(super) struct Steady {
    app: App,
    stages: Stages,
    failures: AtomicU32,
    away: watch::Sender<bool>,
}

impl Steady {
    pub(super) fn new(app: App, stages: Stages) -> Arc<Self> {
        Arc::new(Self { app, stages, failures: AtomicU32::new(0), away: watch::Sender::new(false) })
    }

    /// Commits, however long the backend is away.
    pub(super) async fn commit(&self, commit: &Commit) -> Result<Committed, Leaving> {
        self.ask("commit", || async {
            // INVARIANT: one answer for one commit.
            self.app.backend().commit(vec![commit.clone()]).await.pop().expect("one answer")
        })
        .await
    }

    /// Reads one record, however long the backend is away.
    pub(super) async fn read(&self, id: &TaskId) -> Result<Facts, Leaving> {
        self.ask("read", || async {
            let mut facts = self.app.backend().read(std::slice::from_ref(id)).await?;
            Ok(facts.pop().unwrap_or_default())
        })
        .await
    }

    async fn ask<T, F: Future<Output = Result<T, BackendError>>>(
        &self,
        what: &'static str,
        question: impl Fn() -> F,
    ) -> Result<T, Leaving> {
        let mut tries = 0;
        loop {
            let answer = tokio::select! {
                answer = question() => answer,
                () = self.stages.reached_leave() => return Err(Leaving),
            };
            match answer {
                Ok(answer) => {
                    self.answered(true);
                    return Ok(answer);
                }
                Err(error) => {
                    self.answered(false);
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        tries,
                        "the backend did not {what}; trying again"
                    );
                }
            }
            self.pause(tries).await?;
            tries += 1;
        }
    }

    /// Publishes, however long the broker is away.
    pub(super) async fn publish(&self, publish: &Publish) -> Result<(), Unpublished> {
        let mut tries = 0;
        loop {
            let mut answers = tokio::select! {
                answers = self.app.broker().publish(vec![publish.clone()]) => answers,
                () = self.stages.reached_leave() => return Err(Unpublished::Leaving),
            };
            match answers.pop() {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) if error.is_certain() => return Err(Unpublished::Never(error)),
                Some(Err(error)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        tries,
                        "the broker did not take a message; trying again"
                    );
                }
                None => tracing::error!("the broker adapter gave no answer; trying again"),
            }
            self.pause(tries).await.map_err(|Leaving| Unpublished::Leaving)?;
            tries += 1;
        }
    }

    /// Completes while the backend answers.
    pub(super) async fn backend_is_there(&self) {
        let mut away = self.away.subscribe();
        // The sender lives in self, so waiting cannot fail.
        drop(away.wait_for(|away| !away).await);
    }

    /// Whether no deliveries are taken, because the backend did not answer.
    pub(super) fn is_backend_away(&self) -> bool {
        *self.away.borrow()
    }

    /// Notes whether the backend answered. Called by everyone who asks it.
    pub(super) fn answered(&self, did: bool) {
        let failures = if did {
            self.failures.store(0, Ordering::Relaxed);
            0
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
        };
        let away = failures >= AWAY;
        self.away.send_if_modified(|was| {
            let changed = *was != away;
            if changed && away {
                tracing::error!("the backend is away: taking no deliveries until it answers");
            } else if changed {
                tracing::info!("the backend is back");
            }
            *was = away;
            changed
        });
    }

    async fn pause(&self, tries: u32) -> Result<(), Leaving> {
        tokio::select! {
            () = tokio::time::sleep(jittered(tries)) => Ok(()),
            () = self.stages.reached_leave() => Err(Leaving),
        }
    }
}

/// Half of the pause is fixed, so that nobody spins; half is drawn, so that a crowd spreads.
fn jittered(tries: u32) -> Duration {
    let bound = PAUSE.0.saturating_mul(1 << tries.min(16)).min(PAUSE.1);
    bound.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}
