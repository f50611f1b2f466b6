//! A subscription that outlives its channels, its connections and its queues.
//!
//! One task holds it: waits for the connection, makes sure that the queues are there, subscribes, passes on what
//! comes, and begins again when any of that ends. The end of a stream (queue deleted, broker's cancel, ack
//! timeout) is never the end of the subscription.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use lapin::{
    Channel,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use machinist_core::{
    broker::{BrokerError, Consume, Consumer, Delivery, Message},
    id::QueueName,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    backoff::Backoff,
    convert,
    declare::Obstruction,
    gauge::Gauge,
    link::{Link, Live, Settings, chain},
    settle::{AmqpReceipt, Desk},
    trouble::{FAREWELL, RPC_TIMEOUT, Trouble, rpc, within},
};

/// A subscription that has held this long was a good one: the next failure begins with short pauses again.
const GOOD: Duration = Duration::from_secs(10);

/// How often a queue from which nothing comes is looked at, whether we are still subscribed to it.
const AUDIT: Duration = Duration::from_secs(15);

/// After this long without a delivery a subscription is made anew, because there is no way to ask for it.
const STALE: Duration = Duration::from_secs(300);

/// Everything a subscription needs from its broker.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) settings: Arc<Settings>,
    pub(crate) link: Arc<Link>,
    pub(crate) desks: TaskTracker,
    pub(crate) desks_close: CancellationToken,
}

/// What `next` hands out.
#[derive(Debug)]
struct Incoming {
    queue: QueueName,
    message: Message,
    redelivered: bool,
    receipt: AmqpReceipt,
}

/// The holder's end of a subscription.
#[derive(Debug)]
pub(crate) struct AmqpConsumer {
    incoming: mpsc::UnboundedReceiver<Incoming>,
    stop: CancellationToken,
    _ends_with_us: DropGuard,
}

impl AmqpConsumer {
    /// Subscribes, and keeps it up until `stop`. Waits for the broker's confirmation.
    pub(crate) async fn subscribe(
        ground: Ground,
        what: Consume,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let mut queues = Vec::with_capacity(what.queues.len());
        for name in what.queues {
            let on_broker =
                ground.settings.plan.queue(&name).map_err(|reason| BrokerError::Refused { reason })?;
            queues.push((name, on_broker));
        }
        let (deliver, incoming) = mpsc::unbounded_channel();
        let (confirm, confirmed) = oneshot::channel();
        let consumer = Self { incoming, _ends_with_us: stop.clone().drop_guard(), stop: stop.clone() };
        let subscription = Subscription { ground, queues, prefetch: what.prefetch.max(1), deliver, stop };
        tasks.spawn(subscription.run(confirm));
        match timeout(RPC_TIMEOUT * 2, confirmed).await {
            Ok(Ok(Ok(()))) => Ok(consumer),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(Trouble::closed().into_broker_error()),
            Err(_) => Err(Trouble::silence("subscribing", RPC_TIMEOUT * 2).into_broker_error()),
        }
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let Incoming { queue, message, redelivered, receipt } = self.incoming.recv().await?;
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
}

struct Subscription {
    ground: Ground,
    /// Each queue with its name on the broker.
    queues: Vec<(QueueName, String)>,
    prefetch: u16,
    deliver: mpsc::UnboundedSender<Incoming>,
    stop: CancellationToken,
}

/// What comes from one queue, and the end of its stream.
enum Event {
    Delivered(usize, Box<lapin::message::Delivery>),
    Ended(usize, Option<Trouble>),
}

/// A subscribed channel.
struct Session {
    live: Arc<Live>,
    channel: Channel,
    desk: Desk,
    events: SelectAll<BoxStream<'static, Event>>,
    sources: Vec<Source>,
}

/// One queue of a session.
#[derive(Debug)]
struct Source {
    /// The consumer, while there is one.
    tag: Option<ShortString>,
    /// When it was subscribed to, or last delivered.
    heard: Instant,
    /// Shared by its unsettled deliveries.
    held: Arc<()>,
}

impl Source {
    fn new() -> Self {
        Self { tag: None, heard: Instant::now(), held: Arc::new(()) }
    }

