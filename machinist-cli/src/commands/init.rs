//! `machinist init`: a machinist.toml to begin with, whose task works, and a key.

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

/// What is written. It is read back by a test, so that it cannot rot.
const TEMPLATE: &str = include_str!("init.toml");

/// The key that the embedded file made for itself before there was a machinist.toml.
const EMBEDDED_KEY: &str = "machinist.db.key";

pub(super) fn run(what: &InitArgs, path: Option<PathBuf>, json: bool) -> Result<Code, CliError> {
    let path = path.unwrap_or_else(|| FILE.into());
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let key = folder.join(KEY_FILE);
    let there_already = || {
        let text = format!("{} is there already, and stays as it is", path.display());
        CliError::new(Code::Configuration, text).remedy("--force overwrites it")
    };
    if path.exists() && !what.force {
        return Err(there_already());
    }
    // Before the file that names it. One that is there stays in use: tasks that it signed may be under way.
    let fresh = !key.exists();
    Key::read_or_create(&key, Algorithm::default(), &keygen::today())
        .map_err(|error| CliError::from_error(Code::Configuration, &error))?;
    let mut options = fs::OpenOptions::new();
    // The check is the creation itself, so that nobody's file is lost between the two.
    options.write(true).create(true).truncate(true).create_new(!what.force);
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
    let of_key = match (fresh, ignored) {
        (false, _) => "stays as it was",
        (true, true) => "too, which signs the tasks, and .gitignore names it",
        (true, false) => "too, which signs the tasks: keep it to yourself",
    };
    output::line(&format!(
        "{} is written, {} {of_key}. Now, in two terminals:",
        path.display(),
        key.display()
    ))?;
    output::line("  machinist worker")?;
    output::line("  machinist send greet World --wait")?;
    Ok(Code::Success)
}

/// The template. What the embedded file's own key has signed is believed further on.
fn contents(folder: &Path) -> String {
    let mut text = TEMPLATE.to_owned();
    if folder.join(EMBEDDED_KEY).exists() {
        text += "\n# It signed what lies in machinist.db from before this file was here.\n";
        text += &format!("[[keys]]\nfile  = \"{EMBEDDED_KEY}\"\nstate = \"verify\"\n");
    }
    text
}

/// Keeps the key out of version control, where that is told by a .gitignore here; whether it is.
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
        assert_eq!(settings.tasks["greet"].command.value.len(), 3);
    }

    #[test]
    fn what_is_commented_out_can_be_read_too() {
        let all: Vec<&str> = TEMPLATE.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
        let settings = read(&all.join("\n"));
        assert!(settings.tasks.contains_key("resize"));
        assert_eq!(settings.worker.concurrency.value, 16);
    }
}
