//! `machinist config`: the settings in force, and the place that sets each; or those of a configuration of Go machinery.

#[cfg(feature = "machinery")]
use machinist::settings::MachineryConfig;
use machinist::settings::Settings;
use serde::Serialize;

use super::worker;
use crate::{
    args::ConfigArgs,
    exit::{CliError, Code},
    output,
};

#[derive(Serialize)]
struct ConfigRow {
    key: String,
    value: String,
    origin: String,
}

/// A configuration of Go machinery as machinist.toml.
#[cfg(feature = "machinery")]
#[derive(Serialize)]
struct FromMachinery {
    toml: String,
    no_counterpart: Vec<Gap>,
}

#[cfg(feature = "machinery")]
#[derive(Serialize)]
struct Gap {
    key: String,
    value: String,
    why: String,
}

pub(super) fn run(args: &ConfigArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    if let Some(file) = &args.from_machinery {
        return from_machinery(file, settings, json);
    }
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

#[cfg(feature = "machinery")]
fn from_machinery(file: &std::path::Path, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let config = MachineryConfig::load(file)?;
    let toml = settings.from_machinery(&config)?;
    if json {
        let gap = |gap: &machinist::settings::MachineryGap| Gap {
            key: gap.key.clone(),
            value: gap.value.clone(),
            why: gap.why.clone(),
        };
        output::json(&FromMachinery { toml, no_counterpart: config.gaps().iter().map(gap).collect() })?;
    } else {
        output::raw(&toml)?;
    }
    Ok(Code::Success)
}

#[cfg(not(feature = "machinery"))]
fn from_machinery(_file: &std::path::Path, _settings: &Settings, _json: bool) -> Result<Code, CliError> {
    let text = "--from-machinery: this program was built without it";
    Err(CliError::new(Code::Configuration, text).remedy("build it with the cargo feature `machinery`"))
}
