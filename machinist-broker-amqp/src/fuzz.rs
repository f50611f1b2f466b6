//! Property of the ladder for any delay: the body of a fuzz target, and a model of the broker's topic exchanges.

use std::time::Duration;

use machinist_adapter::id::QueueName;

use crate::ladder::{
    DELAY_UNIT, DelayRoute, MAX_DIGIT, MAX_UNITS, hold_millis, pattern, pattern_due, queue_of,
};

/// Checks a delay in nanoseconds (eight bytes) and a queue's name (the rest): the routing key holds the message for no less
/// than the delay, hardly more, and brings it to that queue and no other.
pub fn routing_key(data: &[u8]) {
    let (nanos, name) = data.split_at(data.len().min(8));
    let delay = nanos.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let name = String::from_utf8_lossy(name);
    // Any text may be read as a routing key.
    if let Some(queue) = queue_of(&name) {
        assert!(name.ends_with(queue) && !queue.is_empty());
    }
    let delay = Duration::from_nanos(delay).min(DELAY_UNIT * MAX_UNITS);
    let Some(route) = DelayRoute::for_delay(delay) else { return };
    if name.is_empty() {
        return;
    }
    let held = hold_time(route, &name);
    assert!(held >= delay, "{held:?} is shorter than {delay:?}");
    assert!(held < delay + DELAY_UNIT, "{held:?} is much longer than {delay:?}");
    let key = route.routing_key(&name);
    assert_eq!(queue_of(&key), Some(&*name));
    // No queue has a word in its name that matches any word in a binding.
    let other: String = name.chars().skip(1).collect();
    if QueueName::parse(&other).is_ok() {
        assert!(!routes(&pattern_due(&other), &key), "{other} receives a message for {name}");
    }
}

/// Matches a routing key as a topic exchange does.
fn matches(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern.split_first(), key.split_first()) {
        (None, None) => true,
        (Some((&"#", rest)), _) => (0..=key.len()).any(|skip| matches(rest, &key[skip..])),
        (Some((&"*", rest)), Some((_, key))) => matches(rest, key),
        (Some((word, rest)), Some((first, key))) => word == first && matches(rest, key),
        _ => false,
    }
}

fn routes(pattern: &str, key: &str) -> bool {
    matches(&pattern.split('.').collect::<Vec<_>>(), &key.split('.').collect::<Vec<_>>())
}

/// Sends a message down the ladder as the broker does, and adds up the times for which it is held.
fn hold_time(route: DelayRoute, queue: &str) -> Duration {
    let key = route.routing_key(queue);
    let mut held = 0;
    for level in (0..=route.top_level()).rev() {
        let taken = (0..=MAX_DIGIT).filter(|digit| routes(&pattern(level, *digit), &key)).collect::<Vec<_>>();
        let [digit] = taken[..] else { panic!("level {level} of {key} must either hold or pass: {taken:?}") };
        held += hold_millis(level, digit).unsigned_abs();
    }
    assert!(routes(&pattern_due(queue), &key));
    Duration::from_millis(held)
}

#[cfg(test)]
mod tests {
    use machinist_conformance::any_bytes;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn routing_keys() {
        any_bytes("routing_key", super::routing_key);
    }

    proptest! {
        #[test]
        fn longer_delays_get_the_whole_ladder(seconds in 4_294_968u64..1 << 28, nanos in 0u32..1_000_000_000) {
            let held = hold_time(DelayRoute::for_delay(Duration::new(seconds, nanos)).unwrap(), "q");
            prop_assert_eq!(held, DELAY_UNIT * MAX_UNITS);
        }

        #[test]
        fn only_the_named_queue_receives(units in 1u32..MAX_UNITS, a in "[a-z.]{1,8}", b in "[a-z.]{1,8}") {
            let key = DelayRoute::for_delay(DELAY_UNIT * units).unwrap().routing_key(&b);
            prop_assert_eq!(routes(&pattern_due(&a), &key), a == b);
        }
    }
}
