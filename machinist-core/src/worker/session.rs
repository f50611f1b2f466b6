//! This process's lease on what it runs, and what it knows about the leases of others.
//!
//! One session per worker, not one lease per task. A session that has expired never comes back: a worker that finds
//! its own gone opens a new one and adopts what it runs. A task of another session is taken over only after two
//! looks, some time apart, on a backend that answered all the while, found that session gone; so after an outage
//! of the backend the owners come first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::server_calls::ServerCalls;
use crate::{
    app::App,
    backend::{Backend, BackendError, Committed},
    id::{RunId, SessionId, TaskId},
    record::{Claim, ClaimStatus, Facts, RenewalAction, name},
};

/// The leases of a worker, as shares of one duration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease(Duration);

impl Lease {
    pub(super) const DEFAULT: Self = Self(Duration::from_secs(15));

    pub(super) const fn new(lease: Duration) -> Self {
        Self(lease)
    }

    pub(super) fn millis(self) -> usize {
        usize::try_from(self.0.as_millis()).unwrap_or(usize::MAX)
    }

    /// How often it is renewed.
    pub(super) fn renewal(self) -> Duration {
        self.0 / 3
    }

    /// How often other sessions are looked at.
    pub(super) fn check_interval(self) -> Duration {
        self.0 * 2 / 15
    }

    /// How far apart the two looks must be that find a session gone.
    fn gone_confirmation(self) -> Duration {
        self.0 / 3
    }

    /// After how long at most a session that is gone is known to be: the wait for the first look, the time between
    /// the looks, the wait for the last, and a second for the answers.
    fn detection_time(self) -> Duration {
        self.check_interval() * 2 + self.gone_confirmation() + Duration::from_secs(1)
    }

    /// How long a session is looked at after somebody was found busy with it.
    fn interest(self) -> Duration {
        self.0 * 4
    }
}

/// Why a run is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelReason {
    /// Another run holds the attempt, or it has an outcome: whatever this one says does not count.
    TakenOver,
    /// Somebody revoked the task.
    Revoked,
    /// This worker cannot know any more whether it holds what it runs, or could not tell for long how it ended.
    CutOff,
}

/// A delivery that this process works on, from before its start is asked for until it is settled.
#[derive(Debug)]
struct ActiveRun {
    id: TaskId,
    /// What it holds, from the grant of its start until its outcome is recorded.
    claim: Option<Claim>,
    cancel: CancellationToken,
    cut_off: CancellationToken,
    why: Option<CancelReason>,
}

#[derive(Debug)]
struct PeerSession {
    /// When somebody last asked.
    wanted: Instant,
    /// When it was first found gone, with no failure of the backend since.
    gone_since: Option<Instant>,
    gone: bool,
}

#[derive(Debug)]
struct SessionState {
    session: SessionId,
    /// Until when the session is certainly alive.
    valid_until: Instant,
    runs: HashMap<RunId, ActiveRun>,
    peers: HashMap<SessionId, PeerSession>,
    /// Runs that were told to end and did not.
    stuck: HashMap<RunId, TaskId>,
    /// Starts that are over without an outcome, or were perhaps never granted, of which the backend could not be told.
    /// None is added without a delivery in hand, and none is started before they are told.
    recorded_follow_up: Vec<Claim>,
}

/// The session of a worker.
#[derive(Debug)]
pub(super) struct Sessions {
    app: App,
    lease: Lease,
    /// What the worker tells about itself, without what it runs.
    about: serde_json::Map<String, serde_json::Value>,
    state: Mutex<SessionState>,
    alive: tokio::sync::Notify,
    gone_count: watch::Sender<u64>,
}

/// A run that was told to end and did not; dropped when it has ended at last.
#[derive(Debug)]
pub(super) struct Stuck {
    sessions: Arc<Sessions>,
    run: RunId,
    since: Instant,
}

/// A run that is under way; dropped, it is forgotten.
#[derive(Debug)]
pub(super) struct RegisteredRun {
    sessions: Arc<Sessions>,
    pub(super) run: RunId,
    pub(super) cancel: CancellationToken,
    /// Fires, after `cancel`, when nobody wants to wait for its last words.
    pub(super) cut_off: CancellationToken,
}

