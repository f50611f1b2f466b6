//! History: how many tasks came and ended, how long they took, and how deep the queues were, in buckets of time.
//!
//! [`Client::history`](crate::Client::history) reads it. Each worker process counts in memory and writes once for each ten
//! seconds, whatever the number of tasks. Buckets merge by addition: ten seconds are merged into minutes, and minutes into
//! ten minutes. A bucket is a record whose facts are parts of it, and its name follows from its time, so that there is
//! no index. Each part is a fact that is written once, so a write that is repeated counts nothing twice.
//!
//! The history is best effort, and nothing derives state from it.
//!
//! # Why not one counter for each queue
//! A counter that all processes change costs a call for each task, or loses what a repeated call has counted twice. A part
//! for each process costs one call in ten seconds.

mod bucket;
mod fold;
mod latency;
mod marks;
mod recent;
mod recorder;

pub use bucket::{HistoryCount, QueueGauges, TaskHistory};
pub use latency::Latencies;
pub use marks::{HistoryMark, MarkError};

pub(crate) use bucket::HistoryBucket;
pub(crate) use fold::{cursor_record, fold_due, merged_until};
pub(crate) use marks::{mark_version, put_mark, read_marks};
pub(crate) use recent::RecentHistory;
pub(crate) use recorder::{HistoryRecorder, put_gauges};

use std::time::Duration;

use crate::{
    clock::Timestamp,
    id::{RecordId, RecordKind},
};

/// Time after the end of a bucket after which it is merged into a longer one: parts of slow processes have arrived.
const FOLD_DELAY: Duration = Duration::from_secs(30);
/// Time for which a bucket is kept that nobody has merged, because no worker lives.
const UNMERGED_KEPT_FOR: Duration = Duration::from_secs(8 * 24 * 3600);

/// Length of the buckets of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HistoryStep {
    /// Ten seconds, kept for an hour.
    TenSeconds,
    /// One minute, kept for a day.
    Minute,
    /// Ten minutes, kept for 30 days.
    TenMinutes,
}

impl HistoryStep {
    /// All steps, the shortest first.
    pub const ALL: [Self; 3] = [Self::TenSeconds, Self::Minute, Self::TenMinutes];

    /// Returns the length of a bucket.
    pub const fn width(self) -> Duration {
        Duration::from_secs(match self {
            Self::TenSeconds => 10,
            Self::Minute => 60,
            Self::TenMinutes => 600,
        })
    }

    /// Returns the time for which buckets of this length are kept.
    pub const fn kept_for(self) -> Duration {
        Duration::from_secs(match self {
            Self::TenSeconds => 3600,
            Self::Minute => 24 * 3600,
            Self::TenMinutes => 30 * 24 * 3600,
        })
    }

    /// Returns the next longer step.
    const fn longer(self) -> Option<Self> {
        match self {
            Self::TenSeconds => Some(Self::Minute),
            Self::Minute => Some(Self::TenMinutes),
            Self::TenMinutes => None,
        }
    }

    /// Returns the next shorter step.
    pub(crate) const fn shorter(self) -> Option<Self> {
        match self {
            Self::TenSeconds => None,
            Self::Minute => Some(Self::TenSeconds),
            Self::TenMinutes => Some(Self::Minute),
        }
    }

    const fn micros(self) -> i64 {
        self.width().as_micros() as i64
    }

    /// Returns the begin of the bucket in which an instant is.
    pub(crate) const fn begin(self, at: Timestamp) -> Timestamp {
        Timestamp::from_micros(at.as_micros().div_euclid(self.micros()) * self.micros())
    }

    /// Returns the begins of the buckets from one instant up to another, which is left out.
    pub(crate) fn begins(self, from: Timestamp, until: Timestamp) -> impl Iterator<Item = Timestamp> {
        let first = self.begin(from).as_micros();
        (0..)
            .map(move |number| Timestamp::from_micros(first + number * self.micros()))
            .take_while(move |begin| *begin < until)
    }

    /// Returns `true` if the bucket that begins at this instant is merged by now, or will be at once.
    fn is_due(self, begin: Timestamp, now: Timestamp) -> bool {
        now >= begin.plus(self.width() + FOLD_DELAY)
    }

    /// Returns the record of the bucket that begins at this instant.
    pub(crate) fn record(self, begin: Timestamp) -> RecordId {
        let (seconds, begin) = (self.width().as_secs(), begin.as_micros() / 1_000_000);
        RecordId::new(RecordKind::Control, &format!("history {seconds} {begin}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_tile_the_time() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        assert_eq!(HistoryStep::TenSeconds.begin(at(1_000_019)), at(1_000_010));
        let begins: Vec<_> = HistoryStep::Minute.begins(at(90), at(180)).collect();
        assert_eq!(begins, [at(60), at(120)]);
        assert!(!HistoryStep::Minute.is_due(at(60), at(149)));
        assert!(HistoryStep::Minute.is_due(at(60), at(150)));
        for step in HistoryStep::ALL {
            assert_eq!(step.longer().and_then(HistoryStep::shorter).unwrap_or(step), step);
        }
    }
}
