//! Division of a task's time: how long it waited, and for what. Pure.
//!
//! Everything is in the record already: the times of the last attempt, and the last parking of the task.

use std::time::Duration;

use serde::Serialize;

use super::situation::TaskSituation;
use crate::{clock::Timestamp, record::Record};

/// A part of a task's time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TimeSpent {
    /// What the time was spent on: `delay` (asked for), `attempts` (earlier ones and their back-off), `queue`, the reason of
    /// a parking such as `rate:task:call`, `slot` or `run`.
    pub on: String,
    /// The time in seconds.
    pub seconds: f64,
}

impl TimeSpent {
    pub(super) fn duration(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds).unwrap_or_default()
    }

    /// Returns `true` if the task waited although it could have started.
    pub(super) fn is_wait(&self) -> bool {
        !matches!(self.on.as_str(), "delay" | "attempts" | "run")
    }
}

/// Returns where the time of a task went, in the order of its life. Empty if it was never started.
pub(super) fn time_spent(situation: &TaskSituation) -> Vec<TimeSpent> {
    let Some(record) = &situation.record else { return Vec::new() };
    let (Some(sent), Some(started)) = (record.sent_at, record.started_at) else { return Vec::new() };
    let ready = ready_at(record, sent);
    let received = record.received_at.unwrap_or(started).max(ready).min(started);
    let parked = situation.parked_last.as_ref().filter(|parked| parked.attempt == record.attempt);
    let parked_since = parked.map(|parked| parked.since.max(ready)).filter(|since| *since < received);
    let ended = record.ended_at.unwrap_or(situation.now);
    let before = if record.history.is_empty() { "delay" } else { "attempts" };
    let parts = [
        (before.to_owned(), sent, ready),
        ("queue".to_owned(), ready, parked_since.unwrap_or(received)),
        (
            parked.map(|parked| parked.reason.clone()).unwrap_or_default(),
            parked_since.unwrap_or(received),
            received,
        ),
        ("slot".to_owned(), received, started),
        ("run".to_owned(), started, ended),
    ];
    let part = |(on, from, to): (String, Timestamp, Timestamp)| {
        let spent = to.since(from);
        (!spent.is_zero()).then_some(TimeSpent { on, seconds: spent.as_secs_f64() })
    };
    parts.into_iter().filter_map(part).collect()
}

/// Returns the time from which the last attempt could have started.
fn ready_at(record: &Record, sent: Timestamp) -> Timestamp {
    match record.history.last() {
        Some(before) => before.next_run.max(sent),
        None => record.eta.map_or(sent, |eta| eta.max(sent)),
    }
}
