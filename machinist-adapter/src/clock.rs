//! One agreed clock: the backend's.
//!
//! Senders and workers run on hosts whose clocks disagree. Every process learns how far its clock is from the backend's
//! time, and stamps ETA, expiry and issued-at with backend time, so no host's clock decides when a task starts. The
//! clock advances with tokio's, so everything that waits can be tested under paused time.

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
    /// Creates an instant from microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Returns the microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the whole milliseconds since the Unix epoch, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Returns the time from `earlier` to this instant; zero if this instant is earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Returns this instant plus a duration; the greatest possible instant instead of an overflow.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Returns this instant minus a duration; the smallest possible instant instead of an overflow.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// Formats the instant as RFC 3339 in UTC, with microseconds: `2026-11-20T23:37:14.474677Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(instant) => write!(f, "{instant:.6}"),
            Err(_) => write!(f, "{}µs", self.0),
        }
    }
}

/// Returns the time of the host's own clock. No other place in the workspace reads it.
#[expect(clippy::disallowed_methods, reason = "the only place that reads the host's clock")]
pub fn wall() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let now = since_epoch.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX));
    Timestamp(now.saturating_add(HOST_CLOCK_ERROR_MICROS.load(Ordering::Relaxed)))
}

/// Error of this process's host clock in microseconds: 0, except in tests.
static HOST_CLOCK_ERROR_MICROS: AtomicI64 = AtomicI64::new(0);

/// Makes the host's clock wrong by some microseconds for this process, so that tests can show that nothing depends on
/// it.
#[doc(hidden)]
pub fn set_host_wrong_by(micros: i64) {
    HOST_CLOCK_ERROR_MICROS.store(micros, Ordering::Relaxed);
}

/// Backend time as this process knows it.
///
/// Cheap to clone; clones share what they learn. Between two answers of the backend it advances with the monotonic
/// clock, so a host whose wall clock is set back does not delay its tasks.
#[derive(Debug, Clone)]
pub struct Clock(Arc<ClockState>);

#[derive(Debug)]
struct ClockState {
    /// Monotonic instant from which `base` is counted.
    origin: Instant,
    /// Backend time at `origin`, in microseconds.
    base: AtomicI64,
}

impl Clock {
    /// Creates a clock that shows `now` at this moment.
    pub fn starting_at(now: Timestamp) -> Self {
        Self(Arc::new(ClockState { origin: Instant::now(), base: AtomicI64::new(now.0) }))
    }

    /// Returns the current backend time.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.0.base.load(Ordering::Relaxed)).plus(self.0.origin.elapsed())
    }

    /// Adopts the time that the backend answered, when the request was sent at `asked` by the monotonic clock.
    ///
    /// The answer is assumed to be from the middle of the round trip. So the clock never makes an ETA start earlier by
    /// more than half of the round trip.
    ///
    /// Returns by how many microseconds the answer is later than this clock expected (negative: earlier).
    pub fn learn(&self, asked: Instant, answered: Timestamp) -> i64 {
        let middle = asked + asked.elapsed() / 2;
        let since_origin = middle.saturating_duration_since(self.0.origin);
        let base = answered.minus(since_origin).0;
        base.saturating_sub(self.0.base.swap(base, Ordering::Relaxed))
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
    async fn a_clock_follows_paused_time_and_the_answers_of_the_backend() {
        let clock = Clock::starting_at(Timestamp::from_micros(1_000_000));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now(), Timestamp::from_micros(3_000_000));
        assert_eq!(clock.learn(Instant::now(), Timestamp::from_micros(50)), -2_999_950);
        assert_eq!(clock.now(), Timestamp::from_micros(50));
    }
}
