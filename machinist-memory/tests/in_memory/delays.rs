//! Delays beyond the longest that a broker keeps, over the in-memory adapters and under paused time.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use machinist_core::{
    App, Backoff, State, TaskContext, TaskDef, TaskError, Worker,
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Publish, PublishError, QueueDepth,
        SideQueue,
    },
    diagnose::{Diagnose, Finding},
    id::QueueName,
    worker::TaskOptions,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const MAX_DELAY: Duration = Duration::from_secs(1);
const DUE: TaskDef<(), ()> = TaskDef::new("due");

/// The memory broker as one that keeps no delay beyond [`MAX_DELAY`].
#[derive(Debug, Default)]
struct Impatient {
    broker: MemoryBroker,
    delays: Mutex<Vec<Duration>>,
}

#[async_trait]
impl Broker for Impatient {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { max_delay: Some(MAX_DELAY), ..self.broker.capabilities() }
    }
    fn realm(&self) -> String {
        self.broker.realm()
    }
    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        self.delays.lock().unwrap().extend(batch.iter().map(|publish| publish.delay));
        self.broker.publish(batch).await
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

#[async_trait]
impl Diagnose for Impatient {
    fn location(&self) -> String {
        self.broker.location()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        self.broker.diagnose().await
    }
}

/// Instants at which a run started.
type Starts = Arc<Mutex<Vec<Instant>>>;

/// Fails unless it is the second attempt.
async fn due(cx: TaskContext, State(starts): State<Starts>) -> Result<(), TaskError> {
    starts.lock().unwrap().push(Instant::now());
    if cx.attempt() == 1 { Err("again later")? } else { Ok(()) }
}

#[tokio::test(start_paused = true)]
async fn a_task_may_wait_for_longer_than_the_longest_delay_of_its_broker() {
    let broker = Arc::new(Impatient::default());
    let app = App::builder(broker.clone(), Arc::new(MemoryBackend::new())).build().await.unwrap();
    let starts = Starts::default();
    let worker = Worker::builder(&app)
        .state(starts.clone())
        .task(DUE, due)
        .options("due", TaskOptions::new().retries(1).backoff(Backoff::fixed(Duration::from_secs(4))))
        .build()
        .unwrap();
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
    let sending = Instant::now();
    let sent = app.client().send(DUE.call(()).countdown(Duration::from_millis(5500))).await.unwrap();
    sent.wait(Duration::from_secs(60)).await.unwrap();
    let started: Vec<Duration> = starts.lock().unwrap().iter().map(|start| *start - sending).collect();
    let [first, second] = started[..] else { panic!("{started:?}") };
    assert!(first >= Duration::from_millis(5500) && first < Duration::from_millis(5600), "{first:?}");
    assert!(second >= first + Duration::from_secs(4), "{second:?}");
    let delays = broker.delays.lock().unwrap().clone();
    assert!(delays.iter().all(|delay| *delay <= MAX_DELAY), "{delays:?}");
    assert!(delays.len() >= 10, "six for the ETA, four for the retry: {delays:?}");
    stop.cancel();
    worker.await.unwrap().unwrap();
}
