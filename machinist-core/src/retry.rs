//! Retry policies, as data, and their arithmetic.
//!
//! A policy travels in the signature, so producer and worker need not agree on configuration. The arithmetic is
//! pure and saturates; chance is an argument, drawn once when the outcome is decided and then recorded.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Number of retries of a task, and the waits before them.
///
/// # Examples
/// ```
/// use machinist_core::{Backoff, RetryPolicy};
/// use std::time::Duration;
///
/// let policy = RetryPolicy::new(5).backoff(Backoff::fixed(Duration::from_millis(200)));
/// assert_eq!(policy.next_delay(0, 0.7), Some(Duration::from_millis(200)));
/// assert_eq!(policy.next_delay(5, 0.7), None);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Maximum number of retries after failures; 0 means that the first failure is final.
    pub max_retries: u32,
    /// Maximum number of postponements ([`TaskError::retry_in`](crate::TaskError::retry_in)).
    pub max_postponements: u32,
    /// Wait before the next run.
    pub backoff: Backoff,
    /// `true` if a run that reached a timeout is retried.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry_timeouts: bool,
    /// No retry begins later than this after the task was due. Without it only the number of retries counts.
    #[serde(
        rename = "retry_for_ms",
        default,
        skip_serializing_if = "Option::is_none",
        with = "optional_millis"
    )]
    pub retry_for: Option<Duration>,
}

/// The wait before the next run, as a function of the retries so far.
///
/// # Examples
/// ```
/// use machinist_core::Backoff;
/// use std::time::Duration;
///
/// let seconds = Duration::from_secs;
/// // A random share, here a half, of 1, 2, 4, 8, … seconds, at most of a minute.
/// assert_eq!(Backoff::exponential(seconds(1), seconds(60)).delay(3, 0.5), seconds(4));
/// assert_eq!(Backoff::fibonacci(seconds(1), seconds(60)).delay(4, 0.5), seconds(8));
/// assert_eq!(Backoff::list(&[seconds(1), seconds(60)]).delay(9, 0.5), seconds(60));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Backoff {
    /// A random share of base × 2^retries, at most `cap` ("full jitter": spreads a crowd that failed together).
    Exponential {
        /// The upper bound of the first wait.
        #[serde(rename = "base_ms", with = "millis")]
        base: Duration,
        /// The upper bound of every wait.
        #[serde(rename = "cap_ms", with = "millis")]
        cap: Duration,
    },
    /// `unit` times 1, 2, 3, 5, 8, …, at most `cap`: Go machinery's sequence.
    Fibonacci {
        /// The unit that is multiplied.
        #[serde(rename = "unit_ms", with = "millis")]
        unit: Duration,
        /// The upper bound of every wait.
        #[serde(rename = "cap_ms", with = "millis")]
        cap: Duration,
    },
    /// Always the same.
    Fixed {
        /// The wait.
        #[serde(rename = "wait_ms", with = "millis")]
        wait: Duration,
    },
    /// One after the other; the last one for every later retry.
    List {
        /// The waits, in milliseconds; none means at once.
        waits_ms: Vec<u64>,
    },
}

impl Backoff {
    /// Always `wait`.
    pub const fn fixed(wait: Duration) -> Self {
        Self::Fixed { wait }
    }

    /// A random share of `base` × 2^retries, at most `cap`.
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self::Exponential { base, cap }
    }

    /// `unit` times 1, 2, 3, 5, 8, …, at most `cap`.
    pub const fn fibonacci(unit: Duration, cap: Duration) -> Self {
        Self::Fibonacci { unit, cap }
    }

    /// One after the other, in whole milliseconds; the last one for every later retry.
    pub fn list(waits: &[Duration]) -> Self {
        Self::List { waits_ms: waits.iter().map(|w| whole_millis(*w)).collect() }
    }

    /// The wait before the next run, after `retries` retries; `chance` in 0 ≤ chance < 1.
    pub fn delay(&self, retries: u32, chance: f64) -> Duration {
        match self {
            Self::Exponential { base, cap } => {
                let bound = base.saturating_mul(1u32.checked_shl(retries).unwrap_or(u32::MAX)).min(*cap);
                bound.mul_f64(chance.clamp(0.0, 1.0))
            }
            Self::Fibonacci { unit, cap } => unit.saturating_mul(fibonacci(retries)).min(*cap),
            Self::Fixed { wait } => *wait,
            Self::List { waits_ms } => {
                let at = (retries as usize).min(waits_ms.len().saturating_sub(1));
                Duration::from_millis(waits_ms.get(at).copied().unwrap_or(0))
            }
        }
    }
}

impl RetryPolicy {
    /// Tries a task that failed again, up to `max_retries` times, with the default back-off.
    pub fn new(max_retries: u32) -> Self {
        Self { max_retries, ..Self::default() }
    }

