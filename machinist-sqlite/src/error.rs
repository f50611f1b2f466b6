//! Errors of operations on the file, classified by their remedy.
//!
//! The errors of SQLite stay in this crate. Callers get the errors of the seams, with the path of the file and the
//! remedy.

use std::{path::Path, sync::Arc};

use machinist_adapter::{
    backend::BackendError,
    broker::{BrokerError, PublishError},
};
use rusqlite::ErrorCode;

/// Error of an operation on the file.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub(crate) struct StoreError {
    pub(crate) kind: StoreErrorKind,
    text: Arc<str>,
}

/// Class of an error by its remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreErrorKind {
    /// Another process held the write lock for longer than this one waits. Nothing was changed.
    Busy,
    /// No space is left. Nothing was changed.
    Full,
    /// The file or its directory can no longer be written. Nothing was changed.
    ReadOnly,
    /// The file is damaged: the data read differs from the data written.
    Corrupt,
    /// One row holds something that this crate did not write, or would become too large. Nothing was changed; every
    /// other row can be used.
    Row,
    /// The store was closed. Nothing was changed.
    Closed,
    /// Any other error, such as an input or output error. The change may or may not have been made.
    Other,
}

impl StoreError {
    pub(crate) fn new(kind: StoreErrorKind, path: &Path, error: &dyn std::fmt::Display) -> Self {
        let path = path.display();
        let text = match kind {
            StoreErrorKind::Busy => format!(
                "{path}: another process has been writing for many seconds ({error}); look for a process that was \
                 stopped in the middle of a write"
            ),
            StoreErrorKind::Full => format!("{path}: no space is left ({error}); free some space"),
            StoreErrorKind::ReadOnly => {
                format!(
                    "{path}: cannot be written ({error}); check the permissions of the file and its directory"
                )
            }
            StoreErrorKind::Corrupt => format!(
                "{path}: the file is damaged ({error}); stop all processes that use it, keep a copy, and recover \
                 it with `sqlite3 FILE .recover`"
            ),
            StoreErrorKind::Row => format!(
                "{path}: {error}; another program changed or wrote this row, or it is too large: delete it with the \
                 sqlite3 shell"
            ),
            StoreErrorKind::Closed => format!("{path}: the store was closed"),
            StoreErrorKind::Other => format!("{path}: {error}"),
        };
        Self { kind, text: text.into() }
    }

    pub(crate) fn of(path: &Path, error: &rusqlite::Error) -> Self {
        Self::new(kind_of(error), path, error)
    }

    pub(crate) fn closed(path: &Path) -> Self {
        Self::new(StoreErrorKind::Closed, path, &"")
    }
}

/// Returns the class of an error of SQLite.
pub(crate) fn kind_of(error: &rusqlite::Error) -> StoreErrorKind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreErrorKind::Busy,
        Some(ErrorCode::DiskFull) => StoreErrorKind::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            StoreErrorKind::ReadOnly
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreErrorKind::Corrupt,
        Some(ErrorCode::TooBig) => StoreErrorKind::Row,
        Some(_) => StoreErrorKind::Other,
        // Not an error code of SQLite: a value in the file was not in the format that this crate writes.
        None => StoreErrorKind::Row,
    }
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Full => Self::Blocked { reason: error.to_string() },
            StoreErrorKind::Busy
            | StoreErrorKind::ReadOnly
            | StoreErrorKind::Corrupt
            | StoreErrorKind::Closed => Self::Unavailable(error.into()),
            StoreErrorKind::Row | StoreErrorKind::Other => Self::Unknown(error.into()),
        }
    }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Full | StoreErrorKind::ReadOnly | StoreErrorKind::Corrupt => {
                Self::Refused { reason: error.to_string() }
            }
            StoreErrorKind::Busy | StoreErrorKind::Row | StoreErrorKind::Closed | StoreErrorKind::Other => {
                Self::Unavailable(error.into())
            }
        }
    }
}

impl From<StoreError> for BackendError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Row => Self::Record { reason: error.to_string() },
            StoreErrorKind::Full | StoreErrorKind::ReadOnly | StoreErrorKind::Corrupt => {
                Self::Refused { reason: error.to_string() }
            }
            StoreErrorKind::Busy | StoreErrorKind::Closed | StoreErrorKind::Other => {
                Self::Unavailable(error.into())
            }
        }
    }
}
