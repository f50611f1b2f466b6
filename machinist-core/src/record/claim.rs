//! The claim of a run to its attempt: what its outcome is committed with, and what renewals do about it.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    facts::{FactName, Facts, Start, json, name},
    fold::{Attempts, starts},
    retention::UNFINISHED_TTL,
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{RunId, SessionId, TaskId},
};

/// Claim of this process: a granted start, with which its outcome is committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    pub(crate) start: u32,
    pub(crate) run: RunId,
    /// Session under which it was started: a worker that finds it gone may take over.
    pub(crate) session: SessionId,
    pub(crate) token: u64,
    pub(crate) worker: Arc<str>,
    pub(crate) received_at: Timestamp,
    /// Starts of this attempt up to this one, as this run knows them. The run writes them with each of its commits, so
    /// that after lost backend data two runs cannot both believe that they hold the attempt.
    pub(crate) starts: Arc<[(FactName, Bytes)]>,
}

impl Claim {
    /// Creates the commit by which a run whose session was lost moves its own task into a new session.
    pub(crate) fn adopt(&self, session: &SessionId, now: Timestamp) -> (Commit, Self) {
        let mut claim = self.clone();
        claim.start = self.start.saturating_add(1);
        claim.session = session.clone();
        claim.token = fencing_token(self.token, now);
        let fact = Start {
            run: self.run.clone(),
            session: session.clone(),
            worker: self.worker.clone(),
            token: claim.token,
            received_at: self.received_at,
            started_at: now,
            // The first start of the run holds the value for the whole run.
            alone: false,
        };
        let fact = (name::start(self.attempt, claim.start), json(&fact));
        claim.starts = self.starts.iter().cloned().chain([fact.clone()]).collect();
        let mut commit = Commit::new(self.id.clone());
        commit.unless =
            vec![name::END.into(), name::retried(self.attempt), name::start(self.attempt, claim.start)];
        commit.equal_or_absent = self.starts.to_vec();
        commit.facts = vec![fact];
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        (commit, claim)
    }

    /// Creates the commit that writes the starts again that the record has lost.
    pub(crate) fn restore(&self) -> Commit {
        let mut commit = Commit::new(self.id.clone());
        commit.unless =
            vec![name::END.into(), name::retried(self.attempt), name::start_after(self.attempt, self.start)];
        commit.equal_or_absent = self.starts.to_vec();
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        commit
    }

    /// Creates the commit which says that this start is over without an outcome: the next receiver of the message may
    /// take over at once.
    pub(crate) fn hand_back(&self) -> Commit {
        let mut commit = Commit::new(self.id.clone());
        commit.facts = vec![(
            name::returned(self.attempt, self.start),
            Bytes::copy_from_slice(self.run.as_str().as_bytes()),
        )];
        // After lost data the number may belong to a start of another run, which is not over.
        commit.equal_or_absent = self.starts.to_vec();
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        commit
    }

    /// Reports whether the record still names this run as the newest start of its attempt, or has lost the start.
    pub(crate) fn standing(&self, facts: &Facts) -> ClaimStatus {
        if facts.has(name::END) || facts.has(&name::retried(self.attempt)) {
            return ClaimStatus::Over;
        }
        // After lost data another run may have begun again, with fewer starts than this run knows.
        if self.starts.iter().any(|(name, value)| facts.get(name).is_some_and(|stored| stored != value)) {
            return ClaimStatus::TakenOver;
        }
        match self.newest(facts) {
            Some((_, start)) if start.run == self.run => ClaimStatus::Current,
            Some((newest, _)) if newest >= self.start => ClaimStatus::TakenOver,
            _ => ClaimStatus::Forgotten,
        }
    }

    /// Decides what a renewal does about this run, given the record; `session` is the session that is alive now. If the
    /// commit is refused, the decision is made again with the returned record.
    pub(crate) fn renewal_action(&self, facts: &Facts, session: &SessionId, now: Timestamp) -> RenewalAction {
        match self.standing(facts) {
            ClaimStatus::TakenOver | ClaimStatus::Over => RenewalAction::TakenOver,
            // Started or adopted under a session that is gone: others may take over at any moment.
            ClaimStatus::Current | ClaimStatus::Forgotten if self.session != *session => {
                RenewalAction::Commit(Box::new(self.adopt(session, now)))
            }
            ClaimStatus::Current if facts.has(name::REVOKED) => RenewalAction::Revoked,
            ClaimStatus::Current => RenewalAction::Nothing,
            ClaimStatus::Forgotten => RenewalAction::Commit(Box::new((self.restore(), self.clone()))),
        }
    }

    /// Returns the claim of this run after a concurrent renewal adopted it into a new session; `None` if the record has
    /// no newer start of this run.
    pub(crate) fn newer_claim(&self, facts: &Facts) -> Option<Self> {
        let (newest, start) = self.newest(facts)?;
        (start.run == self.run && newest > self.start).then(|| Self {
            start: newest,
            session: start.session,
            token: start.token,
            starts: known_starts(facts, self.attempt).into(),
            ..self.clone()
        })
    }

    fn newest(&self, facts: &Facts) -> Option<(u32, Start)> {
        let newest = Attempts::of(facts).newest_start(self.attempt)?;
        Some((newest, facts.read(&name::start(self.attempt, newest))?))
    }
}

/// Starts of an attempt, as the record holds them.
pub(super) fn known_starts(facts: &Facts, attempt: u32) -> Vec<(FactName, Bytes)> {
    starts(facts, attempt).into_values().collect()
}

/// Status of a running claim according to the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimStatus {
    /// The record names the claim as the newest start.
    Current,
    /// The record has lost the start: write it again.
    Forgotten,
    /// Another run holds the attempt.
    TakenOver,
    /// The task has an outcome already.
    Over,
}

/// Action of a renewal for a run.
#[derive(Debug)]
pub(crate) enum RenewalAction {
    /// Nothing has to be done.
    Nothing,
    /// Tell the run that the task was revoked.
    Revoked,
    /// Tell the run that its outcome does not count.
    TakenOver,
    /// Commit this; then the run holds this claim.
    Commit(Box<(Commit, Claim)>),
}

/// Returns a fencing token that rises with every start, even if the record was lost or the backend's clock was set
/// back.
pub(crate) fn fencing_token(greatest_token: u64, now: Timestamp) -> u64 {
    u64::try_from(now.as_micros()).unwrap_or(0).max(greatest_token.saturating_add(1))
}
