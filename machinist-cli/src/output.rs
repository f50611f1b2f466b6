//! Output of the program: results on standard output, everything else on standard error.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{
    exit::{CliError, Code},
    view::printable,
};

/// Prints a line of the result.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    write(format!("{text}\n").as_bytes())
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
    let text = serde_json::to_string(value).map_err(|error| CliError::from_error(Code::Fault, &error))?;
    line(&text)
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
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    line(&table.trim_fmt())
}

/// Prints a note on standard error.
pub(crate) fn note(text: &str) {
    // If standard error cannot be written, there is no other place for the note.
    let _ = writeln!(io::stderr(), "{}", printable(text));
}

/// Prints the error of a command and its remedy.
pub(crate) fn failure(failure: &CliError) {
    note(&format!("machinist: {}", failure.text));
    if let Some(remedy) = &failure.remedy {
        note(&format!("  {remedy}"));
    }
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
