//! The file's time: the host's clock, which never goes back within one process.
//!
//! All users of a file are on one host, so they share a clock and need no agreement. When somebody sets that clock
//! back, an expiry must not come to life again and a delay must not stand still: this clock then runs at half speed
//! until the host's has caught up. Processes that were started after the step are behind it by the step for that
//! long; fencing tokens rise all the same, because they are counted from the greatest one seen.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use machinist_core::clock::{Timestamp, wall};

#[derive(Debug)]
pub(crate) struct HostClock(Mutex<(Timestamp, Instant)>);

impl HostClock {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((wall(), Instant::now())))
    }

    pub(crate) fn now(&self) -> Timestamp {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (host, instant) = (wall(), Instant::now());
        *shown = (advance(shown.0, instant - shown.1, host), instant);
        shown.0
    }
}

fn advance(shown: Timestamp, elapsed: std::time::Duration, host: Timestamp) -> Timestamp {
    host.max(shown.plus(elapsed / 2))
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
        let (mut shown, mut host) = (at(1_000), at(0));
        let mut steps = 0;
        while shown != host {
            host = host.plus(Duration::from_micros(10));
            let next = advance(shown, Duration::from_micros(10), host);
            assert!(next > shown, "it never stands still");
            shown = next;
            steps += 1;
        }
        assert_eq!(steps, 200, "a step back by 1000 µs is made good in 2000 µs");
    }
}
