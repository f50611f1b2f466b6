//! Roles that live workers share: the leader of a name, and the shards of a set.
//!
//! A role belongs to the session of its worker: while the session is certainly alive, no other process holds its slots. What
//! runs for a slot is cut off before the session can have expired, and a slot of another session is taken only after two
//! looks have found that session gone. The decisions are in [`slot`](crate::slot); this file acts on them.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use super::{CANCEL_TIMEOUT, WorkerContext, server_calls::jittered, wake_up::WakeUp};
use crate::{
    backend::{BackendError, Commit, Committed},
    id::{RecordId, SessionId},
    record::Facts,
    slot::{
        Candidate, Layout, RoleError, RoleKind, RoleName, SlotDecision, SlotInfo, SlotStep, decide, leave,
        view,
    },
};

/// Wait after a failure of the backend.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait after another process has changed the record first.
const CONTENTION_WAIT: Duration = Duration::from_millis(20);

/// Future that runs while a slot is held.
type SlotFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Function that makes it.
type SlotHandler = Arc<dyn Fn(HeldSlot) -> SlotFuture + Send + Sync>;
/// Function that is told of every change of the holders.
type OnChange = Arc<dyn Fn(&[SlotInfo]) + Send + Sync>;

/// Function that takes part in a role when the worker starts.
pub(super) type TakePart = Box<dyn FnOnce(&Fleet) -> Result<RunningRole, RoleError> + Send>;

/// Handle with which a worker takes part in roles. Cheap to clone.
///
/// # Examples
/// ```
/// # use machinist_core::{Worker, slot::RoleError};
/// # use std::time::Duration;
/// # fn example(worker: &Worker) -> Result<(), RoleError> {
/// let fleet = worker.fleet();
/// // On one live process at a time.
/// let billing = fleet.leader("billing").run(|slot| async move {
///     println!("leads with epoch {}", slot.epoch());
///     slot.lost().await;
/// })?;
/// // Eight shards, spread over the live processes.
/// let poller = fleet.shards("poller", 8).run(|slot| async move {
///     loop {
///         println!("polls shard {} of {}", slot.number(), slot.slots());
///         tokio::time::sleep(Duration::from_secs(5)).await;
///     }
/// })?;
/// # drop((billing, poller));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Fleet {
    worker: Arc<WorkerContext>,
}

/// Role before it is taken part in.
#[must_use = "nothing happens before `run`"]
pub struct RoleBuilder {
    worker: Arc<WorkerContext>,
    kind: RoleKind,
    name: String,
    slots: u32,
    parameters: Vec<String>,
    on_change: Option<OnChange>,
}

/// Part that a worker takes in a role. When it is dropped, the worker leaves the role in the background.
#[must_use = "the worker leaves the role when this is dropped"]
pub struct RunningRole {
    name: RoleName,
    leave: DropGuard,
    ended: CancellationToken,
}

/// Slot that this process holds.
#[derive(Debug, Clone)]
pub struct HeldSlot {
    role: Arc<str>,
    number: u32,
    slots: u32,
    epoch: u64,
    parameter: Option<Arc<str>>,
    lost: CancellationToken,
}

impl Fleet {
    pub(super) fn new(worker: Arc<WorkerContext>) -> Self {
        Self { worker }
    }

    /// Begins to take part in the choice of the leader of a name: one live process at a time.
    pub fn leader(&self, name: impl Into<String>) -> RoleBuilder {
        self.role(RoleKind::Leader, name.into(), 1)
    }

    /// Begins to take part in a set of `slots` shards, 1 to 1024, which are spread over the live processes.
    pub fn shards(&self, set: impl Into<String>, slots: u32) -> RoleBuilder {
        self.role(RoleKind::Shards, set.into(), slots)
    }

    fn role(&self, kind: RoleKind, name: String, slots: u32) -> RoleBuilder {
        let worker = Arc::clone(&self.worker);
        RoleBuilder { worker, kind, name, slots, parameters: Vec::new(), on_change: None }
    }
}

