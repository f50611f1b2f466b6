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
//!
//! [`Program`] takes a set-up that is async and can fail, own commands, hooks and connectors.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `amqp`, `redis`, `sqlite`, `postgres` | yes | the adapters |
//! | `web` | yes | the dashboard in a browser, `machinist web` |
//! | `otel` | yes | export of traces and metrics by OTLP |
//! | `man` | no | a hidden command that writes manual pages, for packages of distributions |

mod args;
mod args_view;
mod command;
mod commands;
mod demo;
mod exit;
mod first_process;
mod health;
mod input;
mod metrics;
mod open_files;
mod output;
mod people;
mod program;
mod set_up;
mod supervisor;
mod systemd;
mod telemetry;
mod view;
mod workflow_view;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use machinist::{WorkerBuilder, spelling, visible};

use exit::{CliError, Code};

pub use program::Program;
pub use set_up::SetUpError;

/// Runs the command of the command line, and returns the exit code of the program.
///
/// `tasks` adds the application's handlers, middleware and state to the worker that the command `worker` starts. All
/// settings of the worker are applied before it is called, from flags, variables and machinist.toml. [`Program`] takes a
/// set-up that is async or can fail, own commands, hooks and connectors.
///
/// This function creates a Tokio runtime: call it from a `main` that is not async, and call it first. The binary is
/// started again for each run of a command task, and as process 1 of a container for its own command line; there this
/// function does something else, and never calls `tasks` in the same process.
///
/// # Examples
/// ```no_run
/// use machinist::prelude::*;
/// use std::process::ExitCode;
///
/// const GREET: TaskDef<String, String> = TaskDef::new("greet");
///
/// async fn greet(State(greeting): State<&'static str>, name: String) -> Result<String, TaskError> {
///     Ok(format!("{greeting}, {name}"))
/// }
///
/// fn main() -> ExitCode {
///     machinist_cli::run(|worker| worker.state("Hello").task(GREET, greet))
/// }
/// ```
pub fn run(tasks: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> ExitCode {
    Program::new().run(async |worker| Ok(tasks(worker)))
}

/// Returns the path of this program, also after its file was replaced.
fn executable() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if cfg!(target_os = "linux") { running } else { std::env::current_exe().unwrap_or(running) }
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
