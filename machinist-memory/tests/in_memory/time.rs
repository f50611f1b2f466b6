//! What a task does with time, over the in-memory adapters and under paused time: revoking, limits, progress, waiting
//! for many, the schedule, sending again, clocks that are wrong.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use machinist_core::{
    App, AsyncResult, Backoff, ControlError, ResultError, RetryPolicy, Revoked, SendError, State,
    TaskContext, TaskDef, TaskError, TaskId, Worker, WorkerBuilder,
    backend::Index,
    clock::Timestamp,
    id::{RecordId, SessionId},
    record::{FailureKind, TaskState},
    wait_all, wait_any,
    worker::{ErrorClass, TaskOptions},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const SLEEP: TaskDef<(u64,), ()> = TaskDef::new("sleep");
const LISTEN: TaskDef<(), String> = TaskDef::new("listen");
const FAIL: TaskDef<(), ()> = TaskDef::new("fail");
const BLOCKS: TaskDef<(), ()> = TaskDef::new("blocks");

const SOON: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

async fn sleep(ms: u64) -> Result<(), TaskError> {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(())
}

/// Runs until it is told to end, then says so.
async fn listen(cx: TaskContext) -> Result<String, TaskError> {
    cx.cancellation().cancelled().await;
    Err(TaskError::new("told to end"))
}

async fn fail(State(calls): State<Arc<AtomicU32>>) -> Result<(), TaskError> {
    Err(format!("call {}", calls.fetch_add(1, Ordering::SeqCst) + 1))?
}

/// A gate that blocks a thread.
type Gate = Arc<(Mutex<bool>, Condvar)>;

