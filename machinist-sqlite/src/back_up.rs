//! Copies of a file that processes use.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
};

use machinist_adapter::error::BoxError;
use tokio::sync::oneshot;

use crate::open::{self, OpenError};

/// Reason that a copy was not made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackUpError {
    /// The file does not exist, or holds nothing yet.
    #[error("{}: there is no such file, so there is nothing to copy", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The copy exists already.
    #[error("{}: exists already; name another file, or remove it first", path.display())]
    Exists {
        /// The copy.
        path: PathBuf,
    },
    /// The copy could not be written.
    #[error("{}: the copy cannot be written", path.display())]
    Copy {
        /// The copy.
        path: PathBuf,
        /// Error of the operating system or of SQLite.
        #[source]
        source: BoxError,
    },
}

/// Copies a file of [`SqliteStore`](crate::SqliteStore) while any number of processes use it, and returns the size of the
/// copy in bytes.
///
/// The copy holds all that was committed before the call, and no half of a commit. It is a file for
/// [`SqliteStore::open`](crate::SqliteStore::open), readable for its owner only; it appears under its name when it is
/// complete and synced. A task that runs meanwhile is a running task in the copy, whose worker is gone: it runs again there
/// after its lease has expired. The key file of the program is not part of it.
///
/// # Errors
/// [`BackUpError`]; nothing is left behind.
///
/// # Cancel safety
/// A dropped future does not stop the copy.
pub async fn back_up(file: impl AsRef<Path>, copy: impl AsRef<Path>) -> Result<u64, BackUpError> {
    let (file, copy) = (file.as_ref().to_owned(), copy.as_ref().to_owned());
    let failed = |source: BoxError| BackUpError::Copy { path: copy.clone(), source };
    let (done, copied) = oneshot::channel();
    let to = copy.clone();
    thread::Builder::new()
        .name("machinist-sqlite-backup".into())
        .spawn(move || drop(done.send(make_copy(&file, &to))))
        .map_err(|error| failed(error.into()))?;
    copied.await.unwrap_or_else(|_| Err(failed("the copying thread ended".into())))
}

fn make_copy(file: &Path, copy: &Path) -> Result<u64, BackUpError> {
    let failed = |source: BoxError| BackUpError::Copy { path: copy.to_owned(), source };
    let Some(db) = open::open_existing(file)? else {
        return Err(BackUpError::NoFile { path: file.to_owned() });
    };
    if copy.exists() {
        return Err(BackUpError::Exists { path: copy.to_owned() });
    }
    let mut name = copy.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let written = write_part(&db, &part).and_then(|size| {
        fs::rename(&part, copy)?;
        open::sync_directory(copy)?;
        Ok(size)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&part);
        failed(error)
    })
}

/// Writes the copy under a provisional name, and syncs it.
fn write_part(db: &rusqlite::Connection, part: &Path) -> Result<u64, BoxError> {
    // A copy that was interrupted.
    match fs::remove_file(part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // SQLite writes into an empty file, and keeps its permissions.
    open::create_private(part)?;
    let name = part.to_str().ok_or("its name is not UTF-8; name another file")?;
    db.execute("VACUUM INTO ?1", [name])?;
    let written = File::options().read(true).write(true).open(part)?;
    written.sync_all()?;
    Ok(written.metadata()?.len())
}
