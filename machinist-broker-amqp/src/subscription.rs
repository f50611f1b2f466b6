//! A subscription that outlives its channels, its connections and its queues.
//!
//! Each queue has a task and a channel of its own, so that what happens to one costs no other its deliveries. The
//! task waits for the connection, makes sure that the queue is there, subscribes, passes on what comes, and begins
//! again when any of that ends. The end of a stream (queue deleted, broker's cancel, ack timeout) is never the end
//! of the subscription.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, future::try_join_all};
use lapin::{
    Channel,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use machinist_core::{
    broker::{BrokerError, Consumer, Delivery, Message, SubscriptionHealth},
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
    convert,
    declare::DeclareError,
    error::{AmqpError, CLOSE_TIMEOUT, RPC_TIMEOUT, rpc, within},
    health::AmqpSubscriptionHealth,
    supervisor::{ConnectionSettings, LiveConnection, SupervisedConnection, chain},
    topology::AmqpTopology,
};

/// A subscription that has held this long was a good one: the next failure begins with short pauses again.
const STABLE_SUBSCRIPTION_AGE: Duration = Duration::from_secs(10);

/// After this long without a delivery, and with none unsettled, a subscription is made anew.
///
/// RabbitMQ (seen on 3.10) does not tell a consumer of its queue's end if a queue of the same name is there again
/// some 30 ms later. The consumer is then counted at the new queue, and what the new queue gives it vanishes in
/// the broker's channel until that is closed. Nothing that a client can ask shows it.
const IDLE_RENEWAL_PERIOD: Duration = Duration::from_secs(30);

/// Everything a subscription needs from its broker.
#[derive(Debug, Clone)]
pub(crate) struct SubscriptionContext {
    pub(crate) settings: Arc<ConnectionSettings>,
    pub(crate) link: Arc<SupervisedConnection>,
    pub(crate) desks: TaskTracker,
    pub(crate) desks_close: CancellationToken,
}

/// What a subscription is to.
#[derive(Debug, Clone)]
pub(crate) enum SubscriptionSource {
    Queue(QueueName),
    DeadLetters(QueueName),
    Undelivered,
}

impl SubscriptionSource {
    /// What it is called on the broker; and the task queue without which it is not there, if it belongs to one.
    fn names(&self, plan: &AmqpTopology) -> Result<(String, Option<String>), String> {
        match self {
            Self::Queue(queue) => plan.queue(queue).map(|name| (name.clone(), Some(name))),
            Self::DeadLetters(queue) => Ok((plan.dead_letters(queue)?, Some(plan.queue(queue)?))),
            Self::Undelivered => Ok((plan.undelivered(), None)),
        }
    }
}

/// What `next` hands out.
#[derive(Debug)]
struct IncomingDelivery {
    queue: QueueName,
    message: Message,
    redelivered: bool,
    receipt: AmqpReceipt,
}

/// The holder's end of a subscription.
#[derive(Debug)]
pub(crate) struct AmqpConsumer {
    incoming: mpsc::UnboundedReceiver<IncomingDelivery>,
    standings: Vec<(String, watch::Receiver<SubscriptionStatus>)>,
    disconnects: Arc<AtomicU64>,
    stop: CancellationToken,
    _ends_with_us: DropGuard,
}

impl AmqpConsumer {
    /// Subscribes, and keeps it up until `stop`. Waits for the broker's confirmation.
    pub(crate) async fn subscribe(
        ground: SubscriptionContext,
        sources: Vec<SubscriptionSource>,
        prefetch: u16,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let (deliver, incoming) = mpsc::unbounded_channel();
        let ends_with_us = stop.clone().drop_guard();
        let disconnects = Arc::<AtomicU64>::default();
        let mut standings = Vec::with_capacity(sources.len());
        let mut confirms = Vec::with_capacity(sources.len());
        for source in sources {
            let names = source.names(&ground.settings.plan);
            let (queue, declared) = names.map_err(|reason| BrokerError::Refused { reason })?;
            let (confirm, confirmed) = oneshot::channel();
            let (standing, stands) =
                watch::channel(SubscriptionStatus::Down("it has not been made yet".to_owned()));
            standings.push((queue.clone(), stands));
            let (ground, deliver, stop, prefetch) =
                (ground.clone(), deliver.clone(), stop.clone(), prefetch.max(1));
            let disconnects = Arc::clone(&disconnects);
            let subscription = QueueSubscription {
                ground,
                source,
                queue,
                declared,
                prefetch,
                deliver,
                stop,
                standing,
                disconnects,
            };
            tasks.spawn(subscription.run(confirm));
            confirms.push(async {
                confirmed.await.unwrap_or_else(|_| Err(AmqpError::closed().into_broker_error()))
            });
        }
        let consumer = Self { incoming, standings, disconnects, _ends_with_us: ends_with_us, stop };
        match timeout(RPC_TIMEOUT * 2, try_join_all(confirms)).await {
            Ok(confirmed) => confirmed.map(|_| consumer),
            Err(_) => Err(AmqpError::silence("subscribing", RPC_TIMEOUT * 2).into_broker_error()),
        }
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let IncomingDelivery { queue, message, redelivered, receipt } = self.incoming.recv().await?;
            // What a dead channel delivered comes again on a live one: running it twice helps nobody.
            if self.stop.is_cancelled() || receipt.is_stale() {
                continue;
            }
            return Some(Delivery { queue, message, redelivered, receipt: Box::new(receipt) });
        }
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        // Dropped receipts hand their messages back. The channel ends with the subscription's task, which
        // bounds every wait of its own.
        while self.incoming.recv().await.is_some() {}
    }

    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(AmqpSubscriptionHealth::new(self.standings.clone(), Arc::clone(&self.disconnects)))
    }
}

