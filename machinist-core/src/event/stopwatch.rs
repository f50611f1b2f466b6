//! Stopwatch that runs only while events are observed.

use std::time::Duration;

use tokio::time::Instant;

/// Measures the stages of a task. One that was not started reads no clock, and all its laps are zero.
#[derive(Debug)]
pub(crate) struct Stopwatch(Option<Instant>);

impl Stopwatch {
    /// Starts the stopwatch, or creates one that does not run.
    pub(crate) fn started_if(running: bool) -> Self {
        Self(running.then(Instant::now))
    }

    /// Returns the time since the last lap, or since the start.
    pub(crate) fn lap(&mut self) -> Duration {
        let Some(last) = &mut self.0 else { return Duration::ZERO };
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(last, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn laps_follow_each_other_while_it_runs() {
        let mut running = Stopwatch::started_if(true);
        let mut standing = Stopwatch::started_if(false);
        for seconds in [2, 3] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(running.lap(), Duration::from_secs(seconds));
            assert_eq!(standing.lap(), Duration::ZERO);
        }
    }
}
