//! Turns: maintenance that one worker of an installation does at a time.

use std::time::Duration;

use super::facts::name;
use crate::{
    backend::{Commit, Expiry},
    id::{RecordId, RecordKind},
};

/// Creates the commit by which a worker takes the turn of this work. It is refused while another worker has it.
pub(crate) fn take_turn(work: &str, worker: &str, turn: Duration) -> Commit {
    let mut commit = Commit::new(RecordId::new(RecordKind::Lock, work));
    commit.unless = vec![name::HOLDER.into()];
    commit.facts = vec![(name::HOLDER.into(), worker.to_owned().into())];
    commit.expiry = Expiry::After(turn);
    commit
}

/// Creates the commit by which a worker that has the turn keeps it. It is refused if the turn is over.
pub(crate) fn keep_turn(work: &str, worker: &str, turn: Duration) -> Commit {
    let mut commit = Commit::new(RecordId::new(RecordKind::Lock, work));
    commit.require = vec![(name::HOLDER.into(), worker.to_owned().into())];
    commit.expiry = Expiry::After(turn);
    commit
}

/// Creates the commit by which a worker gives its turn up, so that another can take it at once.
pub(crate) fn end_turn(work: &str, worker: &str) -> Commit {
    let mut commit = Commit::new(RecordId::new(RecordKind::Lock, work));
    commit.require = vec![(name::HOLDER.into(), worker.to_owned().into())];
    commit.drop = vec![name::HOLDER.into()];
    commit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Facts;

    #[test]
    fn one_worker_at_a_time_has_the_turn() {
        let (mut facts, turn) = (Facts::new(), Duration::from_secs(50));
        assert!(take_turn("overdue", "a", turn).apply(&mut facts));
        assert!(!take_turn("overdue", "b", turn).apply(&mut facts));
        assert!(keep_turn("overdue", "a", turn).apply(&mut facts));
        assert!(!keep_turn("overdue", "b", turn).apply(&mut facts));
        assert!(!end_turn("overdue", "b").apply(&mut facts));
        assert!(end_turn("overdue", "a").apply(&mut facts));
        assert!(!keep_turn("overdue", "a", turn).apply(&mut facts), "it is over");
        assert!(take_turn("overdue", "b", turn).apply(&mut facts));
    }
}
