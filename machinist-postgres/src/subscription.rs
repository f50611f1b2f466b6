//! The state of a subscription that a consumer, its receipts and the claiming task share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use machinist_adapter::broker::Target;
use tokio::time::Instant;

use crate::messages::ClaimedRow;

/// Lease of a holder. Its messages come back that long after its last renewal.
pub(crate) const LEASE: Duration = Duration::from_secs(15);

/// The row in `holders` under which this process holds messages, until it is lost.
#[derive(Debug)]
pub(crate) struct MessageHolder {
    pub(crate) id: i64,
    lost: AtomicBool,
    origin: Instant,
    /// Time after `origin` until which the lease certainly lasts, in milliseconds.
    valid_for: AtomicU64,
}

impl MessageHolder {
    /// Creates a holder whose lease was asked for at `asked`.
    pub(crate) fn new(id: i64, asked: Instant) -> Self {
        let holder = Self { id, lost: AtomicBool::new(false), origin: asked, valid_for: AtomicU64::new(0) };
        holder.renewed(asked);
        holder
    }

    /// Notes a renewal that was asked for at `asked`.
    pub(crate) fn renewed(&self, asked: Instant) {
        let valid = asked.saturating_duration_since(self.origin) + LEASE;
        self.valid_for.store(u64::try_from(valid.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Notes that the lease is over. Returns `true` the first time.
    pub(crate) fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::AcqRel)
    }

    /// Returns `true` if the messages may be in other hands.
    pub(crate) fn is_lost(&self) -> bool {
        let valid = Duration::from_millis(self.valid_for.load(Ordering::Acquire));
        self.lost.load(Ordering::Acquire) || self.origin.elapsed() >= valid
    }
}

/// Subscription of one consumer.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// Queues that the consumer receives from.
    pub(crate) targets: Vec<Target>,
    credit: Mutex<ClaimCredit>,
}

/// Number of deliveries that a consumer may hold.
#[derive(Debug)]
struct ClaimCredit {
    given: usize,
    /// Number of unsettled deliveries that use credit. The claiming task raises it, receipts lower it.
    used: usize,
    /// Number of pauses so far. Deliveries from before the last pause use no credit.
    pauses: u64,
}

/// Number of messages that a consumer may receive now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimCapacity {
    pub(crate) messages: usize,
    /// Number of pauses of the subscription. The capacity is void after another one.
    pub(crate) pauses: u64,
}

impl Subscription {
    pub(crate) fn new(targets: Vec<Target>, prefetch: u16) -> Self {
        let credit = ClaimCredit { given: usize::from(prefetch.max(1)), used: 0, pauses: 0 };
        Self { targets, credit: Mutex::new(credit) }
    }

    fn credit(&self) -> MutexGuard<'_, ClaimCredit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of messages that may be handed out until the credit is used.
    pub(crate) fn capacity(&self) -> ClaimCapacity {
        let credit = self.credit();
        ClaimCapacity { messages: credit.given.saturating_sub(credit.used), pauses: credit.pauses }
    }

    /// Adds credit.
    pub(crate) fn add_credit(&self, more: u16) {
        self.credit().given += usize::from(more);
    }

    /// Takes all credit away.
    pub(crate) fn pause(&self) {
        let mut credit = self.credit();
        *credit = ClaimCredit { given: 0, used: 0, pauses: credit.pauses + 1 };
    }

    /// Counts `count` deliveries as handed out. Returns `false`, and counts nothing, if the consumer was paused since the
    /// capacity was asked for.
    pub(crate) fn use_credit(&self, count: usize, capacity: ClaimCapacity) -> bool {
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
pub(crate) struct HeldDelivery {
    /// The message.
    pub(crate) claimed: ClaimedRow,
    /// Number of pauses of the subscription before the delivery.
    pub(crate) pauses: u64,
    /// The holder of the message. The claim ends with it.
    pub(crate) holder: Arc<MessageHolder>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_unless_it_is_renewed() {
        let holder = MessageHolder::new(1, Instant::now());
        tokio::time::advance(LEASE - Duration::from_millis(1)).await;
        assert!(!holder.is_lost());
        holder.renewed(Instant::now());
        tokio::time::advance(LEASE - Duration::from_millis(1)).await;
        assert!(!holder.is_lost());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(holder.is_lost());
    }

    #[test]
    fn deliveries_from_before_a_pause_give_no_credit() {
        let subscription = Subscription::new(Vec::new(), 2);
        let before = subscription.capacity();
        assert!(subscription.use_credit(2, before));
        subscription.pause();
        subscription.settled(before.pauses);
        assert_eq!(subscription.capacity().messages, 0);
        assert!(!subscription.use_credit(1, before));
        subscription.add_credit(1);
        assert_eq!(subscription.capacity().messages, 1);
    }
}
