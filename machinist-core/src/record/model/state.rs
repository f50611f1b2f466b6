//! State of the search: everything that processes, broker and backend hold, as small plain values.
//!
//! Records and starts are production types. A state refers to them by number, so that it is cheap to compare.

use super::{
    super::FailureKind,
    store::{ClaimId, FactsId, FollowUpId, PendingId},
};

/// Fault, which occurs as often as a configuration lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelFault {
    Crash,
    /// A worker's broker connection is lost.
    Drop,
    /// The session of a living worker expires: the worker was paused or disconnected.
    Expire,
    /// The sender sends again, because its confirm was lost.
    Duplicate,
    /// The reply of the backend is lost, whether it executed the request or not.
    Reply,
    /// The confirm of a publish is lost; the message may have been published.
    Confirm,
    /// The backend loses everything (FLUSHALL).
    Flush,
    /// The backend loses the record and keeps the sessions.
    Forget,
    Shutdown,
    Revoke,
    /// The expiry of the task passes.
    Deadline,
    /// A rule of admission begins to refuse starts.
    Refuse,
    /// A process releases the parked task.
    Release,
}

pub(super) const FAULTS: usize = 13;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ModelState {
    pub(super) facts: FactsId,
    /// Sessions that the backend knows, as bits.
    pub(super) live_sessions: u32,
    /// Messages that wait in the broker, ordered by value.
    pub(super) queue: Vec<ModelMessage>,
    pub(super) workers: [ModelWorker; 2],
    pub(super) expired: bool,
    /// `true` while a rule of admission refuses starts.
    pub(super) refused: bool,
    /// Guard that a process publishes to release the parked task, and whether it is published.
    pub(super) releaser: Option<(ModelMessage, bool)>,
    /// Record that a process has read in order to revoke the task.
    pub(super) revoker: Option<FactsId>,
    pub(super) faults_left: [u8; FAULTS],
    pub(super) completion: Completion,
    /// Number of times that data was lost; time advances with it.
    pub(super) losses: u8,
    pub(super) greatest_token: u64,
}

/// Completion of the task, even if its record was lost since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Completion {
    Open,
    /// The task failed, and its dead letter is due.
    DeadLetterDue,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ModelMessage {
    pub(super) attempt: u32,
    pub(super) generation: u32,
    pub(super) token: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ModelWorker {
    pub(super) up: bool,
    pub(super) session: u8,
    /// Data was lost, and the worker does not know yet that its session was lost too.
    pub(super) unaware_of_loss: bool,
    /// The last renewal succeeded since the worker opened its session, or since data was lost.
    pub(super) renewed: bool,
    /// Data was lost during the renewal, so that this renewal proves nothing.
    pub(super) outdated_by_loss: bool,
    pub(super) draining: bool,
    pub(super) renewal: ModelRenewal,
    /// Claims of starts that were written by renewals and do not run: they are handed back.
    pub(super) hand_backs: Vec<ClaimId>,
    pub(super) handlers: Vec<ModelHandler>,
}

/// Stage of a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ModelRenewal {
    Idle,
    /// The session was found gone; these are the records that came with that answer.
    Opening(Vec<(u8, FactsId)>),
    /// Commits that are still due, one for each run.
    Committing(Vec<(u8, PendingId)>),
}

