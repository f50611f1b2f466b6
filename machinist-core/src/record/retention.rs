//! The time that a record is kept.

use std::time::Duration;

use crate::clock::Timestamp;

/// Time for which an unfinished record is kept beyond the instant for which it waits.
pub(crate) const UNFINISHED_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Minimum time for which a record is kept after its end: guards and duplicates may still arrive.
pub(crate) const MIN_RESULTS_TTL: Duration = Duration::from_secs(15 * 60);

/// Longest delay that a task may ask for, and that a record is kept for: ten years. A date beyond it is a
/// mistake, or an attempt to keep a record without a bound.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(3653 * 24 * 3600);

/// Returns the time for which a record is kept after its end, if results are kept for `ttl`. A task that ends before it was
/// due has a message that arrives later, and the freshness window of that message counts from then: so does this time.
pub(crate) fn retention(ttl: Duration, due: Option<Timestamp>, now: Timestamp) -> Duration {
    let early = due.map_or(Duration::ZERO, |due| due.since(now));
    ttl.max(MIN_RESULTS_TTL) + early.min(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_delayed_task_is_kept_from_its_due_time_on_and_within_bounds() {
        let (now, day) = (Timestamp::from_micros(0), Duration::from_secs(24 * 3600));
        assert_eq!(retention(day, None, now), day);
        assert_eq!(retention(Duration::ZERO, None, now), MIN_RESULTS_TTL);
        assert_eq!(retention(day, Some(now.plus(30 * day)), now), 31 * day);
        assert_eq!(retention(day, Some(Timestamp::from_micros(i64::MAX)), now), MAX_DELAY + day);
    }
}
