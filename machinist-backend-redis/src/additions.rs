//! Commits that only add facts to one record, made as one.
//!
//! Each member of a group writes into the record of the group's join, and each of these commits names another fact. Apart,
//! each is a call of the script on the same record; together, one call writes all of them.

use std::{collections::HashSet, sync::Arc};

use machinist_adapter::{
    backend::{BackendError, Commit, Committed},
    error::chain,
    facts::FactName,
};

use crate::commit::KeyedCommit;

/// Maximum number of facts that one call adds. The script refuses more than 7000 names and values.
const MAX_FACTS: usize = 1000;

/// Commits, in which those that add facts to one record are one.
#[derive(Debug)]
pub(crate) struct Additions {
    pub(crate) commits: Vec<KeyedCommit>,
    /// Position in `commits` of each commit that was asked for.
    places: Vec<usize>,
}

/// A commit that takes others in.
struct Open {
    place: usize,
    commit: Commit,
    names: HashSet<FactName>,
}

impl Additions {
    /// Unites those that add facts to one record. The others stay as they are.
    pub(crate) fn unite(asked: Vec<KeyedCommit>) -> Self {
        let mut united: Vec<KeyedCommit> = Vec::with_capacity(asked.len());
        let mut open: Vec<Open> = Vec::new();
        let mut places = Vec::with_capacity(asked.len());
        for one in asked {
            if !only_adds(&one.commit) {
                places.push(united.len());
                united.push(one);
                continue;
            }
            let earlier = open.iter_mut().find(|open| open.takes(&united[open.place], &one));
            let place = match earlier {
                Some(open) => {
                    open.add(&one.commit);
                    open.place
                }
                None => {
                    open.push(Open::new(united.len(), &one.commit));
                    united.push(one);
                    united.len() - 1
                }
            };
            places.push(place);
        }
        for Open { place, commit, .. } in open {
            united[place].commit = Arc::new(commit);
        }
        Self { commits: united, places }
    }

    /// Returns the outcome of each commit that was asked for.
    ///
    /// The last one that adds to a record is told how many facts the record has. Those before it are told fewer, as if they had
    /// been made one after the other: only one of them is the last.
    pub(crate) fn outcomes(
        &self,
        made: &[Result<Committed, BackendError>],
    ) -> Vec<Result<Committed, BackendError>> {
        let mut later = vec![0u64; made.len()];
        let mut outcomes: Vec<_> = self
            .places
            .iter()
            .rev()
            .filter_map(|&place| {
                let others = later.get_mut(place)?;
                *others += 1;
                Some(match made.get(place)? {
                    Ok(committed) => Ok(before(committed.clone(), *others - 1)),
                    Err(error) => Err(repeated(error)),
                })
            })
            .collect();
        outcomes.reverse();
        outcomes
    }
}

impl Open {
    fn new(place: usize, commit: &Commit) -> Self {
        let names = commit.facts.iter().map(|(name, _)| name.clone()).collect();
        Self { place, commit: commit.clone(), names }
    }

    fn takes(&self, united: &KeyedCommit, other: &KeyedCommit) -> bool {
        united.key == other.key
            && self.commit.expiry == other.commit.expiry
            && self.commit.wake == other.commit.wake
            && self.commit.facts.len() + other.commit.facts.len() <= MAX_FACTS
    }

    /// Adds facts. As if each commit were made by itself, the first value of a fact stays.
    fn add(&mut self, other: &Commit) {
        for (name, value) in &other.facts {
            if self.names.insert(name.clone()) {
                self.commit.facts.push((name.clone(), value.clone()));
            }
        }
    }
}

/// Returns `true` for a commit that is never refused: it adds the facts that are missing, and counts.
fn only_adds(commit: &Commit) -> bool {
    commit.count
        && commit.unless.is_empty()
        && commit.equal_or_absent.is_empty()
        && commit.drop.is_empty()
        && commit.require.is_empty()
}

