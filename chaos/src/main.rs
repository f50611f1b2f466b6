//! Real workers and senders under faults, and a ledger that tells whether anything was lost.
//!
//! `cargo xtask chaos` builds and runs it. The same program is the harness, the workers, the senders and the ledger,
//! so that every process is a real one that can be killed.

/// Prints a line. Unlike `println!` it does not panic where nobody reads any more.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

mod arrow;
mod check;
mod cluster;
mod connect;
mod deep;
mod fleet;
mod flows;
mod house;
mod ledger;
mod limits;
mod load;
mod process;
mod scenario;
mod sender;
mod size;
mod special;
mod worker;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::{scenario::Scenario, size::Size};

/// Real workers and senders under faults, and a ledger that tells whether anything was lost.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", bin_name = "cargo xtask chaos", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// What to run; see --list.
    scenarios: Vec<Scenario>,
    /// Runs every scenario.
    #[arg(long)]
    all: bool,
    /// Runs one or more of every kind of fault: what a continuous integration has time for.
    #[arg(long)]
    ci: bool,
    /// Tells what there is.
    #[arg(long)]
    list: bool,
    /// How long and how much.
    #[arg(long, value_enum, default_value_t = Size::Smoke)]
    size: Size,
    /// How many scenarios run at once, each with its own servers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    lanes: usize,
    /// Where servers, logs and ledgers are.
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    dir: PathBuf,
}

/// What the harness starts.
#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true)]
    Ledger {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
    #[command(hide = true)]
    Sender(sender::SenderArgs),
}

impl Part {
    async fn run(self) -> Result<u8> {
        match self {
            Self::Ledger { dir } => ledger::serve(&dir).await.map(|()| 0),
            Self::Worker(args) => worker::run(args).await,
            Self::Sender(args) => sender::run(args).await,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("MACHINIST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,lapin=off,machinist_core::app=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    match cli.part {
        Some(part) => Runtime::new()?.block_on(part.run()),
        None if cli.list => {
            for scenario in Scenario::ALL {
                let ci = if scenario.is_in_ci() { "ci" } else { "" };
                say!("{:<18} {ci:<3} {}", scenario.name(), scenario.what());
            }
            Ok(0)
        }
        None => {
            let is_chosen = |scenario: &Scenario| {
                cli.all || (cli.ci && scenario.is_in_ci()) || cli.scenarios.contains(scenario)
            };
            let chosen: Vec<Scenario> = Scenario::ALL.iter().copied().filter(is_chosen).collect();
            anyhow::ensure!(
                !chosen.is_empty(),
                "name a scenario, or --ci, or --all; --list tells which there are"
            );
            Ok(u8::from(!scenario::run_all(&chosen, cli.size, cli.lanes, &cli.dir)?))
        }
    }
}
