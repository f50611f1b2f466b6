//! Progress of a run: the one fact that is replaced. It is shown, and no decision is based on it.

use super::{
    claim::Claim,
    facts::{Progress, json, name},
    retention::UNFINISHED_TTL,
};
use crate::backend::{Commit, Expiry};

/// Replaces the earlier progress of a run, unless the run is over.
pub(crate) fn progress_commit(claim: &Claim, progress: &Progress) -> Commit {
    let mut commit = Commit::new(claim.id.clone());
    commit.unless =
        vec![name::END.into(), name::retried(claim.attempt), name::start_after(claim.attempt, claim.start)];
    add_progress(&mut commit, progress);
    commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
    commit.wake = true;
    commit
}

/// Adds the progress to another commit.
pub(crate) fn add_progress(commit: &mut Commit, progress: &Progress) {
    commit.drop.push(name::PROGRESS.into());
    commit.facts.push((name::PROGRESS.into(), json(progress)));
}
