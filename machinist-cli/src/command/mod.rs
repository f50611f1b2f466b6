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
//! `MACHINIST_TASK_ID`, `MACHINIST_TASK_NAME`, `MACHINIST_QUEUE`, `MACHINIST_ATTEMPT`, `MACHINIST_FENCING_TOKEN` and
//! `TRACEPARENT` are in its environment, and few others. Its standard output is the result (JSON, else text without the last line break; empty output is no
//! result), its standard error goes into the record's log. Exit code 0 is success, 75 asks to be run later, after the
//! task's back-off; every other code is a failure. All processes that a run has started end with it. docs/command-tasks.md
//! has the details.

mod environment;
mod process;
mod template;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use machinist::{
    Arg, Backoff, Results, TaskContext, TaskError,
    args::ArgInfo,
    handler::{DynHandler, HandlerFuture},
    settings::{Setting, Settings, SettingsError, TaskSettings},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    spelling,
    supervisor::order::{RunOrder, UserIds},
};
use environment::{Environment, TaskVariables};
pub(crate) use process::Programs;
use process::{FinishedRun, ProgramEnd};
use template::{Arguments, Template};

/// Exit code of a program that asks to be run later (`EX_TEMPFAIL`).
const RUN_LATER: i32 = 75;

/// Time between two attempts to start a program on a host that is short of files, processes or memory.
const SHORTAGE_INTERVAL: Duration = Duration::from_millis(250);
/// Number of such attempts before the task is postponed.
const SHORTAGE_ATTEMPTS: u32 = 40;
/// Time for which it is postponed then.
const SHORTAGE_DELAY: Duration = Duration::from_secs(10);

/// Handler that runs a program.
#[derive(Debug, Clone)]
pub(crate) struct CommandTask(Arc<CommandTemplate>);

/// Surroundings that all command tasks of a worker share.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Programs that run.
    pub(crate) programs: Programs,
    /// Variables that hold keys.
    secret: BTreeSet<String>,
    /// Soft limit of open files that programs get; `None` for that of the worker.
    pub(crate) open_files: Option<u64>,
}

impl Host {
    pub(crate) fn new(settings: &Settings) -> Self {
        let secret = settings.keys.iter().filter_map(|key| key.value.env.clone()).collect();
        Self { programs: Programs::default(), secret, open_files: None }
    }
}

#[derive(Debug)]
struct CommandTemplate {
    program: PathBuf,
    arguments: Vec<Template>,
    names: Option<Vec<String>>,
    backoff: Backoff,
    environment: Environment,
    folder: Option<PathBuf>,
    user: Option<UserIds>,
    host: Host,
}

impl CommandTask {
    /// Reads the templates of a task's command.
    ///
    /// # Errors
    /// A template names an argument that does not exist, or the user does not exist or cannot be taken.
    pub(crate) fn new(
        name: &str,
        command: &Setting<Vec<String>>,
        task: &TaskSettings,
        host: &Host,
    ) -> Result<Self, SettingsError> {
        let names = task.args.as_ref().map(|names| names.value.clone());
        let wrong = |problem| SettingsError::new(&command.origin, format!("tasks.{name}.command: {problem}"));
        // INVARIANT: the settings refuse an empty command.
        let (program, arguments) = command.value.split_first().expect("a command names a program");
        let constant = Template::parse(program, names.as_deref()).map_err(wrong)?.is_constant();
        if !constant {
            return Err(wrong("the program itself cannot come from an argument".to_owned()));
        }
        let dash_values = task.dash_values.as_ref().is_some_and(|allowed| allowed.value);
        let arguments = template::arguments(arguments, names.as_deref(), dash_values).map_err(wrong)?;
        let user = task.user.as_ref().map(|user| {
            let wrong = |problem| SettingsError::new(&user.origin, format!("tasks.{name}.user: {problem}"));
            account(&user.value).map_err(wrong)
        });
        let (user, account) = user.transpose()?.unzip();
        let set = task.env.iter().flat_map(|env| &env.value);
        let mut set: BTreeMap<String, String> =
            set.map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
        for (name, value) in account.into_iter().flatten() {
            set.entry(name.to_owned()).or_insert(value);
        }
        let pass = task.env_pass.as_ref().map(|names| names.value.as_slice()).unwrap_or_default();
        let variables = TaskVariables { pass, set: &set };
        Ok(Self(Arc::new(CommandTemplate {
            program: locate(program, task.folder()),
            arguments,
            backoff: task.backoff.as_ref().map(|b| b.value.clone()).unwrap_or_default(),
            environment: Environment::choose(std::env::vars_os(), &host.secret, variables),
            folder: task.cwd.as_ref().map(|folder| folder.value.clone()),
            user,
            host: host.clone(),
            names,
        })))
    }
}

