//! Age of the oldest message of a queue, which brokers do not tell.
//!
//! It follows from two instants, which workers keep in a record of the queue: the time from which the message could have run
//! that they took last, and the last time at which the queue was seen to be empty.

use std::time::Duration;

use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{QueueName, RecordId, RecordKind},
    record::json,
};

/// Time for which the record of a queue is kept.
const AGE_TTL: Duration = Duration::from_secs(24 * 3600);

/// Fact with the time from which the message could have run that was taken last.
pub(crate) const TAKEN: &str = "taken";
/// Fact with the last time at which the queue was seen to be empty.
pub(crate) const EMPTY: &str = "empty";

/// Returns the time for which the oldest ready message waits at most; `None` if nothing is known about the queue.
pub(crate) fn oldest_age(
    ready: u64,
    taken: Option<Timestamp>,
    empty: Option<Timestamp>,
    now: Timestamp,
) -> Option<Duration> {
    if ready == 0 {
        return Some(Duration::ZERO);
    }
    taken.max(empty).map(|since| now.since(since))
}

/// Returns the record of a queue's instants.
pub(crate) fn age_record(queue: &QueueName) -> RecordId {
    RecordId::new(RecordKind::Control, &format!("queue-age {queue}"))
}

/// Creates the commit that replaces an instant of a queue. A smaller one of another worker may replace it for a few seconds.
pub(crate) fn put_instant(queue: &QueueName, name: &'static str, at: Timestamp) -> Commit {
    let mut commit = Commit::new(age_record(queue));
    commit.drop = vec![name.into()];
    commit.facts = vec![(name.into(), json(&at))];
    commit.expiry = Expiry::After(AGE_TTL);
    commit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_message_is_not_older_than_what_is_known() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let age = |ready, taken: Option<i64>, empty: Option<i64>| {
            oldest_age(ready, taken.map(at), empty.map(at), at(100)).map(|age| age.as_secs())
        };
        assert_eq!(age(0, Some(10), Some(20)), Some(0));
        assert_eq!(age(1, Some(70), Some(20)), Some(30));
        assert_eq!(age(1, Some(10), Some(20)), Some(80));
        assert_eq!(age(1, None, Some(99)), Some(1));
        assert_eq!(age(1, Some(200), None), Some(0), "a clock that has moved back");
        assert_eq!(age(1, None, None), None);
    }
}
