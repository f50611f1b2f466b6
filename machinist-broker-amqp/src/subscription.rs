//! A subscription that survives its channels, its connections and its queues.
//!
//! Each queue has its own task and its own channel, so that a failure of one queue costs no other queue its deliveries.
//! The task waits for the connection, makes sure that the queue exists, subscribes, passes deliveries on, and starts
//! again when any of that ends. The end of a stream (queue deleted, cancel by the broker, ack timeout) is never the end
//! of the subscription.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    StreamExt as _,
    future::{join_all, try_join_all},
    stream::{BoxStream, SelectAll, once},
};
use lapin::{
    Channel,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use machinist_adapter::{
    broker::{BrokerError, Consumer, DeadLetterCause, Delivery, Message, SubscriptionHealth},
    id::QueueName,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    ack_sender::{AckSender, AmqpReceipt},
    backoff::ReconnectBackoff,
    convert, death,
    declare::DeclareError,
    error::{AmqpError, CLOSE_TIMEOUT, RPC_TIMEOUT, error_chain, rpc, rpc_within},
    health::{AmqpSubscriptionHealth, MonitoredQueue, SubscriptionStatus},
    supervisor::{ConnectionSettings, LiveConnection, SupervisedConnection},
    topology::AmqpTopology,
};

/// Number of characters of a strange routing key that are shown.
const MAX_SHOWN_KEY: usize = 80;

/// Minimum lifetime of a subscription after which the next failure starts with short waits again.
const STABLE_SUBSCRIPTION_AGE: Duration = Duration::from_secs(10);

/// Time without a delivery, and without an unsettled one, after which a subscription is made again.
///
/// RabbitMQ (seen on 3.10) does not tell a consumer of its queue's end if a queue of the same name is there again
/// some 30 ms later. The consumer is then counted at the new queue, and the deliveries of the new queue vanish in the
/// broker's channel until that is closed. No question of a client reveals it.
const IDLE_RENEWAL_PERIOD: Duration = Duration::from_secs(30);

/// Parts of the broker that its subscriptions share.
#[derive(Debug, Clone)]
pub(crate) struct SubscriptionContext {
    pub(crate) settings: Arc<ConnectionSettings>,
    pub(crate) supervised: Arc<SupervisedConnection>,
    /// Tasks that write acknowledgements.
    pub(crate) ack_senders: TaskTracker,
    pub(crate) close_ack_senders: CancellationToken,
}

/// Queue that a subscription consumes.
#[derive(Debug, Clone)]
pub(crate) enum SubscriptionSource {
    Queue(QueueName),
    DeadLetters(QueueName),
    Undelivered,
}

/// Names of a subscription's source on the broker.
#[derive(Debug)]
struct SourceNames {
    /// The queue to consume.
    queue: String,
    /// The task queue with which that queue is declared; `None` for a queue that belongs to no task queue.
    task_queue: Option<String>,
}

impl SubscriptionSource {
    fn names(&self, topology: &AmqpTopology) -> Result<SourceNames, String> {
        Ok(match self {
            Self::Queue(queue) => {
                let name = topology.queue_name(queue)?;
                SourceNames { queue: name.clone(), task_queue: Some(name) }
            }
            Self::DeadLetters(queue) => SourceNames {
                queue: topology.dead_letter_queue_name(queue)?,
                task_queue: Some(topology.queue_name(queue)?),
            },
            Self::Undelivered => SourceNames { queue: topology.undelivered(), task_queue: None },
        })
    }
}

/// Delivery on its way from a subscription's task to [`Consumer::next`].
#[derive(Debug)]
struct IncomingDelivery {
    queue: QueueName,
    message: Message,
    redelivered: bool,
    cause: Option<DeadLetterCause>,
    receipt: AmqpReceipt,
}

/// Number of deliveries of a queue that a consumer may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ConsumerCredit {
    /// Number of pauses so far. Deliveries from before the last pause use no credit.
    pauses: u64,
    given: u16,
}

