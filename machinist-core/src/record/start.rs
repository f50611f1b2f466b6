//! Start of a delivery: it starts its attempt, waits, takes over, or finds that everything is done.
//!
//! A worker commits the first start of an attempt at once ([`StartRequest::first`]). This is right for nearly every
//! delivery and costs one round trip. If the commit is refused, the whole record is returned and [`decide_start`]
//! interprets it.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    claim::{Claim, fencing_token, known_starts},
    facts::{FactName, Facts, Start, json, name},
    fold::Attempts,
    follow_up::{FollowUp, follow_up_of_copy, recorded_follow_up},
    retention::UNFINISHED_TTL,
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{RunId, SessionId, TaskId},
};

/// Request of a delivery to start its attempt.
#[derive(Debug, Clone)]
pub(crate) struct StartRequest {
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    /// Guard generation of the message.
    pub(crate) generation: u32,
    pub(crate) run: RunId,
    pub(crate) session: SessionId,
    pub(crate) worker: Arc<str>,
    pub(crate) received_at: Timestamp,
    /// Greatest fencing token that the message knows.
    pub(crate) token: u64,
    /// `true` if the run is alone in its process, if the start is granted.
    pub(crate) alone: bool,
    /// Fact that binds every start to the same arguments, if a join has given them.
    pub(crate) gathered: Option<(FactName, Bytes)>,
}

/// Decision about a delivery.
#[derive(Debug)]
pub(crate) enum StartDecision {
    /// The start was already written; only the reply was lost.
    AlreadyStarted(Claim),
    /// The attempt is over. Do the recorded follow-up, then acknowledge.
    Over(FollowUp),
    /// A newer guard of this very attempt is in the broker: this copy is not needed.
    NewerGuard,
    /// The task was started before with other arguments from its join: it must not start with these.
    OtherArguments,
    /// The task was revoked: end it.
    Revoked,
    /// A live session holds the attempt.
    Busy(SessionId),
    /// Nobody holds the attempt any more: commit this start to claim it.
    TakeOver(Box<(Commit, Claim)>),
}

impl StartRequest {
    /// Creates the commit of the first start of the attempt, and the claim if it is granted.
    pub(crate) fn first(&self, now: Timestamp) -> (Commit, Claim) {
        let claim = self.claim(1, self.token, Vec::new(), now);
        let mut commit = Commit::new(self.id.clone());
        commit.unless = vec![
            name::END.into(),
            name::REVOKED.into(),
            name::retried(self.attempt),
            name::start(self.attempt, 1),
        ];
        commit.facts = claim.starts.to_vec();
        commit.equal_or_absent.extend(self.gathered.clone());
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        (commit, claim)
    }

    /// Creates the commit of the next start after those in the record, and the claim if it is granted.
    fn next(&self, facts: &Facts, newest: u32, now: Timestamp) -> (Commit, Claim) {
        let known_starts = known_starts(facts, self.attempt);
        let greatest_token = known_starts
            .iter()
            .filter_map(|(_, fact)| serde_json::from_slice::<Start>(fact).ok())
            .map(|start| start.token)
            .fold(self.token, u64::max);
        let claim = self.claim(newest.saturating_add(1), greatest_token, known_starts.clone(), now);
        let mut commit = Commit::new(self.id.clone());
        commit.unless = vec![
            name::END.into(),
            name::REVOKED.into(),
            name::retried(self.attempt),
            name::start_after(self.attempt, newest),
        ];
        commit.equal_or_absent = known_starts;
        commit.equal_or_absent.extend(self.gathered.clone());
        commit.facts = claim.starts[claim.starts.len() - 1..].to_vec();
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        (commit, claim)
    }

    fn claim(&self, start: u32, greatest_token: u64, known: Vec<(FactName, Bytes)>, now: Timestamp) -> Claim {
        let fact = Start {
            run: self.run.clone(),
            session: self.session.clone(),
            worker: self.worker.clone(),
            token: fencing_token(greatest_token, now),
            received_at: self.received_at,
            started_at: now,
            alone: self.alone,
        };
        let own = (name::start(self.attempt, start), json(&fact));
        Claim {
            id: self.id.clone(),
            attempt: self.attempt,
            start,
            run: self.run.clone(),
            session: self.session.clone(),
            token: fact.token,
            worker: self.worker.clone(),
            received_at: self.received_at,
            starts: known.into_iter().chain([own]).collect(),
        }
    }
}

