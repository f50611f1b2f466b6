//! A worker process, as an application would write it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use machinist::{App, Worker};
use machinist_conformance::arrows::{Witness, WitnessedRuns};
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    arrow::{self, Executor},
    connect::Servers,
    fleet, flows,
    ledger::Ledger,
    limits, load,
};

/// Runs tasks until SIGTERM.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    servers: Servers,
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[arg(long = "queue")]
    queues: Vec<String>,
    #[arg(long)]
    lease_ms: u64,
    #[arg(long)]
    concurrency: usize,
    /// Ends itself at an arrow of the delivery protocol when it is told to.
    #[arg(long)]
    arrows: bool,
    /// How many periodic tasks and shards it takes part in, and in a leadership.
    #[arg(long, default_value_t = 0)]
    periodic: usize,
    /// Runs tasks with limits.
    #[arg(long)]
    limits: bool,
    /// How much address space this process may have.
    #[arg(long)]
    memory_mib: Option<u64>,
}

pub(crate) async fn run(args: WorkerArgs) -> Result<u8> {
    if let Some(limit) = args.memory_mib {
        setrlimit(Resource::RLIMIT_AS, limit << 20, limit << 20).context("a limit for memory")?;
    }
    let ledger = Ledger::of(&args.dir).await?;
    let (deadline, executor) = (Duration::from_secs(30), Executor(arrow::file(&args.dir)));
    let witness: Arc<dyn Witness> = Arc::new(executor);
    let app: App = match args.arrows {
        true => args.servers.app_seen_by(&witness, deadline).await?,
        false => args.servers.app(deadline).await?,
    };
    let mut builder = Worker::builder(&app)
        .name(format!("w{}", std::process::id()))
        .concurrency(args.concurrency)
        .session_lease(Duration::from_millis(args.lease_ms))
        .state(ledger.clone())
        .task(load::DO, load::run)
        .task(flows::STEP, flows::run);
    if args.arrows {
        builder = builder.middleware(WitnessedRuns(witness));
    }
    for queue in args.queues {
        builder = builder.queue(queue);
    }
    if args.limits {
        builder = limits::with_limits(builder)?;
    }
    let worker = fleet::with_periodic(builder, args.periodic)?.build()?;
    let _roles = match args.periodic {
        0 => None,
        slots => Some(fleet::take_part(&worker, &ledger, slots)?),
    };
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let stop = async move {
        terminate.recv().await;
    };
    let drained = worker.run_until(stop).await?;
    app.broker().close().await;
    Ok(if drained.is_clean() { 0 } else { 75 })
}
