//! The diagnosis of a file from its own contents: its size, its mode, its integrity, its permissions.

use std::{path::Path, time::Duration};

use machinist_adapter::diagnose::Finding;
use rusqlite::Connection;

use crate::clock::Deviation;

/// Maximum size of a file whose pages are checked, in bytes. The check reads the whole file while other queries wait;
/// up to this size it takes a fraction of a second.
const MAX_CHECKED_FILE_BYTES: u64 = 64 << 20;

/// Difference between the time of the file and the host's clock that is worth a warning.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// Examines the file through a reading connection.
pub(crate) fn examine(db: &Connection, path: &Path, deviation: Deviation) -> rusqlite::Result<Vec<Finding>> {
    let text = |sql: &str| db.query_row(sql, [], |row| row.get::<_, String>(0));
    let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
    let size = std::fs::metadata(path).map_or(0, |file| file.len());
    let pages = number("PRAGMA page_count")?;
    let free = number("PRAGMA freelist_count")?;
    let mut findings = vec![
        Finding::good("file", path.display().to_string()),
        Finding::good("SQLite", rusqlite::version()),
        Finding::good("schema", number("PRAGMA user_version")?.to_string()),
        Finding::good("size", format!("{} KiB, {free} of {pages} pages free for reuse", size >> 10)),
        Finding::good("messages", number("SELECT count(*) FROM messages")?.to_string()),
        Finding::good("records", number("SELECT count(*) FROM records")?.to_string()),
        Finding::good("consuming processes", number("SELECT count(*) FROM owners")?.to_string()),
    ];
    findings.push(match text("PRAGMA journal_mode")? {
        mode if mode == "wal" => Finding::good("journal mode", mode),
        mode => Finding::error(
            "journal mode",
            mode,
            "stop all processes that use the file, then run `sqlite3 FILE 'PRAGMA journal_mode = WAL'`",
        ),
    });
    findings.push(clock(deviation));
    findings.push(rights(path));
    findings.push(if size > MAX_CHECKED_FILE_BYTES {
        Finding::good(
            "integrity",
            "not checked because the file is large; check it with `sqlite3 FILE 'PRAGMA quick_check'`",
        )
    } else {
        match text("PRAGMA quick_check(1)")? {
            ok if ok == "ok" => Finding::good("integrity", ok),
            damage => Finding::error(
                "integrity",
                damage,
                "stop all processes that use the file, keep a copy, and recover it with `sqlite3 FILE .recover`",
            ),
        }
    });
    Ok(findings)
}

fn clock(deviation: Deviation) -> Finding {
    match deviation {
        Deviation::Ahead(by) if by >= CLOCK_TOLERANCE => Finding::warning(
            "clock",
            format!(
                "the time of the file is {by:?} ahead of the host's clock, and runs at half speed until they agree"
            ),
            "check the host's clock; if that is right, stop all processes that use the file and run \
             `sqlite3 FILE 'DELETE FROM clock'`",
        ),
        Deviation::Behind(by) if by >= CLOCK_TOLERANCE => Finding::warning(
            "clock",
            format!(
                "the host's clock jumped {by:?} ahead of the time of the file, which follows within a minute"
            ),
            "check the host's clock",
        ),
        Deviation::Ahead(_) | Deviation::Behind(_) => Finding::good("clock", "the host's"),
    }
}

#[cfg(unix)]
fn rights(path: &Path) -> Finding {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(path).map(|file| file.permissions().mode() & 0o777) {
        Ok(mode) if mode & 0o077 == 0 => Finding::good("rights", format!("{mode:o}")),
        Ok(mode) => Finding::warning(
            "rights",
            format!("{mode:o}: other users can read the arguments of tasks"),
            "run `chmod 600 FILE*`, unless this is intended",
        ),
        Err(error) => Finding::error(
            "rights",
            error.to_string(),
            "the file was removed: restart the processes that use it",
        ),
    }
}

#[cfg(not(unix))]
fn rights(path: &Path) -> Finding {
    match std::fs::metadata(path) {
        Ok(file) => {
            Finding::good("rights", if file.permissions().readonly() { "read only" } else { "writable" })
        }
        Err(error) => Finding::error(
            "rights",
            error.to_string(),
            "the file was removed: restart the processes that use it",
        ),
    }
}
