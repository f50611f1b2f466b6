//! Claims for the consumers of this process, and their deliveries.

use std::sync::Arc;

use machinist_adapter::broker::{Settle, Target};

use super::{ClaimingConsumer, Claims, MAX_DELIVERIES};
use crate::{
    error::PostgresError,
    holders,
    messages::{self, ClaimedRow},
    subscription::{ClaimCapacity, HeldDelivery, MessageHolder},
    wake_up::queue_number,
};

impl Claims {
    /// Claims messages for every consumer that has credit and may find some.
    pub(super) async fn claim_for_all(&mut self) -> Result<(), PostgresError> {
        let Some(holder) = self.holder.clone() else { return Ok(()) };
        for place in 0..self.consumers.len() {
            while self.consumers[place].may_have_ready && self.consumers[place].has_capacity() {
                self.claim(place, &holder).await?;
            }
        }
        Ok(())
    }

    /// Claims an equal share from each queue of a consumer, then fills the remaining capacity from those that hold more.
    async fn claim(&mut self, place: usize, holder: &Arc<MessageHolder>) -> Result<(), PostgresError> {
        let consumer = &self.consumers[place];
        let subscription = Arc::clone(&consumer.subscription);
        let (capacity, first) = (subscription.capacity(), consumer.first);
        let count = subscription.targets.len().max(1);
        let share = capacity.messages.div_ceil(count);
        let mut rest = capacity.messages;
        let mut is_drained = true;
        let rounds: &[usize] = if count > 1 { &[share, capacity.messages] } else { &[capacity.messages] };
        for per_queue in rounds {
            for step in 0..subscription.targets.len() {
                let limit = rest.min(*per_queue);
                if limit == 0 {
                    is_drained = false;
                    break;
                }
                let target = &subscription.targets[(first + step) % count];
                let claimed = messages::claim(&self.link, holder.id, target, limit).await?;
                is_drained &= claimed.len() < limit;
                rest -= claimed.len().min(rest);
                self.held.extend(claimed.iter().map(|claimed| claimed.id));
                self.deliver(place, claimed, capacity, holder).await?;
            }
        }
        let consumer = &mut self.consumers[place];
        consumer.first = (first + 1) % count;
        consumer.may_have_ready = !is_drained;
        Ok(())
    }

    /// Passes messages to a consumer. What it cannot take is handed back; what was delivered too often becomes a dead letter.
    async fn deliver(
        &mut self,
        place: usize,
        claimed: Vec<ClaimedRow>,
        capacity: ClaimCapacity,
        holder: &Arc<MessageHolder>,
    ) -> Result<(), PostgresError> {
        let is_spent = |claimed: &ClaimedRow| {
            matches!(claimed.target, Target::Queue(_)) && claimed.deliveries > MAX_DELIVERIES
        };
        let (spent, claimed): (Vec<_>, Vec<_>) = claimed.into_iter().partition(is_spent);
        if !spent.is_empty() {
            let ids: Vec<i64> = spent.iter().map(|spent| spent.id).collect();
            let dead: Vec<Target> =
                spent.iter().map(|spent| Target::DeadLetters(spent.target.queue().clone())).collect();
            tracing::error!(
                messages = ids.len(),
                "messages were delivered too often; they become dead letters"
            );
            messages::declare(&self.link, &dead[..1]).await?;
            holders::bury(&self.link, holder.id, &ids).await?;
            self.held.retain(|id| !ids.contains(id));
            self.found(&dead);
        }
        let consumer = &self.consumers[place];
        let taken = consumer.subscription.use_credit(claimed.len(), capacity);
        for claimed in claimed {
            let (id, queue) = (claimed.id, queue_number(&claimed.target));
            let delivery = HeldDelivery { claimed, pauses: capacity.pauses, holder: Arc::clone(holder) };
            let refused = !taken || {
                let sent = self.consumers[place].deliveries.send(delivery);
                if sent.is_err() {
                    self.consumers[place].subscription.settled(capacity.pauses);
                }
                sent.is_err()
            };
            if refused {
                self.held.remove(&id);
                self.handed_back.insert(queue);
                self.settlements.add(holder, id, Settle::Requeue);
            }
        }
        Ok(())
    }
}

impl ClaimingConsumer {
    pub(super) fn has_capacity(&self) -> bool {
        // A consumer that was dropped takes nothing, and its end is on the way.
        self.subscription.capacity().messages > 0 && !self.deliveries.is_closed()
    }
}
