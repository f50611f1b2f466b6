//! The wait for a slot: the bound on handlers that run at once.

use std::{sync::Arc, time::Duration};

use tokio::sync::OwnedSemaphorePermit;

use super::{Settlement, TaskProcessor};
use crate::{clock::Timestamp, wire::Envelope};

/// Waiting longer than this for a slot is written down (state RECEIVED).
const RECEIVED_AFTER: Duration = Duration::from_millis(100);

impl TaskProcessor {
    /// A free slot; meanwhile the worker may drain, and the wait may become known.
    pub(super) async fn slot(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
    ) -> Result<OwnedSemaphorePermit, Settlement> {
        if self.worker.stages.is_draining() {
            return Err(Settlement::HandBack);
        }
        // Most find one free, and need neither timer nor listeners. Nobody who waits is overtaken: a slot that
        // is given back goes to them first.
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
        // The semaphore is never closed; if it were, nothing may start any more.
        taken.map_err(|_closed| Settlement::HandBack)
    }

    /// Every slot, for a suspect: what else ran here would die with it.
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
