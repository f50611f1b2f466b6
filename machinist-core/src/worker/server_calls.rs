//! The patience with which backend and broker are asked: again and again, with jittered pauses, until they answer
//! or the process has to leave.
//!
//! Neither an acknowledgement nor a failure follows from a server that is away. After ten minutes without the backend
//! what has no outcome goes back to the broker; an outcome is kept until it is recorded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::Stages;
use crate::{
    app::App,
    backend::{BackendError, Commit, Committed},
    broker::{Publish, PublishError},
    id::TaskId,
    record::Facts,
};

/// After so many failures in a row the backend counts as away, and no deliveries are taken.
const AWAY_AFTER_FAILURES: u32 = 2;
/// After so long without the backend what is held goes back.
pub(super) const AWAY_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Bounds of the pause before the next try; it doubles from the first to the second.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The answer is not there, and is not waited for any longer. What was asked may have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The process has to leave.
    Leaving,
    /// The backend has been away for so long that what has no outcome goes back.
    GivenUp,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// One who can hand its delivery back.
    Delivery,
    /// One who knows how a run ended, and is the only one who does.
    Verdict,
}

/// What a publish that does not come back to be tried again ended in.
#[derive(Debug)]
pub(super) enum Unpublished {
    /// It can never be published so.
    Never(PublishError),
    Unanswered(Unanswered),
}

impl From<Unanswered> for Unpublished {
    fn from(why: Unanswered) -> Self {
        Self::Unanswered(why)
    }
}

#[derive(Debug)]
pub(super) struct ServerCalls {
    app: App,
    stages: Stages,
    failures: AtomicU32,
    /// Since when the backend has been away.
    away: watch::Sender<Option<Instant>>,
    /// Whether what has no outcome is to go back.
    given_up: watch::Sender<bool>,
    /// How many outcomes wait to be recorded, after a first try that failed.
    unrecorded_outcomes: watch::Sender<usize>,
}

impl ServerCalls {
    pub(super) fn new(app: App, stages: Stages) -> Arc<Self> {
        let (away, given_up) = (watch::Sender::new(None), watch::Sender::new(false));
        let (failures, unrecorded_outcomes) = (AtomicU32::new(0), watch::Sender::new(0));
        Arc::new(Self { app, stages, failures, away, given_up, unrecorded_outcomes })
    }

    /// Commits, unless the backend is away for so long that the delivery is to go back.
    pub(super) async fn commit(&self, commit: impl Into<Arc<Commit>>) -> Result<Committed, Unanswered> {
        let commit = commit.into();
        self.until_answered("commit", Caller::Delivery, || self.try_commit(&commit)).await
    }

    /// Commits what is known here alone, however long the backend is away.
    pub(super) async fn commit_outcome(
        &self,
        commit: impl Into<Arc<Commit>>,
    ) -> Result<Committed, Unanswered> {
        let commit = commit.into();
        self.until_answered("commit", Caller::Verdict, || self.try_commit(&commit)).await
    }

    async fn try_commit(&self, commit: &Arc<Commit>) -> Result<Committed, BackendError> {
        // INVARIANT: one answer for one commit.
        self.app.backend().commit(vec![Arc::clone(commit)]).await.pop().expect("one answer")
    }

    /// Reads one record, unless the backend is away for so long that the delivery is to go back.
    pub(super) async fn read(&self, id: &TaskId) -> Result<Facts, Unanswered> {
        self.until_answered("read", Caller::Delivery, || async {
            let mut facts = self.app.backend().read(std::slice::from_ref(id)).await?;
            Ok(facts.pop().unwrap_or_default())
        })
        .await
    }

