//! The time of the file: the clock of the host, made monotonic within one process.
//!
//! All users of a file are on one host, so they share a clock and need no agreement. When that clock is set back, an
//! expired record must not become visible again and a delay must not stop: this clock then runs at half speed until
//! the clock of the host has caught up. Until then, processes that were started after the step are behind this clock
//! by up to the step. Fencing tokens rise all the same, because they are counted from the greatest known token.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use machinist_adapter::clock::{Timestamp, wall};

/// Monotonic clock that follows the clock of the host.
#[derive(Debug)]
pub(crate) struct HostClock(Mutex<LastReading>);

#[derive(Debug)]
struct LastReading {
    time: Timestamp,
    instant: Instant,
}

impl HostClock {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LastReading { time: wall(), instant: Instant::now() }))
    }

    pub(crate) fn now(&self) -> Timestamp {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let host = wall();
        let instant = Instant::now();
        last.time = advance(last.time, instant - last.instant, host);
        last.instant = instant;
        last.time
    }
}

/// Returns the time of the host, or the last time advanced at half speed if that is later.
fn advance(last: Timestamp, elapsed: std::time::Duration, host: Timestamp) -> Timestamp {
    host.max(last.plus(elapsed / 2))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn it_follows_the_host() {
        assert_eq!(advance(at(100), Duration::from_micros(10), at(110)), at(110));
        assert_eq!(advance(at(100), Duration::from_micros(10), at(9_000)), at(9_000), "set forward");
    }

    #[test]
    fn a_clock_set_back_slows_it_down_until_it_has_caught_up() {
        let mut shown = at(1_000);
        let mut host = at(0);
        let mut steps = 0;
        while shown != host {
            host = host.plus(Duration::from_micros(10));
            let next = advance(shown, Duration::from_micros(10), host);
            assert!(next > shown, "it always advances");
            shown = next;
            steps += 1;
        }
        assert_eq!(steps, 200, "a step back by 1000 µs takes 2000 µs to catch up");
    }
}
