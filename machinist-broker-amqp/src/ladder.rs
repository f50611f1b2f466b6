//! The arithmetic of delays: a fixed ladder of queues, whatever the number of due times.
//!
//! A queue per due time (as in Go machinery) costs a queue per task; one queue with a time to live per message
//! delivers late, because only the head of a queue expires. So a delay is written as a hexadecimal number of
//! [`DELAY_UNIT`]s, and each level of the ladder has one queue for each digit but 0: that for digit d of level k holds a
//! message for d × 16 ms × 16^k. A message climbs down from its highest digit to its lowest; topic exchanges read the
//! digits out of its routing key and pass it by the levels whose digit is 0.
//!
//! Binary digits would need a quarter of the queues, and twice as many hops, each of which costs the broker as much as a
//! publish. Worse, half of what is sent within a moment would leave one queue within a moment.
//!
//! Nothing here touches the network, and nothing rounds a delay down.

use std::time::Duration;

/// The shortest delay that the ladder tells from none, and the grain of all others.
pub(crate) const DELAY_UNIT: Duration = Duration::from_millis(16);

/// The bits of a digit.
const DIGIT_BITS: u8 = 4;

/// How many levels there are, one per digit.
pub(crate) const LADDER_LEVELS: u8 = 28 / DIGIT_BITS;

/// How many digits there are other than 0, and so how many queues a level has.
pub(crate) const MAX_DIGIT: u8 = (1 << DIGIT_BITS) - 1;

/// The longest ride, in units: every digit is the highest.
pub(crate) const MAX_UNITS: u32 = (1 << (LADDER_LEVELS * DIGIT_BITS)) - 1;

/// A delay on the ladder: how many units, 1 up to [`MAX_UNITS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DelayRoute(u32);

impl DelayRoute {
    /// The ride that is not shorter than `delay`; `None` for no delay at all.
    ///
    /// What is longer than the whole ladder gets the whole ladder: such a message comes out early, and whoever
    /// reads its ETA sends it on another ride.
    pub(crate) fn for_delay(delay: Duration) -> Option<Self> {
        let units = delay.as_nanos().div_ceil(DELAY_UNIT.as_nanos());
        match u32::try_from(units) {
            Ok(0) => None,
            Ok(units) => Some(Self(units.min(MAX_UNITS))),
            Err(_) => Some(Self(MAX_UNITS)),
        }
    }

    /// The level where the ride begins: the highest whose digit is not 0.
    pub(crate) fn highest(self) -> u8 {
        // A ride has at least one unit, so the logarithm exists; and it is below 28.
        u8::try_from(self.0.ilog2()).map_or(LADDER_LEVELS - 1, |bit| bit / DIGIT_BITS)
    }

    /// The routing key: every digit from the highest level to the lowest, then the queue.
    pub(crate) fn key(self, queue: &str) -> String {
        let mut key = String::with_capacity(usize::from(LADDER_LEVELS) * 2 + queue.len());
        for level in (0..LADDER_LEVELS).rev() {
            key.push(word(self.0 >> (level * DIGIT_BITS) & u32::from(MAX_DIGIT)));
            key.push('.');
        }
        key.push_str(queue);
        key
    }
}

/// A digit as it is written.
fn word(digit: u32) -> char {
    char::from_digit(digit, u32::from(MAX_DIGIT) + 1).unwrap_or('0')
}

/// What stands behind the digits of a routing key.
pub(crate) fn queue_of(key: &str) -> Option<&str> {
    let (digits, queue) = key.split_at_checked(usize::from(LADDER_LEVELS) * 2)?;
    let are_digits = digits.as_bytes().chunks(2).all(|pair| match pair {
        [digit, b'.'] => digit.is_ascii_digit() || (b'a'..=b'f').contains(digit),
        _ => false,
    });
    (are_digits && !queue.is_empty()).then_some(queue)
}

/// How long a level holds a message for a digit, in milliseconds.
pub(crate) fn hold_millis(level: u8, digit: u8) -> i64 {
    i64::from(digit) * (16 << (level * DIGIT_BITS))
}

/// The pattern by which a level's exchange hands a message to the level's queue for a digit; for 0, straight to the next
/// lower level.
pub(crate) fn pattern(level: u8, digit: u8) -> String {
    format!("{}{}.#", "*.".repeat(usize::from(LADDER_LEVELS - 1 - level)), word(u32::from(digit)))
}

/// The pattern by which a queue receives what has come down the ladder for it.
///
/// As many `*` as there are digits, and not `#`: otherwise queue `b` would also receive what is due for `a.b`.
pub(crate) fn pattern_due(queue: &str) -> String {
    format!("{}{queue}", "*.".repeat(usize::from(LADDER_LEVELS)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{ride, routes};

    proptest! {
        #[test]
        fn longer_delays_get_the_whole_ladder(seconds in 4_294_968u64..1 << 28, nanos in 0u32..1_000_000_000) {
            let held = ride(DelayRoute::for_delay(Duration::new(seconds, nanos)).unwrap(), "q");
            prop_assert_eq!(held, DELAY_UNIT * MAX_UNITS);
        }

        #[test]
        fn only_the_named_queue_receives(units in 1u32..MAX_UNITS, a in "[a-z.]{1,8}", b in "[a-z.]{1,8}") {
            prop_assert_eq!(routes(&pattern_due(&a), &DelayRoute(units).key(&b)), a == b);
        }
    }

    #[test]
    fn the_edges_of_the_ladder() {
        assert_eq!(DelayRoute::for_delay(Duration::ZERO), None);
        assert_eq!(DelayRoute::for_delay(Duration::from_nanos(1)), Some(DelayRoute(1)));
        assert_eq!(DelayRoute::for_delay(DELAY_UNIT), Some(DelayRoute(1)));
        assert_eq!(DelayRoute::for_delay(DELAY_UNIT + Duration::from_nanos(1)), Some(DelayRoute(2)));
        assert_eq!(DelayRoute::for_delay(Duration::MAX), Some(DelayRoute((1 << 28) - 1)));
        assert_eq!([1, 15, 16, MAX_UNITS].map(|units| DelayRoute(units).highest()), [0, 0, 1, 6]);
        assert_eq!(hold_millis(6, 15), 4_026_531_840, "below the 49.7 days at which the broker's timers end");
    }

    #[test]
    fn keys_and_patterns_as_they_stand_on_the_broker() {
        assert_eq!(DelayRoute(0x2a7).key("mail"), "0.0.0.0.2.a.7.mail");
        assert_eq!(pattern(6, 1), "1.#");
        assert_eq!(pattern(4, 0), "*.*.0.#");
        assert_eq!(pattern(0, 15), "*.*.*.*.*.*.f.#");
        assert_eq!(pattern_due("mail"), "*.*.*.*.*.*.*.mail");
    }
}
