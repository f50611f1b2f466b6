//! The arithmetic of delays: a fixed ladder of queues, whatever the number of due times.
//!
//! A queue per due time (as in Go machinery) costs a queue per task; one queue with a time to live per message
//! delivers late, because only the head of a queue expires. So a delay is written as a binary number of
//! [`UNIT`]s, and each level of the ladder is one queue that holds a message for one digit: level k for
//! 16 ms × 2^k. A message climbs down from its highest digit to its lowest; topic exchanges read the digits out
//! of its routing key and pass it by the levels whose digit is 0.
//!
//! Nothing here touches the network, and nothing rounds a delay down.

use std::time::Duration;

/// The shortest delay that the ladder tells from none, and the grain of all others.
pub(crate) const UNIT: Duration = Duration::from_millis(16);

/// How many levels there are. The highest holds a message for 24.9 days, all together for 49.7.
pub(crate) const LEVELS: u8 = 28;

/// A delay on the ladder: how many units, 1 up to 2^28 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ride(u32);

impl Ride {
    /// The ride that is not shorter than `delay`; `None` for no delay at all.
    ///
    /// What is longer than the whole ladder gets the whole ladder: such a message comes out early, and whoever
    /// reads its ETA sends it on another ride.
    pub(crate) fn for_delay(delay: Duration) -> Option<Self> {
        let longest = (1 << LEVELS) - 1;
        let units = delay.as_nanos().div_ceil(UNIT.as_nanos());
        match u32::try_from(units) {
            Ok(0) => None,
            Ok(units) => Some(Self(units.min(longest))),
            Err(_) => Some(Self(longest)),
        }
    }

    /// The level where the ride begins: the highest whose digit is 1.
    pub(crate) fn highest(self) -> u8 {
        // A ride has at least one unit, so the logarithm exists; and it is below 28.
        u8::try_from(self.0.ilog2()).unwrap_or(LEVELS - 1)
    }

    /// The routing key: every digit from the highest level to the lowest, then the queue.
    pub(crate) fn key(self, queue: &str) -> String {
        let mut key = String::with_capacity(usize::from(LEVELS) * 2 + queue.len());
        for level in (0..LEVELS).rev() {
            key.push(if self.0 >> level & 1 == 1 { '1' } else { '0' });
            key.push('.');
        }
        key.push_str(queue);
        key
    }
}

/// What stands behind the digits of a routing key.
pub(crate) fn queue_of(key: &str) -> Option<&str> {
    let (digits, queue) = key.split_at_checked(usize::from(LEVELS) * 2)?;
    let are_digits = digits.as_bytes().chunks(2).all(|pair| matches!(pair, b"0." | b"1."));
    (are_digits && !queue.is_empty()).then_some(queue)
}

/// How long a level holds a message, in milliseconds.
pub(crate) fn hold_millis(level: u8) -> i64 {
    16 << level
}

/// The pattern by which a level's exchange hands a message to the level's queue.
pub(crate) fn pattern_hold(level: u8) -> String {
    digit_pattern(level, '1')
}

/// The pattern by which a level's exchange hands a message straight to the next lower one.
pub(crate) fn pattern_pass(level: u8) -> String {
    digit_pattern(level, '0')
}

/// The pattern by which a queue receives what has come down the ladder for it.
///
/// As many `*` as there are digits, and not `#`: otherwise queue `b` would also receive what is due for `a.b`.
pub(crate) fn pattern_due(queue: &str) -> String {
    format!("{}{queue}", "*.".repeat(usize::from(LEVELS)))
}

fn digit_pattern(level: u8, digit: char) -> String {
    format!("{}{digit}.#", "*.".repeat(usize::from(LEVELS - 1 - level)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{ride, routes};

    proptest! {
        #[test]
        fn longer_delays_get_the_whole_ladder(seconds in 4_294_968u64..1 << 28, nanos in 0u32..1_000_000_000) {
            let held = ride(Ride::for_delay(Duration::new(seconds, nanos)).unwrap(), "q");
            prop_assert_eq!(held, UNIT * ((1 << LEVELS) - 1));
        }

        #[test]
        fn only_the_named_queue_receives(units in 1u32..1 << LEVELS, a in "[a-z.]{1,8}", b in "[a-z.]{1,8}") {
            prop_assert_eq!(routes(&pattern_due(&a), &Ride(units).key(&b)), a == b);
        }
    }

    #[test]
    fn the_edges_of_the_ladder() {
        assert_eq!(Ride::for_delay(Duration::ZERO), None);
        assert_eq!(Ride::for_delay(Duration::from_nanos(1)), Some(Ride(1)));
        assert_eq!(Ride::for_delay(UNIT), Some(Ride(1)));
        assert_eq!(Ride::for_delay(UNIT + Duration::from_nanos(1)), Some(Ride(2)));
        assert_eq!(Ride::for_delay(Duration::MAX), Some(Ride((1 << 28) - 1)));
        assert_eq!(Ride(1).highest(), 0);
        assert_eq!(Ride((1 << 28) - 1).highest(), 27);
        assert_eq!(hold_millis(27), 2_147_483_648, "below the 49.7 days at which the broker's timers end");
    }

    #[test]
    fn keys_and_patterns_as_they_stand_on_the_broker() {
        assert_eq!(Ride(5).key("mail"), "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1.mail");
        assert_eq!(pattern_hold(27), "1.#");
        assert_eq!(pattern_pass(25), "*.*.0.#");
        assert_eq!(pattern_due("mail"), "*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.mail");
    }
}
