//! What a delivery may do: start its attempt, wait, take over, or find that all is done.
//!
//! A worker commits the first start of an attempt at once ([`Starting::first`]); that is right for nearly every
//! delivery and costs one round trip. Where it is refused, the whole record comes back and [`judge`] says what
//! it means.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    facts::{FactName, Facts, Start, json, name},
    fold::{Attempts, starts},
    verdict::{FollowUp, owed},
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{RunId, SessionId, TaskId},
};

/// How long a record that has not ended is kept beyond the instant for which it waits.
pub(crate) const UNENDED: Duration = Duration::from_secs(30 * 24 * 3600);

/// A delivery that asks to be started.
#[derive(Debug, Clone)]
pub(crate) struct Starting {
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    /// The guard generation of the message.
    pub(crate) generation: u32,
    pub(crate) run: RunId,
    pub(crate) session: SessionId,
    pub(crate) worker: Arc<str>,
    pub(crate) received_at: Timestamp,
    /// The greatest fencing token that the message knows of.
    pub(crate) token: u64,
    /// It runs alone in its process, if it is granted.
    pub(crate) alone: bool,
}

/// A start that this process holds: what its outcome is committed with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    pub(crate) start: u32,
    pub(crate) run: RunId,
    /// The session under which it was started: who finds it gone may take over.
    pub(crate) session: SessionId,
    pub(crate) token: u64,
    pub(crate) worker: Arc<str>,
    pub(crate) received_at: Timestamp,
    /// The starts of this attempt up to this one, as this run knows them: it carries them wherever it goes, so
    /// that after lost backend data two runs cannot both believe that they hold the attempt.
    pub(crate) starts: Vec<(FactName, Bytes)>,
}

/// What a record says to a delivery.
#[derive(Debug)]
pub(crate) enum Meaning {
    /// The start was written after all; only the reply was lost.
    Run(Held),
    /// The attempt is over. Do what it still demands, then acknowledge.
    Over(FollowUp),
    /// A newer guard of this very attempt is in the broker: this copy is not needed.
    Superseded,
    /// Somebody wants it not to run: end it.
    Revoked,
    /// A live session holds it.
    Busy(SessionId),
    /// Nobody holds it any more: commit this start, and it is ours.
    TakeOver(Box<(Commit, Held)>),
}

impl Starting {
    /// The first start of the attempt, and what is held if it is granted.
    pub(crate) fn first(&self, now: Timestamp) -> (Commit, Held) {
        let held = self.held(1, self.token, Vec::new(), now);
        let mut commit = Commit::new(self.id.clone());
        commit.unless = vec![
            name::END.into(),
            name::REVOKED.into(),
            name::retried(self.attempt),
            name::start(self.attempt, 1),
        ];
        commit.facts.clone_from(&held.starts);
        commit.expiry = Expiry::AfterUnlessSet(UNENDED);
        (commit, held)
    }

    /// The next start after those that the record holds.
    fn next(&self, facts: &Facts, newest: u32, now: Timestamp) -> (Commit, Held) {
        let known = known_starts(facts, self.attempt);
        let greatest = known
            .iter()
            .filter_map(|(_, fact)| serde_json::from_slice::<Start>(fact).ok())
            .map(|start| start.token)
            .fold(self.token, u64::max);
        let held = self.held(newest.saturating_add(1), greatest, known.clone(), now);
        let mut commit = Commit::new(self.id.clone());
        commit.unless = vec![
            name::END.into(),
            name::REVOKED.into(),
            name::retried(self.attempt),
            name::start_after(self.attempt, newest),
        ];
        commit.equal_or_absent = known;
        commit.facts = held.starts[held.starts.len() - 1..].to_vec();
        commit.expiry = Expiry::AfterUnlessSet(UNENDED);
        (commit, held)
    }

    fn held(
        &self,
        start: u32,
        greatest_token: u64,
        mut starts: Vec<(FactName, Bytes)>,
        now: Timestamp,
    ) -> Held {
        let fact = Start {
            run: self.run.clone(),
            session: self.session.clone(),
            worker: self.worker.clone(),
            token: fence(greatest_token, now),
            received_at: self.received_at,
            started_at: now,
            alone: self.alone,
        };
        starts.push((name::start(self.attempt, start), json(&fact)));
        Held {
            id: self.id.clone(),
            attempt: self.attempt,
            start,
            run: self.run.clone(),
            session: self.session.clone(),
            token: fact.token,
            worker: self.worker.clone(),
            received_at: self.received_at,
            starts,
        }
    }
}

