//! A broker, a backend, tasks that tell what ran, and messages taken out of queues.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, AppBuilder, State, TaskDef, TaskError, Worker, WorkerBuilder,
    broker::{Broker, Consume, Message, Publish, Settle, Target},
    id::QueueName,
    sign::{Algorithm, Key, Keyring},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

pub(crate) use crate::support::Running;

pub(crate) const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// Fails once, then succeeds.
pub(crate) const FLAKY: TaskDef<(), u32> = TaskDef::new("flaky");
/// Must never run.
pub(crate) const EVIL: TaskDef<(String,), ()> = TaskDef::new("evil");

pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// What ran.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ran {
    pub(crate) added: Arc<Mutex<Vec<i64>>>,
    pub(crate) flaky: Arc<AtomicU32>,
    pub(crate) evil: Arc<AtomicU32>,
}

async fn add(State(ran): State<Ran>, a: i64, b: i64) -> Result<i64, TaskError> {
    ran.added.lock().unwrap().push(a);
    Ok(a + b)
}

async fn flaky(State(ran): State<Ran>) -> Result<u32, TaskError> {
    match ran.flaky.fetch_add(1, Ordering::SeqCst) + 1 {
        1 => Err("the first time")?,
        call => Ok(call),
    }
}

async fn evil(State(ran): State<Ran>, _what: String) -> Result<(), TaskError> {
    ran.evil.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

pub(crate) fn hmac(id: &str) -> Key {
    Key::generate(Algorithm::HmacSha256, id).unwrap()
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::parse(name).unwrap()
}

pub(crate) struct Harness {
    pub(crate) broker: MemoryBroker,
    pub(crate) backend: Arc<MemoryBackend>,
    pub(crate) ran: Ran,
}

impl Harness {
    pub(crate) fn new() -> Self {
        Self { broker: MemoryBroker::new(), backend: Arc::new(MemoryBackend::new()), ran: Ran::default() }
    }

    pub(crate) fn builder(&self) -> AppBuilder {
        App::builder(Arc::new(self.broker.clone()), Arc::clone(&self.backend) as _)
            .default_queue(queue("math"))
    }

    /// An application that believes these keys.
    pub(crate) async fn app(&self, keys: impl Into<Keyring>) -> App {
        self.builder().keyring(keys).build().await.unwrap()
    }

    pub(crate) fn worker(&self, app: &App) -> WorkerBuilder {
        Worker::builder(app).task(ADD, add).task(FLAKY, flaky).task(EVIL, evil).state(self.ran.clone())
    }

    pub(crate) fn work(&self, app: &App) -> Running {
        Running::start(self.worker(app))
    }

    pub(crate) async fn publish(&self, to: &str, message: Message) {
        let publish = Publish { target: Target::Queue(queue(to)), message, delay: Duration::ZERO };
        for answer in self.broker.publish(vec![publish]).await {
            answer.unwrap();
        }
    }

    /// Takes the next message out of a queue, as somebody with access to the broker can.
    pub(crate) async fn take(&self, from: &str) -> Message {
        let what = Consume { queues: vec![queue(from)], prefetch: 1 };
        let mut consumer = self.broker.consume(what).await.unwrap();
        let delivery = tokio::time::timeout(HOUR, consumer.next()).await.unwrap().unwrap();
        delivery.receipt.settle(Settle::Ack).await;
        consumer.stop().await;
        delivery.message
    }

    /// The reasons of a queue's dead letters, once there are so many.
    pub(crate) async fn dead(&self, of: &str, count: usize) -> Vec<String> {
        let count = Some(count as u64);
        let of = &queue(of);
        self.eventually(async || {
            let depth = self.broker.depth(std::slice::from_ref(of)).await.unwrap();
            depth[0].dead >= count
        })
        .await;
        let reason = |m: &Message| m.headers["machinist-dead-reason"].as_text().unwrap().to_owned();
        self.broker.dead_letters(of).iter().map(reason).collect()
    }

    /// Waits for it; two hours of paused time at most.
    pub(crate) async fn eventually(&self, is: impl AsyncFn() -> bool) {
        for _ in 0..7200 {
            if is().await {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("it never came to be")
    }

    /// Lets everything that can happen within a while happen.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }

    pub(crate) fn added(&self) -> usize {
        self.ran.added.lock().unwrap().len()
    }
}
