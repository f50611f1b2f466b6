//! Refused messages: counted, and logged without letting their sender fill the log.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{id::QueueName, record::DeadReason};

/// Minimum time between two log lines about the same reason.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counter and log of refused messages, at most one log line per reason in each [`LOG_INTERVAL`].
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    count: AtomicU64,
    lines: Mutex<Vec<LastLine>>,
}

/// The last log line about one reason.
#[derive(Debug)]
struct LastLine {
    reason: DeadReason,
    at: Instant,
    /// Number of refusals for this reason since the line.
    suppressed: u64,
}

impl RefusalLog {
    /// Number of refused messages.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts and logs a refused message. `error` may repeat the claims of the message, but never its body.
    pub(super) fn record(&self, queue: &QueueName, reason: DeadReason, error: &str) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.due_line(reason, Instant::now()) {
            let reason = reason.as_str();
            tracing::warn!(%queue, reason, error, suppressed, "a message was refused and is a dead letter now");
        }
    }

    /// Number of refusals since the last line, if another line is due.
    fn due_line(&self, reason: DeadReason, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match lines.iter_mut().find(|line| line.reason == reason) {
            Some(line) if now.saturating_duration_since(line.at) < LOG_INTERVAL => {
                line.suppressed += 1;
                None
            }
            Some(line) => {
                line.at = now;
                Some(std::mem::take(&mut line.suppressed))
            }
            None => {
                lines.push(LastLine { reason, at: now, suppressed: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_line() {
        let refusals = RefusalLog::default();
        let due_line = |reason| refusals.due_line(reason, Instant::now());
        assert_eq!(due_line(DeadReason::Unsigned), Some(0));
        assert_eq!(due_line(DeadReason::Stale), Some(0));
        for _ in 0..1000 {
            assert_eq!(due_line(DeadReason::Unsigned), None);
        }
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!(due_line(DeadReason::Unsigned), Some(1000));
    }
}
