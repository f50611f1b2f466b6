//! Options of a definition: what the sender and the worker make of them, and what goes before them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, Backoff, ResultError, Signature, TaskContext, TaskDef, TaskError, Unique, Worker, WorkerBuilder,
    limit::{Limit, LimitKey, Rate},
    record::FailureKind,
    worker::TaskOptions,
    workflow::chain,
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

/// Report of a customer and a year: one for each customer at a time.
const REPORT: TaskDef<(String, u32), ()> = TaskDef::new("report").unique_by("{0}");

#[tokio::test(start_paused = true)]
async fn a_definition_allows_one_task_for_each_key() {
    const REMIND: TaskDef<String, ()> =
        TaskDef::new("remind").unique(Unique::throttle(Duration::from_secs(3600)));
    let client = app().await.client();
    let first = client.send(REPORT.call(("anna", 2025))).await.unwrap();
    let again = client.send(REPORT.call(("anna", 2026))).await.unwrap();
    assert!(again.is_duplicate() && again.id() == first.id());
    assert!(!client.send(REPORT.call(("bert", 2026))).await.unwrap().is_duplicate());
    assert!(!client.send(REPORT.call(("anna", 2026)).not_unique()).await.unwrap().is_duplicate());
    let by_year = REPORT.call(("anna", 2026)).unique(Unique::new().by(LimitKey::template("{1}").unwrap()));
    assert!(!client.send(by_year).await.unwrap().is_duplicate(), "the call goes before the definition");
    for is_duplicate in [false, true] {
        assert_eq!(client.send(REMIND.call("anna")).await.unwrap().is_duplicate(), is_duplicate);
    }
    tokio::time::sleep(Duration::from_secs(3601)).await;
    assert!(!client.send(REMIND.call("anna")).await.unwrap().is_duplicate());
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_definition_is_unique_says_how_to_send_it() {
    let client = app().await.client();
    let refused =
        client.send(chain(REPORT.call(("anna", 2025))).then(REPORT.call(("anna", 2026)).immutable()));
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("not_unique()"), "{refused}");
    let report = |year: u32| REPORT.call(("anna", year)).not_unique();
    client.send(chain(report(2025)).then(report(2026).immutable())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wrong_template_of_a_definition_is_told_by_its_sender() {
    const LIMITED: TaskDef<(), ()> = TaskDef::new("limited").limit_key("all");
    const UNIQUE: TaskDef<(), ()> = TaskDef::new("unique").unique_by("{");
    let client = app().await.client();
    for signature in [LIMITED.call(()), UNIQUE.call(())] {
        let refused = client.send(signature).await.unwrap_err().to_string();
        assert!(refused.contains("write {0}"), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_definition_makes_the_key_and_the_cost_of_its_limits() {
    const CALL: TaskDef<(String, String), ()> = TaskDef::new("call").limit_key("{1}").limit_cost(5);
    let app = app().await;
    let limit =
        Limit::new().rate(Rate::parse("10/m").unwrap()).burst(10).key(LimitKey::template("{0}").unwrap());
    let worker = Worker::builder(&app)
        .task(CALL, |_: String, _: String| std::future::ready(Ok::<_, TaskError>(())))
        .options("call", TaskOptions::new().limit(limit));
    let working = tokio::spawn(worker.build().unwrap().run_until(std::future::pending()));
    let began = tokio::time::Instant::now();
    // Two calls of a tenant use its burst, whatever their first argument is.
    for (tenant, least) in [("a", 0), ("a", 0), ("b", 0), ("a", 25)] {
        let call = app.client().send(CALL.call((format!("{:?}", began.elapsed()), tenant))).await.unwrap();
        call.wait(AGES).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(least), "{tenant}: {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(least + 20), "{tenant}: {:?}", began.elapsed());
    }
    working.abort();
}
