//! Waits of tenants that send one task a second, while another tenant has a backlog: for one queue, for queues by the hash of
//! the tenant, and for shares.
//!
//! The bound that docs/limits.md states for shares is printed beside them.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use machinist::{
    App, FairShare, QueueName, Signature, State, TaskDef, TaskError, Worker, clock::Timestamp,
    limit::LimitKey,
};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::{
    Place,
    order::{Servers, System},
    product, report,
    statistics::quantile,
};

/// Takes its tenant, and the time at which it was sent, in microseconds.
const TASK: TaskDef<(String, i64), ()> = TaskDef::new("fair");
const QUEUE: &str = "bench-fair";
/// Tenant with the backlog.
const MANY: &str = "many";
/// Number of queues among which tenants are spread by their hash.
const HASHED: usize = 8;
const CONCURRENCY: usize = 16;
const RUN: Duration = Duration::from_millis(10);
const BATCH: usize = 1000;
/// Time within which all tasks run, per task of the backlog.
const PATIENCE: Duration = Duration::from_millis(10);

/// The tenants.
#[derive(Debug, clap::Args)]
pub(crate) struct Fairness {
    /// Number of tasks of the tenant with the backlog.
    #[arg(long, default_value_t = 100_000)]
    backlog: usize,
    /// Number of tenants that send one task a second.
    #[arg(long, default_value_t = 16)]
    tenants: usize,
}

/// A way to spread the tasks of tenants.
#[derive(Debug, Clone, Copy)]
enum Design {
    One,
    Hashed,
    Shares,
}

impl Design {
    fn told(self) -> &'static str {
        match self {
            Self::One => "one queue",
            Self::Hashed => "8 queues by hash",
            Self::Shares => "shares",
        }
    }

    /// Returns the task of a tenant that is sent now.
    fn task(self, tenant: &str, now: Timestamp) -> Signature<()> {
        let task = TASK.call((tenant.to_owned(), now.as_micros()));
        match self {
            Self::Hashed => task.queue(hashed(spread(tenant))),
            Self::One | Self::Shares => task.queue(QUEUE),
        }
    }
}

/// Returns one of the queues of tenants.
fn hashed(number: usize) -> String {
    format!("{QUEUE}-{number}")
}

/// Returns the number of a tenant's queue: FNV-1a.
fn spread(tenant: &str) -> usize {
    let hash =
        tenant.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash as usize % HASHED
}

/// Waits of the tasks that have started, in microseconds, by tenant.
type Seen = Arc<Mutex<BTreeMap<String, Vec<i64>>>>;

async fn fair(
    State(app): State<App>,
    State(seen): State<Seen>,
    tenant: String,
    sent: i64,
) -> Result<(), TaskError> {
    let waited = app.clock().now().as_micros() - sent;
    seen.lock().unwrap_or_else(PoisonError::into_inner).entry(tenant).or_default().push(waited);
    tokio::time::sleep(RUN).await;
    Ok(())
}

/// Measures each design, and prints what the tenants waited.
pub(crate) async fn run(place: &Place, what: Fairness) -> Result<()> {
    report::Machine::look(&place.servers).print()?;
    let mut out = std::io::stdout();
    let run_ms = RUN.as_millis();
    writeln!(
        out,
        "\nOne tenant sends {} tasks. While a worker of concurrency {CONCURRENCY} runs them, {run_ms} ms each, {} tenants send one \
         task a second each. All are signed. Seconds from the send of such a task to its start:\n\n\
         | design | tasks | p50 | p99 | longest | p99 of the worst tenant | bound | tasks/s |\n|---|---|---|---|---|---|---|---|",
        what.backlog, what.tenants,
    )?;
    for design in [Design::One, Design::Hashed, Design::Shares] {
        let row = measure(place, &what, design).await.with_context(|| design.told())?;
        writeln!(out, "{row}")?;
    }
    Ok(())
}

