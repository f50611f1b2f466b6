//! The state of a subscription that the consumer and the writing thread share, and the deliveries that pass between
//! them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use machinist_adapter::broker::Target;

use crate::{messages::ClaimedMessage, owners::OwnerRegistration};

/// Subscription of one consumer.
#[derive(Debug)]
pub(crate) struct SqliteSubscription {
    /// Queues that the consumer receives from.
    pub(crate) targets: Vec<Target>,
    prefetch: usize,
    /// Number of deliveries that are handed out and not settled. The writer raises it, receipts lower it.
    unsettled: AtomicUsize,
}

impl SqliteSubscription {
    pub(crate) fn new(targets: Vec<Target>, prefetch: u16) -> Self {
        Self { targets, prefetch: usize::from(prefetch.max(1)), unsettled: AtomicUsize::new(0) }
    }

    /// Number of messages that may be handed out until the prefetch is reached.
    pub(crate) fn capacity(&self) -> usize {
        self.prefetch.saturating_sub(self.unsettled.load(Ordering::Acquire))
    }

    /// Counts `count` deliveries as handed out.
    pub(crate) fn add_unsettled(&self, count: usize) {
        self.unsettled.fetch_add(count, Ordering::AcqRel);
    }

    /// Counts one delivery as settled.
    pub(crate) fn remove_unsettled(&self) {
        self.unsettled.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Claimed message on its way to a consumer.
#[derive(Debug)]
pub(crate) struct ClaimedDelivery {
    /// The message.
    pub(crate) message: ClaimedMessage,
    /// Registration of the owner that claimed the message. The claim ends with it.
    pub(crate) registration: Arc<OwnerRegistration>,
}
