//! Revocation of a task: end it, or ask its run to end.
//!
//! If nobody runs the newest attempt, the commit that records the revocation also ends the task, and any message of it
//! that is still on its way finds it ended. If somebody runs it, only that run can say how it ended, so the run is
//! asked.

use std::time::Duration;

use super::{
    facts::{End, ErrorText, Facts, Failure, Retried, Revocation, Start, json, name},
    fold::{Attempts, TaskState},
    kind::FailureKind,
    retention::{UNFINISHED_TTL, retention},
    verdict::failure_without_run,
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{RecordId, RecordKind, SessionId, TaskId},
};

/// Decision about a revocation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RevokeDecision {
    /// The task is over.
    Ended(TaskState),
    /// Nobody runs the task: this commit ends it. If the commit is refused, read the record again.
    EndNow(Commit),
    /// A run holds the task: this commit asks it to end, and its worker learns of it sooner if its session is woken. If
    /// the commit is refused, read the record again.
    AskRun(Commit, SessionId),
}

/// Way in which a revoked run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RevokeMode {
    /// The run is told to end, and has some seconds to do so by itself.
    Cancel,
    /// The run is told to end and cut off, as at its hard timeout.
    Terminate,
}

/// Decides how to revoke a task. An empty record means only that nobody has started the task.
pub(crate) fn decide_revoke(
    id: &TaskId,
    facts: &Facts,
    mode: RevokeMode,
    now: Timestamp,
    ttl: Duration,
) -> RevokeDecision {
    if facts.has(name::END) {
        return RevokeDecision::Ended(super::fold::state(facts, &Attempts::of(facts)));
    }
    let revocation = json(&Revocation { at: now });
    let revoked = (name::REVOKED.into(), revocation.clone());
    match next_attempt(facts) {
        Ok(NextAttempt { attempt, due }) => {
            let kept_for = retention(ttl, due, now);
            let error = ErrorText::from("revoked");
            let mut commit = failure_without_run(
                id,
                facts,
                attempt,
                Failure::new(FailureKind::Revoked, error),
                now,
                kept_for,
            );
            commit.facts.insert(0, revoked);
            // A fact that was there at reading is not a reason to refuse. This only happens at the largest attempt
            // number, which only a foreign writer can reach; otherwise the commit would be refused and repeated
            // forever.
            commit.unless.retain(|name| !facts.has(name));
            RevokeDecision::EndNow(commit)
        }
        Err((attempt, start)) => {
            let mut commit = Commit::new(id.clone());
            // If the run has requested another run meanwhile, the next attempt must be ended instead of asking this
            // run.
            commit.unless = vec![name::END.into(), name::retried(attempt)];
            commit.facts = vec![revoked];
            if mode == RevokeMode::Terminate {
                commit.facts.push((name::TERMINATED.into(), revocation));
            }
            commit.expiry = Expiry::Keep;
            commit.wake = true;
            RevokeDecision::AskRun(commit, start.session)
        }
    }
}

/// Returns the fact with the message of a task that was ended without a run, and the newest generation of its copies, if the
/// record keeps the message: the copy in the broker may come late, because the task is delayed, waits for others or is parked.
/// What follows the task in a workflow waits for a copy. `None` too if somebody has run the task, or has followed it up.
pub(crate) fn late_message(facts: &Facts) -> Option<(&'static str, u32)> {
    let ran = facts.read::<End>(name::END).is_some_and(|end| end.origin.is_some());
    if ran || facts.has(name::FOLLOWED) {
        return None;
    }
    let kept = [name::MESSAGE, name::PARKED_MESSAGE].into_iter().find(|fact| facts.has(fact))?;
    let attempts = Attempts::of(facts);
    Some((kept, attempts.newest_guard(attempts.newest().max(1))))
}

/// Returns the record of the mark that a workflow was revoked. It holds nothing else: every start of a task of the workflow
/// may read it.
pub(crate) fn revoked_root(root: &TaskId) -> RecordId {
    RecordId::new(RecordKind::Revocation, root.as_str())
}

/// Creates the commit that revokes a workflow.
pub(crate) fn revoke_root(root: &TaskId, now: Timestamp, ttl: Duration) -> Commit {
    let mut commit = Commit::new(revoked_root(root));
    commit.facts = vec![(name::REVOKED.into(), json(&Revocation { at: now }))];
    commit.expiry = Expiry::After(retention(ttl, None, now).max(UNFINISHED_TTL));
    commit
}

/// Newest attempt of a task, if nobody runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextAttempt {
    pub(crate) attempt: u32,
    /// Time at which its message is expected, if it is delayed.
    pub(crate) due: Option<Timestamp>,
}

