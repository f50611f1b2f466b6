//! The broker itself: two connections, a few publishers, and the methods of the broker seam.

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
use machinist_adapter::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, HeldCounts, PeekedMessage, Publish,
        PublishError, QueueDeletion, QueueDepth, SideQueue,
    },
    diagnose::Finding,
    id::QueueName,
};
use tokio::{
    sync::{OnceCell, mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connect,
    depth::{DepthReader, MissingQueues},
    endpoint::Addresses,
    error::{AmqpError, CLOSE_TIMEOUT},
    ladder::{LADDER_LEVELS, MAX_DELAY},
    options::AmqpOptions,
    pending_publish::PendingPublish,
    publisher::Publisher,
    subscription::{AmqpConsumer, SubscriptionContext, SubscriptionSource},
    supervisor::{ConnectionSettings, SupervisedConnection},
    topology::AmqpTopology,
    upkeep_state::UpkeepState,
};

/// Number of groups of publishers. Each queue belongs to one group, so a slow queue holds up only its group.
const PUBLISHER_GROUPS: usize = 4;

/// Number of publishers in a group: while one waits for its confirms, the other sends.
const PUBLISHERS_PER_GROUP: usize = 2;

/// A [`Broker`] over RabbitMQ.
///
/// Dropped without [`close`](Broker::close), it ends its tasks and connections in the background: messages whose
/// publishers have no result yet may be queued or not, and unsettled deliveries come again.
pub struct AmqpBroker {
    pub(crate) settings: Arc<ConnectionSettings>,
    publish_deadline: Duration,
    pub(crate) publishing: Arc<SupervisedConnection>,
    consuming: OnceCell<Arc<SupervisedConnection>>,
    pub(crate) missing: MissingQueues,
    pub(crate) upkeep: UpkeepState,
    /// Senders to the publishers. `None` once closed: the publishers end when every caller has a result.
    publishers: Mutex<Option<Vec<mpsc::UnboundedSender<PendingPublish>>>>,
    /// Number of calls of publish, each of which uses the other publisher of a queue's group.
    calls: AtomicUsize,
    /// Tasks of the publishers and subscriptions.
    tasks: TaskTracker,
    closing: CancellationToken,
    /// Tasks that write acknowledgements. They outlive the subscriptions, so that every promised one is still written.
    ack_senders: TaskTracker,
    close_ack_senders: CancellationToken,
}

impl AmqpBroker {
    /// Connects to `amqp[s]://USER:PASSWORD@HOST:PORT/VHOST` in one attempt of about 10 s. Afterwards the
    /// connection heals itself. Several URLs, separated by commas, name the nodes of one cluster. Each address of each
    /// name gets an equal share of the attempt, at least 2 s, and one that failed is tried last. `amqps://HOST/VHOST?auth_mechanism=external` logs in as the user that the certificate of
    /// [`AmqpOptions::tls`] names, which requires RabbitMQ's plugin `rabbitmq_auth_mechanism_ssl`.
    ///
    /// Must be called within a tokio runtime, which then runs the adapter's tasks. Each connection costs one thread.
    ///
    /// # Errors
    /// [`BrokerError::Configuration`] for a wrong URL or option, [`BrokerError::Refused`] for wrong credentials
    /// or a wrong vhost, [`BrokerError::Unavailable`] if the broker does not answer.
    ///
    /// # Cancel safety
    /// A dropped future ends the attempt.
    pub async fn connect(url: &str, options: AmqpOptions) -> Result<Self, BrokerError> {
        options.check()?;
        let topology = AmqpTopology::new(&options);
        let publish_deadline = options.publish_deadline;
        let max_message_size = options.max_message_size;
        let addresses = Addresses::parse(url, options.loopback_only)?;
        let external = addresses.iter().find(|address| address.external());
        if let Some(address) = external.filter(|_| options.tls.identity().is_none()) {
            return Err(BrokerError::Configuration(format!(
                "broker {address} logs in by certificate (auth_mechanism=external), and there is none; name it and its \
                 key by cert_file and key_file under [tls]"
            )));
        }
        let settings = Arc::new(ConnectionSettings {
            addresses,
            tls: options.tls,
            connection_name: options.connection_name,
            topology,
            topology_mode: options.topology,
            management_port: options.management_port,
        });
        // On the heap: the future that opens a connection takes many KB, which would be part of the caller's future.
        let publishing = match Box::pin(SupervisedConnection::open(Arc::clone(&settings), "publishing")).await
        {
            Ok(publishing) => Arc::new(publishing),
            Err(failed) => {
                return Err(Box::pin(connect::explain(failed, &settings.tls)).await);
            }
        };
        let tasks = TaskTracker::new();
        let start_publisher = |_| {
            let (sender, calls) = mpsc::unbounded_channel();
            let settings = Arc::clone(&settings);
            let publisher = Publisher::new(settings, max_message_size, Arc::clone(&publishing), calls);
            tasks.spawn(publisher.run());
            sender
        };
        let publishers = (0..PUBLISHER_GROUPS * PUBLISHERS_PER_GROUP).map(start_publisher).collect();
        Ok(Self {
            settings,
            publish_deadline,
            publishing,
            consuming: OnceCell::new(),
            missing: MissingQueues::default(),
            upkeep: UpkeepState::default(),
            publishers: Mutex::new(Some(publishers)),
            calls: AtomicUsize::new(0),
            tasks,
            closing: CancellationToken::new(),
            ack_senders: TaskTracker::new(),
            close_ack_senders: CancellationToken::new(),
        })
    }

    /// Connection for everything except publishing, opened at the first call.
    pub(crate) async fn consuming(&self) -> Result<&Arc<SupervisedConnection>, BrokerError> {
        if self.closing.is_cancelled() {
            return Err(AmqpError::closed().into_broker_error());
        }
        let open = || async {
            Box::pin(SupervisedConnection::open(Arc::clone(&self.settings), "consuming")).await.map(Arc::new)
        };
        match self.consuming.get_or_try_init(open).await {
            Ok(consuming) => Ok(consuming),
            Err(failed) => Err(Box::pin(connect::explain(failed, &self.settings.tls)).await),
        }
    }

    async fn subscribe(
        &self,
        sources: Vec<SubscriptionSource>,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let context = SubscriptionContext {
            settings: Arc::clone(&self.settings),
            supervised: Arc::clone(self.consuming().await?),
            ack_senders: self.ack_senders.clone(),
            close_ack_senders: self.close_ack_senders.clone(),
        };
        let stop = self.closing.child_token();
        let consumer = AmqpConsumer::subscribe(context, sources, prefetch, &self.tasks, stop);
        Ok(Box::new(Box::pin(consumer).await?))
    }

    /// Hands messages to their publishers; those of one call that go to one queue to the same publisher, so that they keep
    /// their order. Returns the receivers of their results, in the same order; `None` once the broker is closed.
    fn enqueue(&self, batch: Vec<Publish>) -> Vec<Option<oneshot::Receiver<Result<(), PublishError>>>> {
        let deadline = Instant::now() + self.publish_deadline;
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let publishers = self.publishers.lock().unwrap_or_else(PoisonError::into_inner);
        let send = |publish: Publish| {
            let publisher = publishers.as_ref()?.get(publisher_of(publish.target.queue(), call))?;
            let (caller, result) = oneshot::channel();
            publisher.send(PendingPublish::new(publish, deadline, caller)).ok()?;
            Some(result)
        };
        batch.into_iter().map(send).collect()
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    fn realm(&self) -> String {
        self.settings.addresses.vhost().to_owned()
    }

    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { durable: true, shared: true, priority: false, max_delay: Some(MAX_DELAY) }
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        let pending = self.enqueue(batch);
        let mut results = Vec::with_capacity(pending.len());
        for result in pending {
            results.push(match result {
                None => Err(PublishError::Unavailable(Box::new(AmqpError::closed()))),
                // A publisher that gave no result ended with its runtime: it may have sent the message.
                Some(result) => {
                    result.await.unwrap_or_else(|_| Err(PublishError::Unknown(Box::new(AmqpError::closed()))))
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
        let topology = &self.settings.topology;
        let mut reader =
            DepthReader::new(&self.settings, &self.missing, self.consuming().await?.current_in_time().await?);
        let mut depths = Vec::with_capacity(queues.len());
        for queue in queues {
            let refused = |reason| BrokerError::Refused { reason };
            let name = topology.queue_name(queue).map_err(refused)?;
            let reading = reader.read(&name).await.map_err(AmqpError::into_broker_error)?;
            let name = topology.dead_letter_queue_name(queue).map_err(refused)?;
            let dead_letters = reader.read(&name).await.map_err(AmqpError::into_broker_error)?;
            depths.push(QueueDepth {
                queue: queue.clone(),
                ready: reading.map(|reading| reading.ready),
                consumers: reading.map(|reading| reading.consumers),
                dead: dead_letters.map(|reading| reading.ready),
            });
        }
        Ok(depths)
    }

    async fn held(&self, queues: &[QueueName]) -> Result<Vec<HeldCounts>, BrokerError> {
        Box::pin(self.unsettled(queues)).await
    }

    async fn peek(&self, queue: &QueueName, limit: u16) -> Result<Option<Vec<PeekedMessage>>, BrokerError> {
        Box::pin(self.look(queue, limit)).await.map(Some)
    }

    async fn delete_queue(&self, queue: &QueueName) -> Result<QueueDeletion, BrokerError> {
        Box::pin(self.delete_if_empty(queue)).await
    }

    async fn prepare(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        let live = self.consuming().await?.current_in_time().await?;
        for queue in queues {
            let name =
                self.settings.topology.queue_name(queue).map_err(|reason| BrokerError::Refused { reason })?;
            live.declared.for_delay(&live.connection, &name, LADDER_LEVELS - 1).await?;
            live.declared.for_publish(&live.connection, &name).await?;
        }
        Ok(())
    }

    async fn maintain(&self) -> Result<Vec<Finding>, BrokerError> {
        Box::pin(self.upkeep()).await
    }

    async fn close(&self) {
        self.closing.cancel();
        self.publishers.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.tasks.close();
        self.tasks.wait().await;
        self.close_ack_senders.cancel();
        self.ack_senders.close();
        // A delivery whose acknowledgement is not written by then comes again.
        let _ = timeout(CLOSE_TIMEOUT, self.ack_senders.wait()).await;
        self.missing.close().await;
        if let Some(consuming) = self.consuming.get() {
            consuming.close().await;
        }
        self.publishing.close().await;
    }
}

impl Drop for AmqpBroker {
    fn drop(&mut self) {
        self.closing.cancel();
        self.close_ack_senders.cancel();
    }
}

impl fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpBroker").field("addresses", &self.settings.addresses).finish_non_exhaustive()
    }
}

/// Index of the publisher for a queue and a call.
fn publisher_of(queue: &QueueName, call: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    queue.hash(&mut hasher);
    let group = usize::try_from(hasher.finish() % PUBLISHER_GROUPS as u64).unwrap_or_default();
    group * PUBLISHERS_PER_GROUP + call % PUBLISHERS_PER_GROUP
}