    async fn until_answered<T, F: Future<Output = Result<T, BackendError>>>(
        &self,
        what: &'static str,
        caller: Caller,
        question: impl Fn() -> F,
    ) -> Result<T, Unanswered> {
        let mut tries = 0;
        let mut _waits = None;
        loop {
            let answer = tokio::select! {
                biased;
                answer = question() => answer,
                () = self.stages.reached_leave() => return Err(Unanswered::Leaving),
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
            if caller == Caller::Verdict && tries == 0 {
                _waits = Some(UnrecordedOutcome::of(&self.unrecorded_outcomes));
            }
            // On the heap: nearly every first try has its answer.
            Box::pin(self.until_the_next_try(caller, tries)).await?;
            tries += 1;
        }
    }

    async fn until_the_next_try(&self, caller: Caller, tries: u32) -> Result<(), Unanswered> {
        tokio::select! {
            paused = self.pause_or_leave(tries) => paused,
            () = self.backend_comes_back() => Ok(()),
            () = self.given_up(), if caller == Caller::Delivery => Err(Unanswered::GivenUp),
        }
    }

    /// Publishes, however long the broker is away.
    pub(super) async fn publish(&self, publish: &Publish) -> Result<(), Unpublished> {
        let mut tries = 0;
        loop {
            let mut answers = tokio::select! {
                answers = self.app.broker().publish(vec![publish.clone()]) => answers,
                () = self.stages.reached_leave() => return Err(Unanswered::Leaving.into()),
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
            self.pause_or_leave(tries).await?;
            tries += 1;
        }
    }

    /// Completes while the backend answers.
    pub(super) async fn backend_is_there(&self) {
        if !self.is_backend_away() {
            return;
        }
        let mut away = self.away.subscribe();
        // The sender lives in self, so waiting cannot fail.
        drop(away.wait_for(Option::is_none).await);
    }

    /// Whether no deliveries are taken, because the backend did not answer.
    pub(super) fn is_backend_away(&self) -> bool {
        self.away.borrow().is_some()
    }

    /// Completes when the backend, which is away, answers; never where it is not away.
    async fn backend_comes_back(&self) {
        if !self.is_backend_away() {
            std::future::pending::<()>().await;
        }
        self.backend_is_there().await;
    }

    /// Completes when the backend has been away for [`AWAY_TIMEOUT`], without an answer to anybody.
    pub(super) async fn backend_is_away_for_long(&self) {
        let mut away = self.away.subscribe();
        loop {
            // The sender lives in self, so waiting cannot fail.
            let Ok(Some(since)) = away.wait_for(Option::is_some).await.map(|since| *since) else { continue };
            tokio::select! {
                // It may have answered in between, and been away again.
                () = tokio::time::sleep_until(since + AWAY_TIMEOUT) => {
                    if *self.away.borrow() == Some(since) {
                        return;
                    }
                }
                _ = away.wait_for(Option::is_none) => {}
            }
        }
    }

    /// From now on, or no more, what has no outcome goes back.
    pub(super) fn give_up(&self, given_up: bool) {
        self.given_up.send_replace(given_up);
    }

    /// Completes when what has no outcome is to go back.
    pub(super) async fn given_up(&self) {
        // The sender lives in self, so waiting cannot fail.
        drop(self.given_up.subscribe().wait_for(|given_up| *given_up).await);
    }

    /// UnrecordedOutcome until no outcome waits to be recorded, but no longer than this.
    pub(super) async fn outcomes_are_recorded(&self, within: Duration) {
        let mut unrecorded_outcomes = self.unrecorded_outcomes.subscribe();
        // Those that are still not recorded go on trying: what they are late for is only less tidy.
        let _in_time =
            tokio::time::timeout(within, unrecorded_outcomes.wait_for(|waiting| *waiting == 0)).await;
    }

    /// Notes whether the backend answered. Called by everyone who asks it.
    pub(super) fn answered(&self, did: bool) {
        let failures = if did {
            self.failures.store(0, Ordering::Relaxed);
            0
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
        };
        let away = failures >= AWAY_AFTER_FAILURES;
        self.away.send_if_modified(|since| {
            let changed = since.is_some() != away;
            if changed && away {
                tracing::error!("the backend is away: taking no deliveries until it answers");
            } else if changed {
                tracing::info!("the backend is back");
            }
            if changed {
                *since = away.then(Instant::now);
            }
            changed
        });
    }

    async fn pause_or_leave(&self, tries: u32) -> Result<(), Unanswered> {
        tokio::select! {
            () = pause(tries) => Ok(()),
            () = self.stages.reached_leave() => Err(Unanswered::Leaving),
        }
    }
}

/// One outcome that waits to be recorded.
struct UnrecordedOutcome<'a>(&'a watch::Sender<usize>);

impl<'a> UnrecordedOutcome<'a> {
    fn of(unrecorded_outcomes: &'a watch::Sender<usize>) -> Self {
        unrecorded_outcomes.send_modify(|waiting| *waiting += 1);
        Self(unrecorded_outcomes)
    }
}

impl Drop for UnrecordedOutcome<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// The pause after so many tries that failed before.
pub(super) async fn pause(tries: u32) {
    tokio::time::sleep(jittered(RETRY_PAUSE.0.saturating_mul(1 << tries.min(16)).min(RETRY_PAUSE.1))).await;
}

/// Half of a pause is fixed, so that nobody spins; half is drawn, so that a crowd spreads.
pub(super) fn jittered(bound: Duration) -> Duration {
    bound.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}
