//! Adapter of the broker seam to [`MemoryQueues`]: it takes the lock to read and change them, and waits without it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};

use super::{
    lock,
    queues::{HeldMessage, MAX_DELAY, MemoryQueues, NextDelivery},
};
use machinist_adapter::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Delivery, HeldCounts, Message,
        PeekedMessage, Publish, PublishError, QueueDepth, Receipt, Settle, Settled, SideQueue,
        SubscriptionHealth, Target,
    },
    diagnose::{Diagnose, Finding},
    error::BoxError,
    id::QueueName,
};

/// A broker inside this process. Clones are the same connection; [`connect`](Self::connect) creates another connection
/// to the same queues.
///
/// Each queue is first in, first out within a priority. A message that is handed back returns to its old position.
#[derive(Debug, Clone)]
pub struct MemoryBroker {
    queues: Arc<Mutex<MemoryQueues>>,
    connection: u64,
}

impl MemoryBroker {
    /// Creates a broker without queues.
    pub fn new() -> Self {
        let mut queues = MemoryQueues::default();
        let connection = queues.open_connection();
        Self { queues: Arc::new(Mutex::new(queues)), connection }
    }

    /// Opens another connection to the same queues, as another process would: closing one leaves the other open.
    #[must_use]
    pub fn connect(&self) -> Self {
        let connection = lock(&self.queues).open_connection();
        Self { queues: Arc::clone(&self.queues), connection }
    }

    /// Returns the dead letters of a queue, oldest first. Consumes nothing.
    pub fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        lock(&self.queues).dead_letters(queue)
    }

    /// Returns the messages of all queues, in no order, with what they wait for. Consumes nothing. For tests of code that
    /// uses a broker.
    pub fn held(&self) -> Vec<HeldMessage> {
        lock(&self.queues).held()
    }

    fn subscribe(&self, targets: Vec<Target>, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        if prefetch == 0 {
            return Err(BrokerError::Configuration("prefetch is 0; it must be at least 1".to_owned()));
        }
        let mut locked = lock(&self.queues);
        if !locked.is_open(self.connection) {
            return Err(BrokerError::Unavailable(closed()));
        }
        let (id, wake) = locked.subscribe(self.connection, targets, prefetch);
        Ok(Box::new(MemoryConsumer { queues: Arc::clone(&self.queues), id, wake }))
    }

    /// Loses all messages that wait for their time, and returns their number: as if an operator had deleted the queues in
    /// which a broker holds them. For tests of code that uses a broker.
    pub fn lose_delayed(&self) -> usize {
        lock(&self.queues).lose_delayed()
    }

    /// Has the effect of a lost connection on every connection: all unsettled messages go back to their queues, and
    /// settling them is [`Settled::Lost`]. Consumers survive. For tests of code that uses a broker.
    pub fn interrupt(&self) {
        lock(&self.queues).interrupt();
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
        BrokerCapabilities { durable: false, shared: false, priority: true, max_delay: Some(MAX_DELAY) }
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        let mut locked = lock(&self.queues);
        if !locked.is_open(self.connection) {
            return batch.iter().map(|_| Err(PublishError::Unavailable(closed()))).collect();
        }
        let now = Instant::now();
        batch
            .into_iter()
            .map(|publish| {
                publish.message.check_depth()?;
                locked.publish(publish, now);
                Ok(())
            })
            .collect()
    }

    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.subscribe(what.queues.into_iter().map(Target::Queue).collect(), what.prefetch)
    }

    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        match from {
            SideQueue::DeadLetters(queue) => {
                self.subscribe(vec![Target::DeadLetters(queue)], prefetch).map(Some)
            }
            // A delayed message waits in its own queue here, which nobody can delete.
            SideQueue::Undelivered => Ok(None),
        }
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        let mut locked = lock(&self.queues);
        if !locked.is_open(self.connection) {
            return Err(BrokerError::Unavailable(closed()));
        }
        let now = Instant::now();
        Ok(queues.iter().map(|queue| locked.depth(queue, now)).collect())
    }

    async fn held(&self, queues: &[QueueName]) -> Result<Vec<HeldCounts>, BrokerError> {
        let mut locked = lock(&self.queues);
        if !locked.is_open(self.connection) {
            return Err(BrokerError::Unavailable(closed()));
        }
        let now = Instant::now();
        Ok(queues.iter().map(|queue| locked.held_counts(queue, now)).collect())
    }

    async fn peek(&self, queue: &QueueName, limit: u16) -> Result<Option<Vec<PeekedMessage>>, BrokerError> {
        let mut locked = lock(&self.queues);
        if !locked.is_open(self.connection) {
            return Err(BrokerError::Unavailable(closed()));
        }
        let ready = locked.ready(queue, usize::from(limit), Instant::now());
        let peeked = |message| PeekedMessage { message, deliveries_left: None };
        Ok(Some(ready.into_iter().map(peeked).collect()))
    }

    async fn close(&self) {
        lock(&self.queues).close_connection(self.connection);
    }
}

