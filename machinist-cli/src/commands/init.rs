//! `machinist init`: writes a machinist.toml with a task that works, and a key.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use machinist::{
    settings::FILE,
    sign::{Algorithm, Key},
};

use super::keygen;
use crate::{
    args::{InitArgs, KEY_FILE},
    exit::{CliError, Code},
    output,
};

/// Contents of the new machinist.toml. A test reads it.
const TEMPLATE: &str = include_str!("init.toml");

/// Key file of an SQLite broker that was used before there was a machinist.toml.
const EMBEDDED_KEY: &str = "machinist.db.key";

pub(super) fn run(args: &InitArgs, path: Option<PathBuf>, json: bool) -> Result<Code, CliError> {
    let path = path.unwrap_or_else(|| FILE.into());
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let key = folder.join(KEY_FILE);
    let there_already = || {
        let text = format!("{} is there already, and is not changed", path.display());
        CliError::new(Code::Configuration, text).remedy("--force overwrites it")
    };
    if path.exists() && !args.force {
        return Err(there_already());
    }
    // The key is written before the file that names it. An existing key stays in use: messages that it signed may be
    // under way.
    let fresh = !key.exists();
    Key::read_or_create(&key, Algorithm::default(), &keygen::today())
        .map_err(|error| CliError::from_error(Code::Configuration, &error))?;
    let mut options = fs::OpenOptions::new();
    // The creation itself checks that there is no file, so that none is lost between check and creation.
    options.write(true).create(true).truncate(true).create_new(!args.force);
    let written = options.open(&path).and_then(|mut file| file.write_all(contents(folder).as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => there_already(),
        _ => cannot_write(&path, &error),
    })?;
    let ignored = ignore(folder)?;
    if json {
        output::json(&serde_json::json!({ "file": path, "key_file": key }))?;
        return Ok(Code::Success);
    }
    let key_note = match (fresh, ignored) {
        (false, _) => "is not changed",
        (true, true) => "too: it signs the tasks, and .gitignore names it",
        (true, false) => "too: it signs the tasks, keep it secret",
    };
    output::line(&format!(
        "{} is written, {} {key_note}. Now, in two terminals:",
        path.display(),
        key.display()
    ))?;
    output::line("  machinist worker")?;
    output::line("  machinist send greet World --wait")?;
    Ok(Code::Success)
}

/// Returns the template, with the former key of an SQLite broker as a key that still verifies.
fn contents(folder: &Path) -> String {
    let mut text = TEMPLATE.to_owned();
    if folder.join(EMBEDDED_KEY).exists() {
        text += "\n# This key signed the messages in machinist.db from before this file existed.\n";
        text += &format!("[[keys]]\nfile  = \"{EMBEDDED_KEY}\"\nstate = \"verify\"\n");
    }
    text
}

/// Adds the key to the .gitignore of the folder. Returns `false` if there is no .gitignore.
fn ignore(folder: &Path) -> Result<bool, CliError> {
    let path = folder.join(".gitignore");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(false) };
    if text.lines().any(|line| [KEY_FILE, "/machinist.key", "*.key"].contains(&line.trim())) {
        return Ok(true);
    }
    let begin = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let file = fs::OpenOptions::new().append(true).open(&path);
    let appended = file.and_then(|mut file| file.write_all(format!("{begin}{KEY_FILE}\n").as_bytes()));
    appended.map(|()| true).map_err(|error| cannot_write(&path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> CliError {
    CliError::from_error(Code::Configuration, error)
        .context(format_args!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinist::settings::{Overrides, Settings};

    fn read(text: &str) -> Settings {
        Settings::resolve(Overrides::default(), &|_| None, Some((FILE.as_ref(), text))).unwrap()
    }

    #[test]
    fn the_template_can_be_read() {
        let settings = read(TEMPLATE);
        assert_eq!(settings.tasks["greet"].command.as_ref().unwrap().value.len(), 3);
    }

    #[test]
    fn what_is_commented_out_can_be_read_too() {
        let all: Vec<&str> = TEMPLATE.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
        let settings = read(&all.join("\n"));
        assert!(settings.tasks.contains_key("resize"));
        assert_eq!(settings.worker.concurrency.value, 16);
    }
}
