//! Waits between two attempts to reach the broker.

use std::time::Duration;

use rand::RngExt as _;

/// Maximum of the first wait.
const FIRST_MAX_WAIT: Duration = Duration::from_millis(100);

/// Maximum of every wait.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Exponential backoff with full jitter, from 100 ms to 10 s, without end.
///
/// Without the jitter every process of a fleet would come back to a restarted broker in the same millisecond.
#[derive(Debug)]
pub(crate) struct ReconnectBackoff {
    /// Maximum of the next wait.
    ceiling: Duration,
}

impl ReconnectBackoff {
    pub(crate) fn new() -> Self {
        Self { ceiling: FIRST_MAX_WAIT }
    }

    /// Returns the time to wait now, and doubles the maximum of the next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = rand::rng().random_range(Duration::ZERO..=self.ceiling);
        self.ceiling = (self.ceiling * 2).min(MAX_WAIT);
        wait
    }
}
