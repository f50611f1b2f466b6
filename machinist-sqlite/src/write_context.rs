//! The connection of the writing thread, and the values that every change needs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use machinist_adapter::clock::Timestamp;
use rusqlite::Connection;

use crate::{clock::HostClock, messages::QueueIds};

/// Maximum time that the close of a file waits for other processes, to move the write-ahead log into the file.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(500);

/// Connection and values that every change needs.
#[derive(Debug)]
pub(crate) struct WriteContext {
    pub(crate) db: Connection,
    pub(crate) path: PathBuf,
    pub(crate) namespace: i64,
    /// Random id of the store. Its own wake-ups carry it.
    pub(crate) store_id: i64,
    pub(crate) clock: Arc<HostClock>,
    /// Time of the current transaction, or of the last one.
    pub(crate) now: Timestamp,
    pub(crate) queues: QueueIds,
}

impl WriteContext {
    pub(crate) fn new(
        db: Connection,
        path: PathBuf,
        namespace: i64,
        store_id: i64,
        clock: Arc<HostClock>,
    ) -> Self {
        let now = clock.now();
        Self { db, path, namespace, store_id, clock, now, queues: QueueIds::default() }
    }

    /// Runs a statement without parameters.
    pub(crate) fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Closes the connection. The last process to close the file leaves all of it in one file: SQLite then moves the
    /// write-ahead log into it. Before, the log is emptied here if no consuming process is left, because two processes that
    /// close at the same moment each see the other.
    pub(crate) fn close(self) {
        // All of this is best effort: what stays in the log is read at the next start.
        let consumed = self.db.prepare_cached("SELECT 1 FROM owners").and_then(|mut any| any.exists([]));
        if matches!(consumed, Ok(false)) {
            let _ = self.db.busy_timeout(CHECKPOINT_TIMEOUT);
            let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
    }
}
