//! What somebody who wants a task not to run can do about it: end it, or ask for its end.
//!
//! Where nobody runs the newest attempt the task ends in the same commit that says so, and whatever message of it
//! is still on its way finds it ended. Where somebody does, only that run can say how it ended: it is asked.

use std::time::Duration;

use super::{
    facts::{ErrorText, Facts, Retried, Revocation, Start, json, name},
    fold::{Attempts, TaskState},
    kind::FailureKind,
    verdict::{MIN_RESULTS_TTL, failure_without_run},
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{SessionId, TaskId},
};

/// What a record allows to whoever wants the task not to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RevokeDecision {
    /// It is over.
    Ended(TaskState),
    /// Nobody runs it: this commit ends it. Refused: read again.
    EndNow(Commit),
    /// A run holds it: this commit asks for its end, and its worker knows sooner if the session is rung for.
    /// Refused: read again.
    AskRun(Commit, SessionId),
}

/// How a run that is asked for its end gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RevokeMode {
    /// It is told, and has some seconds to end by itself.
    Cancel,
    /// It is told and cut off, as at its hard limit.
    Terminate,
}

/// Decides how a task is revoked. Nothing is assumed about an empty record but that nobody has started it.
pub(crate) fn decide_revoke(
    id: &TaskId,
    facts: &Facts,
    manner: RevokeMode,
    now: Timestamp,
    ttl: Duration,
) -> RevokeDecision {
    if facts.has(name::END) {
        return RevokeDecision::Ended(super::fold::state(facts, &Attempts::of(facts)));
    }
    let said = json(&Revocation { at: now });
    let mark = (name::REVOKED.into(), said.clone());
    match next_attempt(facts) {
        Ok(NextAttempt { attempt, due }) => {
            let kept = due.map_or(ttl, |due| ttl.max(due.since(now) + MIN_RESULTS_TTL));
            let error = ErrorText::from("revoked");
            let mut commit = failure_without_run(id, facts, attempt, FailureKind::Revoked, error, now, kept);
            commit.facts.insert(0, mark);
            // What was there when it was read is no news. That happens at the end of the numbers only, which somebody
            // else has written; the commit would be refused and made again for ever.
            commit.unless.retain(|name| !facts.has(name));
            RevokeDecision::EndNow(commit)
        }
        Err((attempt, start)) => {
            let mut commit = Commit::new(id.clone());
            // A run that has asked for another one meanwhile is not to be asked, but the next one ended.
            commit.unless = vec![name::END.into(), name::retried(attempt)];
            commit.facts = vec![mark];
            if manner == RevokeMode::Terminate {
                commit.facts.push((name::TERMINATED.into(), said));
            }
            commit.expiry = Expiry::Keep;
            commit.wake = true;
            RevokeDecision::AskRun(commit, start.session)
        }
    }
}

/// A task whose newest attempt nobody runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextAttempt {
    pub(crate) attempt: u32,
    /// For when its message is expected, if it is delayed.
    pub(crate) due: Option<Timestamp>,
}

