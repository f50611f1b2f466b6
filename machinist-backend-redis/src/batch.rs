//! Commits in one round trip, in as few calls of the script as can be.

use std::iter;

use machinist_adapter::{
    backend::{BackendError, Commit, Committed},
    id::RecordKind,
};
use redis::RedisResult;

use crate::{
    additions::Additions,
    batcher::BatchRequest,
    commit::{KeyedCommit, alike, answers, call},
    error::{backend_error, is_of_one_key, key_error},
    link::RedisLinks,
};

impl BatchRequest for KeyedCommit {
    type Answer = Committed;

    fn size(&self) -> usize {
        size(&self.commit)
    }

    async fn make(links: &RedisLinks, commits: Vec<Self>) -> Vec<Result<Committed, BackendError>> {
        let united = Additions::unite(commits);
        let made = match make(links, &united.commits).await {
            Ok(made) => made,
            Err(error) => united.commits.iter().map(|_| Err(backend_error(&error))).collect(),
        };
        united.outcomes(&made)
    }
}

fn size(commit: &Commit) -> usize {
    commit.facts.iter().chain(&commit.equal_or_absent).map(|(name, value)| name.len() + value.len()).sum()
}

/// Makes these commits, each with its own outcome. Those that do not do the same are made in any order.
pub(crate) async fn make(
    links: &RedisLinks,
    commits: &[KeyedCommit],
) -> RedisResult<Vec<Result<Committed, BackendError>>> {
    // A cluster's nodes have one record each of those that are named together.
    let kinds = match links.can_batch() {
        true => alike(commits),
        false => (0..commits.len()).map(|place| vec![place]).collect(),
    };
    let mut outcomes: Vec<Option<Result<Committed, BackendError>>> = Vec::new();
    outcomes.resize_with(commits.len(), || None);
    // A session that is lost with its server is opened again.
    let replicated = commits.iter().any(|one| one.commit.id.kind() != RecordKind::Session);
    let answered = links
        .scripts(kinds.len(), replicated, |kind| call(kinds[kind].iter().map(|&at| &commits[at])))
        .await?;
    let mut apart = Vec::new();
    for (kind, answer) in kinds.into_iter().zip(answered) {
        match answer {
            Ok(value) => {
                for (at, outcome) in
                    iter::zip(&kind, answers(&value, kind.len(), commits[kind[0]].commit.count))
                {
                    outcomes[*at] = Some(outcome);
                }
            }
            // The call ended at that record; what was made is made again, which changes nothing.
            Err(error) if kind.len() > 1 && is_of_one_key(&error) => apart.extend(kind),
            Err(error) => {
                kind.into_iter().for_each(|at| outcomes[at] = Some(Err(key_error(&error, &commits[at].key))));
            }
        }
    }
    if !apart.is_empty() {
        let answered =
            links.scripts(apart.len(), replicated, |n| call(iter::once(&commits[apart[n]]))).await?;
        for (at, answer) in iter::zip(apart, answered) {
            outcomes[at] = match answer {
                Ok(value) => answers(&value, 1, commits[at].commit.count).pop(),
                Err(error) => Some(Err(key_error(&error, &commits[at].key))),
            };
        }
    }
    Ok(outcomes.into_iter().flatten().collect())
}
