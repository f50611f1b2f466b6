//! Negative confirms: what a worker owes waits until the broker takes it, and ends no task.

use std::{sync::Arc, time::Duration};

use crate::support::{Harness, Raw, at_most, in_namespace};
use machinist_broker_amqp::{AmqpOptions, TopologyMode};
use machinist_conformance::{BrokerHarness as _, eventually, within};
use machinist_core::{
    App, AsyncResult, Backoff, SendError, State, TaskContext, TaskDef, TaskError, Worker,
    broker::{Broker, Publish, PublishError, Target},
    id::QueueName,
    record::TaskState,
};
use machinist_memory::MemoryBackend;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum number of messages that a full queue takes in these tests.
const MANY: usize = 100;

const FLAKY: TaskDef<(), u32> = TaskDef::new("flaky");
const FILL: TaskDef<(), ()> = TaskDef::new("fill");
const FAIL: TaskDef<(), ()> = TaskDef::new("fail");

/// Permits with which the first attempts of flaky tasks end, and those of their starts.
#[derive(Debug, Clone)]
struct Gates {
    started: Arc<Semaphore>,
    end: Arc<Semaphore>,
}

async fn flaky(cx: TaskContext, State(gates): State<Gates>) -> Result<u32, TaskError> {
    if cx.attempt() == 1 {
        gates.started.add_permits(1);
        gates.end.acquire().await?.forget();
        Err("the first attempt fails")?;
    }
    Ok(cx.attempt())
}

async fn fill() -> Result<(), TaskError> {
    Ok(())
}

async fn fail() -> Result<(), TaskError> {
    Err(TaskError::permanent("always"))
}

async fn app(broker: Arc<dyn Broker>) -> App {
    App::builder(broker, Arc::new(MemoryBackend::new())).allow_unsigned().build().await.unwrap()
}

/// Runs a worker that holds one delivery at a time while `test` runs.
async fn with_worker(app: &App, gates: Gates, test: impl Future<Output = ()>) {
    let worker = Worker::builder(app).queue("full").concurrency(1).look_ahead(0).state(gates);
    let worker = worker.task(FLAKY, flaky).task(FILL, fill).task(FAIL, fail).build().unwrap();
    let stop = CancellationToken::new();
    tokio::join!(async { assert!(worker.run_until(stop.clone().cancelled_owned()).await.is_ok()) }, async {
        test.await;
        stop.cancel();
    });
}

fn gates() -> Gates {
    Gates { started: Arc::new(Semaphore::new(0)), end: Arc::new(Semaphore::new(0)) }
}

fn full() -> QueueName {
    QueueName::parse("full").unwrap()
}

