//! *Command tasks*: tasks whose handlers are programs, in any language.
//!
//! `[tasks.NAME]` of machinist.toml holds a command line with placeholders for the task's arguments. A program gets the
//! arguments there, and as one JSON object on its standard input:
//!
//! ```json
//! {"id": "0198…", "name": "resize", "queue": "images", "attempt": 1,
//!  "args": ["cat.png", 640], "named": {"src": "cat.png", "width": 640}}
//! ```
//!
//! `MACHINIST_TASK_ID`, `MACHINIST_TASK_NAME`, `MACHINIST_ATTEMPT` and `MACHINIST_FENCING_TOKEN` are in its
//! environment. Its standard output is the result (JSON, else text without the last line break; empty output is no
//! result), its standard error goes into the record's log. Exit code 0 is success, 75 asks to be run later, after the
//! task's back-off; every other code is a failure. A run that is cut short ends with every process that it started, and
//! processes that a program leaves running in its process group end with the program.

mod process;
mod template;

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
};

use machinist::{
    Arg, Backoff, Results, TaskContext, TaskError,
    handler::{DynHandler, HandlerFuture},
    settings::{Setting, SettingsError, TaskSettings},
};
use serde::Serialize;
use serde_json::Value;

use crate::systemd;
pub(crate) use process::ProcessGroups;
use process::{FinishedRun, ProgramEnd};
use template::{Arguments, Template};

/// Exit code of a program that asks to be run later (`EX_TEMPFAIL`).
const RUN_LATER: i32 = 75;

/// Handler that runs a program.
#[derive(Debug, Clone)]
pub(crate) struct CommandTask(Arc<CommandTemplate>);

#[derive(Debug)]
struct CommandTemplate {
    program: PathBuf,
    arguments: Vec<Template>,
    names: Option<Vec<String>>,
    backoff: Backoff,
    groups: ProcessGroups,
}

impl CommandTask {
    /// Reads the templates of a task's command.
    ///
    /// # Errors
    /// A template names an argument that does not exist.
    pub(crate) fn new(
        name: &str,
        command: &Setting<Vec<String>>,
        task: &TaskSettings,
        groups: &ProcessGroups,
    ) -> Result<Self, SettingsError> {
        let names = task.args.as_ref().map(|names| names.value.clone());
        let wrong = |problem| SettingsError::new(&command.origin, format!("tasks.{name}.command: {problem}"));
        let parse = |text: &String| Template::parse(text, names.as_deref()).map_err(wrong);
        // INVARIANT: the settings refuse an empty command.
        let (program, arguments) = command.value.split_first().expect("a command names a program");
        if !parse(program)?.is_constant() {
            return Err(wrong("the program itself cannot come from an argument".to_owned()));
        }
        Ok(Self(Arc::new(CommandTemplate {
            program: locate(program, task.folder()),
            arguments: arguments.iter().map(parse).collect::<Result<_, _>>()?,
            backoff: task.backoff.as_ref().map(|b| b.value.clone()).unwrap_or_default(),
            groups: groups.clone(),
            names,
        })))
    }
}

impl DynHandler for CommandTask {
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture {
        let command = Arc::clone(&self.0);
        Box::pin(async move { command.run(cx, args).await })
    }
}

/// Returns the path of a program: one with a slash is relative to the folder of its configuration, a bare name is
/// searched in `PATH`.
fn locate(program: &str, folder: &Path) -> PathBuf {
    let path = Path::new(program);
    if !program.contains('/') || path.is_absolute() {
        return path.to_owned();
    }
    let joined = folder.join(path);
    // Without a slash it would be searched in `PATH`.
    if joined.components().count() == 1 { Path::new(".").join(joined) } else { joined }
}

/// JSON object on a program's standard input.
#[derive(Serialize)]
struct CommandInput<'a> {
    id: &'a str,
    name: &'a str,
    queue: &'a str,
    attempt: u32,
    args: &'a [Value],
    named: &'a std::collections::BTreeMap<String, Value>,
}

impl CommandTemplate {
    async fn run(&self, cx: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
        let arguments = Arguments::bind(args, self.names.as_deref()).map_err(TaskError::malformed)?;
        let argv: Result<Vec<String>, String> = self.arguments.iter().map(|t| t.fill(&arguments)).collect();
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(argv.map_err(TaskError::malformed)?)
            .env("MACHINIST_TASK_ID", cx.task_id().as_str())
            .env("MACHINIST_TASK_NAME", cx.task_name().as_str())
            .env("MACHINIST_ATTEMPT", cx.attempt().to_string())
            .env("MACHINIST_FENCING_TOKEN", cx.fencing_token().to_string());
        for variable in systemd::VARIABLES {
            command.env_remove(variable);
        }
        let input = serde_json::to_vec(&CommandInput {
            id: cx.task_id().as_str(),
            name: cx.task_name().as_str(),
            queue: cx.queue().as_str(),
            attempt: cx.attempt(),
            args: &arguments.values,
            named: &arguments.named,
        })?;
        let ended = process::run(command, input, |line| cx.log(line), cx.cancellation(), &self.groups).await;
        match ended {
            Ok(ProgramEnd::Finished(finished)) => self.outcome(finished, cx.attempt()),
            Ok(ProgramEnd::Cancelled) => Err(TaskError::new("the run was cancelled, and its program ended")),
            Err(error) => Err(self.not_started(error)),
        }
    }

