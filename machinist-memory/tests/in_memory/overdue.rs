//! Delayed tasks whose message the broker has lost, over the in-memory adapters and under paused time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use machinist_core::{
    App, Backoff, ControlError, Signature, State, TaskDef, TaskError, Worker, WorkerBuilder,
    broker::Broker,
    event::{Event, EventKind},
    id::QueueName,
    record::TaskState,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Time within which a lost task runs after it was due: it counts as lost after a minute, and workers look each minute.
const FOUND_WITHIN: Duration = Duration::from_secs(3 * 60);

/// Fails at its first runs.
const WORK: TaskDef<(u32,), u32> = TaskDef::new("work");

/// Takes a second.
const BUSY: TaskDef<(), ()> = TaskDef::new("busy");

async fn busy() -> Result<(), TaskError> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

async fn work(State(runs): State<Arc<AtomicU32>>, failures: u32) -> Result<u32, TaskError> {
    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
    if run <= failures { Err(TaskError::new("not yet")) } else { Ok(run) }
}

fn calls(count: usize, countdown: Duration) -> Vec<Signature<u32>> {
    (0..count).map(|_| WORK.call((0,)).countdown(countdown)).collect()
}

/// An application over servers in this process, with the number of tasks that it published again.
struct Installation {
    broker: MemoryBroker,
    app: App,
    runs: Arc<AtomicU32>,
    overdue: Arc<AtomicU32>,
}

impl Installation {
    async fn new() -> Self {
        Self::keeping_records(24 * HOUR).await
    }

    /// Keeps the records of ended tasks, and of those that wait for a retry, for this time.
    async fn keeping_records(ttl: Duration) -> Self {
        let broker = MemoryBroker::new();
        let overdue = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&overdue);
        let builder = App::builder(Arc::new(broker.clone()), Arc::new(MemoryBackend::new()));
        let builder = builder.results_ttl(ttl).observer(move |event: &Event<'_>| {
            if matches!(event.kind, EventKind::Overdue { .. }) {
                seen.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { broker, app: builder.build().await.unwrap(), runs: Arc::default(), overdue }
    }

    fn worker(&self) -> WorkerBuilder {
        Worker::builder(&self.app).task(WORK, work).state(Arc::clone(&self.runs))
    }

    fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    fn overdue(&self) -> u32 {
        self.overdue.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_that_the_broker_has_lost_runs_all_the_same() {
    let here = Installation::new().await;
    let _running = [Running::start(here.worker()), Running::start(here.worker())];
    let sent = Instant::now();
    let tasks = here.app.client().send_all(calls(200, HOUR)).await;
    assert_eq!(here.broker.lose_delayed(), 200);
    for task in tasks {
        task.unwrap().wait(2 * HOUR).await.unwrap();
    }
    assert!(sent.elapsed() >= HOUR && sent.elapsed() < HOUR + FOUND_WITHIN, "{:?}", sent.elapsed());
    assert_eq!((here.runs(), here.overdue()), (200, 200));
    tokio::time::sleep(HOUR).await;
    assert_eq!((here.runs(), here.app.client().scheduled(10).await.unwrap()), (200, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_the_broker_has_lost_runs_as_that_retry() {
    let here = Installation::new().await;
    let _running = Running::start(here.worker());
    let call = WORK.call((2,)).retries(2).backoff(Backoff::fixed(5 * MINUTE));
    let task = here.app.client().send(call).await.unwrap();
    for lost in 1..=2 {
        while task.record().await.unwrap().history.len() < lost || here.broker.lose_delayed() == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    assert_eq!(task.wait(HOUR).await.unwrap(), 3);
    let record = task.record().await.unwrap();
    assert_eq!((record.attempt, record.history.len()), (3, 2));
    assert_eq!((here.runs(), here.overdue()), (3, 2));
    let facts = here.app.backend().read(&[task.id().into()]).await.unwrap();
    assert!(!facts[0].has("msg"), "the message of a task that has succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_holds_messages_is_left_alone() {
    let here = Installation::new().await;
    let _running = Running::start(here.worker().queue("other"));
    let tasks = here.app.client().send_all(calls(3, MINUTE)).await;
    tokio::time::sleep(HOUR).await;
    let waiting = here.broker.depth(&[QueueName::parse("default").unwrap()]).await.unwrap();
    assert_eq!((waiting[0].ready, here.overdue()), (Some(3), 0), "nobody consumes it, and nothing is lost");
    let _late = Running::start(here.worker());
    for task in tasks {
        task.unwrap().wait(HOUR).await.unwrap();
    }
    assert_eq!(here.runs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_lost_behind_a_backlog_runs_when_workers_take_what_came_later() {
    let here = Installation::new().await;
    let (client, queue) = (here.app.client(), [QueueName::parse("default").unwrap()]);
    for _ in 0..300 {
        client.send(BUSY.call(())).await.unwrap();
    }
    let task = client.send(WORK.call((0,)).countdown(MINUTE)).await.unwrap();
    let sent = Instant::now();
    assert_eq!(here.broker.lose_delayed(), 1);
    let _running = Running::start(here.worker().task(BUSY, busy).concurrency(1));
    while !task.state().await.unwrap().is_final() {
        client.send(BUSY.call(())).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let waiting = here.broker.depth(&queue).await.unwrap()[0].ready;
        assert!(waiting > Some(100) && sent.elapsed() < HOUR, "{waiting:?} {:?}", sent.elapsed());
    }
    assert!(sent.elapsed() > 11 * MINUTE, "it may still have been in its queue");
    assert_eq!((here.runs(), here.overdue()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_only_late_finds_its_attempt_over() {
    let here = Installation::new().await;
    let running = Running::start(here.worker());
    let client = here.app.client();
    let task = client.send(WORK.call((0,)).countdown(2 * HOUR)).await.unwrap();
    // As the worker does when it counts the task as lost.
    client.run_now(task.id()).await.unwrap();
    assert_eq!(task.wait(MINUTE).await.unwrap(), 1);
    tokio::time::sleep(4 * HOUR).await;
    assert_eq!((here.runs(), here.overdue()), (1, 0));
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_outlives_its_record_is_not_run_at_once() {
    let here = Installation::keeping_records(HOUR).await;
    let _running = Running::start(here.worker());
    let call = WORK.call((1,)).retries(1).backoff(Backoff::fixed(3 * HOUR));
    let task = here.app.client().send(call).await.unwrap();
    while task.state().await.unwrap() != TaskState::Retry {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let refused = here.app.client().run_now(task.id()).await;
    assert!(matches!(refused, Err(ControlError::State { state: TaskState::Retry, .. })), "{refused:?}");
    assert_eq!(task.wait(4 * HOUR).await.unwrap(), 2);
}