impl Held {
    /// The commit by which a run whose session was lost takes its own task into a new session.
    pub(crate) fn adopt(&self, session: &SessionId, now: Timestamp) -> (Commit, Self) {
        let mut held = self.clone();
        held.start = self.start.saturating_add(1);
        held.session = session.clone();
        held.token = fence(self.token, now);
        let fact = Start {
            run: self.run.clone(),
            session: session.clone(),
            worker: self.worker.clone(),
            token: held.token,
            received_at: self.received_at,
            started_at: now,
            // What its first start says holds for the whole run.
            alone: false,
        };
        let fact = (name::start(self.attempt, held.start), json(&fact));
        held.starts.push(fact.clone());
        let mut commit = Commit::new(self.id.clone());
        commit.unless =
            vec![name::END.into(), name::retried(self.attempt), name::start(self.attempt, held.start)];
        commit.equal_or_absent.clone_from(&self.starts);
        commit.facts = vec![fact];
        commit.expiry = Expiry::AfterUnlessSet(UNENDED);
        (commit, held)
    }

    /// Writes the starts again that the record has lost.
    pub(crate) fn restore(&self) -> Commit {
        let mut commit = Commit::new(self.id.clone());
        commit.unless =
            vec![name::END.into(), name::retried(self.attempt), name::start_after(self.attempt, self.start)];
        commit.equal_or_absent.clone_from(&self.starts);
        commit.expiry = Expiry::AfterUnlessSet(UNENDED);
        commit
    }

    /// Says that this start is over without an outcome: whoever gets the message may take over at once.
    pub(crate) fn hand_back(&self) -> Commit {
        let mut commit = Commit::new(self.id.clone());
        commit.facts = vec![(
            name::returned(self.attempt, self.start),
            Bytes::copy_from_slice(self.run.as_str().as_bytes()),
        )];
        // After lost data the number may belong to somebody else's start, which is not over.
        commit.equal_or_absent.clone_from(&self.starts);
        commit.expiry = Expiry::AfterUnlessSet(UNENDED);
        commit
    }

    /// Whether the record still names this run as the newest start of its attempt, or has lost it.
    pub(crate) fn standing(&self, facts: &Facts) -> Standing {
        if facts.has(name::END) || facts.has(&name::retried(self.attempt)) {
            return Standing::Over;
        }
        // After lost data somebody else may have begun anew, with fewer starts than this run knows.
        if self.starts.iter().any(|(name, value)| facts.get(name).is_some_and(|have| have != value)) {
            return Standing::TakenOver;
        }
        match self.newest(facts) {
            Some((_, start)) if start.run == self.run => Standing::Mine,
            Some((newest, _)) if newest >= self.start => Standing::TakenOver,
            _ => Standing::Forgotten,
        }
    }

    /// What a renewal does about this run, as the record was read; `session` is the one that is alive now. A commit
    /// that is refused is asked about again, with the record that came back.
    pub(crate) fn upkeep(&self, facts: &Facts, session: &SessionId, now: Timestamp) -> Upkeep {
        match self.standing(facts) {
            Standing::TakenOver | Standing::Over => Upkeep::Superseded,
            // Started or adopted under a session that is gone: others may take over at any moment.
            Standing::Mine | Standing::Forgotten if self.session != *session => {
                Upkeep::Commit(Box::new(self.adopt(session, now)))
            }
            Standing::Mine if facts.has(name::REVOKED) => Upkeep::Revoked,
            Standing::Mine => Upkeep::Nothing,
            Standing::Forgotten => Upkeep::Commit(Box::new((self.restore(), self.clone()))),
        }
    }

    /// What this run holds after it was adopted into a new session behind its own back (the renewal runs beside
    /// it); `None` if it holds nothing newer.
    pub(crate) fn caught_up(&self, facts: &Facts) -> Option<Self> {
        let (newest, start) = self.newest(facts)?;
        (start.run == self.run && newest > self.start).then(|| Self {
            start: newest,
            session: start.session,
            token: start.token,
            starts: known_starts(facts, self.attempt),
            ..self.clone()
        })
    }

    fn newest(&self, facts: &Facts) -> Option<(u32, Start)> {
        let newest = Attempts::of(facts).newest_start(self.attempt)?;
        Some((newest, facts.read(&name::start(self.attempt, newest))?))
    }
}

/// The starts of an attempt as the record has them.
fn known_starts(facts: &Facts, attempt: u32) -> Vec<(FactName, Bytes)> {
    starts(facts, attempt).into_values().collect()
}

/// How a record sees a run that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// As it should be.
    Mine,
    /// The record has lost the start: write it again.
    Forgotten,
    /// Another run holds the attempt.
    TakenOver,
    /// The task has an outcome already.
    Over,
}

