//! How late delayed tasks are: thousands of them, each with another ETA; whether any is early, lost or run twice, also
//! when the broker is killed meanwhile; and what a multitude costs that is not due for long.

use std::{
    collections::HashSet,
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use machinist::{App, State, TaskContext, TaskDef, TaskError, TaskId, Worker, clock::Timestamp};
use xtask::{
    interrupt::Interrupt,
    services::{Server, Services},
};

use crate::{
    Place, meter,
    order::{Servers, System},
    product,
    report::Machine,
    statistics::quantile,
};

/// Takes the instant for which it was sent, in microseconds.
const DUE: TaskDef<i64, ()> = TaskDef::new("due");
const QUEUE: &str = "bench-delays";
/// How many are sent at once: a message of a large batch is in the broker only when those before it are.
const BATCH: usize = 50;
/// How long after the last ETA all must have run.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long an idle worker is looked at while nothing is due.
const LOOK: Duration = Duration::from_secs(30);

/// What to send, and what to do meanwhile.
#[derive(Debug, clap::Args)]
pub(crate) struct Delays {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    tasks: usize,
    /// They are due within so many seconds after the last of them was sent.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// And so many seconds later. From a thousand on nobody waits for them: what they cost until then is measured.
    #[arg(long, default_value_t = 0)]
    ahead: u64,
    /// On one SQLite file instead of RabbitMQ and Redis.
    #[arg(long, conflicts_with = "kill")]
    file: bool,
    /// Kills RabbitMQ when half of the time is over, and starts it again.
    #[arg(long)]
    kill: bool,
}

impl Delays {
    /// Whether nobody waits for them.
    fn is_far(&self) -> bool {
        self.ahead >= 1000
    }
}

/// How late each run was, in microseconds; less than nothing would be early.
type Seen = Arc<Mutex<Vec<(TaskId, i64)>>>;

async fn due(
    State(app): State<App>,
    State(seen): State<Seen>,
    cx: TaskContext,
    at: i64,
) -> Result<(), TaskError> {
    let late = app.clock().now().as_micros() - at;
    seen.lock().unwrap_or_else(PoisonError::into_inner).push((cx.task_id().clone(), late));
    Ok(())
}

/// Sends them, runs them in this process, prints what came of it.
pub(crate) async fn run(place: &Place, what: Delays) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let servers = if what.file {
        Servers::File { path: folder.path().join("bench.db").display().to_string(), full: true }
    } else {
        Servers::Network { amqp: place.amqp.clone(), redis: place.redis.clone() }
    };
    let app = product::connect_to(&servers, System::Machinist).await?;
    let seen = Seen::default();
    let worker = Worker::builder(&app).name("bench").queue(QUEUE).concurrency(64).task(DUE, due);
    let worker = worker.state(app.clone()).state(Arc::clone(&seen)).build()?;
    Machine::look(&place.servers).print()?;
    let mut out = std::io::stdout();
    let memory = |when: &str| -> Result<String> {
        let own = meter::own_kib("VmRSS")? / 1024;
        let broker = match what.file || what.kill {
            true => String::new(),
            false => format!(", RabbitMQ {} MiB", meter::kib(place.rabbitmq_pid, "VmRSS")? / 1024),
        };
        Ok(format!("- {when}: this process (sender and worker) {own} MiB{broker}, {}", queues(place, &what)?))
    };
    writeln!(out, "\n{} tasks on {}\n\n{}", what.tasks, app.broker().location(), memory("before")?)?;
    let sent = send(&app, &what).await?;
    let rate = what.tasks as f64 / sent.as_secs_f64();
    writeln!(out, "{}; {rate:.0} tasks/s were sent", memory("sent")?)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    let span = Duration::from_secs(what.seconds + what.ahead);
    if what.is_far() {
        tokio::time::sleep(LOOK).await;
        writeln!(out, "{}", memory("after 30 s with a worker")?)?;
    } else {
        let killing = what.kill.then(|| tokio::task::spawn_blocking(kill_after(place, span / 2)));
        let deadline = Instant::now() + span + PATIENCE;
        let arrived = || seen.lock().unwrap_or_else(PoisonError::into_inner).len();
        let mut most = 0;
        while arrived() < what.tasks && Instant::now() < deadline {
            most = most.max(meter::own_kib("VmRSS")? / 1024);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if let Some(killing) = killing {
            let away = killing.await??;
            writeln!(out, "- RabbitMQ was killed in the middle and answered again after {away:.1?}")?;
        }
        writeln!(out, "{}, at most {most} MiB", memory("after")?)?;
    }
    drop(stop);
    worker.await??;
    if what.is_far() {
        return Ok(());
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    lateness(&seen, what.tasks)
}

/// Sends in batches. The times count from the end of sending, as far as that can be told, so that no task is late
/// because it was sent late.
async fn send(app: &App, what: &Delays) -> Result<Duration> {
    let (begun, client) = (Instant::now(), app.client());
    let sending = Duration::from_micros(1_000 * what.tasks as u64) + Duration::from_millis(50);
    let from = app.clock().now().plus(sending + Duration::from_secs(what.ahead));
    let span = Duration::from_secs(what.seconds);
    for first in (0..what.tasks).step_by(BATCH) {
        let signature = |n| {
            let due: Timestamp = from.plus(span.mul_f64(spread(n)));
            DUE.call(due.as_micros()).eta(due).queue(QUEUE)
        };
        let batch = (first..what.tasks.min(first + BATCH)).map(signature).collect();
        let answers = client.send_all(batch).await;
        answers.into_iter().collect::<Result<Vec<_>, _>>().context("a task was not sent")?;
    }
    Ok(begun.elapsed())
}

/// Each task its own place between 0 and 1, in no order.
fn spread(n: usize) -> f64 {
    (n as f64 * 0.618_033_988_749_895).fract()
}

/// How many queues the broker has.
fn queues(place: &Place, what: &Delays) -> Result<String> {
    if what.file {
        return Ok("no server".to_owned());
    }
    let listed = services(place)?.rabbitmqctl(&["-q", "list_queues", "--no-table-headers", "name"])?;
    Ok(format!("{} queues", listed.lines().filter(|line| !line.trim().is_empty()).count()))
}

fn services(place: &Place) -> Result<Services> {
    Services::at(&place.dir.join("services"))
}

/// How long the broker was away.
fn kill_after(place: &Place, wait: Duration) -> impl FnOnce() -> Result<Duration> + use<> {
    let services = services(place);
    move || {
        let (services, interrupt) = (services?, Interrupt::listen()?);
        std::thread::sleep(wait);
        let killed = Instant::now();
        services.kill(Server::RabbitMq)?;
        services.start_again(Server::RabbitMq, &interrupt)?;
        Ok(killed.elapsed())
    }
}

fn lateness(seen: &[(TaskId, i64)], count: usize) -> Result<()> {
    let tasks: HashSet<&TaskId> = seen.iter().map(|(id, _)| id).collect();
    let mut late: Vec<i64> = seen.iter().map(|(_, late)| *late).collect();
    late.sort_unstable();
    let millis = |share| quantile(&late, share).unwrap_or(0) as f64 / 1000.0;
    writeln!(
        std::io::stdout(),
        "\n{} ran, {} of them twice, {} early; late by p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, at most {:.1} ms",
        tasks.len(),
        seen.len() - tasks.len(),
        late.iter().filter(|late| **late < 0).count(),
        millis(0.5),
        millis(0.9),
        millis(0.99),
        millis(1.0),
    )?;
    ensure!(tasks.len() == count, "{} tasks did not run", count - tasks.len());
    ensure!(late.first().is_none_or(|late| *late >= 0), "a task was early");
    Ok(())
}
