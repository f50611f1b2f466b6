//! Copies that come back later: guards, postponements, messages that came too early.
//!
//! Each is published and confirmed before the delivery it replaces is acknowledged, so a message for an unfinished
//! task exists in the broker at all times. A crash in between leaves two, which the record makes harmless.

use std::time::Duration;

use super::{processor::TaskProcessor, steady::Unpublished};
use crate::{
    backend::{Commit, Expiry},
    broker::{Publish, Target},
    envelope::Envelope,
    record::{UNENDED, name},
};

/// The first guard comes back after this.
const FIRST: Duration = Duration::from_secs(15);
/// No guard stays away longer than this.
const LONGEST: Duration = Duration::from_secs(300);

/// How long the guard of a generation stays away.
pub(super) fn absence(generation: u32) -> Duration {
    FIRST.saturating_mul(1 << generation.min(8)).min(LONGEST)
}

impl TaskProcessor {
    /// Publishes the next guard of an envelope, to come back after `delay`; then the delivery may go.
    pub(super) async fn publish_guard(
        &self,
        envelope: &Envelope,
        delay: Duration,
    ) -> Result<Envelope, Unpublished> {
        let guard = envelope.next_guard(self.now().plus(delay));
        self.publish_later(&guard, delay).await?;
        // Only what is confirmed may say that older generations are not needed.
        let mut commit = Commit::new(guard.id.clone());
        commit.facts = vec![(name::guard(guard.attempt, guard.generation), "1".into())];
        commit.expiry = Expiry::AfterUnlessSet(UNENDED);
        self.steady.commit(&commit).await.map_err(|_| Unpublished::Leaving)?;
        Ok(guard)
    }

    /// Publishes an envelope to its queue, to be received after `delay`.
    pub(super) async fn publish_later(
        &self,
        envelope: &Envelope,
        delay: Duration,
    ) -> Result<(), Unpublished> {
        let target = Target::Queue(envelope.queue.clone());
        self.steady.publish(&Publish { target, message: self.app.seal(envelope), delay }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_stay_away_longer_and_longer() {
        let secs: Vec<u64> = (0..7).map(|n| absence(n).as_secs()).collect();
        assert_eq!(secs, [15, 30, 60, 120, 240, 300, 300]);
    }
}
