//! Marks: moments that people or new versions leave in the history, such as a release.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Backend, BackendError, Commit, Committed, Expiry},
    clock::Timestamp,
    id::{RecordId, RecordKind, RunId},
    record::{Facts, json},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const DAY_MICROS: i64 = DAY.as_micros() as i64;
/// Time for which marks are kept, as long as the longest buckets.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Maximum number of marks of one day.
const MAX_OF_DAY: usize = 1000;
/// Maximum length of the text of a mark, in bytes.
const MAX_TEXT_BYTES: usize = 200;

/// Moment in the history that somebody has marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HistoryMark {
    /// Time of the mark.
    pub at: Timestamp,
    /// Text of the mark.
    pub text: String,
}

/// Error of a mark.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// The text cannot be that of a mark.
    #[error("{0}")]
    Text(String),
    /// The day has too many marks.
    #[error("there are {MAX_OF_DAY} marks of this day already; set fewer marks")]
    TooMany,
    /// The backend cannot be asked.
    #[error("the mark was not stored")]
    Backend(#[from] BackendError),
}

fn record_of_day(at: Timestamp) -> RecordId {
    let day = at.as_micros().div_euclid(DAY_MICROS);
    RecordId::new(RecordKind::Control, &format!("history-marks {day}"))
}

fn record_of_versions() -> RecordId {
    RecordId::new(RecordKind::Control, "history-versions")
}

fn checked(text: &str) -> Result<&str, MarkError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(MarkError::Text("the text of a mark is empty; write what has happened".to_owned()));
    }
    if text.len() > MAX_TEXT_BYTES {
        return Err(MarkError::Text(format!(
            "the text of a mark has {} bytes, more than {MAX_TEXT_BYTES}; shorten it",
            text.len()
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(MarkError::Text("the text of a mark has a control character; write one line".to_owned()));
    }
    Ok(text)
}

/// Stores a mark of this moment.
pub(crate) async fn put_mark(
    backend: &dyn Backend,
    now: Timestamp,
    text: &str,
) -> Result<HistoryMark, MarkError> {
    let text = checked(text)?.to_owned();
    let record = record_of_day(now);
    let there = backend.read(std::slice::from_ref(&record)).await?;
    if there.first().is_some_and(|facts| facts.len() >= MAX_OF_DAY) {
        return Err(MarkError::TooMany);
    }
    let mark = HistoryMark { at: now, text };
    let mut commit = Commit::new(record);
    commit.facts = vec![(format!("{} {}", now.as_micros(), RunId::fresh()).into(), json(&mark))];
    commit.expiry = Expiry::After(KEPT_FOR + DAY);
    for answer in backend.commit(vec![commit.into()]).await {
        let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
    }
    Ok(mark)
}

/// Reads the marks between two instants, the earliest first.
pub(crate) async fn read_marks(
    backend: &dyn Backend,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<HistoryMark>, BackendError> {
    let first = since.max(until.minus(KEPT_FOR + DAY));
    let days = (0..).map(|number| first.plus(DAY * number)).take_while(|day| *day < until.plus(DAY));
    let mut records: Vec<RecordId> = days.map(record_of_day).collect();
    records.push(record_of_versions());
    let read = backend.read_each(&records).await?;
    let mut marks: Vec<HistoryMark> = read.iter().flatten().flat_map(marks_in).collect();
    marks.retain(|mark| mark.at >= since && mark.at <= until);
    marks.sort_by(|a, b| (a.at, &a.text).cmp(&(b.at, &b.text)));
    Ok(marks)
}

fn marks_in(facts: &Facts) -> Vec<HistoryMark> {
    facts.iter().filter_map(|(name, _)| facts.read(name)).collect()
}

/// Marks the first worker of a version. A version is known for 30 days after its last worker has started.
///
/// # Errors
/// [`BackendError`]; the next worker of the version tries again.
pub(crate) async fn mark_version(
    backend: &dyn Backend,
    now: Timestamp,
    version: &str,
) -> Result<(), BackendError> {
    let mark = HistoryMark { at: now, text: format!("first worker of version {version}") };
    let mut commit = Commit::new(record_of_versions());
    // The first writer wins.
    commit.facts = vec![(version.to_owned().into(), json(&mark))];
    commit.expiry = Expiry::After(KEPT_FOR);
    for answer in backend.commit(vec![commit.into()]).await {
        let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_mark_is_one_short_line() {
        assert_eq!(checked(" v1.2 ").unwrap(), "v1.2");
        for (text, part) in [("  ", "empty"), (&"x".repeat(201), "201 bytes"), ("a\nb", "one line")] {
            assert!(checked(text).unwrap_err().to_string().contains(part), "{text}");
        }
    }
}
