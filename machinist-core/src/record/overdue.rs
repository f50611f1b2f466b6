//! Delayed attempts whose message the broker has lost.
//!
//! A delayed message waits in queues of the broker for as long as its task. Those queues can be deleted or purged, expire
//! by a policy, or be lost together with their virtual host. The record of a delayed task then still says what was to run
//! and when, and holds the message: it is published again. The attempt keeps its number, so a message that was only late
//! finds the attempt started or ended.

use std::time::Duration;

use super::{
    facts::{Counters, Facts, Retried, name},
    fold::{Attempts, parked},
    revoke::next_attempt,
};
use crate::clock::Timestamp;

/// Time after the due time of an attempt from which its message counts as lost, if no worker has seen it.
pub(crate) const OVERDUE_AFTER: Duration = Duration::from_secs(60);

/// Minimum time by which the messages that workers take from a queue have to be later than an overdue attempt, before
/// the message of that attempt counts as lost although the queue holds others. A queue keeps the order of its messages
/// only roughly.
const OVERTAKEN_BY: Duration = Duration::from_secs(10 * 60);

/// Minimum wait before a retry whose message is kept in the record. The message of a shorter wait is rarely lost, and
/// keeping it costs every retry.
pub(crate) const KEPT_FROM: Duration = Duration::from_secs(60);

/// An attempt that waits for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaitingAttempt {
    pub(crate) attempt: u32,
    pub(crate) due: Timestamp,
    /// Counters and fencing token with which the attempt is published; `None` for the first attempt.
    pub(crate) retried: Option<(Counters, u64)>,
}

/// Returns the attempt for which a delayed task waits; `None` if the task has ended, was revoked, runs, or is not delayed.
pub(crate) fn waiting_attempt(facts: &Facts) -> Option<WaitingAttempt> {
    if facts.has(name::END) || facts.has(name::REVOKED) {
        return None;
    }
    let next = next_attempt(facts).ok()?;
    let retried = match next.attempt {
        1 => None,
        attempt => {
            let retried = facts.read::<Retried>(&name::retried(attempt - 1))?;
            Some((retried.counters, retried.origin.token))
        }
    };
    Some(WaitingAttempt { attempt: next.attempt, due: next.due?, retried })
}

/// Returns the attempt whose message counts as lost at `now`: it is long overdue, and no worker has seen it.
pub(crate) fn overdue_attempt(facts: &Facts, now: Timestamp) -> Option<WaitingAttempt> {
    let waiting = waiting_attempt(facts)?;
    let attempt = waiting.attempt;
    let attempts = Attempts::of(facts);
    let seen = facts.has(&name::received(attempt))
        || attempts.newest_start(attempt).is_some()
        || attempts.newest_guard(attempt) > 0
        || parked(facts).is_some_and(|parked| parked.attempt == attempt);
    (!seen && now.since(waiting.due) >= OVERDUE_AFTER).then_some(waiting)
}

/// Returns `true` if workers take messages from a queue that are much later than an attempt that was due at this time.
/// The message of that attempt was there before them, so it is there no more. `taken` is the latest time from which a
/// message that they took could have run.
pub(crate) fn is_overtaken(due: Timestamp, taken: Option<Timestamp>) -> bool {
    taken.is_some_and(|taken| taken.since(due) >= OVERTAKEN_BY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::RunId,
        record::{FailureKind, facts::RunOrigin, json},
    };

    const DUE: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn later(seconds: u64) -> Timestamp {
        DUE.plus(Duration::from_secs(seconds))
    }

    fn delayed() -> Facts {
        let mut facts = Facts::new();
        facts.put(name::SENT, json(&DUE.minus(Duration::from_secs(60))));
        facts.put(name::ETA, json(&DUE));
        facts
    }

    fn retrying() -> (Facts, Counters) {
        let counters = Counters { retries: 1, ..Counters::default() };
        let retried = Retried {
            origin: RunOrigin { attempt: 1, start: 1, token: 7, run: RunId::fresh(), worker: "w".into() },
            at: DUE.minus(Duration::from_secs(300)),
            due: DUE,
            counters,
            kind: FailureKind::Error,
            error: "no".into(),
            log: String::new(),
        };
        let mut facts = delayed();
        facts.put(name::retried(1), json(&retried));
        (facts, counters)
    }

    #[test]
    fn an_attempt_that_nobody_has_seen_is_overdue_a_minute_after_its_time() {
        let expected = WaitingAttempt { attempt: 1, due: DUE, retried: None };
        assert_eq!(waiting_attempt(&delayed()), Some(expected));
        assert_eq!(overdue_attempt(&delayed(), later(59)), None);
        assert_eq!(overdue_attempt(&delayed(), later(60)), Some(expected));
    }

    #[test]
    fn an_attempt_that_was_seen_is_the_brokers_to_deliver() {
        for seen in
            [name::received(1), name::guard(1, 1), name::start(1, 1), name::END.into(), name::REVOKED.into()]
        {
            let mut facts = delayed();
            facts.put(seen.clone(), "{}");
            assert_eq!(overdue_attempt(&facts, later(3600)), None, "{seen}");
        }
    }

    #[test]
    fn an_attempt_is_overtaken_by_messages_that_are_ten_minutes_later() {
        assert!(!is_overtaken(DUE, None) && !is_overtaken(later(3600), Some(DUE)));
        assert!(!is_overtaken(DUE, Some(later(599))) && is_overtaken(DUE, Some(later(600))));
    }

    #[test]
    fn a_retry_is_published_with_the_counters_and_the_token_of_its_outcome() {
        let (facts, counters) = retrying();
        let expected = WaitingAttempt { attempt: 2, due: DUE, retried: Some((counters, 7)) };
        assert_eq!(overdue_attempt(&facts, later(60)), Some(expected));
        let mut seen = facts.clone();
        seen.put(name::received(2), "{}");
        assert_eq!(overdue_attempt(&seen, later(60)), None);
        let mut first_only = facts;
        first_only.put(name::received(1), "{}");
        assert_eq!(overdue_attempt(&first_only, later(60)), Some(expected));
    }
}
