//! This process's lease on its runs.
//!
//! Each worker has one session, not one lease per task. An expired session is never revived: a worker that finds
//! its own session gone opens a new one and adopts its runs. What it knows of other sessions is in
//! [`peers`](super::peers).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    admissions::DisabledTasks,
    described::{described_limits, described_patterns, described_tasks},
    events::WorkerEvents,
    held_places::HeldPlaces,
    lease::Lease,
    limits::Limits,
    memory::resident_bytes,
    peers::Peers,
    presence::Presence,
    server_calls::ServerCalls,
    shown_work::{MAX_LISTED_RUNS, SHOWN_RUNS, WorkRecord, at_most, list},
    switches::Switches,
    worker_name::WorkerName,
};
use crate::{
    app::App,
    backend::{Backend, BackendError, Commit, Committed, Index, IndexUpdate},
    event::WorkerState,
    id::{QueueName, RecordId, RunId, SessionId, TaskId, TaskName},
    limit::{Limit, LimitTarget, live_limits},
    record::{
        Claim, ClaimStatus, Facts, MAX_DESCRIBED_TASKS, RenewalAction, ShownWork, WorkerHealth, claim_name,
        close_session, control_record, holder_of, is_alive, json, keep_name, memory_to_show, name,
        name_record, numbered_name, open_session, rename_session, renew_session, revoked_root,
    },
    security::WorkerAction,
    tag::Tag,
};

/// Interval at which the name of the worker is kept from being forgotten.
const KEEP_NAME_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of sessions that are remembered, because they may hold a name and are not used.
const MAX_UNUSED_SESSIONS: usize = 100;
/// Maximum number of names that are passed over because another program has written into their records.
const MAX_UNUSABLE_NAMES: u32 = 10;

/// Runs of this process, which has made their ids: nobody else can choose ids that collide. Every run is looked up several
/// times.
type OwnRuns<T> = HashMap<RunId, T, foldhash::fast::RandomState>;

/// Reason that a run is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelReason {
    /// Another run holds the attempt, or the attempt has an outcome: the outcome of this run does not count.
    TakenOver,
    /// The task was revoked.
    Revoked,
    /// This worker can no longer know if it still holds its runs, or could not record their outcomes for a long time.
    CutOff,
}

/// A delivery that this process works on, from before its start is requested until it is settled.
#[derive(Debug)]
struct ActiveRun {
    id: TaskId,
    /// Roots of the workflows whose revocation revokes the task.
    roots: Vec<TaskId>,
    cancel: CancellationToken,
    /// Fires after `cancel`, when the run is not given any time to end by itself. Made when somebody asks for it: few runs
    /// wait for it.
    cut_off: OnceLock<CancellationToken>,
    state: Mutex<RunState>,
}

/// The part of a run that changes. Locked after the state of the session, if both are.
#[derive(Debug, Default)]
struct RunState {
    /// Claim of the run, from the grant of its start until its outcome is recorded.
    claim: Option<Claim>,
    reason: Option<CancelReason>,
    /// Time at which the record of the task was last written by this run, or read.
    looked_at: Option<Instant>,
}

impl ActiveRun {
    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_claim(&self) -> bool {
        self.state().claim.is_some()
    }

    /// Returns the claim, if the run still counts.
    fn counting_claim(&self) -> Option<Claim> {
        let state = self.state();
        // A superseded run stays superseded: written back after a loss of data, it would take the task from its owner.
        state.claim.clone().filter(|_| state.reason != Some(CancelReason::TakenOver))
    }

    /// Returns `true` if a renewal at this time has to look at the record of the task.
    fn is_due(&self, at: Instant, lease: Lease) -> bool {
        self.state().looked_at.is_none_or(|looked| at >= looked + lease.look_interval())
    }

    fn cut_off(&self) -> &CancellationToken {
        self.cut_off.get_or_init(CancellationToken::new)
    }
}

#[derive(Debug)]
struct SessionState {
    session: SessionId,
    /// Sessions that this process has opened since, and never used, because it got no answer about a name. They may hold one.
    unused: Vec<SessionId>,
    /// Time at which the name was last kept from being forgotten.
    name_kept: Instant,
    /// Record of the name, as it was last read.
    orders: Facts,
    /// Time until which the session is certainly alive.
    valid_until: Instant,
    /// Time at which the records last named this worker's runs, since the session could not be renewed.
    runs_seen: Option<Instant>,
    /// Description of the worker that is stored with its session, without its name and its runs.
    about: serde_json::Value,
    /// `true` if the description has changed since it was stored.
    about_changed: bool,
    /// Commits that write back the switches that the backend has lost.
    lost_switches: Vec<Commit>,
    /// Memory as the record of the session shows it.
    shown_memory: Option<u64>,
    /// Work as the record of the session shows it.
    shown_work: WorkRecord,
    /// `true` if the next renewal has to look at the records of all runs.
    looks_at_all: bool,
    /// `true` if the session is in the index of sessions.
    listed: bool,
    runs: OwnRuns<Arc<ActiveRun>>,
    /// Runs that were cancelled and have not ended.
    stuck: OwnRuns<TaskId>,
    /// Starts that ended without an outcome, were perhaps never granted, or were written back after their run had ended,
    /// and that were not handed back to the backend yet. The next renewal does that.
    deferred_hand_backs: Vec<Claim>,
    /// Records that could not be used when they were last asked for.
    unusable: HashSet<RecordId>,
}