impl RoleBuilder {
    /// Sets a parameter for each slot, in the order of the slots. All processes of a set need the same ones.
    pub fn parameters<T: Into<String>>(mut self, parameters: impl IntoIterator<Item = T>) -> Self {
        self.parameters = parameters.into_iter().map(Into::into).collect();
        self
    }

    /// Sets a function that is called after each change of the holders that this process sees, with all slots. A holder that
    /// has died is shown until its slot is taken. Its panic is logged and counted, and changes nothing.
    pub fn on_change(mut self, told: impl Fn(&[SlotInfo]) + Send + Sync + 'static) -> Self {
        self.on_change = Some(Arc::new(told));
        self
    }

    /// Takes part: `handler` runs once for each slot that this process holds, as a task of this runtime.
    ///
    /// When the slot is lost with the session of the worker, the future is dropped at once. When the slot is handed back, or
    /// the worker drains, [`HeldSlot::lost`] fires first, and the future is dropped if it has not ended 5 s later. Only then
    /// can another process take the slot. A future that ends by itself, or panics, hands its slot back; this process takes it
    /// again after a third of the session lease at the earliest.
    ///
    /// It begins when the worker runs, and ends when the worker drains.
    ///
    /// # Errors
    /// [`RoleError`].
    ///
    /// # Panics
    /// If it is called outside of a Tokio runtime.
    pub fn run<F, Fut>(self, handler: F) -> Result<RunningRole, RoleError>
    where
        F: Fn(HeldSlot) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let Self { worker, kind, name, slots, parameters, on_change } = self;
        let name = RoleName::checked(kind, name)?;
        let layout = Layout::checked(slots, parameters)?;
        worker.roles.add(&name)?;
        worker.sessions.describe_roles(&worker.roles.listed());
        let (leave, ended) = (CancellationToken::new(), CancellationToken::new());
        let keeper = Keeper {
            record: name.record(),
            name: name.clone(),
            layout,
            handler: Arc::new(move |slot| Box::pin(handler(slot))),
            on_change,
            leave: leave.clone(),
            runs: BTreeMap::new(),
            resting: BTreeMap::new(),
            given_up: BTreeMap::new(),
            free_since: BTreeMap::new(),
            former: HashSet::new(),
            session: None,
            greatest_epoch: 0,
            shown: Vec::new(),
            unsure: false,
            other_layout: false,
            run_ended: Arc::default(),
            worker: Arc::clone(&worker),
        };
        let ended_on_drop = ended.clone().drop_guard();
        worker.roles.tracker().spawn(async move {
            keeper.run().await;
            drop(ended_on_drop);
        });
        Ok(RunningRole { name, leave: leave.drop_guard(), ended })
    }
}

impl RunningRole {
    /// Leaves the role, and waits until its slots are free.
    ///
    /// # Cancel safety
    /// Dropped, the worker leaves in the background.
    pub async fn leave(self) {
        let Self { name: _, leave, ended } = self;
        drop(leave);
        ended.cancelled().await;
    }
}

impl HeldSlot {
    /// Name of the leader or the set.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Number of the slot, from 0.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Number of slots of the set.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Fencing token: it rises with every holder of the slot. Pass it to what the handler writes to, which refuses a token
    /// lower than one that it has seen.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Parameter of the slot, if the set has parameters.
    pub fn parameter(&self) -> Option<&str> {
        self.parameter.as_deref()
    }

