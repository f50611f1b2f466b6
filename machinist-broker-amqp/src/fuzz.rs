//! What must hold of any delay: the body of a fuzz target, and what the ladder's tests share with it.

use std::time::Duration;

use machinist_core::id::QueueName;

use crate::ladder::{
    DELAY_UNIT, DelayRoute, MAX_DIGIT, MAX_UNITS, hold_millis, pattern, pattern_due, queue_of,
};

/// A delay in nanoseconds (eight bytes) and a queue's name (the rest): the routing key holds the message for no less than
/// the delay, hardly more, and brings it to that queue and no other.
pub fn routing_key(data: &[u8]) {
    let (nanos, name) = data.split_at(data.len().min(8));
    let delay = nanos.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let name = String::from_utf8_lossy(name);
    // Any text may be taken for a key.
    if let Some(queue) = queue_of(&name) {
        assert!(name.ends_with(queue) && !queue.is_empty());
    }
    let delay = Duration::from_nanos(delay).min(DELAY_UNIT * MAX_UNITS);
    let (Some(found), false) = (DelayRoute::for_delay(delay), name.is_empty()) else { return };
    let held = ride(found, &name);
    assert!(held >= delay, "{held:?} is shorter than {delay:?}");
    assert!(held < delay + DELAY_UNIT, "{held:?} is much longer than {delay:?}");
    let key = found.key(&name);
    assert_eq!(queue_of(&key), Some(&*name));
    // No queue is called after what exchanges match any word by.
    let other: String = name.chars().skip(1).collect();
    if QueueName::parse(&other).is_ok() {
        assert!(!routes(&pattern_due(&other), &key), "{other} receives what is for {name}");
    }
}

/// What a topic exchange does.
fn matches(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern.split_first(), key.split_first()) {
        (None, None) => true,
        (Some((&"#", rest)), _) => (0..=key.len()).any(|skip| matches(rest, &key[skip..])),
        (Some((&"*", rest)), Some((_, key))) => matches(rest, key),
        (Some((word, rest)), Some((first, key))) => word == first && matches(rest, key),
        _ => false,
    }
}

pub(crate) fn routes(pattern: &str, key: &str) -> bool {
    matches(&pattern.split('.').collect::<Vec<_>>(), &key.split('.').collect::<Vec<_>>())
}

/// Rides the ladder as the broker does and adds up where the message was held.
pub(crate) fn ride(ride: DelayRoute, queue: &str) -> Duration {
    let key = ride.key(queue);
    let mut held = 0;
    for level in (0..=ride.highest()).rev() {
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

    #[test]
    fn routing_keys() {
        any_bytes("routing_key", super::routing_key);
    }
}
