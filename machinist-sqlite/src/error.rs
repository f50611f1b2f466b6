//! What went wrong in the file, by what can be done about it.
//!
//! SQLite's errors stay in this crate: callers get the errors of the seams, with the file's path and the remedy.

use std::{path::Path, sync::Arc};

use machinist_core::{
    backend::BackendError,
    broker::{BrokerError, PublishError},
};
use rusqlite::ErrorCode;

/// Why an operation on the file failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub(crate) struct StoreError {
    pub(crate) kind: StoreErrorKind,
    text: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreErrorKind {
    /// Another process held the write lock for longer than we wait; nothing was done.
    Busy,
    /// No room for it; nothing was done.
    Full,
    /// The file, or what holds it, cannot be written any more; nothing was done.
    ReadOnly,
    /// What was read is not what was written.
    Corrupt,
    /// The store was closed; nothing was done.
    Closed,
    /// Anything else, input and output errors among them: it may have been done or not.
    Other,
}

impl StoreError {
    pub(crate) fn new(kind: StoreErrorKind, path: &Path, error: &dyn std::fmt::Display) -> Self {
        let path = path.display();
        let text = match kind {
            StoreErrorKind::Busy => format!(
                "{path}: another process has been writing for many seconds ({error}); look for one that is \
                 stopped in the middle of it"
            ),
            StoreErrorKind::Full => format!("{path}: no space is left for it ({error}); free some"),
            StoreErrorKind::ReadOnly => {
                format!("{path}: cannot be written ({error}); check the rights of the file and its directory")
            }
            StoreErrorKind::Corrupt => format!(
                "{path}: the file is damaged ({error}); stop all its users, keep a copy, and salvage it with \
                 `sqlite3 FILE .recover`"
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

pub(crate) fn kind_of(error: &rusqlite::Error) -> StoreErrorKind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreErrorKind::Busy,
        Some(ErrorCode::DiskFull) => StoreErrorKind::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            StoreErrorKind::ReadOnly
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreErrorKind::Corrupt,
        Some(_) => StoreErrorKind::Other,
        // No code of SQLite's: a value in the file did not have the shape that we give it.
        None => StoreErrorKind::Corrupt,
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
            StoreErrorKind::Other => Self::Unknown(error.into()),
        }
    }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Full | StoreErrorKind::ReadOnly | StoreErrorKind::Corrupt => {
                Self::Refused { reason: error.to_string() }
            }
            StoreErrorKind::Busy | StoreErrorKind::Closed | StoreErrorKind::Other => {
                Self::Unavailable(error.into())
            }
        }
    }
}

impl From<StoreError> for BackendError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Full | StoreErrorKind::ReadOnly | StoreErrorKind::Corrupt => {
                Self::Refused { reason: error.to_string() }
            }
            StoreErrorKind::Busy | StoreErrorKind::Closed | StoreErrorKind::Other => {
                Self::Unavailable(error.into())
            }
        }
    }
}