impl SessionState {
    /// Returns the ids of the tasks that run.
    fn running_ids(&self) -> Vec<String> {
        self.runs.values().filter(|run| run.has_claim()).map(|run| run.id.to_string()).collect()
    }
}

/// Answers to a renewal: if the session is alive, and the records that were read with it.
type RenewalAnswers = (Result<bool, BackendError>, Vec<Result<Facts, BackendError>>);

/// The session of a worker.
#[derive(Debug)]
pub(super) struct Sessions {
    app: App,
    lease: Lease,
    /// Name that the worker was given.
    name: Arc<WorkerName>,
    /// State of the worker, as its session shows it, and the state that people want.
    pub(super) presence: Presence,
    disabled: Arc<DisabledTasks>,
    limits: Arc<Limits>,
    /// Places that runs hold under limits of concurrency.
    pub(super) places: HeldPlaces,
    events: Arc<WorkerEvents>,
    pub(super) switches: Switches,
    state: Mutex<SessionState>,
    alive: tokio::sync::Notify,
    pub(super) peers: Arc<Peers>,
}

/// A run that was cancelled and has not ended; dropped when it finally ends.
#[derive(Debug)]
pub(super) struct Stuck {
    sessions: Arc<Sessions>,
    run: RunId,
    since: Instant,
}

/// A run in progress. The session forgets it when this value is dropped.
#[derive(Debug)]
pub(super) struct RegisteredRun {
    sessions: Arc<Sessions>,
    pub(super) run: RunId,
    active: Arc<ActiveRun>,
}

