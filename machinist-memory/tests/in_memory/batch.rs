//! Batch handlers: one call for many tasks, each with its own outcome.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{Running, until};
use machinist_core::{
    App, Backoff, State, TaskContext, TaskDef, TaskError, Worker, WorkerAction, WorkerBuilder, WorkerChange,
    WorkerFilter,
    limit::{Limit, Rate},
    record::{FailureKind, TaskState},
    worker::{BuildError, TaskOptions},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::{Instant, sleep};

/// Its argument says what becomes of it; the result is the size of its batch.
const SAVE: TaskDef<String, u64> = TaskDef::new("save");
const MINUTE: Duration = Duration::from_secs(60);
const WITHIN: Duration = Duration::from_millis(100);

/// Sizes of the calls.
type Calls = Arc<Mutex<Vec<usize>>>;

async fn save(rows: Vec<(TaskContext, State<Calls>, String)>) -> Vec<Result<u64, TaskError>> {
    rows[0].1.0.lock().unwrap().push(rows.len());
    let size = rows.len() as u64;
    if rows.iter().any(|(.., how)| how == "slow") {
        sleep(MINUTE).await;
    }
    if rows.iter().any(|(.., how)| how == "panics") {
        panic!("at the disco");
    }
    if rows.iter().any(|(.., how)| how == "loses one") {
        return Vec::new();
    }
    let outcome = |(cx, _, how): &(TaskContext, State<Calls>, String)| match how.as_str() {
        "fails" => Err(TaskError::permanent("never")),
        "fails once" if cx.attempt() == 1 => Err(TaskError::new("once")),
        _ => Ok(size),
    };
    rows.iter().map(outcome).collect()
}

struct House {
    app: App,
    calls: Calls,
}

impl House {
    async fn new() -> Self {
        let (broker, backend) = (Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
        Self { app: App::builder(broker, backend).build().await.unwrap(), calls: Calls::default() }
    }

    fn builder(&self) -> WorkerBuilder {
        let retries = TaskOptions::new().retries(1).backoff(Backoff::fixed(Duration::from_secs(1)));
        let builder = Worker::builder(&self.app).concurrency(10).state(Arc::clone(&self.calls));
        builder.task_batch(SAVE, 10, WITHIN, save).options("save", retries)
    }

    async fn send(&self, all: &[&str]) -> Vec<machinist_core::AsyncResult<u64>> {
        let signatures = all.iter().map(|how| SAVE.call((*how).to_owned())).collect();
        self.app.client().send_all(signatures).await.into_iter().map(Result::unwrap).collect()
    }

    /// Changes the number of slots while the worker runs.
    async fn set_concurrency(&self, slots: u32) {
        let client = self.app.client();
        let workers = client.workers(&WorkerFilter::new()).await.unwrap();
        let mut change = WorkerChange::default();
        change.concurrency = Some(slots);
        let ordered = client.order_workers(&workers, WorkerAction::Set(change), false).await;
        let (_, results) = ordered.unwrap();
        assert!(results.len() == 1 && results[0].done, "{results:?}");
    }

    fn calls(&self) -> Vec<usize> {
        self.calls.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn one_call_runs_as_many_tasks_as_have_come() {
    let house = House::new().await;
    let tasks = house.send(&["ok"; 25]).await;
    let before = Instant::now();
    let worker = Running::start(house.builder());
    let mut sizes = Vec::new();
    for task in &tasks {
        sizes.push(task.wait(MINUTE).await.unwrap());
    }
    assert_eq!(house.calls(), [10, 10, 5]);
    assert_eq!((sizes[0], sizes[24]), (10, 5));
    assert!(before.elapsed() < Duration::from_secs(2), "only the last batch waits: {:?}", before.elapsed());
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn each_task_of_a_batch_has_its_own_outcome_and_retries() {
    let house = House::new().await;
    let tasks = house.send(&["ok", "fails", "fails once", "ok"]).await;
    let worker = Running::start(house.builder());
    let mut ends = Vec::new();
    for task in &tasks {
        let _outcome = task.wait(MINUTE).await;
        let record = task.record().await.unwrap();
        ends.push((record.state, record.attempt));
    }
    assert_eq!(
        ends,
        [(TaskState::Success, 1), (TaskState::Failure, 1), (TaskState::Success, 2), (TaskState::Success, 1)]
    );
    assert_eq!(house.calls(), [4, 1]);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_panic_and_a_missing_result_fail_every_task_of_the_batch() {
    for (how, kind, text) in [
        ("panics", FailureKind::Panic, "at the disco"),
        ("loses one", FailureKind::Error, "0 results for 2 tasks"),
    ] {
        let house = House::new().await;
        let tasks = house.send(&["ok", how]).await;
        let worker = Running::start(house.builder().options("save", TaskOptions::new().retries(0)));
        for task in &tasks {
            let error = task.wait(MINUTE).await.unwrap_err();
            let record = task.record().await.unwrap();
            assert_eq!(record.kind, Some(kind));
            assert!(error.to_string().contains(text), "{error}");
        }
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_revoked_leaves_the_others_of_its_batch_alone() {
    let house = House::new().await;
    let tasks = house.send(&["slow", "ok"]).await;
    let worker = Running::start(house.builder());
    until(async || !house.calls().is_empty()).await;
    house.app.client().revoke(tasks[0].id()).await.unwrap();
    assert_eq!(tasks[1].wait(10 * MINUTE).await.unwrap(), 2);
    let _outcome = tasks[0].wait(10 * MINUTE).await;
    assert_eq!(house.calls(), [2]);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn arguments_that_do_not_fit_do_not_reach_the_batch() {
    let house = House::new().await;
    let wrong = machinist_core::Signature::new("save").arg(1).arg(2);
    let wrong = house.app.client().send(wrong).await.unwrap();
    let right = house.send(&["ok"]).await;
    let worker = Running::start(house.builder());
    assert_eq!(right[0].wait(MINUTE).await.unwrap(), 1);
    assert!(wrong.wait(MINUTE).await.is_err());
    assert_eq!(wrong.record().await.unwrap().kind, Some(FailureKind::Malformed));
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_limit_below_the_size_of_a_batch_makes_it_smaller() {
    let rate = Limit::new().rate(Rate::parse("2/s").unwrap()).burst(4);
    for (limit, sizes) in [(Limit::new().max_running(3), &[3, 3, 3, 1][..]), (rate, &[4, 1, 1, 1, 1, 1, 1])] {
        let house = House::new().await;
        let tasks = house.send(&["ok"; 10]).await;
        let before = Instant::now();
        let limited = TaskOptions::new().limit(limit);
        let worker = Running::start(house.builder().options("save", limited));
        for task in &tasks {
            task.wait(MINUTE).await.unwrap();
        }
        assert_eq!(house.calls(), sizes);
        assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_no_more_tasks_than_its_worker_has_slots_now() {
    let house = House::new().await;
    let mut tasks = house.send(&["slow"; 10]).await;
    let worker = Running::start(house.builder());
    until(async || !house.calls().is_empty()).await;
    house.set_concurrency(3).await;
    tasks.extend(house.send(&["ok"; 7]).await);
    for task in &tasks {
        task.wait(2 * MINUTE).await.unwrap();
    }
    assert_eq!(house.calls(), [10, 3, 3, 1]);
    house.set_concurrency(10).await;
    for task in house.send(&["ok"; 10]).await {
        assert_eq!(task.wait(MINUTE).await.unwrap(), 10);
    }
    assert!(worker.stop().await.is_clean());
}

#[tokio::test]
async fn a_batch_that_cannot_be_full_is_told_before_the_worker_starts() {
    let house = House::new().await;
    let error = house.builder().concurrency(9).build().unwrap_err();
    assert!(matches!(error, BuildError::Batch { max: 10, concurrency: 9, .. }), "{error}");
    let builder = Worker::builder(&house.app).state(Arc::clone(&house.calls));
    let error = builder.task_batch(SAVE, 0, WITHIN, save).build().unwrap_err();
    assert!(matches!(error, BuildError::Zero("the size of a batch")), "{error}");
}
