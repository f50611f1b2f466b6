//! Machinist as its users write it: a task, a worker, a client.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use machinist::{
    App, AppBuilder, Client, QueueName, QueueOptions, Rest, Signature, State, TaskDef, TaskError, Worker,
    amqp::{AmqpBroker, AmqpOptions, ExistingQueue},
    limit::{Limit, LimitKey, Rate},
    machinery::{MachineryMirror, MachineryProfile},
    redis::{RedisBackend, RedisOptions},
    sign::{Algorithm, Key, Keyring},
    sqlite::{SqliteOptions, SqliteStore, Synchronous},
    worker::TaskOptions,
};

use crate::{
    flows::{self, Gaps},
    order::{Duty, Order, Servers, System, Told},
    part::{self, Count},
};

const CALLBACK: TaskDef<Rest<serde_json::Value>, ()> = TaskDef::new("callback");
const NOOP: TaskDef<String, ()> = TaskDef::new("noop");
/// Exchange of the queues that a program of Go declares.
pub(crate) const MACHINERY_EXCHANGE: &str = "bench-machinery";
const PATIENCE: Duration = Duration::from_secs(60);
/// Time after which a worker that is ready has nothing left to do. Its first look at the broker comes 3 s after its start.
const SETTLING: Duration = Duration::from_secs(5);
/// Number of keys of limited tasks.
const KEYS: usize = 20;
/// Starts of each of them in a second, and at once: no task has to wait.
const STARTS: u32 = 10_000;

/// What the handler needs.
#[derive(Debug, Clone)]
struct Shop {
    count: Count,
    sleep: Duration,
    gaps: Gaps,
}

async fn noop(State(shop): State<Shop>, _payload: String) -> Result<(), TaskError> {
    if !shop.sleep.is_zero() {
        tokio::time::sleep(shop.sleep).await;
    }
    shop.gaps.member();
    shop.count.one();
    Ok(())
}

/// Follows a group, with its results.
async fn callback(State(shop): State<Shop>, _: Rest<serde_json::Value>) -> Result<(), TaskError> {
    shop.gaps.callback();
    shop.count.one();
    Ok(())
}

pub(crate) async fn play(order: &Order) -> Result<Told> {
    let app = match order.system {
        System::Machinery | System::MachineryQuorum => connect_to_machinery(order).await?,
        system => connect_to(&order.servers, system).await?,
    };
    let told = match order.duty {
        Duty::Work { concurrency, sleep_ms, .. } => {
            work(&app, order, concurrency, Duration::from_millis(sleep_ms)).await
        }
        Duty::Idle { seconds } => idle(&app, order, Duration::from_secs(seconds)).await,
        Duty::SendAll { batch } => send_all(&app.client(), order, batch).await,
        Duty::SendEach { callers } => send_each(&app.client(), order, callers).await,
        Duty::Lone => lone(&app.client(), order).await,
        Duty::Chains { length } => flows::chains(&app.client(), order, length).await,
        Duty::Groups { members } => flows::groups(&app.client(), order, members).await,
        Duty::ChordsLone { members } => flows::chords_lone(&app.client(), order, members).await,
    }?;
    app.broker().close().await;
    Ok(told)
}

pub(crate) async fn connect_to(servers: &Servers, system: System) -> Result<App> {
    Ok(builder(servers, system).await?.build().await?)
}

/// Returns an application with connected servers and the keys of the system.
pub(crate) async fn builder(servers: &Servers, system: System) -> Result<AppBuilder> {
    let builder = match servers {
        Servers::Network { amqp, redis } => {
            let broker = AmqpBroker::connect(amqp, AmqpOptions::default()).await?;
            let backend = RedisBackend::connect(redis, RedisOptions::default()).await?;
            App::builder(Arc::new(broker), Arc::new(backend))
        }
        Servers::File { path, full } => {
            let synchronous = if *full { Synchronous::Full } else { Synchronous::Normal };
            let store =
                SqliteStore::open(path, SqliteOptions { synchronous, ..SqliteOptions::default() }).await?;
            App::builder(Arc::new(store.broker()), Arc::new(store.backend()))
        }
    };
    with_keys(builder, system)
}

/// Gives the keys of the system to an application.
pub(crate) fn with_keys(builder: AppBuilder, system: System) -> Result<AppBuilder> {
    let keys = keys(system)?;
    Ok(if keys.is_empty() { builder.allow_unsigned() } else { builder.keyring(Keyring::new(keys)?) })
}

/// Connects to a queue that a program of Go declares, with the states that it expects.
async fn connect_to_machinery(order: &Order) -> Result<App> {
    let Servers::Network { amqp, redis } = &order.servers else { bail!("Go machinery has no file") };
    let queue = QueueName::parse(&order.queue)?;
    let existing = ExistingQueue::new(&order.queue).through(MACHINERY_EXCHANGE, &order.queue);
    let existing_queues = [(queue.clone(), existing)].into();
    let broker = AmqpBroker::connect(amqp, AmqpOptions { existing_queues, ..AmqpOptions::default() }).await?;
    let backend = RedisBackend::connect(redis, RedisOptions::default()).await?;
    let mirror = MachineryMirror::new(backend.values(), &order.queue).queue(&order.queue, queue.clone());
    let options = QueueOptions::default()
        .profile(MachineryProfile::new(&order.queue))
        .allow_unsigned(["*"])
        .shared()
        .mirror(mirror);
    let builder = App::builder(Arc::new(broker), Arc::new(backend)).allow_unsigned();
    Ok(builder.queue(queue, options).build().await?)
}

