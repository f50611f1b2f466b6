//! How long to wait before trying again.

use std::time::Duration;

use rand::RngExt as _;

const FIRST_MAX_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Exponential with full jitter, from 100 ms to 10 s, for ever.
///
/// Without the jitter every process of a fleet would come back to a restarted broker in the same millisecond.
#[derive(Debug)]
pub(crate) struct ReconnectBackoff {
    ceiling: Duration,
}

impl ReconnectBackoff {
    pub(crate) fn new() -> Self {
        Self { ceiling: FIRST_MAX_WAIT }
    }

    /// How long to wait this time.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = rand::rng().random_range(Duration::ZERO..=self.ceiling);
        self.ceiling = (self.ceiling * 2).min(MAX_WAIT);
        wait
    }
}