    /// The consumer, if nothing has come for `long`, and that not because our hands are full.
    fn silent_for(&self, long: Duration) -> Option<ShortString> {
        let silent = self.heard.elapsed() >= long && Arc::strong_count(&self.held) == 1;
        self.tag.clone().filter(|_| silent)
    }
}

impl Subscription {
    async fn run(self, confirm: oneshot::Sender<Result<(), BrokerError>>) {
        let mut confirm = Some(confirm);
        let mut backoff = Backoff::new();
        let stop = self.stop.clone();
        loop {
            let since = Instant::now();
            match stop.run_until_cancelled(self.begin()).await {
                None => return,
                Some(Ok(mut session)) => {
                    if let Some(confirm) = confirm.take() {
                        // Nobody waits any more: then the consumer is dropped, and with it goes `stop`.
                        let _ = confirm.send(Ok(()));
                    }
                    match stop.run_until_cancelled(self.pump(&mut session)).await {
                        None => return self.end(session).await,
                        Some(trouble) => {
                            tracing::warn!(queues = ?self.queues, error = %chain(&trouble), "subscribing again");
                            self.ground.link.suspect();
                        }
                    }
                }
                Some(Err(obstruction)) => {
                    if let Some(confirm) = confirm.take() {
                        let _ = confirm.send(Err(obstruction.into()));
                        return;
                    }
                    let error = BrokerError::from(obstruction);
                    tracing::warn!(queues = ?self.queues, error = %chain(&error), "not subscribed");
                    self.ground.link.suspect();
                }
            }
            if since.elapsed() > GOOD {
                backoff = Backoff::new();
            }
            if stop.run_until_cancelled(tokio::time::sleep(backoff.next())).await.is_none() {
                return;
            }
        }
    }

    async fn begin(&self) -> Result<Session, Obstruction> {
        let live = self.ground.link.up().await.map_err(Obstruction::Broken)?;
        for (_, queue) in &self.queues {
            live.declared.for_consume(&live, queue).await?;
        }
        let channel = live.channel().await.map_err(Obstruction::Broken)?;
        // Per consumer, not per channel: global limits are denied from RabbitMQ 4.3 on.
        let limit = channel.basic_qos(self.prefetch, BasicQosOptions::default());
        rpc("limiting deliveries", limit).await.map_err(Obstruction::Broken)?;
        let (desk, work) = Desk::open(channel.clone(), self.ground.desks_close.clone());
        self.ground.desks.spawn(work);
        let sources = self.queues.iter().map(|_| Source::new()).collect();
        let mut session = Session { live, channel, desk, events: SelectAll::new(), sources };
        for at in 0..self.queues.len() {
            let consumer = consume(&session.channel, &self.queues[at].1).await;
            session.listen(at, consumer.map_err(|trouble| self.refusal(&session.live, at, trouble))?);
        }
        Ok(session)
    }

    fn refusal(&self, live: &Live, at: usize, trouble: Trouble) -> Obstruction {
        let queue = &self.queues[at].1;
        match trouble.complaint() {
            Some(complaint) if complaint.code == 404 => {
                live.declared.forget(queue);
                Obstruction::Missing { name: format!("queue {queue}") }
            }
            Some(complaint) if complaint.code == 403 => Obstruction::Refused {
                reason: format!(
                    "this user may not consume queue {queue} ({}); grant read on it, or end its exclusive consumer",
                    complaint.text
                ),
            },
            _ => Obstruction::Broken(trouble),
        }
    }

    /// Passes on what comes; returns when the channel is gone.
    async fn pump(&self, session: &mut Session) -> Trouble {
        let (live, channel) = (Arc::clone(&session.live), session.channel.clone());
        let mut returning =
            FuturesUnordered::<BoxFuture<'_, (usize, Result<lapin::Consumer, Obstruction>)>>::new();
        let mut backoffs: Vec<Option<Backoff>> = self.queues.iter().map(|_| None).collect();
        let mut audit = Instant::now() + AUDIT;
        loop {
            tokio::select! {
                Some(event) = session.events.next() => match event {
                    Event::Delivered(at, delivery) => {
                        self.pass_on(session, at, *delivery);
                        backoffs[at] = None;
                    }
                    Event::Ended(at, trouble) => {
                        session.sources[at].tag = None;
                        if !session.channel.status().connected() {
                            return trouble.unwrap_or_else(|| Trouble::silence("consuming", Duration::ZERO));
                        }
                        tracing::info!(queue = %self.queues[at].0, "the broker ended a subscription");
                        let pause = backoffs[at].get_or_insert_with(Backoff::new).next();
                        returning.push(Box::pin(self.come_back(&live, &channel, at, pause)));
                    }
                },
                Some((at, result)) = returning.next() => match result {
                    Ok(consumer) => session.listen(at, consumer),
                    Err(_) if !session.channel.status().connected() => {
                        return Trouble::silence("subscribing again", Duration::ZERO);
                    }
                    Err(obstruction) => {
                        let error = BrokerError::from(obstruction);
                        tracing::warn!(queue = %self.queues[at].0, error = %chain(&error), "not subscribed");
                        let pause = backoffs[at].get_or_insert_with(Backoff::new).next();
                        returning.push(Box::pin(self.come_back(&live, &channel, at, pause)));
                    }
                },
                () = sleep_until(audit) => {
                    if let Err(trouble) = self.audit(&live, &channel, session.silent()).await {
                        return trouble;
                    }
                    audit = Instant::now() + AUDIT;
                },
            }
        }
    }

