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

/// Wait before the second try. Each further one is twice as long.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before another try.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Longest wait before another try to send to a queue that is full. Its depth is asked about as often.
const LONGEST_WAIT_FOR_ROOM: Duration = Duration::from_secs(1);

impl Client {
    /// Sends a signature or a workflow as [`send`](Self::send) does, and tries again while the broker or the backend is away,
    /// the broker takes no messages, or the queue is [full](crate::AppBuilder::max_depth): until it is confirmed, or `timeout`
    /// is over. Every try has the same id, so there is one task. A delay counts from now.
    ///
    /// # Errors
    /// [`SendError`]: that of the last try, or at once one that another try would meet again. If any try may have queued the
    /// task, or the time is over during one, it is an error for which [`SendError::is_unknown`] returns `true`.
    ///
    /// # Cancel safety
    /// As [`send`](Self::send).
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// use std::time::Duration;
    ///
    /// // A restart of the broker takes a few seconds. The request that sends this can wait for it.
    /// let sum = client.send_within(ADD.call((2, 3)), Duration::from_secs(20)).await?;
    /// # drop(sum);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_within<S: Sendable + Clone>(
        &self,
        what: S,
        timeout: Duration,
    ) -> Result<AsyncResult<S::ResultType>, SendError> {
        let deadline = Instant::now() + timeout;
        let sending = self.send_while(what.clone(), deadline, may_pass);
        timeout_at(deadline, sending).await.unwrap_or_else(|_| {
            let SendableParts { parts, .. } = what.into_parts();
            let source = PublishError::Unknown(format!("it was not confirmed within {timeout:?}").into());
            Err(SendError::Publish { id: parts.id, source })
        })
    }

    /// Sends a signature or a workflow as [`send`](Self::send) does, and tries again while the queue is
    /// [full](crate::AppBuilder::max_depth), until `timeout` is over. Other errors are returned at once.
    ///
    /// # Errors
    /// [`SendError`], as [`send_within`](Self::send_within).
    ///
    /// # Cancel safety
    /// As [`send`](Self::send).
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// use machinist_core::SendError;
    /// use std::time::Duration;
    ///
    /// match client.send_when_room(ADD.call((2, 3)), Duration::from_secs(60)).await {
    ///     Ok(sent) => println!("sent {}", sent.id()),
    ///     Err(SendError::QueueFull { queue, depth, .. }) => println!("queue {queue} still has {depth} tasks"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_when_room<S: Sendable + Clone>(
        &self,
        what: S,
        timeout: Duration,
    ) -> Result<AsyncResult<S::ResultType>, SendError> {
        let is_full = |error: &SendError| matches!(error, SendError::QueueFull { .. });
        // A try is not cut off: without room it has sent nothing.
        self.send_while(what, Instant::now() + timeout, is_full).await
    }

    /// Sends until that succeeds, meets an error that does not pass, or the next try would come after the deadline.
    async fn send_while<S: Sendable + Clone>(
        &self,
        what: S,
        deadline: Instant,
        passes: impl Fn(&SendError) -> bool,
    ) -> Result<AsyncResult<S::ResultType>, SendError> {
        let sendable = what.clone().into_parts();
        let id = sendable.parts.id.clone();
        // In the format of another program it may take several messages, whose ids are the same at each try.
        let prepared = if self.is_nested(&sendable) { None } else { Some(self.prepare_retried(sendable)?) };
        let mut wait = FIRST_WAIT;
        let mut may_be_queued = false;
        loop {
            let sent = match &prepared {
                Some(prepared) => self.try_send(prepared).await,
                None => self.send(what.clone()).await,
            };
            match sent {
                Err(error) if passes(&error) && Instant::now() + wait < deadline => {
                    may_be_queued |= error.is_unknown();
                    tracing::debug!(%error, ?wait, "a task was not sent; trying again");
                    sleep(jittered(wait)).await;
                    let is_full = matches!(error, SendError::QueueFull { .. });
                    wait = (wait * 2).min(if is_full { LONGEST_WAIT_FOR_ROOM } else { LONGEST_WAIT });
                }
                Err(error) if may_be_queued && !error.is_unknown() => {
                    // The last try has queued nothing, and an earlier one may have.
                    return Err(SendError::Publish { id, source: PublishError::Unknown(error.into()) });
                }
                sent => return sent,
            }
        }
    }
}

/// Returns a wait that is up to a half shorter: senders that were stopped together must not come back together.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.5..1.0))
}

/// Returns `true` if another try may succeed.
pub(super) fn may_pass(error: &SendError) -> bool {
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
        | SendError::Duplicate { .. }
        | SendError::BufferFull { .. }
        | SendError::Dropped { .. } => false,
    }
}
