//! Merging of short buckets into long ones, by one worker at a time.
//!
//! A bucket is merged into one fact that is written once, so an interruption at any place, or two workers at once, do no
//! harm. Short buckets get their short expiry when they are merged. Until then they are kept, so what was counted before all
//! workers stopped is merged by the next one.

use std::sync::Arc;

use super::{HistoryBucket, HistoryStep, UNMERGED_KEPT_FOR};
use crate::{
    backend::{Backend, BackendError, Commit, Committed, Expiry},
    clock::Timestamp,
    id::{RecordId, RecordKind},
    record::{Facts, json},
};

/// Number of long buckets that are merged together.
const MERGED_AT_ONCE: usize = 20;
/// Fact of what was merged.
const MERGED: &str = "merged";

/// Returns the record that says how far buckets are merged.
pub(crate) fn cursor_record() -> RecordId {
    RecordId::new(RecordKind::Control, "history-merged")
}

/// Returns the end of what is merged into buckets of this length; `None` if it is not known.
pub(crate) fn merged_until(cursors: &Facts, step: HistoryStep) -> Option<Timestamp> {
    cursors.read(cursor_name(step))
}

const fn cursor_name(step: HistoryStep) -> &'static str {
    match step {
        HistoryStep::TenSeconds => "10",
        HistoryStep::Minute => "60",
        HistoryStep::TenMinutes => "600",
    }
}

fn put_cursor(step: HistoryStep, until: Timestamp) -> Arc<Commit> {
    let mut commit = Commit::new(cursor_record());
    commit.drop = vec![cursor_name(step).into()];
    commit.facts = vec![(cursor_name(step).into(), json(&until))];
    commit.expiry = Expiry::After(HistoryStep::TenMinutes.kept_for());
    Arc::new(commit)
}

/// Merges the buckets whose time has come.
///
/// # Errors
/// [`BackendError`]; the rest is merged by the next call.
///
/// # Cancel safety
/// Safe: a call merges what an interrupted one has left.
pub(crate) async fn fold_due(backend: &dyn Backend, now: Timestamp) -> Result<(), BackendError> {
    for step in [HistoryStep::Minute, HistoryStep::TenMinutes] {
        let cursors = backend.read(&[cursor_record()]).await?.pop().unwrap_or_default();
        let Some(short) = step.shorter() else { continue };
        let oldest = now.minus(UNMERGED_KEPT_FOR);
        // Without a cursor, short buckets that were merged may still be there: merging them again writes the same fact.
        let known = merged_until(&cursors, step).unwrap_or_else(|| now.minus(short.kept_for()));
        let from = step.begin(known.max(oldest));
        let due: Vec<Timestamp> =
            step.begins(from, now).take_while(|begin| step.is_due(*begin, now)).collect();
        for begins in due.chunks(MERGED_AT_ONCE) {
            merge(backend, step, short, begins, now).await?;
        }
    }
    Ok(())
}

/// Merges short buckets into the long ones with these begins, which follow each other.
async fn merge(
    backend: &dyn Backend,
    step: HistoryStep,
    short: HistoryStep,
    begins: &[Timestamp],
    now: Timestamp,
) -> Result<(), BackendError> {
    let (Some(first), Some(last)) = (begins.first(), begins.last()) else { return Ok(()) };
    let end = last.plus(step.width());
    let parts: Vec<Timestamp> = short.begins(*first, end).collect();
    let records: Vec<RecordId> = parts.iter().map(|begin| short.record(*begin)).collect();
    let read = backend.read_each(&records).await?;
    let (mut merged, mut short_expiries) = (Vec::new(), Vec::new());
    for begin in begins {
        let mut bucket = HistoryBucket::default();
        for ((part, record), facts) in parts.iter().zip(&records).zip(&read) {
            let Some(facts) =
                facts.as_ref().ok().filter(|facts| step.begin(*part) == *begin && !facts.is_empty())
            else {
                continue;
            };
            bucket.merge_facts(facts);
            let mut commit = Commit::new(record.clone());
            let age = now.since(*part);
            commit.expiry = Expiry::After(short.kept_for().saturating_sub(age).max(short.width() * 6));
            short_expiries.push(Arc::new(commit));
        }
        if !bucket.is_empty() {
            let mut commit = Commit::new(step.record(*begin));
            commit.facts = vec![(MERGED.into(), json(&bucket))];
            let age = now.since(*begin);
            commit.expiry = Expiry::After(match step.longer() {
                Some(_) => UNMERGED_KEPT_FOR,
                None => step.kept_for().saturating_sub(age).max(step.width()),
            });
            merged.push(Arc::new(commit));
        }
    }
    // One after the other: no short bucket expires before it is merged, and the cursor comes last.
    for batch in [merged, short_expiries, vec![put_cursor(step, end)]] {
        if batch.is_empty() {
            continue;
        }
        for answer in backend.commit(batch).await {
            let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
        }
    }
    Ok(())
}
