//! Senders with patience, and queues that take no more than they may hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use async_trait::async_trait;
use machinist_core::{
    App, AppBuilder, QueueName, SendError, Signature, TaskDef, TaskError, Worker,
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Publish, PublishError, QueueDepth,
        SideQueue,
    },
    diagnose::{Diagnose, Finding},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;

const WORK: TaskDef<(), ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);

/// A broker that refuses a number of publishes before it takes one.
#[derive(Debug)]
pub(crate) struct Flaky {
    pub(crate) broker: MemoryBroker,
    pub(crate) refusals: AtomicU32,
}

#[async_trait]
impl Diagnose for Flaky {
    fn location(&self) -> String {
        self.broker.location()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.broker.diagnose().await
    }
}

#[async_trait]
impl Broker for Flaky {
    fn capabilities(&self) -> BrokerCapabilities {
        self.broker.capabilities()
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        let left = self.refusals.load(Ordering::SeqCst);
        if left == 0 {
            return self.broker.publish(batch).await;
        }
        self.refusals.store(left - 1, Ordering::SeqCst);
        let answer = |_| match left % 2 {
            0 => Err(PublishError::Unavailable("no connection".into())),
            _ => Err(PublishError::Unknown("the connection was lost".into())),
        };
        batch.into_iter().map(answer).collect()
    }

    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.broker.consume(what).await
    }

    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        self.broker.consume_side_queue(from, prefetch).await
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        self.broker.depth(queues).await
    }

    async fn close(&self) {
        Broker::close(&self.broker).await;
    }
}

async fn work() -> Result<(), TaskError> {
    Ok(())
}

fn queue(name: &str) -> QueueName {
    name.try_into().unwrap()
}

async fn app(refusals: u32, adjust: impl FnOnce(AppBuilder) -> AppBuilder) -> App {
    let broker = Flaky { broker: MemoryBroker::new(), refusals: refusals.into() };
    adjust(App::builder(Arc::new(broker), Arc::new(MemoryBackend::new()))).build().await.unwrap()
}

async fn ready(app: &App, name: &str) -> u64 {
    app.broker().depth(&[queue(name)]).await.unwrap()[0].ready.unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn a_task_is_sent_once_the_broker_is_back() {
    let app = app(7, |builder| builder).await;
    let sent = app.client().send_within(WORK.call(()), MINUTE).await.unwrap();
    assert_eq!(ready(&app, "default").await, 1);
    let worker = Running::start(Worker::builder(&app).task(WORK, work));
    sent.wait(MINUTE).await.unwrap();
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn patience_ends_with_the_error_of_the_last_try() {
    let app = app(u32::MAX, |builder| builder).await;
    let before = Instant::now();
    let error = app.client().send_within(WORK.call(()), Duration::from_secs(10)).await.unwrap_err();
    assert!(matches!(error, SendError::Publish { .. }), "{error}");
    assert!(before.elapsed() >= Duration::from_secs(4) && before.elapsed() <= Duration::from_secs(10));
    let before = Instant::now();
    let wrong = app.client().send_within(Signature::new("work").priority(99), MINUTE).await.unwrap_err();
    assert!(matches!(wrong, SendError::Invalid(_)) && before.elapsed().is_zero(), "{wrong}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_an_earlier_try_may_have_queued_is_not_called_unsent() {
    // An odd number of refusals is unknown, and an even one certain.
    let app = app(0, |builder| builder.max_depth(queue("small"), 0)).await;
    let full =
        app.client().send_when_room(WORK.call(()).queue("small"), Duration::from_secs(3)).await.unwrap_err();
    assert!(matches!(full, SendError::QueueFull { .. }) && !full.is_unknown(), "{full}");
    let app = self::app(u32::MAX, |builder| builder).await;
    let before = Instant::now();
    let away = app.client().send_when_room(WORK.call(()), MINUTE).await.unwrap_err();
    assert!(away.is_unknown() && before.elapsed().is_zero(), "it waits for room alone: {away}");
    for seconds in 1..8 {
        let timeout = Duration::from_secs(seconds);
        let error = app.client().send_within(WORK.call(()), timeout).await.unwrap_err();
        assert!(error.is_unknown(), "some try was not confirmed: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_a_patient_sender_waits() {
    let app = app(0, |builder| builder.max_depth(queue("small"), 3)).await;
    let client = app.client();
    let task = || WORK.call(()).queue("small");
    let sent = client.send_all(vec![task(), task(), task(), task()]).await;
    assert!(sent[..3].iter().all(Result::is_ok));
    let full = sent[3].as_ref().unwrap_err();
    assert!(matches!(full, SendError::QueueFull { depth: 3, most: 3, .. }), "{full}");
    assert!(!full.is_unknown());
    assert!(client.send(WORK.call(())).await.is_ok(), "another queue has room");
    let late = client.send_within(task(), Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(late, SendError::QueueFull { .. }), "{late}");
    assert_eq!(ready(&app, "small").await, 3);
    let start = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Running::start(Worker::builder(&app).queue("small").task(WORK, work))
    };
    let (sent, worker) = tokio::join!(client.send_when_room(task(), MINUTE), start);
    sent.unwrap().wait(MINUTE).await.unwrap();
    assert!(worker.stop().await.is_clean());
}
