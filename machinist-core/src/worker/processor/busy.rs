//! The waits of a delivery whose task runs elsewhere.

use std::time::Duration;

use tokio::time::Instant;

/// Waits before the start of a busy task is requested again. They are short, so that the end of a short run, or a lost
/// reply, is noticed soon. After them the delivery waits until the session that holds the task can have been found gone.
const BUSY_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// The waits of one delivery until it becomes a guard. A guard may stay away for longer than any worker watches the
/// session that holds the task.
pub(super) struct BusyWaits {
    limit: Duration,
    requests: usize,
    since: Option<Instant>,
}

impl BusyWaits {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, requests: 0, since: None }
    }

    /// Returns the next wait; `None` when the time is over.
    pub(super) fn next_wait(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let left = self.limit.saturating_sub(now - since);
        let wait = BUSY_WAITS.get(self.requests).map_or(left, |wait| left.min(*wait));
        self.requests += 1;
        (!wait.is_zero()).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_at_first_and_end_at_the_limit() {
        let begin = Instant::now();
        let waits = |limit: u64| {
            let mut busy = BusyWaits::new(Duration::from_millis(limit));
            let mut now = begin;
            let next = || busy.next_wait(now).inspect(|wait| now += *wait).map(|wait| wait.as_millis());
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        assert_eq!(waits(25_000), [1_000, 5_000, 19_000]);
        assert_eq!(waits(1_500), [1_000, 500]);
        assert_eq!(waits(300), [300]);
    }
}
