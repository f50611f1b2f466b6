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

/// Prints rows under a header.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), CliError> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| visible::one_line(cell)));
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    line(&table.trim_fmt())
}

/// `true` if notes are lines of JSON, like the log that they share standard error with.
static JSON_NOTES: AtomicBool = AtomicBool::new(false);

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

/// Prints a note on standard error.
pub(crate) fn note(text: &str) {
    if JSON_NOTES.load(Ordering::Relaxed) {
        json_note("INFO", text.strip_prefix("machinist: ").unwrap_or(text), None);
    } else {
        to_stderr(&visible::lines(text));
    }
}

/// Prints the error of a command and its remedy.
pub(crate) fn failure(failure: &CliError) {
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
