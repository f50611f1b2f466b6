//! `machinist config`: the settings in force, and the place that sets each.

use machinist::settings::Settings;
use serde::Serialize;

use super::worker;
use crate::{
    exit::{CliError, Code},
    output,
};

#[derive(Serialize)]
struct ConfigRow {
    key: String,
    value: String,
    origin: String,
}

pub(super) fn run(settings: &Settings, json: bool) -> Result<Code, CliError> {
    worker::check(settings)?;
    let entries = settings.entries().into_iter();
    let rows = entries.map(|entry| ConfigRow {
        key: entry.key,
        value: entry.value,
        origin: entry.origin.to_string(),
    });
    if json {
        output::json(&rows.collect::<Vec<_>>())?;
    } else {
        output::table(&["key", "value", "from"], rows.map(|row| vec![row.key, row.value, row.origin]))?;
    }
    Ok(Code::Success)
}
