//! A worker process, as an application would write it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use machinist::{App, Worker};
use tokio::signal::unix::{SignalKind, signal};

use crate::{connect::Servers, ledger::Ledger, load};

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
}

pub(crate) async fn run(args: WorkerArgs) -> Result<u8> {
    let ledger = Ledger::of(&args.dir).await?;
    let app: App = args.servers.app(Duration::from_secs(30)).await?;
    let mut builder = Worker::builder(&app)
        .name(format!("w{}", std::process::id()))
        .concurrency(args.concurrency)
        .session_lease(Duration::from_millis(args.lease_ms))
        .state(ledger)
        .task(load::DO, load::run);
    for queue in args.queues {
        builder = builder.queue(queue);
    }
    let worker = builder.build()?;
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let stop = async move {
        terminate.recv().await;
    };
    let drained = worker.run_until(stop).await?;
    app.broker().close().await;
    Ok(if drained.is_clean() { 0 } else { 75 })
}
