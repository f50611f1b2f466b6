//! A leader: of all workers with this code, one at a time runs a future.
//!
//! ```text
//! cargo run -p machinist-examples --bin leader
//! ```

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use machinist::{
    TaskDef,
    prelude::*,
    worker::{Drained, HeldSlot, RunningRole, WorkerError},
};
use tokio::{sync::oneshot, task::JoinHandle};

const NOTHING: TaskDef<(), ()> = TaskDef::new("nothing");

async fn nothing() -> Result<(), TaskError> {
    Ok(())
}

/// A worker under way. It stops when `stop` is dropped.
struct Candidate {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<Drained, WorkerError>>,
    _role: RunningRole,
}

/// Starts a worker that takes part. In production, each process has one.
async fn start(app: &App, name: &'static str) -> anyhow::Result<Candidate> {
    let worker = Worker::builder(app).name(name).task(NOTHING, nothing).build()?;
    let role = worker.fleet().leader("billing").run(move |slot| lead(name, slot))?;
    let ready = worker.ready();
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    ready.cancelled().await;
    Ok(Candidate { stop, ended, _role: role })
}

/// Runs on the leader. It is dropped 5 s after `lost` at the latest, and at once if the backend is away for long.
async fn lead(name: &'static str, slot: HeldSlot) {
    // What the leader writes to should refuse an epoch lower than one that it has seen.
    println!("{name} leads with epoch {}", slot.epoch());
    let mut interval = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = interval.tick() => println!("{name} sends the invoices that are due"),
            () = slot.lost() => break,
        }
    }
    println!("{name} leads no longer");
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = App::from_env().await?;
    let first = start(&app, "one").await?;
    let second = start(&app, "two").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The first stops, and the second follows. Where a process is killed, that takes about 25 s.
    drop(first.stop);
    first.ended.await??;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(second.stop);
    second.ended.await??;
    Ok(())
}
