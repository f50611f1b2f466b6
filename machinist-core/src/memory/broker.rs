//! Queues in memory.
//!
//! There is no task that moves messages about: whoever looks at a queue first makes ready what has come due. A
//! message that was handed out stays in the broker until its receipt is settled, so that a lost receipt, a lost
//! consumer and a lost connection are one thing: the tag is taken out and the message goes back to its old place.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};

use super::lock;
use crate::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Delivery, Message, Publish, PublishError,
        QueueDepth, Receipt, Settle, Settled, Target,
    },
    diagnose::{Diagnose, Finding},
    error::BoxError,
    id::QueueName,
};

/// A broker inside this process. Clones are the same connection; [`connect`](Self::connect) makes another one to
/// the same queues.
///
/// Each queue is first in, first out within a priority. A message that is handed back takes its old place.
#[derive(Debug, Clone)]
pub struct MemoryBroker {
    state: Arc<Mutex<State>>,
    connection: u64,
}

impl MemoryBroker {
    /// A broker without queues.
    pub fn new() -> Self {
        let mut state = State::default();
        let connection = state.open_connection();
        Self { state: Arc::new(Mutex::new(state)), connection }
    }

    /// A further connection to the same queues, as another process would have: closing one leaves the other open.
    #[must_use]
    pub fn connect(&self) -> Self {
        let connection = lock(&self.state).open_connection();
        Self { state: Arc::clone(&self.state), connection }
    }

    /// The dead letters of a queue from the oldest. Consumes nothing.
    pub fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        lock(&self.state).dead.get(queue).cloned().unwrap_or_default()
    }

    /// Does what a lost connection does, to every connection: all that is unsettled goes back to its queue, and
    /// settling it is [`Settled::Lost`]. Consumers live on. For tests of what uses a broker.
    pub fn interrupt(&self) {
        lock(&self.state).hand_back(|_| true);
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { durable: false, shared: false, priority: true }
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        let mut state = lock(&self.state);
        if !state.connections.contains(&self.connection) {
            return batch.iter().map(|_| Err(PublishError::Unavailable(closed()))).collect();
        }
        let now = Instant::now();
        batch
            .into_iter()
            .map(|publish| {
                state.publish(publish, now);
                Ok(())
            })
            .collect()
    }

    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        if what.prefetch == 0 {
            return Err(BrokerError::Configuration("prefetch is 0; it must be at least 1".to_owned()));
        }
        let mut state = lock(&self.state);
        if !state.connections.contains(&self.connection) {
            return Err(BrokerError::Unavailable(closed()));
        }
        for queue in &what.queues {
            state.queues.entry(queue.clone()).or_default();
        }
        let id = state.number();
        let wake = Arc::new(Notify::new());
        state.subscriptions.insert(
            id,
            Subscription {
                connection: self.connection,
                what,
                unsettled: 0,
                turn: 0,
                wake: Arc::clone(&wake),
            },
        );
        Ok(Box::new(MemoryConsumer { state: Arc::clone(&self.state), id, wake }))
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        let mut state = lock(&self.state);
        if !state.connections.contains(&self.connection) {
            return Err(BrokerError::Unavailable(closed()));
        }
        let now = Instant::now();
        Ok(queues.iter().map(|queue| state.depth(queue, now)).collect())
    }

    async fn close(&self) {
        let mut state = lock(&self.state);
        state.connections.remove(&self.connection);
        let (ended, open) = std::mem::take(&mut state.subscriptions)
            .into_iter()
            .partition(|(_, subscription)| subscription.connection == self.connection);
        state.subscriptions = open;
        let ended: HashMap<u64, Subscription> = ended;
        state.hand_back(|held| held.connection == self.connection);
        for subscription in ended.values() {
            subscription.wake.notify_one();
        }
    }
}

#[async_trait]
impl Diagnose for MemoryBroker {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        let queues = lock(&self.state).queues.len();
        vec![
            Finding::good("queues", queues.to_string()),
            Finding::warning(
                "durability",
                "messages end with this process",
                "name a broker that keeps them: sqlite://FILE or amqp://HOST",
            ),
        ]
    }
}

fn closed() -> BoxError {
    "this connection to the broker was closed".into()
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<QueueName, Queue>,
    dead: HashMap<QueueName, Vec<Message>>,
    /// Those that are open.
    connections: HashSet<u64>,
    subscriptions: HashMap<u64, Subscription>,
    /// What was handed out and not settled, by the tag that its receipt holds.
    unsettled: HashMap<u64, Held>,
    last_number: u64,
}

