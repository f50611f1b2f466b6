//! SQL of records, and their one rule: the first writer of a fact wins.

use machinist_adapter::{
    backend::{Commit, Committed},
    clock::Timestamp,
    facts::Facts,
    id::RecordId,
};
use rusqlite::{Connection, OptionalExtension, params, types::Type};

use machinist_adapter::columns::{MalformedValue, decode_facts, encode_facts};

/// Contents of a row in `records`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RecordRow {
    facts: Facts,
    expires: Option<Timestamp>,
}

/// Changes one record, or refuses the change. See [`machinist_adapter::backend::Backend::commit`].
pub(crate) fn commit(
    db: &Connection,
    namespace: i64,
    now: Timestamp,
    commit: &Commit,
) -> rusqlite::Result<Committed> {
    let (row, before) = load(db, namespace, now, &commit.id)?;
    let mut after = before.clone();
    if !apply(&mut after, now, commit) {
        return Ok(Committed::Refused(before.facts));
    }
    match row {
        _ if after == before => {}
        Some(row) if after.facts.is_empty() => {
            db.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([row])?;
        }
        None if after.facts.is_empty() => {}
        Some(row) => {
            db.prepare_cached("UPDATE records SET facts = ?2, expires = ?3 WHERE id = ?1")?
                .execute(params![row, encode_facts(&after.facts), after.expires.map(Timestamp::as_micros)])?;
        }
        None => {
            db.prepare_cached(
                "INSERT INTO records (namespace, kind, name, facts, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                namespace,
                commit.id.kind().as_str(),
                commit.id.id(),
                encode_facts(&after.facts),
                after.expires.map(Timestamp::as_micros)
            ])?;
        }
    }
    Ok(commit.done(&after.facts))
}

/// Applies a commit to a record. Returns `false`, with the record unchanged, if the commit is refused.
fn apply(record: &mut RecordRow, now: Timestamp, commit: &Commit) -> bool {
    if !commit.apply(&mut record.facts) {
        return false;
    }
    record.expires = commit.expiry.at(record.expires, now);
    true
}

/// Returns the facts of a record. They are empty after the record has expired.
pub(crate) fn read(
    db: &Connection,
    namespace: i64,
    now: Timestamp,
    id: &RecordId,
) -> rusqlite::Result<Facts> {
    load(db, namespace, now, id).map(|(_, record)| record.facts)
}

/// Loads a record and the id of its row. An expired record has a row and no contents, so a commit overwrites it instead
/// of reviving it.
fn load(
    db: &Connection,
    namespace: i64,
    now: Timestamp,
    id: &RecordId,
) -> rusqlite::Result<(Option<i64>, RecordRow)> {
    let found = db
        .prepare_cached(
            "SELECT id, expires, facts FROM records WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
        )?
        .query_row(params![namespace, id.kind().as_str(), id.id()], |row| {
            let expires = row.get::<_, Option<i64>>(1).map_err(|_| unreadable(id, MalformedValue))?;
            let expires = expires.map(Timestamp::from_micros);
            if expires.is_some_and(|expires| expires <= now) {
                return Ok((row.get(0)?, RecordRow::default()));
            }
            let facts = row.get_ref(2)?.as_blob().map_err(|_| MalformedValue).and_then(decode_facts);
            let facts = facts.map_err(|error| unreadable(id, error))?;
            Ok((row.get(0)?, RecordRow { facts, expires }))
        })
        .optional()?;
    Ok(match found {
        Some((row, record)) => (Some(row), record),
        None => (None, RecordRow::default()),
    })
}

/// Error of a row of `records` that names the record.
fn unreadable(id: &RecordId, error: MalformedValue) -> rusqlite::Error {
    let text = format!("the row of {id} in the table `records`: {error}");
    rusqlite::Error::FromSqlConversionFailure(2, Type::Blob, text.into())
}

/// Adds a wake-up for watchers of a record in other processes.
pub(crate) fn add_wake_up(
    db: &Connection,
    namespace: i64,
    store_id: i64,
    id: &RecordId,
) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO wakes (namespace, source, kind, name) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![namespace, store_id, id.kind().as_str(), id.id()])?;
    Ok(())
}

/// Returns the number of the newest wake-up.
pub(crate) fn newest_wake_up(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(seq), 0) FROM wakes", [], |row| row.get(0))
}

/// Deletes expired rows, and old wake-ups: at most `limit` rows of `records` and of `wakes`. Returns `true` if more rows
/// may have to be deleted.
pub(crate) fn sweep(db: &Connection, now: Timestamp, limit: u32) -> rusqlite::Result<bool> {
    /// Number of wake-ups that are kept.
    const WAKES_KEPT: i64 = 20_000;
    let records = db
        .prepare_cached(
            "DELETE FROM records WHERE id IN (SELECT id FROM records WHERE expires <= ?1 ORDER BY expires LIMIT ?2)",
        )?
        .execute(params![now.as_micros(), limit])?;
    // The newest wake-up is always kept, so numbers only rise.
    let wakes = db
        .prepare_cached(
            "DELETE FROM wakes WHERE seq IN (SELECT seq FROM wakes WHERE seq <= \
             (SELECT max(seq) FROM wakes) - ?1 ORDER BY seq LIMIT ?2)",
        )?
        .execute(params![WAKES_KEPT, limit])?;
    Ok(records.max(wakes) >= limit as usize)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use machinist_adapter::{backend::Expiry, facts::FactName, id::TaskId};

    use super::*;

    fn fact(name: &str, value: &'static str) -> (FactName, Bytes) {
        (name.to_owned().into(), Bytes::from_static(value.as_bytes()))
    }

    #[test]
    fn a_refused_commit_changes_nothing_and_a_dropped_fact_can_be_written_again() {
        let now = Timestamp::from_micros(1_000);
        let id = TaskId::parse("t").unwrap();
        let mut record = RecordRow { facts: [fact("a", "1")].into_iter().collect(), expires: None };
        let before = record.clone();
        let refused = |change: &dyn Fn(&mut Commit)| {
            let mut commit = Commit { facts: vec![fact("b", "2")], ..Commit::new(id.clone()) };
            commit.expiry = Expiry::After(Duration::from_secs(1));
            change(&mut commit);
            let mut after = before.clone();
            !apply(&mut after, now, &commit) && after == before
        };
        assert!(refused(&|commit| commit.unless = vec!["a".into()]));
        assert!(refused(&|commit| commit.equal_or_absent = vec![fact("c", "3"), fact("a", "9")]));

        let commit = Commit {
            drop: vec!["a".into()],
            equal_or_absent: vec![fact("a", "1"), fact("c", "3")],
            facts: vec![fact("a", "9"), fact("b", "2")],
            expiry: Expiry::AfterUnlessSet(Duration::from_micros(5)),
            ..Commit::new(id)
        };
        assert!(apply(&mut record, now, &commit));
        assert_eq!(record.facts, [fact("a", "1"), fact("b", "2"), fact("c", "3")].into_iter().collect());
        assert_eq!(record.expires, Some(Timestamp::from_micros(1_005)));
        assert!(apply(&mut record, Timestamp::from_micros(9_000), &commit));
        assert_eq!(record.expires, Some(Timestamp::from_micros(1_005)), "it was set already");
    }
}
