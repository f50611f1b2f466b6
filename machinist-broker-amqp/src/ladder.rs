//! The arithmetic of delays: a fixed ladder of queues for any number of due times.
//!
//! A queue per due time (as in Go machinery) costs a queue per task. One queue with a time to live per message delivers
//! late, because only the head of a queue expires. So a delay is written as a hexadecimal number of [`DELAY_UNIT`]s, and
//! each level of the ladder has one queue for each digit except 0: the queue for digit d of level k holds a message for
//! d × 16 ms × 16^k. A message goes down from its highest digit to its lowest; topic exchanges read the digits in its
//! routing key and let it skip the levels whose digit is 0.
//!
//! Binary digits would need a quarter of the queues, and twice as many hops, each of which costs the broker as much as a
//! publish. Worse, half of the messages that are sent within a moment would leave one queue within a moment.
//!
//! Nothing here touches the network, and nothing rounds a delay down.

use std::time::Duration;

/// Minimum delay of the ladder, and the unit of all others.
pub(crate) const DELAY_UNIT: Duration = Duration::from_millis(16);

/// Number of bits of a digit.
const DIGIT_BITS: u8 = 4;

/// Number of levels of the ladder, one per digit.
pub(crate) const LADDER_LEVELS: u8 = 28 / DIGIT_BITS;

/// Maximum digit. A level has a queue for each digit from 1 to this one.
pub(crate) const MAX_DIGIT: u8 = (1 << DIGIT_BITS) - 1;

/// Maximum delay of the ladder, in units: every digit is the maximum.
pub(crate) const MAX_UNITS: u32 = (1 << (LADDER_LEVELS * DIGIT_BITS)) - 1;

/// Maximum delay of the ladder: 49.7 days.
pub(crate) const MAX_DELAY: Duration = DELAY_UNIT.saturating_mul(MAX_UNITS);

/// Route of a message down the ladder, which is its delay in units: 1 up to [`MAX_UNITS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DelayRoute(u32);

impl DelayRoute {
    /// Returns the route that is not shorter than `delay`; `None` for no delay at all.
    ///
    /// A delay longer than the whole ladder gets the whole ladder: such a message comes out early, and the worker that
    /// reads its ETA sends it down the ladder again.
    pub(crate) fn for_delay(delay: Duration) -> Option<Self> {
        let units = delay.as_nanos().div_ceil(DELAY_UNIT.as_nanos());
        match u32::try_from(units) {
            Ok(0) => None,
            Ok(units) => Some(Self(units.min(MAX_UNITS))),
            Err(_) => Some(Self(MAX_UNITS)),
        }
    }

    /// Level at which the route begins: the highest whose digit is not 0.
    pub(crate) fn top_level(self) -> u8 {
        // A route has at least one unit, so the logarithm exists, and it is below 28.
        u8::try_from(self.0.ilog2()).map_or(LADDER_LEVELS - 1, |bit| bit / DIGIT_BITS)
    }

    /// Routing key: every digit from the highest level to the lowest, then the queue.
    pub(crate) fn routing_key(self, queue: &str) -> String {
        let mut key = String::with_capacity(usize::from(LADDER_LEVELS) * 2 + queue.len());
        for level in (0..LADDER_LEVELS).rev() {
            key.push(digit_word(self.0 >> (level * DIGIT_BITS) & u32::from(MAX_DIGIT)));
            key.push('.');
        }
        key.push_str(queue);
        key
    }
}

/// Word of a routing key for a digit.
fn digit_word(digit: u32) -> char {
    char::from_digit(digit, u32::from(MAX_DIGIT) + 1).unwrap_or('0')
}

/// Queue in a routing key, after the digits.
pub(crate) fn queue_of(key: &str) -> Option<&str> {
    let (digits, queue) = key.split_at_checked(usize::from(LADDER_LEVELS) * 2)?;
    let are_digits = digits.as_bytes().chunks(2).all(|pair| match pair {
        [digit, b'.'] => digit.is_ascii_digit() || (b'a'..=b'f').contains(digit),
        _ => false,
    });
    (are_digits && !queue.is_empty()).then_some(queue)
}

/// Time for which a level holds a message for a digit, in milliseconds.
pub(crate) fn hold_millis(level: u8, digit: u8) -> i64 {
    i64::from(digit) * (16 << (level * DIGIT_BITS))
}

/// Binding pattern by which a level's exchange hands a message to the level's queue for a digit; for 0, directly to the
/// next lower level.
pub(crate) fn pattern(level: u8, digit: u8) -> String {
    format!("{}{}.#", "*.".repeat(usize::from(LADDER_LEVELS - 1 - level)), digit_word(u32::from(digit)))
}

/// Binding pattern by which a queue receives the messages that came down the ladder for it.
///
/// The pattern has as many `*` as there are digits, and no `#`: otherwise queue `b` would also receive messages for
/// `a.b`.
pub(crate) fn pattern_due(queue: &str) -> String {
    format!("{}{queue}", "*.".repeat(usize::from(LADDER_LEVELS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_the_ladder() {
        assert_eq!(DelayRoute::for_delay(Duration::ZERO), None);
        assert_eq!(DelayRoute::for_delay(Duration::from_nanos(1)), Some(DelayRoute(1)));
        assert_eq!(DelayRoute::for_delay(DELAY_UNIT), Some(DelayRoute(1)));
        assert_eq!(DelayRoute::for_delay(DELAY_UNIT + Duration::from_nanos(1)), Some(DelayRoute(2)));
        assert_eq!(DelayRoute::for_delay(Duration::MAX), Some(DelayRoute((1 << 28) - 1)));
        assert_eq!([1, 15, 16, MAX_UNITS].map(|units| DelayRoute(units).top_level()), [0, 0, 1, 6]);
        assert_eq!(hold_millis(6, 15), 4_026_531_840, "below the 49.7 days at which the broker's timers end");
    }

    #[test]
    fn routing_keys_and_patterns_on_the_broker() {
        assert_eq!(DelayRoute(0x2a7).routing_key("mail"), "0.0.0.0.2.a.7.mail");
        assert_eq!(pattern(6, 1), "1.#");
        assert_eq!(pattern(4, 0), "*.*.0.#");
        assert_eq!(pattern(0, 15), "*.*.*.*.*.*.f.#");
        assert_eq!(pattern_due("mail"), "*.*.*.*.*.*.*.mail");
    }
}