    /// With another back-off.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        Self { backoff, ..self }
    }

    /// Runs that are ended by a time limit are tried again, too.
    #[must_use]
    pub fn retry_timeouts(self) -> Self {
        Self { retry_timeouts: true, ..self }
    }

    /// No retry begins later than `limit` after the task was due (its ETA, or when it was sent).
    #[must_use]
    pub fn retry_for(self, limit: Duration) -> Self {
        Self { retry_for: Some(limit), ..self }
    }

    /// Without a number of retries only the time counts.
    pub(crate) fn bound_by_time(&mut self, limit: Duration) {
        self.retry_for = Some(limit);
        if self.max_retries == 0 {
            self.max_retries = u32::MAX;
        }
    }

    /// The policy as it stands so long after the task was due.
    #[must_use]
    pub(crate) fn aged(self, age: Duration) -> Self {
        Self { retry_for: self.retry_for.map(|limit| limit.saturating_sub(age)), ..self }
    }

    /// Returns `true` if another run may begin after `delay`, with `retries` retries spent.
    pub(crate) fn grants(&self, retries: u32, delay: Duration) -> bool {
        retries < self.max_retries && self.retry_for.is_none_or(|left| !left.is_zero() && delay <= left)
    }

    /// The wait before the next run of a task that failed and was tried again `retries` times; `None` when no
    /// retry is left. `chance` in 0 ≤ chance < 1.
    pub fn next_delay(&self, retries: u32, chance: f64) -> Option<Duration> {
        let delay = self.backoff.delay(retries, chance);
        self.grants(retries, delay).then_some(delay)
    }
}

/// No retries: a task that was not written to run twice must not run twice because somebody forgot to say so.
/// Postponements are asked for by the handler itself and may be many.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 0,
            max_postponements: 1000,
            backoff: Backoff::default(),
            retry_timeouts: false,
            retry_for: None,
        }
    }
}

/// Exponential with full jitter, from one second, at most ten minutes.
impl Default for Backoff {
    fn default() -> Self {
        Self::exponential(Duration::from_secs(1), Duration::from_secs(600))
    }
}

/// 1, 2, 3, 5, 8, …; the largest number instead of an overflow.
fn fibonacci(n: u32) -> u32 {
    let mut a = 1u32;
    let mut b = 2u32;
    for _ in 0..n.min(64) {
        (a, b) = (b, a.saturating_add(b));
    }
    a
}

fn whole_millis(while_: Duration) -> u64 {
    u64::try_from(while_.as_millis()).unwrap_or(u64::MAX)
}

/// Durations as whole milliseconds on the wire.
mod millis {
    use super::{Duration, whole_millis};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(while_: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(whole_millis(*while_))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// Optional durations in the form of [`millis`].
mod optional_millis {
    use super::{Duration, whole_millis};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(while_: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        while_.map(whole_millis).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn fibonacci_is_machinerys_sequence() {
        let backoff = Backoff::fibonacci(secs(1), secs(1_000_000));
        let waits: Vec<u64> = (0..7).map(|n| backoff.delay(n, 0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 3, 5, 8, 13, 21]);
    }

    #[test]
    fn a_list_ends_with_its_last() {
        let backoff = Backoff::list(&[secs(1), secs(60)]);
        assert_eq!([0, 1, 2, 9].map(|n| backoff.delay(n, 0.5).as_secs()), [1, 60, 60, 60]);
        assert_eq!(Backoff::list(&[]).delay(3, 0.5), Duration::ZERO);
    }

    #[test]
    fn the_default_spends_no_retry() {
        assert_eq!(RetryPolicy::default().next_delay(0, 0.5), None);
    }

    #[test]
    fn time_bounds_retries() {
        let policy = RetryPolicy::new(u32::MAX).backoff(Backoff::fixed(secs(10))).retry_for(secs(60));
        assert_eq!(policy.clone().aged(secs(50)).next_delay(4, 0.0), Some(secs(10)));
        assert_eq!(policy.clone().aged(secs(51)).next_delay(4, 0.0), None);
        let at_once = policy.backoff(Backoff::fixed(secs(0)));
        assert_eq!(at_once.aged(secs(60)).next_delay(4, 0.0), None, "not for ever at once");
    }

    #[test]
    fn what_is_set_travels() {
        let policy = RetryPolicy::new(3).retry_timeouts().retry_for(secs(2));
        let text = serde_json::to_string(&policy).unwrap();
        assert!(text.ends_with(r#""retry_timeouts":true,"retry_for_ms":2000}"#), "{text}");
        assert_eq!(serde_json::from_str::<RetryPolicy>(&text).unwrap(), policy);
    }

    #[test]
    fn policies_travel_readably() {
        let text = serde_json::to_string(&RetryPolicy::new(3)).unwrap();
        assert_eq!(
            text,
            r#"{"max_retries":3,"max_postponements":1000,"backoff":{"exponential":{"base_ms":1000,"cap_ms":600000}}}"#
        );
        assert_eq!(serde_json::from_str::<RetryPolicy>(&text).unwrap(), RetryPolicy::new(3));
    }

    proptest! {
        #[test]
        fn waits_never_exceed_their_cap(retries: u32, base in 0u64..1 << 40, cap in 0u64..1 << 40, chance in 0.0..1.0) {
            let base = Duration::from_millis(base);
            let cap = Duration::from_millis(cap);
            prop_assert!(Backoff::exponential(base, cap).delay(retries, chance) <= cap);
            prop_assert!(Backoff::fibonacci(base, cap).delay(retries, chance) <= cap);
        }

        #[test]
        fn the_budget_is_spent_exactly(max in 0u32..20) {
            let policy = RetryPolicy::new(max);
            let granted = (0..100).filter(|n| policy.next_delay(*n, 0.1).is_some()).count();
            prop_assert_eq!(granted, max as usize);
        }
    }
}