/// The attempt that is to run next, or who holds the newest.
pub(crate) fn next_attempt(facts: &Facts) -> Result<NextAttempt, (u32, Start)> {
    let attempts = Attempts::of(facts);
    let newest = attempts.newest().max(1);
    if facts.has(&name::retried(newest)) {
        let due = facts.read::<Retried>(&name::retried(newest)).map(|retried| retried.due);
        return Ok(NextAttempt { attempt: newest.saturating_add(1), due });
    }
    let due = match newest {
        1 => facts.read(name::ETA),
        _ => facts.read::<Retried>(&name::retried(newest - 1)).map(|retried| retried.due),
    };
    let free = NextAttempt { attempt: newest, due };
    let Some(start) = attempts.newest_start(newest) else { return Ok(free) };
    match facts.read::<Start>(&name::start(newest, start)) {
        Some(claim) if !facts.has(&name::returned(newest, start)) => Err((newest, claim)),
        _ => Ok(free),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{
        FollowUp, StartRequest, outcome_commit, recorded_follow_up, state_of, verdict::Verdict,
    };

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);
    const TTL: Duration = Duration::from_secs(3600);

    fn id() -> TaskId {
        "t".try_into().unwrap()
    }

    fn asking(attempt: u32) -> StartRequest {
        StartRequest {
            id: id(),
            attempt,
            generation: 0,
            run: "a".into(),
            session: "s1".into(),
            worker: "w".into(),
            received_at: NOW,
            token: 0,
            alone: false,
        }
    }

    fn revoke_now(facts: &mut Facts) -> Commit {
        let RevokeDecision::EndNow(commit) = decide_revoke(&id(), facts, RevokeMode::Cancel, NOW, TTL) else {
            panic!("nobody runs it")
        };
        assert!(commit.apply(facts));
        assert_eq!(state_of(facts), TaskState::Failure);
        assert_eq!(
            recorded_follow_up(facts, 1),
            Some(FollowUp::Nothing),
            "unwanted tasks are no dead letters"
        );
        assert_eq!(
            decide_revoke(&id(), facts, RevokeMode::Cancel, NOW, TTL),
            RevokeDecision::Ended(TaskState::Failure)
        );
        commit
    }

    #[test]
    fn a_task_that_waits_ends_and_stays_known_until_its_message_has_come() {
        let mut facts = Facts::new();
        facts.put(name::ETA, json(&NOW.plus(TTL * 100)));
        let commit = revoke_now(&mut facts);
        assert_eq!(commit.expiry, Expiry::After(TTL * 100 + MIN_RESULTS_TTL));
        assert!(!asking(1).first(NOW).0.apply(&mut facts));
    }

    #[test]
    fn a_task_that_waits_for_its_next_run_ends() {
        let mut facts = Facts::new();
        let (start, claim) = asking(1).first(NOW);
        start.apply(&mut facts);
        let retry = Verdict::Retry {
            due: NOW.plus(TTL * 9),
            counters: Default::default(),
            kind: FailureKind::Error,
            error: ErrorText::from("no"),
        };
        assert!(outcome_commit(&claim, &retry, String::new(), NOW, TTL).apply(&mut facts));
        let commit = revoke_now(&mut facts);
        assert_eq!(commit.expiry, Expiry::After(TTL * 9 + MIN_RESULTS_TTL));
        assert!(!asking(2).first(NOW).0.apply(&mut facts));
    }

    #[test]
    fn a_run_is_asked_and_does_not_run_again() {
        let mut facts = Facts::new();
        let (start, claim) = asking(1).first(NOW);
        start.apply(&mut facts);
        let RevokeDecision::AskRun(commit, session) =
            decide_revoke(&id(), &facts, RevokeMode::Cancel, NOW, TTL)
        else {
            panic!("it runs")
        };
        assert_eq!(session, "s1".into());
        assert!(commit.apply(&mut facts));
        assert_eq!(state_of(&facts), TaskState::Started);
        let retry = Verdict::Retry {
            due: NOW,
            counters: Default::default(),
            kind: FailureKind::Error,
            error: ErrorText::from("no"),
        };
        assert!(!outcome_commit(&claim, &retry, String::new(), NOW, TTL).apply(&mut facts));
        let done = Verdict::Success(Default::default());
        assert!(
            outcome_commit(&claim, &done, String::new(), NOW, TTL).apply(&mut facts),
            "the effect did happen"
        );
    }

    #[test]
    fn a_start_between_reading_and_committing_is_seen() {
        let (mut facts, stale) = (Facts::new(), Facts::new());
        asking(1).first(NOW).0.apply(&mut facts);
        let RevokeDecision::EndNow(commit) = decide_revoke(&id(), &stale, RevokeMode::Cancel, NOW, TTL)
        else {
            panic!("as it was read")
        };
        assert!(!commit.apply(&mut facts));
    }

    #[test]
    fn a_run_that_was_handed_back_is_nobodys() {
        let mut facts = Facts::new();
        let (start, claim) = asking(1).first(NOW);
        start.apply(&mut facts);
        claim.hand_back().apply(&mut facts);
        revoke_now(&mut facts);
    }

    #[test]
    fn a_run_that_was_told_can_still_be_cut_off() {
        let mut facts = Facts::new();
        asking(1).first(NOW).0.apply(&mut facts);
        for (manner, cut_off) in
            [(RevokeMode::Cancel, false), (RevokeMode::Terminate, true), (RevokeMode::Cancel, true)]
        {
            let RevokeDecision::AskRun(commit, _) = decide_revoke(&id(), &facts, manner, NOW, TTL) else {
                panic!("it runs")
            };
            assert!(commit.apply(&mut facts));
            assert_eq!((facts.has(name::REVOKED), facts.has(name::TERMINATED)), (true, cut_off));
        }
    }
}