/// How the subscription to one queue stands.
#[derive(Debug, Clone)]
pub(crate) enum SubscriptionStatus {
    /// The broker has confirmed it, on this connection.
    Up(Arc<LiveConnection>),
    /// It is being made, for the first time or again, after this.
    Down(String),
}

/// The task of one queue.
struct QueueSubscription {
    ground: SubscriptionContext,
    source: SubscriptionSource,
    /// What it is called on the broker.
    queue: String,
    /// The task queue that it belongs to, as the broker calls it.
    declared: Option<String>,
    prefetch: u16,
    deliver: mpsc::UnboundedSender<IncomingDelivery>,
    stop: CancellationToken,
    standing: watch::Sender<SubscriptionStatus>,
    /// Counts its ends that were those of a channel.
    disconnects: Arc<AtomicU64>,
}

/// A subscribed channel.
struct SubscribedChannel {
    live: Arc<LiveConnection>,
    channel: Channel,
    desk: AckSender,
    consumer: lapin::Consumer,
    /// Shared by the unsettled deliveries.
    held: Arc<()>,
    /// What nobody here can do anything about: handed back, it would come again at once.
    strangers: Vec<AmqpReceipt>,
}

/// Why a session is over.
enum SubscriptionEnd {
    /// The broker has ended the subscription.
    Cancelled,
    /// Nothing comes, and perhaps nothing ever will.
    Idle,
    Broken(AmqpError),
}

