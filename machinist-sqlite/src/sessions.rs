//! SQL of sessions.

use std::time::Duration;

use bytes::Bytes;
use machinist_adapter::{backend::SessionEntry, clock::Timestamp, id::SessionId};
use rusqlite::{Connection, params};

/// Opens a session, or opens it again with a new lease.
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

/// Renews a session if it is alive. Returns `true` if it was.
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

/// Deletes a session.
pub(crate) fn close(db: &Connection, namespace: i64, session: &SessionId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM sessions WHERE namespace = ?1 AND id = ?2")?
        .execute(params![namespace, session.as_str()])?;
    Ok(())
}

/// Returns `true` if the lease of a session has not expired.
pub(crate) fn is_alive(
    db: &Connection,
    namespace: i64,
    now: Timestamp,
    session: &SessionId,
) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sessions WHERE namespace = ?1 AND id = ?2 AND expires > ?3")?
        .exists(params![namespace, session.as_str(), now.as_micros()])
}

/// Returns the sessions that are alive, ordered by id.
pub(crate) fn all(db: &Connection, namespace: i64, now: Timestamp) -> rusqlite::Result<Vec<SessionEntry>> {
    db.prepare_cached("SELECT id, info FROM sessions WHERE namespace = ?1 AND expires > ?2 ORDER BY id")?
        .query_map(params![namespace, now.as_micros()], |row| {
            let id = SessionId::from(row.get_ref(0)?.as_str()?);
            Ok(SessionEntry { id, info: Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?) })
        })?
        .collect()
}