async fn measure(place: &Place, what: &Fairness, design: Design) -> Result<String> {
    let servers = Servers::Network { amqp: place.amqp.clone(), redis: place.redis.clone() };
    let share = FairShare::by(LimitKey::template("{0}").map_err(anyhow::Error::msg)?);
    let mut builder = product::builder(&servers, System::Hmac).await?;
    if let Design::Shares = design {
        builder = builder.fair_queue(QueueName::parse(QUEUE)?, share.clone());
    }
    let app = builder.build().await?;
    let seen = Seen::default();
    let mut worker = Worker::builder(&app).name("bench").concurrency(CONCURRENCY).task(TASK, fair);
    worker = match design {
        // Each has the same weight, and another than by default: only then slots are given by weight.
        Design::Hashed => {
            (0..HASHED).map(hashed).fold(worker, |worker, queue| worker.queue(&queue).queue_weight(queue, 2))
        }
        Design::One | Design::Shares => worker.queue(QUEUE),
    };
    let worker = worker.state(app.clone()).state(Arc::clone(&seen)).build()?;
    report::note(&format!("{}: sending {} tasks", design.told(), what.backlog));
    send_backlog(&app, what, design).await?;
    report::note(&format!("{}: working", design.told()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let ready = worker.ready();
    let working = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    ready.cancelled().await;
    let is_over = CancellationToken::new();
    let tenants: Vec<_> = (0..what.tenants)
        .map(|tenant| {
            tokio::spawn(send_few(app.clone(), design, format!("tenant-{tenant}"), is_over.clone()))
        })
        .collect();
    let began = Instant::now();
    let patience = PATIENCE * u32::try_from(what.backlog)? + Duration::from_secs(60);
    wait_until(&seen, patience, |seen| seen.get(MANY).map_or(0, Vec::len) >= what.backlog).await?;
    let rate = what.backlog as f64 / began.elapsed().as_secs_f64();
    is_over.cancel();
    let mut sent = 0;
    for tenant in try_join_all(tenants).await? {
        sent += tenant?;
    }
    wait_until(&seen, patience, |seen| seen.values().map(Vec::len).sum::<usize>() >= what.backlog + sent)
        .await?;
    drop(stop);
    working.await??;
    app.broker().close().await;
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let ran: usize = seen.values().map(Vec::len).sum();
    ensure!(ran == what.backlog + sent, "{ran} runs of {} tasks", what.backlog + sent);
    let bound = match design {
        Design::Shares => {
            format!("{:.2}", (what.tenants + 1) as f64 * f64::from(share.burst) / (0.9 * rate))
        }
        Design::One | Design::Hashed => "none".to_owned(),
    };
    Ok(row(design, &seen, &bound, rate))
}

/// Sends the tasks of the tenant with the backlog.
async fn send_backlog(app: &App, what: &Fairness, design: Design) -> Result<()> {
    let client = app.client();
    for first in (0..what.backlog).step_by(BATCH) {
        let count = BATCH.min(what.backlog - first);
        let batch = (0..count).map(|_| design.task(MANY, app.clock().now())).collect();
        let answers = client.send_all(batch).await;
        answers.into_iter().collect::<Result<Vec<_>, _>>().context("a task was not sent")?;
    }
    Ok(())
}

/// Sends one task a second, until the backlog is gone. Returns the number of tasks.
async fn send_few(app: App, design: Design, tenant: String, is_over: CancellationToken) -> Result<usize> {
    let (client, mut sent) = (app.client(), 0);
    // Not all tenants in the same moment.
    let phase = Duration::from_millis(tenant.bytes().map(u64::from).sum::<u64>() * 37 % 1000);
    tokio::time::sleep(phase).await;
    let mut each = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = each.tick() => {
                client.send(design.task(&tenant, app.clock().now())).await?;
                sent += 1;
            }
            () = is_over.cancelled() => return Ok(sent),
        }
    }
}

async fn wait_until(
    seen: &Seen,
    patience: Duration,
    is_done: impl Fn(&BTreeMap<String, Vec<i64>>) -> bool,
) -> Result<()> {
    let began = Instant::now();
    while !is_done(&seen.lock().unwrap_or_else(PoisonError::into_inner)) {
        ensure!(began.elapsed() < patience, "tasks did not run within {patience:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Returns a line of the table.
fn row(design: Design, seen: &BTreeMap<String, Vec<i64>>, bound: &str, rate: f64) -> String {
    let few = || seen.iter().filter(|(tenant, _)| *tenant != MANY).map(|(_, waits)| sorted(waits.clone()));
    let all = sorted(few().flatten().collect());
    let seconds = |waits: &[i64], share| quantile(waits, share).unwrap_or(0) as f64 / 1e6;
    let worst = few().map(|waits| seconds(&waits, 0.99)).fold(0.0, f64::max);
    format!(
        "| {} | {} | {:.3} | {:.3} | {:.3} | {worst:.3} | {bound} | {rate:.0} |",
        design.told(),
        all.len(),
        seconds(&all, 0.5),
        seconds(&all, 0.99),
        seconds(&all, 1.0),
    )
}

fn sorted(mut waits: Vec<i64>) -> Vec<i64> {
    waits.sort_unstable();
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_waits_of_the_tenants_without_a_backlog() {
        let waits: [(&str, &[i64]); 3] = [(MANY, &[900]), ("a", &[3, 1, 2]), ("b", &[5, 4])];
        let micros = |waits: &[i64]| waits.iter().map(|second| second * 1_000_000).collect();
        let seen = waits.iter().map(|(tenant, waits)| ((*tenant).to_owned(), micros(waits))).collect();
        let row = row(Design::One, &seen, "none", 80.4);
        assert_eq!(row, "| one queue | 5 | 3.000 | 5.000 | 5.000 | 5.000 | none | 80 |");
    }

    #[test]
    fn some_tenants_share_the_queue_of_the_backlog() {
        let shares = |tenant: &usize| spread(&format!("tenant-{tenant}")) == spread(MANY);
        let count = (0..16).filter(shares).count();
        assert!((1..=4).contains(&count), "{count}");
    }
}
