//! Output of the program: results on standard output, everything else on standard error.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{
    exit::{CliError, Code},
    visible,
};

/// Prints a line of the result, with its hidden characters made visible.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    write(format!("{}\n", visible::lines(text)).as_bytes())
}

/// Prints text without changes.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn raw(text: &str) -> Result<(), CliError> {
    write(text.as_bytes())
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), CliError> {
    raw(&(json_text(value)? + "\n"))
}

/// Returns a value as JSON without hidden characters.
///
/// # Errors
/// The value cannot be JSON.
pub(crate) fn json_text<T: Serialize + ?Sized>(value: &T) -> Result<String, CliError> {
    let text = serde_json::to_string(value).map_err(|error| CliError::from_error(Code::Fault, &error))?;
    Ok(visible::json(&text))
}

/// Minimum width of a last column that is shortened, in characters.
const MIN_LAST_COLUMN: usize = 12;

/// Returns the width of the terminal at standard output; `None` if there is no terminal.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// Shortens the cells of the last column so that no row is wider than this. It holds the longest and least needed text.
/// The others are names and ids that people copy.
fn fit(head: &[&str], rows: &mut [Vec<String>], width: usize) {
    let chars = |text: &str| text.chars().count();
    let column = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| chars(cell));
        cells.chain([chars(head[at])]).max().unwrap_or(0)
    };
    let Some(last) = head.len().checked_sub(1) else { return };
    let before: usize = (0..last).map(|at| column(at) + 2).sum();
    let room = width.saturating_sub(before).max(MIN_LAST_COLUMN);
    for cell in rows.iter_mut().filter_map(|row| row.get_mut(last)) {
        if chars(cell) > room {
            *cell = cell.chars().take(room - 1).chain(['…']).collect();
        }
    }
}

/// Prints rows under a header. On a terminal, a last column that does not fit is shortened.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), CliError> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    let one_line = |row: Vec<String>| row.iter().map(|cell| visible::one_line(cell)).collect();
    let mut rows: Vec<Vec<String>> = rows.into_iter().map(one_line).collect();
    if let Some(width) = terminal_width() {
        fit(head, &mut rows, width);
    }
    for row in rows {
        table.add_row(row);
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    line(&table.trim_fmt())
}

/// `true` if notes are lines of JSON, like the log that they share standard error with.
static JSON_NOTES: AtomicBool = AtomicBool::new(false);

/// `true` if errors of commands are JSON, because the command line asks for JSON.
static JSON_ERRORS: AtomicBool = AtomicBool::new(false);

/// Error of a command as JSON.
#[derive(Serialize)]
struct JsonError<'a> {
    error: &'a str,
    /// Advice to people; `None` if there is none.
    remedy: Option<&'a str>,
}

/// Line of JSON on standard error, with the names that the log uses.
#[derive(Serialize)]
struct JsonNote<'a> {
    timestamp: String,
    level: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
    target: &'static str,
}

/// Makes notes, errors and panics lines of JSON from now on.
pub(crate) fn use_json_notes() {
    JSON_NOTES.store(true, Ordering::Relaxed);
    std::panic::set_hook(Box::new(|panic| json_note("ERROR", &panic.to_string(), None)));
}

/// Makes errors of commands JSON objects from now on.
pub(crate) fn use_json_errors() {
    JSON_ERRORS.store(true, Ordering::Relaxed);
}

/// Prints a note on standard error.
pub(crate) fn note(text: &str) {
    if JSON_NOTES.load(Ordering::Relaxed) {
        json_note("INFO", text.strip_prefix("machinist: ").unwrap_or(text), None);
    } else {
        to_stderr(&visible::lines(text));
    }
}

/// Notes the place after which a list goes on; nothing at its end.
pub(crate) fn note_next(place: Option<String>) {
    if let Some(place) = place {
        note(&format!("machinist: go on with --after {place}"));
    }
}

/// Prints the error of a command and its remedy.
pub(crate) fn failure(failure: &CliError) {
    if JSON_ERRORS.load(Ordering::Relaxed) {
        let error = JsonError { error: &failure.text, remedy: failure.remedy.as_deref() };
        // INVARIANT: the error holds only texts.
        return to_stderr(&visible::json(&serde_json::to_string(&error).expect("plain data")));
    }
    if JSON_NOTES.load(Ordering::Relaxed) {
        return json_note("ERROR", &failure.text, failure.remedy.as_deref());
    }
    note(&format!("machinist: {}", failure.text));
    if let Some(remedy) = &failure.remedy {
        note(&format!("  {remedy}"));
    }
}

fn json_note(level: &'static str, message: &str, remedy: Option<&str>) {
    let timestamp = machinist::clock::wall().to_string();
    let note = JsonNote { timestamp, level, message, remedy, target: "machinist" };
    // INVARIANT: the note holds only texts.
    to_stderr(&visible::json(&serde_json::to_string(&note).expect("plain data")));
}

fn to_stderr(line: &str) {
    // If standard error cannot be written, there is no other place for the note.
    let _ = writeln!(io::stderr(), "{line}");
}

fn write(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // The reader has closed the pipe on purpose: `machinist queues | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| {
            CliError::from_error(Code::Fault, &error).context("standard output cannot be written")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_gives_way_and_the_others_stay() {
        let row = |id: &str, error: &str| vec![id.to_owned(), error.to_owned()];
        let long = "a very long error that does not fit";
        let mut rows = vec![row("t-1", long), row("t-22", "short")];
        fit(&["id", "error"], &mut rows, 26);
        assert_eq!(rows, [row("t-1", "a very long error t…"), row("t-22", "short")]);
        let mut rows = vec![row("a-long-id-that-people-copy", long)];
        fit(&["id", "error"], &mut rows, 10);
        assert_eq!(rows, [row("a-long-id-that-people-copy", "a very long…")]);
        let mut rows = vec![row("t-1", long)];
        fit(&["id", "error"], &mut rows, 200);
        assert_eq!(rows, [row("t-1", long)]);
    }
}