impl Sessions {
    pub(super) fn new(
        app: App,
        lease: Lease,
        about: serde_json::Map<String, serde_json::Value>,
    ) -> Arc<Self> {
        let state = SessionState {
            session: SessionId::fresh(),
            valid_until: Instant::now(),
            runs: HashMap::new(),
            peers: HashMap::new(),
            stuck: HashMap::new(),
            recorded_follow_up: Vec::new(),
        };
        Arc::new(Self {
            app,
            lease,
            about,
            state: Mutex::new(state),
            alive: tokio::sync::Notify::new(),
            gone_count: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lease(&self) -> Lease {
        self.lease
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        self.app.backend().as_ref()
    }

    /// The session, be it alive or not.
    pub(super) fn current(&self) -> SessionId {
        self.state().session.clone()
    }

    /// Opens the session that this process will have from now on.
    pub(super) async fn open(&self) -> Result<(), BackendError> {
        let session = SessionId::fresh();
        let asked = Instant::now();
        let now = self.app.backend().open_session(&session, self.lease.0, self.info()).await?;
        self.app.clock().learn(asked, now);
        let mut state = self.state();
        state.session = session;
        state.valid_until = asked + self.lease.0;
        drop(state);
        self.alive.notify_waiters();
        Ok(())
    }

    /// Ends the session, when nothing runs under it any more.
    pub(super) async fn close(&self) {
        let session = self.state().session.clone();
        if let Err(error) = self.app.backend().close_session(&session).await {
            tracing::debug!(%error, "the session was not closed; it expires by itself");
        }
    }

    /// The session, once it is certainly alive: without one nothing is started and nothing taken over.
    pub(super) async fn alive(&self) -> SessionId {
        loop {
            let notified = self.alive.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let state = self.state();
                if Instant::now() < state.valid_until {
                    return state.session.clone();
                }
            }
            notified.await;
        }
    }

    /// For how long somebody who was told *busy* has to wait here at least, to learn whether that session is gone: what
    /// is left of its lease, and then the looks. Who leaves sooner and comes back much later asks anew each time, and
    /// never learns it.
    pub(super) fn patience(&self) -> Duration {
        self.lease.0 + self.lease.detection_time()
    }

    /// How often a session was found gone; ask before asking for a start.
    pub(super) fn gone_count(&self) -> u64 {
        *self.gone_count.borrow()
    }

    /// Completes when a session was found gone since then, any of them.
    pub(super) async fn gone_after(&self, looked: u64) {
        // It cannot be closed: the sender is ours.
        let _ = self.gone_count.subscribe().wait_for(|now| *now > looked).await;
    }

    /// Until when the session is certainly alive. It changes with every renewal.
    pub(super) fn valid_until(&self) -> Instant {
        self.state().valid_until
    }

    /// Tells everything that runs to end, because this worker is cut off.
    pub(super) fn cut_off_all(&self) {
        let running: Vec<_> = {
            let state = self.state();
            state.runs.iter().filter(|(_, run)| run.claim.is_some()).map(|(id, _)| id.clone()).collect()
        };
        for run in running {
            self.cancel(&run, CancelReason::CutOff);
        }
    }

    /// Notes a start that will not run, to be told when the backend is back: nobody then waits for its session, and
    /// it is not held against the task.
    pub(super) fn defer_hand_back(&self, claim: Claim) {
        self.state().recorded_follow_up.push(claim);
    }

    /// Tells what is owed. What is refused is left to the expiry of its session.
    async fn flush_hand_backs(&self) -> Result<(), BackendError> {
        let recorded_follow_up = self.state().recorded_follow_up.clone();
        if recorded_follow_up.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = recorded_follow_up.iter().map(|claim| claim.id.clone()).collect();
        let records = self.app.backend().read(&ids).await?;
        let standing = |(claim, facts): (&Claim, Facts)| {
            // It may have been adopted, if only the reply was lost.
            let claim = claim.newer_claim(&facts).unwrap_or_else(|| claim.clone());
            (claim.standing(&facts) == ClaimStatus::Current).then(|| claim.hand_back().into())
        };
        let commits = recorded_follow_up.iter().zip(records).filter_map(standing).collect();
        for answer in self.app.backend().commit(commits).await {
            match answer {
                Err(error @ BackendError::Unavailable(_)) => return Err(error),
                Err(error) => tracing::warn!(%error, "a start that came to nothing could not be given back"),
                Ok(_) => {}
            }
        }
        self.state().recorded_follow_up.retain(|claim| !recorded_follow_up.contains(claim));
        Ok(())
    }

    /// Makes a run known, before its start is asked for.
    pub(super) fn register(self: &Arc<Self>, id: &TaskId) -> RegisteredRun {
        let (run, cancel, cut_off) = (RunId::fresh(), CancellationToken::new(), CancellationToken::new());
        let entry = ActiveRun {
            id: id.clone(),
            claim: None,
            cancel: cancel.clone(),
            cut_off: cut_off.clone(),
            why: None,
        };
        self.state().runs.insert(run.clone(), entry);
        RegisteredRun { sessions: Arc::clone(self), run, cancel, cut_off }
    }

    /// How many handlers run.
    pub(super) fn running(&self) -> usize {
        self.state().runs.values().filter(|run| run.claim.is_some()).count()
    }

    /// Whether a start is known not to run any more.
    pub(super) fn is_gone(&self, session: &SessionId, run: &RunId) -> bool {
        let state = self.state();
        // One that was given up because it cannot be stopped runs on.
        if state.runs.contains_key(run) || state.stuck.contains_key(run) {
            return false;
        }
        // A start under our own session whose run is not here has ended here without an outcome.
        *session == state.session
            || state.peers.get(session).is_some_and(|check_interval| check_interval.gone)
    }

    /// Looks at this session from now on, because somebody waits for it.
    pub(super) fn watch_session(&self, session: &SessionId) {
        let now = Instant::now();
        let mut state = self.state();
        let check_interval = state.peers.entry(session.clone()).or_insert(PeerSession {
            wanted: now,
            gone_since: None,
            gone: false,
        });
        check_interval.wanted = now;
    }

    fn info(&self) -> Bytes {
        let mut about = self.about.clone();
        let running: Vec<_> = self
            .state()
            .runs
            .values()
            .filter(|r| r.claim.is_some())
            .map(|r| r.id.to_string())
            .take(1000)
            .collect();
        about.insert("running".to_owned(), running.into());
        let stuck: Vec<_> = self.state().stuck.values().map(TaskId::to_string).take(1000).collect();
        if !stuck.is_empty() {
            about.insert("stuck".to_owned(), stuck.into());
        }
        crate::record::json(&about)
    }

    /// What runs here and still counts.
    fn runs(&self) -> Vec<(RunId, Claim)> {
        let state = self.state();
        // What was superseded stays so: written back after lost data it would take the task from who runs it.
        let counts = |(_, run): &(&RunId, &ActiveRun)| run.why != Some(CancelReason::TakenOver);
        let claim = |(id, run): (&RunId, &ActiveRun)| Some((id.clone(), run.claim.clone()?));
        state.runs.iter().filter(counts).filter_map(claim).collect()
    }

    /// Renews the lease, and learns in the same round trip what became of what runs here. After an outage what ended
    /// meanwhile is told first, then comes the session with what still runs; new starts wait for it.
    pub(super) async fn renew(&self, calls: &ServerCalls) -> Result<(), BackendError> {
        self.flush_hand_backs().await?;
        let session = self.state().session.clone();
        let runs = self.runs();
        let ids: Vec<_> = runs.iter().map(|(_, claim)| claim.id.clone()).collect();
        let asked = Instant::now();
        let renewed = self.app.backend().renew_session(&session, self.lease.0, self.info(), &ids).await?;
        self.app.clock().learn(asked, renewed.now);
        let mut records: HashMap<_, _> = runs.into_iter().map(|(run, _)| run).zip(renewed.records).collect();
        if renewed.alive {
            self.state().valid_until = asked + self.lease.0;
            self.alive.notify_waiters();
        } else {
            tracing::warn!(
                running = records.len(),
                "the session has expired: opening another, adopting what runs"
            );
            calls.answered(true);
            calls.outcomes_are_recorded(self.lease.check_interval()).await;
            self.open().await?;
        }
        for (run, claim) in self.runs() {
            match records.remove(&run) {
                Some(facts) => self.keep_up(&run, claim, facts).await?,
                // Granted meanwhile, under the session that is gone.
                None if !renewed.alive => self.keep_up(&run, claim, Facts::new()).await?,
                None => {}
            }
        }
        Ok(())
    }

    /// Does what a record demands about a run that is under way here. What fails is done by the next renewal.
    async fn keep_up(&self, run: &RunId, mut claim: Claim, mut facts: Facts) -> Result<(), BackendError> {
        let session = self.state().session.clone();
        loop {
            // Its own adoption, if only the reply was lost.
            if let Some(adopted) = claim.newer_claim(&facts) {
                claim = adopted;
                self.update_claim(run, &claim);
            }
            let (commit, next) = match claim.renewal_action(&facts, &session, self.app.clock().now()) {
                RenewalAction::Nothing => break,
                RenewalAction::Revoked => {
                    self.cancel(run, CancelReason::Revoked);
                    if facts.has(name::TERMINATED) {
                        self.cut_off(run);
                    }
                    break;
                }
                RenewalAction::TakenOver => break self.cancel(run, CancelReason::TakenOver),
                RenewalAction::Commit(commit) => *commit,
            };
            match self.app.backend().commit(vec![commit.into()]).await.pop().transpose()? {
                Some(Committed::Refused(refused)) => facts = refused,
                Some(Committed::Done) => break self.update_claim(run, &next),
                None => return Err(BackendError::Unavailable("the backend adapter gave no answer".into())),
            }
        }
        Ok(())
    }

    fn update_claim(&self, run: &RunId, claim: &Claim) {
        // Unless it was let go meanwhile.
        if let Some(entry) = self.state().runs.get_mut(run).filter(|entry| entry.claim.is_some()) {
            entry.claim = Some(claim.clone());
        }
    }

    fn cancel(&self, run: &RunId, why: CancelReason) {
        if let Some(entry) = self.state().runs.get_mut(run) {
            entry.why.get_or_insert(why);
            entry.cancel.cancel();
        }
    }

    fn cut_off(&self, run: &RunId) {
        if let Some(entry) = self.state().runs.get(run) {
            entry.cut_off.cancel();
        }
    }

    /// Looks at the sessions that somebody waits for.
    pub(super) async fn check_interval(&self) -> Result<(), BackendError> {
        let wanted: Vec<SessionId> = {
            let (now, interest) = (Instant::now(), self.lease.interest());
            let mut state = self.state();
            state.peers.retain(|_, check_interval| now < check_interval.wanted + interest);
            state.peers.keys().cloned().collect()
        };
        if wanted.is_empty() {
            return Ok(());
        }
        let answer = self.app.backend().alive(&wanted).await;
        let now = Instant::now();
        let mut state = self.state();
        match answer {
            Ok(alive) => {
                let mut found = false;
                for (session, alive) in wanted.iter().zip(alive) {
                    let Some(check_interval) = state.peers.get_mut(session) else { continue };
                    check_interval.gone_since =
                        if alive { None } else { check_interval.gone_since.or(Some(now)) };
                    let gone = check_interval
                        .gone_since
                        .is_some_and(|since| now >= since + self.lease.gone_confirmation());
                    found |= gone && !check_interval.gone;
                    check_interval.gone = gone;
                }
                if found {
                    self.gone_count.send_modify(|gone_count| *gone_count += 1);
                }
                Ok(())
            }
            Err(error) => {
                for check_interval in state.peers.values_mut() {
                    check_interval.gone_since = None;
                    check_interval.gone = false;
                }
                Err(error)
            }
        }
    }
}

impl RegisteredRun {
    /// Notes what was granted, so that renewals watch over it; `false` if it was granted under a session that has
    /// been replaced meanwhile, and has to be adopted before it may run.
    pub(super) fn set_claim(&self, claim: &Claim) -> bool {
        let mut state = self.sessions.state();
        if claim.session != state.session {
            return false;
        }
        if let Some(run) = state.runs.get_mut(&self.run) {
            run.claim = Some(claim.clone());
        }
        true
    }

    /// What is held now: an adoption may have renewed it.
    pub(super) fn claim(&self) -> Option<Claim> {
        self.sessions.state().runs.get(&self.run)?.claim.clone()
    }

    /// Lists it among the runs that do not end when they are told to, until what is returned is dropped.
    pub(super) fn stuck(&self) -> Stuck {
        let mut state = self.sessions.state();
        if let Some(id) = state.runs.get(&self.run).map(|run| run.id.clone()) {
            tracing::warn!(%id, "a handler was told to end and goes on; it should look at its cancellation token");
            state.stuck.insert(self.run.clone(), id);
        }
        Stuck { sessions: Arc::clone(&self.sessions), run: self.run.clone(), since: Instant::now() }
    }

    /// Its outcome is recorded. Renewals look after it no more: written back after lost data, the start of a run
    /// that is over would keep others waiting.
    pub(super) fn release(&self) {
        if let Some(run) = self.sessions.state().runs.get_mut(&self.run) {
            run.claim = None;
        }
    }

    /// Why it was told to end, if it was.
    pub(super) fn why(&self) -> Option<CancelReason> {
        self.sessions.state().runs.get(&self.run)?.why
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        if let Some(id) = self.sessions.state().stuck.remove(&self.run) {
            tracing::info!(%id, late = ?self.since.elapsed(), "a handler that did not end when it was told to has ended");
        }
    }
}

impl Drop for RegisteredRun {
    fn drop(&mut self) {
        self.sessions.state().runs.remove(&self.run);
    }
}
