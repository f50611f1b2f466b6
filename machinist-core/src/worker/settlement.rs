//! The end of a delivery: acknowledged, handed back, or left to the broker.

use std::sync::atomic::Ordering;

use super::{WorkerContext, server_calls::Unanswered};
use crate::{
    broker::{Receipt, Settle, Settled},
    sign::Key,
    wire::Envelope,
};

/// How a delivery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settlement {
    /// Everything that its outcome demands is done.
    Ack,
    /// It was not run here: the broker delivers it again, to any worker.
    HandBack,
    /// Its end is unknown, or did not come in time: it stays unsettled, and the broker delivers it again.
    Leave,
}

impl From<Unanswered> for Settlement {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::Leaving => Self::Leave,
            Unanswered::GivenUp => Self::HandBack,
        }
    }
}

/// A delivery that this worker processes.
pub(super) struct ActiveDelivery {
    pub(super) envelope: Envelope,
    /// Settles the delivery; none after a guard has taken its place.
    pub(super) receipt: Option<Box<dyn Receipt>>,
    /// Key that encrypts the outcome, if it is encrypted.
    pub(super) outcome_key: Option<Box<Key>>,
}

impl WorkerContext {
    /// Settles a delivery and counts it.
    pub(super) async fn settle(&self, settlement: Settlement, receipt: Option<Box<dyn Receipt>>) {
        if let Some(receipt) = receipt
            && !settlement.apply(receipt).await
        {
            return;
        }
        self.tally.settled.fetch_add(1, Ordering::Relaxed);
    }
}

impl Settlement {
    /// Tells the broker. Returns `false` if the delivery stays unsettled.
    pub(super) async fn apply(self, receipt: Box<dyn Receipt>) -> bool {
        let how = match self {
            Self::Ack => Settle::Ack,
            Self::HandBack => Settle::Requeue,
            Self::Leave => return false,
        };
        if receipt.settle(how).await == Settled::Lost {
            tracing::debug!(
                "a delivery could not be settled: the broker delivers it again, and its record decides"
            );
        }
        true
    }
}
