//! The sessions that a process has opened: they end with the process.
//!
//! A session is a record with a lease. If its process is killed, others wait until the lease has expired. The lock of an
//! owner proves earlier that its process is gone (see [`owners`](crate::owners)): the process that finds the lock free also
//! deletes the records of the owner's sessions. A stale heartbeat is no proof: a stopped process may continue.

use machinist_adapter::{
    backend::{Commit, Expiry},
    id::{RecordId, RecordKind},
};
use rusqlite::{Connection, params};

/// Created in every file that lacks it: files of schema version 2 may.
pub(crate) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS owner_sessions (
  owner     INTEGER NOT NULL,
  namespace INTEGER NOT NULL,
  name      TEXT NOT NULL,
  PRIMARY KEY (owner, namespace, name)
) WITHOUT ROWID";
/// Maximum number of sessions that are remembered. A worker opens another only after the last has expired.
const MAX_SESSIONS: usize = 64;

/// Sessions that this process has opened or renewed, oldest first.
#[derive(Debug, Default)]
pub(crate) struct OwnSessions(Vec<RecordId>);

impl OwnSessions {
    /// Notes a commit that was made, if it opens or renews a session.
    pub(crate) fn note(
        &mut self,
        db: &Connection,
        namespace: i64,
        owner: Option<i64>,
        commit: &Commit,
    ) -> rusqlite::Result<()> {
        if commit.id.kind() != RecordKind::Session || !matches!(commit.expiry, Expiry::After(_)) {
            return Ok(());
        }
        if !self.0.contains(&commit.id) {
            if self.0.len() >= MAX_SESSIONS {
                self.0.remove(0);
            }
            self.0.push(commit.id.clone());
        }
        owner.map_or(Ok(()), |owner| add(db, namespace, owner, &commit.id))
    }

    /// Binds the sessions to a new registration of this process.
    pub(crate) fn bind(&self, db: &Connection, namespace: i64, owner: i64) -> rusqlite::Result<()> {
        self.0.iter().try_for_each(|session| add(db, namespace, owner, session))
    }
}

fn add(db: &Connection, namespace: i64, owner: i64, session: &RecordId) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO owner_sessions (owner, namespace, name) VALUES (?1, ?2, ?3)")?
        .execute(params![owner, namespace, session.id()])?;
    Ok(())
}

/// Ends the sessions of an owner whose process is gone.
pub(crate) fn end(db: &Connection, owner: i64) -> rusqlite::Result<()> {
    db.prepare_cached(
        "DELETE FROM records WHERE kind = ?2 AND (namespace, name) IN \
         (SELECT namespace, name FROM owner_sessions WHERE owner = ?1)",
    )?
    .execute(params![owner, RecordKind::Session.as_str()])?;
    Ok(())
}

/// Forgets the sessions of an owner that is no longer registered.
pub(crate) fn forget(db: &Connection, owner: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM owner_sessions WHERE owner = ?1")?.execute([owner])?;
    Ok(())
}