    /// Ends subscriptions of which the broker may have forgotten to tell that they have ended: one whose queue was
    /// deleted and made again within milliseconds hears nothing ever after. They come back as any that ends.
    async fn audit(
        &self,
        live: &Arc<Live>,
        channel: &Channel,
        silent: Vec<(usize, ShortString, bool)>,
    ) -> Result<(), Trouble> {
        let mut gauge = Gauge::new(Arc::clone(live));
        for (at, tag, stale) in silent {
            let (name, queue) = &self.queues[at];
            let forgotten = !gauge.read(queue).await?.is_some_and(|level| level.consumers > 0);
            if forgotten || stale {
                tracing::debug!(queue = %name, forgotten, "renewing a silent subscription");
                let cancel = channel.basic_cancel(tag, BasicCancelOptions::default());
                rpc("ending a subscription", cancel).await?;
            }
        }
        Ok(())
    }

    /// Subscribes again to one queue of a channel that lives. The queue is checked on another channel first:
    /// consuming one that is missing would cost all its neighbours their deliveries.
    async fn come_back(
        &self,
        live: &Live,
        channel: &Channel,
        at: usize,
        pause: Duration,
    ) -> (usize, Result<lapin::Consumer, Obstruction>) {
        let queue = &self.queues[at].1;
        tokio::time::sleep(pause).await;
        live.declared.forget(queue);
        let result = match live.declared.for_consume(live, queue).await {
            Ok(()) => consume(channel, queue).await.map_err(|trouble| self.refusal(live, at, trouble)),
            Err(obstruction) => Err(obstruction),
        };
        (at, result)
    }

    fn pass_on(&self, session: &mut Session, at: usize, delivery: lapin::message::Delivery) {
        session.sources[at].heard = Instant::now();
        let incoming = Incoming {
            queue: self.queues[at].0.clone(),
            message: convert::message(&delivery.properties, delivery.data),
            redelivered: delivery.redelivered,
            receipt: session.desk.receipt(delivery.delivery_tag, &session.sources[at].held),
        };
        // Nobody is left to take it: the receipt hands it back as it is dropped.
        let _ = self.deliver.send(incoming);
    }

    /// Ends the subscription and hands back what nobody has taken.
    async fn end(self, mut session: Session) {
        let cancels = session.sources.iter().filter_map(|source| source.tag.as_ref()).map(|tag| {
            let cancel = session.channel.basic_cancel(tag.clone(), BasicCancelOptions::default());
            within(FAREWELL, "ending a subscription", cancel)
        });
        for cancelled in futures_util::future::join_all(cancels).await {
            if let Err(trouble) = cancelled {
                // Then the channel is gone or mute, and with it go all its deliveries.
                tracing::debug!(error = %chain(&trouble), "a subscription did not end by itself");
                return abandon(&session.live, &session.channel).await;
            }
        }
        let rest = async {
            while let Some(event) = session.events.next().await {
                if let Event::Delivered(at, delivery) = event {
                    drop(session.desk.receipt(delivery.delivery_tag, &session.sources[at].held));
                }
            }
        };
        // The streams end with the cancel; should one not, its deliveries come again with the channel's end.
        if timeout(FAREWELL, rest).await.is_err() {
            abandon(&session.live, &session.channel).await;
        }
    }
}

impl Session {
    /// The silent queues with their consumers, and whether each has been silent for very long.
    fn silent(&self) -> Vec<(usize, ShortString, bool)> {
        let silent = |(at, source): (usize, &Source)| {
            Some((at, source.silent_for(AUDIT)?, source.silent_for(STALE).is_some()))
        };
        self.sources.iter().enumerate().filter_map(silent).collect()
    }

    fn listen(&mut self, at: usize, consumer: lapin::Consumer) {
        self.sources[at].tag = Some(consumer.tag());
        self.sources[at].heard = Instant::now();
        let events = consumer.map(move |item| match item {
            Ok(delivery) => Event::Delivered(at, Box::new(delivery)),
            Err(error) => Event::Ended(at, Some(Trouble::lapin("consuming", error))),
        });
        let end = stream::once(async move { Event::Ended(at, None) });
        // An error is followed by the end: one of the two is enough, and the first says more.
        let mut ended = false;
        let once = events.chain(end).take_while(move |event| {
            let more = !ended;
            ended |= matches!(event, Event::Ended(..));
            std::future::ready(more)
        });
        self.events.push(once.boxed());
    }
}

/// Ends a channel that did not do what it was told, so that the broker delivers again what it holds.
async fn abandon(live: &Live, channel: &Channel) {
    let close = channel.close(200, "abandoned".into());
    if channel.status().connected() && within(FAREWELL, "closing a channel", close).await.is_err() {
        live.kill();
    }
}

async fn consume(channel: &Channel, queue: &str) -> Result<lapin::Consumer, Trouble> {
    let queue = ShortString::try_new(queue).unwrap_or_default();
    let consumer =
        channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default());
    rpc("subscribing", consumer).await
}