/// The user's end of the subscriptions to one or more queues.
#[derive(Debug)]
pub(crate) struct AmqpConsumer {
    deliveries: mpsc::UnboundedReceiver<IncomingDelivery>,
    queues: Vec<MonitoredQueue>,
    credit: watch::Sender<ConsumerCredit>,
    /// Number of pauses that the subscription to each queue has seen.
    pauses_seen: Vec<watch::Receiver<u64>>,
    disconnects: Arc<AtomicU64>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl AmqpConsumer {
    /// Subscribes, waits for the broker's confirmation, and keeps the subscriptions up until `stop`.
    pub(crate) async fn subscribe(
        context: SubscriptionContext,
        sources: Vec<SubscriptionSource>,
        prefetch: u16,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let (delivery_sender, deliveries) = mpsc::unbounded_channel();
        let stop_on_drop = stop.clone().drop_guard();
        let disconnects = Arc::<AtomicU64>::default();
        let credit = watch::Sender::new(ConsumerCredit { pauses: 0, given: prefetch.max(1) });
        let mut pauses_seen = Vec::with_capacity(sources.len());
        let mut queues = Vec::with_capacity(sources.len());
        let mut confirms = Vec::with_capacity(sources.len());
        for source in sources {
            let names =
                source.names(&context.settings.topology).map_err(|reason| BrokerError::Refused { reason })?;
            let (confirm, confirmed) = oneshot::channel();
            let not_yet = SubscriptionStatus::Down("it has not been made yet".to_owned());
            let (status_sender, status) = watch::channel(not_yet);
            queues.push(MonitoredQueue { name: names.queue.clone(), status });
            let (seen_sender, seen) = watch::channel(0);
            pauses_seen.push(seen);
            let subscription = QueueSubscription {
                context: context.clone(),
                source,
                names,
                credit: credit.subscribe(),
                pauses_seen: seen_sender,
                deliveries: delivery_sender.clone(),
                stop: stop.clone(),
                status: status_sender,
                disconnects: Arc::clone(&disconnects),
            };
            tasks.spawn(subscription.run(confirm));
            confirms.push(async {
                confirmed.await.unwrap_or_else(|_| Err(AmqpError::closed().into_broker_error()))
            });
        }
        let consumer =
            Self { deliveries, queues, credit, pauses_seen, disconnects, _stop_on_drop: stop_on_drop, stop };
        match timeout(RPC_TIMEOUT * 2, try_join_all(confirms)).await {
            Ok(confirmed) => confirmed.map(|_| consumer),
            Err(_) => Err(AmqpError::timeout("subscribing", RPC_TIMEOUT * 2).into_broker_error()),
        }
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let delivery = self.deliveries.recv().await?;
            // A delivery of a dead channel comes again on a live one: running it twice helps nobody.
            if self.stop.is_cancelled() || delivery.receipt.is_stale() {
                continue;
            }
            return Some(Delivery {
                queue: delivery.queue,
                message: delivery.message,
                redelivered: delivery.redelivered,
                cause: delivery.cause,
                receipt: Box::new(delivery.receipt),
            });
        }
    }

    async fn add_credit(&mut self, more: u16) {
        self.credit.send_modify(|credit| credit.given = credit.given.saturating_add(more));
    }

    async fn pause(&mut self) {
        self.credit.send_modify(|credit| {
            *credit = ConsumerCredit { pauses: credit.pauses.saturating_add(1), given: 0 }
        });
        let pauses = self.credit.borrow().pauses;
        let subscribed = self.queues.iter().zip(&mut self.pauses_seen).filter(|(queue, _)| queue.is_up());
        // A subscription that ends meanwhile delivers nothing, and starts without credit.
        let paused =
            subscribed.map(|(_, seen)| async move { drop(seen.wait_for(move |seen| *seen >= pauses).await) });
        if timeout(RPC_TIMEOUT, join_all(paused)).await.is_err() {
            tracing::debug!("a consumer was not paused in time; what it still receives waits for a slot");
        }
        // Dropped receipts hand their messages back.
        while self.deliveries.try_recv().is_ok() {}
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        // Dropped receipts hand their messages back. The channel ends with the subscription's task, which
        // limits the time of each of its own waits.
        while self.deliveries.recv().await.is_some() {}
    }

    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(AmqpSubscriptionHealth::new(self.queues.clone(), Arc::clone(&self.disconnects)))
    }
}