    /// Completes when the handler has to end, because the slot is handed back or lost.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// Future that runs for a slot.
struct SlotRun {
    epoch: u64,
    lost: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// Part of a process in a role.
struct Keeper {
    worker: Arc<WorkerContext>,
    name: RoleName,
    record: RecordId,
    layout: Layout,
    handler: SlotHandler,
    on_change: Option<OnChange>,
    leave: CancellationToken,
    runs: BTreeMap<u32, SlotRun>,
    /// Slots whose run has ended by itself, with the time at which they may be taken again.
    resting: BTreeMap<u32, Instant>,
    /// Slots that were handed back, or perhaps were, with their epochs.
    given_up: BTreeMap<u32, u64>,
    /// Free slots, with the time at which this process first found them free.
    free_since: BTreeMap<u32, Instant>,
    session: Option<SessionId>,
    /// Sessions of this process that are gone. What ran under them has ended.
    former: HashSet<SessionId>,
    greatest_epoch: u64,
    shown: Vec<SlotInfo>,
    /// `true` if a commit was not answered: it may still arrive.
    unsure: bool,
    /// `true` if it was logged that processes with another layout hold the slots.
    other_layout: bool,
    run_ended: Arc<Notify>,
}

impl Keeper {
    async fn run(mut self) {
        let over = self.worker.roles.over().clone();
        tokio::select! {
            biased;
            // Everything that runs is dropped with this future.
            () = over.cancelled() => {}
            () = async {
                self.hold().await;
                self.free_all().await;
            } => {}
        }
        self.worker.roles.remove(&self.name);
        self.worker.sessions.describe_roles(&self.worker.roles.listed());
    }

    /// Completes when this process has to leave the role.
    async fn leaves(leave: &CancellationToken, worker: &WorkerContext) {
        tokio::select! {
            () = leave.cancelled() => {}
            () = worker.stages.draining() => {}
        }
    }

