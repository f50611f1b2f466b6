//! Fan-out and fan-in: counts the words of each file side by side, then adds up the counts.
//!
//! ```text
//! cargo run -p machinist-examples --bin files -- README.md ARCHITECTURE.md
//! ```
//!
//! It runs on an SQLite file in the current directory, or on the servers of `MACHINIST_BROKER` and `MACHINIST_BACKEND` (with
//! `--features servers`).

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use machinist::{prelude::*, workflow::chord};

const COUNT: TaskDef<String, u64> = TaskDef::new("files.count");
const TOTAL: TaskDef<Vec<u64>, u64> = TaskDef::new("files.total");

/// Reads a file: blocking work, on a thread where that harms nobody.
fn count(path: String) -> Result<u64, TaskError> {
    Ok(std::fs::read_to_string(path)?.split_whitespace().count() as u64)
}

/// Gets the counts in the order of the files.
async fn total(counts: Vec<u64>) -> Result<u64, TaskError> {
    Ok(counts.iter().sum())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let app = App::from_env().await?;
    // The worker, usually a separate process.
    let worker = Worker::builder(&app).task_blocking(COUNT, count).task(TOTAL, total).build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));

    let counts: Vec<_> = files.iter().map(|file| COUNT.call(file.clone())).collect();
    let client = app.client();
    // One message: `Ok` means that the whole workflow is sent.
    let words = client.send(chord(counts, TOTAL.with(())).name("words")).await?;
    println!("{} words in {} files", words.wait(Duration::from_secs(30)).await?, files.len());

    drop(stop);
    worker.await??;
    Ok(())
}