/// Task that keeps the subscription to one queue up.
struct QueueSubscription {
    context: SubscriptionContext,
    source: SubscriptionSource,
    names: SourceNames,
    credit: watch::Receiver<ConsumerCredit>,
    pauses_seen: watch::Sender<u64>,
    deliveries: mpsc::UnboundedSender<IncomingDelivery>,
    stop: CancellationToken,
    status: watch::Sender<SubscriptionStatus>,
    /// Number of times that the subscription ended together with its channel.
    disconnects: Arc<AtomicU64>,
}

/// A channel with the subscription to one queue.
struct SubscribedChannel {
    live: Arc<LiveConnection>,
    channel: Channel,
    acks: AckSender,
    /// Consumers of the queue: one for each credit that was given since the last pause.
    consumers: SelectAll<BoxStream<'static, FromBroker>>,
    consumer_tags: Vec<ShortString>,
    /// Credit that the consumers have.
    credit: ConsumerCredit,
    credit_changes: watch::Receiver<ConsumerCredit>,
    /// Shared by the unsettled deliveries.
    unsettled: Arc<()>,
}

/// Item of a consumer's stream.
enum FromBroker {
    Delivery(Box<lapin::message::Delivery>),
    Failed(lapin::Error),
    /// The consumer has ended.
    Ended,
}

/// Reason that a subscribed channel is over.
enum SubscriptionEnd {
    /// The broker has cancelled the subscription.
    Cancelled,
    /// No delivery comes, and perhaps none ever will.
    Idle,
    Failed(AmqpError),
}

impl QueueSubscription {
    async fn run(self, confirm: oneshot::Sender<Result<(), BrokerError>>) {
        let mut confirm = Some(confirm);
        let mut backoff = ReconnectBackoff::new();
        let stop = self.stop.clone();
        loop {
            let since = Instant::now();
            match stop.run_until_cancelled(self.subscribe()).await {
                None => return,
                Some(Ok(mut subscribed)) => {
                    self.status.send_replace(SubscriptionStatus::Up(Arc::clone(&subscribed.live)));
                    if let Some(confirm) = confirm.take() {
                        // Nobody waits any more: then the consumer is dropped, and cancels `stop`.
                        let _ = confirm.send(Ok(()));
                    }
                    match stop.run_until_cancelled(self.deliver(&mut subscribed)).await {
                        None => return self.unsubscribe(subscribed).await,
                        // The consumer ends here and, once nothing is unsettled, its channel.
                        Some(SubscriptionEnd::Idle) => continue,
                        Some(SubscriptionEnd::Cancelled) => self.cancelled(&subscribed),
                        Some(SubscriptionEnd::Failed(error)) => self.failed(&error),
                    }
                }
                Some(Err(error)) => {
                    // The caller of the first subscription has its own time limit.
                    let is_transient = matches!(&error, DeclareError::Failed(error) if error.is_transient());
                    if let Some(confirm) = confirm.take_if(|_| !is_transient) {
                        let _ = confirm.send(Err(error.into()));
                        return;
                    }
                    self.not_subscribed(&error.into());
                }
            }
            if since.elapsed() > STABLE_SUBSCRIPTION_AGE {
                backoff = ReconnectBackoff::new();
            }
            if stop.run_until_cancelled(tokio::time::sleep(backoff.next())).await.is_none() {
                return;
            }
        }
    }

    fn cancelled(&self, subscribed: &SubscribedChannel) {
        let queue = &self.names.queue;
        tracing::info!(queue, "the broker ended a subscription; subscribing again");
        self.set_down("the broker has ended it".to_owned());
        // If the connection is ending too, so are all deliveries of the channel.
        if !subscribed.acks.is_open() {
            self.disconnects.fetch_add(1, Ordering::Relaxed);
        }
        self.forget_queue(&subscribed.live);
    }

    fn failed(&self, error: &AmqpError) {
        tracing::warn!(queue = self.names.queue, error = %error_chain(error), "subscribing again");
        self.set_down(error_chain(error));
        self.disconnects.fetch_add(1, Ordering::Relaxed);
        self.context.supervised.probe_now();
    }

