//! One agreed clock: the backend's.
//!
//! Senders and workers run on hosts whose clocks disagree. Every process learns how far its clock is from the backend's
//! time, and stamps ETA, expiry and issued-at with backend time, so no host's clock decides when a task starts. The
//! clock advances with tokio's, so everything that waits can be tested under paused time.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
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

/// Time after which a more exact answer of the backend is no longer preferred to a newer one: the rates of two clocks
/// differ a little.
const EXACT_FOR: Duration = Duration::from_secs(15);

/// Backend time as this process knows it.
///
/// Cheap to clone; clones share what they learn. Between two answers of the backend it advances with the monotonic
/// clock, so a host whose wall clock is set back does not delay its tasks.
///
/// An answer of the backend was read at some moment between the request and its arrival. So the clock knows two bounds
/// and not one time: [`now`](Self::now), which the backend's time has reached, and [`latest`](Self::latest), which it
/// has not passed. A task starts by the first and is stamped by the second, and so never starts early.
#[derive(Debug, Clone)]
pub struct Clock(Arc<ClockState>);

#[derive(Debug)]
struct ClockState {
    /// Monotonic instant from which the bounds are counted.
    origin: Instant,
    /// Backend time at `origin`, in microseconds, if each answer was read when it arrived.
    earliest: AtomicI64,
    /// Backend time at `origin`, in microseconds, if each answer was read when it was asked for.
    latest: AtomicI64,
    /// Bounds of the answer that the clock follows, and its arrival.
    followed: Mutex<(Bounds, Instant)>,
}

/// Bounds of backend time at the origin of a clock, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    earliest: i64,
    latest: i64,
}

impl Bounds {
    /// The uncertainty: the round trip of the answer.
    const fn width(self) -> i64 {
        self.latest.saturating_sub(self.earliest)
    }

    /// Returns `true` if both can hold.
    fn agree(self, other: Self) -> bool {
        self.earliest <= other.latest && other.earliest <= self.latest
    }

    /// Returns `true` if a clock that has followed `self` for `age` follows `answer` from now on. A long round trip does
    /// not replace a short one, unless that is old or the backend's time has jumped.
    fn gives_way_to(self, answer: Self, age: Duration) -> bool {
        answer.width() <= self.width() || age >= EXACT_FOR || !self.agree(answer)
    }
}

impl Clock {
    /// Creates a clock that shows `now` at this moment.
    pub fn starting_at(now: Timestamp) -> Self {
        let origin = Instant::now();
        let bounds = Bounds { earliest: now.0, latest: now.0 };
        Self::following(origin, bounds, origin)
    }

    /// Creates a clock from an answer of the backend, when the request was sent at `asked` by the monotonic clock.
    pub fn learned(asked: Instant, answered: Timestamp) -> Self {
        let arrived = Instant::now();
        Self::following(asked, bounds(asked, asked, arrived, answered), arrived)
    }

    fn following(origin: Instant, bounds: Bounds, arrived: Instant) -> Self {
        Self(Arc::new(ClockState {
            origin,
            earliest: AtomicI64::new(bounds.earliest),
            latest: AtomicI64::new(bounds.latest),
            followed: Mutex::new((bounds, arrived)),
        }))
    }

    /// Returns the time that the backend's clock has certainly reached.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.0.earliest.load(Ordering::Relaxed)).plus(self.0.origin.elapsed())
    }

    /// Returns the time that the backend's clock has certainly not passed.
    pub fn latest(&self) -> Timestamp {
        Timestamp(self.0.latest.load(Ordering::Relaxed)).plus(self.0.origin.elapsed())
    }

    /// Takes note of the time that the backend answered, when the request was sent at `asked` by the monotonic clock.
    ///
    /// Returns by how many microseconds the answer is later than this clock expected (negative: earlier); 0 if both can be
    /// right.
    pub fn learn(&self, asked: Instant, answered: Timestamp) -> i64 {
        let arrived = Instant::now();
        let answer = bounds(self.0.origin, asked, arrived, answered);
        let mut followed = self.0.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let (bounds, since) = *followed;
        if bounds.gives_way_to(answer, arrived.saturating_duration_since(since)) {
            *followed = (answer, arrived);
            self.0.earliest.store(answer.earliest, Ordering::Relaxed);
            self.0.latest.store(answer.latest, Ordering::Relaxed);
        }
        if bounds.agree(answer) { 0 } else { answer.earliest.saturating_sub(bounds.earliest) }
    }
}

/// Returns the bounds at `origin` that follow from an answer.
fn bounds(origin: Instant, asked: Instant, arrived: Instant, answered: Timestamp) -> Bounds {
    let since_origin = |instant: Instant| instant.saturating_duration_since(origin);
    Bounds {
        earliest: answered.minus(since_origin(arrived)).0,
        latest: answered.minus(since_origin(asked)).0,
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
        assert_eq!(clock.latest(), Timestamp::from_micros(50));
    }

    /// The backend reads its clock 0, 10 or 20 ms after the request, and the answer arrives after 20 ms.
    #[tokio::test(start_paused = true)]
    async fn the_backends_time_is_within_the_bounds_wherever_in_the_round_trip_it_was_read() {
        for read_after in [0, 10, 20] {
            let asked = Instant::now();
            tokio::time::advance(Duration::from_millis(20)).await;
            let clock = Clock::learned(asked, Timestamp::from_micros(5_000_000));
            let truth = Timestamp::from_micros(5_000_000 + (20 - read_after) * 1000);
            assert!(clock.now() <= truth && truth <= clock.latest(), "read after {read_after} ms");
            assert_eq!(clock.latest().since(clock.now()), Duration::from_millis(20));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_round_trip_does_not_replace_a_short_one_unless_that_is_old_or_time_has_jumped() {
        let exact = Clock::starting_at(Timestamp::from_micros(0));
        let clock = Clock::starting_at(exact.now());
        let slow_answer = async |error: Duration| {
            let asked = Instant::now();
            tokio::time::advance(Duration::from_millis(30)).await;
            clock.learn(asked, exact.now().minus(Duration::from_millis(10)).plus(error));
        };
        slow_answer(Duration::ZERO).await;
        assert_eq!(clock.now(), exact.now());
        tokio::time::advance(EXACT_FOR).await;
        slow_answer(Duration::ZERO).await;
        assert_eq!(clock.latest().since(clock.now()), Duration::from_millis(30));
        clock.learn(Instant::now(), exact.now());
        assert_eq!(clock.now(), exact.now());
        slow_answer(Duration::from_secs(60)).await;
        assert!(clock.now() > exact.now().plus(Duration::from_secs(59)));
    }
}
