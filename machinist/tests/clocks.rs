//! Hosts whose clocks are an hour off start no task early or late. The host's clock does not matter if the backend has a
//! clock; SQLite and memory use the clock of their only host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use machinist::{
    App, AppExt, State, TaskContext, TaskDef, TaskError, TaskId, Worker,
    clock::{set_host_wrong_by, wall},
    limit::{Limit, Rate},
    periodic::{Misfire, Periodic, Schedule},
    settings::{Overrides, Settings},
    worker::TaskOptions,
};
use machinist_conformance::service_url;
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::sync::{Mutex as Turn, oneshot};

const HOUR: Duration = Duration::from_secs(3600);
const WAIT_TIMEOUT: Duration = Duration::from_secs(600);
const COUNTDOWN: Duration = Duration::from_secs(1);

/// Lock for the host's clock, which belongs to the whole process.
static TURN: Turn<()> = Turn::const_new(());

/// Task that fails once, and records its runs by the monotonic clock, with their fencing tokens.
const TWICE: TaskDef<(), ()> = TaskDef::new("twice");
type Runs = Arc<Mutex<Vec<(Instant, u64)>>>;

async fn twice(
    cx: TaskContext,
    State(runs): State<Runs>,
    State(calls): State<Arc<AtomicU32>>,
) -> Result<(), TaskError> {
    runs.lock().unwrap().push((Instant::now(), cx.fencing_token()));
    if calls.fetch_add(1, Ordering::SeqCst) == 0 { Err("the first run fails")? } else { Ok(()) }
}

/// Sends a task from one application to another, which runs it after its countdown, again after its back-off, and before it
/// expires.
async fn delayed_and_retried(sender: &App, worker: &App, queue: &str) {
    let runs = Runs::default();
    let working = Worker::builder(worker).queue(queue).task(TWICE, twice);
    let working = working.state(Arc::clone(&runs)).state(Arc::new(AtomicU32::new(0))).build().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let working = tokio::spawn(working.run_until(async { drop(stopped.await) }));
    let sent = Instant::now();
    let signature = TWICE.call(()).queue(queue).countdown(COUNTDOWN).expires_in(2 * WAIT_TIMEOUT);
    let signature =
        signature.retries(1).backoff(machinist::Backoff::fixed(COUNTDOWN)).retry_for(WAIT_TIMEOUT);
    let task = sender.client().send(signature).await.unwrap();
    // A clock that is off by an hour would run it an hour early, or an hour late, after its expiry.
    task.wait(WAIT_TIMEOUT).await.unwrap();
    let record = task.record().await.unwrap();
    assert!(record.started_at.unwrap() >= record.eta.unwrap(), "{record:?}");
    assert!(record.ended_at.unwrap().since(record.sent_at.unwrap()) < WAIT_TIMEOUT, "{record:?}");
    {
        let runs = runs.lock().unwrap();
        assert_eq!(runs.len(), 2);
        let (first, second) = (runs[0], runs[1]);
        assert!(first.0 - sent >= COUNTDOWN && second.0 - first.0 >= COUNTDOWN, "{:?}", second.0 - sent);
        assert!(second.1 > first.1, "fencing tokens rise");
    }
    drop(stop);
    assert!(working.await.unwrap().unwrap().is_clean());
}

/// Task that runs alone and at a rate, and records its starts and ends by the monotonic clock.
const LIMITED: TaskDef<(), ()> = TaskDef::new("limited");
const LIMITED_TASKS: usize = 12;
type Spans = Arc<Mutex<Vec<(Instant, Instant)>>>;

async fn limited(State(spans): State<Spans>) -> Result<(), TaskError> {
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    spans.lock().unwrap().push((began, Instant::now()));
    Ok(())
}

/// Lets workers of these applications share a rate of five in a second and one place.
async fn limited_together(sender: &App, workers: &[App], queue: &str) {
    let spans = Spans::default();
    let limit = Limit::new().rate(Rate::parse("5/s").unwrap()).max_running(1);
    let (stop, _) = tokio::sync::broadcast::channel::<()>(1);
    let mut working = Vec::new();
    for app in workers {
        let worker = Worker::builder(app).queue(queue).concurrency(2).task(LIMITED, limited);
        let worker =
            worker.state(Arc::clone(&spans)).options("limited", TaskOptions::new().limit(limit.clone()));
        let (worker, mut stopped) = (worker.build().unwrap(), stop.subscribe());
        working.push(tokio::spawn(worker.run_until(async move { drop(stopped.recv().await) })));
    }
    let mut tasks = Vec::new();
    for _ in 0..LIMITED_TASKS {
        tasks.push(sender.client().send(LIMITED.call(()).queue(queue)).await.unwrap());
    }
    // A clock that is off by an hour would reserve starts an hour ahead, or all at once.
    for task in &tasks {
        task.wait(WAIT_TIMEOUT).await.unwrap();
    }
    let mut spans = spans.lock().unwrap().clone();
    spans.sort_unstable();
    assert_eq!(spans.len(), LIMITED_TASKS);
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "one at a time");
    // Eleven starts after the first one take 2.2 s. The first one may be 500 ms late.
    let whole = spans[LIMITED_TASKS - 1].0 - spans[0].0;
    assert!(whole >= Duration::from_millis(1600), "{whole:?}");
    drop(stop);
    for worker in working {
        assert!(worker.await.unwrap().unwrap().is_clean());
    }
}