    fn not_subscribed(&self, error: &BrokerError) {
        tracing::warn!(queue = self.names.queue, error = %error_chain(error), "not subscribed");
        self.set_down(error_chain(error));
        self.context.supervised.probe_now();
    }

    fn set_down(&self, reason: String) {
        self.status.send_replace(SubscriptionStatus::Down(reason));
    }

    fn forget_queue(&self, live: &LiveConnection) {
        live.declared.forget(self.names.task_queue.as_deref().unwrap_or(&self.names.queue));
    }

    async fn subscribe(&self) -> Result<SubscribedChannel, DeclareError> {
        let live = self.context.supervised.current().await.map_err(DeclareError::Failed)?;
        live.declared.for_subscription(&live.connection, self.names.task_queue.as_deref()).await?;
        let channel = live.connection.open_channel().await.map_err(DeclareError::Failed)?;
        let (acks, work) = AckSender::open(channel.clone(), self.context.close_ack_senders.clone());
        self.context.ack_senders.spawn(work);
        let mut credit_changes = self.credit.clone();
        let pauses = credit_changes.borrow_and_update().pauses;
        let mut subscribed = SubscribedChannel {
            live,
            channel,
            acks,
            consumers: SelectAll::new(),
            consumer_tags: Vec::new(),
            credit: ConsumerCredit { pauses, given: 0 },
            credit_changes,
            unsettled: Arc::new(()),
        };
        let added = self.follow_credit(&mut subscribed).await;
        added.map_err(|error| self.consume_error(&subscribed.live, error))?;
        Ok(subscribed)
    }

    /// Gives the consumers of a channel the credit that they should have: after a pause none, and then one more consumer
    /// for each addition. RabbitMQ limits the deliveries of each consumer separately (and denies limits of a whole channel
    /// from 4.3 on), and a limit cannot be changed.
    async fn follow_credit(&self, subscribed: &mut SubscribedChannel) -> Result<(), AmqpError> {
        let wanted = *subscribed.credit_changes.borrow_and_update();
        if wanted.pauses != subscribed.credit.pauses {
            subscribed.cancel_consumers().await?;
            subscribed.credit = ConsumerCredit { pauses: wanted.pauses, given: 0 };
        }
        let more = wanted.given.saturating_sub(subscribed.credit.given);
        if more > 0 {
            let limit = subscribed.channel.basic_qos(more, BasicQosOptions::default());
            rpc("limiting deliveries", limit).await?;
            let name = ShortString::try_new(self.names.queue.as_str()).unwrap_or_default();
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consume = subscribed.channel.basic_consume(name, "".into(), options, arguments);
            let consumer = rpc("subscribing", consume).await?;
            subscribed.consumer_tags.push(consumer.tag());
            let items = consumer.map(|item| match item {
                Ok(delivery) => FromBroker::Delivery(Box::new(delivery)),
                Err(error) => FromBroker::Failed(error),
            });
            subscribed.consumers.push(items.chain(once(async { FromBroker::Ended })).boxed());
            subscribed.credit.given = wanted.given;
        }
        self.pauses_seen.send_replace(wanted.pauses);
        Ok(())
    }

    /// Explains why the broker refused the subscription.
    fn consume_error(&self, live: &LiveConnection, error: AmqpError) -> DeclareError {
        let queue = &self.names.queue;
        match error.server_error() {
            Some(reply) if reply.says_missing() => {
                self.forget_queue(live);
                DeclareError::missing(format!("queue {queue}"))
            }
            Some(reply) if reply.code == 403 => DeclareError::Refused {
                reason: format!(
                    "this user may not consume queue {queue} ({}); grant read on it, or end its exclusive consumer",
                    reply.text
                ),
            },
            _ => DeclareError::Failed(error),
        }
    }

