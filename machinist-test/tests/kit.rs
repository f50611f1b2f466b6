//! The testing kit, tested by tasks that are delayed, retried, killed and refused.

#![allow(clippy::unwrap_used)]

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    Backoff, State, TaskContext, TaskDef, TaskError, WorkerBuilder, record::TaskState, worker::ErrorClass,
};
use machinist_test::{ArrowStep, RunResult, Side, TestApp, assert_enqueued, refute_enqueued, run_one};

const HOUR: Duration = Duration::from_secs(3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Fails until this attempt.
const FLAKY: TaskDef<u32, u32> =
    TaskDef::new("flaky").queue("slow").retries(5).backoff(Backoff::fixed(HOUR)).priority(3);
const NEXT: TaskDef<(), ()> = TaskDef::new("next");

type Calls = Arc<AtomicU32>;

async fn flaky(State(calls): State<Calls>, until: u32, cx: TaskContext) -> Result<u32, TaskError> {
    calls.fetch_add(1, Ordering::SeqCst);
    if cx.attempt() < until {
        return Err("not yet".into());
    }
    cx.spawn(NEXT.call(()))?;
    Ok(cx.attempt())
}

async fn next() -> Result<(), TaskError> {
    tokio::time::sleep(HOUR).await;
    Ok(())
}

fn set_up(calls: &Calls) -> impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static {
    let calls = Arc::clone(calls);
    move |worker| worker.task(FLAKY, flaky).task(NEXT, next).state(Arc::clone(&calls))
}

#[tokio::test]
async fn a_month_passes_at_once_and_each_attempt_is_seen() {
    let app = TestApp::new(set_up(&Calls::default())).await;
    let sent = app.send(FLAKY.call(2).countdown(MONTH)).await;
    assert_enqueued!(app, name = "flaky", args = [2], queue = "slow", due = MONTH, attempt = 1, count = 1);
    assert!(app.travel(MONTH - HOUR).await.is_empty());
    assert_enqueued!(app, name = "fl*", due = HOUR);

    let runs = app.travel(HOUR).await;
    let RunResult::Retry { after, error, .. } = &runs[0].end else { panic!("{runs:?}") };
    assert_eq!((runs.len(), error.message()), (1, "not yet"));
    assert!(*after >= HOUR, "{after:?}");
    assert_enqueued!(app, name = "flaky", attempt = 2, due_within = ..=HOUR + HOUR);
    refute_enqueued!(app, name = "flaky", due = Duration::ZERO);

    let runs = app.drain_scheduled().await;
    let ends: Vec<_> = runs.iter().map(|run| (run.name.as_str(), run.attempt, run.is_success())).collect();
    assert_eq!(ends, [("flaky", 2, true), ("next", 1, true)]);
    assert_eq!(sent.wait(Duration::ZERO).await.unwrap(), 2);
    assert_eq!(app.record(sent.id()).await.state, TaskState::Success);
    assert!(app.enqueued().is_empty());
}

#[tokio::test]
async fn a_drain_leaves_what_waits_for_its_time() {
    let calls = Calls::default();
    let app = TestApp::new(set_up(&calls)).await;
    app.send(FLAKY.call(9)).await;
    assert!(app.drain().await[0].is_retry());
    assert!(app.drain().await.is_empty());
    let runs = app.drain_scheduled().await;
    assert_eq!(runs.iter().filter(|run| run.is_retry()).count(), 4);
    assert!(runs[4].is_failure());
    assert_eq!(calls.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn a_worker_dies_at_the_step_that_the_test_names_and_another_one_takes_over() {
    for (step, side, runs) in [
        (ArrowStep::Receive, Side::After, 1),
        (ArrowStep::Start, Side::After, 1),
        (ArrowStep::Record, Side::Before, 2),
        (ArrowStep::Record, Side::After, 1),
        (ArrowStep::Ack, Side::Before, 1),
    ] {
        let calls = Calls::default();
        let app = TestApp::new(set_up(&calls)).await;
        let sent = app.send(FLAKY.call(1)).await;
        app.crash_at(step, side);
        app.drain().await;
        app.drain().await;
        assert_eq!(sent.wait(Duration::ZERO).await.unwrap_or(0), 1, "{side:?} {step:?}");
        assert_eq!(calls.load(Ordering::SeqCst), runs, "{side:?} {step:?}");
        assert!(app.enqueued().is_empty(), "{side:?} {step:?}");
    }
}

/// Returns the text of the panic of an assertion.
fn text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(_) => panic!("the panic has no text"),
    }
}

fn failed(assertion: impl FnOnce()) -> String {
    text(catch_unwind(AssertUnwindSafe(assertion)).unwrap_err())
}

#[tokio::test]
async fn a_failed_assertion_lists_the_tasks_that_wait() {
    let app = TestApp::new(set_up(&Calls::default())).await;
    app.send(FLAKY.call(1)).await;
    let text = failed(|| assert_enqueued!(app, name = "mail", queue = "mail"));
    let expected = "0 waiting tasks fit (name = \"mail\", queue = \"mail\"), expected at least one; these wait:\n  \
                    flaky(1) in queue slow";
    assert!(text.starts_with(expected), "{text}");
    let text = failed(|| refute_enqueued!(app, name = "flaky"));
    assert!(text.starts_with("1 waiting tasks fit (name = \"flaky\"), expected none; these wait:"), "{text}");
    let text = failed(|| assert_enqueued!(app, name = "flaky", count = 2));
    assert!(text.starts_with("1 waiting tasks fit (name = \"flaky\"), expected 2; these wait:"), "{text}");
}

#[tokio::test]
async fn a_task_that_does_not_end_is_an_error_of_the_test() {
    const HANGS: TaskDef<(), ()> = TaskDef::new("hangs");
    let hangs = || std::future::pending::<Result<(), TaskError>>();
    let app = TestApp::new(move |worker| worker.task(HANGS, hangs)).await.patience(Duration::from_secs(60));
    app.send(HANGS.call(())).await;
    let drain = async move { tokio::task::spawn_local(async move { app.drain().await }).await };
    let ended = tokio::task::LocalSet::new().run_until(drain).await;
    let text = text(ended.unwrap_err().into_panic());
    assert!(text.starts_with("tasks still run after 60s: "), "{text}");
}

#[tokio::test]
async fn one_run_needs_no_worker() {
    let calls = Calls::default();
    let cx = || TaskContext::builder().state(Arc::clone(&calls));
    let error = run_one(FLAKY, flaky, 3, cx().build()).await.unwrap_err();
    assert_eq!((error.class(), error.to_string().as_str()), (ErrorClass::Retry, "not yet"));
    assert_eq!(run_one(FLAKY, flaky, 3, cx().attempt(3).build()).await.unwrap(), 3);
    let missing = run_one(FLAKY, flaky, 3, TaskContext::builder().build()).await.unwrap_err();
    assert!(missing.to_string().contains("no shared value"), "{missing}");
}
