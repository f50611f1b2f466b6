//! Calls to backend and broker, repeated with jittered pauses until the server answers or the process has to leave.
//!
//! An outage of a server never leads to an acknowledgement or to a failure. After ten minutes without the backend,
//! deliveries without an outcome go back to the broker; an outcome is kept until it is recorded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Stages, events::WorkerEvents, peers::Peers};
use crate::{
    app::App,
    backend::{BackendError, Commit, Committed},
    broker::{Publish, PublishError, Target},
    event::{EventKind, WorkerState},
    id::{RecordId, TaskId},
    record::Facts,
};

/// Number of consecutive failures after which the backend counts as away and no deliveries are taken.
const AWAY_AFTER_FAILURES: u32 = 2;
/// Duration of an outage of the backend after which deliveries go back to the broker.
pub(super) const AWAY_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Number of negative confirms after which a message for a queue is published with a delay.
const NACKS_BEFORE_DELAY: u32 = 3;
/// Maximum of that delay; half of it is the minimum.
const NACKED_DELAY: Duration = Duration::from_secs(15);
/// Number of tries for a record that cannot be used. The last is about a second after the first: a person has to remove
/// what is there.
const RECORD_TRIES: u32 = 4;
/// Minimum and maximum pause before the next try; the pause doubles with each try.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Reason that a call has no answer and is not repeated. The server may have executed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The process has to leave.
    Leaving,
    /// The backend has been away for so long that deliveries without an outcome go back.
    GivenUp,
    /// The backend answers, and the record of this task cannot be used: another program wrote there.
    BadRecord,
}

/// Party that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// A delivery, which can be handed back.
    Delivery,
    /// An outcome, which is known only in this process.
    Outcome,
}

/// Error of a publication that is not repeated.
#[derive(Debug)]
pub(super) enum Unpublished {
    /// The message can never be published in this form.
    Never(PublishError),
    Unanswered(Unanswered),
}

impl From<Unanswered> for Unpublished {
    fn from(unanswered: Unanswered) -> Self {
        Self::Unanswered(unanswered)
    }
}

/// Answer to one call.
enum Answer<T> {
    Given(T),
    /// The record cannot be used; the backend answers.
    BadRecord(BackendError),
    None,
}

/// Makes the calls of a worker to its servers, and tracks the outages of the backend.
#[derive(Debug)]
pub(super) struct ServerCalls {
    app: App,
    stages: Stages,
    events: Arc<WorkerEvents>,
    peers: Arc<Peers>,
    failures: AtomicU32,
    /// Time since which the backend has been away.
    away: watch::Sender<Option<Instant>>,
    /// Repeats whether `away` is set: every delivery and every answer asks.
    is_away: AtomicBool,
    /// `true` if deliveries without an outcome must go back.
    given_up: watch::Sender<bool>,
    /// Number of outcomes that wait to be recorded, after a first try that failed.
    unrecorded_outcomes: watch::Sender<usize>,
}

impl ServerCalls {
    pub(super) fn new(app: App, stages: Stages, events: Arc<WorkerEvents>, peers: Arc<Peers>) -> Arc<Self> {
        Arc::new(Self {
            app,
            stages,
            events,
            peers,
            failures: AtomicU32::new(0),
            away: watch::Sender::new(None),
            is_away: AtomicBool::new(false),
            given_up: watch::Sender::new(false),
            unrecorded_outcomes: watch::Sender::new(0),
        })
    }

    /// Commits, unless the backend is away for so long that the delivery must go back.
    pub(super) async fn commit(&self, commit: impl Into<Arc<Commit>>) -> Result<Committed, Unanswered> {
        let commit = commit.into();
        self.until_answered("commit", Caller::Delivery, || self.try_commit(&commit)).await
    }

    /// Commits an outcome that is known only in this process, and waits for the backend without a limit.
    pub(super) async fn commit_outcome(
        &self,
        commit: impl Into<Arc<Commit>>,
    ) -> Result<Committed, Unanswered> {
        let commit = commit.into();
        self.until_answered("commit", Caller::Outcome, || self.try_commit(&commit)).await
    }

    /// Commits a takeover, and does not repeat it: after a failure the worker of that session comes first. Returns `None`
    /// after a failure and a pause; the takeover may have been committed.
    pub(super) async fn commit_takeover(&self, commit: Commit) -> Result<Option<Committed>, Unanswered> {
        let commit = Arc::new(commit);
        if let Answer::Given(answer) = self.try_once("commit", 0, || self.try_commit(&commit)).await? {
            return Ok(Some(answer));
        }
        // The next request of a start tells a record that cannot be used.
        self.until_the_next_try(Caller::Delivery, 0).await?;
        Ok(None)
    }

    async fn try_commit(&self, commit: &Arc<Commit>) -> Result<Committed, BackendError> {
        // INVARIANT: one answer for one commit.
        self.app.backend().commit(vec![Arc::clone(commit)]).await.pop().expect("one answer")
    }

