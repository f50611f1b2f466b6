//! `[tasks.NAME]` of `machinist.toml`.

use std::{collections::BTreeMap, time::Duration};

use machinist_core::{QueueName, sign::SecretText};
use toml::de::DeValue;

use super::{Setting, SettingsError, TaskSettings, limits, section::Section, text, value};

/// Keys of a task, under `[tasks.NAME]`, without those of its limit and its uniqueness.
const TASK_KEYS: [&str; 20] = [
    "command",
    "args",
    "queue",
    "requires",
    "timeout",
    "soft_timeout",
    "retries",
    "retry_for",
    "retry_timeouts",
    "backoff",
    "env",
    "env_pass",
    "cwd",
    "user",
    "dash_values",
    "keep_args",
    "hide_args",
    "concurrency",
    "circuit",
    "circuit_pause",
];

/// Pause of a worker that fails a task again and again, unless one is set.
const DEFAULT_CIRCUIT_PAUSE: Duration = Duration::from_secs(60);

/// Reads all tasks of a file, by name.
pub(super) fn read(top: &Section<'_>) -> Result<BTreeMap<String, TaskSettings>, SettingsError> {
    let keys = [&TASK_KEYS[..], &limits::LIMIT_KEYS, &limits::UNIQUE_KEYS].concat();
    let sections = top.sections("tasks", &keys)?;
    sections.into_iter().map(|(name, section)| Ok((name, read_task(&section)?))).collect()
}

fn read_task(section: &Section<'_>) -> Result<TaskSettings, SettingsError> {
    let command =
        section.get("command", |v| match value::strings(v, "a list of the program and its arguments")? {
            list if list.is_empty() => Err("names no program; write [\"./program\", \"{0}\"]".to_owned()),
            list => Ok(list),
        })?;
    if section.table.is_empty() {
        let remedy =
            "write command = [\"./program\", \"{0}\"], or options of a task in Rust, such as retries = 3";
        return Err(section.error(&format!("is empty; {remedy}")));
    }
    if command.is_none() {
        for key in ["args", "env", "env_pass", "cwd", "user", "dash_values"] {
            section.get::<()>(key, |_| {
                Err(format!("belongs to a command, and there is none; add the command, or leave {key} out"))
            })?;
        }
    }
    let folder = section.source.folder();
    Ok(TaskSettings {
        origin: command.as_ref().map_or_else(|| section.origin(), |command| command.origin.clone()),
        command,
        args: section.get("args", |v| value::strings(v, "a list of names"))?,
        queue: section.get("queue", |v| {
            QueueName::parse(value::string(v, "a queue name")?).map_err(|e| e.to_string())
        })?,
        requires: section.get("requires", value::tags)?,
        timeout: section.get("timeout", value::positive_duration)?,
        soft_timeout: section.get("soft_timeout", value::positive_duration)?,
        retry_timeouts: section.get("retry_timeouts", value::boolean)?,
        retry_for: section.get("retry_for", value::duration)?,
        retries: section.get("retries", |v| {
            let number = value::integer(v, "a number of retries")?;
            u32::try_from(number).map_err(|_| format!("{number} is not a number of retries; take 0 or more"))
        })?,
        backoff: section.get("backoff", |v| text::parse_backoff(value::string(v, "a back-off")?))?,
        env: section.get("env", variables)?,
        env_pass: section.get("env_pass", |v| {
            value::strings(v, "a list of variables, like [\"AWS_*\"]")?.into_iter().map(passed).collect()
        })?,
        cwd: section.get("cwd", |v| Ok(folder.join(value::string(v, "the name of a folder")?)))?,
        user: section.get("user", |v| Ok(value::string(v, "the name of a user")?.to_owned()))?,
        dash_values: section.get("dash_values", value::boolean)?,
        circuit: read_circuit(section)?,
        limit: limits::read_limit(section)?,
        unique: limits::read_unique(section)?,
        concurrency: section.get("concurrency", value::concurrency)?,
        keep_args: section.get("keep_args", value::boolean)?,
        hide_args: section.get("hide_args", value::boolean)?,
    })
}

