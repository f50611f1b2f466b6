//! SQL of the indexes. Their rows are in the table `notes`.

use machinist_adapter::{
    backend::{Index, IndexUpdate},
    clock::Timestamp,
};
use rusqlite::{Connection, params};

/// Adds a member to an index, moves it, or removes it.
pub(crate) fn update(db: &Connection, namespace: i64, update: &IndexUpdate) -> rusqlite::Result<()> {
    match update {
        IndexUpdate::Put { index, at, member } => db
            .prepare_cached(
                "INSERT INTO notes (namespace, list, member, at) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (namespace, list, member) DO UPDATE SET at = ?4",
            )?
            .execute(params![namespace, index.name(), member, at.as_micros()])?,
        IndexUpdate::Remove { index, member } => db
            .prepare_cached("DELETE FROM notes WHERE namespace = ?1 AND list = ?2 AND member = ?3")?
            .execute(params![namespace, index.name(), member])?,
    };
    Ok(())
}

/// Returns up to `limit` members of an index, ordered by time, that follow `after`.
pub(crate) fn list(
    db: &Connection,
    namespace: i64,
    index: &Index,
    after: Option<&(Timestamp, String)>,
    limit: usize,
) -> rusqlite::Result<Vec<(Timestamp, String)>> {
    let (at, member) = match after {
        Some((at, member)) => (Some(at.as_micros()), Some(member.as_str())),
        None => (None, None),
    };
    db.prepare_cached(
        // What another program wrote here is no entry.
        "SELECT at, member FROM notes WHERE namespace = ?1 AND list = ?2 \
         AND typeof(at) = 'integer' AND typeof(member) = 'text' \
         AND (?3 IS NULL OR (at, member) > (?3, ?4)) ORDER BY at, member LIMIT ?5",
    )?
    .query_map(
        params![namespace, index.name(), at, member, i64::try_from(limit).unwrap_or(i64::MAX)],
        |row| Ok((Timestamp::from_micros(row.get(0)?), row.get(1)?)),
    )?
    .collect()
}