/// Returns the attempt that runs next, or the number and the start of the newest attempt if somebody holds it.
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
    let next = NextAttempt { attempt: newest, due };
    let Some(start) = attempts.newest_start(newest) else { return Ok(next) };
    match facts.read::<Start>(&name::start(newest, start)) {
        Some(holder) if !facts.has(&name::returned(newest, start)) => Err((newest, holder)),
        _ => Ok(next),
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

    fn request(attempt: u32) -> StartRequest {
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
            gathered: None,
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
            Some(FollowUp::Ended { spawns: false }),
            "a revoked task is not a dead letter"
        );
        assert_eq!(
            decide_revoke(&id(), facts, RevokeMode::Cancel, NOW, TTL),
            RevokeDecision::Ended(TaskState::Failure)
        );
        commit
    }

    #[test]
    fn a_waiting_task_ends_and_its_record_outlives_its_message() {
        let mut facts = Facts::new();
        facts.put(name::ETA, json(&NOW.plus(TTL * 100)));
        let commit = revoke_now(&mut facts);
        assert_eq!(commit.expiry, Expiry::After(TTL * 101));
        assert!(!request(1).first(NOW).0.apply(&mut facts));
    }

    #[test]
    fn a_task_that_waits_for_its_next_run_is_ended() {
        let mut facts = Facts::new();
        let (start, claim) = request(1).first(NOW);
        start.apply(&mut facts);
        let retry = Verdict::Retry {
            due: NOW.plus(TTL * 9),
            counters: Default::default(),
            kind: FailureKind::Error,
            error: ErrorText::from("no"),
        };
        assert!(outcome_commit(&claim, &retry, String::new(), NOW, TTL).apply(&mut facts));
        let commit = revoke_now(&mut facts);
        assert_eq!(commit.expiry, Expiry::After(TTL * 10));
        assert!(!request(2).first(NOW).0.apply(&mut facts));
    }

    #[test]
    fn a_run_is_asked_and_does_not_run_again() {
        let mut facts = Facts::new();
        let (start, claim) = request(1).first(NOW);
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
    fn the_message_of_a_task_that_waits_comes_late_until_somebody_has_followed_it_up() {
        let mut facts = Facts::new();
        assert_eq!(late_message(&facts), None, "its only copy is in its queue");
        facts.put(name::PARKED_MESSAGE, "{}");
        facts.put(name::guard(1, 3), "1");
        assert_eq!(late_message(&facts), Some((name::PARKED_MESSAGE, 3)));
        facts.put(name::MESSAGE, "{}");
        revoke_now(&mut facts);
        assert_eq!(late_message(&facts), Some((name::MESSAGE, 3)), "whoever asks again sends it again");
        facts.put(name::FOLLOWED, "1");
        assert_eq!(late_message(&facts), None);
    }

    #[test]
    fn the_message_of_a_run_that_was_revoked_is_held_by_its_worker() {
        let mut facts = Facts::new();
        facts.put(name::MESSAGE, "{}");
        let (start, claim) = request(1).first(NOW);
        start.apply(&mut facts);
        let revoked = Verdict::Failure { kind: FailureKind::Revoked, error: ErrorText::from("revoked") };
        assert!(outcome_commit(&claim, &revoked, String::new(), NOW, TTL).apply(&mut facts));
        assert_eq!(late_message(&facts), None);
    }

    #[test]
    fn a_start_between_read_and_commit_refuses_the_commit() {
        let mut facts = Facts::new();
        let stale = Facts::new();
        request(1).first(NOW).0.apply(&mut facts);
        let RevokeDecision::EndNow(commit) = decide_revoke(&id(), &stale, RevokeMode::Cancel, NOW, TTL)
        else {
            panic!("nobody ran it when it was read")
        };
        assert!(!commit.apply(&mut facts));
    }

    #[test]
    fn a_run_that_was_handed_back_holds_nothing() {
        let mut facts = Facts::new();
        let (start, claim) = request(1).first(NOW);
        start.apply(&mut facts);
        claim.hand_back().apply(&mut facts);
        revoke_now(&mut facts);
    }

    #[test]
    fn a_run_that_was_told_can_still_be_cut_off() {
        let mut facts = Facts::new();
        request(1).first(NOW).0.apply(&mut facts);
        for (mode, cut_off) in
            [(RevokeMode::Cancel, false), (RevokeMode::Terminate, true), (RevokeMode::Cancel, true)]
        {
            let RevokeDecision::AskRun(commit, _) = decide_revoke(&id(), &facts, mode, NOW, TTL) else {
                panic!("it runs")
            };
            assert!(commit.apply(&mut facts));
            assert_eq!((facts.has(name::REVOKED), facts.has(name::TERMINATED)), (true, cut_off));
        }
    }
}
