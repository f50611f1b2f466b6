//! `machinist keys`: lists and checks keys. Secrets are never shown.

use std::path::PathBuf;

use machinist::{
    Connectors,
    diagnose::Level,
    keys::ConfiguredKey,
    settings::{Overrides, Settings},
};
use serde::Serialize;

use super::doctor;
use crate::{
    args::KeysCommand,
    exit::{CliError, Code},
    output,
};

#[derive(Serialize)]
struct KeyRow {
    id: String,
    alg: String,
    state: &'static str,
    not_before: Option<String>,
    not_after: Option<String>,
    tasks: Option<Vec<String>>,
    queues: Option<Vec<String>>,
    origin: String,
}

impl From<ConfiguredKey> for KeyRow {
    fn from(key: ConfiguredKey) -> Self {
        Self {
            id: key.key.id().to_string(),
            alg: key.key.algorithm().to_string(),
            state: key.state(),
            not_before: key.not_before,
            not_after: key.not_after,
            tasks: key.tasks,
            queues: key.queues,
            origin: key.origin.to_string(),
        }
    }
}

pub(super) fn run(
    command: KeysCommand,
    flags: Overrides,
    connectors: &Connectors,
    json: bool,
) -> Result<Code, CliError> {
    match command {
        KeysCommand::List { file } => list(&settings(file, flags, connectors)?, json),
        KeysCommand::Check { file } => check(&settings(file, flags, connectors)?, json),
    }
}

/// Returns the settings; if a key file is named, only that file.
fn settings(file: Option<PathBuf>, flags: Overrides, connectors: &Connectors) -> Result<Settings, CliError> {
    Ok(match file {
        None => Settings::load_with(connectors, flags)?,
        Some(file) => {
            let flags = Overrides { key_file: Some(file), ..Overrides::default() };
            Settings::resolve_with(connectors, flags, &|_| None, None)?
        }
    })
}

fn list(settings: &Settings, json: bool) -> Result<Code, CliError> {
    let mut rows = Vec::new();
    for key in settings.configured_keys() {
        rows.push(KeyRow::from(key?));
    }
    if json {
        output::json(&rows)?;
        return Ok(Code::Success);
    }
    let all = |names: Option<Vec<String>>| names.map_or_else(|| "all".to_owned(), |names| names.join(" "));
    let instant = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let cells = |row: KeyRow| {
        vec![
            row.id,
            row.alg,
            row.state.to_owned(),
            instant(row.not_before),
            instant(row.not_after),
            all(row.tasks),
            all(row.queues),
            row.origin,
        ]
    };
    let head = ["id", "alg", "state", "not before", "not after", "tasks", "queues", "from"];
    output::table(&head, rows.into_iter().map(cells))?;
    Ok(Code::Success)
}

fn check(settings: &Settings, json: bool) -> Result<Code, CliError> {
    let findings = settings.diagnose_keys();
    let broken = findings.iter().any(|finding| finding.level == Level::Error);
    doctor::print(findings.into_iter().map(|finding| doctor::FindingRow::new("keys", "", finding)), json)?;
    Ok(if broken { Code::Configuration } else { Code::Success })
}