/// Delivery on its way through a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ModelHandler {
    pub(super) message: ModelMessage,
    pub(super) receipt: ModelReceipt,
    /// Registered run.
    pub(super) run: Option<u8>,
    pub(super) claim: Option<ClaimId>,
    pub(super) cancel: Option<ModelCancelReason>,
    /// `true` for a suspect, which runs alone in its process.
    pub(super) alone: bool,
    pub(super) stage: HandlerStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ModelReceipt {
    Unsettled,
    /// The broker has taken the message back; the worker learns of it when it settles.
    Lost,
    /// A guard replaced the message.
    Guarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ModelCancelReason {
    TakenOver,
    Revoked,
}

/// Stage of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum HandlerStage {
    /// It has just arrived, or has to request a start again.
    Open,
    /// It requests a start, under this session.
    StartRequested(PendingId, u8),
    /// The handler runs; the guard has come this far.
    Run(GuardStep),
    /// Its verdict is recorded next, with this claim.
    Record(OutcomeKind, ClaimId),
    /// The run is over without an outcome.
    HandBack,
    /// It was handed back, and its next guard is published straight to the queue.
    Requeue,
    /// It ends the task without a run, based on this record.
    EndWithoutRun(EndReason, FactsId),
    Publish(FollowUpId),
    Mark(FollowUpId),
    Ack,
    Busy,
    /// A suspect that waits until nothing else runs in its process.
    Suspect,
    Guard(GuardStep),
    /// Its start is refused, and it is parked.
    Park(GuardStep),
    /// The process leaves it unsettled, and does nothing more about it.
    Abandoned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum GuardStep {
    None,
    Published,
    Stored,
}

/// RunOutcome of a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum OutcomeKind {
    Success,
    Failed,
    Revoked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum EndReason {
    Expired,
    Revoked,
    Lost,
}

impl EndReason {
    pub(super) const fn kind(self) -> FailureKind {
        match self {
            Self::Expired => FailureKind::Expired,
            Self::Revoked => FailureKind::Revoked,
            Self::Lost => FailureKind::Lost,
        }
    }
}

impl ModelState {
    pub(super) fn initial(faults_left: [u8; FAULTS]) -> Self {
        let worker = |session| ModelWorker::fresh(session);
        Self {
            facts: FactsId(0),
            live_sessions: 0b11,
            queue: vec![ModelMessage { attempt: 1, generation: 0, token: 0 }],
            workers: [worker(0), worker(1)],
            expired: false,
            refused: false,
            releaser: None,
            revoker: None,
            faults_left,
            completion: Completion::Open,
            losses: 0,
            greatest_token: 0,
        }
    }

    pub(super) fn is_alive(&self, session: u8) -> bool {
        self.live_sessions & (1 << session) != 0
    }

    pub(super) fn put(&mut self, message: ModelMessage) {
        let position = self.queue.partition_point(|other| *other <= message);
        self.queue.insert(position, message);
    }

    /// Returns the handlers that run and were not told to end, in processes that have renewed a live session. A paused
    /// or disconnected process may still run its handlers until its next renewal; the fencing token covers this case.
    pub(super) fn live_runs(&self) -> Vec<(usize, u32)> {
        let mut runs = Vec::new();
        for (number, worker) in self.workers.iter().enumerate() {
            if !worker.up || !worker.renewed || !self.is_alive(worker.session) {
                continue;
            }
            for handler in &worker.handlers {
                if matches!(handler.stage, HandlerStage::Run(_)) && handler.cancel.is_none() {
                    runs.push((number, handler.message.attempt));
                }
            }
        }
        runs
    }

    /// Returns `true` if the broker will deliver a message again, whatever happens to the processes.
    pub(super) fn message_exists(&self) -> bool {
        let is_unsettled = |handler: &ModelHandler| handler.receipt == ModelReceipt::Unsettled;
        !self.queue.is_empty()
            || self.workers.iter().any(|worker| worker.up && worker.handlers.iter().any(is_unsettled))
    }
}

impl ModelWorker {
    pub(super) fn fresh(session: u8) -> Self {
        Self {
            up: true,
            session,
            unaware_of_loss: false,
            renewed: true,
            outdated_by_loss: false,
            draining: false,
            renewal: ModelRenewal::Idle,
            hand_backs: Vec::new(),
            handlers: Vec::new(),
        }
    }

    /// Returns `true` if a delivery has a slot to request a start: it needs all slots if it has to run alone.
    pub(super) fn has_slot(&self, handler: usize, alone: bool) -> bool {
        let others = self.handlers.iter().enumerate().filter(|(other, _)| *other != handler);
        let mut running = others.filter(|(_, other)| {
            matches!(other.stage, HandlerStage::StartRequested(..) | HandlerStage::Run(_))
        });
        !running.any(|(_, other)| alone || other.alone)
    }

    pub(super) fn knows(&self, run: u8) -> bool {
        self.handlers.iter().any(|handler| handler.run == Some(run))
    }
}