#[async_trait]
impl Diagnose for MemoryBroker {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        let queues = lock(&self.queues).count();
        vec![
            Finding::good("queues", queues.to_string()),
            Finding::warning(
                "durability",
                "messages are lost when this process ends",
                "use a broker that keeps them: sqlite://FILE or amqp://HOST",
            ),
        ]
    }
}

fn closed() -> BoxError {
    "this connection to the broker was closed".into()
}

#[derive(Debug)]
struct MemoryConsumer {
    queues: Arc<Mutex<MemoryQueues>>,
    id: u64,
    wake: Arc<Notify>,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let found = lock(&self.queues).take(self.id, Instant::now());
            match found {
                // There is no await from here on, so a dropped future has taken nothing.
                NextDelivery::Delivery { tag, queue, message, redelivered } => {
                    let receipt = Box::new(MemoryReceipt { queues: Arc::clone(&self.queues), tag });
                    return Some(Delivery { queue, message, redelivered, cause: None, receipt });
                }
                NextDelivery::Ended => return None,
                NextDelivery::Nothing(None) => self.wake.notified().await,
                NextDelivery::Nothing(Some(due)) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    async fn add_credit(&mut self, credit: u16) {
        lock(&self.queues).add_credit(self.id, credit);
    }

    async fn pause(&mut self) {
        lock(&self.queues).pause(self.id);
    }

    async fn stop(&mut self) {
        lock(&self.queues).unsubscribe(self.id);
    }

    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(MemorySubscriptionHealth { queues: Arc::clone(&self.queues), id: self.id })
    }
}

#[derive(Debug)]
struct MemorySubscriptionHealth {
    queues: Arc<Mutex<MemoryQueues>>,
    id: u64,
}

#[async_trait]
impl SubscriptionHealth for MemorySubscriptionHealth {
    async fn check(&self) -> Result<(), String> {
        let subscribed = lock(&self.queues).is_subscribed(self.id);
        if subscribed { Ok(()) } else { Err("the subscription has ended".to_owned()) }
    }

    fn disconnects(&self) -> u64 {
        lock(&self.queues).interruptions()
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        lock(&self.queues).unsubscribe(self.id);
    }
}

#[derive(Debug)]
struct MemoryReceipt {
    queues: Arc<Mutex<MemoryQueues>>,
    tag: u64,
}

#[async_trait]
impl Receipt for MemoryReceipt {
    async fn settle(self: Box<Self>, how: Settle) -> Settled {
        lock(&self.queues).settle(self.tag, how)
    }
}

impl Drop for MemoryReceipt {
    /// Hands the message back, if it is unsettled. After `settle` the tag is gone, and this does nothing.
    fn drop(&mut self) {
        lock(&self.queues).settle(self.tag, Settle::Requeue);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use machinist_adapter::broker::Target;

    fn publish(queue: &QueueName, body: &'static str, delay: Duration) -> Publish {
        let message = Message { body: body.into(), ..Message::default() };
        Publish { target: Target::Queue(queue.clone()), message, delay }
    }

    #[tokio::test(start_paused = true)]
    async fn delays_follow_paused_time() {
        let broker = MemoryBroker::new();
        let queue = QueueName::parse("later").unwrap();
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
    async fn a_message_that_is_handed_back_returns_to_its_old_position() {
        let broker = MemoryBroker::new();
        let queue = QueueName::parse("order").unwrap();
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
