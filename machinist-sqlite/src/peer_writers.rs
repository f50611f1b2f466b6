//! Fair sharing of the write lock with other processes.
//!
//! SQLite has one write lock per file and no queue for it. To share it fairly, a waiting process requests the lock ten
//! thousand times a second (see [`open`](crate::open)), and a process that detects other writers leaves the lock free
//! for a moment between two transactions.

use std::time::{Duration, Instant};

use rusqlite::Connection;

/// Minimum time between two transactions while other processes write. It is longer than the interval between two of
/// their requests for the lock.
const YIELD_TIME: Duration = Duration::from_micros(250);
/// Time after a commit of another process during which that process counts as writing.
const PEER_ACTIVE_TIME: Duration = Duration::from_secs(1);

/// Detector of other processes that write the file.
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

    /// Waits for a moment without the lock if other processes have been writing.
    pub(crate) fn yield_to_peers(&self) {
        let now = Instant::now();
        if now < self.active_until {
            let since = now.duration_since(self.last_commit);
            std::thread::sleep(YIELD_TIME.saturating_sub(since));
        }
    }

    /// Notes a transaction of this process, and checks if other processes have committed since the last one.
    pub(crate) fn note_commit(&mut self, db: &Connection) {
        self.last_commit = Instant::now();
        let data_version = db.prepare_cached("PRAGMA data_version").and_then(|mut statement| {
            // It changes with the commits of other processes and never with those of this connection.
            statement.query_row([], |row| row.get(0))
        });
        if let Ok(data_version) = data_version
            && std::mem::replace(&mut self.data_version, data_version) != data_version
        {
            self.active_until = self.last_commit + PEER_ACTIVE_TIME;
        }
    }
}
