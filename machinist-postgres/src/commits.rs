//! Commits of many records in few round trips.
//!
//! What arrives while a batch is under way goes together in the next one: a read, the decisions in this process, and one write
//! that takes effect on every record that still has the version that was read. The others are decided again.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use machinist_adapter::{
    backend::{BackendError, Commit, Committed},
    clock::Timestamp,
    id::RecordId,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::{ErrorKind, PostgresError},
    link::Link,
    notifier::Notifier,
    records::{self, RecordWrite, StoredRecord},
};
use machinist_adapter::columns::encode_facts;

/// Maximum number of commits in one batch.
const MAX_COMMITS: usize = 512;
/// Approximate maximum size of a batch, in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Maximum number of times that a commit is decided before its caller has to ask again.
const MAX_ROUNDS: u32 = 50;

/// Commit with the caller that waits for it.
pub(crate) struct AwaitedCommit {
    pub(crate) commit: Arc<Commit>,
    pub(crate) caller: oneshot::Sender<Result<Committed, BackendError>>,
}

/// Makes the commits that arrive, until nobody can send any more.
pub(crate) async fn work(
    link: Arc<Link>,
    notifier: Notifier,
    mut queue: mpsc::UnboundedReceiver<AwaitedCommit>,
) {
    let mut arrived = Vec::new();
    while queue.recv_many(&mut arrived, MAX_COMMITS).await > 0 {
        // A caller that has stopped waiting accepts either outcome.
        arrived.retain(|queued| !queued.caller.is_closed());
        while !arrived.is_empty() {
            let later = arrived.split_off(together(&arrived));
            let batch = mem::replace(&mut arrived, later);
            Box::pin(make(&link, &notifier, batch)).await;
        }
    }
}

/// Returns the number of commits, from the first, that fit into one batch; at least one.
fn together(queued: &[AwaitedCommit]) -> usize {
    let mut bytes = 0;
    let fits = queued.iter().take_while(|queued| {
        let facts = queued.commit.facts.iter().chain(&queued.commit.equal_or_absent);
        bytes += facts.map(|(name, value)| name.len() + value.len()).sum::<usize>();
        bytes <= MAX_BYTES
    });
    fits.count().max(1)
}

/// Makes the commits of a batch and tells each caller.
async fn make(link: &Link, notifier: &Notifier, batch: Vec<AwaitedCommit>) {
    let commits: Vec<Arc<Commit>> = batch.iter().map(|queued| Arc::clone(&queued.commit)).collect();
    let mut outcomes = commit_all(link, &commits).await;
    if let Err(error) = &outcomes
        && error.kind() == ErrorKind::Record
        && commits.len() > 1
    {
        // One of them cannot be stored, and the server does not say which one.
        let mut apart = Vec::with_capacity(commits.len());
        for commit in &commits {
            let alone = commit_all(link, std::slice::from_ref(commit)).await;
            apart.push(alone.and_then(|mut outcome| outcome.pop().unwrap_or_else(|| Err(no_outcome()))));
        }
        outcomes = Ok(apart);
    }
    let outcomes = outcomes.unwrap_or_else(|error| commits.iter().map(|_| Err(error.clone())).collect());
    notifier.records_changed(commits.iter().zip(&outcomes).filter_map(|(commit, outcome)| {
        // After an error it may have been made.
        let refused = matches!(outcome, Ok(Committed::Refused(_)));
        (commit.wake && !refused).then_some(&commit.id)
    }));
    for (queued, outcome) in batch.into_iter().zip(outcomes) {
        if let Err(Err(error)) = queued.caller.send(outcome.map_err(BackendError::from)) {
            tracing::debug!(%error, "a commit was not made, and its caller has stopped waiting");
        }
    }
}

fn no_outcome() -> PostgresError {
    PostgresError::lost("a commit has no outcome")
}

