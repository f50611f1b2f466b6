//! Sending with patience: the same signature again and again, until the broker has confirmed it or the time is over.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Client;
use crate::{
    broker::PublishError,
    error::SendError,
    result::AsyncResult,
    workflow::{Sendable, SendableParts},
};

/// Waits before another try: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl Client {
    /// Sends a signature or a workflow as [`send`](Self::send) does, and tries again while the broker or the backend is away,
    /// the broker takes no messages, or the queue is [full](crate::AppBuilder::max_depth): until it is confirmed, or `timeout`
    /// is over. Every try has the same id, so there is one task.
    ///
    /// # Errors
    /// [`SendError`]: that of the last try, or at once one that another try would meet again. If the time is over during a
    /// try, it is one for which [`SendError::is_unknown`] returns `true`: the task may have been queued.
    ///
    /// # Cancel safety
    /// As [`send`](Self::send).
    pub async fn send_within<S: Sendable + Clone>(
        &self,
        what: S,
        timeout: Duration,
    ) -> Result<AsyncResult<S::ResultType>, SendError> {
        let deadline = Instant::now() + timeout;
        let mut wait = WAITS.0;
        loop {
            let Ok(sent) = timeout_at(deadline, self.send(what.clone())).await else {
                let SendableParts { parts, .. } = what.into_parts();
                let source = PublishError::Unknown(format!("it was not confirmed within {timeout:?}").into());
                return Err(SendError::Publish { id: parts.id, source });
            };
            match sent {
                Err(error) if may_pass(&error) && Instant::now() + wait < deadline => {
                    tracing::debug!(%error, ?wait, "a task was not sent; trying again");
                    // Senders that were stopped together must not come back together.
                    sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
                    wait = (wait * 2).min(WAITS.1);
                }
                sent => return sent,
            }
        }
    }
}

/// Returns `true` if another try may succeed.
fn may_pass(error: &SendError) -> bool {
    match error {
        SendError::Publish { source, .. } => !source.is_certain(),
        SendError::QueueFull { .. }
        | SendError::Unique { .. }
        | SendError::Workers { .. }
        | SendError::Record { .. } => true,
        SendError::Name(_)
        | SendError::Invalid(_)
        | SendError::TooLarge { .. }
        | SendError::Key { .. }
        | SendError::Duplicate { .. } => false,
    }
}