/// What a renewal does about a run.
#[derive(Debug)]
pub(crate) enum Upkeep {
    /// All is as it should be.
    Nothing,
    /// Tell it that somebody revoked the task.
    Revoked,
    /// Tell it that whatever it says does not count.
    Superseded,
    /// Commit this; then the run holds that.
    Commit(Box<(Commit, Held)>),
}

/// What a record says to a delivery whose first start was refused. `gone` tells whether a session is known to be
/// gone, or whether a start of this very process is known not to run.
pub(crate) fn judge(
    facts: &Facts,
    asking: &Starting,
    gone: impl Fn(&SessionId, &RunId) -> bool,
    now: Timestamp,
) -> Meaning {
    let attempts = Attempts::of(facts);
    let newest = attempts.newest_start(asking.attempt);
    let holder = newest.and_then(|n| facts.read::<Start>(&name::start(asking.attempt, n)).map(|s| (n, s)));
    let owed = owed(facts, asking.attempt);
    // Before the guards: a start that is written must run, or everybody waits for our session.
    if let (None, Some((newest, holder))) = (&owed, &holder)
        && holder.run == asking.run
    {
        let mut held = asking.held(*newest, 0, Vec::new(), now);
        held.session = holder.session.clone();
        held.token = holder.token;
        held.starts = known_starts(facts, asking.attempt);
        return Meaning::Run(held);
    }
    if attempts.newest_guard(asking.attempt) > asking.generation {
        return Meaning::Superseded;
    }
    if let Some(follow_up) = owed {
        return Meaning::Over(follow_up);
    }
    let Some((newest, holder)) = holder else {
        return if facts.has(name::REVOKED) {
            Meaning::Revoked
        } else {
            Meaning::TakeOver(Box::new(asking.next(facts, newest.unwrap_or(0), now)))
        };
    };
    let free = facts.has(&name::returned(asking.attempt, newest)) || gone(&holder.session, &holder.run);
    match (free, facts.has(name::REVOKED)) {
        (false, _) => Meaning::Busy(holder.session),
        (true, true) => Meaning::Revoked,
        (true, false) => Meaning::TakeOver(Box::new(asking.next(facts, newest, now))),
    }
}

