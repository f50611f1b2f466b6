//! A consumer as the writer serves it: what it may be given, and from which queue next.

use std::sync::{Arc, atomic::Ordering};

use rusqlite::Connection;
use tokio::sync::mpsc::{UnboundedSender, error::SendError};

use crate::{
    messages::{self, ClaimedMessage},
    owners::OwnerRegistration,
    write_request::{ClaimedDelivery, SqliteSubscription},
};

/// A subscription's place at the table.
#[derive(Debug)]
pub(crate) struct LocalConsumer {
    pub(crate) subscription: Arc<SqliteSubscription>,
    deliveries: UnboundedSender<ClaimedDelivery>,
    pub(crate) queues: Vec<i64>,
    /// Whether its queues may hold something that it has not been given.
    pub(crate) may_have_ready: bool,
    /// The queue that is asked first next time, so that none starves.
    first_queue: usize,
}

impl LocalConsumer {
    pub(crate) fn new(
        subscription: Arc<SqliteSubscription>,
        deliveries: UnboundedSender<ClaimedDelivery>,
        queues: Vec<i64>,
    ) -> Self {
        Self { subscription, deliveries, queues, may_have_ready: true, first_queue: 0 }
    }

    pub(crate) fn belongs_to(&self, subscription: &Arc<SqliteSubscription>) -> bool {
        Arc::ptr_eq(&self.subscription, subscription)
    }

    pub(crate) fn capacity(&self) -> usize {
        self.subscription.prefetch.saturating_sub(self.subscription.held.load(Ordering::Acquire))
    }

    /// Whether any of these queues is one of its own.
    pub(crate) fn consumes_any(&self, ready: &[i64]) -> bool {
        self.queues.iter().any(|queue| ready.contains(queue))
    }

    pub(crate) fn can_claim(&self) -> bool {
        self.may_have_ready && self.capacity() > 0
    }

    /// Claims an equal share from each queue, then what is left of the credit from whoever has more.
    pub(crate) fn claim(
        &mut self,
        db: &Connection,
        owner: i64,
    ) -> rusqlite::Result<(Vec<ClaimedMessage>, bool)> {
        let count = self.queues.len();
        let mut left = self.capacity();
        let mut claimed = Vec::new();
        let share = left.div_ceil(count.max(1));
        for (round, first) in [(share, self.first_queue), (left, self.first_queue)] {
            for step in 0..count {
                let index = (first + step) % count;
                let limit = round.min(left);
                if limit > 0 {
                    let queue = (self.queues[index], self.subscription.targets[index].queue());
                    let got = messages::claim(db, owner, queue, u32::try_from(limit).unwrap_or(u32::MAX))?;
                    left -= got.len();
                    claimed.extend(got);
                }
            }
            if count == 1 {
                break;
            }
        }
        self.first_queue = (self.first_queue + 1) % count.max(1);
        Ok((claimed, left == 0))
    }

    /// Passes messages on, and returns those that nobody took: the consumer was dropped a moment ago.
    pub(crate) fn deliver(
        &mut self,
        claimed: Vec<ClaimedMessage>,
        registration: &Arc<OwnerRegistration>,
    ) -> Vec<ClaimedMessage> {
        self.subscription.held.fetch_add(claimed.len(), Ordering::AcqRel);
        let mut refused = Vec::new();
        for one in claimed {
            if let Err(SendError((back, _))) = self.deliveries.send((one, registration.clone())) {
                refused.push(back);
            }
        }
        refused
    }
}
