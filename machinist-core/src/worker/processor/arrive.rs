//! Before a start: what came too early or too late, and the wait for a slot.

use std::{sync::Arc, time::Duration};

use tokio::sync::OwnedSemaphorePermit;

use super::{Settlement, TaskProcessor};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    delay::{NEARLY_DUE, keep_for},
    record::{Facts, FailureKind, UNFINISHED_TTL, name},
    wire::Envelope,
};

/// Waiting longer than this for a slot is written down (state RECEIVED).
const RECEIVED_AFTER: Duration = Duration::from_millis(100);

impl TaskProcessor {
    /// Not yet due: ride again. Expired: end it. Neither: `None`.
    pub(super) async fn check_time(&self, envelope: &Envelope) -> Option<Settlement> {
        let now = self.now();
        let early = envelope.eta.map_or(Duration::ZERO, |eta| eta.since(now));
        if early > NEARLY_DUE {
            let published = Box::pin(self.publish_later(envelope, keep_for(early))).await;
            return Some(Box::pin(self.settled_by(published)).await);
        }
        // Not for nothing: even a sleep of zero waits for the timer's next millisecond.
        if !early.is_zero() {
            tokio::time::sleep(early).await;
        }
        match envelope.expires {
            Some(expires) if envelope.attempt == 1 && expires < self.now() => {
                let error = format!("not started before {expires}");
                // Refused without an outcome: it was started in time, and this is another delivery of it.
                Box::pin(self.end_as_read(envelope, Facts::new(), FailureKind::Expired, &*error)).await
            }
            _ => None,
        }
    }

    /// A free slot; meanwhile the worker may drain, and the wait may become known.
    pub(super) async fn slot(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
    ) -> Result<OwnedSemaphorePermit, Settlement> {
        if self.stages.is_draining() {
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
            () = self.must_hand_back() => return Err(Settlement::HandBack),
            () = tokio::time::sleep(RECEIVED_AFTER) => {
                Box::pin(self.say_received(envelope, received_at)).await?;
                tokio::select! {
                    taken = &mut waiting => taken,
                    () = self.must_hand_back() => return Err(Settlement::HandBack),
                    () = tokio::time::sleep(self.max_hold) => return Err(Box::pin(self.become_guard(envelope)).await),
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
                None => Err(self.become_guard(envelope).await),
            },
            () = self.must_hand_back() => Err(Settlement::HandBack),
        }
    }

    async fn say_received(&self, envelope: &Envelope, received_at: Timestamp) -> Result<(), Settlement> {
        let mut commit = Commit::new(envelope.id.clone());
        commit.unless = vec![name::END.into()];
        commit.facts = vec![(name::received(envelope.attempt), crate::record::json(&received_at))];
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        commit.wake = true;
        self.calls.commit(&commit).await?;
        Ok(())
    }
}
