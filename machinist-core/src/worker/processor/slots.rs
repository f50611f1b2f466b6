//! The wait for a slot: the bound on handlers that run at once.

use std::{sync::Arc, time::Duration};

use tokio::sync::OwnedSemaphorePermit;

use super::{Settlement, TaskProcessor};
use crate::{clock::Timestamp, wire::Envelope};

/// Wait for a slot after which the delivery is recorded as waiting (state RECEIVED).
const RECEIVED_AFTER: Duration = Duration::from_millis(100);

impl TaskProcessor {
    /// Waits for a free slot. A long wait is recorded. Returns the settlement if the delivery leaves without a slot.
    pub(super) async fn slot(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
    ) -> Result<OwnedSemaphorePermit, Settlement> {
        if self.worker.stages.is_draining() {
            return Err(Settlement::HandBack);
        }
        // Most deliveries find a free slot, and need neither a timer nor listeners. They do not overtake those that
        // wait: a returned slot goes to the waiting deliveries first.
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        let waiting = Arc::clone(&self.slots).acquire_owned();
        tokio::pin!(waiting);
        let taken = tokio::select! {
            taken = &mut waiting => taken,
            () = self.worker.must_hand_back() => return Err(Settlement::HandBack),
            () = tokio::time::sleep(RECEIVED_AFTER) => {
                Box::pin(self.worker.record_received(envelope, received_at)).await?;
                tokio::select! {
                    taken = &mut waiting => taken,
                    () = self.worker.must_hand_back() => return Err(Settlement::HandBack),
                    () = tokio::time::sleep(self.worker.max_hold) => return Err(Box::pin(self.worker.become_guard(envelope)).await),
                }
            }
        };
        // The semaphore is never closed; if it were, no run could start any more.
        taken.map_err(|_closed| Settlement::HandBack)
    }

    /// Takes all slots for a suspect: any other run in this process would die with it.
    pub(super) async fn all_slots(&self, envelope: &Envelope) -> Result<OwnedSemaphorePermit, Settlement> {
        tokio::select! {
            taken = self.exclusive.all_slots() => match taken {
                Some(taken) => Ok(taken),
                None => Err(self.worker.become_guard(envelope).await),
            },
            () = self.worker.must_hand_back() => Err(Settlement::HandBack),
        }
    }
}