    /// Passes deliveries on until no more come.
    async fn deliver(&self, subscribed: &mut SubscribedChannel) -> SubscriptionEnd {
        let mut last_delivery = Instant::now();
        loop {
            tokio::select! {
                Some(item) = subscribed.consumers.next() => match item {
                    FromBroker::Delivery(delivery) => {
                        last_delivery = Instant::now();
                        self.pass_on(subscribed, *delivery);
                    }
                    FromBroker::Failed(error) => {
                        return SubscriptionEnd::Failed(AmqpError::lapin("consuming", error));
                    }
                    FromBroker::Ended => return SubscriptionEnd::Cancelled,
                },
                // The sender lives as long as the consumer, whose end cancels `stop`.
                Ok(()) = subscribed.credit_changes.changed() => {
                    if let Err(error) = self.follow_credit(subscribed).await {
                        return SubscriptionEnd::Failed(error);
                    }
                }
                () = sleep_until(last_delivery + IDLE_RENEWAL_PERIOD) => {
                    // While deliveries are unsettled, the prefetch limit may be the reason that none come.
                    if subscribed.credit.given > 0 && Arc::strong_count(&subscribed.unsettled) == 1 {
                        return SubscriptionEnd::Idle;
                    }
                    last_delivery = Instant::now();
                }
            }
        }
    }

    fn pass_on(&self, subscribed: &mut SubscribedChannel, delivery: lapin::message::Delivery) {
        let receipt = subscribed.acks.receipt(delivery.delivery_tag, &subscribed.unsettled);
        let key = delivery.routing_key.as_str();
        let queue = match &self.source {
            SubscriptionSource::Queue(queue) | SubscriptionSource::DeadLetters(queue) => Some(queue.clone()),
            SubscriptionSource::Undelivered => self.context.settings.topology.queue_of_due_message(key),
        };
        let names_none = queue.is_none();
        // Nothing is sent to a queue of this name: the cause says that there is none.
        let Some(queue) = queue.or_else(|| QueueName::parse("undelivered").ok()) else { return };
        let cause = match (&self.source, &self.names.task_queue) {
            _ if names_none => {
                let key: String = key.chars().take(MAX_SHOWN_KEY).collect();
                Some(DeadLetterCause::Other(format!(
                    "its routing key {key:?} names no queue of this namespace"
                )))
            }
            (SubscriptionSource::DeadLetters(_), Some(queue)) => death::cause(&delivery.properties, queue),
            _ => None,
        };
        let incoming = IncomingDelivery {
            queue,
            cause,
            message: convert::message(&delivery.properties, delivery.data),
            redelivered: delivery.redelivered,
            receipt,
        };
        // If the consumer is gone, the dropped receipt hands the message back.
        let _ = self.deliveries.send(incoming);
    }

    /// Ends the subscription and hands back the deliveries that nobody has taken.
    async fn unsubscribe(self, mut subscribed: SubscribedChannel) {
        if let Err(error) = subscribed.cancel_consumers().await {
            let queue = &self.names.queue;
            tracing::debug!(queue, error = %error_chain(&error), "a subscription did not end by itself");
            // When the channel closes, the broker hands its deliveries back.
            let close = subscribed.channel.close(200, "abandoned".into());
            if subscribed.channel.status().connected()
                && rpc_within(CLOSE_TIMEOUT, "closing a channel", close).await.is_err()
            {
                subscribed.live.connection.abort();
            }
        }
    }
}

impl SubscribedChannel {
    /// Ends all consumers, and hands back the deliveries that nobody has taken.
    async fn cancel_consumers(&mut self) -> Result<(), AmqpError> {
        const OPERATION: &str = "ending a subscription";
        for tag in std::mem::take(&mut self.consumer_tags) {
            let cancel = self.channel.basic_cancel(tag, BasicCancelOptions::default());
            rpc_within(CLOSE_TIMEOUT, OPERATION, cancel).await?;
        }
        let rest = async {
            while let Some(item) = self.consumers.next().await {
                if let FromBroker::Delivery(delivery) = item {
                    drop(self.acks.receipt(delivery.delivery_tag, &self.unsettled));
                }
            }
        };
        // The cancels end the streams.
        timeout(CLOSE_TIMEOUT, rest).await.map_err(|_| AmqpError::timeout(OPERATION, CLOSE_TIMEOUT))
    }
}
