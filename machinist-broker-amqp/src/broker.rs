//! The broker itself: two links, a few lanes, and the seam's methods over them.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use machinist_core::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Publish, PublishError, QueueDepth,
        SideQueue,
    },
    id::QueueName,
};
use tokio::{
    sync::{OnceCell, mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    address::Address,
    connect,
    depth::DepthReader,
    error::{AmqpError, CLOSE_TIMEOUT, RPC_TIMEOUT},
    ladder::LADDER_LEVELS,
    options::AmqpOptions,
    publisher::{PendingPublish, Publisher},
    subscription::{AmqpConsumer, SubscriptionContext, SubscriptionSource},
    supervisor::{ConnectionSettings, LiveConnection, SupervisedConnection},
    topology::AmqpTopology,
};

/// How many queues can be slow without holding up the others.
const PUBLISHER_GROUPS: usize = 4;
/// The lanes of a queue: while one waits for its confirms, the other sends.
const PUBLISHERS_PER_GROUP: usize = 2;

/// A [`Broker`] over RabbitMQ.
///
/// Dropped without [`close`](Broker::close) it ends what it holds in the background: messages that no publisher
/// has heard of may or may not be queued, and unsettled deliveries come again.
pub struct AmqpBroker {
    pub(crate) settings: Arc<ConnectionSettings>,
    publish_deadline: Duration,
    pub(crate) publishing: Arc<SupervisedConnection>,
    consuming: OnceCell<Arc<SupervisedConnection>>,
    /// `None` once closed: the lanes end when they have answered everybody.
    lanes: Mutex<Option<Vec<mpsc::UnboundedSender<PendingPublish>>>>,
    /// Counts calls of publish, each of which takes the other lane.
    calls: AtomicUsize,
    /// The lanes and the subscriptions.
    tasks: TaskTracker,
    closing: CancellationToken,
    /// What writes settlements. Outlives the subscriptions, so that what was promised is still written.
    desks: TaskTracker,
    desks_close: CancellationToken,
}

impl AmqpBroker {
    /// Connects to `amqp[s]://USER:PASSWORD@HOST:PORT/VHOST` in one attempt of at most 10 s. Afterwards the
    /// connection heals itself. `amqps://HOST/VHOST?auth_mechanism=external` logs in as whom the certificate of
    /// [`AmqpOptions::tls`] names, which takes RabbitMQ's plugin `rabbitmq_auth_mechanism_ssl`.
    ///
    /// Must be called within a tokio runtime, which then carries the adapter's tasks. Each connection costs one
    /// thread of its own.
    ///
    /// # Errors
    /// [`BrokerError::Configuration`] for a wrong URL or option, [`BrokerError::Refused`] for wrong credentials
    /// or a wrong vhost, [`BrokerError::Unavailable`] when nobody answers.
    ///
    /// # Cancel safety
    /// A dropped future ends the attempt.
    pub async fn connect(url: &str, options: AmqpOptions) -> Result<Self, BrokerError> {
        options.check()?;
        let plan = AmqpTopology::new(&options);
        let AmqpOptions { topology, publish_deadline, max_message_size, connection_name, tls, .. } = options;
        let address = Address::parse(url)?;
        if address.external() && tls.identity().is_none() {
            return Err(BrokerError::Configuration(format!(
                "broker {address} logs in by certificate (auth_mechanism=external), and there is none; name it and its \
                 key by cert_file and key_file under [tls]"
            )));
        }
        let settings = Arc::new(ConnectionSettings { address, tls, connection_name, plan, topology });
        // On the heap: opening a connection weighs many KB, and callers await this as part of what they do.
        let publishing = match Box::pin(SupervisedConnection::open(Arc::clone(&settings), "publishing")).await
        {
            Ok(link) => Arc::new(link),
            Err(trouble) => {
                return Err(Box::pin(connect::explain(trouble, &settings.address, &settings.tls)).await);
            }
        };
        let tasks = TaskTracker::new();
        let lane = |_| {
            let (send, jobs) = mpsc::unbounded_channel();
            let lane = Publisher::new(Arc::clone(&settings), max_message_size, Arc::clone(&publishing), jobs);
            tasks.spawn(lane.run());
            send
        };
        let lanes = Mutex::new(Some((0..PUBLISHER_GROUPS * PUBLISHERS_PER_GROUP).map(lane).collect()));
        Ok(Self {
            settings,
            publish_deadline,
            publishing,
            consuming: OnceCell::new(),
            lanes,
            calls: AtomicUsize::new(0),
            tasks,
            closing: CancellationToken::new(),
            desks: TaskTracker::new(),
            desks_close: CancellationToken::new(),
        })
    }

    /// The connection for everything but publishing.
    pub(crate) async fn consuming(&self) -> Result<&Arc<SupervisedConnection>, BrokerError> {
        if self.closing.is_cancelled() {
            return Err(AmqpError::closed().into_broker_error());
        }
        let open = || async {
            Box::pin(SupervisedConnection::open(Arc::clone(&self.settings), "consuming")).await.map(Arc::new)
        };
        match self.consuming.get_or_try_init(open).await {
            Ok(link) => Ok(link),
            Err(trouble) => {
                Err(Box::pin(connect::explain(trouble, &self.settings.address, &self.settings.tls)).await)
            }
        }
    }

    async fn subscribe(
        &self,
        sources: Vec<SubscriptionSource>,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let link = Arc::clone(self.consuming().await?);
        let ground = SubscriptionContext {
            settings: Arc::clone(&self.settings),
            link,
            desks: self.desks.clone(),
            desks_close: self.desks_close.clone(),
        };
        let stop = self.closing.child_token();
        let consumer = AmqpConsumer::subscribe(ground, sources, prefetch, &self.tasks, stop);
        Ok(Box::new(Box::pin(consumer).await?))
    }

    /// Hands messages to their lanes; those of one call that go to one queue to the same lane, so that they keep their
    /// order. In their order, the answers to come; `None` where there is no lane.
    fn enqueue(&self, batch: Vec<Publish>) -> Vec<Option<oneshot::Receiver<Result<(), PublishError>>>> {
        let deadline = Instant::now() + self.publish_deadline;
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let send = |publish: Publish| {
            let lane = lane_of(publish.target.queue(), call);
            let (caller, answer) = oneshot::channel();
            lanes.as_ref()?.get(lane)?.send(PendingPublish::new(publish, deadline, caller)).ok()?;
            Some(answer)
        };
        batch.into_iter().map(send).collect()
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { durable: true, shared: true, priority: false }
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        let answers = self.enqueue(batch);
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(match answer {
                None => Err(PublishError::Unavailable(Box::new(AmqpError::closed()))),
                // A lane that is gone without an answer ended with its runtime: perhaps it had sent this.
                Some(answer) => {
                    answer.await.unwrap_or_else(|_| Err(PublishError::Unknown(Box::new(AmqpError::closed()))))
                }
            });
        }
        results
    }

    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        if what.queues.is_empty() {
            return Err(BrokerError::Configuration(
                "queues is empty; name at least one queue to consume".to_owned(),
            ));
        }
        self.subscribe(what.queues.into_iter().map(SubscriptionSource::Queue).collect(), what.prefetch).await
    }

    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        let source = match from {
            SideQueue::DeadLetters(queue) => SubscriptionSource::DeadLetters(queue),
            SideQueue::Undelivered => SubscriptionSource::Undelivered,
        };
        self.subscribe(vec![source], prefetch).await.map(Some)
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        let link = self.consuming().await?;
        let live = up_soon(link).await?;
        let mut gauge = DepthReader::new(live);
        let mut depths = Vec::with_capacity(queues.len());
        for queue in queues {
            let name = |name: Result<String, String>| name.map_err(|reason| BrokerError::Refused { reason });
            let ready = gauge
                .read(&name(self.settings.plan.queue(queue))?)
                .await
                .map_err(AmqpError::into_broker_error)?;
            let dead = gauge
                .read(&name(self.settings.plan.dead_letters(queue))?)
                .await
                .map_err(AmqpError::into_broker_error)?;
            depths.push(QueueDepth {
                queue: queue.clone(),
                ready: ready.map(|level| level.ready),
                consumers: ready.map(|level| level.consumers),
                dead: dead.map(|level| level.ready),
            });
        }
        Ok(depths)
    }

    async fn prepare(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        let live = up_soon(self.consuming().await?).await?;
        for queue in queues {
            let name = self.settings.plan.queue(queue).map_err(|reason| BrokerError::Refused { reason })?;
            live.declared.for_delay(&live, &name, LADDER_LEVELS - 1).await?;
            live.declared.for_publish(&live, &name).await?;
        }
        Ok(())
    }

    async fn close(&self) {
        self.closing.cancel();
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.tasks.close();
        self.tasks.wait().await;
        self.desks_close.cancel();
        self.desks.close();
        // What is not written by then is delivered again.
        let _ = timeout(CLOSE_TIMEOUT, self.desks.wait()).await;
        if let Some(consuming) = self.consuming.get() {
            consuming.close().await;
        }
        self.publishing.close().await;
    }
}

impl Drop for AmqpBroker {
    fn drop(&mut self) {
        self.closing.cancel();
        self.desks_close.cancel();
    }
}

impl fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpBroker").field("address", &self.settings.address).finish_non_exhaustive()
    }
}

fn lane_of(queue: &QueueName, call: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    queue.hash(&mut hasher);
    let track = usize::try_from(hasher.finish() % PUBLISHER_GROUPS as u64).unwrap_or_default();
    track * PUBLISHERS_PER_GROUP + call % PUBLISHERS_PER_GROUP
}

/// The present connection, if there is one soon.
pub(crate) async fn up_soon(link: &SupervisedConnection) -> Result<Arc<LiveConnection>, BrokerError> {
    match timeout(RPC_TIMEOUT, link.up()).await {
        Ok(live) => live.map_err(AmqpError::into_broker_error),
        Err(_) => Err(AmqpError::silence("waiting for a connection", RPC_TIMEOUT).into_broker_error()),
    }
}
