//! Parked tasks: what their records say, and what a delivery that may not start does.
//!
//! A parked task is a guard in the broker: a copy of the message that comes back later. Everything else, the message in the
//! record and the entry in an index, only makes it fast to release. So nothing is lost if any of that is missing.

use bytes::Bytes;

use super::{
    facts::{Facts, Parked, ReservedStart, ReservedStarts, json, name},
    fold::{Attempts, parked},
    follow_up::{FollowUp, follow_up_of_copy, recorded_follow_up},
    retention::UNFINISHED_TTL,
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::TaskId,
};

/// Decision about a delivery whose start is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ParkDecision {
    /// The attempt is over: do the recorded follow-up, then acknowledge.
    Over(FollowUp),
    /// A newer copy of the message is in the broker: this one is not needed.
    NewerGuard,
    /// The attempt has a start, or the task was revoked: what to do follows from the request of a start.
    Proceed,
    /// Park it. The earlier parking for the same reason, if there is one, says since when it waits.
    Park(Option<Parked>),
}

/// Decides about a delivery of this attempt and guard generation whose start is refused. `may_run` is `true` if the newest
/// start may still run somewhere.
pub(crate) fn decide_parking(facts: &Facts, attempt: u32, generation: u32, may_run: bool) -> ParkDecision {
    let guarded = Attempts::of(facts).newest_guard(attempt) > generation;
    if let Some(follow_up) = follow_up_of_copy(recorded_follow_up(facts, attempt), guarded) {
        return ParkDecision::Over(follow_up);
    }
    if guarded {
        return ParkDecision::NewerGuard;
    }
    if may_run || facts.has(name::REVOKED) {
        return ParkDecision::Proceed;
    }
    ParkDecision::Park(parked(facts).filter(|parked| parked.attempt == attempt))
}

/// Creates the commit that parks a task after its guard was confirmed. `message` is that guard, if it is small enough.
pub(crate) fn park(id: &TaskId, parked: &Parked, message: Option<Bytes>, now: Timestamp) -> Commit {
    let mut commit = Commit::new(id);
    commit.unless = vec![name::END.into()];
    commit.drop = vec![name::PARKED.into(), name::PARKED_MESSAGE.into()];
    commit.facts = vec![
        (name::guard(parked.attempt, parked.generation), "1".into()),
        (name::PARKED.into(), json(parked)),
    ];
    commit.facts.extend(message.map(|message| (name::PARKED_MESSAGE.into(), message)));
    // A task may be parked for longer than an unfinished record is kept: each time counts again.
    commit.expiry = Expiry::After(parked.until.since(now) + UNFINISHED_TTL);
    commit
}

/// Creates the commit that ends the parking of a task, after the guard of this generation was published for an immediate
/// start: the guard that comes back later is not needed.
pub(crate) fn unpark(id: &TaskId, attempt: u32, generation: u32) -> Commit {
    let mut commit = Commit::new(id);
    commit.unless = vec![name::END.into()];
    commit.drop = vec![name::PARKED.into(), name::PARKED_MESSAGE.into()];
    commit.facts = vec![(name::guard(attempt, generation), "1".into())];
    commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
    commit
}

/// Creates the commit that keeps the reserved starts of a task that waits for them in a process.
pub(crate) fn keep_reserved(id: &TaskId, reserved: &ReservedStarts) -> Commit {
    let mut commit = Commit::new(id);
    commit.unless = vec![name::END.into()];
    commit.drop = vec![name::RESERVED.into()];
    commit.facts = vec![(name::RESERVED.into(), json(reserved))];
    commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
    commit
}

