//! What an observer sees of each way that a task can go, in which order, and that it can do no harm.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::{Running, warm_up};
use machinist_conformance::eventually;
use machinist_core::{
    App, AppBuilder, AsyncResult, Backoff, RetryPolicy, Signature, TaskContext, TaskDef, TaskError, Worker,
    WorkerBuilder,
    event::{Event, EventKind, WorkerState},
    record::TaskState,
    sign::{Algorithm, Key},
    worker::Drained,
};
use machinist_memory::{MemoryBackend, MemoryBroker};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const FAIL: TaskDef<(), ()> = TaskDef::new("fail");
const SLEEP: TaskDef<(u64,), ()> = TaskDef::new("sleep");
const REPORT: TaskDef<(), ()> = TaskDef::new("report");

const HOUR: Duration = Duration::from_secs(3600);

async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

async fn fail() -> Result<(), TaskError> {
    Err("no luck")?
}

async fn sleep(seconds: u64) -> Result<(), TaskError> {
    tokio::time::sleep(secs(seconds)).await;
    Ok(())
}

async fn report(cx: TaskContext) -> Result<(), TaskError> {
    for done in 1..=2 {
        cx.progress(done, 2, "");
        tokio::time::sleep(secs(1)).await;
    }
    Ok(())
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// One line about what an event says beside its name.
fn line(event: &Event<'_>) -> String {
    let detail = match event.kind {
        EventKind::Received { task, generation, .. } => format!("{}.{generation}", task.attempt),
        EventKind::Started { task, start, .. } => format!("{}:{start}", task.attempt),
        EventKind::Progress { progress, .. } => format!("{} of {}", progress.done, progress.total),
        EventKind::Retried { task, kind, error, .. } => {
            format!("{} after {kind}: {}", task.attempt, error.message())
        }
        EventKind::Ended { state, failure, .. } => {
            let failure = failure.map(|(kind, error)| format!("/{kind}: {}", error.message()));
            format!("{state}{}", failure.unwrap_or_default())
        }
        EventKind::FollowedUp { task, .. } => task.attempt.to_string(),
        EventKind::Refused { task, reason, .. } => format!("{reason}, known: {}", task.is_some()),
        EventKind::Deferred { error, remaining, .. } => format!("{remaining:?}, {error}"),
        EventKind::DeadLettered { reason, task, .. } => format!("{reason}, known: {}", task.is_some()),
        EventKind::HandedBack { cut_off, draining, .. } => {
            format!("cut off: {cut_off}, draining: {draining}")
        }
        EventKind::TakenOver { from, .. } => format!("from {from}"),
        EventKind::Revoked { running, .. } => format!("running: {running}"),
        EventKind::WorkerStarted { queues, .. } => format!("{} queue", queues.len()),
        EventKind::WorkerState { state: WorkerState::Draining { running, .. }, .. } => {
            format!("draining {running}")
        }
        EventKind::WorkerState { state, .. } => state.name().to_owned(),
        EventKind::WorkerEnded { handed_back, unfinished, refused, .. } => {
            format!("{handed_back} {unfinished} {refused}")
        }
        _ => String::new(),
    };
    let worker = event.worker.map(|name| format!("{name}: ")).unwrap_or_default();
    format!("{worker}{} {detail}", event.name()).trim_end().to_owned()
}

/// What happened since it was last asked.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn contains(&self, line: &str) -> bool {
        self.0.lock().unwrap().iter().any(|seen| seen.contains(line))
    }
}

struct House {
    broker: MemoryBroker,
    backend: MemoryBackend,
    seen: Seen,
    app: App,
}

