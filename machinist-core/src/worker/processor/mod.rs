//! The pipeline of one delivery, from its arrival to its settlement.
//!
//! The guarantee is in the order: accept, start, run, decide, record, follow, settle. Recording is the commit point; the
//! acknowledgement comes last, so a crash between any two steps repeats work from the message and never loses it.
//!
//! The decisions are in [`crate::record`]; the steps that need no handler are methods of [`WorkerContext`].
//!
//! Rare branches are boxed where they are awaited, so that the future of every delivery stays small.

mod busy;
mod call;
mod slots;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::busy::BusyWaits;
use super::{
    ActiveDelivery, Settlement, TaskOptions, WorkerContext,
    admit::{Admitted, LimitState},
    capacity::{ExclusiveClaim, SlotPermit},
    exclusive::ExclusiveSlots,
    look_ahead::RunningSlot,
    start::StartReply,
};
use crate::{
    args::TaskShape,
    broker::{Delivery, Receipt},
    builtin::WORKFLOW_TASK,
    clock::Timestamp,
    context::StateMap,
    event::{EventKind, EventTask},
    handler::DynHandler,
    id::TaskName,
    middleware::Middleware,
    record::{Failure, FailureKind},
    security::{Acceptance, accept},
    wire::Envelope,
};

/// A task that this worker runs.
pub(super) struct RegisteredTask {
    pub(super) handler: Arc<dyn DynHandler>,
    pub(super) shape: TaskShape,
    pub(super) options: TaskOptions,
    /// Options of the code, before those of the configuration.
    pub(super) coded: TaskOptions,
}

impl RegisteredTask {
    pub(super) fn new(handler: Arc<dyn DynHandler>, shape: TaskShape, options: TaskOptions) -> Self {
        Self { handler, shape, coded: options.clone(), options }
    }

    /// Returns the task without the options of a configuration.
    pub(super) fn as_coded(&self) -> Self {
        Self::new(Arc::clone(&self.handler), self.shape.clone(), self.coded.clone())
    }
}

/// Tasks of a worker by their names.
pub(super) type RegisteredTasks = HashMap<TaskName, Arc<RegisteredTask>>;

/// A slot in which one handler runs.
#[derive(Debug)]
pub(super) struct Slot {
    _permit: SlotPermit,
    _alone: Option<ExclusiveClaim>,
    _running: RunningSlot,
    /// Shows to another program that the handler runs.
    shown: Option<AbortOnDropHandle<()>>,
}

/// Takes deliveries through the protocol.
pub(super) struct TaskProcessor {
    pub(super) worker: Arc<WorkerContext>,
    /// Replaced as a whole when the configuration is reloaded.
    pub(super) tasks: RwLock<Arc<RegisteredTasks>>,
    pub(super) middleware: Arc<[Arc<dyn Middleware>]>,
    pub(super) state: Arc<StateMap>,
    pub(super) exclusive: ExclusiveSlots,
}

impl TaskProcessor {
    /// Names of the tasks that this worker runs, sorted. The task that begins a workflow, which every worker runs, is left
    /// out.
    pub(super) fn task_names(&self) -> Vec<TaskName> {
        let mut names: Vec<TaskName> =
            self.tasks().keys().filter(|name| name.as_str() != WORKFLOW_TASK).cloned().collect();
        names.sort_unstable();
        names
    }