/// Returns the starts that are reserved for a copy of this attempt and generation: those of the newest copy up to this one. A
/// start of the attempt has used them.
pub(crate) fn reserved_starts(facts: &Facts, attempt: u32, generation: u32) -> Vec<ReservedStart> {
    if Attempts::of(facts).newest_start(attempt).is_some() {
        return Vec::new();
    }
    let parked: Option<Parked> = facts.read(name::PARKED);
    let parked = parked.map(|parked| (parked.attempt, parked.generation, parked.reserved));
    let waiting: Option<ReservedStarts> = facts.read(name::RESERVED);
    // A copy waits after it has come back: of two of one generation, this one is newer.
    let waiting = waiting.map(|waiting| (waiting.attempt, waiting.generation, waiting.starts));
    let of_copies = [parked, waiting].into_iter().flatten();
    let of_this = of_copies.filter(|(of, copy, _)| *of == attempt && *copy <= generation);
    of_this.max_by_key(|(_, copy, _)| *copy).map(|(.., starts)| starts).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn one(generation: u32) -> Parked {
        Parked {
            attempt: 1,
            generation,
            reason: "disabled:a".to_owned(),
            since: NOW,
            until: NOW,
            reserved: Vec::new(),
        }
    }

    fn id() -> TaskId {
        TaskId::parse("t").unwrap()
    }

    fn start(at: Timestamp) -> Vec<ReservedStart> {
        vec![ReservedStart { bucket: "rate/task:t".to_owned(), at, shift: 0, step: Some(1) }]
    }

    fn waits(facts: &mut Facts, generation: u32, starts: Vec<ReservedStart>) {
        let waiting = ReservedStarts { attempt: 1, generation, starts };
        assert!(keep_reserved(&id(), &waiting).apply(facts));
    }

    #[test]
    fn a_copy_has_the_starts_of_the_newest_copy_before_it_until_one_is_used() {
        let (mut facts, later) = (Facts::new(), |seconds| start(NOW.plus(Duration::from_secs(seconds))));
        assert_eq!(reserved_starts(&facts, 1, 0), []);
        waits(&mut facts, 0, later(1));
        assert_eq!(reserved_starts(&facts, 1, 0), later(1), "a delivery that comes again");
        let parked = Parked { reserved: later(2), ..one(1) };
        assert!(park(&id(), &parked, None, NOW).apply(&mut facts));
        assert_eq!(reserved_starts(&facts, 1, 1), later(2));
        waits(&mut facts, 1, later(3));
        assert_eq!(reserved_starts(&facts, 1, 1), later(3));
        assert_eq!(reserved_starts(&facts, 1, 2), later(3), "a guard that waited for something else");
        assert_eq!(reserved_starts(&facts, 1, 0), [], "an older copy has none of them");
        assert_eq!(reserved_starts(&facts, 2, 1), [], "nor has the next attempt");
        facts.put(name::start(1, 1), "{}");
        assert_eq!(reserved_starts(&facts, 1, 1), []);
        let mut facts = Facts::new();
        facts.put(name::END, "{}");
        let waiting = ReservedStarts { attempt: 1, generation: 0, starts: later(1) };
        assert!(
            !keep_reserved(&id(), &waiting).apply(&mut facts),
            "the record of a task that has ended stays"
        );
    }

    #[test]
    fn only_the_newest_copy_is_parked_again() {
        let mut facts = Facts::new();
        assert_eq!(decide_parking(&facts, 1, 0, false), ParkDecision::Park(None));
        assert!(park(&id(), &one(1), Some("{}".into()), NOW).apply(&mut facts));
        assert_eq!(decide_parking(&facts, 1, 0, false), ParkDecision::NewerGuard);
        assert_eq!(decide_parking(&facts, 1, 1, false), ParkDecision::Park(Some(one(1))));
        assert!(park(&id(), &one(2), None, NOW).apply(&mut facts));
        assert_eq!(parked(&facts), Some(one(2)));
        assert!(!facts.has(name::PARKED_MESSAGE), "the message of an older guard");
        assert!(unpark(&id(), 1, 3).apply(&mut facts));
        assert_eq!((parked(&facts), decide_parking(&facts, 1, 2, false)), (None, ParkDecision::NewerGuard));
        assert_eq!(decide_parking(&facts, 1, 3, false), ParkDecision::Park(None));
    }

    #[test]
    fn an_older_copy_of_a_task_that_is_done_learns_so() {
        let mut facts = Facts::new();
        assert!(park(&id(), &one(1), None, NOW).apply(&mut facts));
        facts.put(name::END, r#"{"at":1,"state":"SUCCESS"}"#);
        assert_eq!(decide_parking(&facts, 1, 0, false), ParkDecision::NewerGuard);
        facts.put(name::FOLLOWED, "1");
        assert_eq!(decide_parking(&facts, 1, 0, false), ParkDecision::Over(FollowUp::Nothing));
    }

    #[test]
    fn starts_that_older_versions_have_reserved_are_read() {
        let text = r#"{"attempt":1,"generation":1,"reason":"rate:task:a","since":1,"until":2,"reserved":[{"bucket":"rate/task:a","at":2}]}"#;
        let mut facts = Facts::new();
        facts.put(name::guard(1, 1), "1");
        facts.put(name::PARKED, text);
        let reserved = parked(&facts).unwrap().reserved;
        assert_eq!(
            (reserved[0].at, reserved[0].shift, reserved[0].step),
            (Timestamp::from_micros(2), 0, None)
        );
    }

    #[test]
    fn what_runs_was_revoked_or_is_over_is_not_parked() {
        let mut facts = Facts::new();
        assert_eq!(decide_parking(&facts, 1, 0, true), ParkDecision::Proceed);
        facts.put(name::REVOKED, "{}");
        assert_eq!(decide_parking(&facts, 1, 0, false), ParkDecision::Proceed);
        facts.put(name::END, r#"{"at":1,"state":"SUCCESS","results":[]}"#);
        assert_eq!(
            decide_parking(&facts, 1, 0, false),
            ParkDecision::Over(FollowUp::Ended { spawns: false })
        );
        assert!(!park(&id(), &one(1), None, NOW).apply(&mut facts), "the record of a task that has ended");
    }
}
