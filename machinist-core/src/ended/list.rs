//! Publication of the rows of one process, without keeping any task from its work.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{BATCH_SPAN, EndedRow, LISTED_FOR};
use crate::{
    backend::{Backend, BackendError, Commit, Committed, Expiry, Index, IndexUpdate},
    clock::Timestamp,
    event::Event,
    id::{RecordId, RecordKind, RunId},
    record::{Facts, json},
};

/// Time for which rows are gathered before they are listed, unless they are many.
const GATHER_TIME: Duration = Duration::from_secs(2);
/// Number of waiting rows that are listed without waiting for more, and maximum number of rows of one batch.
const MAX_BATCH: usize = 500;
/// Maximum number of rows of one class that wait. The oldest above are cut off and counted.
const MAX_WAITING: usize = 5_000;
/// Maximum number of rows of one class that a process keeps listed. The oldest above are cut off and counted.
const MAX_LISTED: u64 = 50_000;
/// Maximum number of batches that are written together.
const MAX_BATCHES: usize = 8;
/// Number of index entries that are checked at once.
const PAGE_SIZE: usize = 500;
/// Fact of a batch.
const ROWS: &str = "ended";

/// Name of a batch in the index. It has the numbers, so that a search can count without reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedBatch {
    /// Process and class of the rows.
    pub(crate) list: String,
    /// `true` for failed tasks.
    pub(crate) has_failed: bool,
    number: u64,
    /// Number of rows.
    pub(crate) rows: u64,
    /// Number of rows of the list that a bound had cut off before.
    pub(crate) cut: u64,
}

impl EndedBatch {
    fn member(&self) -> String {
        format!("{} {:020} {} {}", self.list, self.number, self.rows, self.cut)
    }

    /// Parses a member of the index; `None` for what a newer program wrote.
    pub(crate) fn parse(member: &str) -> Option<Self> {
        let mut parts = member.rsplitn(4, ' ');
        let (cut, rows, number) = (parts.next()?, parts.next()?, parts.next()?);
        let list = parts.next()?.to_owned();
        Some(Self {
            has_failed: list.ends_with(Class::Failed.suffix()),
            list,
            number: number.parse().ok()?,
            rows: rows.parse().ok()?,
            cut: cut.parse().ok()?,
        })
    }

    /// Reads the rows of the record. `None` if it has expired.
    pub(crate) fn read(facts: &Facts) -> Option<Vec<EndedRow>> {
        facts.read(ROWS)
    }
}

/// Returns the record of a batch.
pub(crate) fn batch_record(member: &str) -> RecordId {
    RecordId::new(RecordKind::Control, &format!("ended {member}"))
}

/// Removes the oldest batches from the index whose time is over. Returns `true` if there may be more.
pub(crate) async fn unlist_expired(backend: &dyn Backend, now: Timestamp) -> Result<bool, BackendError> {
    let page = backend.list(&Index::Ended, None, PAGE_SIZE).await?;
    let begin = now.minus(LISTED_FOR + BATCH_SPAN);
    let over: Vec<IndexUpdate> = page
        .into_iter()
        .take_while(|(at, _)| *at < begin)
        .map(|(_, member)| IndexUpdate::Remove { index: Index::Ended, member })
        .collect();
    let more = over.len() == PAGE_SIZE;
    if !over.is_empty() {
        backend.update_indexes(over).await?;
    }
    Ok(more)
}

#[derive(Debug, Clone, Copy)]
enum Class {
    Failed,
    Succeeded,
}

impl Class {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Failed => "/failed",
            Self::Succeeded => "/succeeded",
        }
    }
}

/// Rows of one class that wait.
#[derive(Debug, Default)]
struct WaitingRows {
    rows: VecDeque<EndedRow>,
    cut: u64,
}

/// Batches of one class that are listed.
#[derive(Debug, Default)]
struct ListedBatches {
    last: u64,
    /// Rows that were cut off after they had been listed.
    cut: u64,
    rows: u64,
    batches: VecDeque<(Timestamp, String, u64)>,
}

/// List of the tasks that have ended in a process.
#[derive(Debug)]
pub(crate) struct EndedList {
    process: RunId,
    waiting: Mutex<[WaitingRows; 2]>,
    listed: tokio::sync::Mutex<[ListedBatches; 2]>,
}

const CLASSES: [Class; 2] = [Class::Failed, Class::Succeeded];

/// Batch that is written.
struct NewBatch {
    at: Timestamp,
    member: String,
    rows: Vec<EndedRow>,
}