    /// Reads one record, unless the backend is away for so long that the delivery must go back.
    pub(super) async fn read(&self, id: &TaskId) -> Result<Facts, Unanswered> {
        self.read_record(&RecordId::from(id)).await
    }

    /// Reads records, each with its own answer: `None` for one that cannot be read.
    pub(super) async fn read_each(&self, ids: &[RecordId]) -> Result<Vec<Option<Facts>>, Unanswered> {
        let read = || async { self.app.backend().read_each(ids).await };
        let answers = self.until_answered("read", Caller::Delivery, read).await?;
        Ok(answers.into_iter().map(Result::ok).collect())
    }

    /// Reads a record of something else than the task that the caller works for. What a record that cannot be used has held is
    /// lost; that task is not to blame for it.
    pub(super) async fn read_other(&self, id: &RecordId) -> Result<Facts, Unanswered> {
        match self.read_record(id).await {
            Err(Unanswered::BadRecord) => Ok(Facts::new()),
            answer => answer,
        }
    }

    /// Reads a record of any kind.
    pub(super) async fn read_record(&self, id: &RecordId) -> Result<Facts, Unanswered> {
        let record = [id.clone()];
        self.until_answered("read", Caller::Delivery, || async {
            let mut facts = self.app.backend().read(&record).await?;
            Ok(facts.pop().unwrap_or_default())
        })
        .await
    }

