//! The wait for a slot: the bound on handlers that run at once.

use std::{convert::Infallible, sync::Arc, time::Duration};

use super::{Settlement, Slot, TaskProcessor};
use crate::worker::{
    capacity::{ExclusiveClaim, SlotPermit},
    look_ahead::MAX_SLOT_WAIT,
    parking::LOCAL_WAIT,
};
use crate::{clock::Timestamp, wire::Envelope};

/// Maximum wait for a slot where the queues have an order. Then another worker may take the task.
const MAX_ORDERED_WAIT: Duration = Duration::from_secs(60);
/// Wait for a slot after which the delivery is recorded as waiting (state RECEIVED).
const RECEIVED_AFTER: Duration = Duration::from_millis(100);

impl TaskProcessor {
    /// Waits for a free slot. A long wait is recorded. Returns the settlement if the delivery leaves without a slot: where slots
    /// have no order, as soon as the look-ahead was paused more than `paused` times.
    pub(super) async fn slot(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
        pauses: u64,
        paused: u64,
    ) -> Result<Slot, Settlement> {
        if self.worker.stages.is_draining() {
            return Err(Settlement::HandBack);
        }
        if self.worker.capacity.is_ordered() {
            return Box::pin(self.slot_in_order(envelope, received_at, pauses)).await;
        }
        // Most deliveries find a free slot, and need neither a timer nor listeners. They do not overtake those that
        // wait: a returned slot goes to the waiting deliveries first.
        if let Ok(permit) = self.worker.capacity.try_take() {
            return Ok(self.taken(permit, None, pauses));
        }
        Box::pin(self.wait_for_slot(envelope, received_at, pauses, paused)).await
    }

    async fn wait_for_slot(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
        pauses: u64,
        paused: u64,
    ) -> Result<Slot, Settlement> {
        let waiting = Arc::clone(&self.worker.capacity).take();
        tokio::pin!(waiting);
        let must_go_back = async {
            tokio::select! {
                () = self.worker.must_hand_back() => {}
                () = self.worker.look_ahead.paused_after(paused) => {}
            }
        };
        let too_long = async {
            tokio::time::sleep(MAX_SLOT_WAIT - RECEIVED_AFTER).await;
            self.worker.look_ahead.waited_too_long(paused);
            std::future::pending::<Infallible>().await
        };
        tokio::pin!(must_go_back);
        let taken = tokio::select! {
            // First, because it is what nearly always wakes a delivery: the others need not be asked again then.
            biased;
            taken = &mut waiting => taken,
            () = &mut must_go_back => return Err(Settlement::HandBack),
            () = tokio::time::sleep(RECEIVED_AFTER) => {
                Box::pin(self.worker.record_received(envelope, received_at)).await?;
                tokio::select! {
                    biased;
                    taken = &mut waiting => taken,
                    () = &mut must_go_back => return Err(Settlement::HandBack),
                    never = too_long => match never {},
                    () = tokio::time::sleep(self.worker.max_hold) => return Err(Box::pin(self.worker.become_guard(envelope)).await),
                }
            }
        };
        // The semaphore is never closed; if it were, no run could start any more.
        taken.map(|permit| self.taken(permit, None, pauses)).ok_or(Settlement::HandBack)
    }

    /// Waits for a slot as the order of the queues says. One that waits for long leaves room for others of its queue, and
    /// goes back as a guard: a delivery that went back to the broker would come again at once, until the broker drops it.
    async fn slot_in_order(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
        pauses: u64,
    ) -> Result<Slot, Settlement> {
        let waiting = Arc::clone(&self.worker.capacity).take_in_order(&envelope.queue, &envelope.name);
        tokio::pin!(waiting);
        let must_go_back = self.worker.must_hand_back();
        tokio::pin!(must_go_back);
        let taken = tokio::select! {
            biased;
            taken = &mut waiting => taken,
            () = &mut must_go_back => return Err(Settlement::HandBack),
            () = tokio::time::sleep(RECEIVED_AFTER) => {
                Box::pin(self.worker.record_received(envelope, received_at)).await?;
                // A task that waits for its own limit makes room for others of its queue.
                let limited = self.worker.capacity.limits_task(&envelope.name);
                let _aside = limited.then(|| self.worker.look_ahead.aside(pauses));
                let longest = if limited { LOCAL_WAIT } else { MAX_ORDERED_WAIT };
                tokio::select! {
                    taken = &mut waiting => taken,
                    () = &mut must_go_back => return Err(Settlement::HandBack),
                    () = tokio::time::sleep(longest.min(self.worker.max_hold)) => {
                        return Err(Box::pin(self.worker.become_guard(envelope)).await);
                    }
                }
            }
        };
        taken.map(|permit| self.taken(permit, None, pauses)).ok_or(Settlement::HandBack)
    }

    fn taken(&self, permit: SlotPermit, alone: Option<ExclusiveClaim>, pauses: u64) -> Slot {
        Slot { _permit: permit, _alone: alone, _running: self.worker.look_ahead.running(pauses), shown: None }
    }

    /// Takes all slots for a suspect: any other run in this process would die with it.
    pub(super) async fn all_slots(&self, envelope: &Envelope, pauses: u64) -> Result<Slot, Settlement> {
        tokio::select! {
            taken = self.exclusive.all_slots() => match taken {
                Some((permit, claim)) => Ok(self.taken(permit, Some(claim), pauses)),
                None => Err(self.worker.become_guard(envelope).await),
            },
            () = self.worker.must_hand_back() => Err(Settlement::HandBack),
        }
    }
}
