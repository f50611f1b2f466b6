//! The entry to the crate: one open file, which hands out its broker and its backend.

use std::{path::Path, sync::Arc, thread};

use tokio::sync::oneshot;

use crate::{
    SqliteBackend, SqliteBroker, open::OpenError, options::SqliteOptions, store_handle::StoreHandle,
};

/// One SQLite file as broker and result backend.
///
/// Any number of processes on one host may open the same file at once. Within a process open it once and share the
/// store: broker and backend then share their transactions, which halves the number of syncs.
///
/// The threads of the store end when it, and everything that came from it, is dropped or [closed](Self::close).
#[derive(Debug, Clone)]
pub struct SqliteStore {
    handle: Arc<StoreHandle>,
}

impl SqliteStore {
    /// Opens a file, or makes it, readable for its owner only. Its directory must exist.
    ///
    /// Beside the file lie its write-ahead log (`FILE-wal`, `FILE-shm`) and the locks of consuming processes
    /// (`FILE-owners/`). A copy made while the file is in use is not a backup; `sqlite3 FILE ".backup COPY"` makes one.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the file and what to do; the file is as it was before.
    ///
    /// # Cancel safety
    /// Safe: what was opened is closed again.
    pub async fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let (done, opened) = oneshot::channel();
        let failed = |source: std::io::Error| OpenError::Io { path: path.clone(), source: source.into() };
        let at = path.clone();
        thread::Builder::new()
            .name("machinist-sqlite-open".into())
            .spawn(move || drop(done.send(StoreHandle::open(&at, &options))))
            .map_err(failed)?;
        let handle = match opened.await {
            Ok(opened) => opened?,
            Err(_) => return Err(failed(std::io::Error::other("the opening thread ended"))),
        };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// The file as a broker. All brokers of a store are one: closing one closes all.
    pub fn broker(&self) -> SqliteBroker {
        SqliteBroker::new(self.handle.clone())
    }

    /// The file as a result backend.
    pub fn backend(&self) -> SqliteBackend {
        SqliteBackend::new(self.handle.clone())
    }

    /// The file's absolute path.
    pub fn path(&self) -> &Path {
        &self.handle.path
    }

    /// Does what was asked before, hands back what is held, and closes the file, the last of it a tenth of a second
    /// later. Broker and backend answer *unavailable* from then on. Idempotent.
    ///
    /// # Cancel safety
    /// Dropped early, the rest is done by the store's threads.
    pub async fn close(&self) {
        self.handle.close().await;
    }
}
