//! Follow-ups: what a recorded outcome demands, as a function of the record.

use bytes::Bytes;

use super::{
    FailureKind,
    facts::{Counters, End, EndVerdict, FactName, Facts, Failure, Retried, name},
    fold::Attempts,
    retention::MIN_RESULTS_TTL,
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::TaskId,
};

/// Follow-up that a recorded outcome requires from the holder of a delivery of its attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum FollowUp {
    /// Nothing: acknowledge.
    Nothing,
    /// Publish the next attempt, then record that in `f:M`.
    NextRun { due: Timestamp, counters: Counters, token: u64 },
    /// The task has ended without a dead letter. What its handler has spawned is published, and a task of a workflow lets
    /// it go on; then record that in `f`. Any other task is done: acknowledge.
    Ended {
        /// `true` if its handler has spawned something.
        spawns: bool,
    },
    /// Publish a dead letter, and let the workflow go on if the task belongs to one; then record that in `f`.
    DeadLetter { attempt: u32, failure: Failure },
}

impl FollowUp {
    /// Creates the commit which records that the follow-up is done.
    pub(crate) fn done(&self, id: &TaskId, attempt: u32) -> Option<Commit> {
        match self {
            Self::Nothing => None,
            Self::NextRun { .. } => Some(mark(id, name::followed(attempt))),
            Self::Ended { .. } | Self::DeadLetter { .. } => Some(mark(id, name::FOLLOWED.into())),
        }
    }
}

/// Returns the follow-up that a copy of a message has to care for. What is done is done for every copy: one that another program
/// had in its hands may have to show the end again. The rest belongs to a newer guard, if there is one.
pub(crate) fn follow_up_of_copy(follow_up: Option<FollowUp>, has_newer_guard: bool) -> Option<FollowUp> {
    follow_up.filter(|follow_up| !has_newer_guard || matches!(follow_up, FollowUp::Nothing))
}

/// Creates the commit which records that another program has got what it was owed only after the follow-up was done.
pub(crate) fn followed_since(id: &TaskId) -> Commit {
    mark(id, name::FOLLOWED_SINCE.into())
}

fn mark(id: &TaskId, fact: FactName) -> Commit {
    let mut commit = Commit::new(id.clone());
    commit.facts = vec![(fact, Bytes::from_static(b"1"))];
    // After lost data this must not leave a record behind that lives forever.
    commit.expiry = Expiry::AfterUnlessSet(MIN_RESULTS_TTL);
    commit
}

/// Returns the follow-up that the outcome of an attempt still requires; `None` while the attempt has no outcome.
pub(crate) fn recorded_follow_up(facts: &Facts, attempt: u32) -> Option<FollowUp> {
    if let Some(end) = facts.get(name::END) {
        if facts.has(name::FOLLOWED) {
            return Some(FollowUp::Nothing);
        }
        return Some(match serde_json::from_slice::<End>(end) {
            Ok(End { origin, verdict: EndVerdict::Failure(failure), .. })
                if is_dead_lettered(failure.kind) =>
            {
                let attempt = origin.map_or(attempt, |origin| origin.attempt);
                FollowUp::DeadLetter { attempt, failure }
            }
            Ok(End { spawns, .. }) => FollowUp::Ended { spawns: spawns > 0 },
            Err(_) => FollowUp::Ended { spawns: false },
        });
    }
    if !facts.has(&name::retried(attempt)) {
        return None;
    }
    let followed = facts.has(&name::followed(attempt)) || Attempts::of(facts).newest() > attempt;
    let retried = facts.read::<Retried>(&name::retried(attempt)).filter(|_| !followed);
    Some(retried.map_or(FollowUp::Nothing, |retried| FollowUp::NextRun {
        due: retried.due,
        counters: retried.counters,
        token: retried.origin.token,
    }))
}

/// Returns the failure with which a task has ended.
pub(crate) fn failure_of(facts: &Facts) -> Option<Failure> {
    match facts.read::<End>(name::END)?.verdict {
        EndVerdict::Failure(failure) => Some(failure),
        EndVerdict::Success { .. } => None,
    }
}

/// Returns `true` if a task with this failure is kept as a dead letter. Revoked, duplicate and replaced tasks were
/// unwanted, and the cause of an upstream failure is another task.
pub(super) const fn is_dead_lettered(kind: FailureKind) -> bool {
    !matches!(
        kind,
        FailureKind::Revoked | FailureKind::Upstream | FailureKind::Duplicate | FailureKind::Replaced
    )
}
