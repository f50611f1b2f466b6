//! The machinist program, and the library that puts its commands into your own binary.
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
//! // `app worker` runs it, `app send add 2 3 --wait` sends it, `app status ID` shows what became of it.
//! fn main() -> ExitCode {
//!     machinist_cli::run(|worker| worker.task(ADD, add))
//! }
//! ```

mod args;
mod command;
mod commands;
mod demo;
mod exit;
mod health;
mod input;
mod output;
mod systemd;
mod telemetry;
mod view;

use std::{
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, error::ErrorKind};
use machinist::WorkerBuilder;

use args::{Cli, CliCommand, LogFormat};
use exit::{CliError, Code};
use telemetry::Telemetry;

/// Puts an application's own tasks into a worker.
type BuildWorker<'a> = Box<dyn FnOnce(WorkerBuilder) -> WorkerBuilder + 'a>;

/// Does what the command line says, and returns how the program should end.
///
/// `tasks` puts the application's handlers, middleware and state into the worker that `worker` starts; name,
/// queues, concurrency and grace are set before it is called, from flags and settings.
///
/// It makes a runtime of its own: call it from a plain `main`.
pub fn run(tasks: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> ExitCode {
    let ended = match parse(std::env::args_os()) {
        Ok(cli) => start(cli, Box::new(tasks)),
        Err(ended) => ended,
    };
    let code = ended.unwrap_or_else(|failure| {
        output::failure(&failure);
        failure.code
    });
    code.into()
}

/// Reads the command line. What clap answers by itself, help or a complaint, is printed here.
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, Result<Code, CliError>> {
    Cli::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => output::raw(&text).map(|()| Code::Success),
            _ => {
                output::note(machinist::redact::text(&text).trim_end());
                Ok(Code::Usage)
            }
        }
    })
}

fn start(cli: Cli, tasks: BuildWorker<'_>) -> Result<Code, CliError> {
    // What goes wrong inside of lapin comes back to us as an error, and is told once and in our words.
    let level =
        if matches!(cli.command, CliCommand::Worker(_)) { "info,lapin=off" } else { "warn,lapin=off" };
    let telemetry = Telemetry::start(cli.global.log.unwrap_or(LogFormat::Human), level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| CliError::from_error(Code::Fault, &error).context("no threads can be started"))?;
    // The panic itself has been printed by then; what is left to say is whose fault it is.
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(Box::pin(commands::run(cli, tasks)))));
    runtime.shutdown_timeout(Duration::from_secs(1));
    telemetry.finish();
    ended.unwrap_or_else(|_| {
        Err(CliError::new(Code::Fault, "this is a fault of the program; please report it"))
    })
}
