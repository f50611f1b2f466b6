//! Circuit breakers: a worker that fails a task again and again leaves it to others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use machinist_core::{
    App, Backoff, State, TaskContext, TaskDef, TaskError, WhyReason, Worker, WorkerBuilder, WorkerFilter,
    limit::Limit, worker::TaskOptions,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::sleep;

const CONVERT: TaskDef<(), ()> = TaskDef::new("convert");
const OTHER: TaskDef<(), ()> = TaskDef::new("other");
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A machine on which the task runs or fails.
#[derive(Debug, Clone, Default)]
struct Machine {
    broken: Arc<AtomicBool>,
    runs: Arc<AtomicU32>,
}

async fn convert(State(machine): State<Machine>) -> Result<(), TaskError> {
    machine.runs.fetch_add(1, Ordering::SeqCst);
    sleep(Duration::from_millis(50)).await;
    match machine.broken.load(Ordering::SeqCst) {
        true => Err("the disk is full".into()),
        false => Ok(()),
    }
}

async fn other() -> Result<(), TaskError> {
    Ok(())
}

fn builder(app: &App, name: &str, machine: &Machine) -> WorkerBuilder {
    let options = TaskOptions::new()
        .retries(100)
        .backoff(Backoff::fixed(Duration::from_millis(100)))
        .circuit(3, MINUTE);
    Worker::builder(app)
        .name(name)
        .concurrency(1)
        .state(machine.clone())
        .task(CONVERT, convert)
        .task(OTHER, other)
        .options("convert", options)
}

async fn app() -> App {
    App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_broken_worker_leaves_a_task_to_the_others() {
    let app = app().await;
    let client = app.client();
    let (broken, sound) = (Machine::default(), Machine::default());
    broken.broken.store(true, Ordering::SeqCst);
    let workers = [builder(&app, "good", &sound), builder(&app, "bad", &broken)].map(Running::start);
    let signatures = (0..40).map(|_| CONVERT.call(())).collect();
    let tasks: Vec<_> = client.send_all(signatures).await.into_iter().map(Result::unwrap).collect();
    for task in &tasks {
        task.wait(HOUR).await.unwrap();
    }
    let failed = broken.runs.load(Ordering::SeqCst);
    assert!((3..=8).contains(&failed), "three in a row, and one after each pause: {failed}");
    assert_eq!(sound.runs.load(Ordering::SeqCst), 40);
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

const STORE: TaskDef<(), String> = TaskDef::new("store");

/// Fails on every machine but the one with space.
async fn store(State(has_space): State<bool>, cx: TaskContext) -> Result<String, TaskError> {
    match has_space {
        true => Ok(format!("attempt {}", cx.attempt())),
        false => Err(TaskError::new("the disk is full").elsewhere()),
    }
}

fn with_disk(app: &App, name: &str, has_space: bool) -> WorkerBuilder {
    let options = TaskOptions::new().retries(1).backoff(Backoff::fixed(Duration::from_millis(100)));
    Worker::builder(app).name(name).state(has_space).task(STORE, store).options("store", options)
}

/// With one retry, every task succeeds only if its second attempt runs on the other worker.
#[tokio::test(start_paused = true)]
async fn a_task_that_asks_for_another_worker_gets_one() {
    let app = app().await;
    let client = app.client();
    let workers = [with_disk(&app, "empty", true), with_disk(&app, "full", false)].map(Running::start);
    let signatures = (0..40).map(|_| STORE.call(())).collect();
    let mut second = 0;
    for task in client.send_all(signatures).await {
        // Whom the broker chooses is chance: after five refusals a task runs where it has failed.
        if let Ok(attempt) = task.unwrap().wait(HOUR).await {
            second += usize::from(attempt == "attempt 2");
        }
    }
    assert!(second >= 10, "{second} of 40 have succeeded elsewhere");
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_asks_for_another_worker_runs_here_if_there_is_none() {
    let app = app().await;
    let worker = Running::start(with_disk(&app, "full", false));
    let task = app.client().send(STORE.call(())).await.unwrap();
    let error = task.wait(HOUR).await.unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert_eq!(task.record().await.unwrap().attempt, 2);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_says_which_tasks_it_does_not_take() {
    let app = app().await;
    let client = app.client();
    let machine = Machine::default();
    machine.broken.store(true, Ordering::SeqCst);
    let worker = Running::start(builder(&app, "bad", &machine));
    let task = client.send(CONVERT.call(())).await.unwrap();
    while task.record().await.unwrap().parked.is_none() {
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(machine.runs.load(Ordering::SeqCst), 3);
    let why = client.why(task.id()).await.unwrap();
    assert_eq!(why.reason, WhyReason::CircuitOpen, "{why:?}");
    client.send(OTHER.call(())).await.unwrap().wait(MINUTE).await.unwrap();
    // The next renewal shows it.
    sleep(Duration::from_secs(10)).await;
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    assert_eq!(workers[0].open_circuits, ["convert"]);
    client.revoke(task.id()).await.unwrap();
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_repaired_takes_the_task_again() {
    let app = app().await;
    let client = app.client();
    let machine = Machine::default();
    machine.broken.store(true, Ordering::SeqCst);
    let worker = Running::start(builder(&app, "only", &machine));
    let task = client.send(CONVERT.call(())).await.unwrap();
    while task.record().await.unwrap().parked.is_none() {
        sleep(Duration::from_millis(100)).await;
    }
    machine.broken.store(false, Ordering::SeqCst);
    task.wait(HOUR).await.unwrap();
    client.send(CONVERT.call(())).await.unwrap().wait(Duration::from_secs(1)).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert!(client.workers(&WorkerFilter::new()).await.unwrap()[0].open_circuits.is_empty());
    assert!(worker.stop().await.is_clean());
}

/// Occupies the queue for so many seconds.
const OCCUPY: TaskDef<u64, ()> = TaskDef::new("occupy");

async fn occupy(seconds: u64) -> Result<(), TaskError> {
    sleep(Duration::from_secs(seconds)).await;
    Ok(())
}

/// The pause ends while the only place of the queue is held.
#[tokio::test(start_paused = true)]
async fn a_task_that_a_limit_refuses_does_not_use_up_the_run_that_a_pause_lets_through() {
    let app = app().await;
    let client = app.client();
    let machine = Machine::default();
    machine.broken.store(true, Ordering::SeqCst);
    let limited = builder(&app, "only", &machine).concurrency(4).task(OCCUPY, occupy);
    let worker = Running::start(limited.limit_queue("default", Limit::new().max_running(1)));
    let task = client.send(CONVERT.call(())).await.unwrap();
    while task.record().await.unwrap().parked.is_none() {
        sleep(Duration::from_millis(100)).await;
    }
    machine.broken.store(false, Ordering::SeqCst);
    client.send(OCCUPY.call(70)).await.unwrap().wait(HOUR).await.unwrap();
    // The next run is let through a minute after the first one that was.
    task.wait(Duration::from_secs(20)).await.unwrap();
    client.send(CONVERT.call(())).await.unwrap().wait(Duration::from_secs(1)).await.unwrap();
    assert_eq!(machine.runs.load(Ordering::SeqCst), 5);
    assert!(worker.stop().await.is_clean());
}
