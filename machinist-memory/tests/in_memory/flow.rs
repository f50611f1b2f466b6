//! The main job over the in-memory adapters, under paused time: what is sent is run, and anyone can ask.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::{Running, warm_up};
use machinist_core::{
    App, Arg, AsyncResult, Backoff, Codec, Middleware, Next, PublishHook, ResultError, Results, RetryPolicy,
    SendError, Signature, State, TaskContext, TaskDef, TaskError, TaskId, Worker, WorkerBuilder,
    backend::{Commit, Index},
    broker::{Broker, Message, Publish, Target},
    id::{QueueName, RecordId, SessionId},
    record::{FailureKind, TaskState},
    worker::{BuildError, Drained, Tag, TaskOptions},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const FLAKY: TaskDef<(u32,), u32> = TaskDef::new("flaky");
const SLEEP: TaskDef<(u64,), ()> = TaskDef::new("sleep");

const SOON: Duration = Duration::from_secs(60);

async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

async fn sleep(ms: u64) -> Result<(), TaskError> {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(())
}

/// Fails until it is called for the n-th time.
async fn flaky(State(calls): State<Arc<AtomicU32>>, until: u32) -> Result<u32, TaskError> {
    let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
    if call < until { Err(format!("call {call}"))? } else { Ok(call) }
}

struct House {
    broker: MemoryBroker,
    app: App,
}

async fn house() -> House {
    let broker = MemoryBroker::new();
    let app = App::builder(Arc::new(broker.clone()), Arc::new(MemoryBackend::new())).build().await.unwrap();
    House { broker, app }
}

fn worker(app: &App) -> WorkerBuilder {
    Worker::builder(app).name("w1").task(ADD, add).task(SLEEP, sleep)
}

fn queue(name: &str) -> QueueName {
    QueueName::parse(name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_sent_is_run_and_its_record_tells() {
    let house = house().await;
    let sum = house.app.client().send(ADD.call((2, 3))).await.unwrap();
    assert_eq!(sum.state().await.unwrap(), TaskState::Pending);
    let running = Running::start(worker(&house.app));
    assert_eq!(sum.wait(SOON).await.unwrap(), 5);
    let record = sum.record().await.unwrap();
    assert_eq!(record.state, TaskState::Success);
    assert_eq!((record.name.as_deref(), record.queue.as_deref()), (Some("add"), Some("default")));
    assert_eq!((record.attempt, record.worker.as_deref(), record.kind), (1, Some("w1"), None));
    assert!(record.sent_at <= record.received_at && record.received_at <= record.started_at);
    assert!(record.started_at <= record.ended_at);
    assert_eq!(record.trace_id().map(str::len), Some(32));
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn both_codecs_are_read_whatever_is_written() {
    let house = house().await;
    let backend = Arc::clone(house.app.backend());
    let json =
        App::builder(Arc::new(house.broker.clone()), backend).codec(Codec::Json).build().await.unwrap();
    let _running = Running::start(worker(&house.app));
    let sum = json.client().send(ADD.call((40, 2))).await.unwrap();
    assert_eq!(sum.wait(SOON).await.unwrap(), 42);
}

#[tokio::test(start_paused = true)]
async fn a_result_is_reopened_by_its_id() {
    let house = house().await;
    let _running = Running::start(worker(&house.app));
    let sum = house.app.client().send(ADD.call((2, 3))).await.unwrap();
    let stored = serde_json::to_string(&sum).unwrap();
    let reopened = house.app.result(serde_json::from_str(&stored).unwrap()).typed::<i64>();
    assert_eq!(reopened.wait(SOON).await.unwrap(), 5);
    let raw: AsyncResult<Results> = house.app.result(sum.id().clone());
    assert_eq!(raw.wait(SOON).await.unwrap().0[0].kind, "int64");
    let strange = house.app.result(sum.id().clone()).typed::<String>().wait(SOON).await;
    assert!(matches!(strange, Err(ResultError::Undecodable { .. })), "{strange:?}");
}

#[tokio::test(start_paused = true)]
async fn unknown_and_not_ended_are_different_answers() {
    let house = house().await;
    let unknown = house.app.result("nobody".try_into().unwrap()).wait(SOON).await;
    assert!(matches!(unknown, Err(ResultError::Unknown { .. })), "{unknown:?}");
    let waiting = house.app.client().send(ADD.call((1, 1))).await.unwrap();
    let timeout = waiting.wait(Duration::from_secs(3)).await;
    assert!(matches!(timeout, Err(ResultError::Timeout { .. })), "{timeout:?}");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_told_of_a_record_that_was_there_and_is_gone() {
    let house = house().await;
    let sent = house.app.client().send(ADD.call((1, 1))).await.unwrap();
    let waiting = tokio::spawn({
        let sent = sent.clone();
        async move { sent.wait(Duration::from_secs(365 * 24 * 3600)).await }
    });
    // The waiter has seen the record.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let backend = house.app.backend();
    let id = RecordId::from(sent.id());
    let facts = backend.read(std::slice::from_ref(&id)).await.unwrap().remove(0);
    let drop = facts.iter().map(|(name, _)| name.to_owned().into()).collect();
    let gone = Commit { drop, ..Commit::new(id) };
    let lost_at = tokio::time::Instant::now();
    backend.commit(vec![gone.into()]).await.remove(0).unwrap();
    let told = waiting.await.unwrap();
    assert!(matches!(told, Err(ResultError::Unknown { .. })), "{told:?}");
    assert!(lost_at.elapsed() < SOON, "{:?}", lost_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_is_tried_again_as_its_signature_says() {
    let house = house().await;
    let _running = Running::start(worker(&house.app).task(FLAKY, flaky).state(Arc::new(AtomicU32::new(0))));
    let backoff = Backoff::fixed(Duration::from_secs(5));
    let started = tokio::time::Instant::now();
    let third = house.app.client().send(FLAKY.call((3,)).retries(5).backoff(backoff)).await.unwrap();
    assert_eq!(third.wait(SOON).await.unwrap(), 3);
    assert!(started.elapsed() >= Duration::from_secs(10));
    let record = third.record().await.unwrap();
    assert_eq!(record.attempt, 3);
    let errors: Vec<_> = record.history.iter().map(|a| a.error.message()).collect();
    assert_eq!(errors, ["call 1", "call 2"]);
}

#[tokio::test(start_paused = true)]
async fn retries_end_and_leave_a_dead_letter() {
    let house = house().await;
    let options = TaskOptions::new().retries(2).backoff(Backoff::fixed(Duration::from_millis(10)));
    let calls = Arc::new(AtomicU32::new(0));
    let _running = Running::start(
        worker(&house.app).task(FLAKY, flaky).state(Arc::clone(&calls)).options("flaky", options),
    );
    let never = house.app.client().send(FLAKY.call((99,))).await.unwrap();
    let Err(ResultError::Failed { kind, message, .. }) = never.wait(SOON).await else { panic!("it fails") };
    assert_eq!((kind, message.as_str()), (FailureKind::Error, "call 3"));
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let dead = dead_letters(&house, 1).await;
    assert_eq!(dead[0].headers["machinist-dead-reason"].as_text(), Some("failed"));
    assert_eq!(dead[0].id.as_deref(), Some(never.id().as_str()));
}

/// Waits until so many dead letters lie in the default queue's.
async fn dead_letters(house: &House, count: usize) -> Vec<Message> {
    for _ in 0..1000 {
        let dead = house.broker.dead_letters(&queue("default"));
        if dead.len() >= count {
            return dead;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no {count} dead letters")
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_and_panics_are_told_apart() {
    let house = house().await;
    let never =
        async |_cx: TaskContext| -> Result<(), TaskError> { Err(TaskError::permanent("no such user")) };
    let panics = async || -> Result<(), TaskError> { panic!("ouch") };
    const NEVER: TaskDef<(), ()> = TaskDef::new("never");
    const PANICS: TaskDef<(), ()> = TaskDef::new("panics");
    let _running = Running::start(worker(&house.app).task(NEVER, never).task(PANICS, panics));
    let client = house.app.client();
    let (a, b) =
        (client.send(NEVER.call(()).retries(9)).await.unwrap(), client.send(PANICS.call(())).await.unwrap());
    let kinds = (failed(&a).await, failed(&b).await);
    assert_eq!(kinds.0, (FailureKind::Error, "no such user".to_owned()));
    assert_eq!(kinds.1, (FailureKind::Panic, "the handler panicked: ouch".to_owned()));
    assert_eq!(a.record().await.unwrap().attempt, 1);
    let chain = b.record().await.unwrap().error.unwrap().chain;
    assert!(chain[1].starts_with("at ") && chain[1].contains("flow.rs:"), "{chain:?}");
}

async fn failed<R: machinist_core::args::FromResults + std::fmt::Debug>(
    result: &AsyncResult<R>,
) -> (FailureKind, String) {
    match result.wait(SOON).await {
        Err(ResultError::Failed { kind, message, .. }) => (kind, message),
        other => panic!("it should have failed: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_may_ask_for_later_without_spending_a_retry() {
    let house = house().await;
    let calls = Arc::new(AtomicU32::new(0));
    const LATER: TaskDef<(), u32> = TaskDef::new("later");
    let later = async |State(calls): State<Arc<AtomicU32>>| -> Result<u32, TaskError> {
        match calls.fetch_add(1, Ordering::SeqCst) {
            call @ 0..3 => Err(TaskError::retry_in(Duration::from_secs(60)).because(format!("busy {call}"))),
            call => Ok(call),
        }
    };
    let _running = Running::start(worker(&house.app).task(LATER, later).state(calls));
    let result = house.app.client().send(LATER.call(())).await.unwrap();
    let started = tokio::time::Instant::now();
    assert_eq!(result.wait(SOON * 10).await.unwrap(), 3);
    assert!(started.elapsed() >= Duration::from_secs(180));
}

#[tokio::test(start_paused = true)]
async fn asking_for_later_has_a_cap_of_its_own() {
    let house = house().await;
    const ALWAYS: TaskDef<(), ()> = TaskDef::new("always-later");
    let always = async || -> Result<(), TaskError> { Err(TaskError::retry_in(Duration::from_secs(1))) };
    let _running = Running::start(worker(&house.app).task(ALWAYS, always));
    let policy = RetryPolicy { max_postponements: 2, ..RetryPolicy::default() };
    let result = house.app.client().send(ALWAYS.call(()).retry_policy(policy)).await.unwrap();
    assert_eq!(failed(&result).await.0, FailureKind::Error);
    assert_eq!(result.record().await.unwrap().attempt, 3);
}

#[tokio::test(start_paused = true)]
async fn arguments_that_do_not_fit_fail_alone() {
    let house = house().await;
    let _running = Running::start(worker(&house.app));
    let client = house.app.client();
    let few = client.send(Signature::new("add").arg(1)).await.unwrap();
    let many = client.send(Signature::new("add").arg(1).arg(2).arg(3)).await.unwrap();
    let wrong = client.send(Signature::new("add").arg(1).arg("two")).await.unwrap();
    let good = client.send(ADD.call((1, 2))).await.unwrap();
    for result in [few, many, wrong] {
        let (kind, message) = failed(&result).await;
        assert_eq!(kind, FailureKind::Malformed, "{message}");
    }
    assert_eq!(good.wait(SOON).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_decoded_is_buried_and_the_worker_lives() {
    let house = house().await;
    let _running = Running::start(worker(&house.app));
    let garbage = Message { body: "not a task".into(), ..Message::default() };
    let sent = house.app.client().send(ADD.call((0, 0)).countdown(Duration::from_secs(3600))).await.unwrap();
    let publish =
        Publish { target: Target::Queue(queue("default")), message: garbage, delay: Duration::ZERO };
    assert!(house.broker.publish(vec![publish]).await[0].is_ok());
    let dead = dead_letters(&house, 1).await;
    assert_eq!(dead[0].headers["machinist-dead-reason"].as_text(), Some("undecodable"));
    let good = house.app.client().send(ADD.call((1, 2))).await.unwrap();
    assert_eq!(good.wait(SOON).await.unwrap(), 3);
    assert_eq!(sent.state().await.unwrap(), TaskState::Pending);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_task_waits_for_a_worker_that_knows_it() {
    let house = house().await;
    let old = Running::start(Worker::builder(&house.app).name("old").task(SLEEP, sleep));
    let sum = house.app.client().send(ADD.call((2, 2))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(sum.state().await.unwrap(), TaskState::Pending);
    assert!(old.stop().await.is_clean());
    let _new = Running::start(worker(&house.app));
    assert_eq!(sum.wait(Duration::from_secs(120)).await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_nobody_knows_for_an_hour_fails() {
    let house = house().await;
    let _running = Running::start(worker(&house.app));
    let nobody = house.app.client().send(Signature::new("nobody")).await.unwrap();
    let Err(ResultError::Failed { kind, .. }) = nobody.wait(Duration::from_secs(2 * 3600)).await else {
        panic!("it fails")
    };
    assert_eq!(kind, FailureKind::Unregistered);
    assert_eq!(dead_letters(&house, 1).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_before_its_time_or_after_its_expiry() {
    let house = house().await;
    let client = house.app.client();
    let hour = Duration::from_secs(3600);
    let late = client.send(ADD.call((1, 1)).expires_in(Duration::from_secs(10))).await.unwrap();
    let delayed = client.send(ADD.call((2, 2)).countdown(hour)).await.unwrap();
    let due = house.app.clock().now().plus(hour);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let _running = Running::start(worker(&house.app));
    assert_eq!(failed(&late).await.0, FailureKind::Expired);
    assert_eq!(delayed.wait(2 * hour).await.unwrap(), 4);
    assert!(delayed.record().await.unwrap().started_at.unwrap() >= due);
}

#[tokio::test(start_paused = true)]
async fn a_contradiction_is_not_sent() {
    let house = house().await;
    let client = house.app.client();
    let signature = ADD.call((1, 1)).countdown(SOON).expires_in(Duration::from_secs(1));
    assert!(matches!(client.send(signature).await, Err(SendError::Invalid(_))));
    assert!(matches!(client.send(ADD.call((1, 1)).queue("amq.x")).await, Err(SendError::Name(_))));
    assert!(matches!(client.send(Signature::new("")).await, Err(SendError::Name(_))));
    for id in ["report!1", "report+2"] {
        let refused = client.send(ADD.call((1, 1)).with_id(id.try_into().unwrap())).await;
        let Err(SendError::Invalid(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("contains `!` or `+`"), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_argument_without_a_form_on_the_wire_is_not_sent() {
    const HALF: TaskDef<f64, f64> = TaskDef::new("half");
    let house = house().await;
    let refused = house.app.client().send(HALF.call(f64::NAN)).await;
    let Err(SendError::Invalid(why)) = refused else { panic!("{refused:?}") };
    assert!(why.ends_with("argument 1: NaN has no form on the wire"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_ends_a_run() {
    let house = house().await;
    let _running = Running::start(worker(&house.app));
    let slow = SLEEP.call((60_000,)).timeout(Duration::from_secs(2));
    let result = house.app.client().send(slow).await.unwrap();
    assert_eq!(failed(&result).await.0, FailureKind::Timeout);
}

#[tokio::test(start_paused = true)]
async fn the_same_signature_sent_twice_runs_once() {
    let house = house().await;
    let calls = Arc::new(AtomicU32::new(0));
    let signature = FLAKY.call((1,));
    let client = house.app.client();
    let first = client.send(signature.clone()).await.unwrap();
    client.send(signature).await.unwrap();
    let running = Running::start(worker(&house.app).task(FLAKY, flaky).state(Arc::clone(&calls)));
    assert_eq!(first.wait(SOON).await.unwrap(), 1);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_a_bound() {
    let house = house().await;
    const MEASURE: TaskDef<(), ()> = TaskDef::new("measure");
    let (now, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let measure = {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        move || {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(500)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, TaskError>(())
            }
        }
    };
    let _running = Running::start(worker(&house.app).task(MEASURE, measure).concurrency(3));
    let sent = house.app.client().send_all((0..20).map(|_| MEASURE.call(())).collect()).await;
    for result in sent {
        result.unwrap().wait(SOON).await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_slot_is_shown() {
    let house = house().await;
    let _running = Running::start(worker(&house.app).concurrency(1));
    let client = house.app.client();
    warm_up(&client, || SLEEP.call((1,))).await;
    let first = client.send(SLEEP.call((10_000,))).await.unwrap();
    let second = client.send(SLEEP.call((1,))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(first.state().await.unwrap(), TaskState::Started);
    assert_eq!(second.state().await.unwrap(), TaskState::Received);
    second.wait(SOON).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_finish_what_runs_and_hands_back_what_waits() {
    let house = house().await;
    let running = Running::start(worker(&house.app).concurrency(1));
    let client = house.app.client();
    let first = client.send(SLEEP.call((5_000,))).await.unwrap();
    let second = client.send(SLEEP.call((5_000,))).await.unwrap();
    while first.state().await.unwrap() != TaskState::Started {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(running.stop().await.is_clean());
    assert_eq!(first.state().await.unwrap(), TaskState::Success);
    assert!(!second.state().await.unwrap().is_final());
    let _next = Running::start(worker(&house.app));
    second.wait(SOON).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_in_time_is_handed_back_and_runs_elsewhere_at_once() {
    let house = house().await;
    let running = Running::start(worker(&house.app).grace(Duration::from_secs(2)));
    let client = house.app.client();
    let long = client.send(SLEEP.call((3_600_000,))).await.unwrap();
    while long.state().await.unwrap() != TaskState::Started {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        running.stop().await,
        Drained { handed_back: 1, unfinished: 0, refused: 0, restart_exit_code: None }
    );
    assert_eq!(long.state().await.unwrap(), TaskState::Pending);
    let quick = async |_ms: u64| Ok::<_, TaskError>(());
    let _next = Running::start(Worker::builder(&house.app).name("w2").task(SLEEP, quick));
    // Well before a session could expire.
    long.wait(Duration::from_secs(2)).await.unwrap();
    assert_eq!(long.record().await.unwrap().worker.as_deref(), Some("w2"));
}

#[tokio::test(start_paused = true)]
async fn a_dead_workers_task_is_taken_over() {
    // Whenever between two renewals it dies.
    for lived in (0..10).map(|half_seconds| Duration::from_millis(500 * half_seconds)) {
        let house = house().await;
        let dying = Running::start(worker(&house.app));
        let client = house.app.client();
        let task = client.send(SLEEP.call((30_000,))).await.unwrap();
        while task.state().await.unwrap() != TaskState::Started {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(lived).await;
        dying.worker.abort();
        let died = tokio::time::Instant::now();
        house.broker.interrupt();
        let quick = async |cx: TaskContext, _ms: u64| {
            assert!(cx.fencing_token() > 1);
            Ok::<_, TaskError>(())
        };
        let _next = Running::start(Worker::builder(&house.app).name("w2").task(SLEEP, quick));
        task.wait(Duration::from_secs(120)).await.unwrap();
        // Not before the lease is over, and as soon as two looks have found it gone.
        let after = died.elapsed().as_secs();
        assert!((10..=24).contains(&after), "{after} s after the death of a worker that lived {lived:?}");
        let record = task.record().await.unwrap();
        assert_eq!((record.attempt, record.worker.as_deref()), (1, Some("w2")));
    }
}

/// How often the deadly task and its neighbour were started.
type Starts = Arc<[AtomicU32; 2]>;

const RISK: TaskDef<(bool,), ()> = TaskDef::new("risk");

/// Either waits for the death of its worker, or has some work to do beside it.
async fn risk(State(starts): State<Starts>, deadly: bool) -> Result<(), TaskError> {
    starts[usize::from(!deadly)].fetch_add(1, Ordering::SeqCst);
    if deadly { std::future::pending().await } else { sleep(20_000).await }
}

#[tokio::test(start_paused = true)]
async fn a_task_of_which_workers_die_is_lost_and_its_neighbours_are_not() {
    let house = house().await;
    let client = house.app.client();
    let starts = Starts::default();
    let begin = || {
        let builder = Worker::builder(&house.app).task(RISK, risk).state(Arc::clone(&starts));
        Running::start(builder)
    };
    let deadly = client.send(RISK.call((true,))).await.unwrap();
    let sent = tokio::time::Instant::now();
    let neighbour = client.send(RISK.call((false,))).await.unwrap();
    let limit = Duration::from_secs(3600);
    for (deaths, begun) in [[1, 1], [2, 2], [3, 0], [4, 0], [5, 0]].into_iter().enumerate() {
        let dying = begin();
        while starts.iter().zip(begun).any(|(started, wanted)| started.load(Ordering::SeqCst) < wanted) {
            assert!(sent.elapsed() < limit, "waiting for start {begun:?} after {deaths} deaths: {starts:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!deadly.state().await.unwrap().is_final(), "after {deaths} deaths");
        dying.worker.abort();
        house.broker.interrupt();
    }
    let _survivor = begin();
    let Err(ResultError::Failed { kind, .. }) = deadly.wait(limit).await else { panic!("it is lost") };
    assert_eq!((kind, starts[0].load(Ordering::SeqCst)), (FailureKind::Lost, 5));
    neighbour.wait(limit).await.unwrap();
    let dead = dead_letters(&house, 1).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].id.as_deref(), Some(deadly.id().as_str()));
    assert_eq!(dead[0].headers["machinist-dead-reason"].as_text(), Some("lost"));
}

#[tokio::test(start_paused = true)]
async fn a_dead_workers_task_is_taken_over_also_while_only_its_guard_is_left() {
    let house = house().await;
    let dying = Running::start(worker(&house.app));
    let task = house.app.client().send(SLEEP.call((2 * 3_600_000,))).await.unwrap();
    // Long enough for guards that stay away for five minutes.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    dying.worker.abort();
    house.broker.interrupt();
    let quick = async |_ms: u64| Ok::<_, TaskError>(());
    let _next = Running::start(Worker::builder(&house.app).name("w2").task(SLEEP, quick));
    let absence_of_a_guard = Duration::from_secs(300);
    task.wait(absence_of_a_guard + Duration::from_secs(30)).await.unwrap();
    assert_eq!(task.record().await.unwrap().worker.as_deref(), Some("w2"));
}

#[tokio::test(start_paused = true)]
async fn middleware_is_called_in_order_and_may_answer_itself() {
    struct Mark(&'static str);
    #[async_trait::async_trait]
    impl Middleware for Mark {
        async fn call(&self, cx: TaskContext, mut args: Vec<Arg>, next: Next) -> Result<Results, TaskError> {
            cx.log(format!("{} in", self.0));
            if let Some(first) = args.first_mut() {
                first.value = 100.into();
            }
            let outcome = next.run(cx.clone(), args).await;
            cx.log(format!("{} out", self.0));
            outcome
        }
    }
    let house = house().await;
    let _running = Running::start(worker(&house.app).middleware(Mark("a")).middleware(Mark("b")));
    let sum = house.app.client().send(ADD.call((1, 1))).await.unwrap();
    assert_eq!(sum.wait(SOON).await.unwrap(), 101);
    assert_eq!(sum.record().await.unwrap().log, "a in\nb in\nb out\na out\n");
}

#[tokio::test(start_paused = true)]
async fn publish_hooks_run_in_order_and_their_headers_reach_the_handler() {
    struct Tenant(&'static str);
    impl PublishHook for Tenant {
        fn before_publish(&self, id: &TaskId, name: &str, headers: &mut BTreeMap<String, String>) {
            assert_ne!(id.as_str(), "");
            let before = headers.insert("tenant".to_owned(), self.0.to_owned()).unwrap_or_default();
            headers.insert("seen".to_owned(), format!("{name} {before}"));
        }
    }
    const WHOSE: TaskDef<(), String> = TaskDef::new("whose");
    let whose = async |cx: TaskContext| {
        Ok::<_, TaskError>(format!("{} {}", cx.headers()["tenant"], cx.headers()["seen"]))
    };
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()))
        .on_publish(Tenant("first"))
        .on_publish(Tenant("second"))
        .build()
        .await
        .unwrap();
    let _running = Running::start(Worker::builder(&app).task(WHOSE, whose));
    let sent = app.client().send(WHOSE.call(()).header("tenant", "own")).await.unwrap();
    assert_eq!(sent.wait(SOON).await.unwrap(), "second whose first");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_work_is_not_built() {
    let house = house().await;
    let build = |builder: WorkerBuilder| builder.build().unwrap_err();
    let base = || Worker::builder(&house.app);
    assert!(matches!(build(base().task(ADD, add).task(ADD, add)), BuildError::Twice(name) if name == "add"));
    let missing = build(base().task(FLAKY, flaky)).to_string();
    assert!(missing.contains("flaky") && missing.contains("AtomicU32"), "{missing}");
    assert!(matches!(build(base().queue("amq.x")), BuildError::Name(_)));
    assert!(matches!(build(base().concurrency(0)), BuildError::Zero("concurrency")));
    assert!(matches!(build(base().options("ad", TaskOptions::new())), BuildError::NoSuchTask(_)));
    assert!(matches!(build(base().tags(["gpu", "Zone"])), BuildError::Tag(_)));
    let many = (0..17).map(|number| format!("tag-{number}"));
    assert!(matches!(build(base().tags(many)), BuildError::TooManyTags(17)));
}

#[tokio::test(start_paused = true)]
async fn the_session_of_a_worker_shows_its_tags() {
    let house = house().await;
    let tagged = worker(&house.app).tags(["zone:eu", "gpu", "gpu"]).build().unwrap();
    assert_eq!(tagged.tags().iter().map(Tag::as_str).collect::<Vec<_>>(), ["gpu", "zone:eu"]);
    let _running = Running::start(worker(&house.app).tags(["zone:eu", "gpu", "gpu"]));
    let sent = house.app.client().send(ADD.call((2, 3))).await.unwrap();
    assert_eq!(sent.wait(SOON).await.unwrap(), 5);
    let backend = house.app.backend();
    let (_, session) = backend.list(&Index::Sessions, None, 1).await.unwrap().remove(0);
    let record = backend.read(&[SessionId::from(session.as_str()).into()]).await.unwrap().remove(0);
    let about: serde_json::Value = record.read("about").unwrap();
    assert_eq!(about["tags"], serde_json::json!(["gpu", "zone:eu"]));
}

#[tokio::test(start_paused = true)]
async fn adjusted_options_go_before_those_of_the_code() {
    let house = house().await;
    let known = Arc::new(AtomicU32::new(0));
    let counted = |known: &Arc<AtomicU32>| {
        let known = Arc::clone(known);
        move |options: Option<&mut TaskOptions>| match options {
            Some(options) => {
                known.fetch_add(1, Ordering::SeqCst);
                *options = std::mem::take(options).retries(2);
            }
            None => drop(known.fetch_add(100, Ordering::SeqCst)),
        }
    };
    let calls = Arc::new(AtomicU32::new(0));
    let failing = Arc::clone(&calls);
    let fails = move || {
        failing.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err::<(), _>(TaskError::new("no")))
    };
    const FAILS: TaskDef<(), ()> = TaskDef::new("fails");
    let builder = Worker::builder(&house.app)
        .adjust_options("fails", counted(&known))
        .adjust_options("unknown", counted(&known))
        .task(FAILS, fails)
        .options("fails", TaskOptions::new().retries(7).backoff(Backoff::fixed(Duration::from_millis(1))));
    let _running = Running::start(builder);
    assert_eq!(known.load(Ordering::SeqCst), 101);
    let sent = house.app.client().send(FAILS.call(())).await.unwrap();
    assert!(sent.wait(SOON).await.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn blocking_handlers_run_beside_the_others() {
    let house = house().await;
    const BLOCKS: TaskDef<String, String> = TaskDef::new("blocks");
    let blocks = |text: String| -> Result<String, std::io::Error> { Ok(text.to_uppercase()) };
    let _running = Running::start(worker(&house.app).task_blocking(BLOCKS, blocks));
    let loud = house.app.client().send(BLOCKS.call("quiet".to_owned())).await.unwrap();
    assert_eq!(loud.wait(SOON).await.unwrap(), "QUIET");
}