fn blocks(State(gate): State<Gate>) -> Result<(), TaskError> {
    let (open, opened) = &*gate;
    drop(opened.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
    Ok(())
}

fn open(gate: &Gate) {
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
}

async fn app() -> App {
    app_that_keeps_records(24 * HOUR).await
}

async fn app_that_keeps_records(ttl: Duration) -> App {
    let builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    builder.results_ttl(ttl).build().await.unwrap()
}

fn worker(app: &App) -> WorkerBuilder {
    Worker::builder(app).name("w1").task(ADD, add).task(SLEEP, sleep).task(LISTEN, listen)
}

async fn failed<R: machinist_core::args::FromResults + std::fmt::Debug>(
    result: &AsyncResult<R>,
) -> (FailureKind, String) {
    match result.wait(2 * HOUR).await {
        Err(ResultError::Failed { kind, message, .. }) => (kind, message),
        other => panic!("it should have failed: {other:?}"),
    }
}

async fn reaches<R>(result: &AsyncResult<R>, state: TaskState) {
    for _ in 0..10_000 {
        if result.state().await.unwrap() == state {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} does not become {state}", result.id());
}

/// What the only worker says about its runs.
async fn runs(app: &App) -> serde_json::Value {
    let (_, session) = app.backend().list(&Index::Sessions, None, 1).await.unwrap().remove(0);
    let record = RecordId::from(SessionId::from(session.as_str()));
    app.backend().read(&[record]).await.unwrap()[0].read("runs").unwrap()
}

// ---- revoking

#[tokio::test(start_paused = true)]
async fn a_delayed_task_that_is_revoked_never_starts() {
    let app = app_that_keeps_records(HOUR).await;
    let client = app.client();
    let calls = Arc::new(AtomicU32::new(0));
    let _running = Running::start(worker(&app).task(FAIL, fail).state(Arc::clone(&calls)));
    // Longer than records of ended tasks are kept: the message must still find this one.
    let delayed = client.send(FAIL.call(()).countdown(3 * HOUR)).await.unwrap();
    assert_eq!(client.revoke(delayed.id()).await.unwrap(), Revoked::Ended);
    assert_eq!(failed(&delayed).await, (FailureKind::Revoked, "revoked".to_owned()));
    assert_eq!(client.revoke(delayed.id()).await.unwrap(), Revoked::Ended, "twice is fine");
    assert_eq!(client.scheduled(10).await.unwrap(), []);
    tokio::time::sleep(4 * HOUR).await;
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_queued_task_that_is_revoked_never_starts() {
    let app = app().await;
    let client = app.client();
    let queued = client.send(ADD.call((1, 1))).await.unwrap();
    assert_eq!(client.revoke(queued.id()).await.unwrap(), Revoked::Ended);
    let running = Running::start(worker(&app));
    let next = client.send(ADD.call((1, 2))).await.unwrap();
    assert_eq!(next.wait(SOON).await.unwrap(), 3);
    let record = queued.record().await.unwrap();
    assert_eq!((record.kind, record.started_at), (Some(FailureKind::Revoked), None));
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_run_is_told_within_a_second_and_ends_as_revoked() {
    let app = app().await;
    let client = app.client();
    let _running = Running::start(worker(&app));
    let listening = client.send(LISTEN.call(()).retries(9)).await.unwrap();
    reaches(&listening, TaskState::Started).await;
    let asked = Instant::now();
    assert_eq!(client.revoke(listening.id()).await.unwrap(), Revoked::Asked);
    assert_eq!(failed(&listening).await.0, FailureKind::Revoked);
    assert!(asked.elapsed() <= secs(1), "{:?}", asked.elapsed());
    let record = listening.record().await.unwrap();
    assert_eq!((record.attempt, record.revoked), (1, false));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_does_not_listen_is_cut_off() {
    let app = app().await;
    let client = app.client();
    let _running = Running::start(worker(&app));
    let deaf = client.send(SLEEP.call((10_000_000,))).await.unwrap();
    reaches(&deaf, TaskState::Started).await;
    let asked = Instant::now();
    client.revoke(deaf.id()).await.unwrap();
    assert!(deaf.record().await.unwrap().revoked);
    assert_eq!(failed(&deaf).await.0, FailureKind::Revoked);
    assert!(asked.elapsed() < secs(10), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_terminated_gets_no_last_words() {
    let app = app().await;
    let client = app.client();
    let _running = Running::start(worker(&app));
    let deaf = client.send(SLEEP.call((10_000_000,)).retries(9)).await.unwrap();
    reaches(&deaf, TaskState::Started).await;
    let asked = Instant::now();
    assert_eq!(client.terminate(deaf.id()).await.unwrap(), Revoked::Asked);
    assert_eq!(failed(&deaf).await.0, FailureKind::Revoked);
    assert!(asked.elapsed() <= secs(1), "{:?}", asked.elapsed());
    assert_eq!(client.terminate(deaf.id()).await.unwrap(), Revoked::Ended, "twice is fine");
    let delayed = client.send(ADD.call((1, 1)).countdown(HOUR)).await.unwrap();
    assert_eq!(client.terminate(delayed.id()).await.unwrap(), Revoked::Ended);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_revoked_can_be_terminated() {
    const SLOW_TO_END: TaskDef<(), ()> = TaskDef::new("slow_to_end");
    let app = app().await;
    let client = app.client();
    let told = Arc::new(tokio::sync::Notify::new());
    let slow_to_end = async |cx: TaskContext, State(told): State<Arc<tokio::sync::Notify>>| {
        cx.cancellation().cancelled().await;
        told.notify_one();
        std::future::pending::<Result<(), TaskError>>().await
    };
    let _running = Running::start(worker(&app).task(SLOW_TO_END, slow_to_end).state(Arc::clone(&told)));
    let task = client.send(SLOW_TO_END.call(())).await.unwrap();
    reaches(&task, TaskState::Started).await;
    assert_eq!(client.revoke(task.id()).await.unwrap(), Revoked::Asked);
    told.notified().await;
    assert_eq!(task.state().await.unwrap(), TaskState::Started);
    let asked = Instant::now();
    assert_eq!(client.terminate(task.id()).await.unwrap(), Revoked::Asked);
    assert_eq!(failed(&task).await.0, FailureKind::Revoked);
    assert!(asked.elapsed() <= secs(1), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_blocking_handler_that_is_terminated_is_left_behind_and_listed() {
    let app = app().await;
    let gate = Gate::default();
    let running = worker(&app).task_blocking(BLOCKS, blocks).state(Arc::clone(&gate));
    let _running = Running::start(running);
    let client = app.client();
    let task = client.send(BLOCKS.call(())).await.unwrap();
    while task.state().await.unwrap() != TaskState::Started {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    client.terminate(task.id()).await.unwrap();
    // Blocking threads stop paused time from running by itself.
    while !task.state().await.unwrap().is_final() {
        tokio::time::advance(secs(1)).await;
    }
    assert_eq!(failed(&task).await.0, FailureKind::Revoked);
    while runs(&app).await["stuck"] != serde_json::json!([task.id().as_str()]) {
        tokio::time::advance(secs(1)).await;
    }
    open(&gate);
}

#[tokio::test(start_paused = true)]
async fn revoking_works_while_a_worker_drains() {
    let app = app().await;
    let client = app.client();
    let running = Running::start(worker(&app));
    let listening = client.send(LISTEN.call(())).await.unwrap();
    reaches(&listening, TaskState::Started).await;
    running.stop.cancel();
    tokio::time::sleep(secs(1)).await;
    client.revoke(listening.id()).await.unwrap();
    assert!(running.stop().await.is_clean(), "nothing was handed back");
    assert_eq!(failed(&listening).await.0, FailureKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_its_retry_is_revoked() {
    let app = app().await;
    let client = app.client();
    let calls = Arc::new(AtomicU32::new(0));
    let _running = Running::start(worker(&app).task(FAIL, fail).state(Arc::clone(&calls)));
    let task = client.send(FAIL.call(()).retries(5).backoff(Backoff::fixed(HOUR))).await.unwrap();
    reaches(&task, TaskState::Retry).await;
    assert_eq!(client.revoke(task.id()).await.unwrap(), Revoked::Ended);
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(failed(&task).await.0, FailureKind::Revoked);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_stays_as_it_is() {
    let app = app().await;
    let client = app.client();
    let _running = Running::start(worker(&app));
    let sum = client.send(ADD.call((1, 2))).await.unwrap();
    sum.wait(SOON).await.unwrap();
    assert_eq!(client.revoke(sum.id()).await.unwrap(), Revoked::Already(TaskState::Success));
    assert_eq!(sum.wait(SOON).await.unwrap(), 3);
    let nobody = client.revoke(&TaskId::fresh()).await;
    assert!(matches!(nobody, Err(ControlError::Unknown { .. })), "{nobody:?}");
}

// ---- limits

#[tokio::test(start_paused = true)]
async fn a_soft_limit_tells_and_a_hard_limit_ends() {
    let app = app().await;
    let client = app.client();
    const PARTIAL: TaskDef<(), u32> = TaskDef::new("partial");
    let partial = async |cx: TaskContext| {
        cx.cancellation().cancelled().await;
        Ok::<_, TaskError>(7)
    };
    let _running = Running::start(worker(&app).task(PARTIAL, partial));
    let seven = client.send(PARTIAL.call(()).soft_timeout(secs(3))).await.unwrap();
    assert_eq!(seven.wait(SOON).await.unwrap(), 7, "what it returns in time counts");
    let gave_up = client.send(LISTEN.call(()).soft_timeout(secs(3)).timeout(secs(9))).await.unwrap();
    assert_eq!(
        failed(&gave_up).await,
        (FailureKind::Timeout, "told to end after its soft timeout of 3s".into())
    );
    let chain = gave_up.record().await.unwrap().error.unwrap().chain;
    assert_eq!(chain.last().map(String::as_str), Some("told to end"));
    let started = Instant::now();
    let deaf = client.send(SLEEP.call((10_000_000,)).soft_timeout(secs(3)).timeout(secs(9))).await.unwrap();
    assert_eq!(failed(&deaf).await.1, "ran longer than its timeout of 9s");
    assert!(started.elapsed() < secs(10));
    let wrong = client.send(SLEEP.call((1,)).soft_timeout(secs(9)).timeout(secs(9))).await;
    assert!(matches!(wrong, Err(SendError::Invalid(why)) if why.contains("soft timeout of 9s")));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_tried_again_only_where_the_policy_says_so() {
    let app = app().await;
    let client = app.client();
    let options = TaskOptions::new().timeout(secs(2)).retry_policy(RetryPolicy::new(2));
    let _running = Running::start(worker(&app).options("sleep", options));
    let slow = || SLEEP.call((60_000,));
    let once = client.send(slow()).await.unwrap();
    assert_eq!(failed(&once).await.0, FailureKind::Timeout);
    assert_eq!(once.record().await.unwrap().attempt, 1);
    let policy = RetryPolicy::new(2).backoff(Backoff::fixed(secs(1))).retry_timeouts();
    let thrice = client.send(slow().retry_policy(policy)).await.unwrap();
    assert_eq!(failed(&thrice).await.0, FailureKind::Timeout);
    assert_eq!(thrice.record().await.unwrap().attempt, 3);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_handler_is_listed() {
    let app = app().await;
    let client = app.client();
    let _running = Running::start(worker(&app));
    let deaf = client.send(SLEEP.call((100_000,)).soft_timeout(secs(1))).await.unwrap();
    reaches(&deaf, TaskState::Started).await;
    tokio::time::sleep(secs(20)).await;
    assert_eq!(runs(&app).await["stuck"], serde_json::json!([deaf.id().as_str()]));
    deaf.wait(2 * SOON).await.unwrap();
    tokio::time::sleep(secs(20)).await;
    assert_eq!(runs(&app).await["stuck"], serde_json::Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_blocking_handler_out_of_time_is_not_waited_for() {
    let app = app().await;
    let gate = Gate::default();
    let _running = Running::start(worker(&app).task_blocking(BLOCKS, blocks).state(Arc::clone(&gate)));
    let task = app.client().send(BLOCKS.call(()).timeout(secs(2))).await.unwrap();
    // Blocking threads stop paused time from running by itself.
    while !task.state().await.unwrap().is_final() {
        tokio::time::advance(secs(1)).await;
    }
    assert_eq!(failed(&task).await, (FailureKind::Timeout, "ran longer than its timeout of 2s".to_owned()));
    tokio::time::advance(secs(6)).await;
    tokio::task::yield_now().await;
    open(&gate);
}

// ---- progress

#[tokio::test(start_paused = true)]
async fn progress_is_shown_and_its_last_word_stays() {
    const STEPS: TaskDef<u64, ()> = TaskDef::new("steps");
    let app = app().await;
    let steps = async |cx: TaskContext, of: u64| {
        for done in 1..=of {
            cx.progress(done, of, format!("step {done}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, TaskError>(())
    };
    let _running = Running::start(worker(&app).task(STEPS, steps));
    let task = app.client().send(STEPS.call(100)).await.unwrap();
    let mut seen = Vec::new();
    let mut record = None;
    loop {
        let newer = task.changed(record.as_ref(), SOON).await.unwrap();
        seen.extend(newer.progress.as_ref().map(|p| p.done));
        if newer.state.is_final() {
            let last = newer.progress.unwrap();
            assert_eq!((last.done, last.total, last.note.as_str(), last.attempt), (100, 100, "step 100", 1));
            break;
        }
        record = Some(newer);
    }
    seen.dedup();
    assert!(seen.is_sorted() && (15..30).contains(&seen.len()), "twice a second: {seen:?}");
}

// ---- waiting for many

#[tokio::test(start_paused = true)]
async fn all_or_any_are_waited_for_until_one_deadline() {
    let app = app().await;
    let client = app.client();
    let _running = Running::start(worker(&app));
    let ms = [3_000, 1_000, 2_000, 500_000];
    let sent: Vec<_> = client.send_all(ms.iter().map(|ms| SLEEP.call((*ms,))).collect()).await;
    let sent: Vec<_> = sent.into_iter().map(Result::unwrap).collect();
    let (first, answer) = wait_any(&sent, SOON).await.unwrap();
    assert_eq!((first, answer.is_ok()), (1, true));
    let started = Instant::now();
    let answers = wait_all(&sent, secs(10)).await;
    assert!(started.elapsed() < secs(12));
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, true, false]);
    assert!(matches!(&answers[3], Err(ResultError::Timeout { waited, .. }) if *waited == secs(10)));
    assert!(wait_any(&sent[3..], secs(10)).await.is_none());
    assert!(wait_any::<()>(&[], secs(10)).await.is_none());
    let unknown = app.result(TaskId::fresh()).typed::<()>();
    assert!(matches!(wait_any(&[unknown], secs(1)).await, Some((0, Err(ResultError::Unknown { .. })))));
}

// ---- the schedule

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_time_is_listed_until_it_starts() {
    let app = app().await;
    let client = app.client();
    let _running = Running::start(worker(&app));
    let far = client.send(ADD.call((1, 1)).countdown(3 * HOUR)).await.unwrap();
    let near = client.send(ADD.call((2, 2)).countdown(HOUR)).await.unwrap();
    let due = app.clock().now().plus(HOUR);
    client.send(ADD.call((3, 3))).await.unwrap().wait(SOON).await.unwrap();
    let listed = client.scheduled(10).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|task| task.record.id.clone()).collect();
    assert_eq!(ids, [near.id().clone(), far.id().clone()]);
    assert_eq!(listed[0].due, due);
    assert_eq!(client.scheduled(1).await.unwrap().len(), 1);
    near.wait(2 * HOUR).await.unwrap();
    assert_eq!(client.scheduled(10).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_next_run_is_listed_with_the_reason() {
    let app = app().await;
    let client = app.client();
    let calls = Arc::new(AtomicU32::new(0));
    let _running = Running::start(worker(&app).task(FAIL, fail).state(Arc::clone(&calls)));
    let task = client.send(FAIL.call(()).retries(2).backoff(Backoff::fixed(HOUR))).await.unwrap();
    for attempt in 1..=2 {
        while task.record().await.unwrap().history.len() < attempt {
            tokio::time::sleep(secs(1)).await;
        }
        let [listed] = &*client.scheduled(10).await.unwrap() else { panic!("one task waits") };
        assert_eq!((&listed.record.id, listed.record.state), (task.id(), TaskState::Retry));
        assert_eq!(Some(listed.due), listed.record.eta);
        assert!(listed.due > app.clock().now());
        assert_eq!(listed.record.error.as_ref().unwrap().message(), format!("call {attempt}"));
        if attempt == 1 {
            client.run_now(task.id()).await.unwrap();
        }
    }
    failed(&task).await;
    // The message of the second attempt is due an hour after the first, and finds the attempt over.
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let listed = app.backend().list(&machinist_core::backend::Index::Scheduled, None, 10).await.unwrap();
    assert_eq!(listed, [], "taken off by its worker");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_is_run_at_once_and_only_once() {
    let app = app_that_keeps_records(HOUR).await;
    let client = app.client();
    let calls = Arc::new(AtomicU32::new(0));
    const COUNT: TaskDef<(), u32> = TaskDef::new("count");
    let count = async |State(calls): State<Arc<AtomicU32>>| {
        Ok::<_, TaskError>(calls.fetch_add(1, Ordering::SeqCst) + 1)
    };
    let _running = Running::start(worker(&app).task(COUNT, count).state(Arc::clone(&calls)));
    // Due after records of ended tasks are forgotten: its message must find this one ended all the same.
    let delayed = client.send(COUNT.call(()).countdown(3 * HOUR)).await.unwrap();
    client.run_now(delayed.id()).await.unwrap();
    assert_eq!(delayed.wait(SOON).await.unwrap(), 1);
    assert_eq!(client.scheduled(10).await.unwrap(), []);
    let again = client.run_now(delayed.id()).await;
    assert!(matches!(again, Err(ControlError::State { state: TaskState::Success, .. })), "{again:?}");
    tokio::time::sleep(4 * HOUR).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let unknown = client.run_now(&TaskId::fresh()).await;
    assert!(matches!(unknown, Err(ControlError::Unknown { .. })), "{unknown:?}");
}

// ---- again

#[tokio::test(start_paused = true)]
async fn a_failed_task_is_sent_again_as_a_task_of_its_own() {
    let app = app().await;
    let client = app.client();
    let calls = Arc::new(AtomicU32::new(0));
    const THIRD: TaskDef<u32, u32> = TaskDef::new("third");
    let third = async |State(calls): State<Arc<AtomicU32>>, n: u32| match calls.fetch_add(1, Ordering::SeqCst)
    {
        call @ 0..2 => Err(TaskError::new(format!("call {call}"))),
        call => Ok(call + n),
    };
    let _running = Running::start(worker(&app).task(THIRD, third).state(calls));
    let first = client.send(THIRD.call(40)).await.unwrap();
    assert_eq!(failed(&first).await.1, "call 0");
    let second = client.retry(first.id()).await.unwrap().typed::<u32>();
    assert_eq!(failed(&second).await.1, "call 1");
    assert_eq!(client.retry(first.id()).await.unwrap().id(), second.id(), "once, however often it is asked");
    let last = client.retry(second.id()).await.unwrap().typed::<u32>();
    assert_eq!(last.wait(SOON).await.unwrap(), 42);
    let record = second.record().await.unwrap();
    assert_eq!((record.retry_of.as_ref(), record.retried_as.as_ref()), (Some(first.id()), Some(last.id())));
    assert!(matches!(client.retry(last.id()).await, Err(ControlError::State { .. })));
    assert!(matches!(client.retry(&TaskId::fresh()).await, Err(ControlError::Unknown { .. })));
}

// ---- retries

#[tokio::test(start_paused = true)]
async fn errors_are_told_apart() {
    let app = app().await;
    let client = app.client();
    const WRONG: TaskDef<String, ()> = TaskDef::new("wrong");
    let wrong = async |text: String| Err::<(), _>(TaskError::new(text));
    let options =
        TaskOptions::new().retries(2).backoff(Backoff::fixed(HOUR)).classify(|error: &TaskError| match error
            .to_string()
            .as_str()
        {
            "never" => ErrorClass::Permanent,
            "soon" => ErrorClass::RetryAfter(secs(1)),
            _ => ErrorClass::Retry,
        });
    let _running = Running::start(worker(&app).task(WRONG, wrong).options("wrong", options));
    let never = client.send(WRONG.call("never")).await.unwrap();
    assert_eq!(failed(&never).await.0, FailureKind::Error);
    assert_eq!(never.record().await.unwrap().attempt, 1);
    let started = Instant::now();
    let soon = client.send(WRONG.call("soon")).await.unwrap();
    failed(&soon).await;
    assert_eq!(soon.record().await.unwrap().attempt, 3);
    assert!(started.elapsed() < secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_function_says_how_long_to_wait() {
    let app = app().await;
    let client = app.client();
    let options = TaskOptions::new().retries(3).backoff_with(|retries| HOUR * (retries + 1).pow(2));
    let builder = worker(&app).task(FAIL, fail).options("fail", options);
    let _running = Running::start(builder.state(Arc::new(AtomicU32::new(0))));
    let waits = async |signature| {
        let task = client.send(signature).await.unwrap();
        while !task.state().await.unwrap().is_final() {
            tokio::time::sleep(HOUR).await;
        }
        let history = task.record().await.unwrap().history;
        history.iter().map(|attempt| attempt.next_run.since(attempt.ended_at)).collect::<Vec<_>>()
    };
    assert_eq!(waits(FAIL.call(())).await, [HOUR, 4 * HOUR, 9 * HOUR]);
    let signature = FAIL.call(()).retries(1).backoff(Backoff::fixed(secs(7)));
    assert_eq!(waits(signature).await, [secs(7)], "the signature goes before");
}

#[tokio::test(start_paused = true)]
async fn retries_are_bounded_by_time() {
    let app = app().await;
    let calls = Arc::new(AtomicU32::new(0));
    let _running = Running::start(worker(&app).task(FAIL, fail).state(Arc::clone(&calls)));
    let signature = FAIL.call(()).countdown(HOUR).retry_for(secs(60)).backoff(Backoff::fixed(secs(9)));
    let task = app.client().send(signature).await.unwrap();
    failed(&task).await;
    assert_eq!(calls.load(Ordering::SeqCst), 7, "at 0, 9, …, 54 seconds after it was due");
}

// ---- clocks

/// Runs a delayed task where the backend's clock is so far from the host's.
async fn delayed_by(clock: Timestamp) {
    let backend = MemoryBackend::starting_at(clock);
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(backend)).build().await.unwrap();
    let _running = Running::start(worker(&app));
    let sent = Instant::now();
    let task = app.client().send(ADD.call((1, 1)).countdown(secs(600)).expires_in(secs(700))).await.unwrap();
    tokio::time::sleep(secs(599)).await;
    assert_eq!(task.state().await.unwrap(), TaskState::Pending);
    task.wait(SOON).await.unwrap();
    assert!(sent.elapsed() >= secs(600) && sent.elapsed() < secs(603), "{:?}", sent.elapsed());
    let record = task.record().await.unwrap();
    assert!(record.sent_at.unwrap() >= clock && record.sent_at.unwrap() < clock.plus(secs(1)));
    assert!(record.started_at.unwrap() >= record.eta.unwrap());
}

#[tokio::test(start_paused = true)]
async fn no_hosts_clock_decides_when_a_task_starts() {
    let host = machinist_core::clock::wall();
    for clock in [host.minus(HOUR), host, host.plus(HOUR)] {
        delayed_by(clock).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_clock_is_wrong_learns_the_time_at_its_next_renewal() {
    let broker = MemoryBroker::new();
    let backend = Arc::new(MemoryBackend::new());
    let senders = App::builder(Arc::new(broker.clone()), backend.clone()).build().await.unwrap();
    for wrong in [HOUR, secs(0)] {
        let app = App::builder(Arc::new(broker.clone()), backend.clone()).build().await.unwrap();
        let running = Running::start(worker(&app));
        // As if the process had been suspended, or its clock had jumped.
        let now = senders.clock().now();
        let shifted = if wrong.is_zero() { now.minus(HOUR) } else { now.plus(wrong) };
        let _ = app.clock().learn(Instant::now(), shifted);
        let sent = Instant::now();
        let task = senders.client().send(ADD.call((1, 1)).countdown(secs(600))).await.unwrap();
        task.wait(HOUR).await.unwrap();
        assert!(sent.elapsed() >= secs(600) && sent.elapsed() < secs(603), "{:?}", sent.elapsed());
        running.stop().await;
    }
}