/// Variables of an account.
type AccountVariables = Vec<(&'static str, String)>;

/// Looks up the user who runs a program, and the variables of that account.
fn account(name: &str) -> Result<(UserIds, AccountVariables), String> {
    use nix::unistd::{User, geteuid};
    let user = User::from_name(name).map_err(|error| format!("{name} cannot be looked up: {error}"))?;
    let user = user.ok_or_else(|| format!("there is no user {name} on this host"))?;
    if !geteuid().is_root() && geteuid() != user.uid {
        return Err(format!("only a worker that runs as root can run programs as {name}"));
    }
    let ids = UserIds { user: user.uid.as_raw(), group: user.gid.as_raw() };
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let variables = vec![
        ("HOME", path(user.dir)),
        ("SHELL", path(user.shell)),
        ("USER", user.name.clone()),
        ("LOGNAME", user.name),
    ];
    Ok((ids, variables))
}

impl DynHandler for CommandTask {
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture {
        let command = Arc::clone(&self.0);
        Box::pin(async move { command.run(cx, args).await })
    }

    fn arguments(&self) -> Option<Vec<ArgInfo>> {
        Some(self.0.names.as_ref()?.iter().map(ArgInfo::named).collect())
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
    named: &'a BTreeMap<String, Value>,
}

impl CommandTemplate {
    async fn run(&self, cx: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
        let arguments = Arguments::bind(args, self.names.as_deref()).map_err(TaskError::malformed)?;
        let argv: Result<Vec<String>, String> = self.arguments.iter().map(|t| t.fill(&arguments)).collect();
        let (traceparent, tracestate) = cx.trace_context();
        let variables = [
            ("MACHINIST_TASK_ID", cx.task_id().to_string()),
            ("MACHINIST_TASK_NAME", cx.task_name().to_string()),
            ("MACHINIST_QUEUE", cx.queue().to_string()),
            ("MACHINIST_ATTEMPT", cx.attempt().to_string()),
            ("MACHINIST_FENCING_TOKEN", cx.fencing_token().to_string()),
            ("TRACEPARENT", traceparent),
        ];
        let variables = variables.into_iter().chain(tracestate.map(|state| ("TRACESTATE", state)));
        let order = RunOrder {
            program: self.program.clone().into(),
            args: argv.map_err(TaskError::malformed)?,
            environment: self.environment.with(variables),
            folder: self.folder.clone().map(Into::into),
            user: self.user,
            open_files: self.host.open_files,
            input_bytes: 0,
        };
        let input = serde_json::to_vec(&CommandInput {
            id: cx.task_id().as_str(),
            name: cx.task_name().as_str(),
            queue: cx.queue().as_str(),
            attempt: cx.attempt(),
            args: &arguments.values,
            named: &arguments.named,
        })?;
        match self.run_when_possible(&order, &input, &cx).await {
            Ok(ProgramEnd::Finished(finished)) => self.outcome(finished, cx.attempt()),
            Ok(ProgramEnd::Cancelled) => Err(TaskError::new("the run was cancelled, and its program ended")),
            Ok(ProgramEnd::Unsupervised) => {
                Err(TaskError::new(self.failed("was killed together with its supervisor", String::new())))
            }
            Err(error) => Err(self.not_started(error)),
        }
    }

    /// Runs the program. While this host is short of what a start needs, waits and starts it again: the task is not at
    /// fault.
    async fn run_when_possible(
        &self,
        order: &RunOrder,
        input: &[u8],
        cx: &TaskContext,
    ) -> std::io::Result<ProgramEnd> {
        let programs = &self.host.programs;
        let mut attempts = 0;
        loop {
            match process::run(order, input, |line| cx.log(line), cx.cancellation(), programs).await {
                Err(error) if process::is_shortage(&error) && attempts < SHORTAGE_ATTEMPTS => {
                    programs.note_shortage(&error);
                    attempts += 1;
                }
                ended => return ended,
            }
            let wait = SHORTAGE_INTERVAL.mul_f64(0.5 + f64::from(attempts % 4) / 4.0);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = cx.cancellation().cancelled() => return Ok(ProgramEnd::Cancelled),
            }
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
        if process::is_shortage(&error) {
            let why = CommandFailed {
                text: self.sentence(
                    "cannot be started now, because the worker's host is short of files, processes or memory",
                ),
                cause: Some(error.into()),
            };
            return TaskError::retry_in(SHORTAGE_DELAY).because(why);
        }
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
    let value = spelling::json_or_text(text.trim());
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
        CommandTask::new("t", task.command.as_ref().unwrap(), task, &Host::new(&settings))
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
        assert_eq!(value("1.10\n"), [json!("1.10")]);
        assert_eq!(value("{\"n\": 12345678901234567890123}"), [json!("{\"n\": 12345678901234567890123}")]);
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
