//! Failures by cause: failed tasks of one name and kind whose errors are alike are a group.
//!
//! Groups are computed from the list of ended tasks when they are asked for. Nothing is stored about them, except which ones
//! people have silenced.

mod mask;
mod silence;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::{
    backend::BackendError,
    client::Client,
    clock::Timestamp,
    ended::{EndedRow, EndedScan},
    error::ResultError,
    id::TaskId,
    left_out::left_out,
    record::Record,
};

/// Maximum number of groups. The failures of others are only counted.
const MAX_GROUPS: usize = 1000;
/// Number of failed tasks after which a look ends.
const MAX_ROWS: u64 = 200_000;
/// Number of characters of a fingerprint.
const FINGERPRINT_CHARS: usize = 12;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// Maximum number of versions that a group names.
const MAX_VERSIONS: usize = 20;
/// Number of records that are read at once.
const READ_AT_ONCE: usize = 500;

/// Failed tasks of one name and kind whose errors are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailureGroup {
    /// Digest of name, kind and error, which stays the same.
    pub fingerprint: String,
    /// Name of the tasks.
    pub task: String,
    /// Kind of the failures, as a word.
    pub kind: String,
    /// First line of the error, without numbers, ids, quoted parts and addresses.
    pub error: String,
    /// Number of failures.
    pub count: u64,
    /// Number of failures in the last hour.
    pub last_hour: u64,
    /// Number of failures in the last 24 hours.
    pub last_day: u64,
    /// Number of failures in the last seven days.
    pub last_week: u64,
    /// Time of the first.
    pub first_seen: Timestamp,
    /// Time of the last.
    pub last_seen: Timestamp,
    /// Task that failed last.
    pub example: TaskId,
    /// Versions of machinist in whose workers they failed, 20 at most.
    pub versions: BTreeSet<String>,
    /// Queues in which they failed, [`MAX_QUEUES`](Self::MAX_QUEUES) at most.
    pub queues: BTreeSet<String>,
    /// Time until which people want the group left out of lists.
    pub silenced_until: Option<Timestamp>,
}

impl FailureGroup {
    /// Maximum number of queues that a group names.
    pub const MAX_QUEUES: usize = 20;
}

/// Failed tasks of one group.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct FailedTasks {
    /// Tasks, the one that failed last first. Of a task whose record has expired, what was listed at its end.
    pub records: Vec<Record>,
    /// `true` if these are all that are listed.
    pub is_complete: bool,
}

/// Failures by cause, and how far the look at them went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailureGroups {
    /// Groups, the one with the latest failure first.
    pub groups: Vec<FailureGroup>,
    /// Number of failures that are in no group, because there are too many groups.
    pub other: u64,
    /// Number of listed failures that were looked at.
    pub looked_at: u64,
    /// Number of listed failures that there are.
    pub listed: u64,
    /// Number of failures that are no longer listed, because their process had listed too many.
    pub cut: u64,
}