    /// Takes, keeps and hands back slots, until this process has to leave. A commit that is on its way is always awaited.
    async fn hold(&mut self) {
        let (leave, worker) = (self.leave.clone(), Arc::clone(&self.worker));
        let mut leaves = std::pin::pin!(Self::leaves(&leave, &worker));
        let mut wake_up = WakeUp::new(self.record.clone());
        let mut facts = None;
        loop {
            let session = tokio::select! {
                biased;
                () = &mut leaves => return,
                session = worker.sessions.alive() => session,
            };
            self.enter(&session).await;
            let gone_count = worker.sessions.peers.gone_count();
            wake_up.open(worker.app.backend().as_ref()).await;
            let wait = match self.look(&session, facts.take()).await {
                Ok(AfterLook::Again(refused)) => {
                    facts = refused;
                    continue;
                }
                Ok(AfterLook::Wait) => self.wait(),
                Err(error) => {
                    tracing::debug!(role = %self.name, %error, "the slots of a role have to wait");
                    jittered(RETRY_INTERVAL)
                }
            };
            tokio::select! {
                () = &mut leaves => return,
                () = wake_up.changed() => {}
                () = self.run_ended.notified() => {}
                () = worker.sessions.peers.gone_after(gone_count) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Returns the time until the next look, if nothing happens.
    fn wait(&self) -> Duration {
        let rested = self.resting.values().min();
        let overdue =
            self.free_since.values().map(|since| *since + self.patience()).filter(|at| *at > Instant::now());
        let next = rested.copied().into_iter().chain(overdue).min();
        let wait = jittered(self.worker.sessions.lease().renewal());
        next.map_or(wait, |at| at.saturating_duration_since(Instant::now()).min(wait))
    }

    /// Time for which a slot is left to the processes that hold too few.
    fn patience(&self) -> Duration {
        2 * self.worker.sessions.lease().renewal()
    }

    /// Notes the session of this process. What ran under an earlier one ends.
    async fn enter(&mut self, session: &SessionId) {
        if let Some(former) = self.session.replace(session.clone()).filter(|former| former != session) {
            self.cut_off(|_, _| true).await;
            self.former.insert(former);
        }
    }

    /// Looks at the record, and does what follows.
    async fn look(&mut self, session: &SessionId, known: Option<Facts>) -> Result<AfterLook, BackendError> {
        self.note_ended();
        let facts = match known {
            Some(facts) => facts,
            None => self.read().await?,
        };
        let decision = self.decide(&facts, session);
        let SlotDecision { held, free, watched, greatest_epoch, step } = decision;
        self.free_since.retain(|slot, _| free.contains(slot));
        for slot in free {
            self.free_since.entry(slot).or_insert_with(Instant::now);
        }
        self.greatest_epoch = self.greatest_epoch.max(greatest_epoch);
        watched.iter().for_each(|session| self.worker.sessions.peers.watch(session));
        self.cut_off(|slot, run| held.get(&slot) != Some(&run.epoch)).await;
        for (slot, epoch) in &held {
            let is_given_up = self.given_up.get(slot) == Some(epoch) || self.resting.contains_key(slot);
            if !self.runs.contains_key(slot) && !is_given_up {
                self.start(*slot, *epoch, session);
            }
        }
        self.tell(&facts);
        let waits = matches!(step, SlotStep::OtherLayout);
        if waits && !self.other_layout {
            tracing::warn!(
                role = %self.name,
                "live processes hold slots of this set with another number of slots or other parameters; waiting until they have gone"
            );
        }
        self.other_layout = waits;
        let commit = match step {
            SlotStep::Nothing | SlotStep::OtherLayout => return Ok(AfterLook::Wait),
            SlotStep::Commit(commit) => commit,
            SlotStep::HandBack(slot, commit) => {
                // From now on it is not run with this epoch again: a commit that is not answered may still arrive.
                self.given_up.extend(held.get(&slot).map(|epoch| (slot, *epoch)));
                self.end_gently(|number| number == slot).await;
                commit
            }
        };
        let answer = self.commit(*commit).await;
        self.unsure |= answer.is_err();
        match answer? {
            Committed::Done { .. } => Ok(AfterLook::Again(None)),
            Committed::Refused(facts) => {
                tokio::time::sleep(jittered(CONTENTION_WAIT)).await;
                Ok(AfterLook::Again(Some(facts)))
            }
        }
    }

    fn decide(&self, facts: &Facts, session: &SessionId) -> SlotDecision {
        let worker = &self.worker;
        let name = worker.sessions.held_name();
        let unwanted = self.resting.keys().copied().collect();
        let is_overdue = |since: &Instant| since.elapsed() >= self.patience();
        let overdue =
            self.free_since.iter().filter(|(_, since)| is_overdue(since)).map(|(slot, _)| *slot).collect();
        let candidate = Candidate {
            record: &self.record,
            layout: &self.layout,
            session,
            worker: name,
            unwanted: &unwanted,
            given_up: &self.given_up,
            greatest_epoch: self.greatest_epoch,
            overdue: &overdue,
        };
        let gone =
            |session: &SessionId| self.former.contains(session) || worker.sessions.peers.is_gone(session);
        decide(facts, &candidate, gone, worker.now())
    }

    async fn read(&self) -> Result<Facts, BackendError> {
        let records = self.worker.app.backend().read(std::slice::from_ref(&self.record)).await?;
        Ok(records.into_iter().next().unwrap_or_default())
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, BackendError> {
        self.worker.sessions.commit(commit).await
    }

    /// Starts what runs for a slot. It ends by itself before the session can have expired.
    fn start(&mut self, slot: u32, epoch: u64, session: &SessionId) {
        let lost = CancellationToken::new();
        let held = HeldSlot {
            role: self.name.name.as_str().into(),
            number: slot,
            slots: self.layout.slots,
            epoch,
            parameter: self.layout.parameters.get(slot as usize).map(|parameter| parameter.as_str().into()),
            lost: lost.clone(),
        };
        tracing::info!(role = %self.name, slot, epoch, "this worker holds a slot");
        let (sessions, session) = (Arc::clone(&self.worker.sessions), session.clone());
        let (handler, ended, fires) = (Arc::clone(&self.handler), Arc::clone(&self.run_ended), lost.clone());
        let task = tokio::spawn(async move {
            let _told = NotifyOnDrop(ended);
            tokio::select! {
                biased;
                () = sessions.lost(&session) => fires.cancel(),
                () = handler(held) => {}
            }
        });
        self.runs.insert(slot, SlotRun { epoch, lost, task: AbortOnDropHandle::new(task) });
    }

    /// Notes the runs that have ended by themselves, and the slots that have rested.
    fn note_ended(&mut self) {
        let now = Instant::now();
        self.resting.retain(|_, until| now < *until);
        let rest = self.worker.sessions.lease().renewal();
        let ended: Vec<u32> =
            self.runs.iter().filter(|(_, run)| run.task.is_finished()).map(|(slot, _)| *slot).collect();
        for slot in ended {
            let Some(run) = self.runs.remove(&slot) else { continue };
            if !run.lost.is_cancelled() {
                tracing::warn!(role = %self.name, slot, "what ran for this slot has ended; the slot is handed back");
                self.resting.insert(slot, now + rest);
            }
        }
    }

    /// Cuts off what runs for these slots, and waits for its end.
    async fn cut_off(&mut self, which: impl Fn(u32, &SlotRun) -> bool) {
        let ended: Vec<u32> =
            self.runs.iter().filter(|(slot, run)| which(**slot, run)).map(|(slot, _)| *slot).collect();
        for slot in ended {
            let Some(run) = self.runs.remove(&slot) else { continue };
            tracing::warn!(role = %self.name, slot, epoch = run.epoch, "this worker has lost a slot");
            run.lost.cancel();
            run.task.abort();
            // It was aborted, or has ended already.
            let _ended = run.task.await;
        }
    }

    /// Tells what runs for these slots to end, and waits for its end.
    async fn end_gently(&mut self, which: impl Fn(u32) -> bool) {
        let slots: Vec<u32> = self.runs.keys().copied().filter(|slot| which(*slot)).collect();
        let runs: Vec<SlotRun> = slots.iter().filter_map(|slot| self.runs.remove(slot)).collect();
        runs.iter().for_each(|run| run.lost.cancel());
        let end = Instant::now() + CANCEL_TIMEOUT;
        for mut run in runs {
            if tokio::time::timeout_at(end, &mut run.task).await.is_err() {
                run.task.abort();
                let _ended = run.task.await;
            }
        }
        for slot in slots {
            tracing::info!(role = %self.name, slot, "this worker hands a slot back");
        }
    }

    /// Tells the application of the holders, if they have changed.
    fn tell(&mut self, facts: &Facts) {
        let Some(on_change) = &self.on_change else { return };
        let slots = view(facts);
        if slots != self.shown {
            let observers = &self.worker.app.0.observers;
            observers.call_hook("the function that is told of changes of a role", || on_change(&slots));
            self.shown = slots;
        }
    }

    /// Ends what runs, frees the slots and stops taking part. Tries as long as the session lives: what is not freed is free
    /// when the session is gone.
    async fn free_all(&mut self) {
        self.end_gently(|_| true).await;
        let Some(session) = self.session.clone() else { return };
        let sessions = Arc::clone(&self.worker.sessions);
        let freed = async {
            loop {
                match self.try_free(&session).await {
                    // A commit that was not answered may arrive later. Without a member it is refused, but for the one that
                    // makes this process a member.
                    Ok(true) if std::mem::take(&mut self.unsure) => {
                        tokio::time::sleep(self.worker.sessions.lease().renewal()).await;
                    }
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::debug!(role = %self.name, %error, "the slots are not free yet");
                        tokio::time::sleep(jittered(RETRY_INTERVAL)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = freed => {}
            () = sessions.lost(&session) => {}
        }
    }

    /// Frees the slots. Returns `true` if this process does not take part.
    async fn try_free(&self, session: &SessionId) -> Result<bool, BackendError> {
        let Some(commit) = leave(&self.read().await?, &self.record, session) else { return Ok(true) };
        self.commit(commit).await?;
        Ok(false)
    }
}

/// Continuation after a look at the record.
enum AfterLook {
    /// Look again at once, at this record if it is known.
    Again(Option<Facts>),
    /// Wait for a change.
    Wait,
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("worker", &self.worker.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for RoleBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoleBuilder")
            .field("name", &self.name)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RunningRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningRole").field("name", &self.name.to_string()).finish_non_exhaustive()
    }
}