/// Returns the outcome of a commit after which so many others were made.
fn before(committed: Committed, others: u64) -> Committed {
    match committed {
        Committed::Done { count } => {
            Committed::Done { count: count.map(|count| count.saturating_sub(others)) }
        }
        refused @ Committed::Refused(_) => refused,
    }
}

/// Returns the same error for another caller.
fn repeated(error: &BackendError) -> BackendError {
    match error {
        BackendError::Record { reason } => BackendError::Record { reason: reason.clone() },
        BackendError::Refused { reason } => BackendError::Refused { reason: reason.clone() },
        BackendError::Unavailable(source) => BackendError::Unavailable(chain(&**source).join(": ").into()),
        other => BackendError::Unavailable(other.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use machinist_adapter::{backend::Expiry, id::TaskId};

    use super::*;

    fn adding(key: &str, names: &[&str]) -> KeyedCommit {
        let mut commit = Commit::new(TaskId::fresh());
        let value = |name: &&str| ((*name).to_owned().into(), Bytes::copy_from_slice(name.as_bytes()));
        commit.facts = names.iter().map(value).collect();
        commit.count = true;
        commit.expiry = Expiry::AfterUnlessSet(Duration::from_secs(60));
        KeyedCommit { key: key.to_owned(), commit: commit.into() }
    }

    fn names(commit: &KeyedCommit) -> Vec<&str> {
        commit.commit.facts.iter().map(|(name, _)| &**name).collect()
    }

    fn done(count: u64) -> Result<Committed, BackendError> {
        Ok(Committed::Done { count: Some(count) })
    }

    #[test]
    fn what_adds_to_one_record_is_one_commit() {
        let mut guarded = adding("k", &["j", "m:9"]);
        Arc::make_mut(&mut guarded.commit).unless = vec!["end".into()];
        let mut waking = adding("k", &["j", "m:8"]);
        Arc::make_mut(&mut waking.commit).wake = true;
        let united = Additions::unite(vec![
            adding("k", &["j", "m:0"]),
            adding("other", &["j", "m:0"]),
            guarded,
            adding("k", &["j", "m:1"]),
            waking,
            adding("k", &["j", "m:2"]),
        ]);
        let expected: [(&str, &[&str]); 4] = [
            ("k", &["j", "m:0", "m:1", "m:2"]),
            ("other", &["j", "m:0"]),
            ("k", &["j", "m:9"]),
            ("k", &["j", "m:8"]),
        ];
        assert_eq!(
            united.commits.iter().map(|one| (&*one.key, names(one))).collect::<Vec<_>>(),
            expected.map(|(key, names)| (key, names.to_vec()))
        );
        let refused = Ok(Committed::Refused(Default::default()));
        let outcomes = united.outcomes(&[done(12), done(2), refused, done(13)]);
        let counts: Vec<_> = outcomes
            .into_iter()
            .map(|outcome| match outcome.unwrap() {
                Committed::Done { count } => count,
                Committed::Refused(_) => None,
            })
            .collect();
        assert_eq!(counts, [Some(10), Some(2), None, Some(11), Some(13), Some(12)]);
    }

    #[test]
    fn an_error_is_the_outcome_of_all_that_were_one_commit() {
        let united = Additions::unite(vec![adding("k", &["a"]), adding("k", &["b"])]);
        let outcomes = united.outcomes(&[Err(BackendError::Record { reason: "not a hash".to_owned() })]);
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(BackendError::is_of_one_record)));
    }

    #[test]
    fn one_call_adds_a_bounded_number_of_facts() {
        let many: Vec<String> = (0..MAX_FACTS - 1).map(|at| format!("m:{at}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let united = Additions::unite(vec![adding("k", &many), adding("k", &["x"]), adding("k", &["y"])]);
        assert_eq!(united.commits.iter().map(|one| names(one).len()).collect::<Vec<_>>(), [MAX_FACTS, 1]);
    }
}
