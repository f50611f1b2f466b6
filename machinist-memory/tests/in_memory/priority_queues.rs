//! Priorities over a broker that does not order the messages of a queue: separate queues, by weight or strictly.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::Running;
use async_trait::async_trait;
use machinist_core::{
    App, Backoff, QueueName, State, TaskContext, TaskDef, TaskError, Worker,
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Publish, PublishError, QueueDepth,
        SideQueue,
    },
    diagnose::{Diagnose, Finding},
    limit::{Limit, Rate},
    worker::TaskOptions,
    workflow::chain,
};
use machinist_memory::{MemoryBackend, MemoryBroker, MessagePlace};

const WORK: TaskDef<(String,), ()> = TaskDef::new("work");
const FLAKY: TaskDef<(), ()> = TaskDef::new("flaky");
const MINUTE: Duration = Duration::from_secs(60);

/// A broker without priorities.
#[derive(Debug)]
struct Plain(MemoryBroker);

#[async_trait]
impl Diagnose for Plain {
    fn location(&self) -> String {
        self.0.location()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.0.diagnose().await
    }
}

#[async_trait]
impl Broker for Plain {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { priority: false, ..self.0.capabilities() }
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        self.0.publish(batch).await
    }

    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.0.consume(what).await
    }

    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        self.0.consume_side_queue(from, prefetch).await
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        self.0.depth(queues).await
    }

    async fn close(&self) {
        Broker::close(&self.0).await;
    }
}

type Starts = Arc<Mutex<Vec<String>>>;

async fn work(name: String, State(starts): State<Starts>) -> Result<(), TaskError> {
    starts.lock().unwrap().push(name);
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(())
}

async fn flaky(cx: TaskContext) -> Result<(), TaskError> {
    if cx.attempt() == 1 { Err("the first attempt fails")? } else { Ok(()) }
}

fn queue(name: &str) -> QueueName {
    name.try_into().unwrap()
}

async fn app() -> App {
    let builder = App::builder(Arc::new(Plain(MemoryBroker::new())), Arc::new(MemoryBackend::new()));
    builder.priority_queues(queue("default")).build().await.unwrap()
}

async fn ready(app: &App, name: &str) -> u64 {
    app.broker().depth(&[queue(name)]).await.unwrap()[0].ready.unwrap_or(0)
}

/// Sends many tasks of each class, runs them one at a time, and returns their classes in the order of their starts.
async fn order_of_starts(strict: bool) -> Vec<String> {
    let app = app().await;
    let mut tasks = Vec::new();
    for (name, priority) in [("low", None), ("low", Some(3)), ("medium", Some(5)), ("high", Some(9))] {
        for _ in 0..26 {
            let task = WORK.call((name.to_owned(),));
            let task = match priority {
                Some(priority) => task.priority(priority),
                None => task,
            };
            tasks.push(app.client().send(task).await.unwrap());
        }
    }
    let queues = ["default", "default+priority:medium", "default+priority:high"];
    for (name, number) in queues.into_iter().zip([52, 26, 26]) {
        assert_eq!(ready(&app, name).await, number, "{name}");
    }
    let starts = Starts::default();
    let builder = Worker::builder(&app).concurrency(1).state(starts.clone()).task(WORK, work);
    let worker = Running::start(if strict { builder.strict_order(true) } else { builder });
    for task in &tasks {
        task.wait(10 * MINUTE).await.unwrap();
    }
    assert!(worker.stop().await.is_clean());
    let starts = starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 104);
    starts
}

fn number(starts: &[String], name: &str) -> usize {
    starts.iter().filter(|start| *start == name).count()
}