    fn outcome(&self, finished: FinishedRun, attempt: u32) -> Result<Results, TaskError> {
        if finished.overflow {
            let limit = process::MAX_OUTPUT_BYTES / 1024 / 1024;
            let why =
                format!("wrote more than {limit} MiB to standard output; write a file and print its name");
            return Err(TaskError::permanent(self.failed(&why, finished.last_lines)));
        }
        match finished.status.code() {
            Some(0) => results(finished.stdout)
                .map_err(|why| TaskError::permanent(self.failed(why, finished.last_lines))),
            Some(RUN_LATER) => {
                let why = self.failed("asked to be run later (exit code 75)", finished.last_lines);
                // The longest time that the back-off allows: the program knows that now is too early.
                Err(TaskError::retry_in(self.backoff.delay(attempt.saturating_sub(1), 1.0)).because(why))
            }
            _ => Err(TaskError::new(self.failed(&describe_status(finished.status), finished.last_lines))),
        }
    }

    fn not_started(&self, error: std::io::Error) -> TaskError {
        use std::io::ErrorKind;
        let why = match error.kind() {
            ErrorKind::NotFound => {
                "does not exist on this worker, or its first line names a program that does not exist"
            }
            ErrorKind::PermissionDenied => "may not be run by this worker; make it executable",
            ErrorKind::ArgumentListTooLong => {
                let why = self
                    .failed("cannot take arguments that long; read them from standard input", String::new());
                return TaskError::malformed(why);
            }
            _ => "cannot be started",
        };
        TaskError::new(CommandFailed { text: self.sentence(why), cause: Some(error.into()) })
    }

    fn failed(&self, problem: &str, last_lines: String) -> CommandFailed {
        let cause = (!last_lines.is_empty()).then(|| last_lines.into());
        CommandFailed { text: self.sentence(problem), cause }
    }

    fn sentence(&self, predicate: &str) -> String {
        format!("{} {predicate}", self.program.display())
    }
}

/// Error of a command; its cause is the end of its standard error.
#[derive(Debug)]
struct CommandFailed {
    text: String,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl std::fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CommandFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.cause.as_deref()?)
    }
}

fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(number)) => match nix::sys::signal::Signal::try_from(number) {
            Ok(signal) => format!("was ended by signal {number} ({signal})"),
            Err(_) => format!("was ended by signal {number}"),
        },
        (None, None) => "ended without an exit code".to_owned(),
    }
}

/// Reads standard output as results: JSON if it is JSON, else text; empty output is no result.
fn results(stdout: Vec<u8>) -> Result<Results, &'static str> {
    let Ok(text) = String::from_utf8(stdout) else {
        return Err("wrote standard output that is not UTF-8; encode it, in base64 for example");
    };
    if text.trim().is_empty() {
        return Ok(Results::default());
    }
    let value = serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text.trim()));
    Ok(Results(vec![Arg::from_value(value)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinist::settings::{Overrides, Settings};
    use serde_json::json;

    fn task(toml: &str) -> Result<CommandTask, SettingsError> {
        let settings = Settings::resolve(
            Overrides::default(),
            &|_| None,
            Some((Path::new("conf/machinist.toml"), toml)),
        )?;
        let task = &settings.tasks["t"];
        CommandTask::new("t", task.command.as_ref().unwrap(), task, &ProcessGroups::default())
    }

    #[test]
    fn programs_are_found_where_they_are_configured() {
        assert_eq!(locate("./run.sh", Path::new("/etc/app")), Path::new("/etc/app/./run.sh"));
        assert_eq!(locate("bin/run", Path::new("")), Path::new("bin/run"));
        assert_eq!(locate("./run.sh", Path::new("")), Path::new("./run.sh"));
        assert_eq!(locate("python3", Path::new("/etc/app")), Path::new("python3"));
        assert_eq!(locate("/bin/sh", Path::new("/etc/app")), Path::new("/bin/sh"));
    }

    #[test]
    fn wrong_templates_are_errors_of_the_configuration() {
        let error = task("[tasks.t]\ncommand = [\"./x\", \"{src}\"]").unwrap_err().to_string();
        assert_eq!(
            error,
            "conf/machinist.toml:2: tasks.t.command: unknown placeholder {src}: there is no args list; write {{ for a brace itself"
        );
        let error = task("[tasks.t]\ncommand = [\"{0}\"]").unwrap_err().to_string();
        assert!(error.contains("the program itself cannot come from an argument"), "{error}");
    }

    #[test]
    fn standard_output_is_the_result() {
        let value =
            |text: &str| results(text.into()).unwrap().0.into_iter().map(|a| a.value).collect::<Vec<_>>();
        assert_eq!(value("{\"a\": 1}\n"), [json!({"a": 1})]);
        assert_eq!(value("42\n"), [json!(42)]);
        assert_eq!(value("two words\n"), [json!("two words")]);
        assert!(value(" \n").is_empty());
        assert!(results(vec![0xff]).is_err());
    }

    #[test]
    fn endings_are_told_in_words() {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(describe_status(ExitStatus::from_raw(3 << 8)), "failed with exit code 3");
        assert_eq!(describe_status(ExitStatus::from_raw(9)), "was ended by signal 9 (SIGKILL)");
    }
}
