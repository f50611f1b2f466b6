//! The state of a subscription that the consumer and the writing thread share, and the deliveries that pass between
//! them.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use machinist_adapter::broker::Target;

use crate::{messages::ClaimedMessage, owners::OwnerRegistration};

/// Subscription of one consumer.
#[derive(Debug)]
pub(crate) struct SqliteSubscription {
    /// Queues that the consumer receives from.
    pub(crate) targets: Vec<Target>,
    credit: Mutex<DeliveryCredit>,
}

/// Number of deliveries that a consumer may hold.
#[derive(Debug)]
struct DeliveryCredit {
    given: usize,
    /// Number of unsettled deliveries that use credit. The writer raises it, receipts lower it.
    used: usize,
    /// Number of pauses so far. Deliveries from before the last pause use no credit.
    pauses: u64,
}

/// Number of messages that a consumer may receive now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    pub(crate) messages: usize,
    /// Number of pauses of the subscription. The capacity is void after another one.
    pub(crate) pauses: u64,
}

impl SqliteSubscription {
    pub(crate) fn new(targets: Vec<Target>, prefetch: u16) -> Self {
        let credit = DeliveryCredit { given: usize::from(prefetch.max(1)), used: 0, pauses: 0 };
        Self { targets, credit: Mutex::new(credit) }
    }

    fn credit(&self) -> MutexGuard<'_, DeliveryCredit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of messages that may be handed out until the credit is used.
    pub(crate) fn capacity(&self) -> Capacity {
        let credit = self.credit();
        Capacity { messages: credit.given.saturating_sub(credit.used), pauses: credit.pauses }
    }

    /// Adds credit.
    pub(crate) fn add_credit(&self, more: u16) {
        self.credit().given += usize::from(more);
    }

    /// Takes all credit away.
    pub(crate) fn pause(&self) {
        let mut credit = self.credit();
        *credit = DeliveryCredit { given: 0, used: 0, pauses: credit.pauses + 1 };
    }

    /// Counts `count` deliveries as handed out. Returns `false`, and counts nothing, if the consumer was paused since the
    /// capacity was asked for.
    pub(crate) fn use_credit(&self, count: usize, capacity: Capacity) -> bool {
        let mut credit = self.credit();
        let valid = credit.pauses == capacity.pauses;
        if valid {
            credit.used += count;
        }
        valid
    }

    /// Counts one delivery as settled, that was handed out after this number of pauses.
    pub(crate) fn settled(&self, pauses: u64) {
        let mut credit = self.credit();
        if credit.pauses == pauses {
            credit.used = credit.used.saturating_sub(1);
        }
    }
}

/// Claimed message on its way to a consumer.
#[derive(Debug)]
pub(crate) struct ClaimedDelivery {
    /// The message.
    pub(crate) message: ClaimedMessage,
    /// Number of pauses of the subscription before the delivery.
    pub(crate) pauses: u64,
    /// Registration of the owner that claimed the message. The claim ends with it.
    pub(crate) registration: Arc<OwnerRegistration>,
}
/// Credit that a message has used. It is given back when the message is settled, and not before: with it, a less urgent message
/// would be claimed while this one is on its way back.
#[derive(Debug)]
pub(crate) struct UsedCredit {
    subscription: Arc<SqliteSubscription>,
    /// Number of pauses of the subscription before the delivery.
    pauses: u64,
    given_back: AtomicBool,
}

impl UsedCredit {
    pub(crate) fn new(subscription: Arc<SqliteSubscription>, pauses: u64) -> Self {
        Self { subscription, pauses, given_back: AtomicBool::new(false) }
    }

    /// Gives the credit back, once: a settlement may be written again in another transaction.
    pub(crate) fn give_back(&self) {
        if !self.given_back.swap(true, Ordering::Relaxed) {
            self.subscription.settled(self.pauses);
        }
    }
}

/// Gives back the credit of a settlement that could not be written too.
impl Drop for UsedCredit {
    fn drop(&mut self) {
        self.give_back();
    }
}
