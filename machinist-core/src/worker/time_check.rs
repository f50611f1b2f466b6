//! Deliveries that come too early or too late.

use std::time::Duration;

use super::{Settlement, WorkerContext};
use crate::{
    delay::{NEARLY_DUE, keep_for},
    record::{Facts, Failure, FailureKind},
    wire::Envelope,
};

impl WorkerContext {
    /// Checks the times of a delivery. A task that is not yet due is published again with a delay; an expired task is
    /// ended. Returns `None` if the task may start now.
    pub(super) async fn check_time(&self, envelope: &Envelope) -> Option<Settlement> {
        let now = self.now();
        let early = envelope.eta.map_or(Duration::ZERO, |eta| eta.since(now));
        if early > NEARLY_DUE {
            let published =
                Box::pin(self.publish_later(envelope, keep_for(early, self.app.broker().as_ref()))).await;
            return Some(Box::pin(self.settled_by(published)).await);
        }
        // Only if needed: even a sleep of zero waits for the timer's next millisecond.
        if !early.is_zero() {
            tokio::time::sleep(early).await;
        }
        match envelope.expires {
            Some(expires) if envelope.attempt == 1 && expires < self.now() => {
                let error = format!("not started before {expires}");
                // Refused without an outcome: the task was started in time, and this is another delivery of it.
                Box::pin(self.end_as_read(
                    envelope,
                    Facts::new(),
                    Failure::new(FailureKind::Expired, &*error),
                ))
                .await
            }
            _ => None,
        }
    }
}