impl House {
    async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(configure: impl FnOnce(AppBuilder) -> AppBuilder) -> Self {
        let (broker, backend, seen) = (MemoryBroker::new(), MemoryBackend::new(), Seen::default());
        let lines = Arc::clone(&seen.0);
        let builder = App::builder(Arc::new(broker.connect()), Arc::new(backend.clone()));
        let observed =
            configure(builder).observer(move |event: &Event<'_>| lines.lock().unwrap().push(line(event)));
        let app = observed.build().await.unwrap();
        Self { broker, backend, seen, app }
    }

    fn worker(&self, name: &str) -> Running {
        Running::start(worker(&self.app, name))
    }

    async fn send<R>(&self, signature: Signature<R>) -> AsyncResult<R> {
        self.app.client().send(signature).await.unwrap()
    }

    /// Waits until an event was seen.
    async fn sees(&self, line: &str) {
        assert!(
            eventually(2 * HOUR, async || self.seen.contains(line)).await,
            "{line} in {:?}",
            self.seen.take()
        );
    }
}

fn worker(app: &App, name: &str) -> WorkerBuilder {
    let builder = Worker::builder(app).name(name).concurrency(1).grace(secs(1));
    builder.task(ADD, add).task(FAIL, fail).task(SLEEP, sleep).task(REPORT, report)
}

#[tokio::test(start_paused = true)]
async fn a_task_that_succeeds() {
    let house = House::new().await;
    let sum = house.send(ADD.call((2, 3))).await;
    let running = house.worker("w");
    assert_eq!(sum.wait(HOUR).await.unwrap(), 5);
    assert!(running.stop().await.is_clean());
    assert_eq!(
        house.seen.take(),
        [
            "sent",
            "w: worker_started 1 queue",
            "w: received 1.0",
            "w: started 1:1",
            "w: ended SUCCESS",
            "w: worker_state draining 0",
            "w: worker_ended 0 0 0"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_tried_again_fails_and_is_dead_lettered() {
    let house = House::new().await;
    let _running = house.worker("w");
    house.sees("worker_started").await;
    house.seen.take();
    let policy = RetryPolicy::new(1).backoff(Backoff::fixed(secs(5)));
    let failed = house.send(FAIL.call(()).retry_policy(policy)).await;
    failed.wait(HOUR).await.unwrap_err();
    house.sees("followed_up 2").await;
    assert_eq!(
        house.seen.take(),
        [
            "sent",
            "w: received 1.0",
            "w: started 1:1",
            "w: retried 1 after error: no luck",
            "w: followed_up 1",
            "w: received 2.0",
            "w: started 2:1",
            "w: ended FAILURE/error: no luck",
            "w: dead_lettered failed, known: true",
            "w: followed_up 2",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_revoked_while_it_runs_and_one_that_waits() {
    let house = House::new().await;
    let running = house.worker("w");
    let task = house.send(SLEEP.call((600,))).await;
    house.sees("started 1").await;
    house.seen.take();
    house.app.client().revoke(task.id()).await.unwrap();
    task.wait(HOUR).await.unwrap_err();
    assert_eq!(house.seen.take(), ["revoked running: true", "w: ended FAILURE/revoked: revoked"]);
    running.stop().await;
    house.seen.take();

    let delayed = house.send(SLEEP.call((1,)).countdown(secs(60))).await;
    house.app.client().revoke(delayed.id()).await.unwrap();
    assert_eq!(house.seen.take(), ["sent", "revoked running: false", "ended FAILURE/revoked: revoked"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_refused() {
    let key = Key::generate(Algorithm::HmacSha256, "a").unwrap();
    let house = House::with(|builder| builder.keyring(key)).await;
    let _running = house.worker("w");
    house.sees("worker_started").await;
    house.seen.take();
    let stranger = App::builder(Arc::new(house.broker.connect()), Arc::new(house.backend.clone()));
    stranger.build().await.unwrap().client().send(ADD.call((1, 1))).await.unwrap();
    house.sees("dead_lettered").await;
    let expected = ["w: refused unsigned, known: false", "w: dead_lettered unsigned, known: false"];
    assert_eq!(house.seen.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_no_worker_knows() {
    let house = House::new().await;
    house.send(TaskDef::<(), ()>::new("strange").call(())).await;
    let _running = house.worker("w");
    house.sees("followed_up").await;
    let seen = house.seen.take();
    let error = "no worker of queue default knows the task strange";
    assert_eq!(seen[2..4], ["w: received 1.0".to_owned(), format!("w: deferred 3600s, {error}")]);
    let end = &seen[seen.len() - 4..];
    let ended = format!("w: ended FAILURE/unregistered: {error}");
    let expected =
        ["w: received 1.0", &ended, "w: dead_lettered unregistered, known: true", "w: followed_up 1"];
    assert_eq!(end, expected);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_are_handed_back_when_the_worker_drains() {
    let house = House::new().await;
    let running = house.worker("w");
    warm_up(&house.app.client(), || ADD.call((1, 1))).await;
    house.seen.take();
    house.send(SLEEP.call((600,))).await;
    house.sees("started").await;
    house.send(ADD.call((1, 1))).await;
    house.sees("received 1.0").await;
    // Longer than it takes to record that the second task waits, and shorter than it may wait.
    tokio::time::sleep(secs(1)).await;
    house.seen.take();
    assert_eq!(
        running.stop().await,
        Drained { handed_back: 1, unfinished: 0, refused: 0, restart_exit_code: None }
    );
    assert_eq!(
        house.seen.take(),
        [
            "w: worker_state draining 1",
            "w: handed_back cut off: false, draining: true",
            "w: handed_back cut off: true, draining: true",
            "w: worker_ended 1 0 0",
        ]
    );
    let heir = house.worker("heir");
    house.sees("ended SUCCESS").await;
    heir.stop().await;
    let seen = house.seen.take();
    assert!(!seen.iter().any(|line| line.contains("taken_over")), "it was handed back: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_taken_over() {
    let house = House::new().await;
    let dies = house.worker("dies");
    let task = house.send(SLEEP.call((5,))).await;
    house.sees("started").await;
    dies.worker.abort();
    house.seen.take();
    let _heir = house.worker("heir");
    task.wait(HOUR).await.unwrap();
    assert_eq!(
        house.seen.take(),
        [
            "heir: worker_started 1 queue",
            "heir: received 1.0",
            "heir: taken_over from dies",
            "heir: started 1:2",
            "heir: ended SUCCESS"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_reconnects_is_seen() {
    let house = House::new().await;
    let _running = house.worker("w");
    tokio::time::sleep(secs(30)).await;
    house.broker.interrupt();
    tokio::time::sleep(secs(30)).await;
    let seen = house.seen.take();
    assert_eq!(
        seen,
        ["w: worker_started 1 queue", "w: worker_state broker_away", "w: worker_state broker_back"]
    );
}

#[tokio::test(start_paused = true)]
async fn progress_is_seen_while_a_task_runs() {
    let house = House::new().await;
    let _running = house.worker("w");
    house.send(REPORT.call(())).await.wait(HOUR).await.unwrap();
    let seen = house.seen.take();
    let progress = seen.iter().filter(|line| line.contains("progress")).collect::<Vec<_>>();
    assert_eq!(progress, ["w: progress 1 of 2", "w: progress 2 of 2"]);
}

#[tokio::test(start_paused = true)]
async fn stages_are_measured() {
    let stages: Arc<Mutex<Vec<u64>>> = Arc::default();
    let measured = Arc::clone(&stages);
    let house = House::with(|builder| {
        builder.observer(move |event: &Event<'_>| {
            let stage = match event.kind {
                EventKind::Sent { confirm_wait, .. } => confirm_wait,
                EventKind::Received { broker_wait, .. } => broker_wait,
                EventKind::Started { slot_wait, .. } => slot_wait,
                EventKind::Ended { run_time, .. } => run_time.unwrap(),
                _ => return,
            };
            measured.lock().unwrap().push(stage.as_secs());
        })
    })
    .await;
    let two = async |seconds: u64| {
        [house.send(SLEEP.call((seconds,))).await, house.send(SLEEP.call((seconds,))).await]
    };
    let slow = two(3).await;
    tokio::time::sleep(secs(7)).await;
    let _running = house.worker("w");
    for task in &slow {
        task.wait(HOUR).await.unwrap();
    }
    // The first was received after seven seconds. The broker kept the second until the first had ended.
    assert_eq!(*stages.lock().unwrap(), [0, 0, 7, 0, 3, 10, 0, 3]);
    warm_up(&house.app.client(), || ADD.call((1, 1))).await;
    stages.lock().unwrap().clear();
    for task in &two(1).await {
        task.wait(HOUR).await.unwrap();
    }
    // The worker held both, and the second waited for the run of the first.
    let mut stages = stages.lock().unwrap().clone();
    stages.sort_unstable();
    assert_eq!(stages, [0, 0, 0, 0, 0, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_changes_nothing() {
    let panics = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&panics);
    let house = House::with(|builder| {
        builder.observer(move |event: &Event<'_>| {
            counted.fetch_add(1, Ordering::SeqCst);
            panic!("observed {}", event.name());
        })
    })
    .await;
    let running = house.worker("w");
    let sum = house.send(ADD.call((2, 3))).await;
    let failed = house.send(FAIL.call(())).await;
    assert_eq!(sum.wait(HOUR).await.unwrap(), 5);
    failed.wait(HOUR).await.unwrap_err();
    assert_eq!(failed.state().await.unwrap(), TaskState::Failure);
    house.sees("followed_up").await;
    assert!(running.stop().await.is_clean());
    let seen = house.seen.take();
    assert_eq!(
        seen.len() as u64,
        panics.load(Ordering::SeqCst),
        "the next observer sees everything: {seen:?}"
    );
    assert_eq!(seen.last().unwrap(), "w: worker_ended 0 0 0");
}

#[test]
fn every_event_and_state_has_a_row_in_the_docs() {
    let docs = include_str!("../../../docs/events.md");
    let rows: Vec<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let names: Vec<&str> = Event::NAMES.iter().chain(WorkerState::NAMES).copied().collect();
    assert_eq!(rows, names);
}