#[tokio::test(start_paused = true)]
async fn higher_priorities_start_sooner_and_lower_ones_do_not_starve() {
    let starts = order_of_starts(false).await;
    let first = &starts[..26];
    assert!(number(first, "high") >= 16 && number(first, "low") >= 1, "{first:?}");
    assert!(number(first, "medium") > number(first, "low"), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn a_strict_order_starts_the_highest_priority_first() {
    let starts = order_of_starts(true).await;
    // What arrived before the others has the first slots.
    assert!(number(&starts[..29], "high") >= 25, "{starts:?}");
    assert!(number(&starts[..56], "low") <= 4, "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_keeps_its_class_over_delays_retries_and_workflows() {
    let app = app().await;
    let client = app.client();
    let worker = Worker::builder(&app).state(Starts::default()).task(WORK, work).task(FLAKY, flaky);
    let worker = Running::start(worker);
    let high = |seconds| {
        let task = FLAKY.call(()).priority(8).countdown(Duration::from_secs(seconds));
        task.retries(1).backoff(Backoff::fixed(Duration::from_secs(5)))
    };
    let task = client.send(high(20)).await.unwrap();
    task.wait(MINUTE).await.unwrap();
    let record = task.record().await.unwrap();
    assert_eq!((record.attempt, record.queue.as_deref()), (2, Some("default+priority:high")));
    let flow = chain(WORK.call(("a".to_owned(),))).then(high(0).immutable());
    let last = client.send(flow).await.unwrap();
    last.wait(MINUTE).await.unwrap();
    assert_eq!(last.record().await.unwrap().queue.as_deref(), Some("default+priority:high"));
    assert!(worker.stop().await.is_clean());
}

/// The order of a broker with priorities depends on the number in each message.
#[tokio::test(start_paused = true)]
async fn the_messages_of_retries_and_guards_have_the_priority_of_their_task() {
    let broker = Arc::new(MemoryBroker::new());
    let app = App::builder(broker.clone(), Arc::new(MemoryBackend::new())).build().await.unwrap();
    let limit = Limit::new().rate(Rate::parse("1/m").unwrap());
    let worker = Worker::builder(&app).state(Starts::default()).task(WORK, work).task(FLAKY, flaky);
    let worker = Running::start(worker.options("work", TaskOptions::new().limit(limit)));
    let client = app.client();
    let limited = |name: &str| WORK.call((name.to_owned(),)).priority(7);
    client.send(limited("first")).await.unwrap().wait(MINUTE).await.unwrap();
    // It comes back a minute later.
    let guarded = client.send(limited("second")).await.unwrap();
    let flaky = FLAKY.call(()).priority(8).retries(1).backoff(Backoff::fixed(MINUTE / 2));
    let retried = client.send(flaky).await.unwrap();
    let delayed = || -> BTreeMap<_, _> {
        let held = broker.held().into_iter().filter(|held| matches!(held.place, MessagePlace::Delayed(_)));
        held.map(|held| (held.message.kind.unwrap(), held.message.priority)).collect()
    };
    for _ in 0..1000 {
        if delayed().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(delayed(), [("flaky".to_owned(), Some(8)), ("work".to_owned(), Some(7))].into());
    retried.wait(MINUTE).await.unwrap();
    guarded.wait(2 * MINUTE).await.unwrap();
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_separate_queues_leaves_such_tasks_and_why_says_so() {
    let (broker, backend) = (Arc::new(Plain(MemoryBroker::new())), Arc::new(MemoryBackend::new()));
    let separating = App::builder(broker.clone(), backend.clone()).priority_queues(queue("default"));
    let (separating, plain) =
        (separating.build().await.unwrap(), App::builder(broker, backend).build().await.unwrap());
    let worker = Running::start(Worker::builder(&plain).state(Starts::default()).task(WORK, work));
    let client = separating.client();
    client.send(WORK.call(("low".to_owned(),))).await.unwrap().wait(MINUTE).await.unwrap();
    let high = client.send(WORK.call(("high".to_owned(),)).priority(9)).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    let why = client.why(high.id()).await.unwrap();
    assert_eq!(why.reason, machinist_core::WhyReason::NoTag);
    let other = Running::start(Worker::builder(&separating).state(Starts::default()).task(WORK, work));
    high.wait(MINUTE).await.unwrap();
    assert!(worker.stop().await.is_clean() && other.stop().await.is_clean());
}