impl QueueSubscription {
    async fn run(self, confirm: oneshot::Sender<Result<(), BrokerError>>) {
        let mut confirm = Some(confirm);
        let mut backoff = ReconnectBackoff::new();
        let stop = self.stop.clone();
        loop {
            let since = Instant::now();
            match stop.run_until_cancelled(self.begin()).await {
                None => return,
                Some(Ok(mut session)) => {
                    self.standing.send_replace(SubscriptionStatus::Up(Arc::clone(&session.live)));
                    if let Some(confirm) = confirm.take() {
                        // Nobody waits any more: then the consumer is dropped, and with it goes `stop`.
                        let _ = confirm.send(Ok(()));
                    }
                    match stop.run_until_cancelled(self.pump(&mut session)).await {
                        None => return self.end(session).await,
                        // With the session go its consumer and, once nothing is unsettled, its channel.
                        Some(SubscriptionEnd::Idle) => continue,
                        Some(SubscriptionEnd::Cancelled) => {
                            tracing::info!(
                                queue = self.queue,
                                "the broker ended a subscription; subscribing again"
                            );
                            self.is_down("the broker has ended it".to_owned());
                            // Cancelled by a connection that ends, it is the end of all that was delivered on it.
                            if !session.desk.is_open() {
                                self.disconnects.fetch_add(1, Ordering::Relaxed);
                            }
                            session.live.declared.forget(self.declared.as_deref().unwrap_or(&self.queue));
                        }
                        Some(SubscriptionEnd::Broken(trouble)) => {
                            tracing::warn!(queue = self.queue, error = %chain(&trouble), "subscribing again");
                            self.is_down(chain(&trouble));
                            self.disconnects.fetch_add(1, Ordering::Relaxed);
                            self.ground.link.suspect();
                        }
                    }
                }
                Some(Err(obstruction)) => {
                    // Whoever waits for the first subscription has a limit of its own.
                    let passes = matches!(&obstruction, DeclareError::Broken(trouble) if trouble.passes());
                    if let Some(confirm) = confirm.take_if(|_| !passes) {
                        let _ = confirm.send(Err(obstruction.into()));
                        return;
                    }
                    let error = BrokerError::from(obstruction);
                    tracing::warn!(queue = self.queue, error = %chain(&error), "not subscribed");
                    self.is_down(chain(&error));
                    self.ground.link.suspect();
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

    fn is_down(&self, why: String) {
        self.standing.send_replace(SubscriptionStatus::Down(why));
    }

    async fn begin(&self) -> Result<SubscribedChannel, DeclareError> {
        let live = self.ground.link.up().await.map_err(DeclareError::Broken)?;
        live.declared.for_subscription(&live, self.declared.as_deref()).await?;
        let channel = live.channel().await.map_err(DeclareError::Broken)?;
        // Per consumer, not per channel: global limits are denied from RabbitMQ 4.3 on.
        let limit = channel.basic_qos(self.prefetch, BasicQosOptions::default());
        rpc("limiting deliveries", limit).await.map_err(DeclareError::Broken)?;
        let name = ShortString::try_new(self.queue.as_str()).unwrap_or_default();
        let consume =
            channel.basic_consume(name, "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = rpc("subscribing", consume).await.map_err(|trouble| self.refusal(&live, trouble))?;
        let (desk, work) = AckSender::open(channel.clone(), self.ground.desks_close.clone());
        self.ground.desks.spawn(work);
        Ok(SubscribedChannel { live, channel, desk, consumer, held: Arc::new(()), strangers: Vec::new() })
    }

    fn refusal(&self, live: &LiveConnection, trouble: AmqpError) -> DeclareError {
        match trouble.complaint() {
            Some(complaint) if complaint.code == 404 => {
                live.declared.forget(self.declared.as_deref().unwrap_or(&self.queue));
                DeclareError::Missing { name: format!("queue {}", self.queue) }
            }
            Some(complaint) if complaint.code == 403 => DeclareError::Refused {
                reason: format!(
                    "this user may not consume queue {} ({}); grant read on it, or end its exclusive consumer",
                    self.queue, complaint.text
                ),
            },
            _ => DeclareError::Broken(trouble),
        }
    }

    /// Passes on what comes, until no more does.
    async fn pump(&self, session: &mut SubscribedChannel) -> SubscriptionEnd {
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                item = session.consumer.next() => match item {
                    Some(Ok(delivery)) => {
                        heard = Instant::now();
                        self.pass_on(session, delivery);
                    }
                    Some(Err(error)) => return SubscriptionEnd::Broken(AmqpError::lapin("consuming", error)),
                    None => return SubscriptionEnd::Cancelled,
                },
                () = sleep_until(heard + IDLE_RENEWAL_PERIOD) => {
                    // With our hands full, silence is what we asked for.
                    if Arc::strong_count(&session.held) == 1 {
                        return SubscriptionEnd::Idle;
                    }
                    heard = Instant::now();
                }
            }
        }
    }

    fn pass_on(&self, session: &mut SubscribedChannel, delivery: lapin::message::Delivery) {
        let receipt = session.desk.receipt(delivery.delivery_tag, &session.held);
        let queue = match &self.source {
            SubscriptionSource::Queue(queue) | SubscriptionSource::DeadLetters(queue) => Some(queue.clone()),
            SubscriptionSource::Undelivered => {
                self.ground.settings.plan.due_for(delivery.routing_key.as_str())
            }
        };
        let Some(queue) = queue else {
            let key = delivery.routing_key.as_str();
            tracing::error!(key, queue = self.queue, "a message for no queue of ours stays where it is");
            session.strangers.push(receipt);
            return;
        };
        let incoming = IncomingDelivery {
            queue,
            message: convert::message(&delivery.properties, delivery.data),
            redelivered: delivery.redelivered,
            receipt,
        };
        // Nobody is left to take it: the receipt hands it back as it is dropped.
        let _ = self.deliver.send(incoming);
    }

    /// Ends the subscription and hands back what nobody has taken.
    async fn end(self, mut session: SubscribedChannel) {
        let (channel, tag) = (&session.channel, session.consumer.tag());
        let cancel = channel.basic_cancel(tag, BasicCancelOptions::default());
        let ended = async {
            within(CLOSE_TIMEOUT, "ending a subscription", cancel).await?;
            let rest = async {
                while let Some(Ok(delivery)) = session.consumer.next().await {
                    drop(session.desk.receipt(delivery.delivery_tag, &session.held));
                }
            };
            // The stream ends with the cancel.
            timeout(CLOSE_TIMEOUT, rest)
                .await
                .map_err(|_| AmqpError::silence("ending a subscription", CLOSE_TIMEOUT))
        };
        if let Err(trouble) = ended.await {
            tracing::debug!(queue = self.queue, error = %chain(&trouble), "a subscription did not end by itself");
            // With its channel the broker gives back what it holds.
            let close = channel.close(200, "abandoned".into());
            if channel.status().connected()
                && within(CLOSE_TIMEOUT, "closing a channel", close).await.is_err()
            {
                session.live.kill();
            }
        }
    }
}
