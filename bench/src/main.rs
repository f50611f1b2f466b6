//! What `cargo xtask bench` runs: measures machinist against a pipeline written by hand, process by process.
//!
//! Every worker and every sender is a process of its own, started anew for each run, so that processor time and
//! memory can be told apart. Runs of the two pipelines alternate: whatever else the machine does hits both.

mod allocations;
mod case;
mod compare;
mod delays;
mod fairness;
mod floor;
mod flows;
mod meter;
mod order;
mod part;
mod product;
mod report;
mod runner;
mod sessions;
mod soak;
mod statistics;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures machinist against a pipeline written by hand on the bare libraries.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    other: Option<Other>,
    /// Only these cases [default: all].
    #[arg(value_name = "CASE", value_parser = clap::builder::PossibleValuesParser::new(case::names()))]
    cases: Vec<String>,
    /// How often each case is run with either pipeline.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A tenth of the tasks: to see that it runs, not to believe.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    place: Place,
}

/// The servers to use, and where results go; `cargo xtask bench` fills it in.
#[derive(Debug, Clone, clap::Args)]
struct Place {
    #[arg(long, global = true, hide = true, env = "MACHINIST_BENCH_AMQP_URL", default_value = "")]
    amqp: String,
    #[arg(long, global = true, hide = true, env = "MACHINIST_BENCH_REDIS_URL", default_value = "")]
    redis: String,
    #[arg(long, global = true, hide = true, env = "MACHINIST_BENCH_RABBITMQ_PID", default_value_t = 0)]
    rabbitmq_pid: u32,
    #[arg(long, global = true, hide = true, env = "MACHINIST_BENCH_REDIS_PID", default_value_t = 0)]
    redis_pid: u32,
    #[arg(long, global = true, hide = true, env = "MACHINIST_BENCH_SERVERS", default_value = "")]
    servers: String,
    #[arg(long, global = true, hide = true, env = "MACHINIST_BENCH_DIR", default_value = ".")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Fills a queue, then drains it with one worker: does it grow, does a deep queue cost more?
    Soak {
        /// How many.
        #[arg(long, default_value_t = 1_000_000)]
        tasks: usize,
    },
    /// Sends tasks that are due later, and runs them: how late are they, and what do they cost until then?
    Delays(delays::Delays),
    /// Measures how long tenants with few tasks wait while another one has a backlog.
    Fairness(fairness::Fairness),
    /// Counts what the sessions of many workers send to Redis.
    Sessions(sessions::Sessions),
    /// Counts how often each task asks for memory, in sender and worker.
    Allocations,
    /// Compares the processor time of two versions, in pairs of runs.
    Compare(compare::Compare),
    /// One measured process.
    #[command(hide = true)]
    Part {
        /// What it does.
        order: String,
    },
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    match cli.other {
        Some(Other::Part { order }) => part::play(&cli.place, &order).await,
        Some(Other::Soak { tasks }) => soak::run(&cli.place, tasks).await,
        Some(Other::Compare(compare)) => compare::run(&cli.place, &compare).await,
        Some(Other::Allocations) => allocations::run(&cli.place).await,
        Some(Other::Fairness(fairness)) => fairness::run(&cli.place, fairness).await,
        Some(Other::Sessions(sessions)) => sessions::run(&cli.place, sessions).await,
        Some(Other::Delays(delays)) => delays::run(&cli.place, delays).await,
        None => runner::run(&cli.place, &cli.cases, cli.rounds, cli.quick).await,
    }
}
