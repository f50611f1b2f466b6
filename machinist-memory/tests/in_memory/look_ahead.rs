//! How many deliveries a worker holds, over the in-memory adapters and under paused time.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{Running, warm_up};
use machinist_core::{
    App, Client, State, TaskDef, TaskError, Worker,
    broker::Broker,
    event::{Event, EventKind},
    id::QueueName,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

const SLEEP: TaskDef<(u64,), String> = TaskDef::new("sleep");

/// Sleeps for some milliseconds, and returns the name of the worker.
async fn sleep(State(worker): State<&'static str>, millis: u64) -> Result<String, TaskError> {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    Ok(worker.to_owned())
}

/// Servers in this process, and the number of deliveries that workers have handed back.
struct Installation {
    broker: MemoryBroker,
    app: App,
    handed_back: Arc<Mutex<u32>>,
}

impl Installation {
    async fn new() -> Self {
        let broker = MemoryBroker::new();
        let handed_back = Arc::<Mutex<u32>>::default();
        let seen = Arc::clone(&handed_back);
        let builder = App::builder(Arc::new(broker.clone()), Arc::new(MemoryBackend::new()));
        let builder = builder.observer(move |event: &Event<'_>| {
            if matches!(event.kind, EventKind::HandedBack { .. }) {
                *seen.lock().unwrap() += 1;
            }
        });
        Self { broker, app: builder.build().await.unwrap(), handed_back }
    }

    fn worker(&self, name: &'static str, concurrency: usize) -> Running {
        let worker = Worker::builder(&self.app).name(name).concurrency(concurrency).state(name);
        Running::start(worker.task(SLEEP, sleep))
    }

    fn client(&self) -> Client {
        self.app.client()
    }

    async fn ready(&self) -> u64 {
        let queue = QueueName::parse("default").unwrap();
        self.broker.depth(&[queue]).await.unwrap().remove(0).ready.unwrap_or_default()
    }

    fn handed_back(&self) -> u32 {
        *self.handed_back.lock().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_worker_holds_nothing_behind_a_slow_task() {
    let here = Installation::new().await;
    let _busy = here.worker("busy", 1);
    let slow = here.client().send(SLEEP.call((600_000,))).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    let quick = here.client().send(SLEEP.call((0,))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(here.ready().await, 1);
    let _idle = here.worker("idle", 1);
    assert_eq!(quick.wait(MINUTE).await.unwrap(), "idle");
    assert_eq!(slow.wait(20 * MINUTE).await.unwrap(), "busy");
    assert_eq!(here.handed_back(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_slow_task_goes_to_others() {
    let here = Installation::new().await;
    let _busy = here.worker("busy", 1);
    warm_up(&here.client(), || SLEEP.call((0,))).await;
    let slow = here.client().send(SLEEP.call((600_000,))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut quick = Vec::new();
    for _ in 0..5 {
        quick.push(here.client().send(SLEEP.call((0,))).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(here.ready().await, 0, "its tasks have been short so far");
    let _idle = here.worker("idle", 1);
    let asked = Instant::now();
    for task in &quick {
        assert_eq!(task.wait(MINUTE).await.unwrap(), "idle");
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(here.handed_back(), 5);
    assert_eq!(slow.wait(20 * MINUTE).await.unwrap(), "busy");
}

#[tokio::test(start_paused = true)]
async fn a_worker_alone_runs_mixed_tasks_in_all_its_slots() {
    let here = Installation::new().await;
    let _worker = here.worker("w", 4);
    warm_up(&here.client(), || SLEEP.call((0,))).await;
    let asked = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..400 {
        let millis = if number % 10 == 0 { 10_000 } else { 10 };
        tasks.push(here.client().send(SLEEP.call((millis,))).await.unwrap());
    }
    for task in &tasks {
        task.wait(30 * MINUTE).await.unwrap();
    }
    // 40 tasks of 10 s in four slots.
    assert!(asked.elapsed() < Duration::from_secs(115), "slots were idle: {:?}", asked.elapsed());
    warm_up(&here.client(), || SLEEP.call((0,))).await;
    let handed_back = here.handed_back();
    for _ in 0..100 {
        here.client().send(SLEEP.call((1,))).await.unwrap().wait(MINUTE).await.unwrap();
    }
    assert_eq!(here.handed_back(), handed_back, "the tasks are short again");
}
