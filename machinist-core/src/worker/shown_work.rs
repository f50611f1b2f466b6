//! The work of a worker as its session shows it, and when what has changed is written.
//!
//! Counts and state are written with each renewal that finds them changed. Under load the ids of the runs change all the time
//! and are most of the bytes, so they are written once in a lease at most.

use bytes::Bytes;
use tokio::time::Instant;

use super::lease::Lease;
use crate::record::{ShownWork, WorkChange, json};

/// Maximum number of ids that a session shows of what its worker runs.
pub(super) const SHOWN_RUNS: usize = 20;
/// Maximum number of ids that a worker tells when it is asked for all.
pub(super) const MAX_LISTED_RUNS: usize = 10_000;

/// The work as the record of the session shows it.
#[derive(Debug, Default)]
pub(super) struct WorkRecord {
    shown: ShownWork,
    /// Time at which ids were last written.
    ids_written: Option<Instant>,
}

impl WorkRecord {
    /// Returns the record of a new session.
    pub(super) fn opened(shown: ShownWork, at: Instant) -> Self {
        let ids_written = (shown.ids != list([])).then_some(at);
        Self { shown, ids_written }
    }

    /// Returns what a renewal at this time has to write.
    pub(super) fn change_to(&self, work: &ShownWork, at: Instant, lease: Lease) -> WorkChange {
        let is_due = self.ids_written.is_none_or(|written| at >= written + lease.look_interval());
        // None at all are written at once: a worker that has become idle must not look busy.
        let ids_are_due = is_due || work.ids == list([]);
        WorkChange {
            runs: (work.runs != self.shown.runs).then(|| work.runs.clone()),
            ids: (work.ids != self.shown.ids && ids_are_due).then(|| work.ids.clone()),
        }
    }

    /// Notes what was written.
    pub(super) fn wrote(&mut self, change: WorkChange, at: Instant) {
        if let Some(runs) = change.runs {
            self.shown.runs = runs;
        }
        if let Some(ids) = change.ids {
            if ids != list([]) {
                self.ids_written = Some(at);
            }
            self.shown.ids = ids;
        }
    }
}

/// Returns the lowest of these ids, at most so many. Ids rise with time, so these are the oldest tasks.
pub(super) fn at_most(count: usize, mut ids: Vec<String>) -> Vec<String> {
    ids.sort_unstable();
    ids.truncate(count);
    ids
}

/// Returns ids as they are stored.
pub(super) fn list(ids: impl IntoIterator<Item = String>) -> Bytes {
    json(&ids.into_iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn work(runs: &'static str, ids: &[&str]) -> ShownWork {
        ShownWork { runs: runs.into(), ids: list(ids.iter().map(ToString::to_string)) }
    }

    #[test]
    fn counts_are_written_when_they_change_and_ids_once_in_a_lease() {
        let lease = Lease::DEFAULT;
        let begin = Instant::now();
        let mut record = WorkRecord::opened(work("0", &[]), begin);
        let mut written = Vec::new();
        for renewal in 1..=12 {
            let at = begin + lease.renewal() * renewal;
            let now = work("5", &[&renewal.to_string()]);
            let change = record.change_to(&now, at, lease);
            written.push((change.runs.is_some(), change.ids.is_some()));
            record.wrote(change, at);
        }
        assert!(written[0].0 && written[1..].iter().all(|(runs, _)| !runs), "it has not changed again");
        let ids: Vec<_> =
            (1..).zip(&written).filter(|(_, (_, ids))| *ids).map(|(renewal, _)| renewal).collect();
        assert_eq!(ids, [1, 4, 7, 10]);
    }

    #[test]
    fn a_worker_that_begins_after_a_pause_or_becomes_idle_shows_it_at_once() {
        let lease = Lease::DEFAULT;
        let at = Instant::now();
        let mut record = WorkRecord::opened(work("0", &[]), at);
        let later = at + Duration::from_secs(60);
        let change = record.change_to(&work("1", &["a"]), later, lease);
        assert_eq!(change.ids, Some(list(["a".to_owned()])));
        record.wrote(change, later);
        let change = record.change_to(&work("0", &[]), later, lease);
        assert_eq!((change.runs, change.ids.clone()), (Some("0".into()), Some(list([]))));
        record.wrote(record.change_to(&work("0", &[]), later, lease), later);
        assert_eq!(record.change_to(&work("1", &["b"]), later, lease).ids, None, "it has begun a moment ago");
    }

    #[test]
    fn of_many_ids_the_oldest_are_shown() {
        let ids = (0..50).rev().map(|id| format!("{id:02}")).collect();
        let shown = at_most(SHOWN_RUNS, ids);
        assert_eq!((shown.len(), &*shown[0], &*shown[19]), (20, "00", "19"));
    }
}