/// The same in every process, because a sender's worker must know them. They keep nothing secret.
fn keys(system: System) -> Result<Vec<Key>> {
    let algorithms: &[Algorithm] = match system {
        System::Floor | System::Machinist | System::Limited | System::Machinery | System::MachineryQuorum => {
            &[]
        }
        System::Hmac => &[Algorithm::HmacSha256],
        System::Ed25519 => &[Algorithm::Ed25519],
        System::HmacEncrypted => &[Algorithm::HmacSha256, Algorithm::XChaCha20Poly1305],
        System::Ed25519Encrypted => &[Algorithm::Ed25519, Algorithm::XChaCha20Poly1305],
    };
    let key = |algorithm: &Algorithm| Key::with_secret(*algorithm, algorithm.as_str(), &[7; 32]);
    Ok(algorithms.iter().map(key).collect::<Result<_, _>>()?)
}

fn worker(app: &App, order: &Order, concurrency: usize, shop: Shop) -> Result<Worker> {
    let builder = Worker::builder(app).name("bench").queue(&order.queue).concurrency(concurrency);
    let builder = builder.state(shop).task(NOOP, noop).task(CALLBACK, callback);
    Ok(match order.system {
        System::Limited => builder.options("noop", TaskOptions::new().limit(limit()?)),
        _ => builder,
    }
    .build()?)
}

/// Returns a limit that every task has to ask, and that lets each of them start.
fn limit() -> Result<Limit> {
    let rate = Rate::new(STARTS, Duration::from_secs(1)).map_err(anyhow::Error::msg)?;
    let key = LimitKey::template("{0}").map_err(anyhow::Error::msg)?;
    Ok(Limit::new().rate(rate).burst(STARTS).key(key))
}

async fn work(app: &App, order: &Order, concurrency: usize, sleep: Duration) -> Result<Told> {
    let (count, gaps) = (Count::to(order.tasks), Gaps::default());
    let worker = worker(app, order, concurrency, Shop { count: count.clone(), sleep, gaps: gaps.clone() })?;
    let watch = part::begin().await?;
    let (drained, samples) = part::sampled(watch, order, &count, worker.run_until(count.all())).await?;
    drained?;
    watch.told(count.took(), gaps.all_us(), samples)
}

async fn idle(app: &App, order: &Order, long: Duration) -> Result<Told> {
    let count = Count::to(usize::MAX);
    let worker =
        worker(app, order, 16, Shop { count: count.clone(), sleep: Duration::ZERO, gaps: Gaps::default() })?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let ready = worker.ready();
    let running = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    ready.cancelled().await;
    // A worker that is ready still declares queues for delays, and looks at what was left: it does not idle yet.
    tokio::time::sleep(SETTLING).await;
    let watch = part::begin().await?;
    tokio::time::sleep(long).await;
    let told = watch.told(long, Vec::new(), Vec::new());
    drop(stop);
    running.await??;
    told
}

/// Returns the task of this number.
fn signature(order: &Order, payload: &str, number: usize) -> Signature<()> {
    let task = NOOP.call(payload.to_owned()).queue(&order.queue);
    match order.system {
        System::Limited => task.limit_key(format!("tenant-{}", number % KEYS)),
        _ => task,
    }
}

async fn send_all(client: &Client, order: &Order, batch: usize) -> Result<Told> {
    let payload = part::payload(order);
    let watch = part::begin().await?;
    let mut left = order.tasks;
    while left > 0 {
        let now = left.min(batch);
        let signatures = (0..now).map(|number| signature(order, &payload, number)).collect();
        for answer in client.send_all(signatures).await {
            answer?;
        }
        left -= now;
    }
    watch.told(watch.elapsed(), Vec::new(), Vec::new())
}

async fn send_each(client: &Client, order: &Order, callers: usize) -> Result<Told> {
    let payload = part::payload(order);
    let watch = part::begin().await?;
    let each = |caller: usize| {
        let (client, order, payload) = (client.clone(), order.clone(), payload.clone());
        async move {
            let sending = tokio::spawn(async move {
                for number in (caller..order.tasks).step_by(callers) {
                    client.send(signature(&order, &payload, number)).await?;
                }
                Ok::<_, machinist::SendError>(())
            });
            anyhow::Ok(sending.await??)
        }
    };
    try_join_all((0..callers).map(each)).await?;
    watch.told(watch.elapsed(), Vec::new(), Vec::new())
}

async fn lone(client: &Client, order: &Order) -> Result<Told> {
    let payload = part::payload(order);
    let watch = part::begin().await?;
    let mut latencies = Vec::with_capacity(order.tasks);
    for number in 0..order.tasks {
        let began = Instant::now();
        client.send(signature(order, &payload, number)).await?.wait(PATIENCE).await?;
        latencies.push(began.elapsed().as_secs_f64() * 1e6);
    }
    watch.told(watch.elapsed(), latencies, Vec::new())
}