const TICK: TaskDef<(), ()> = TaskDef::new("tick");

async fn tick() -> Result<(), TaskError> {
    Ok(())
}

/// Lets a worker of each of these applications tick, one after the other.
async fn tick_in_turn(right: &App, workers: &[App], queue: &str) {
    let client = right.client();
    let read = async || client.periodic_task("beat").await.unwrap().map_or_else(Vec::new, |beat| beat.ticks);
    let mut ticks = Vec::new();
    for app in workers {
        // The one before has ended.
        let before = read().await.len();
        let schedule = Schedule::every(COUNTDOWN).unwrap();
        let beat = Periodic::new("beat", schedule, TICK.call(()).queue(queue)).unwrap();
        let worker = Worker::builder(app).queue(queue).task(TICK, tick).periodic(beat.misfire(Misfire::All));
        let worker = worker.build().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let working = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        let more = async {
            while ticks.len() <= before {
                tokio::time::sleep(Duration::from_millis(20)).await;
                ticks = read().await;
            }
        };
        // A clock that is an hour late would not reach the next instant.
        tokio::time::timeout(WAIT_TIMEOUT, more).await.expect("it ticks");
        let now = right.clock().now();
        let apart = now.since(ticks[0].tick).max(ticks[0].tick.since(now));
        assert!(apart < WAIT_TIMEOUT, "an instant that is {apart:?} off");
        drop(stop);
        assert!(working.await.unwrap().unwrap().is_clean());
    }
    // The newest is the first.
    let gaps: Vec<_> = ticks.windows(2).map(|pair| pair[0].tick.since(pair[1].tick)).collect();
    assert!(gaps.iter().all(|gap| *gap == COUNTDOWN), "{gaps:?}");
}

fn set_wrong(hours: i64) {
    set_host_wrong_by(hours * i64::try_from(HOUR.as_micros()).unwrap());
}

async fn connect(broker: &str, backend: &str, namespace: &str) -> App {
    let flags = Overrides {
        broker: Some(broker.to_owned()),
        backend: Some(backend.to_owned()),
        namespace: Some(namespace.to_owned()),
        allow_unsigned: true,
        ..Overrides::default()
    };
    App::from_settings(&Settings::resolve(flags, &|_| None, None).unwrap()).await.unwrap()
}

#[tokio::test]
async fn on_rabbitmq_and_redis_no_hosts_clock_matters() {
    let (Some(broker), Some(backend)) =
        (service_url("MACHINIST_TEST_AMQP_URL"), service_url("MACHINIST_TEST_REDIS_URL"))
    else {
        return;
    };
    let _turn = TURN.lock().await;
    for (sender, worker) in [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)] {
        let namespace = format!("c-{}", TaskId::fresh());
        set_wrong(sender);
        let senders = connect(&broker, &backend, &namespace).await;
        let off = senders.clock().now().since(wall()).max(wall().since(senders.clock().now()));
        assert_eq!(off > HOUR / 2, sender != 0, "the host's clock is as it was set");
        set_wrong(worker);
        let workers = connect(&broker, &backend, &namespace).await;
        delayed_and_retried(&senders, &workers, "clocks").await;
    }
    let namespace = format!("c-{}", TaskId::fresh());
    let mut apps = Vec::new();
    for hours in [0, 1, -1] {
        set_wrong(hours);
        apps.push(connect(&broker, &backend, &namespace).await);
    }
    limited_together(&apps[0], &apps[1..], "limited").await;
    tick_in_turn(&apps[0], &apps[1..], "ticks").await;
    set_wrong(0);
}

#[tokio::test]
async fn on_one_host_its_clock_may_be_wrong() {
    let _turn = TURN.lock().await;
    for hours in [-1, 1] {
        set_wrong(hours);
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite://{}", folder.path().join("machinist.db").display());
        let app = connect(&file, &file, "clocks").await;
        let other = connect(&file, &file, "clocks").await;
        delayed_and_retried(&app, &other, "clocks").await;
        limited_together(&app, &[app.clone(), other], "limited").await;
        let memory = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
        let memory = memory.build().await.unwrap();
        delayed_and_retried(&memory, &memory, "clocks").await;
    }
    set_wrong(0);
}

/// A sender that starts after the clock was set and a worker that started before see the same time.
#[tokio::test]
async fn the_clock_of_the_host_may_be_set_while_the_file_is_used() {
    let _turn = TURN.lock().await;
    for hours in [-1, 1] {
        set_wrong(0);
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite://{}", folder.path().join("machinist.db").display());
        let workers = connect(&file, &file, "clocks").await;
        // Its time is stored.
        workers.client().send(TWICE.call(()).queue("nobody")).await.unwrap();
        set_wrong(hours);
        let senders = connect(&file, &file, "clocks").await;
        let (early, late) = (workers.clock().now(), senders.clock().now());
        let apart = early.since(late).max(late.since(early));
        assert!(apart < Duration::from_secs(30), "{apart:?} after a step by {hours} h");
        delayed_and_retried(&senders, &workers, "clocks").await;
    }
    set_wrong(0);
}