impl Client {
    /// Groups the failed tasks that are listed since an instant, for seven days at most
    /// ([`AppBuilder::events`](crate::AppBuilder::events)). Attempts that were followed by another do not count.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn failures(&self, since: Option<Timestamp>) -> Result<FailureGroups, BackendError> {
        let (backend, now) = (self.app.backend().as_ref(), self.app.clock().now());
        let mut scan = EndedScan::begin(backend, Some(true), since, None, now).await?;
        let mut grouping = Grouping::default();
        while let Some(part) = scan.next(backend).await? {
            let fitting = part.rows.iter().filter(|row| since.is_none_or(|since| row.at >= since));
            fitting.for_each(|row| grouping.add(row, now));
            if scan.looked_at >= MAX_ROWS {
                scan.count_rest(backend).await?;
                break;
            }
        }
        let Grouping { groups, other } = grouping;
        let silenced = left_out("the silenced groups", silence::silenced(backend, now).await)?;
        let mut groups: Vec<FailureGroup> = groups.into_values().collect();
        for group in &mut groups {
            group.silenced_until = silenced.get(&group.fingerprint).copied();
        }
        groups.sort_by(|a, b| (b.last_seen, &b.fingerprint).cmp(&(a.last_seen, &a.fingerprint)));
        let (looked_at, listed, cut) = (scan.looked_at, scan.listed, scan.cut());
        Ok(FailureGroups { groups, other, looked_at, listed, cut })
    }

    /// Returns the failed tasks of a group, `limit` at most, with their records; `None` if no listed failure belongs to it.
    ///
    /// # Errors
    /// [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn failed_tasks(
        &self,
        fingerprint: &str,
        since: Option<Timestamp>,
        limit: usize,
    ) -> Result<Option<FailedTasks>, ResultError> {
        let (backend, now) = (self.app.backend().as_ref(), self.app.clock().now());
        let mut scan = EndedScan::begin(backend, Some(true), since, None, now).await?;
        let mut rows: Vec<EndedRow> = Vec::new();
        let mut is_complete = true;
        while let Some(part) = scan.next(backend).await? {
            let fits = |row: &EndedRow| since.is_none_or(|since| row.at >= since);
            let of_group = |row: &EndedRow| fits(row) && fingerprint_of(&key_of(row)) == fingerprint;
            rows.extend(part.rows.into_iter().filter(of_group));
            if rows.len() > limit || scan.looked_at >= MAX_ROWS {
                is_complete = false;
                break;
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        rows.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
        // A task whose end was recorded twice is listed twice.
        let mut known = BTreeSet::new();
        rows.retain(|row| known.insert(row.id.clone()));
        rows.truncate(limit);
        let mut records = Vec::with_capacity(rows.len());
        for rows in rows.chunks(READ_AT_ONCE) {
            records.extend(self.with_records(rows.iter().map(EndedRow::record).collect()).await?);
        }
        Ok(Some(FailedTasks { records, is_complete }))
    }

    /// Silences a group for a time, 30 days at most; no time ends its silence. Returns the end of the silence; `None` if no
    /// listed failure belongs to the group. Its failures are counted all the same.
    ///
    /// # Errors
    /// [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// The group is silenced or not.
    pub async fn silence_failures(
        &self,
        fingerprint: &str,
        duration: Duration,
    ) -> Result<Option<Timestamp>, ResultError> {
        if self.failed_tasks(fingerprint, None, 1).await?.is_none() {
            return Ok(None);
        }
        let now = self.app.clock().now();
        let until = now.plus(duration.min(silence::MAX_SILENCE));
        silence::silence(self.app.backend().as_ref(), now, fingerprint, until).await?;
        Ok(Some(until))
    }
}

/// Name, kind and masked error of a group.
type GroupKey = (String, String, String);

fn key_of(row: &EndedRow) -> GroupKey {
    (row.name.clone(), row.kind.clone().unwrap_or_default(), mask::masked(row.error_message()))
}

fn fingerprint_of((task, kind, error): &GroupKey) -> String {
    let digest = Sha256::digest(format!("{task}\0{kind}\0{error}"));
    let mut fingerprint: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    fingerprint.truncate(FINGERPRINT_CHARS);
    fingerprint
}

/// Groups while rows are read.
#[derive(Debug, Default)]
struct Grouping {
    groups: BTreeMap<GroupKey, FailureGroup>,
    other: u64,
}

impl Grouping {
    fn add(&mut self, row: &EndedRow, now: Timestamp) {
        let key = key_of(row);
        let is_full = self.groups.len() >= MAX_GROUPS;
        let group = match self.groups.get_mut(&key) {
            Some(group) => group,
            None if is_full => {
                self.other += 1;
                return;
            }
            None => self.groups.entry(key.clone()).or_insert_with(|| new_group(&key, row)),
        };
        group.count += 1;
        let age = now.since(row.at);
        group.last_hour += u64::from(age <= HOUR);
        group.last_day += u64::from(age <= DAY);
        group.last_week += u64::from(age <= WEEK);
        if let Some(version) = &row.version
            && group.versions.len() < MAX_VERSIONS
        {
            group.versions.insert(version.clone());
        }
        if group.queues.len() < FailureGroup::MAX_QUEUES && !group.queues.contains(&row.queue) {
            group.queues.insert(row.queue.clone());
        }
        group.first_seen = group.first_seen.min(row.at);
        if row.at >= group.last_seen {
            (group.last_seen, group.example) = (row.at, row.id.clone());
        }
    }
}

fn new_group(key: &GroupKey, row: &EndedRow) -> FailureGroup {
    let (task, kind, error) = key;
    FailureGroup {
        fingerprint: fingerprint_of(key),
        task: task.clone(),
        kind: kind.clone(),
        error: error.clone(),
        count: 0,
        last_hour: 0,
        last_day: 0,
        last_week: 0,
        first_seen: row.at,
        last_seen: row.at,
        example: row.id.clone(),
        versions: BTreeSet::new(),
        queues: BTreeSet::new(),
        silenced_until: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at: i64, name: &str, error: &str) -> EndedRow {
        let (id, error) = (format!("t-{at}"), [error]);
        let row = serde_json::json!({ "t": at, "i": id, "n": name, "q": "q", "a": 1, "k": "error", "e": error, "v": "1.0" });
        serde_json::from_value(row).unwrap()
    }

    #[test]
    fn errors_that_are_alike_are_one_group_and_groups_are_bounded() {
        let mut grouping = Grouping::default();
        let now = Timestamp::from_micros(0).plus(DAY * 2);
        let late = now.minus(HOUR / 2).as_micros();
        for (at, name, error) in
            [(5, "a", "code 3"), (late, "a", "code 4"), (7, "b", "code 3"), (8, "a", "other")]
        {
            grouping.add(&row(at, name, error), now);
        }
        assert_eq!(grouping.groups.len(), 3);
        let group = grouping.groups.values().find(|group| group.count == 2).unwrap();
        assert_eq!((group.error.as_str(), group.last_hour, group.last_day), ("code #", 1, 1));
        assert_eq!(group.queues.iter().map(String::as_str).collect::<Vec<_>>(), ["q"]);
        assert_eq!((group.last_week, group.versions.iter().next().map(String::as_str)), (2, Some("1.0")));
        assert_eq!((group.first_seen.as_micros(), group.example.as_str()), (5, &*format!("t-{late}")));
        assert_eq!(group.fingerprint.len(), FINGERPRINT_CHARS);
        for n in 0..2000_u32 {
            let word: String = n.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
            grouping.add(&row(9, "many", &word), now);
        }
        assert_eq!((grouping.groups.len(), grouping.other), (MAX_GROUPS, 2000 - (MAX_GROUPS as u64 - 3)));
    }
}