    async fn until_answered<T, F: Future<Output = Result<T, BackendError>>>(
        &self,
        operation: &'static str,
        caller: Caller,
        call: impl Fn() -> F,
    ) -> Result<T, Unanswered> {
        let mut tries = 0;
        let mut _unrecorded = None;
        loop {
            match self.try_once(operation, tries, &call).await? {
                Answer::Given(answer) => return Ok(answer),
                Answer::BadRecord(error) if tries + 1 >= RECORD_TRIES => {
                    if let Some(suppressed) = self.app.0.log_lines.due("record", operation) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, suppressed, "the backend did not {operation}");
                    }
                    return Err(Unanswered::BadRecord);
                }
                Answer::BadRecord(_) | Answer::None => {}
            }
            if caller == Caller::Outcome && tries == 0 {
                _unrecorded = Some(UnrecordedOutcome::of(&self.unrecorded_outcomes));
            }
            // On the heap: nearly every first try is answered.
            Box::pin(self.until_the_next_try(caller, tries)).await?;
            tries += 1;
        }
    }

    /// Makes one call.
    async fn try_once<T, F: Future<Output = Result<T, BackendError>>>(
        &self,
        operation: &'static str,
        tries: u32,
        call: impl Fn() -> F,
    ) -> Result<Answer<T>, Unanswered> {
        let answer = tokio::select! {
            biased;
            answer = call() => answer,
            () = self.stages.reached_leave() => return Err(Unanswered::Leaving),
        };
        match answer {
            Ok(answer) => {
                self.answered(true);
                Ok(Answer::Given(answer))
            }
            Err(error) if error.is_of_one_record() => {
                // The backend has answered: the other tasks go on.
                self.answered(true);
                Ok(Answer::BadRecord(error))
            }
            Err(error) => {
                self.answered(false);
                let name = format!("{operation}: {error}");
                if let Some(suppressed) = self.app.0.log_lines.due("backend", &name) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        tries,
                        suppressed,
                        "the backend did not {operation}; trying again"
                    );
                }
                Ok(Answer::None)
            }
        }
    }

    async fn until_the_next_try(&self, caller: Caller, tries: u32) -> Result<(), Unanswered> {
        tokio::select! {
            paused = self.pause_or_leave(tries) => paused,
            () = self.backend_comes_back() => Ok(()),
            () = self.given_up(), if caller == Caller::Delivery => Err(Unanswered::GivenUp),
        }
    }

    /// Publishes a message that the worker owes, and waits for the broker without a limit. A negative confirm is *not
    /// yet*: after a few of them a message for a queue goes the way of delayed ones (see [`delay_after_nacks`]).
    pub(super) async fn publish(&self, publish: &Publish) -> Result<(), Unpublished> {
        let mut tries = 0;
        let mut nacks = 0;
        let mut publish = publish.clone();
        loop {
            let mut answers = tokio::select! {
                answers = self.app.broker().publish(vec![publish.clone()]) => answers,
                () = self.stages.reached_leave() => return Err(Unanswered::Leaving.into()),
            };
            match answers.pop() {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) if error.is_certain() => return Err(Unpublished::Never(error)),
                Some(Err(error)) => {
                    if matches!(error, PublishError::Nacked { .. }) {
                        nacks += 1;
                        publish.delay = delay_after_nacks(&publish, nacks);
                    }
                    let name = format!("{}: {error}", publish.target.queue());
                    if let Some(suppressed) = self.app.0.log_lines.due("publish", &name) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            tries,
                            suppressed,
                            "the broker did not accept a message; trying again"
                        );
                    }
                }
                None => tracing::error!("the broker adapter gave no answer; trying again"),
            }
            self.pause_or_leave(tries).await?;
            tries += 1;
        }
    }

    /// Waits until this application can sign what it has to sign. Only the revocation of its only key takes that away.
    pub(super) async fn can_sign(&self) -> Result<(), Unanswered> {
        if self.app.0.trust.can_sign() {
            return Ok(());
        }
        tracing::error!(
            "no key signs any more: waiting with what has to be signed until another key is active"
        );
        tokio::select! {
            () = self.app.0.trust.signs() => Ok(()),
            () = self.stages.reached_leave() => Err(Unanswered::Leaving),
        }
    }

    /// Completes as soon as the backend is not away.
    pub(super) async fn backend_is_there(&self) {
        if !self.is_backend_away() {
            return;
        }
        let mut away = self.away.subscribe();
        // The sender lives in self, so waiting cannot fail.
        drop(away.wait_for(Option::is_none).await);
    }

    /// Returns `true` if the backend does not answer, so that no deliveries are taken.
    pub(super) fn is_backend_away(&self) -> bool {
        self.is_away.load(Ordering::Acquire)
    }

    /// Completes when the backend, which is away, answers again. Never completes if it is not away.
    async fn backend_comes_back(&self) {
        if !self.is_backend_away() {
            std::future::pending::<()>().await;
        }
        self.backend_is_there().await;
    }

    /// Completes when the backend has been away for [`AWAY_TIMEOUT`], without an answer to any call.
    pub(super) async fn backend_is_away_for_long(&self) {
        let mut away = self.away.subscribe();
        loop {
            // The sender lives in self, so waiting cannot fail.
            let Ok(Some(since)) = away.wait_for(Option::is_some).await.map(|since| *since) else { continue };
            tokio::select! {
                // The backend may have answered in between and be away again.
                () = tokio::time::sleep_until(since + AWAY_TIMEOUT) => {
                    if *self.away.borrow() == Some(since) {
                        return;
                    }
                }
                _ = away.wait_for(Option::is_none) => {}
            }
        }
    }

    /// Sets if deliveries without an outcome go back.
    pub(super) fn give_up(&self, given_up: bool) {
        self.given_up.send_replace(given_up);
    }

    /// Completes when deliveries without an outcome must go back.
    pub(super) async fn given_up(&self) {
        // The sender lives in self, so waiting cannot fail.
        drop(self.given_up.subscribe().wait_for(|given_up| *given_up).await);
    }

    /// Waits until all outcomes are recorded, but no longer than `within`.
    pub(super) async fn outcomes_are_recorded(&self, within: Duration) {
        let mut unrecorded_outcomes = self.unrecorded_outcomes.subscribe();
        // Outcomes that are still not recorded are tried further. Recording them late is correct, only less tidy.
        let _in_time =
            tokio::time::timeout(within, unrecorded_outcomes.wait_for(|waiting| *waiting == 0)).await;
    }

    /// Counts the answers and failures of the backend. Every caller of the backend reports here.
    pub(super) fn answered(&self, answered: bool) {
        // Nearly always, and without a lock that all threads share.
        if answered && self.failures.load(Ordering::Relaxed) == 0 && !self.is_backend_away() {
            return;
        }
        let failures = if answered {
            self.failures.store(0, Ordering::Relaxed);
            0
        } else {
            self.peers.forget_checks();
            self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
        };
        let away = failures >= AWAY_AFTER_FAILURES;
        let changed = self.away.send_if_modified(|since| {
            let changed = since.is_some() != away;
            if changed {
                *since = away.then(Instant::now);
                self.is_away.store(away, Ordering::Release);
            }
            changed
        });
        if changed {
            self.emit_state(if away { WorkerState::BackendAway } else { WorkerState::BackendBack });
        }
    }

    /// Emits a change of what the worker can do with its servers.
    pub(super) fn emit_state(&self, state: WorkerState<'_>) {
        self.events.emit(EventKind::WorkerState { state });
    }

    async fn pause_or_leave(&self, tries: u32) -> Result<(), Unanswered> {
        tokio::select! {
            () = pause(tries) => Ok(()),
            () = self.stages.reached_leave() => Err(Unanswered::Leaving),
        }
    }
}

/// An outcome that waits to be recorded.
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

/// Returns the delay with which a message is published after this number of negative confirms.
///
/// A full queue stays full as long as its workers hold deliveries whose messages it does not take. So a message for it
/// takes the way of delayed messages, its delivery is done, and the worker takes what fills the queue.
fn delay_after_nacks(publish: &Publish, nacks: u32) -> Duration {
    match publish.target {
        Target::Queue(_) if nacks >= NACKS_BEFORE_DELAY => publish.delay.max(jittered(NACKED_DELAY)),
        _ => publish.delay,
    }
}

/// Waits for the pause after this number of failed tries.
pub(super) async fn pause(tries: u32) {
    tokio::time::sleep(jittered(RETRY_PAUSE.0.saturating_mul(1 << tries.min(16)).min(RETRY_PAUSE.1))).await;
}

/// Returns a random duration between half of `bound` and `bound`. The fixed half avoids a busy loop; the random half
/// spreads simultaneous tries.
pub(super) fn jittered(bound: Duration) -> Duration {
    bound.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}
