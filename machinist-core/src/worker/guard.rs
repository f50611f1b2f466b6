//! Copies of a message that come back later: guards, postponements, messages that came too early.
//!
//! Each copy is published and confirmed before the delivery that it replaces is acknowledged, so a message of an
//! unfinished task exists in the broker at all times. A crash in between leaves two messages, which the record makes
//! harmless.

use std::time::Duration;

use super::{
    ActiveDelivery, Settlement, WorkerContext,
    server_calls::{Unanswered, Unpublished},
};
use crate::{
    backend::{Commit, Expiry},
    broker::{Message, Publish, Settle, Target},
    record::{Facts, Failure, UNFINISHED_TTL, name},
    wire::Envelope,
};

/// Delay of the first guard.
const FIRST_GUARD_DELAY: Duration = Duration::from_secs(15);
/// Maximum delay of a guard.
const MAX_GUARD_DELAY: Duration = Duration::from_secs(300);

/// Time for which a delivery is held before it is handed back, if its copy cannot be published.
const UNPUBLISHABLE_PAUSE: Duration = Duration::from_secs(60);

/// Returns the delay of a guard of this generation.
fn guard_delay(generation: u32) -> Duration {
    FIRST_GUARD_DELAY.saturating_mul(1 << generation.min(8)).min(MAX_GUARD_DELAY)
}

impl WorkerContext {
    /// Publishes the next guard of an envelope, which comes back after `delay`. Then the delivery may be settled.
    async fn publish_guard(&self, envelope: &Envelope, delay: Duration) -> Result<Envelope, Unpublished> {
        let guard = envelope.next_guard(self.now().plus(delay));
        self.publish_later(&guard, delay).await?;
        // Only a confirmed guard may make older generations unnecessary. Without this mark nothing is lost.
        let mut commit = Commit::new(guard.id.clone());
        commit.facts = vec![(name::guard(guard.attempt, guard.generation), "1".into())];
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        match self.calls.commit(commit).await {
            Ok(_) | Err(Unanswered::BadRecord) => Ok(guard),
            Err(unanswered) => Err(unanswered.into()),
        }
    }

    /// Publishes a guard of a task that has ended and still owes messages. It comes back to a worker of machinist even if
    /// the delivery goes to another program.
    pub(super) async fn guard_debt(&self, envelope: &Envelope) -> Result<(), Unpublished> {
        self.publish_guard(envelope, guard_delay(envelope.generation)).await.map(drop)
    }

    /// Publishes a guard after half of the time for which the broker lets a delivery be held, and settles the delivery.
    pub(super) async fn guard_when_long(&self, active: &mut ActiveDelivery) {
        tokio::time::sleep(self.max_hold).await;
        let guard = self.publish_guard(&active.envelope, guard_delay(active.envelope.generation));
        match Box::pin(guard).await {
            Ok(guard) => {
                active.envelope = guard;
                if let Some(receipt) = active.receipt.take() {
                    receipt.settle(Settle::Ack).await;
                }
            }
            Err(unpublished) => {
                let queue = &active.envelope.queue;
                if let Some(suppressed) = self.app.0.log_lines.due("guard", queue.as_str()) {
                    tracing::warn!(?unpublished, id = %active.envelope.id, suppressed, "no guard was published; the broker may deliver the task again");
                }
            }
        }
    }

    /// Settles a delivery according to the publication of its copy. It is acknowledged if the copy is in the broker. If
    /// the copy can never be published, the delivery is handed back after a pause: the broker keeps it, and the pause
    /// avoids a busy loop.
    pub(super) async fn settled_by<T: Send>(&self, published: Result<T, Unpublished>) -> Settlement {
        match published {
            Ok(_) => Settlement::Ack,
            Err(Unpublished::Unanswered(unanswered)) => unanswered.into(),
            Err(Unpublished::Never(error)) => {
                if let Some(suppressed) = self.app.0.log_lines.due("copy", &error.to_string()) {
                    tracing::error!(%error, suppressed, "a copy of a message cannot be published; trying again in {UNPUBLISHABLE_PAUSE:?}");
                }
                tokio::select! {
                    () = tokio::time::sleep(UNPUBLISHABLE_PAUSE) => {}
                    () = self.stages.reached_drain() => {}
                }
                Settlement::HandBack
            }
        }
    }

    /// Replaces a delivery that would be held for too long by a guard.
    pub(super) async fn become_guard(&self, envelope: &Envelope) -> Settlement {
        self.settled_by(self.publish_guard(envelope, guard_delay(envelope.generation)).await).await
    }

    /// Ends a task that is not run, if its record is still as read. If a run has it, or may have it, the delivery becomes a
    /// guard, which looks again: only the run says how the task ends.
    pub(super) async fn end_or_guard(
        &self,
        envelope: &Envelope,
        facts: Facts,
        failure: Failure,
    ) -> Settlement {
        if self.may_run_elsewhere(&facts, envelope) {
            return self.become_guard(envelope).await;
        }
        match self.end_as_read(envelope, facts, failure).await {
            Some(settlement) => settlement,
            None => self.become_guard(envelope).await,
        }
    }

    /// Publishes an envelope to its queue, for delivery after `delay`.
    pub(super) async fn publish_later(
        &self,
        envelope: &Envelope,
        delay: Duration,
    ) -> Result<(), Unpublished> {
        self.calls.can_sign().await?;
        let message = self.app.message(envelope).map_err(Unpublished::Never)?;
        self.publish_message(envelope, message, delay).await
    }

    /// Publishes the message of an envelope to its queue, for delivery after `delay`.
    pub(super) async fn publish_message(
        &self,
        envelope: &Envelope,
        message: Message,
        delay: Duration,
    ) -> Result<(), Unpublished> {
        let target = Target::Queue(self.app.0.rules.queue_of(envelope));
        self.calls.publish(&Publish { target, message, delay }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_stay_away_longer_and_longer() {
        let secs: Vec<u64> = (0..7).map(|n| guard_delay(n).as_secs()).collect();
        assert_eq!(secs, [15, 30, 60, 120, 240, 300, 300]);
    }
}
