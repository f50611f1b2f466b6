//! Everything a developer of machinist does, by one command: `cargo xtask`.
//!
//! It exists so that a fresh machine needs Rust and nothing else: no task runner, no test runner, no container
//! engine. `cargo xtask ci` is what the continuous integration runs, line for line.
//!
//! It is a library too, because the chaos scenarios kill and restart the same private servers.

/// Prints a line. Unlike `println!` it does not panic where nobody reads any more (`cargo xtask test | head`): the
/// servers have to be ended all the same.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

mod bench;
mod chaos;
mod ci;
mod command;
mod deny;
pub mod interrupt;
mod msrv;
mod nightly;
mod package;
mod report;
pub mod services;
pub mod terminal;
mod test;
mod tidy;
mod versions;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    command::Workspace,
    interrupt::Interrupt,
    services::{Major, Release, Services},
};

/// What a developer of machinist does, by one command.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Private RabbitMQ and Redis servers for the tests, on loopback ports of their own.
    Services {
        #[command(subcommand)]
        action: Action,
        /// Where their data, logs and pid files are [default: target/services].
        #[arg(long, global = true, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// RabbitMQ of this major version instead of the machine's: Debian sid's, unpacked once. Needs root.
        #[arg(long, global = true, value_enum, value_name = "MAJOR")]
        rabbitmq: Option<Major>,
    },
    /// All tests against real servers, which are installed if missing, started before and ended after.
    Test {
        /// RabbitMQ of this major version instead of the machine's, as with `services`.
        #[arg(long, value_enum, value_name = "MAJOR")]
        rabbitmq: Option<Major>,
        /// Handed on to `cargo test`, e.g. `-- -p machinist-core retry`.
        #[arg(last = true, value_name = "CARGO-TEST-ARGS")]
        args: Vec<String>,
    },
    /// Measures the release build against a pipeline written by hand; `--help` for the cases, `soak` for a long run.
    #[command(disable_help_flag = true)]
    Bench {
        /// Handed on to the measuring program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Everything the continuous integration checks: formatting, house rules, lints, docs, features, tests, faults.
    Ci,
    /// What takes too long for the continuous integration; results go into docs/reliability.md.
    Nightly {
        /// The steps to run [default: all of them].
        #[arg(value_enum, value_name = "STEP")]
        steps: Vec<nightly::Step>,
    },
    /// The house rules that no compiler checks.
    Tidy,
    /// Packs and compiles every published crate as crates.io would get it, in some minutes; uploads nothing.
    Package,
    /// Manual pages of the program, one for each command.
    Man {
        /// Folder to write into [default: target/man].
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Real workers and senders under faults, with a ledger that tells whether anything was lost.
    Chaos {
        /// RabbitMQ of this major version instead of the machine's, as with `services`.
        #[arg(long, value_enum, value_name = "MAJOR")]
        rabbitmq: Option<Major>,
        /// Handed on to `machinist-chaos`: names of scenarios, `--ci`, `--all`, `--lanes N`, `--size smoke|nightly`, `--list`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Action {
    /// Install the Debian packages of RabbitMQ, Redis, PostgreSQL, tmux and Chromium, where they are missing.
    Install,
    /// Install what is missing, start the servers with empty data unless they run, and return when they answer.
    Up,
    /// End the servers that `up` started, and nothing else.
    Down,
    /// Tell what runs and where; exit code 1 unless all servers answer.
    Status,
    /// Print the exports by which the tests find the servers: eval "$(cargo xtask services env)".
    Env,
}

/// The command line of `cargo xtask`.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does the task; `false` when it found something wrong and has already said so.
fn run(cli: Cli) -> Result<bool> {
    let workspace = Workspace::find()?;
    let interrupt = Interrupt::listen()?;
    match cli.task {
        Task::Services { action, dir, rabbitmq } => {
            let services = Services::at(&dir.unwrap_or_else(|| workspace.services_dir()))?;
            match action {
                Action::Install => {
                    Release::provide(rabbitmq, &workspace, &interrupt)?;
                    services::install_missing(&services::SCREENS)?;
                }
                Action::Up => {
                    let services = services.with_postgres();
                    let release = Release::provide(rabbitmq, &workspace, &interrupt)?;
                    // Without the option, a release that the environment names stays.
                    let services = if rabbitmq.is_some() { services.with_release(release) } else { services };
                    let up = services.up(&interrupt)?;
                    say!("{}\n{}", up.report(), up.endpoints.exports().trim_end());
                }
                Action::Down => services.down()?,
                Action::Status => return services.print_status(),
                Action::Env => say!("{}", services.endpoints()?.exports().trim_end()),
            }
            Ok(true)
        }
        Task::Test { rabbitmq, args } => test::run(&workspace, &interrupt, rabbitmq, &args),
        Task::Bench { args } => bench::run(&workspace, &interrupt, &args),
        Task::Ci => ci::run(&workspace, &interrupt),
        Task::Nightly { steps } => nightly::run(&workspace, &interrupt, &steps),
        Task::Tidy => tidy::run(&workspace),
        Task::Package => package::run(&workspace, &interrupt),
        Task::Man { dir } => {
            package::man(&workspace, &interrupt, &dir.unwrap_or_else(|| workspace.target_dir().join("man")))
        }
        Task::Chaos { rabbitmq, args } => chaos::run(&workspace, &interrupt, rabbitmq, &args),
    }
}
