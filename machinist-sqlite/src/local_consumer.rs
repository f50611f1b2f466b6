//! A consumer of this process as the writing thread serves it: the number of messages that it may receive, and the
//! queue that is claimed from next.

use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::mpsc::{UnboundedSender, error::SendError};

use crate::{
    messages::{self, ClaimedMessage},
    owners::OwnerRegistration,
    subscription::{Capacity, ClaimedDelivery, SqliteSubscription},
};

/// Consumer of this process.
#[derive(Debug)]
pub(crate) struct LocalConsumer {
    pub(crate) subscription: Arc<SqliteSubscription>,
    deliveries: UnboundedSender<ClaimedDelivery>,
    /// Ids of the subscription's queues, in the order of its targets.
    pub(crate) queues: Vec<i64>,
    /// `true` if the queues may hold messages that can be claimed.
    pub(crate) may_have_ready: bool,
    /// Index of the queue that the next claim starts with. It rotates, so that no queue starves.
    first_queue: usize,
}

/// Messages that were claimed for one consumer in one transaction.
#[derive(Debug)]
pub(crate) struct ConsumerClaim {
    pub(crate) subscription: Arc<SqliteSubscription>,
    pub(crate) messages: Vec<ClaimedMessage>,
    /// Capacity that the messages use.
    pub(crate) capacity: Capacity,
    /// `true` if the queues may hold more messages.
    pub(crate) may_have_more: bool,
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

    /// Returns `true` if the consumer may receive at least one more message.
    pub(crate) fn has_capacity(&self) -> bool {
        self.subscription.capacity().messages > 0
    }

    /// Returns `true` if the consumer is subscribed to any of `queues`.
    pub(crate) fn consumes_any(&self, queues: &[i64]) -> bool {
        self.queues.iter().any(|queue| queues.contains(queue))
    }

    /// Returns `true` if a claim may yield messages.
    pub(crate) fn can_claim(&self) -> bool {
        self.may_have_ready && self.has_capacity()
    }

    /// Claims an equal share from each queue, then fills the remaining capacity from the queues that hold more.
    pub(crate) fn claim(&mut self, db: &Connection, owner: i64) -> rusqlite::Result<ConsumerClaim> {
        let available = self.subscription.capacity();
        let capacity = available.messages;
        let queue_count = self.queues.len().max(1);
        let share = capacity.div_ceil(queue_count);
        let mut messages = Vec::new();
        self.claim_round(db, owner, share, capacity, &mut messages)?;
        if queue_count > 1 {
            self.claim_round(db, owner, capacity, capacity, &mut messages)?;
        }
        self.first_queue = (self.first_queue + 1) % queue_count;
        let may_have_more = messages.len() == capacity;
        Ok(ConsumerClaim {
            subscription: self.subscription.clone(),
            messages,
            capacity: available,
            may_have_more,
        })
    }

    /// Claims at most `per_queue` messages from each queue, until `claimed` holds `capacity` messages.
    fn claim_round(
        &self,
        db: &Connection,
        owner: i64,
        per_queue: usize,
        capacity: usize,
        claimed: &mut Vec<ClaimedMessage>,
    ) -> rusqlite::Result<()> {
        for step in 0..self.queues.len() {
            let index = (self.first_queue + step) % self.queues.len();
            let limit = per_queue.min(capacity - claimed.len());
            if limit > 0 {
                let name = self.subscription.targets[index].queue();
                let limit = u32::try_from(limit).unwrap_or(u32::MAX);
                claimed.extend(messages::claim(db, owner, self.queues[index], name, limit)?);
            }
        }
        Ok(())
    }

    /// Passes messages to the consumer. Returns those that it could not take because it was dropped or paused a moment ago.
    pub(crate) fn deliver(
        &mut self,
        messages: Vec<ClaimedMessage>,
        capacity: Capacity,
        registration: &Arc<OwnerRegistration>,
    ) -> Vec<ClaimedMessage> {
        if !self.subscription.use_credit(messages.len(), capacity) {
            return messages;
        }
        let mut refused = Vec::new();
        for message in messages {
            let pauses = capacity.pauses;
            let delivery = ClaimedDelivery { message, pauses, registration: registration.clone() };
            if let Err(SendError(delivery)) = self.deliveries.send(delivery) {
                refused.push(delivery.message);
            }
        }
        refused
    }
}