/// Sends tasks until the queue takes no more. Returns those that it has taken, and the error.
async fn fill_up(app: &App) -> (Vec<AsyncResult<()>>, SendError) {
    let mut sent = Vec::new();
    loop {
        match app.client().send(FILL.call(()).queue("full")).await {
            Ok(task) => sent.push(task),
            Err(error) => return (sent, error),
        }
        assert!(sent.len() < MANY, "a queue with a limit has taken {} tasks", sent.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_for_a_full_queue_waits_until_the_queue_takes_it() {
    in_namespace(async |harness| {
        let broker = harness.connect_with_limit(&full(), 2).await.unwrap();
        let app = app(broker).await;
        let gates = gates();
        let fast = || FLAKY.call(()).queue("full").retries(1).backoff(Backoff::fixed(Duration::ZERO));
        with_worker(&app, gates.clone(), async {
            let flaky = app.client().send(fast()).await.unwrap();
            within(STEP_TIMEOUT, "the first attempt", gates.started.acquire()).await.unwrap().forget();
            let (fillers, error) = fill_up(&app).await;
            gates.end.add_permits(1);
            assert_eq!(flaky.wait(STEP_TIMEOUT).await.unwrap(), 2, "its second attempt");
            for filler in fillers {
                filler.wait(STEP_TIMEOUT).await.unwrap();
            }
            let SendError::Publish { id, source } = &error else { panic!("{error:?}") };
            assert!(matches!(source, PublishError::Nacked { .. }) && error.is_unknown(), "{source:?}");
            let again = FILL.call(()).queue("full").with_id(id.clone());
            assert_eq!(app.client().result(id.clone()).state().await.unwrap(), TaskState::Pending);
            app.client().send(again).await.unwrap().wait(STEP_TIMEOUT).await.unwrap();
        })
        .await;
        app.broker().close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_over_a_missing_queue_of_the_delays_waits_until_it_is_there() {
    in_namespace(async |harness| {
        let prepare = async || {
            let maker = harness.broker(harness.options()).await;
            within(STEP_TIMEOUT, "the topology", maker.prepare(&[full()])).await.unwrap();
        };
        prepare().await;
        let level = format!("{}.delay.0.1", harness.namespace);
        Raw::connect(&harness.url).await.delete_queue(&level).await;
        let options = AmqpOptions { topology: TopologyMode::Verify, ..harness.options() };
        let app = app(Arc::new(harness.broker(options).await)).await;
        let gates = gates();
        let delay = Duration::from_millis(300);
        with_worker(&app, gates.clone(), async {
            let retried = FLAKY.call(()).queue("full").retries(1).backoff(Backoff::fixed(delay));
            let flaky = app.client().send(retried).await.unwrap();
            within(STEP_TIMEOUT, "the first attempt", gates.started.acquire()).await.unwrap().forget();
            gates.end.add_permits(1);
            let waits = async || flaky.state().await.unwrap() == TaskState::Retry;
            assert!(eventually(STEP_TIMEOUT, waits).await, "{:?}", flaky.record().await);
            let message = machinist_core::broker::Message::default();
            let delayed = Publish { target: Target::Queue(full()), message, delay };
            let error = app.broker().publish(vec![delayed]).await.remove(0).unwrap_err();
            assert!(
                matches!(&error, PublishError::Nacked { reason } if reason.contains(&level)),
                "{error:?}"
            );
            // The operator makes it again.
            prepare().await;
            assert_eq!(flaky.wait(STEP_TIMEOUT).await.unwrap(), 2, "its second attempt");
        })
        .await;
        app.broker().close().await;
    })
    .await;
}

/// A broker whose topology is made by hand: the dead letters of `full` have a limit of 1.
async fn with_limited_dead_letters(harness: &Harness) -> (Raw, Arc<dyn Broker>) {
    harness.broker(harness.options()).await.prepare(&[QueueName::parse("other").unwrap()]).await.unwrap();
    let raw = Raw::connect(&harness.url).await;
    let name = harness.on_broker(&full());
    let dead = format!("{name}.dead");
    raw.declare(&name, &[]).await;
    raw.bind(&name, &harness.namespace, &name).await;
    raw.declare(&dead, &at_most(1)).await;
    raw.bind(&dead, &format!("{}.dead", harness.namespace), &name).await;
    let options = AmqpOptions { topology: TopologyMode::Verify, ..harness.options() };
    (raw, Arc::new(harness.broker(options).await))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_for_a_full_queue_waits_until_the_queue_takes_it() {
    in_namespace(async |harness| {
        let (raw, broker) = with_limited_dead_letters(harness).await;
        let letter = Publish {
            target: Target::DeadLetters(full()),
            message: machinist_core::broker::Message::default(),
            delay: Duration::ZERO,
        };
        let mut fillers = 0;
        while broker.publish(vec![letter.clone()]).await.remove(0).is_ok() {
            fillers += 1;
            assert!(fillers < MANY);
        }
        let app = app(broker).await;
        with_worker(&app, gates(), async {
            let failed = app.client().send(FAIL.call(()).queue("full")).await.unwrap();
            failed.wait(STEP_TIMEOUT).await.unwrap_err();
            let next = app.client().send(FILL.call(()).queue("full")).await.unwrap();
            let dead = format!("{}.dead", harness.on_broker(&full()));
            for _ in 0..fillers {
                assert!(raw.get(&dead).await.is_some_and(|letter| letter.id.is_none()), "a filler");
            }
            let mut letters = Vec::new();
            let came = eventually(STEP_TIMEOUT, async || {
                letters.extend(raw.get(&dead).await);
                !letters.is_empty()
            });
            assert!(came.await, "the dead letter was dropped");
            assert_eq!(letters[0].id.as_deref(), Some(failed.id().as_str()));
            next.wait(STEP_TIMEOUT).await.unwrap();
        })
        .await;
        app.broker().close().await;
    })
    .await;
}
