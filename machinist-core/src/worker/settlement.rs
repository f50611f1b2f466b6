//! The end of a delivery: acknowledged, handed back, or left to the broker.

use super::{WorkerContext, gathered::Gathered, server_calls::Unanswered};
use crate::{
    broker::{Receipt, Settle, Settled},
    event::{EventKind, EventTask},
    flow::Flow,
    id::TaskId,
    sign::Key,
    wire::{Envelope, MessageSignature},
};

/// End of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settlement {
    /// The delivery is done: everything that the outcome requires has happened.
    Ack,
    /// The task was not run here: the broker delivers it again, to any worker.
    HandBack,
    /// The end is unknown, or did not come in time: the delivery stays unsettled, and the broker delivers it again.
    Leave,
    /// The record of the task cannot be used, so that nothing can be decided or recorded: the message becomes a dead
    /// letter, from which the task can be sent again.
    SetAside,
}

impl From<Unanswered> for Settlement {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Leaving => Self::Leave,
            Unanswered::GivenUp => Self::HandBack,
            Unanswered::BadRecord => Self::SetAside,
        }
    }
}

/// A delivery that this worker processes.
pub(super) struct ActiveDelivery {
    pub(super) envelope: Envelope,
    pub(super) signature: Option<MessageSignature>,
    /// `true` if the broker may have delivered it before.
    pub(super) redelivered: bool,
    /// Generation of the key ring under which it was verified.
    pub(super) verified_under: u64,
    /// Settles the delivery; `None` after a guard has replaced it.
    pub(super) receipt: Option<Box<dyn Receipt>>,
    /// Key that encrypts the outcome, if it is encrypted.
    pub(super) outcome_key: Option<Box<Key>>,
    /// Results of the join that the task has waited for.
    pub(super) gathered: Option<Gathered>,
    /// Its place in what follows it, as its message says; `None` until its body is decoded.
    pub(super) flow: Option<Box<Flow>>,
    /// Roots of the workflows whose revocation revokes the task.
    pub(super) roots: Vec<TaskId>,
    /// `true` if its record keeps its arguments for people.
    pub(super) keeps_args: bool,
    /// `true` after its run was cut off without an outcome.
    pub(super) cut_off: bool,
}

impl WorkerContext {
    /// Settles a delivery and counts it.
    pub(super) async fn settle(&self, settlement: Settlement, receipt: Option<Box<dyn Receipt>>) {
        let settled = match receipt {
            Some(receipt) => settlement.apply(receipt).await,
            // A guard has taken its place. A run that goes on is unfinished all the same: the session must outlive it.
            None => settlement != Settlement::Leave,
        };
        if settled {
            self.events.tally.settled();
        }
    }

    /// Emits the return of a delivery. Called before it is settled: another worker may receive it at once.
    pub(super) fn emit_if_handed_back(&self, settlement: Settlement, active: &ActiveDelivery) {
        let ActiveDelivery { envelope, cut_off, .. } = active;
        if *cut_off || settlement == Settlement::HandBack {
            let (task, draining) = (EventTask::of(envelope), self.stages.is_draining());
            self.emit(EventKind::HandedBack { task, cut_off: *cut_off, draining });
        }
    }
}

impl Settlement {
    /// Settles the delivery in the broker. Returns `false` if the delivery stays unsettled.
    pub(super) async fn apply(self, receipt: Box<dyn Receipt>) -> bool {
        let settle = match self {
            Self::Ack => Settle::Ack,
            Self::HandBack => Settle::Requeue,
            // Whoever sets a message aside acknowledges it then.
            Self::Leave | Self::SetAside => return false,
        };
        if receipt.settle(settle).await == Settled::Lost {
            tracing::debug!(
                "a delivery could not be settled: the broker delivers it again, and its record decides"
            );
        }
        true
    }
}