/// Decides about a delivery whose first start was refused. `gone` returns `true` if a session is known to be gone, or
/// if a start of this very process is known not to run.
pub(crate) fn decide_start(
    facts: &Facts,
    request: &StartRequest,
    gone: impl Fn(&SessionId, &RunId) -> bool,
    now: Timestamp,
) -> StartDecision {
    let attempts = Attempts::of(facts);
    let newest = attempts.newest_start(request.attempt);
    let holder = newest.and_then(|n| facts.read::<Start>(&name::start(request.attempt, n)).map(|s| (n, s)));
    let follow_up = recorded_follow_up(facts, request.attempt);
    // Before the guards: a start that is written must run, or everybody waits for the session of this worker.
    if let (None, Some((newest, holder))) = (&follow_up, &holder)
        && holder.run == request.run
    {
        let mut claim = request.claim(*newest, 0, Vec::new(), now);
        claim.session = holder.session.clone();
        claim.token = holder.token;
        claim.starts = known_starts(facts, request.attempt).into();
        return StartDecision::AlreadyStarted(claim);
    }
    let guarded = attempts.newest_guard(request.attempt) > request.generation;
    if let Some(follow_up) = follow_up_of_copy(follow_up, guarded) {
        return StartDecision::Over(follow_up);
    }
    if guarded {
        return StartDecision::NewerGuard;
    }
    let other_arguments =
        |(fact, value): &(FactName, Bytes)| facts.get(fact).is_some_and(|known| known != value);
    if request.gathered.as_ref().is_some_and(other_arguments) {
        return StartDecision::OtherArguments;
    }
    let Some((newest, holder)) = holder else {
        return if facts.has(name::REVOKED) {
            StartDecision::Revoked
        } else {
            StartDecision::TakeOver(Box::new(request.next(facts, newest.unwrap_or(0), now)))
        };
    };
    let free = facts.has(&name::returned(request.attempt, newest)) || gone(&holder.session, &holder.run);
    match (free, facts.has(name::REVOKED)) {
        (false, _) => StartDecision::Busy(holder.session),
        (true, true) => StartDecision::Revoked,
        (true, false) => StartDecision::TakeOver(Box::new(request.next(facts, newest, now))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ClaimStatus, RenewalAction, TaskState, state_of};

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn request(run: &str, session: &str) -> StartRequest {
        StartRequest {
            id: "t".try_into().unwrap(),
            attempt: 1,
            generation: 0,
            run: run.into(),
            session: session.into(),
            worker: "w".into(),
            received_at: NOW,
            token: 0,
            alone: false,
            gathered: None,
        }
    }

    fn started() -> (Facts, Claim) {
        let mut facts = Facts::new();
        let (commit, claim) = request("a", "s1").first(NOW);
        assert!(commit.apply(&mut facts));
        (facts, claim)
    }

    #[test]
    fn the_first_start_is_granted_once() {
        let (mut facts, _) = started();
        assert_eq!(state_of(&facts), TaskState::Started);
        assert!(!request("b", "s2").first(NOW).0.apply(&mut facts));
    }

    #[test]
    fn a_start_with_a_lost_reply_is_recognized() {
        let (facts, claim) = started();
        let StartDecision::AlreadyStarted(again) =
            decide_start(&facts, &request("a", "s1"), |_, _| false, NOW)
        else {
            panic!("its own start")
        };
        assert_eq!((again.token, &again.starts), (claim.token, &claim.starts));
    }

    #[test]
    fn a_live_session_makes_others_wait() {
        let (facts, _) = started();
        assert!(
            matches!(decide_start(&facts, &request("b", "s2"), |_, _| false, NOW), StartDecision::Busy(s) if s == "s1".into())
        );
    }

    #[test]
    fn a_dead_session_is_taken_over_with_a_higher_token() {
        let (mut facts, first) = started();
        let StartDecision::TakeOver(next) = decide_start(&facts, &request("b", "s2"), |_, _| true, NOW)
        else {
            panic!("take over")
        };
        let (commit, claim) = *next;
        assert!(commit.apply(&mut facts));
        assert_eq!(claim.start, 2);
        assert!(claim.token > first.token);
        assert_eq!(first.standing(&facts), ClaimStatus::TakenOver);
        assert_eq!(claim.standing(&facts), ClaimStatus::Current);
    }

    #[test]
    fn a_start_that_was_handed_back_is_free_at_once() {
        let (mut facts, first) = started();
        first.hand_back().apply(&mut facts);
        assert_eq!(state_of(&facts), TaskState::Pending);
        assert!(matches!(
            decide_start(&facts, &request("b", "s2"), |_, _| false, NOW),
            StartDecision::TakeOver(_)
        ));
    }

    #[test]
    fn an_older_guard_is_not_needed() {
        let (mut facts, _) = started();
        facts.put(name::guard(1, 1), "1");
        assert!(matches!(
            decide_start(&facts, &request("b", "s2"), |_, _| true, NOW),
            StartDecision::NewerGuard
        ));
        let newer = StartRequest { generation: 1, ..request("b", "s2") };
        assert!(matches!(decide_start(&facts, &newer, |_, _| true, NOW), StartDecision::TakeOver(_)));
    }

    #[test]
    fn an_older_copy_of_a_task_that_is_done_learns_so() {
        let (mut facts, _) = started();
        facts.put(name::guard(1, 1), "1");
        facts.put(name::END, r#"{"at":1,"state":"SUCCESS"}"#);
        let decision = |facts: &Facts| decide_start(facts, &request("b", "s2"), |_, _| true, NOW);
        assert!(matches!(decision(&facts), StartDecision::NewerGuard), "the guard does what follows");
        facts.put(name::FOLLOWED, "1");
        assert!(matches!(decision(&facts), StartDecision::Over(FollowUp::Nothing)));
    }

    #[test]
    fn a_revoked_task_never_starts() {
        let mut facts = Facts::new();
        facts.put(name::REVOKED, "{}");
        assert!(!request("a", "s1").first(NOW).0.apply(&mut facts));
        assert!(matches!(
            decide_start(&facts, &request("a", "s1"), |_, _| false, NOW),
            StartDecision::Revoked
        ));
    }

    #[test]
    fn after_lost_data_two_runs_cannot_both_hold_the_attempt() {
        let (_, old) = started();
        let mut lost = Facts::new();
        let (commit, new) = request("b", "s2").first(NOW);
        assert!(commit.apply(&mut lost), "a missing record lets the task run");
        assert!(
            !old.adopt(&"s3".into(), NOW).0.apply(&mut lost),
            "the record contradicts the starts that it carries"
        );
        assert_eq!(old.standing(&lost), ClaimStatus::TakenOver);
        assert_eq!(new.standing(&lost), ClaimStatus::Current);
        let mut empty = Facts::new();
        assert_eq!(old.standing(&empty), ClaimStatus::Forgotten);
        assert!(old.restore().apply(&mut empty));
        assert!(!request("c", "s4").first(NOW).0.apply(&mut empty));
    }

    #[test]
    fn tokens_rise_even_if_time_does_not() {
        assert_eq!(fencing_token(0, NOW), 1_000_000);
        assert_eq!(fencing_token(5_000_000, NOW), 5_000_001);
    }

    #[test]
    fn an_own_start_runs_even_if_a_guard_was_stored_since() {
        let (mut facts, claim) = started();
        // Another delivery found it busy while the reply to this one was lost.
        facts.put(name::guard(1, 1), "1");
        let decision = decide_start(&facts, &request("a", "s1"), |_, _| false, NOW);
        assert!(matches!(decision, StartDecision::AlreadyStarted(again) if again.token == claim.token));
    }

    #[test]
    fn a_hand_back_after_lost_data_frees_no_start_of_another_run() {
        let (_, old) = started();
        let mut lost = Facts::new();
        assert!(request("b", "s2").first(NOW).0.apply(&mut lost));
        old.hand_back().apply(&mut lost);
        assert!(matches!(
            decide_start(&lost, &request("c", "s3"), |_, _| false, NOW),
            StartDecision::Busy(_)
        ));
        let mut empty = Facts::new();
        old.hand_back().apply(&mut empty);
        assert!(!request("b", "s2").first(NOW).0.apply(&mut empty), "its number is taken");
    }

    #[test]
    fn a_renewal_repeats_an_adoption_that_failed() {
        let (mut facts, claim) = started();
        assert!(matches!(claim.renewal_action(&facts, &"s1".into(), NOW), RenewalAction::Nothing));
        // The session was replaced, and the first adoption failed.
        let RenewalAction::Commit(adoption) = claim.renewal_action(&facts, &"s2".into(), NOW) else {
            panic!("adopt")
        };
        assert!(adoption.0.apply(&mut facts));
        // The adoption was written, and only the reply was lost; then the session was replaced again.
        let newer_claim = claim.newer_claim(&facts).unwrap();
        assert_eq!(newer_claim, adoption.1);
        assert!(matches!(newer_claim.renewal_action(&facts, &"s2".into(), NOW), RenewalAction::Nothing));
        let RenewalAction::Commit(again) = newer_claim.renewal_action(&facts, &"s3".into(), NOW) else {
            panic!("adopt")
        };
        assert!(again.0.apply(&mut facts));
        assert_eq!((again.1.start, again.1.session), (3, "s3".into()));
    }

    #[test]
    fn a_renewal_sees_a_new_start_of_another_run_after_lost_data() {
        let (mut facts, first) = started();
        let RenewalAction::Commit(adoption) = first.renewal_action(&facts, &"s2".into(), NOW) else {
            panic!("adopt")
        };
        assert!(adoption.0.apply(&mut facts));
        let mut lost = Facts::new();
        assert!(matches!(adoption.1.renewal_action(&lost, &"s2".into(), NOW), RenewalAction::Commit(_)));
        assert!(request("b", "s4").first(NOW).0.apply(&mut lost));
        // The record holds fewer starts than this run knows, and they belong to another run.
        assert!(matches!(adoption.1.renewal_action(&lost, &"s2".into(), NOW), RenewalAction::TakenOver));
    }
}
