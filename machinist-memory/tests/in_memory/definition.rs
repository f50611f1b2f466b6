//! Options of a definition: what the sender and the worker make of them, and what goes before them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, Backoff, ResultError, Signature, TaskContext, TaskDef, TaskError, Worker, WorkerBuilder,
    record::FailureKind, worker::TaskOptions,
};
use machinist_memory::{MemoryBackend, MemoryBroker};

/// Longer than any test may take. Time is paused, so no test waits for it.
const AGES: Duration = Duration::from_secs(7 * 24 * 3600);

const FAILS: TaskDef<(), ()> = TaskDef::new("fails")
    .queue("mail")
    .retries(3)
    .backoff(Backoff::fixed(Duration::from_secs(3600)))
    .timeout(Duration::from_secs(60));
const WHERE: TaskDef<(), String> = TaskDef::new("where").queue("mail");

async fn app() -> App {
    App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build().await.unwrap()
}

/// Runs the task until it has failed. Returns the number of its runs, and the time between its first and last one.
async fn run(
    signature: Signature<()>,
    adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
) -> (u32, Duration) {
    let app = app().await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let fails = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err::<(), _>(TaskError::new("no")))
    };
    let worker = adjust(Worker::builder(&app).task(FAILS, fails)).build().unwrap();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    let started = tokio::time::Instant::now();
    let ended = app.client().send(signature).await.unwrap().wait(AGES).await;
    assert!(matches!(ended, Err(ResultError::Failed { .. })), "{ended:?}");
    working.abort();
    (runs.load(Ordering::SeqCst), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_worker_retries_as_the_definition_says() {
    let (runs, took) = run(FAILS.call(()), |worker| worker).await;
    assert_eq!(runs, 4);
    assert!(took >= Duration::from_secs(3 * 3600), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_before_the_definition_and_keeps_its_other_parts() {
    let (runs, took) = run(FAILS.call(()).retries(1), |worker| worker).await;
    assert_eq!(runs, 2);
    assert!(took >= Duration::from_secs(3600), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_code_of_a_worker_goes_before_the_definition_and_a_setting_before_both() {
    let in_code = || TaskOptions::new().retries(2);
    assert_eq!(run(FAILS.call(()), |worker| worker.options("fails", in_code())).await.0, 3);
    let setting = |worker: WorkerBuilder| {
        worker.options("fails", in_code()).adjust_options("fails", |options| {
            let options = options.unwrap();
            *options = std::mem::take(options).retries(5);
        })
    };
    assert_eq!(run(FAILS.call(()), setting).await.0, 6);
    assert_eq!(run(FAILS.call(()).retries(0), setting).await.0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_ends_at_the_timeout_of_the_definition_even_with_other_options() {
    let app = app().await;
    let hangs = || std::future::pending::<Result<(), TaskError>>();
    let worker = Worker::builder(&app).task(FAILS, hangs).options("fails", TaskOptions::new().retries(9));
    let working = tokio::spawn(worker.build().unwrap().run_until(std::future::pending()));
    let ended = app.client().send(FAILS.call(())).await.unwrap().wait(AGES).await;
    assert!(matches!(ended, Err(ResultError::Failed { kind: FailureKind::Timeout, .. })), "{ended:?}");
    working.abort();
}

#[tokio::test(start_paused = true)]
async fn a_worker_consumes_the_queues_of_its_definitions_unless_it_names_queues() {
    let app = app().await;
    let place = |cx: TaskContext| async move { Ok::<_, TaskError>(cx.queue().to_string()) };
    let names = |worker: Worker| worker.queues().iter().map(ToString::to_string).collect::<Vec<_>>();
    let builder = || Worker::builder(&app).task(WHERE, place);
    assert_eq!(names(builder().build().unwrap()), ["default", "mail"]);
    assert_eq!(names(builder().queue("urgent").build().unwrap()), ["urgent"]);

    let worker = builder().queue("mail").queue("urgent").build().unwrap();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    let client = app.client();
    let sent = client.send(WHERE.call(())).await.unwrap();
    assert_eq!(sent.wait(AGES).await.unwrap(), "mail");
    let sent = client.send(WHERE.call(()).queue("urgent")).await.unwrap();
    assert_eq!(sent.wait(AGES).await.unwrap(), "urgent");
    working.abort();
}

#[tokio::test(start_paused = true)]
async fn a_task_expires_as_its_definition_says() {
    const LATE: TaskDef<(), ()> = TaskDef::new("late").expires_in(Duration::from_secs(10)).priority(9);
    let app = app().await;
    let sent = app.client().send(LATE.call(())).await.unwrap();
    let kept = app.client().send(LATE.call(()).expires_in(AGES)).await.unwrap();
    tokio::time::advance(Duration::from_secs(11)).await;
    let worker =
        Worker::builder(&app).task(LATE, || std::future::ready(Ok::<_, TaskError>(()))).build().unwrap();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    let ended = sent.wait(AGES).await;
    assert!(matches!(ended, Err(ResultError::Failed { kind: FailureKind::Expired, .. })), "{ended:?}");
    kept.wait(AGES).await.unwrap();
    working.abort();
}
