//! How far a run has come: the one fact that is replaced. It is shown, and nothing is decided on it.

use super::{
    facts::{Progress, json, name},
    start::{Held, UNENDED},
};
use crate::backend::{Commit, Expiry};

/// Puts the progress of a run in the place of what was said before, unless the run is over.
pub(crate) fn say(held: &Held, progress: &Progress) -> Commit {
    let mut commit = Commit::new(held.id.clone());
    commit.unless =
        vec![name::END.into(), name::retried(held.attempt), name::start_after(held.attempt, held.start)];
    with(&mut commit, progress);
    commit.expiry = Expiry::AfterUnlessSet(UNENDED);
    commit.wake = true;
    commit
}

/// Lets another commit say it too.
pub(crate) fn with(commit: &mut Commit, progress: &Progress) {
    commit.drop.push(name::PROGRESS.into());
    commit.facts.push((name::PROGRESS.into(), json(progress)));
}