/// Where a message stands in its queue: by priority, then by arrival.
type Place = (Reverse<u8>, u64);

#[derive(Debug, Default)]
struct Queue {
    ready: BTreeMap<Place, Stored>,
    /// By due time, then by arrival.
    delayed: BTreeMap<(Instant, u64), Message>,
}

#[derive(Debug)]
struct Stored {
    message: Message,
    handed_out_before: bool,
}

#[derive(Debug)]
struct Subscription {
    connection: u64,
    what: Consume,
    unsettled: u16,
    /// Which queue is looked at first, so that a full queue does not starve its neighbours.
    turn: usize,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct Held {
    connection: u64,
    subscription: u64,
    queue: QueueName,
    place: Place,
    message: Message,
}

/// What a consumer finds.
enum Found {
    Delivery {
        tag: u64,
        queue: QueueName,
        message: Message,
        redelivered: bool,
    },
    /// Nothing; the next delayed message comes due then.
    Nothing(Option<Instant>),
    /// The subscription has ended.
    End,
}

impl State {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn open_connection(&mut self) -> u64 {
        let connection = self.number();
        self.connections.insert(connection);
        connection
    }

    fn publish(&mut self, publish: Publish, now: Instant) {
        let Publish { target, message, delay } = publish;
        let number = self.number();
        match target {
            // Nobody receives dead letters, so there is nothing that a delay could put off.
            Target::DeadLetters(queue) => self.dead.entry(queue).or_default().push(message),
            Target::Queue(name) => {
                let queue = self.queues.entry(name.clone()).or_default();
                // A delay beyond the end of the clock is as good as for ever.
                let far = std::time::Duration::from_secs(86400 * 365 * 30);
                if delay.is_zero() {
                    queue.insert(number, message);
                } else {
                    queue.delayed.insert((now + delay.min(far), number), message);
                }
                self.wake(&name);
            }
        }
    }

    fn wake(&self, queue: &QueueName) {
        for subscription in self.subscriptions.values() {
            if subscription.what.queues.contains(queue) {
                subscription.wake.notify_one();
            }
        }
    }

    /// Hands out the next message to a subscription.
    fn take(&mut self, id: u64, now: Instant) -> Found {
        let tag = self.number();
        let Some(subscription) = self.subscriptions.get_mut(&id) else { return Found::End };
        if subscription.unsettled >= subscription.what.prefetch {
            return Found::Nothing(None);
        }
        let names = &subscription.what.queues;
        let mut next_due: Option<Instant> = None;
        for step in 0..names.len() {
            let at = (subscription.turn + step) % names.len();
            let Some(queue) = self.queues.get_mut(&names[at]) else { continue };
            queue.ripen(now, &mut self.last_number);
            if let Some((place, stored)) = queue.ready.pop_first() {
                subscription.turn = at + 1;
                subscription.unsettled += 1;
                let (queue, message) = (names[at].clone(), stored.message.clone());
                let connection = subscription.connection;
                let held = Held {
                    connection,
                    subscription: id,
                    queue: queue.clone(),
                    place,
                    message: stored.message,
                };
                self.unsettled.insert(tag, held);
                return Found::Delivery { tag, queue, message, redelivered: stored.handed_out_before };
            }
            let due = queue.delayed.first_key_value().map(|((due, _), _)| *due);
            next_due = next_due.into_iter().chain(due).min();
        }
        Found::Nothing(next_due)
    }

    fn settle(&mut self, tag: u64, how: Settle) -> Settled {
        let Some(held) = self.unsettled.remove(&tag) else { return Settled::Lost };
        if let Some(subscription) = self.subscriptions.get_mut(&held.subscription) {
            subscription.unsettled -= 1;
            subscription.wake.notify_one();
        }
        if how == Settle::Requeue {
            let stored = Stored { message: held.message, handed_out_before: true };
            self.queues.entry(held.queue.clone()).or_default().ready.insert(held.place, stored);
            self.wake(&held.queue);
        }
        Settled::Done
    }

