//! The SQL of sessions and of the lists beside the facts.

use std::time::Duration;

use bytes::Bytes;
use machinist_core::{
    backend::{Index, IndexUpdate, SessionEntry},
    clock::Timestamp,
    id::SessionId,
};
use rusqlite::{Connection, params};

pub(crate) fn open(
    db: &Connection,
    namespace: i64,
    session: &SessionId,
    expires: Timestamp,
    info: &[u8],
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO sessions (namespace, id, expires, info) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (namespace, id) DO UPDATE SET expires = ?3, info = ?4",
    )?
    .execute(params![namespace, session.as_str(), expires.as_micros(), info])?;
    Ok(())
}

/// Renews a session that is alive; tells whether it was.
pub(crate) fn renew(
    db: &Connection,
    namespace: i64,
    session: &SessionId,
    now: Timestamp,
    lease: Duration,
    info: &[u8],
) -> rusqlite::Result<bool> {
    let renewed = db
        .prepare_cached(
            "UPDATE sessions SET expires = ?3, info = ?4 WHERE namespace = ?1 AND id = ?2 AND expires > ?5",
        )?
        .execute(params![namespace, session.as_str(), now.plus(lease).as_micros(), info, now.as_micros()])?;
    Ok(renewed > 0)
}

pub(crate) fn close(db: &Connection, namespace: i64, session: &SessionId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM sessions WHERE namespace = ?1 AND id = ?2")?
        .execute(params![namespace, session.as_str()])?;
    Ok(())
}

pub(crate) fn is_alive(
    db: &Connection,
    namespace: i64,
    now: Timestamp,
    session: &SessionId,
) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sessions WHERE namespace = ?1 AND id = ?2 AND expires > ?3")?
        .exists(params![namespace, session.as_str(), now.as_micros()])
}

pub(crate) fn all(db: &Connection, namespace: i64, now: Timestamp) -> rusqlite::Result<Vec<SessionEntry>> {
    db.prepare_cached("SELECT id, info FROM sessions WHERE namespace = ?1 AND expires > ?2 ORDER BY id")?
        .query_map(params![namespace, now.as_micros()], |row| {
            let id = SessionId::from(row.get_ref(0)?.as_str()?);
            Ok(SessionEntry { id, info: Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?) })
        })?
        .collect()
}

pub(crate) fn update_index(db: &Connection, namespace: i64, update: &IndexUpdate) -> rusqlite::Result<()> {
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

pub(crate) fn list(
    db: &Connection,
    namespace: i64,
    index: Index,
    after: Option<&(Timestamp, String)>,
    limit: usize,
) -> rusqlite::Result<Vec<(Timestamp, String)>> {
    let (at, member) = match after {
        Some((at, member)) => (Some(at.as_micros()), Some(member.as_str())),
        None => (None, None),
    };
    db.prepare_cached(
        "SELECT at, member FROM notes WHERE namespace = ?1 AND list = ?2 \
         AND (?3 IS NULL OR (at, member) > (?3, ?4)) ORDER BY at, member LIMIT ?5",
    )?
    .query_map(
        params![namespace, index.name(), at, member, i64::try_from(limit).unwrap_or(i64::MAX)],
        |row| Ok((Timestamp::from_micros(row.get(0)?), row.get(1)?)),
    )?
    .collect()
}
