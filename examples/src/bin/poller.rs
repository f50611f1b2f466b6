//! A sharded poller: each region is polled by one live worker, and the regions are spread over all of them.
//!
//! ```text
//! cargo run -p machinist-examples --bin poller
//! ```

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use machinist::{
    TaskDef,
    prelude::*,
    worker::{Drained, HeldSlot, RunningRole, WorkerError},
};
use tokio::{sync::oneshot, task::JoinHandle};

const FETCH: TaskDef<String, ()> = TaskDef::new("fetch");
const REGIONS: [&str; 4] = ["eu", "us", "asia", "africa"];

async fn fetch(region: String) -> Result<(), TaskError> {
    println!("fetched what is new in {region}");
    Ok(())
}

/// A worker under way. It stops when `stop` is dropped.
struct Poller {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<Drained, WorkerError>>,
    _role: RunningRole,
}

/// Starts a worker that polls its share. In production, each process has one.
async fn start(app: &App, name: &'static str) -> anyhow::Result<Poller> {
    let worker = Worker::builder(app).name(name).task(FETCH, fetch).build()?;
    let client = app.client();
    let role = worker
        .fleet()
        .shards("regions", 4)
        .parameters(REGIONS)
        .on_change(move |slots| {
            let own = slots.iter().filter(|slot| slot.worker.as_deref() == Some(name)).count();
            println!("{name} sees that it holds {own} of {}", slots.len());
        })
        .run(move |slot| poll(client.clone(), slot))?;
    let ready = worker.ready();
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    ready.cancelled().await;
    Ok(Poller { stop, ended, _role: role })
}

/// Runs for each region that the worker holds.
async fn poll(client: machinist::Client, slot: HeldSlot) {
    let region = slot.parameter().unwrap_or_default().to_owned();
    loop {
        if let Err(error) = client.send(FETCH.call(region.clone())).await {
            println!("{region} is polled again: {error}");
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = slot.lost() => return,
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = App::from_env().await?;
    let first = start(&app, "one").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = start(&app, "two").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for shard in app.client().fleet_roles().await?.shards {
        let slot = shard.slot;
        println!("{} is polled by {}", slot.parameter.unwrap_or_default(), slot.worker.unwrap_or_default());
    }
    for poller in [first, second] {
        drop(poller.stop);
        poller.ended.await??;
    }
    Ok(())
}
