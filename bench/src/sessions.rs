//! Cost of the registry: what the sessions of many workers send to Redis and read from it.
//!
//! The workers are real ones inside this process, with a broker in memory, so that nothing else reaches Redis. First they
//! are idle, then each has runs that last. What Redis counts is compared with the arithmetic of docs/fleet.md.

use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::future::{join_all, try_join_all};
use machinist::{
    App, State, TaskDef, TaskError, Worker,
    memory::MemoryBroker,
    redis::{RedisBackend, RedisOptions},
};
use tokio_util::sync::CancellationToken;

use crate::{Place, meter, order::System, product, report};

const QUEUE: &str = "bench-sessions";
/// Runs until the measurement is over.
const LASTING: TaskDef<(), ()> = TaskDef::new("lasting");
/// Number of workers that share the connections of one backend.
const PER_BACKEND: usize = 20;
/// Number of workers that are started together.
const WINDOW: usize = 50;
/// Time until the first renewals are over.
const SETTLE: Duration = Duration::from_secs(10);
/// Interval between the renewals of a session.
const RENEWAL_SECONDS: f64 = 5.0;

/// The workers.
#[derive(Debug, clap::Args)]
pub(crate) struct Sessions {
    /// Number of workers.
    #[arg(long, default_value_t = 1000)]
    workers: usize,
    /// Number of lasting runs of each worker in the second part.
    #[arg(long, default_value_t = 12)]
    runs: usize,
    /// Seconds that each part is measured.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

async fn lasting(State(over): State<CancellationToken>) -> Result<(), TaskError> {
    over.cancelled().await;
    Ok(())
}

/// What Redis has counted.
struct Counted {
    input: f64,
    output: f64,
    commands: f64,
    redis_us: f64,
    own_us: f64,
}

impl Counted {
    async fn look(place: &Place, redis: &mut redis::aio::MultiplexedConnection) -> Result<Self> {
        let info: String = redis::cmd("INFO").arg("stats").query_async(redis).await?;
        let number = |name: &str| -> Result<f64> {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            Ok(line.with_context(|| format!("Redis does not tell {name}"))?.trim().parse()?)
        };
        Ok(Self {
            input: number("total_net_input_bytes")?,
            output: number("total_net_output_bytes")?,
            commands: number("total_commands_processed")?,
            redis_us: meter::cpu_us(place.redis_pid)?,
            own_us: meter::own_cpu_us()?,
        })
    }
}

/// Measures both parts, and prints them.
pub(crate) async fn run(place: &Place, what: Sessions) -> Result<()> {
    let broker = MemoryBroker::new();
    let mut redis = redis::Client::open(place.redis.as_str())?.get_multiplexed_async_connection().await?;
    let (stop, over) = (CancellationToken::new(), CancellationToken::new());
    let mut working = Vec::new();
    let mut apps: Vec<App> = Vec::new();
    report::note(&format!("starting {} workers", what.workers));
    for first in (0..what.workers).step_by(WINDOW) {
        let mut ready = Vec::new();
        for number in first..what.workers.min(first + WINDOW) {
            if number % PER_BACKEND == 0 {
                let backend = RedisBackend::connect(&place.redis, RedisOptions::default()).await?;
                let app = App::builder(Arc::new(broker.connect()), Arc::new(backend));
                apps.push(product::with_keys(app, System::Hmac)?.build().await?);
            }
            let app = apps.last().context("a worker has an application")?;
            let worker = Worker::builder(app)
                .name(format!("worker-{number}"))
                .queue(QUEUE)
                .concurrency(what.runs.max(1))
                .state(over.clone())
                .task(LASTING, lasting)
                .build()?;
            ready.push(worker.ready());
            working.push(tokio::spawn(worker.run_until(stop.clone().cancelled_owned())));
        }
        join_all(ready.iter().map(CancellationToken::cancelled)).await;
    }
    report::Machine::look(&place.servers).print()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "\n{} workers in one process, over a broker in memory and Redis. What Redis counts in {} s; a renewal every \
         {RENEWAL_SECONDS} s:\n\n\
         | workers | to Redis | from Redis | commands | to Redis, each renewal | Redis | all workers |\n\
         |---|---|---|---|---|---|---|",
        what.workers, what.seconds,
    )?;
    let mut measured = async |name: &str| -> Result<()> {
        tokio::time::sleep(SETTLE).await;
        let before = Counted::look(place, &mut redis).await?;
        tokio::time::sleep(Duration::from_secs(what.seconds)).await;
        let after = Counted::look(place, &mut redis).await?;
        let seconds = what.seconds as f64;
        let rate = |after: f64, before: f64| (after - before) / seconds;
        let input = rate(after.input, before.input);
        writeln!(
            out,
            "| {name} | {:.0} kB/s | {:.0} kB/s | {:.0}/s | {:.0} bytes | {:.1} % of a core | {:.1} % of a core |",
            input / 1e3,
            rate(after.output, before.output) / 1e3,
            rate(after.commands, before.commands),
            input * RENEWAL_SECONDS / what.workers as f64,
            rate(after.redis_us, before.redis_us) / 1e4,
            rate(after.own_us, before.own_us) / 1e4,
        )?;
        Ok(())
    };
    measured("idle").await?;
    let client = apps.first().context("there is a worker")?.client();
    let tasks = what.workers * what.runs;
    report::note(&format!("sending {tasks} tasks"));
    for first in (0..tasks).step_by(1000) {
        let batch = (first..tasks.min(first + 1000)).map(|_| LASTING.call(()).queue(QUEUE)).collect();
        client.send_all(batch).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    measured(&format!("each with {} runs", what.runs)).await?;
    over.cancel();
    stop.cancel();
    for ended in try_join_all(working).await? {
        ended?;
    }
    Ok(())
}
