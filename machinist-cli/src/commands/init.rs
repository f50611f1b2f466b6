//! `machinist init`: a machinist.toml to begin with, whose task works.

use std::{fs, io::Write, path::PathBuf};

use machinist::settings::FILE;

use crate::{
    args::Init,
    exit::{Code, Failure},
    output,
};

/// What is written. It is read back by a test, so that it cannot rot.
const TEMPLATE: &str = include_str!("init.toml");

pub(super) fn run(what: &Init, path: Option<PathBuf>, json: bool) -> Result<Code, Failure> {
    let path = path.unwrap_or_else(|| FILE.into());
    let mut options = fs::OpenOptions::new();
    // The check is the creation itself, so that nobody's file is lost between the two.
    options.write(true).create(true).truncate(true).create_new(!what.force);
    let written = options.open(&path).and_then(|mut file| file.write_all(TEMPLATE.as_bytes()));
    let shown = path.display();
    match written {
        Ok(()) if json => output::json(&serde_json::json!({ "file": path }))?,
        Ok(()) => {
            output::line(&format!("{shown} is written. Now, in two terminals:"))?;
            output::line("  machinist worker")?;
            output::line("  machinist send greet World --wait")?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new(
                Code::Configuration,
                format!("{shown} is there already, and stays as it is"),
            )
            .remedy("--force overwrites it"));
        }
        Err(error) => {
            return Err(
                Failure::of(Code::Configuration, &error).doing(format_args!("{shown} cannot be written"))
            );
        }
    }
    Ok(Code::Success)
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
