//! The machinist program, as a library that adds its commands to your own binary.
//!
//! ```no_run
//! use machinist::prelude::*;
//! use std::process::ExitCode;
//!
//! const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
//!
//! async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
//!     Ok(a + b)
//! }
//!
//! // `app worker` runs it, `app send add 2 3 --wait` sends it, `app status ID` shows its state.
//! fn main() -> ExitCode {
//!     machinist_cli::run(|worker| worker.task(ADD, add))
//! }
//! ```

mod args;
mod args_view;
mod command;
mod commands;
mod demo;
mod exit;
mod first_process;
mod flow_file;
mod health;
mod input;
mod metrics;
mod open_files;
mod output;
mod people;
mod spelling;
mod supervisor;
mod systemd;
mod telemetry;
mod view;
mod visible;
mod workflow_view;

use std::{
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, error::ErrorKind};
use machinist::{Connectors, WorkerBuilder};

use args::{Cli, CliCommand, LogFormat};
use exit::{CliError, Code, Exit};
use telemetry::Telemetry;

/// Function that adds an application's tasks to a worker.
type BuildWorker<'a> = Box<dyn FnOnce(WorkerBuilder) -> WorkerBuilder + 'a>;

/// Runs the command of the command line, and returns the exit code of the program.
///
/// `tasks` adds the application's handlers, middleware and state to the worker that the command `worker` starts. All
/// settings of the worker are applied before it is called, from flags, variables and machinist.toml.
///
/// This function creates a Tokio runtime: call it from a `main` that is not async, and call it first. The binary is
/// started again for each run of a command task, and as process 1 of a container for its own command line; there this
/// function does something else, and never calls `tasks` in the same process.
pub fn run(tasks: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> ExitCode {
    run_with(&Connectors::default(), tasks)
}

/// Runs the command of the command line as [`run`] does, with these connectors. With another connector, all commands
/// accept the URLs of its schemes, in flags, variables and machinist.toml.
///
/// # Examples
/// ```no_run
/// use machinist::{
///     Connector, Connectors,
///     broker::Broker,
///     connector::{ConnectRequest, ConnectorError},
///     url::{Reach, Scheme},
/// };
/// use std::{process::ExitCode, sync::Arc};
/// # use machinist::memory::MemoryBroker as ToyBroker;
///
/// #[derive(Debug)]
/// struct Toy;
///
/// #[async_trait::async_trait]
/// impl Connector for Toy {
///     fn schemes(&self) -> Vec<Scheme> {
///         vec![Scheme::broker("toy", Reach::Network { over_tls: None })]
///     }
///     async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
/// #       let _ = request;
/// #       #[cfg(any())]
///         return Ok(Arc::new(ToyBroker::connect(request.url.expose(), request.namespace).await?));
/// #       Ok(Arc::new(ToyBroker::new()))
///     }
/// }
///
/// // `app worker --broker toy://host` runs tasks from there.
/// fn main() -> ExitCode {
///     machinist_cli::run_with(&Connectors::default().with(Toy), |worker| worker)
/// }
/// ```
pub fn run_with(connectors: &Connectors, tasks: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> ExitCode {
    if let Some(ended) = supervisor::run_if_asked().or_else(first_process::run_if_first) {
        return ended;
    }
    if asks_for_json(std::env::args_os()) {
        output::use_json_errors();
    }
    let ended = match parse(std::env::args_os()) {
        Ok(cli) => start(cli, connectors, Box::new(tasks)),
        Err(ended) => ended.map(Exit::Code),
    };
    let exit = ended.unwrap_or_else(|failure| {
        output::failure(&failure);
        failure.code.into()
    });
    exit.into()
}

/// Returns the path of this program, also after its file was replaced.
fn executable() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if cfg!(target_os = "linux") { running } else { std::env::current_exe().unwrap_or(running) }
}

/// Reads the command line. Prints what clap answers by itself: help, the version, or a usage error.
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, Result<Code, CliError>> {
    Cli::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => output::raw(&text).map(|()| Code::Success),
            _ if asks_for_json(std::env::args_os()) => Err(usage_error(&text)),
            _ => {
                output::note(machinist::redact::text(&text).trim_end());
                Ok(Code::Usage)
            }
        }
    })
}

/// Returns `true` if a command line asks for JSON. A command line with an error is not parsed otherwise.
fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// Returns the error of a command line from the text that clap prints.
fn usage_error(text: &str) -> CliError {
    let mut paragraphs = text.trim().split("\n\n");
    let first = paragraphs.next().and_then(|first| first.strip_prefix("error: "));
    let error = first.map_or_else(
        || "the command line names no command".to_owned(),
        |first| first.split_whitespace().collect::<Vec<_>>().join(" "),
    );
    let tip = paragraphs.find_map(|part| part.trim().strip_prefix("tip: ").map(str::to_owned));
    let remedy = tip.unwrap_or_else(|| "`machinist COMMAND --help` shows the syntax of a command".to_owned());
    CliError::new(Code::Usage, error).remedy(remedy)
}

fn start(cli: Cli, connectors: &Connectors, tasks: BuildWorker<'_>) -> Result<Exit, CliError> {
    // Errors inside of lapin are returned to us, and are reported once in our words.
    let level =
        if matches!(cli.command, CliCommand::Worker(_)) { "info,lapin=off" } else { "warn,lapin=off" };
    let format = cli.global.log.unwrap_or(LogFormat::Human);
    if format == LogFormat::Json {
        output::use_json_notes();
    }
    let telemetry = Telemetry::start(format, level)?;
    let metrics = match &cli.command {
        CliCommand::Worker(worker) => metrics::start(worker.health.is_some()),
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CliError::from_error(Code::Fault, &error).context("cannot start threads"))?;
    // The panic itself has been printed already.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(Box::pin(commands::run(cli, connectors, tasks, metrics.clone())))
    }));
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(metrics) = &metrics {
        metrics::finish(metrics);
    }
    telemetry.finish();
    ended
        .unwrap_or_else(|_| Err(CliError::new(Code::Fault, "this is a bug in the program; please report it")))
}