/// Makes commits. Returns one outcome for each, in their order.
async fn commit_all(
    link: &Link,
    commits: &[Arc<Commit>],
) -> Result<Vec<Result<Committed, PostgresError>>, PostgresError> {
    let mut outcomes: Vec<Result<Committed, PostgresError>> =
        commits.iter().map(|_| Err(no_outcome())).collect();
    // Sorted, so that two processes lock the same rows in the same order.
    let mut open: BTreeMap<&RecordId, Vec<usize>> = BTreeMap::new();
    for (place, commit) in commits.iter().enumerate() {
        open.entry(&commit.id).or_default().push(place);
    }
    for round in 0..MAX_ROUNDS {
        if round > 0 {
            let pause = Duration::from_millis(2 * u64::from(round.min(10)));
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.0..1.0))).await;
        }
        let ids: Vec<RecordId> = open.keys().map(|id| (*id).clone()).collect();
        let read = records::read_stored(link, &ids).await?;
        let mut writes = Vec::new();
        for ((id, places), stored) in open.iter().zip(read.records) {
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => {
                    places.iter().for_each(|place| outcomes[*place] = Err(error.clone()));
                    continue;
                }
            };
            let (after, decided) = decide(&stored, places.iter().map(|place| &*commits[*place]), read.now);
            for (place, outcome) in places.iter().zip(decided) {
                outcomes[*place] = Ok(outcome);
            }
            writes.extend(to_write(id, &stored, &after));
        }
        if writes.is_empty() {
            return Ok(outcomes);
        }
        let written = match records::write(link, &writes).await {
            Ok(written) => written,
            // Nothing was written: two batches have locked each other, for example.
            Err(error) if error.kind() == ErrorKind::Busy && round < 3 => Vec::new(),
            Err(error) => return Err(error),
        };
        let lost: Vec<&RecordId> = writes
            .iter()
            .enumerate()
            .filter(|(place, _)| !written.contains(place))
            .map(|(_, write)| write.id)
            .collect();
        if lost.is_empty() {
            return Ok(outcomes);
        }
        open = lost.into_iter().filter_map(|id| open.remove_entry(id)).collect();
    }
    let busy = PostgresError::new(ErrorKind::Busy, "other processes change the record all the time");
    for place in open.values().flatten() {
        outcomes[*place] = Err(busy.clone());
    }
    Ok(outcomes)
}

/// Decides the commits of one record, in their order: the record after them, and their outcomes.
fn decide<'a>(
    stored: &StoredRecord,
    commits: impl Iterator<Item = &'a Commit>,
    now: Timestamp,
) -> (StoredRecord, Vec<Committed>) {
    let mut after = stored.clone();
    let mut outcomes = Vec::new();
    for commit in commits {
        if !commit.apply(&mut after.facts) {
            outcomes.push(Committed::Refused(after.facts.clone()));
            continue;
        }
        after.expires = commit.expiry.at(after.expires, now);
        if after.facts.is_empty() {
            // A record without facts does not exist, and neither does its expiry.
            after.expires = None;
        }
        outcomes.push(commit.done(&after.facts));
    }
    (after, outcomes)
}

/// Returns what has to be written; nothing if the row says the same.
fn to_write<'a>(id: &'a RecordId, stored: &StoredRecord, after: &StoredRecord) -> Option<RecordWrite<'a>> {
    let is_gone = after.facts.is_empty();
    // A row whose time is over is deleted before anybody learns that it is absent.
    let differs = stored.has_expired || stored.facts != after.facts || stored.expires != after.expires;
    let needed = differs && !(is_gone && stored.version.is_none());
    needed.then(|| RecordWrite {
        id,
        version: stored.version,
        facts: (!is_gone).then(|| encode_facts(&after.facts)),
        expires: after.expires,
    })
}

#[cfg(test)]
mod tests {
    use machinist_adapter::{backend::Expiry, id::TaskId};

    use super::*;

    fn commit(id: &TaskId, facts: &[&'static str]) -> Commit {
        let facts = facts.iter().map(|name| ((*name).into(), "1".into())).collect();
        Commit { facts, ..Commit::new(id) }
    }

    #[test]
    fn a_row_is_written_only_if_it_changes() {
        let id = TaskId::fresh();
        let record = RecordId::from(&id);
        let now = Timestamp::from_micros(10);
        let absent = StoredRecord::default();
        let (after, outcomes) = decide(&absent, [commit(&id, &["a"]), commit(&id, &["b"])].iter(), now);
        assert_eq!((after.facts.len(), outcomes.len()), (2, 2));
        assert!(to_write(&record, &absent, &after).is_some_and(|write| write.version.is_none()));

        let stored = StoredRecord { version: Some(1), ..after };
        let (same, _) = decide(&stored, [commit(&id, &["a"])].iter(), now);
        assert!(to_write(&record, &stored, &same).is_none());

        let (none, _) = decide(&absent, [commit(&id, &[])].iter(), now);
        assert!(to_write(&record, &absent, &none).is_none());
    }

    #[test]
    fn a_row_whose_time_is_over_goes_before_a_commit_is_refused() {
        let id = TaskId::fresh();
        let renewal = Commit {
            require: vec![("a".into(), "1".into())],
            expiry: Expiry::After(Duration::from_secs(1)),
            ..Commit::new(&id)
        };
        let over = StoredRecord { version: Some(7), has_expired: true, ..StoredRecord::default() };
        let (after, outcomes) = decide(&over, [renewal].iter(), Timestamp::from_micros(10));
        assert!(matches!(outcomes[..], [Committed::Refused(_)]));
        let record = RecordId::from(&id);
        let write = to_write(&record, &over, &after).expect("it is deleted");
        assert_eq!((write.version, write.facts), (Some(7), None));
    }
}
