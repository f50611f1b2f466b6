//! The entry point of the crate: an open file, which provides a broker and a backend.

use std::{path::Path, sync::Arc, thread};

use tokio::sync::oneshot;

use crate::{
    SqliteBackend, SqliteBroker, open::OpenError, options::SqliteOptions, store_handle::StoreHandle,
};

/// One SQLite file as broker and result backend.
///
/// Any number of processes on one host may open the same file at once. Within a process, open it once and share the
/// store: broker and backend then share their transactions, which halves the number of syncs.
///
/// The threads of the store end when the store and everything created from it are dropped, or when it is
/// [closed](Self::close). The last drop blocks until the file is closed, which takes milliseconds.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    handle: Arc<StoreHandle>,
}

impl SqliteStore {
    /// Opens a file. Creates it, readable for its owner only, if it does not exist. Its directory must exist.
    ///
    /// Next to the file are its write-ahead log (`FILE-wal`, `FILE-shm`) and the locks of consuming processes
    /// (`FILE-owners/`). While no process uses the file, all data is in the file itself, unless the last process was killed.
    /// A copy made while the file is in use is not a backup; [`back_up`](crate::back_up) makes one.
    ///
    /// # Errors
    /// Returns an [`OpenError`], which states the problem of the file and its remedy. The file is unchanged.
    ///
    /// # Cancel safety
    /// Cancel safe. A file that was opened is closed again.
    pub async fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let (done, opened) = oneshot::channel();
        let failed = |source: std::io::Error| OpenError::Io { path: path.clone(), source: source.into() };
        let opened_path = path.clone();
        thread::Builder::new()
            .name("machinist-sqlite-open".into())
            .spawn(move || drop(done.send(StoreHandle::open(&opened_path, &options))))
            .map_err(failed)?;
        let handle = match opened.await {
            Ok(opened) => opened?,
            Err(_) => return Err(failed(std::io::Error::other("the opening thread ended"))),
        };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Returns the file as a broker. All brokers of a store are the same: closing one closes all.
    pub fn broker(&self) -> SqliteBroker {
        SqliteBroker::new(self.handle.clone())
    }

    /// Returns the file as a result backend.
    pub fn backend(&self) -> SqliteBackend {
        SqliteBackend::new(self.handle.clone())
    }

    /// Returns the absolute path of the file.
    pub fn path(&self) -> &Path {
        &self.handle.path
    }

    /// Completes the operations that were started before, hands back the messages that are held, and closes the file.
    /// From then on, operations of the broker and the backend fail as *unavailable*. Idempotent.
    ///
    /// # Cancel safety
    /// Cancel safe. If the future is dropped, the threads of the store complete the work.
    pub async fn close(&self) {
        self.handle.close().await;
    }
}