/// Reads the number of failures in a row, and the pause after them.
fn read_circuit(section: &Section<'_>) -> Result<Option<Setting<(u32, Duration)>>, SettingsError> {
    let pause = section.value("circuit_pause", value::positive_duration)?;
    let circuit = section.get("circuit", |v| {
        let number = value::integer(v, "a number of failures")?;
        u32::try_from(number).map_err(|_| format!("{number} is not a number of failures; take 0 or more"))
    })?;
    match (circuit, pause) {
        (Some(circuit), pause) => {
            let pause = pause.unwrap_or(DEFAULT_CIRCUIT_PAUSE);
            Ok(Some(Setting::new((circuit.value, pause), circuit.origin)))
        }
        (None, Some(_)) => section
            .get::<()>("circuit_pause", |_| Err("needs circuit, a number of failures; add it".to_owned()))
            .map(|_| None),
        (None, None) => Ok(None),
    }
}

/// Reads the variables that a task sets. Their values may be secrets, so no error repeats one.
fn variables(value: &DeValue<'_>) -> Result<BTreeMap<String, SecretText>, String> {
    let expected = "expected a table of variables, like { LEVEL = \"info\" }";
    let table = value.as_table().ok_or(expected)?;
    let variable = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = name.get_ref();
        let text = value.get_ref().as_str().ok_or_else(|| format!("{name}: expected text in quotes"))?;
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            return Err(format!("{name:?} cannot be a variable: no name has a =, and no variable a NUL"));
        }
        Ok((name.to_string(), SecretText::new(text.to_owned())))
    };
    table.iter().map(variable).collect()
}

/// Reads the name of a variable that a program inherits, or a pattern.
fn passed(name: String) -> Result<String, String> {
    let start = name.strip_suffix('*').unwrap_or(&name);
    if name.is_empty() || start.contains(['*', '=']) {
        return Err(format!("{name:?} names no variable; write a name, or its beginning and a *"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{connector::Connectors, settings::file};
    use std::path::Path;

    fn task(options: &str) -> Result<TaskSettings, String> {
        let text = format!("[tasks.t]\ncommand = [\"a\"]\n{options}");
        let file = file::read(Path::new("conf/machinist.toml"), &text, &Connectors::default());
        file.map(|mut file| file.tasks.remove("t").unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_surroundings_of_a_command_are_read() {
        let task = task(
            "env = { A = \"geheim\" }\nenv_pass = [\"AWS_*\", \"X\"]\ncwd = \"work\"\nuser = \"nobody\"",
        )
        .unwrap();
        assert_eq!(task.env.as_ref().unwrap().value["A"].expose(), "geheim");
        assert_eq!(task.env_pass.as_ref().unwrap().value, ["AWS_*", "X"]);
        assert_eq!(task.cwd.as_ref().unwrap().value, Path::new("conf/work"));
        assert_eq!(task.user.as_ref().unwrap().value, "nobody");
        assert!(!format!("{task:?}").contains("geheim"));
    }

    #[test]
    fn wrong_surroundings_are_reported_and_no_value_is_shown() {
        for (options, problem) in [
            ("circuit = -1", "tasks.t.circuit: -1 is not a number of failures"),
            ("circuit_pause = \"1m\"", "needs circuit"),
            ("env = \"geheim\"", "tasks.t.env: expected a table of variables"),
            ("env = { A = [\"geheim\"] }", "A: expected text in quotes"),
            ("env = { \"A=B\" = \"geheim\" }", "cannot be a variable"),
            ("env_pass = [\"*_KEY\"]", "names no variable"),
        ] {
            let error = task(options).unwrap_err();
            assert!(error.contains(problem) && !error.contains("geheim"), "{error}");
        }
        let text = "[tasks.t]\nretries = 1\nuser = \"nobody\"";
        let error = file::read(Path::new("machinist.toml"), text, &Connectors::default()).unwrap_err();
        assert!(error.to_string().contains("tasks.t.user: belongs to a command"), "{error}");
    }
}