/// Rises with every start, also when the record was lost or the backend's clock was set back.
fn fence(greatest: u64, now: Timestamp) -> u64 {
    u64::try_from(now.as_micros()).unwrap_or(0).max(greatest.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{TaskState, state_of};

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn asking(run: &str, session: &str) -> Starting {
        Starting {
            id: "t".try_into().unwrap(),
            attempt: 1,
            generation: 0,
            run: run.into(),
            session: session.into(),
            worker: "w".into(),
            received_at: NOW,
            token: 0,
            alone: false,
        }
    }

    fn started() -> (Facts, Held) {
        let mut facts = Facts::new();
        let (commit, held) = asking("a", "s1").first(NOW);
        assert!(commit.apply(&mut facts));
        (facts, held)
    }

    #[test]
    fn the_first_start_is_granted_once() {
        let (mut facts, _) = started();
        assert_eq!(state_of(&facts), TaskState::Started);
        assert!(!asking("b", "s2").first(NOW).0.apply(&mut facts));
    }

    #[test]
    fn a_lost_reply_is_recognised() {
        let (facts, held) = started();
        let Meaning::Run(again) = judge(&facts, &asking("a", "s1"), |_, _| false, NOW) else {
            panic!("its own start")
        };
        assert_eq!((again.token, &again.starts), (held.token, &held.starts));
    }

    #[test]
    fn a_live_session_keeps_others_waiting() {
        let (facts, _) = started();
        assert!(
            matches!(judge(&facts, &asking("b", "s2"), |_, _| false, NOW), Meaning::Busy(s) if s == "s1".into())
        );
    }

    #[test]
    fn a_dead_session_is_taken_over_with_a_higher_token() {
        let (mut facts, first) = started();
        let Meaning::TakeOver(next) = judge(&facts, &asking("b", "s2"), |_, _| true, NOW) else {
            panic!("take over")
        };
        let (commit, held) = *next;
        assert!(commit.apply(&mut facts));
        assert_eq!(held.start, 2);
        assert!(held.token > first.token);
        assert_eq!(first.standing(&facts), Standing::TakenOver);
        assert_eq!(held.standing(&facts), Standing::Mine);
    }

    #[test]
    fn a_start_that_was_handed_back_is_free_at_once() {
        let (mut facts, first) = started();
        first.hand_back().apply(&mut facts);
        assert_eq!(state_of(&facts), TaskState::Pending);
        assert!(matches!(judge(&facts, &asking("b", "s2"), |_, _| false, NOW), Meaning::TakeOver(_)));
    }

    #[test]
    fn an_older_guard_gives_way() {
        let (mut facts, _) = started();
        facts.put(name::guard(1, 1), "1");
        assert!(matches!(judge(&facts, &asking("b", "s2"), |_, _| true, NOW), Meaning::Superseded));
        let newer = Starting { generation: 1, ..asking("b", "s2") };
        assert!(matches!(judge(&facts, &newer, |_, _| true, NOW), Meaning::TakeOver(_)));
    }

    #[test]
    fn a_revoked_task_never_starts() {
        let mut facts = Facts::new();
        facts.put(name::REVOKED, "{}");
        assert!(!asking("a", "s1").first(NOW).0.apply(&mut facts));
        assert!(matches!(judge(&facts, &asking("a", "s1"), |_, _| false, NOW), Meaning::Revoked));
    }

    #[test]
    fn after_lost_data_two_runs_cannot_both_hold_the_attempt() {
        let (_, old) = started();
        let mut lost = Facts::new();
        let (commit, new) = asking("b", "s2").first(NOW);
        assert!(commit.apply(&mut lost), "a missing record means run");
        assert!(!old.adopt(&"s3".into(), NOW).0.apply(&mut lost), "what it carries is contradicted");
        assert_eq!(old.standing(&lost), Standing::TakenOver);
        assert_eq!(new.standing(&lost), Standing::Mine);
        let mut empty = Facts::new();
        assert_eq!(old.standing(&empty), Standing::Forgotten);
        assert!(old.restore().apply(&mut empty));
        assert!(!asking("c", "s4").first(NOW).0.apply(&mut empty));
    }

    #[test]
    fn tokens_rise_even_when_time_does_not() {
        assert_eq!(fence(0, NOW), 1_000_000);
        assert_eq!(fence(5_000_000, NOW), 5_000_001);
    }

    #[test]
    fn a_start_of_ones_own_runs_even_if_a_guard_was_stored_since() {
        let (mut facts, held) = started();
        // Somebody else found it busy, while our reply was lost.
        facts.put(name::guard(1, 1), "1");
        let meaning = judge(&facts, &asking("a", "s1"), |_, _| false, NOW);
        assert!(matches!(meaning, Meaning::Run(again) if again.token == held.token));
    }

    #[test]
    fn a_hand_back_after_lost_data_frees_nobody_elses_start() {
        let (_, old) = started();
        let mut lost = Facts::new();
        assert!(asking("b", "s2").first(NOW).0.apply(&mut lost));
        old.hand_back().apply(&mut lost);
        assert!(matches!(judge(&lost, &asking("c", "s3"), |_, _| false, NOW), Meaning::Busy(_)));
        let mut empty = Facts::new();
        old.hand_back().apply(&mut empty);
        assert!(!asking("b", "s2").first(NOW).0.apply(&mut empty), "its number is taken");
    }

    #[test]
    fn a_renewal_adopts_what_it_did_not_manage_to_adopt() {
        let (mut facts, held) = started();
        assert!(matches!(held.upkeep(&facts, &"s1".into(), NOW), Upkeep::Nothing));
        // The session was replaced, and the first try to adopt failed.
        let Upkeep::Commit(adoption) = held.upkeep(&facts, &"s2".into(), NOW) else { panic!("adopt") };
        assert!(adoption.0.apply(&mut facts));
        // It was done, and only the reply was lost: then the session was replaced again.
        let caught_up = held.caught_up(&facts).unwrap();
        assert_eq!(caught_up, adoption.1);
        assert!(matches!(caught_up.upkeep(&facts, &"s2".into(), NOW), Upkeep::Nothing));
        let Upkeep::Commit(again) = caught_up.upkeep(&facts, &"s3".into(), NOW) else { panic!("adopt") };
        assert!(again.0.apply(&mut facts));
        assert_eq!((again.1.start, again.1.session), (3, "s3".into()));
    }

    #[test]
    fn a_renewal_sees_who_began_anew_after_lost_data() {
        let (mut facts, first) = started();
        let Upkeep::Commit(adoption) = first.upkeep(&facts, &"s2".into(), NOW) else { panic!("adopt") };
        assert!(adoption.0.apply(&mut facts));
        let mut lost = Facts::new();
        assert!(matches!(adoption.1.upkeep(&lost, &"s2".into(), NOW), Upkeep::Commit(_)));
        assert!(asking("b", "s4").first(NOW).0.apply(&mut lost));
        // Fewer starts than this run knows, and yet another's.
        assert!(matches!(adoption.1.upkeep(&lost, &"s2".into(), NOW), Upkeep::Superseded));
    }
}