    /// Puts what is unsettled and meant back into its queues.
    fn hand_back(&mut self, meant: impl Fn(&Held) -> bool) {
        let tags = self.unsettled.iter().filter(|(_, held)| meant(held)).map(|(tag, _)| *tag);
        for tag in tags.collect::<Vec<_>>() {
            self.settle(tag, Settle::Requeue);
        }
    }

    fn depth(&mut self, name: &QueueName, now: Instant) -> QueueDepth {
        let ready = self.queues.get_mut(name).map(|queue| {
            queue.ripen(now, &mut self.last_number);
            queue.ready.len() as u64
        });
        let consumers = self.subscriptions.values().filter(|s| s.what.queues.contains(name)).count() as u64;
        let dead = self.dead.get(name).map(|letters| letters.len() as u64);
        QueueDepth { queue: name.clone(), ready, consumers: Some(consumers), dead }
    }
}

impl Queue {
    fn insert(&mut self, number: u64, message: Message) {
        let priority = message.priority.unwrap_or(0);
        self.ready.insert((Reverse(priority), number), Stored { message, handed_out_before: false });
    }

    /// Makes ready what has come due, in the order in which it came due.
    fn ripen(&mut self, now: Instant, last_number: &mut u64) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let message = entry.remove();
            *last_number += 1;
            self.insert(*last_number, message);
        }
    }
}

#[derive(Debug)]
struct MemoryConsumer {
    state: Arc<Mutex<State>>,
    id: u64,
    wake: Arc<Notify>,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let found = lock(&self.state).take(self.id, Instant::now());
            match found {
                // Nothing is awaited from here on, so a dropped future has taken nothing.
                Found::Delivery { tag, queue, message, redelivered } => {
                    let receipt = Box::new(MemoryReceipt { state: Arc::clone(&self.state), tag });
                    return Some(Delivery { queue, message, redelivered, receipt });
                }
                Found::End => return None,
                Found::Nothing(None) => self.wake.notified().await,
                Found::Nothing(Some(due)) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    async fn stop(&mut self) {
        lock(&self.state).subscriptions.remove(&self.id);
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        lock(&self.state).subscriptions.remove(&self.id);
    }
}

#[derive(Debug)]
struct MemoryReceipt {
    state: Arc<Mutex<State>>,
    tag: u64,
}

#[async_trait]
impl Receipt for MemoryReceipt {
    async fn settle(self: Box<Self>, how: Settle) -> Settled {
        lock(&self.state).settle(self.tag, how)
    }
}

impl Drop for MemoryReceipt {
    /// After `settle` the tag is gone, and this does nothing.
    fn drop(&mut self) {
        lock(&self.state).settle(self.tag, Settle::Requeue);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn publish(queue: &QueueName, body: &'static str, delay: Duration) -> Publish {
        let message = Message { body: body.into(), ..Message::default() };
        Publish { target: Target::Queue(queue.clone()), message, delay }
    }

    #[tokio::test(start_paused = true)]
    async fn delays_follow_paused_time() {
        let (broker, queue) = (MemoryBroker::new(), QueueName::parse("later").unwrap());
        let day = Duration::from_secs(86400);
        broker.publish(vec![publish(&queue, "second", 2 * day), publish(&queue, "first", day)]).await;
        let mut consumer =
            broker.consume(Consume { queues: vec![queue.clone()], prefetch: 2 }).await.unwrap();
        let start = Instant::now();
        let first = consumer.next().await.unwrap();
        assert_eq!((&first.message.body[..], start.elapsed().as_secs()), (&b"first"[..], day.as_secs()));
        let second = consumer.next().await.unwrap();
        assert_eq!(
            (&second.message.body[..], start.elapsed().as_secs()),
            (&b"second"[..], 2 * day.as_secs())
        );
    }

    #[tokio::test]
    async fn a_message_handed_back_takes_its_old_place() {
        let (broker, queue) = (MemoryBroker::new(), QueueName::parse("order").unwrap());
        let bodies = ["a", "b", "c"];
        broker.publish(bodies.iter().map(|b| publish(&queue, b, Duration::ZERO)).collect()).await;
        let mut consumer =
            broker.consume(Consume { queues: vec![queue.clone()], prefetch: 9 }).await.unwrap();
        drop(consumer.next().await);
        for body in bodies {
            let delivery = consumer.next().await.unwrap();
            assert_eq!(delivery.message.body, body);
            delivery.receipt.settle(Settle::Ack).await;
        }
    }
}
