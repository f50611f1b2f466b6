//! A file of users that is read again when it has changed, so that a new password counts without a restart.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use machinist::sign::read_secret_file;
use tokio::time::Instant;

use super::AccessError;

/// Time for which a file counts as read.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Maximum size of a file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// File of users.
pub(super) struct WatchedFile<T> {
    path: PathBuf,
    parse: fn(&str) -> Result<T, String>,
    last: Mutex<(Instant, Result<Arc<T>, AccessError>)>,
}

impl<T> WatchedFile<T> {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, or a line is wrong.
    pub(super) fn open(path: &Path, parse: fn(&str) -> Result<T, String>) -> Result<Self, AccessError> {
        let content = Arc::new(read(path, parse)?);
        Ok(Self { path: path.to_owned(), parse, last: Mutex::new((Instant::now(), Ok(content))) })
    }

    /// Returns the content of the file, at most a second old.
    ///
    /// # Errors
    /// The file cannot be read any more, or a line is wrong: nobody is let in by what it said before.
    pub(super) fn content(&self) -> Result<Arc<T>, AccessError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.elapsed() >= READ_AGAIN_AFTER {
            *last = (Instant::now(), read(&self.path, self.parse).map(Arc::new));
        }
        last.1.clone()
    }
}

fn read<T>(path: &Path, parse: fn(&str) -> Result<T, String>) -> Result<T, AccessError> {
    let cannot = |problem: String| AccessError::File { path: path.to_owned(), problem };
    let text = read_secret_file(path, MAX_FILE_BYTES);
    let text = text.map_err(|error| cannot(format!("cannot be read: {error}")))?;
    parse(&text).map_err(cannot)
}

/// Returns the fields of each line that is neither empty nor a comment, with its number.
///
/// # Errors
/// A line has another number of fields. The error does not repeat it: it can be a secret.
pub(super) fn fields<const N: usize>(text: &str, syntax: &str) -> Result<Vec<(usize, [String; N])>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let split = |(number, line): (usize, &str)| {
        let fields: Vec<String> = line.splitn(N, ':').map(|field| field.trim().to_owned()).collect();
        let fields: [String; N] =
            fields.try_into().map_err(|_| format!("line {number} is not of the form {syntax}"))?;
        match fields.iter().any(String::is_empty) {
            true => Err(format!("line {number} has an empty field; write {syntax}")),
            false => Ok((number, fields)),
        }
    };
    lines.map(split).collect()
}

impl<T> fmt::Debug for WatchedFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedFile").field("path", &self.path).finish_non_exhaustive()
    }
}
