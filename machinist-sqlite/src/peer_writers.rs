//! Taking turns with other processes that write the same file.
//!
//! SQLite has one write lock per file and no queue before it. So that processes take turns, a waiting one asks for it
//! ten thousand times a second (see [`open`](crate::open)), and one that sees others write leaves the lock alone for a
//! moment between two transactions.

use std::time::{Duration, Instant};

use rusqlite::Connection;

/// Pause between two transactions while others write; longer than the pause between two of their tries.
const YIELD_TIME: Duration = Duration::from_micros(250);
/// For how long after another process's commit the courtesy lasts.
const PEER_ACTIVE_TIME: Duration = Duration::from_secs(1);

/// Whether other processes write, too.
#[derive(Debug)]
pub(crate) struct PeerWriters {
    data_version: i64,
    active_until: Instant,
    last_commit: Instant,
}

impl PeerWriters {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { data_version: 0, active_until: now, last_commit: now }
    }

    /// Leaves the lock to others for a moment if they have been writing.
    pub(crate) fn yield_to_peers(&self) {
        let now = Instant::now();
        if now < self.active_until {
            let since = now.duration_since(self.last_commit);
            std::thread::sleep(YIELD_TIME.saturating_sub(since));
        }
    }

    /// After a transaction: looks whether others had one since.
    pub(crate) fn note_commit(&mut self, db: &Connection) {
        self.last_commit = Instant::now();
        let data_version = db.prepare_cached("PRAGMA data_version").and_then(|mut statement| {
            // It changes with the commits of all others, never with our own.
            statement.query_row([], |row| row.get(0))
        });
        if let Ok(data_version) = data_version
            && std::mem::replace(&mut self.data_version, data_version) != data_version
        {
            self.active_until = self.last_commit + PEER_ACTIVE_TIME;
        }
    }
}