impl Sessions {
    pub(super) fn new(
        app: App,
        name: Arc<WorkerName>,
        about: serde_json::Value,
        disabled: Arc<DisabledTasks>,
        limits: Arc<Limits>,
        events: Arc<WorkerEvents>,
        peers: Arc<Peers>,
    ) -> Arc<Self> {
        let state = SessionState {
            session: SessionId::fresh(),
            unused: Vec::new(),
            name_kept: Instant::now(),
            orders: Facts::new(),
            about,
            about_changed: false,
            lost_switches: Vec::new(),
            valid_until: Instant::now(),
            runs_seen: None,
            shown_memory: None,
            shown_work: WorkRecord::default(),
            looks_at_all: true,
            listed: false,
            runs: OwnRuns::default(),
            stuck: OwnRuns::default(),
            deferred_hand_backs: Vec::new(),
            unusable: HashSet::new(),
        };
        Arc::new(Self {
            app,
            lease: peers.lease(),
            name,
            presence: Presence::default(),
            disabled,
            limits,
            places: HeldPlaces::default(),
            events,
            switches: Switches::default(),
            state: Mutex::new(state),
            alive: tokio::sync::Notify::new(),
            peers,
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

    /// Returns the session, alive or not.
    pub(super) fn current(&self) -> SessionId {
        self.state().session.clone()
    }

    /// Opens a new session, which this process uses from then on.
    pub(super) async fn open(&self) -> Result<(), BackendError> {
        let session = SessionId::fresh();
        let work = self.work_to_show();
        let held_name = self.held_name();
        let about = self.about_as(held_name);
        let commit = open_session(&session, self.lease.duration(), about, work.clone());
        let asked = Instant::now();
        let (opened, now) = tokio::join!(self.commit(commit), self.app.backend().now());
        if let Committed::Refused(facts) = opened? {
            return Err(BackendError::Unavailable(format!("a new session has a record: {facts:?}").into()));
        }
        self.app.0.learn_time(asked, now?);
        self.note_unused(&session);
        let taken = self.take_name(held_name, &session).await?;
        if taken != *held_name {
            self.commit(rename_session(&session, self.about_as(&taken))).await?;
            if *taken != *self.name.given() {
                tracing::warn!(
                    name = self.name.given(),
                    shown_as = &*taken,
                    "another live worker has this name, or its record cannot be used"
                );
            }
            let mut state = self.state();
            self.name.hold(taken);
            // What was read of the other name says nothing.
            state.orders = Facts::new();
        }
        self.replace_session(session, asked + self.lease.duration(), WorkRecord::opened(work, asked));
        self.list().await;
        Ok(())
    }

    /// Notes a session that is not used until it has a name.
    fn note_unused(&self, session: &SessionId) {
        let mut state = self.state();
        state.unused.push(session.clone());
        // Older ones have expired.
        let excess = state.unused.len().saturating_sub(MAX_UNUSED_SESSIONS);
        state.unused.drain(..excess);
    }

    /// Returns `true` if a session is of this process: nobody else loses a name that it holds.
    fn is_own(&self, session: &SessionId) -> bool {
        let state = self.state();
        *session == state.session || state.unused.contains(session)
    }

    /// Returns the name that the session holds: that of the worker, with a number if another live worker has it.
    pub(super) fn held_name(&self) -> &Arc<str> {
        self.name.held()
    }

    /// Returns the description of the worker under this name.
    fn about_as(&self, name: &str) -> Bytes {
        let mut about = self.state().about.clone();
        about["worker"] = name.into();
        crate::record::json(&about)
    }

    /// Shows the queues and tags that the worker has now, and its number of slots, and lets it be seen soon.
    pub(super) fn describe(&self, concurrency: usize) {
        let (queues, own, tags) = (self.presence.queues(), self.presence.own_queues(), self.presence.tags());
        let mut state = self.state();
        state.about["queues"] = queues.iter().map(QueueName::as_str).collect::<Vec<_>>().into();
        state.about["patterns"] = described_patterns(&own).into();
        state.about["tags"] = tags.iter().map(Tag::as_str).collect::<Vec<_>>().into();
        state.about["concurrency"] = concurrency.into();
        state.about_changed = true;
        drop(state);
        self.presence.woken.notify_one();
    }

    /// Changes what the session says about the tasks of the worker, and lets it be seen soon.
    pub(super) fn describe_tasks(
        &self,
        tasks: &[TaskName],
        shapes: serde_json::Value,
        limits: &[(LimitTarget, Arc<Limit>)],
        concurrency: usize,
    ) {
        let mut state = self.state();
        state.about["tasks"] = described_tasks(tasks.iter().collect());
        state.about["more_tasks"] = tasks.len().saturating_sub(MAX_DESCRIBED_TASKS).into();
        state.about["shapes"] = shapes;
        state.about["limits"] = described_limits(limits);
        state.about["concurrency"] = concurrency.into();
        state.about_changed = true;
        drop(state);
        self.presence.woken.notify_one();
    }

    /// Shows the tasks that the worker does not take, because it fails them again and again.
    pub(super) fn show_open_circuits(&self, tasks: Vec<String>) {
        let mut state = self.state();
        state.about["open_circuits"] = tasks.into();
        state.about_changed = true;
        drop(state);
        self.presence.woken.notify_one();
    }

    /// Changes what the session says about the roles in which the worker takes part, and lets it be seen soon.
    pub(super) fn describe_roles(&self, roles: &[String]) {
        let mut state = self.state();
        state.about["roles"] = roles.into();
        state.about_changed = true;
        drop(state);
        self.presence.woken.notify_one();
    }

    /// Stores the description of the worker, if it has changed.
    async fn store_description(&self) -> Result<(), BackendError> {
        let session = {
            let mut state = self.state();
            std::mem::take(&mut state.about_changed).then(|| state.session.clone())
        };
        let Some(session) = session else { return Ok(()) };
        let stored = self.commit(rename_session(&session, self.about_as(self.held_name()))).await;
        if stored.is_err() {
            self.state().about_changed = true;
        }
        self.usable(&RecordId::from(&session), stored).map(drop)
    }

    /// Returns the commits that write back the switches that the backend has lost.
    pub(super) fn take_lost_switches(&self) -> Vec<Commit> {
        std::mem::take(&mut self.state().lost_switches)
    }

    /// Returns `true` if one of the names before the lowest free one is paused: of a process that was killed, which has not
    /// expired yet, or of one that lives. A record that cannot be used, or an order that is not believed, counts as none.
    pub(super) async fn is_paused_elsewhere(&self) -> Result<bool, BackendError> {
        for number in 1.. {
            let name = numbered_name(self.name.given(), number);
            let Some(Ok(facts)) = self.app.backend().read_each(&[name_record(&name)]).await?.pop() else {
                break;
            };
            let Some(holder) = holder_of(&facts) else { break };
            if !self.is_live(&holder).await? {
                break;
            }
            let order = facts.get(name::WANTED).map(|stored| self.app.0.trust.read_order(&name, stored));
            if matches!(order, Some(Ok(order)) if order.action == WorkerAction::Pause) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns `true` if this session is alive. A record that cannot be used is no session: its worker opens another.
    async fn is_live(&self, session: &SessionId) -> Result<bool, BackendError> {
        let found = self.app.backend().read_each(&[RecordId::from(session)]).await?;
        Ok(found.iter().any(|facts| facts.as_ref().is_ok_and(is_alive)))
    }

    /// Takes the name that this worker holds, or the lowest one that no other live session holds. What people want belongs to
    /// the name, so workers that have lost their sessions together must not swap their names. A session that dies in between
    /// holds nothing: the names of sessions that are gone are free. A name whose record cannot be used is passed over.
    async fn take_name(&self, held: &str, session: &SessionId) -> Result<Arc<str>, BackendError> {
        let (mut number, mut unusable) = (0, 0);
        loop {
            let name = match number {
                0 => held.to_owned(),
                number => numbered_name(self.name.given(), number),
            };
            let tried = number > 0 && name == held;
            number += 1;
            if tried {
                continue;
            }
            match self.take_name_if_free(&name, session).await {
                Ok(true) => return Ok(name.into()),
                Ok(false) => {}
                Err(error) if error.is_of_one_record() && unusable < MAX_UNUSABLE_NAMES => {
                    unusable += 1;
                    self.usable::<()>(&name_record(&name), Err(error))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a name. Returns `false` if another live session holds it.
    async fn take_name_if_free(&self, name: &str, session: &SessionId) -> Result<bool, BackendError> {
        let backend = self.app.backend();
        loop {
            let facts = backend.read(&[name_record(name)]).await?.pop().unwrap_or_default();
            let holder = holder_of(&facts);
            if let Some(holder) = holder.as_ref().filter(|holder| !self.is_own(holder))
                && self.is_live(holder).await?
            {
                return Ok(false);
            }
            if let Committed::Done { .. } = self.commit(claim_name(name, session, holder.as_ref())).await? {
                return Ok(true);
            }
        }
    }

    /// Returns the record of the worker's name, as the last renewal read it.
    pub(super) fn orders(&self) -> Facts {
        self.state().orders.clone()
    }

    /// Keeps the name from being forgotten while the worker lives. It is repeated after a day.
    async fn keep_name(&self) -> Result<(), BackendError> {
        if self.state().name_kept.elapsed() <= KEEP_NAME_INTERVAL {
            return Ok(());
        }
        let name = self.held_name();
        let kept = self.commit(keep_name(name)).await;
        if self.usable(&name_record(name), kept)?.is_some() {
            self.state().name_kept = Instant::now();
        }
        Ok(())
    }

    fn replace_session(&self, session: SessionId, valid_until: Instant, shown_work: WorkRecord) {
        {
            let mut state = self.state();
            state.session = session;
            state.unused.clear();
            state.valid_until = valid_until;
            state.shown_work = shown_work;
            state.listed = false;
        }
        self.alive.notify_waiters();
    }

    /// Adds the session to the index of sessions, if it is not there. The next renewal repeats it if it fails.
    async fn list(&self) {
        let unlisted = || {
            let state = self.state();
            (!state.listed).then(|| state.session.clone())
        };
        let Some(session) = unlisted() else { return };
        let at = self.app.clock().now();
        let update = IndexUpdate::Put { index: Index::Sessions, at, member: session.to_string() };
        match self.app.backend().update_indexes(vec![update]).await {
            Ok(()) => self.state().listed = true,
            Err(error) => tracing::debug!(%error, "the session is not listed yet"),
        }
    }

    pub(super) async fn commit(&self, commit: Commit) -> Result<Committed, BackendError> {
        let answer = self.app.backend().commit(vec![commit.into()]).await.pop();
        answer.unwrap_or_else(|| Err(BackendError::Unavailable("the backend adapter gave no answer".into())))
    }

    /// Reads the control record. Renewals repeat it.
    pub(super) async fn read_control(&self) -> Result<(), BackendError> {
        let name = name_record(self.held_name());
        let mut records = self.app.backend().read_each(&[control_record(), name.clone()]).await?;
        self.apply_orders(&name, records.pop());
        self.apply_control(records.pop());
        Ok(())
    }

    /// Applies the control record. One that cannot be read changes nothing.
    fn apply_control(&self, record: Option<Result<Facts, BackendError>>) {
        if let Some(facts) = self.readable(&control_record(), record.unwrap_or_else(|| Ok(Facts::new()))) {
            let lost = self.switches.read(&facts, &self.app.0.trust);
            self.disabled.replace(self.switches.disabled_tasks());
            self.limits.set_live(live_limits(&facts, &self.app.0.trust));
            self.state().lost_switches = lost;
        }
    }

    /// Keeps the record of the worker's name, for the orders in it.
    fn apply_orders(&self, name: &RecordId, record: Option<Result<Facts, BackendError>>) {
        if let Some(facts) = self.readable(name, record.unwrap_or_else(|| Ok(Facts::new()))) {
            self.state().orders = facts;
        }
    }

    /// Returns the facts of a record. A record that cannot be read is said once, until it can be read again.
    fn readable(&self, id: &RecordId, facts: Result<Facts, BackendError>) -> Option<Facts> {
        self.usable(id, facts).ok().flatten()
    }

    /// Returns the answer of one record; `None` if that record cannot be used, which is said once, until it can be used
    /// again. What another program has written into one record must not cost a worker its renewals.
    pub(super) fn usable<T>(
        &self,
        id: &RecordId,
        answer: Result<T, BackendError>,
    ) -> Result<Option<T>, BackendError> {
        let mut state = self.state();
        match answer {
            Ok(answer) => {
                state.unusable.remove(id);
                Ok(Some(answer))
            }
            Err(error) if error.is_of_one_record() => {
                if state.unusable.insert(id.clone()) {
                    tracing::error!(%id, error = &error as &dyn std::error::Error, "a record cannot be used");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Closes the session. Called when nothing runs under it any more.
    pub(super) async fn close(&self) {
        let session = self.state().session.clone();
        if let Err(error) = self.commit(close_session(&session)).await {
            tracing::debug!(%error, "the session was not closed; it expires by itself");
        }
        let update = IndexUpdate::Remove { index: Index::Sessions, member: session.to_string() };
        if let Err(error) = self.app.backend().update_indexes(vec![update]).await {
            tracing::debug!(%error, "the session is still listed; others remove it from the list");
        }
    }

    /// Returns the session once it is certainly alive. Without a live session nothing is started or taken over.
    pub(super) async fn alive(&self) -> SessionId {
        // Nearly always: then nobody has to be waited for.
        if let Some(session) = self.alive_now() {
            return session;
        }
        loop {
            let notified = self.alive.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(session) = self.alive_now() {
                return session;
            }
            notified.await;
        }
    }

    fn alive_now(&self) -> Option<SessionId> {
        let state = self.state();
        (Instant::now() < state.valid_until).then(|| state.session.clone())
    }

    /// Completes when this session is no longer certainly alive.
    pub(super) async fn lost(&self, session: &SessionId) {
        loop {
            let notified = self.alive.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let valid_until = {
                let state = self.state();
                if state.session != *session {
                    return;
                }
                state.valid_until
            };
            if Instant::now() >= valid_until {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(valid_until) => {}
                () = notified => {}
            }
        }
    }

    /// Returns the minimum time for which a delivery of a busy task has to wait here to learn if the session that holds
    /// the task is gone: the rest of that session's lease, and then the checks. A delivery that leaves sooner and comes
    /// back much later starts over each time and never learns it.
    pub(super) fn busy_timeout(&self) -> Duration {
        self.lease.duration() + self.lease.detection_time()
    }

    /// Time until which no other worker runs the tasks of this one: the session is alive, or the records have just named
    /// this worker's runs. It changes with every renewal, and with every renewal that could only read.
    pub(super) fn held_until(&self) -> Instant {
        let state = self.state();
        let seen = state.runs_seen.map(|seen| seen + self.lease.renewal());
        seen.map_or(state.valid_until, |seen| seen.max(state.valid_until))
    }

    /// Time since the session was last renewed.
    pub(super) fn age(&self) -> Duration {
        let left = self.state().valid_until.saturating_duration_since(Instant::now());
        let late = Instant::now().saturating_duration_since(self.state().valid_until);
        self.lease.duration().saturating_sub(left) + late
    }

    /// Cancels all runs, because this worker is cut off.
    pub(super) fn cut_off_all(&self) {
        let running: Vec<_> = {
            let state = self.state();
            state.runs.iter().filter(|(_, run)| run.has_claim()).map(|(id, _)| id.clone()).collect()
        };
        for run in running {
            self.cancel(&run, CancelReason::CutOff);
        }
    }

    /// Remembers a start that will not run, and hands it back when the backend answers again: then no other worker
    /// waits for this session, and the start does not count against the task.
    pub(super) fn defer_hand_back(&self, claim: Claim) {
        self.state().deferred_hand_backs.push(claim);
    }

    /// Hands back the deferred starts. A start whose hand-back is refused ends with the expiry of its session.
    async fn flush_hand_backs(&self) -> Result<(), BackendError> {
        let deferred = self.state().deferred_hand_backs.clone();
        if deferred.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = deferred.iter().map(|claim| RecordId::from(&claim.id)).collect();
        let records = self.app.backend().read_each(&ids).await?;
        let standing = |(claim, facts): (&Claim, Result<Facts, BackendError>)| {
            // A start in a record that cannot be used makes nobody wait.
            let facts = facts.ok()?;
            // The start may have been adopted, if only the reply was lost.
            let claim = claim.newer_claim(&facts).unwrap_or_else(|| claim.clone());
            (claim.standing(&facts) == ClaimStatus::Current).then(|| claim.hand_back().into())
        };
        let commits = deferred.iter().zip(records).filter_map(standing).collect();
        for answer in self.app.backend().commit(commits).await {
            match answer {
                Err(error @ BackendError::Unavailable(_)) => return Err(error),
                Err(error) => tracing::warn!(%error, "a start that did not run could not be handed back"),
                Ok(_) => {}
            }
        }
        self.state().deferred_hand_backs.retain(|claim| !deferred.contains(claim));
        Ok(())
    }

    /// Registers a run, before its start is requested. `roots` are those of the workflows whose revocation revokes the task.
    pub(super) fn register(self: &Arc<Self>, id: &TaskId, roots: &[TaskId]) -> RegisteredRun {
        let run = RunId::fresh();
        let active = Arc::new(ActiveRun {
            id: id.clone(),
            roots: roots.to_vec(),
            cancel: CancellationToken::new(),
            cut_off: OnceLock::new(),
            state: Mutex::default(),
        });
        self.state().runs.insert(run.clone(), Arc::clone(&active));
        RegisteredRun { sessions: Arc::clone(self), run, active }
    }

    /// Number of handlers that run.
    pub(super) fn running(&self) -> usize {
        self.state().runs.values().filter(|run| run.has_claim()).count()
    }

    /// Returns `true` if a start is known not to run any more.
    pub(super) fn is_gone(&self, session: &SessionId, run: &RunId) -> bool {
        let state = self.state();
        // A run that was given up because it cannot be stopped continues.
        if state.runs.contains_key(run) || state.stuck.contains_key(run) {
            return false;
        }
        // A start under our own session whose run is not here has ended here without an outcome.
        *session == state.session || self.peers.is_gone(session)
    }

    /// Returns `true` if a run was cancelled, has not ended, and cannot be stopped.
    pub(super) fn is_stuck(&self, run: &RunId) -> bool {
        self.state().stuck.contains_key(run)
    }

    /// Returns `true` if a run of this process has ended.
    pub(super) fn has_ended(&self, run: &RunId) -> bool {
        let state = self.state();
        !state.runs.contains_key(run) && !state.stuck.contains_key(run)
    }

    /// Describes the work for display: its counts, the number of runs, and the ids of some.
    fn work_to_show(&self) -> ShownWork {
        let used = resident_bytes();
        let counts = self.events.tally.counts();
        let mut state = self.state();
        state.shown_memory = memory_to_show(state.shown_memory, used);
        let memory = state.shown_memory;
        let running = state.running_ids();
        let stuck: Vec<_> = state.stuck.values().map(TaskId::to_string).collect();
        drop(state);
        let can_sign = self.app.0.trust.can_sign();
        let (health, reason) = WorkerHealth::judge(self.presence.broker_is_away(), can_sign, stuck.len());
        let mut runs = serde_json::json!({
            "count": running.len(),
            "stuck": at_most(SHOWN_RUNS, stuck),
            "state": self.presence.state(),
            "asleep": self.presence.sleep_reason().map(|sleep| (sleep.reason, sleep.wakes)),
            "health": health,
            "reason": reason,
            "counts": counts,
            "memory": memory,
        });
        if let Some(runs) = runs.as_object_mut() {
            let says_nothing = |value: &serde_json::Value| value.is_null() || value == &serde_json::json!([]);
            runs.retain(|_, value| !says_nothing(value));
        }
        ShownWork { runs: json(&runs), ids: list(at_most(SHOWN_RUNS, running)) }
    }

    /// Returns the ids of all tasks that run, as they are stored, within a bound.
    pub(super) fn all_runs(&self) -> Bytes {
        list(at_most(MAX_LISTED_RUNS, self.state().running_ids()))
    }

    /// Judges the health of the worker.
    pub(super) fn health(&self) -> (WorkerHealth, Option<String>) {
        let stuck = self.state().stuck.len();
        WorkerHealth::judge(self.presence.broker_is_away(), self.app.0.trust.can_sign(), stuck)
    }

    /// Returns the runs in this process that still count.
    fn runs(&self) -> Vec<(RunId, Claim)> {
        self.counting_runs(ActiveRun::counting_claim)
    }

    fn counting_runs(&self, claim: impl Fn(&ActiveRun) -> Option<Claim>) -> Vec<(RunId, Claim)> {
        let state = self.state();
        state.runs.iter().filter_map(|(id, run)| Some((id.clone(), claim(run)?))).collect()
    }

    /// Lets the next renewal look at the records of all runs: something may have changed there.
    pub(super) fn look_at_all(&self) {
        self.state().looks_at_all = true;
    }

    /// Notes that the records of these runs were read.
    fn note_looks(&self, runs: &[(RunId, Claim)], at: Instant) {
        let state = self.state();
        for run in runs.iter().filter_map(|(run, _)| state.runs.get(run)) {
            run.state().looked_at = Some(at);
        }
    }

    /// Renews the lease, and reads records of the runs in this process in the same round trip. After an outage the
    /// outcomes of runs that ended meanwhile are recorded first. Then the session is opened and adopts what still runs;
    /// new starts wait for it.
    ///
    /// The record of a run is read once in a lease, because it rarely says anything new: a revocation wakes the
    /// session. All are read after such a wake-up, after a failure, and where no wake-up can come.
    pub(super) async fn renew(&self, calls: &ServerCalls) -> Result<(), BackendError> {
        let all = std::mem::take(&mut self.state().looks_at_all);
        let renewed = self.renew_looking_at(all, calls).await;
        if renewed.is_err() {
            self.look_at_all();
        }
        renewed
    }

    async fn renew_looking_at(&self, all: bool, calls: &ServerCalls) -> Result<(), BackendError> {
        // Its failure does not keep the worker from looking after what runs.
        let handed_back = self.flush_hand_backs().await;
        let (asked, lease) = (Instant::now(), self.lease);
        let runs = self.counting_runs(|run| run.counting_claim().filter(|_| all || run.is_due(asked, lease)));
        let roots = self.roots();
        let tasks =
            runs.iter().map(|(_, claim)| RecordId::from(&claim.id)).chain(roots.iter().map(revoked_root));
        let ids: Vec<_> = tasks.chain([name_record(self.held_name()), control_record()]).collect();
        let (renewed, mut records) = self.renew_and_read(&ids, all).await?;
        self.note_looks(&runs, asked);
        // Read after the orders: a worker that answers an order knows what was disabled before it.
        self.apply_control(records.pop());
        if let [.., name, _] = &*ids {
            self.apply_orders(name, records.pop());
        }
        let marks = records.split_off(runs.len().min(records.len()));
        let alive = match renewed {
            Ok(alive) => alive,
            Err(error) => {
                self.cancel_lost_runs(&runs, &records);
                self.cancel_revoked_workflows(&roots, &marks);
                return Err(error);
            }
        };
        let mut records: HashMap<_, _> = runs.into_iter().map(|(run, _)| run).zip(records).collect();
        if alive {
            self.alive.notify_waiters();
            self.list().await;
            self.keep_name().await?;
            self.store_description().await?;
        } else {
            calls.emit_state(WorkerState::SessionExpired { running: records.len() });
            calls.answered(true);
            calls.outcomes_are_recorded(self.lease.check_interval()).await;
            let before = self.held_name();
            self.open().await?;
            if self.held_name() != before {
                self.read_control().await?;
            }
            // Others may have taken over any of them.
            let mut unread = self.runs();
            unread.retain(|(run, _)| !records.contains_key(run));
            let ids: Vec<_> = unread.iter().map(|(_, claim)| RecordId::from(&claim.id)).collect();
            let read = if ids.is_empty() { Vec::new() } else { self.app.backend().read_each(&ids).await? };
            records.extend(unread.into_iter().map(|(run, _)| run).zip(read));
        }
        // Before the runs are adopted: one whose place is taken does not go on.
        self.keep_places().await?;
        for (run, claim) in self.runs() {
            let facts = match records.remove(&run) {
                Some(facts) => self.readable(&RecordId::from(&claim.id), facts),
                // Granted meanwhile, under the expired session.
                None if !alive => Some(Facts::new()),
                None => None,
            };
            // Nobody can take over a run through a record that cannot be used, so the run goes on.
            let Some(facts) = facts else { continue };
            match self.apply_record(&run, claim, facts).await {
                Err(error) if !error.is_of_one_record() => return Err(error),
                _ => {}
            }
        }
        self.cancel_revoked_workflows(&roots, &marks);
        handed_back
    }

    /// Returns the roots of the workflows whose revocation revokes a run in this process.
    fn roots(&self) -> BTreeSet<TaskId> {
        let state = self.state();
        let counting = state.runs.values().filter(|run| run.has_claim());
        counting.flat_map(|run| &run.roots).cloned().collect()
    }

    /// Cancels the runs whose workflows were revoked: a revocation that looked for them before their records were there has
    /// told nobody. `marks` are the records of the marks of these roots.
    fn cancel_revoked_workflows(&self, roots: &BTreeSet<TaskId>, marks: &[Result<Facts, BackendError>]) {
        // A mark that cannot be read was written by somebody else.
        let is_set =
            |mark: &Result<Facts, BackendError>| mark.as_ref().is_ok_and(|facts| facts.has(name::REVOKED));
        let revoked: Vec<&TaskId> =
            roots.iter().zip(marks).filter(|(_, mark)| is_set(mark)).map(|(root, _)| root).collect();
        if revoked.is_empty() {
            return;
        }
        let told: Vec<RunId> = {
            let state = self.state();
            let is_told =
                |run: &ActiveRun| run.has_claim() && run.roots.iter().any(|root| revoked.contains(&root));
            state.runs.iter().filter(|(_, run)| is_told(run)).map(|(id, _)| id.clone()).collect()
        };
        for run in told {
            self.cancel(&run, CancelReason::Revoked);
        }
    }

    /// Cancels the runs that another worker has taken over, or that were revoked, when the backend answers reads and
    /// refuses writes. All other runs go on: their records name them.
    fn cancel_lost_runs(&self, runs: &[(RunId, Claim)], records: &[Result<Facts, BackendError>]) {
        for ((run, claim), facts) in runs.iter().zip(records) {
            let Ok(facts) = facts else { continue };
            match claim.standing(facts) {
                ClaimStatus::TakenOver | ClaimStatus::Over => self.cancel(run, CancelReason::TakenOver),
                ClaimStatus::Current if facts.has(name::REVOKED) => self.cancel_revoked(run, facts),
                ClaimStatus::Current | ClaimStatus::Forgotten => {}
            }
        }
    }

    /// Renews the lease, and reads these records, in one round trip: the three requests are sent at once, and none
    /// depends on another. The first answer is `false` if the session is gone, and an error if only reads are answered. The
    /// lease is judged by its own answer only, and the record of a session that cannot be used is a session that is gone.
    ///
    /// `all` is `true` if they name all runs of this process: then other workers leave them alone, as the records say.
    async fn renew_and_read(&self, ids: &[RecordId], all: bool) -> Result<RenewalAnswers, BackendError> {
        let work = self.work_to_show();
        let asked = Instant::now();
        let (session, change) = {
            let state = self.state();
            (state.session.clone(), state.shown_work.change_to(&work, asked, self.lease))
        };
        let backend = self.app.backend();
        let (renewed, records, now) = tokio::join!(
            self.commit(renew_session(&session, self.lease.duration(), change.clone())),
            backend.read_each(ids),
            backend.now()
        );
        let alive = match renewed {
            Err(error) if error.is_of_one_record() => {
                tracing::error!(%session, error = &error as &dyn std::error::Error, "the record of this worker's session \
                    cannot be used; opening another session");
                Ok(false)
            }
            renewed => renewed.map(|renewed| matches!(renewed, Committed::Done { .. })),
        };
        if let Ok(true) = alive {
            let mut state = self.state();
            state.valid_until = asked + self.lease.duration();
            state.shown_work.wrote(change, asked);
            state.runs_seen = None;
        }
        let records = records?;
        if alive.is_err() && all {
            self.state().runs_seen = Some(asked);
        }
        self.app.0.learn_time(asked, now?);
        Ok((alive, records))
    }

    /// Does what a record requires for a run in this process. The next renewal repeats what fails.
    async fn apply_record(
        &self,
        run: &RunId,
        mut claim: Claim,
        mut facts: Facts,
    ) -> Result<(), BackendError> {
        let session = self.state().session.clone();
        loop {
            // The adoption by this worker, if only the reply was lost.
            if let Some(adopted) = claim.newer_claim(&facts) {
                claim = adopted;
                self.update_claim(run, &claim);
            }
            let (commit, next) = match claim.renewal_action(&facts, &session, self.app.clock().now()) {
                RenewalAction::Nothing => break,
                RenewalAction::Revoked => break self.cancel_revoked(run, &facts),
                RenewalAction::TakenOver => break self.cancel(run, CancelReason::TakenOver),
                RenewalAction::Commit(commit) => *commit,
            };
            match self.commit(commit).await? {
                Committed::Refused(refused) => facts = refused,
                Committed::Done { .. } => {
                    if !self.update_claim(run, &next) {
                        // The run has ended meanwhile, and the record has lost that: nobody must wait for this start.
                        self.defer_hand_back(next);
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// Replaces the claim of a run. Returns `false` if the run has ended, or its outcome is recorded.
    fn update_claim(&self, run: &RunId, claim: &Claim) -> bool {
        let state = self.state();
        if let Some(active) = state.runs.get(run)
            && let Some(held) = &mut active.state().claim
        {
            *held = claim.clone();
            return true;
        }
        // A run that was given up because it cannot be stopped goes on.
        state.stuck.contains_key(run)
    }

    fn cancel_revoked(&self, run: &RunId, facts: &Facts) {
        self.cancel(run, CancelReason::Revoked);
        if facts.has(name::TERMINATED) {
            self.cut_off(run);
        }
    }

    pub(super) fn cancel(&self, run: &RunId, reason: CancelReason) {
        if let Some(run) = self.state().runs.get(run) {
            run.state().reason.get_or_insert(reason);
            run.cancel.cancel();
        }
    }

    fn cut_off(&self, run: &RunId) {
        if let Some(run) = self.state().runs.get(run) {
            run.cut_off().cancel();
        }
    }
}

impl RegisteredRun {
    /// Stores the granted claim, so that renewals watch over it. Returns `false` if it was granted under a session that
    /// has been replaced meanwhile: then it has to be adopted before the task may run.
    pub(super) fn set_claim(&self, claim: &Claim) -> bool {
        // Locked until the claim is stored: a new session adopts all runs that have one.
        let state = self.sessions.state();
        if claim.session != state.session {
            return false;
        }
        let mut run = self.active.state();
        run.claim = Some(claim.clone());
        run.looked_at = Some(Instant::now());
        true
    }

    /// Returns the current claim. An adoption may have replaced the one that was granted.
    pub(super) fn claim(&self) -> Option<Claim> {
        self.active.state().claim.clone()
    }

    /// Lists the run as stuck, as one that does not end after its cancellation, until the returned value is dropped.
    pub(super) fn stuck(&self) -> Stuck {
        let id = self.active.id.clone();
        tracing::warn!(%id, "a handler was cancelled and has not ended; it should check its cancellation token");
        self.sessions.state().stuck.insert(self.run.clone(), id);
        Stuck { sessions: Arc::clone(&self.sessions), run: self.run.clone(), since: Instant::now() }
    }

    /// Drops the claim, because the outcome of the run is recorded. Renewals ignore the run from now on: written back
    /// after a loss of data, the start of a run that has ended would keep others waiting.
    pub(super) fn release(&self) {
        self.active.state().claim = None;
    }

    /// Returns the reason that the run was cancelled, if it was.
    pub(super) fn cancel_reason(&self) -> Option<CancelReason> {
        self.active.state().reason
    }

    /// Token that cancels the run.
    pub(super) fn cancel(&self) -> &CancellationToken {
        &self.active.cancel
    }

    /// Token that fires after [`cancel`](Self::cancel), when the run is not given any time to end by itself.
    pub(super) fn cut_off(&self) -> &CancellationToken {
        self.active.cut_off()
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        if let Some(id) = self.sessions.state().stuck.remove(&self.run) {
            tracing::info!(%id, late = ?self.since.elapsed(), "a stuck handler has ended");
        }
    }
}

impl Drop for RegisteredRun {
    fn drop(&mut self) {
        self.sessions.state().runs.remove(&self.run);
    }
}