    /// Returns the tasks that this worker runs now.
    pub(super) fn tasks(&self) -> Arc<RegisteredTasks> {
        Arc::clone(&self.tasks.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the tasks. Runs go on with the task that they have begun.
    pub(super) fn set_tasks(&self, tasks: RegisteredTasks) {
        *self.tasks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tasks);
    }

    fn task(&self, name: &TaskName) -> Option<Arc<RegisteredTask>> {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes one delivery from its arrival to its settlement. `pauses` is the number of pauses of the look-ahead at its
    /// arrival.
    pub(super) async fn process(self: Arc<Self>, delivery: Delivery, pauses: u64) {
        self.worker.events.tally.arrived();
        let (settlement, receipt) = match self.accept(delivery) {
            Ok(mut active) => {
                let mut settlement = Box::pin(self.work(&mut active, pauses)).await;
                if settlement == Settlement::SetAside {
                    settlement = match active.receipt {
                        Some(_) => Box::pin(self.worker.set_aside(&active.envelope)).await,
                        // The guard that replaced this delivery comes back, and is set aside if nothing has changed.
                        None => Settlement::Ack,
                    };
                }
                self.worker.emit_if_handed_back(settlement, &active);
                (settlement, active.receipt)
            }
            Err((alternative, receipt)) => (alternative.await, Some(receipt)),
        };
        self.worker.settle(settlement, receipt).await;
    }

    /// Returns the verified delivery, or the alternative treatment of a delivery that is not run.
    fn accept(
        &self,
        delivery: Delivery,
    ) -> Result<ActiveDelivery, (BoxFuture<'_, Settlement>, Box<dyn Receipt>)> {
        let Delivery { queue, message, redelivered, receipt, .. } = delivery;
        let app = &self.worker.app.0;
        if !app.trust.can_sign() {
            return Err((Box::pin(async { Settlement::HandBack }), receipt));
        }
        // Before the ring is asked: a newer one is asked again.
        let verified_under = app.trust.generation();
        let alternative: BoxFuture<'_, Settlement> =
            match accept(&app.trust, &app.rules, &app.max_sizes, &queue, &message, self.worker.now()) {
                Acceptance::Accepted(envelope, signature) => {
                    let outcome_key = app.trust.outcome_key(&envelope).map(Box::new);
                    return Ok(ActiveDelivery {
                        envelope,
                        signature,
                        redelivered,
                        verified_under,
                        receipt: Some(receipt),
                        outcome_key,
                        cut_off: false,
                        gathered: None,
                        flow: None,
                        roots: Vec::new(),
                        keeps_args: false,
                    });
                }
                Acceptance::Undecryptable(envelope, error) => {
                    Box::pin(async move { self.worker.unreadable_task(&envelope, &error).await })
                }
                Acceptance::Rejected(envelope, reason, error) => {
                    Box::pin(async move { self.worker.reject(&envelope, &message, reason, &error).await })
                }
                Acceptance::Unidentified => {
                    Box::pin(async move { self.worker.identify(&queue, &message).await })
                }
                Acceptance::NotOurs(reason, error) => {
                    Box::pin(
                        async move { self.worker.leave_to_others(&queue, &message, reason, &error).await },
                    )
                }
                Acceptance::Deferred(reason, error) => {
                    Box::pin(
                        async move { self.worker.wait_for_reader(&queue, &message, reason, &error).await },
                    )
                }
                Acceptance::Refused(reason, error) => Box::pin(async move {
                    self.worker.dead_letter_unverified(&queue, &message, reason, &error).await
                }),
            };
        Err((alternative, receipt))
    }

    /// Takes an accepted delivery to its settlement.
    async fn work(&self, active: &mut ActiveDelivery, pauses: u64) -> Settlement {
        let received_at = self.worker.now();
        let mut prefetched = self.worker.events.stopwatch();
        let mut prefetch_wait = None;
        self.emit_received(&active.envelope, received_at);
        if let Some(settlement) = self.worker.check_time(&active.envelope).await {
            return settlement;
        }
        let Some(task) = self.task(&active.envelope.name) else {
            return Box::pin(self.worker.unknown_task(&active.envelope)).await;
        };
        active.keeps_args = task.options.keep_args == Some(true);
        if let Some(place) = active.envelope.place() {
            active.roots = self.worker.revocable_roots(&active.envelope, &place);
            match self.worker.is_any_revoked(&active.roots).await {
                Ok(false) => {}
                Ok(true) => {
                    let revoked = Failure::new(FailureKind::Revoked, "its workflow was revoked");
                    return Box::pin(self.worker.end_waiting(&active.envelope, revoked)).await;
                }
                Err(unanswered) => return unanswered.into(),
            }
        }
        if active.envelope.pairs.awaits() {
            match Box::pin(self.worker.gather(&active.envelope)).await {
                Ok(gathered) => active.gathered = gathered,
                Err(settlement) => return settlement,
            }
        }
        let mut busy = BusyWaits::new(self.worker.max_hold.min(self.worker.sessions.busy_timeout()));
        let mut alone = false;
        let mut limited = None;
        let mut let_through = task.options.circuit.is_none();
        loop {
            if !self.worker.admissions.is_open()
                && let Some(settlement) =
                    Box::pin(self.worker.park_if_refused(&active.envelope, pauses)).await
            {
                return settlement;
            }
            let mut asks_circuit = !let_through;
            if asks_circuit && let Some(wait) = self.worker.circuits.paused_for(&active.envelope.name) {
                match Box::pin(self.worker.park_for_circuit(&active.envelope, wait)).await {
                    Some(settlement) => return settlement,
                    None => asks_circuit = false,
                }
            }
            if active.envelope.attempt > 1
                && let Some(settlement) = Box::pin(self.worker.park_if_left(&active.envelope)).await
            {
                return settlement;
            }
            let mut stopwatch = self.worker.events.stopwatch();
            let prefetch_wait = *prefetch_wait.get_or_insert_with(|| prefetched.lap());
            let slot = if alone {
                Box::pin(self.all_slots(&active.envelope, pauses)).await
            } else {
                // One that has waited for its start is due now. It would come back late if it left for an earlier pause.
                let paused = limited.as_ref().map_or(pauses, |_| self.worker.look_ahead.pauses());
                self.slot(&active.envelope, received_at, pauses, paused).await
            };
            let mut slot = match slot {
                Ok(slot) => slot,
                Err(settlement) => {
                    let left =
                        self.worker.leave_without_slot(&active.envelope, settlement, limited.as_deref_mut());
                    return Box::pin(left).await;
                }
            };
            if active.verified_under != self.worker.app.0.trust.generation()
                && let Some(settlement) = Box::pin(self.worker.verify_again(active)).await
            {
                return settlement;
            }
            if !self.worker.sessions.presence.may_start_from(&active.envelope.queue) {
                return Settlement::HandBack;
            }
            let registered = self.worker.sessions.register(&active.envelope.id, &active.roots);
            let gone_before = self.worker.sessions.peers.gone_count();
            let mut undecided = false;
            if !self.worker.limits.is_open() {
                let state = limited.get_or_insert_with(|| Box::new(LimitState::new(active)));
                match Box::pin(self.worker.admit(&active.envelope, &registered, state)).await {
                    Ok(Admitted::Yes) => {}
                    Ok(Admitted::Undecided) => undecided = true,
                    Ok(Admitted::No(refusal)) => {
                        drop((slot, registered));
                        let waited =
                            Box::pin(self.worker.wait_for_limit(&active.envelope, &refusal, state, pauses))
                                .await;
                        match waited {
                            Some(settlement) => return settlement,
                            None => continue,
                        }
                    }
                    Err(unanswered) => {
                        self.worker.free_places(&registered.run).await;
                        return unanswered.into();
                    }
                }
            }
            // Last: the one run that a pause lets through is not spent on a task that something else refuses.
            if asks_circuit && !undecided {
                let_through = self.worker.circuits.lets_through(&active.envelope.name);
                if !let_through {
                    if limited.is_some() {
                        Box::pin(self.worker.free_places(&registered.run)).await;
                    }
                    drop((slot, registered));
                    continue;
                }
            }
            let slot_wait = stopwatch.lap();
            let reply = self.worker.start(active, &registered, received_at, alone).await;
            if limited.is_some() && !matches!(reply, StartReply::Started(_)) {
                Box::pin(self.worker.free_places(&registered.run)).await;
            }
            match reply {
                StartReply::Settle(settlement) => return settlement,
                StartReply::Started(claim)
                    if active.verified_under != self.worker.app.0.trust.generation() =>
                {
                    // The request has waited for the backend, for minutes perhaps, and the ring was replaced meanwhile.
                    Box::pin(self.worker.give_up_start(&registered, &claim)).await;
                    drop((slot, registered));
                    match Box::pin(self.worker.verify_again(active)).await {
                        Some(settlement) => return settlement,
                        None => continue,
                    }
                }
                // People have paused the worker or the queue while the start was requested: nobody has told this run, which
                // had no claim yet.
                StartReply::Started(claim)
                    if !self.worker.sessions.presence.may_start_from(&active.envelope.queue) =>
                {
                    Box::pin(self.worker.give_up_start(&registered, &claim)).await;
                    return Settlement::HandBack;
                }
                StartReply::Started(claim) if undecided => {
                    // The run that holds the place has just ended, or its process has died before the start: the task takes
                    // a place when it is free. A delivery that went back to the broker would come again at once.
                    Box::pin(self.worker.give_up_start(&registered, &claim)).await;
                    drop((slot, registered));
                }
                StartReply::Started(claim) => {
                    slot.shown = self.worker.show_started(&active.envelope);
                    self.worker.emit(EventKind::Started {
                        task: EventTask::of(&active.envelope),
                        start: claim.start,
                        prefetch_wait,
                        slot_wait,
                        start_wait: stopwatch.lap(),
                    });
                    let ended = self.run(active, &task, claim, &registered, slot).await;
                    if limited.is_some() {
                        Box::pin(self.worker.free_places(&registered.run)).await;
                    }
                    match ended {
                        Some(settlement) => return settlement,
                        // Another run holds the attempt now: treat the delivery as if it had just arrived.
                        None => continue,
                    }
                }
                StartReply::Suspect => {
                    alone = true;
                    continue;
                }
                StartReply::Busy => drop((slot, registered)),
            }
            alone = false;
            let _aside = self.worker.look_ahead.aside(pauses);
            match busy.next_wait(Instant::now()) {
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.worker.sessions.peers.gone_after(gone_before) => {}
                    () = self.worker.must_hand_back() => return Settlement::HandBack,
                },
                None => return Box::pin(self.worker.become_guard(&active.envelope)).await,
            }
        }
    }
}

impl TaskProcessor {
    fn emit_received(&self, envelope: &Envelope, at: Timestamp) {
        let due = envelope.eta.map_or(envelope.issued, |eta| eta.max(envelope.issued));
        let (task, generation) = (EventTask::of(envelope), envelope.generation);
        let (broker_wait, delayed) = (at.since(due), envelope.eta.is_some_and(|eta| eta > envelope.issued));
        self.worker.emit(EventKind::Received { task, generation, broker_wait, delayed });
    }
}

impl std::fmt::Debug for TaskProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskProcessor").field("worker", &self.worker.name).finish_non_exhaustive()
    }
}
