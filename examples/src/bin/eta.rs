//! How late are delayed tasks? Sends many with different times, runs them here, and prints what came of it.
//!
//! ```text
//! cargo run -p machinist-examples --bin eta -- 10000 60
//! ```
//!
//! sends 10,000 tasks that are due between 0.05 and 60 seconds after the last of them was sent, on a SQLite file in
//! the current directory; on your servers with `--features servers` and `MACHINIST_BROKER` and `MACHINIST_BACKEND`
//! in the environment. Measure with `--release`.

#![allow(clippy::print_stdout, reason = "it shows what it measures")]

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use machinist::{TaskDef, TaskId, clock::Timestamp, prelude::*};

/// Takes the instant for which it was sent, in microseconds.
const DUE: TaskDef<i64, ()> = TaskDef::new("due");

/// How late each run was, in microseconds; less than nothing would be early.
type Seen = Arc<Mutex<Vec<(TaskId, i64)>>>;

async fn due(
    State(app): State<App>,
    State(seen): State<Seen>,
    cx: TaskContext,
    at: i64,
) -> Result<(), TaskError> {
    let late = app.clock().now().as_micros() - at;
    seen.lock().map_err(|_| "another run panicked")?.push((cx.task_id().clone(), late));
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (count, span) = (number(10_000)?, Duration::from_secs(number(60)? as u64));
    let app = App::from_env().await?;
    let seen = Seen::default();
    let queue = format!("eta-{}", TaskId::fresh());
    let worker = Worker::builder(&app).queue(&queue).concurrency(64).task(DUE, due);
    let worker = worker.state(app.clone()).state(Arc::clone(&seen)).build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    println!("{count} tasks on {}; RSS {} MiB", app.broker().location(), rss());
    let sent = send(&app, &queue, count, span).await?;
    println!("sent in {:.1?} ({:.0} a second); RSS {} MiB", sent, count as f64 / sent.as_secs_f64(), rss());
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    let arrived = || seen.lock().map_or(0, |seen| seen.len());
    let deadline = Instant::now() + sent + span + Duration::from_secs(120);
    let mut most = 0;
    while arrived() < count && Instant::now() < deadline {
        most = most.max(rss());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(stop);
    worker.await??;
    println!("RSS at most {most} MiB meanwhile, {} MiB at the end", rss());
    report(&seen.lock().map_err(|_| anyhow::anyhow!("a run panicked"))?, count)
}

/// Sends in batches. The times count from the end of sending, as far as that can be told, so that no task is late
/// because it was sent late.
async fn send(app: &App, queue: &str, count: usize, span: Duration) -> anyhow::Result<Duration> {
    let (begun, client) = (Instant::now(), app.client());
    let from =
        app.clock().now().plus(Duration::from_micros(1_000 * count as u64) + Duration::from_millis(50));
    for first in (0..count).step_by(500) {
        let at = |n: usize| from.plus(span.mul_f64(spread(n)));
        let signature = |n| {
            let due: Timestamp = at(n);
            DUE.call(due.as_micros()).eta(due).queue(queue)
        };
        let answers = client.send_all((first..count.min(first + 500)).map(signature).collect()).await;
        answers.into_iter().collect::<Result<Vec<_>, _>>().context("a task was not sent")?;
    }
    Ok(begun.elapsed())
}

/// Each task its own place between 0 and 1, in no order.
fn spread(n: usize) -> f64 {
    (n as f64 * 0.618_033_988_749_895).fract()
}

fn report(seen: &[(TaskId, i64)], count: usize) -> anyhow::Result<()> {
    let tasks: HashSet<&TaskId> = seen.iter().map(|(id, _)| id).collect();
    let mut late: Vec<i64> = seen.iter().map(|(_, late)| *late).collect();
    late.sort_unstable();
    let millis = |share: f64| {
        let at = ((late.len() as f64 * share) as usize).min(late.len().saturating_sub(1));
        late.get(at).copied().unwrap_or(0) as f64 / 1000.0
    };
    println!(
        "{} ran, {} of them twice, {} early; late by p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, at most {:.1} ms",
        tasks.len(),
        seen.len() - tasks.len(),
        late.iter().filter(|late| **late < 0).count(),
        millis(0.5),
        millis(0.9),
        millis(0.99),
        millis(1.0),
    );
    ensure!(tasks.len() == count, "{} tasks did not run", count - tasks.len());
    Ok(())
}

/// The memory of this process, in MiB; 0 where it cannot be told.
fn rss() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4 / 1024
}
