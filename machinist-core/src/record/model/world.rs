//! A point of the search: all that processes, broker and backend hold, as small plain values.
//!
//! Records and starts are the production's own types; a world names them by number, so that it is cheap to compare.

use super::{
    super::FailureKind,
    store::{ClaimNo, FactsNo, FollowUpNo, PendingNo},
};

/// What can go wrong, each as often as a configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelFault {
    Crash,
    /// A worker's broker connection is lost.
    Drop,
    /// The session of a living worker expires: it was paused, or cut off.
    Expire,
    /// The sender sends again, because its confirm was lost.
    Duplicate,
    /// The backend did what was asked, or nothing, and the answer is lost.
    Reply,
    /// A publish may have been done; the answer is lost.
    Confirm,
    /// FLUSHALL.
    Flush,
    /// The record is lost, and the sessions are not.
    Forget,
    Shutdown,
    Revoke,
    /// The task's expiry passes.
    Deadline,
}

pub(super) const FAULTS: usize = 11;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ModelState {
    pub(super) facts: FactsNo,
    /// The sessions that the backend knows, as bits.
    pub(super) alive: u32,
    /// What waits in the broker, in order of its values.
    pub(super) queue: Vec<ModelMessage>,
    pub(super) workers: [ModelWorker; 2],
    pub(super) expired: bool,
    /// Somebody revokes it, and has read this record.
    pub(super) revoker: Option<FactsNo>,
    pub(super) left: [u8; FAULTS],
    pub(super) fate: MessageFate,
    /// How often data was lost; time goes on by it.
    pub(super) losses: u8,
    pub(super) greatest_token: u64,
}

/// What has become of the task, even if its record was lost since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum MessageFate {
    Open,
    /// It failed, and its dead letter is due.
    Unburied,
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
    /// Data was lost, and it does not know yet that its session went with it.
    pub(super) fooled: bool,
    /// Its last renewal went through since it opened its session, or since data was lost.
    pub(super) renewed: bool,
    /// Data was lost during its renewal, so that this one proves nothing.
    pub(super) overtaken: bool,
    pub(super) draining: bool,
    pub(super) renewal: ModelRenewal,
    pub(super) handlers: Vec<ModelHandler>,
}

/// How far a renewal has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ModelRenewal {
    Idle,
    /// The session was found gone; these are the records that came with that answer.
    Opening(Vec<(u8, FactsNo)>),
    /// What is to be committed for each run.
    Keeping(Vec<(u8, PendingNo)>),
}

/// One delivery on its way through a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ModelHandler {
    pub(super) msg: ModelMessage,
    pub(super) receipt: ModelReceipt,
    /// The registered run.
    pub(super) run: Option<u8>,
    pub(super) claim: Option<ClaimNo>,
    pub(super) cancel: Option<ModelCancelReason>,
    /// A suspect, which runs alone in its process.
    pub(super) alone: bool,
    pub(super) at: HandlerStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ModelReceipt {
    Holding,
    /// The broker has taken the message back; the worker learns it when it settles.
    Lost,
    /// A guard took over.
    Guarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ModelCancelReason {
    Superseded,
    Revoked,
}

/// Where a delivery is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum HandlerStage {
    /// Just arrived; or back to be asked about anew.
    Open,
    /// A start is asked for, under this session.
    Ask(PendingNo, u8),
    /// The handler runs; so far a guard has come.
    Run(GuardStep),
    /// A verdict is to be recorded with what was held.
    Record(OutcomeKind, ClaimNo),
    /// The run is over without an outcome.
    HandBack,
    /// It was handed back, and its next guard is to go straight to the queue.
    Requeue,
    /// Somebody who does not run it ends it, as it read the record.
    End(Bystander, FactsNo),
    Publish(FollowUpNo),
    Mark(FollowUpNo),
    Ack,
    Busy,
    /// A suspect that waits until nothing else runs in its process.
    Suspect,
    Guard(GuardStep),
    /// The process leaves: nothing more is done about it.
    Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum GuardStep {
    None,
    Published,
    Stored,
}

/// How a handler ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum OutcomeKind {
    Success,
    Failed,
    Revoked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Bystander {
    Expired,
    Revoked,
    Lost,
}

impl Bystander {
    pub(super) const fn kind(self) -> FailureKind {
        match self {
            Self::Expired => FailureKind::Expired,
            Self::Revoked => FailureKind::Revoked,
            Self::Lost => FailureKind::Lost,
        }
    }
}

impl ModelState {
    pub(super) fn first(left: [u8; FAULTS]) -> Self {
        let worker = |session| ModelWorker::fresh(session);
        Self {
            facts: FactsNo(0),
            alive: 0b11,
            queue: vec![ModelMessage { attempt: 1, generation: 0, token: 0 }],
            workers: [worker(0), worker(1)],
            expired: false,
            revoker: None,
            left,
            fate: MessageFate::Open,
            losses: 0,
            greatest_token: 0,
        }
    }

    pub(super) fn is_alive(&self, session: u8) -> bool {
        self.alive & (1 << session) != 0
    }

    pub(super) fn put(&mut self, msg: ModelMessage) {
        let at = self.queue.partition_point(|other| *other <= msg);
        self.queue.insert(at, msg);
    }

    /// The handlers that run and were not told to end, in processes that have renewed a session
    /// that is alive. What a paused or cut-off process runs until its next renewal is what the fencing token is for.
    pub(super) fn live_runs(&self) -> Vec<(usize, u32)> {
        let mut runs = Vec::new();
        for (n, worker) in self.workers.iter().enumerate() {
            if !worker.up || !worker.renewed || !self.is_alive(worker.session) {
                continue;
            }
            for handler in &worker.handlers {
                if matches!(handler.at, HandlerStage::Run(_)) && handler.cancel.is_none() {
                    runs.push((n, handler.msg.attempt));
                }
            }
        }
        runs
    }

    /// Whether the broker will deliver something again, whatever happens to the processes.
    pub(super) fn message_exists(&self) -> bool {
        let holds = |handler: &ModelHandler| handler.receipt == ModelReceipt::Holding;
        !self.queue.is_empty() || self.workers.iter().any(|w| w.up && w.handlers.iter().any(holds))
    }
}

impl ModelWorker {
    pub(super) fn fresh(session: u8) -> Self {
        Self {
            up: true,
            session,
            fooled: false,
            renewed: true,
            overtaken: false,
            draining: false,
            renewal: ModelRenewal::Idle,
            handlers: Vec::new(),
        }
    }

    /// Whether a delivery has a slot to ask for a start with: all of them, if it has to run alone.
    pub(super) fn has_slot(&self, handler: usize, alone: bool) -> bool {
        let others = self.handlers.iter().enumerate().filter(|(other, _)| *other != handler);
        let mut running =
            others.filter(|(_, other)| matches!(other.at, HandlerStage::Ask(..) | HandlerStage::Run(_)));
        !running.any(|(_, other)| alone || other.alone)
    }

    pub(super) fn knows(&self, run: u8) -> bool {
        self.handlers.iter().any(|handler| handler.run == Some(run))
    }
}