impl EndedList {
    pub(crate) fn new() -> Self {
        Self { process: RunId::fresh(), waiting: Mutex::default(), listed: tokio::sync::Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, [WaitingRows; 2]> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event, if a task has ended by it. Never waits for a server.
    pub(crate) fn note(&self, event: &Event<'_>) {
        let Some(row) = EndedRow::of(event) else { return };
        let class = if row.has_failed() { Class::Failed } else { Class::Succeeded };
        let waiting = &mut self.waiting()[class as usize];
        waiting.rows.push_back(row);
        if waiting.rows.len() > MAX_WAITING {
            waiting.rows.pop_front();
            waiting.cut += 1;
        }
    }

    /// Lists what waits, if it has waited for a while or is much; with `all`, in any case.
    pub(crate) async fn flush(&self, backend: &dyn Backend, now: Timestamp, all: bool) {
        let is_due = |rows: &VecDeque<EndedRow>| {
            let oldest = rows.front().map(|row| row.at);
            oldest.is_some_and(|at| all || rows.len() >= MAX_BATCH || now.since(at) >= GATHER_TIME)
        };
        if !self.waiting().iter().any(|waiting| is_due(&waiting.rows)) {
            return;
        }
        let mut listed = self.listed.lock().await;
        for class in CLASSES {
            loop {
                let batches = self.take(class, &mut listed[class as usize]);
                if batches.is_empty() {
                    break;
                }
                if let Err(error) = publish(backend, now, &mut listed[class as usize], &batches).await {
                    tracing::debug!(%error, "ended tasks were not listed; trying again");
                    self.put_back(class, batches);
                    return;
                }
            }
        }
    }

    /// Takes waiting rows, in batches of tasks that ended at about the same time.
    fn take(&self, class: Class, listed: &mut ListedBatches) -> Vec<NewBatch> {
        let mut all = self.waiting();
        let waiting = &mut all[class as usize];
        listed.cut += mem::take(&mut waiting.cut);
        let mut batches = Vec::new();
        while batches.len() < MAX_BATCHES
            && let Some(first) = waiting.rows.front().map(|row| row.at)
        {
            let near = |row: &EndedRow| {
                row.at.since(first) <= BATCH_SPAN / 2 && first.since(row.at) <= BATCH_SPAN / 2
            };
            let count = waiting.rows.iter().take(MAX_BATCH).take_while(|row| near(row)).count();
            let rows: Vec<EndedRow> = waiting.rows.drain(..count).collect();
            let at = rows.iter().map(|row| row.at).max().unwrap_or(first);
            listed.last += 1;
            let name = EndedBatch {
                list: format!("{}{}", self.process, class.suffix()),
                has_failed: matches!(class, Class::Failed),
                number: listed.last,
                rows: rows.len() as u64,
                cut: listed.cut,
            };
            batches.push(NewBatch { at, member: name.member(), rows });
        }
        batches
    }

    fn put_back(&self, class: Class, batches: Vec<NewBatch>) {
        let waiting = &mut self.waiting()[class as usize];
        for row in batches.into_iter().rev().flat_map(|batch| batch.rows.into_iter().rev()) {
            if waiting.rows.len() < MAX_WAITING {
                waiting.rows.push_front(row);
            } else {
                waiting.cut += 1;
            }
        }
    }
}

/// Writes batches, and drops the oldest ones for them.
async fn publish(
    backend: &dyn Backend,
    now: Timestamp,
    listed: &mut ListedBatches,
    batches: &[NewBatch],
) -> Result<(), BackendError> {
    let new = |batch: &NewBatch| {
        let mut commit = Commit::new(batch_record(&batch.member));
        commit.facts = vec![(ROWS.into(), json(&batch.rows))];
        commit.expiry = Expiry::After(LISTED_FOR);
        Arc::new(commit)
    };
    let mut commits: Vec<_> = batches.iter().map(new).collect();
    let mut updates: Vec<_> = batches
        .iter()
        .map(|batch| IndexUpdate::Put { index: Index::Ended, at: batch.at, member: batch.member.clone() })
        .collect();
    let added: u64 = batches.iter().map(|batch| batch.rows.len() as u64).sum();
    let (mut over, mut rows, mut cut) = (0, listed.rows + added, 0);
    for (at, member, count) in &listed.batches {
        let is_old = now.since(*at) > LISTED_FOR;
        if !is_old && rows <= MAX_LISTED {
            break;
        }
        (over, rows, cut) = (over + 1, rows - count, cut + if is_old { 0 } else { *count });
        let mut commit = Commit::new(batch_record(member));
        commit.drop = vec![ROWS.into()];
        commits.push(Arc::new(commit));
        updates.push(IndexUpdate::Remove { index: Index::Ended, member: member.clone() });
    }
    for answer in backend.commit(commits).await {
        // Nothing is required of the records, so nothing is refused.
        let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
    }
    backend.update_indexes(updates).await?;
    listed.batches.drain(..over);
    let of = |batch: &NewBatch| (batch.at, batch.member.clone(), batch.rows.len() as u64);
    listed.batches.extend(batches.iter().map(of));
    (listed.rows, listed.cut) = (rows, listed.cut + cut);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_batch_says_what_it_holds() {
        let batch =
            EndedBatch { list: "p-1/failed".to_owned(), has_failed: true, number: 7, rows: 12, cut: 3 };
        assert_eq!(EndedBatch::parse(&batch.member()), Some(batch.clone()));
        let other = EndedBatch { list: "p-1/succeeded".to_owned(), has_failed: false, ..batch };
        assert_eq!(EndedBatch::parse(&other.member()), Some(other));
        assert_eq!(EndedBatch::parse("something else"), None);
    }
}
