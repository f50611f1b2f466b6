//! Time as one agreed clock: the backend's.
//!
//! Senders and workers run on hosts whose clocks disagree. Every process learns how far it is from the backend's
//! time and stamps ETA, expiry and issued-at with that, so no host's clock decides when a task starts. The clock
//! advances with tokio's, so everything that waits can be tested under paused time.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// An instant of backend time, in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the Unix epoch, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// How long from `earlier` to this instant; zero if it lies before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This instant and a while; the end of time instead of an overflow.
    #[must_use]
    pub fn plus(self, while_: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(while_.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This instant less a while.
    #[must_use]
    pub fn minus(self, while_: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(while_.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339 in UTC, in microseconds: `2026-11-20T23:37:14.474677Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(instant) => write!(f, "{instant:.6}"),
            Err(_) => write!(f, "{}µs", self.0),
        }
    }
}

/// The host's own clock: the only place where the workspace reads it.
#[expect(clippy::disallowed_methods, reason = "this is the one reading of the host's clock")]
pub fn wall() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let now = since.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX));
    Timestamp(now.saturating_add(WRONG_BY.load(Ordering::Relaxed)))
}

/// By how many microseconds this process's host clock is off: nothing, outside of tests.
static WRONG_BY: AtomicI64 = AtomicI64::new(0);

/// Makes the host's clock wrong for this process, by microseconds, so that tests can show that nothing hangs on it.
#[doc(hidden)]
pub fn set_host_wrong_by(micros: i64) {
    WRONG_BY.store(micros, Ordering::Relaxed);
}

/// Backend time as this process knows it.
///
/// Cheap to clone; clones share what they learn. Between two lessons it runs with the monotonic clock, so a host
/// whose wall clock is set back does not take the tasks with it.
#[derive(Debug, Clone)]
pub struct Clock(Arc<ClockState>);

#[derive(Debug)]
struct ClockState {
    /// The monotonic instant from which `base` is counted.
    origin: Instant,
    /// Backend time at `origin`, in microseconds.
    base: AtomicI64,
}

impl Clock {
    /// A clock that shows `now` at this moment.
    pub fn starting_at(now: Timestamp) -> Self {
        Self(Arc::new(ClockState { origin: Instant::now(), base: AtomicI64::new(now.0) }))
    }

    /// The present instant.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.0.base.load(Ordering::Relaxed)).plus(self.0.origin.elapsed())
    }

    /// Takes over what the backend answered, when the question was sent at `asked` by the monotonic clock.
    ///
    /// The answer is taken to be from the middle of the round trip. Never lets a started ETA come earlier by
    /// more than the half round trip.
    pub fn learn(&self, asked: Instant, answered: Timestamp) {
        let middle = asked + asked.elapsed() / 2;
        let since_origin = middle.saturating_duration_since(self.0.origin);
        self.0.base.store(answered.minus(since_origin).0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_print_as_rfc_3339() {
        assert_eq!(Timestamp::from_micros(1_763_681_834_474_677).to_string(), "2025-11-20T23:37:14.474677Z");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_follows_paused_time_and_lessons() {
        let clock = Clock::starting_at(Timestamp::from_micros(1_000_000));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now(), Timestamp::from_micros(3_000_000));
        clock.learn(Instant::now(), Timestamp::from_micros(50));
        assert_eq!(clock.now(), Timestamp::from_micros(50));
    }
}
