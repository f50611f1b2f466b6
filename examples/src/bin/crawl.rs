//! Dynamic workflows: a task finds out what is to be done, and spawns it.
//!
//! ```text
//! cargo run -p machinist-examples --bin crawl
//! ```
//!
//! It runs on an SQLite file in the current directory, or on the servers of `MACHINIST_BROKER` and `MACHINIST_BACKEND` (with
//! `--features servers`).

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use machinist::{prelude::*, workflow::chord};
use tokio::sync::mpsc::UnboundedSender;

const PAGE: TaskDef<(String, u32), ()> = TaskDef::new("crawl.page");
const SIZE: TaskDef<String, u64> = TaskDef::new("crawl.size");
const REPORT: TaskDef<(String, Vec<u64>), ()> = TaskDef::new("crawl.report");

/// Spawns the pages below this one, and a report about its pictures. They are sent when the success of this run is recorded:
/// never without it, and never twice, even if the handler runs again.
async fn page(path: String, depth: u32, cx: TaskContext) -> Result<(), TaskError> {
    if depth > 0 {
        for name in ["a", "b"] {
            cx.spawn(PAGE.call((format!("{path}/{name}"), depth - 1)))?;
        }
    }
    let pictures = ["cat.png", "hedgehog.png"].map(|picture| SIZE.call(format!("{path}/{picture}")));
    cx.spawn(chord(pictures, REPORT.with((path,))))?;
    Ok(())
}

async fn size(path: String) -> Result<u64, TaskError> {
    Ok(path.len() as u64)
}

async fn report(
    State(seen): State<UnboundedSender<String>>,
    path: String,
    sizes: Vec<u64>,
) -> Result<(), TaskError> {
    seen.send(format!("{path}: {} bytes of pictures", sizes.iter().sum::<u64>()))?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = App::from_env().await?;
    let (seen, mut reports) = tokio::sync::mpsc::unbounded_channel::<String>();
    let worker =
        Worker::builder(&app).state(seen).task(PAGE, page).task(SIZE, size).task(REPORT, report).build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));

    app.client().send(PAGE.call(("site", 2))).await?;
    // Seven pages: one, two below it, four below those.
    for _ in 0..7 {
        let next = tokio::time::timeout(Duration::from_secs(30), reports.recv()).await?;
        println!("{}", next.unwrap_or_default());
    }

    drop(stop);
    worker.await??;
    Ok(())
}
