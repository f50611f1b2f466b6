//! The main job in one file: define tasks, run a worker, send signatures, wait for results, read records.
//!
//! Run it without a server, on an SQLite file in the current directory:
//!
//! ```text
//! cargo run -p machinist-examples --bin quickstart
//! ```
//!
//! or on your servers, where tasks have to be signed:
//!
//! ```text
//! cargo run -p machinist-cli -- keygen && export MACHINIST_KEY_FILE=machinist.key
//! export MACHINIST_BROKER=amqp://guest:guest@127.0.0.1:5672/%2f MACHINIST_BACKEND=redis://127.0.0.1:6379/0
//! cargo run -p machinist-examples --features servers --bin quickstart
//! ```

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use machinist::{Backoff, TaskDef, prelude::*};

// Shared by producers and workers: a name, the arguments, the result. No handler, no connection.
const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const FETCH: TaskDef<String, u64> = TaskDef::new("fetch");

async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

/// Fails twice. `?` turns any error into a failed attempt.
async fn fetch(cx: TaskContext, url: String) -> Result<u64, TaskError> {
    if cx.attempt() < 3 {
        Err(std::io::Error::other(format!("{url} did not answer")))?;
    }
    Ok(url.len() as u64)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = App::from_env().await?;

    // The worker, usually a separate process. It runs until its future completes, then drains.
    let worker = Worker::builder(&app).queue("quickstart").task(ADD, add).task(FETCH, fetch).build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));

    // The producer: `Ok` means that the broker has the task.
    let client = app.client();
    let sum = client.send(ADD.call((2, 3)).queue("quickstart")).await?;
    let flaky = FETCH.call("https://example.org").queue("quickstart");
    let size = client.send(flaky.retries(5).backoff(Backoff::fixed(Duration::from_millis(200)))).await?;

    println!("2 + 3 = {}", sum.wait(Duration::from_secs(30)).await?);
    println!("fetched {} bytes", size.wait(Duration::from_secs(30)).await?);
    for record in [sum.record().await?, size.record().await?] {
        println!(
            "{} {:8} attempt {} on {}",
            record.id,
            record.state,
            record.attempt,
            record.worker.unwrap_or_default()
        );
        for attempt in record.history {
            println!("    attempt {}: {}", attempt.attempt, attempt.error.message());
        }
    }

    drop(stop);
    worker.await??;
    Ok(())
}
