//! The promises of a broker.
//!
//! Every promise has queues with fresh names, so that the tests of a suite can share a server and run at once.

mod connections;
mod delays;
mod messages;
mod peeking;
mod priorities;
mod settling;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use machinist_core::{
    broker::{
        Broker, Consume, Consumer, Delivery, Message, Publish, PublishError, QueueDepth, Settle, SideQueue,
        Target,
    },
    id::QueueName,
};

pub use self::{connections::*, delays::*, messages::*, peeking::*, priorities::*, settling::*};
use crate::{
    service::say,
    wait::{ANSWER_TIMEOUT, within},
};

/// Test environment of an adapter: one server, or its substitute. Each test makes its
/// own harness; harnesses may share a server and a namespace, because queue names are fresh.
#[async_trait]
pub trait BrokerHarness: Send + Sync + 'static {
    /// A connection to the harness's broker, as another process would make it: connections share nothing but the
    /// server. Panics if that fails.
    async fn connect(&self) -> Arc<dyn Broker>;

    /// Cuts every connection that [`connect`](Self::connect) made, without a word to the adapter
    /// ([`Proxy::cut`](crate::Proxy::cut)). `false` where there is nothing to cut; the promises about it are then
    /// not tested.
    async fn interrupt(&self) -> bool;

    /// The dead letters of a queue, from the oldest. May consume them.
    async fn dead_letters(&self, queue: &QueueName) -> Vec<Message>;

    /// Deletes a queue behind the adapters' back. `false` where that is not possible; what a vanished queue does is
    /// then not tested.
    async fn delete_queue(&self, _queue: &QueueName) -> bool {
        false
    }

    /// A connection on which this queue takes only about `limit` messages that wait, and refuses more until some are
    /// consumed. `None` where queues have no limit; what a full queue does is then not tested.
    async fn connect_with_limit(&self, _queue: &QueueName, _limit: u32) -> Option<Arc<dyn Broker>> {
        None
    }

    /// Returns `true` if the server orders waiting messages by their priority. That may depend on its version, which an
    /// adapter does not know before it is connected.
    async fn orders_by_priority(&self, broker: &dyn Broker) -> bool {
        broker.capabilities().priority
    }

    /// Returns `true` if a message that was handed back is delivered next, also before more urgent ones.
    fn delivers_returned_first(&self) -> bool {
        false
    }

    /// Called at the end of each test, whatever became of it: delete what it left on the server.
    async fn clean_up(&self) {}
}

/// The capabilities are printed, so that a log of the suite says what was tested, and they agree among connections.
pub async fn the_capabilities_are_told(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    say(&format!("{}: {:?}", broker.location(), broker.capabilities()));
    assert_eq!(harness.connect().await.capabilities(), broker.capabilities());
    assert!(!broker.diagnose().await.is_empty(), "a diagnosis says something");
}

fn fresh_queue() -> QueueName {
    QueueName::parse(&format!("conformance.{}", uuid::Uuid::new_v4())).expect("a good queue name")
}

fn numbered(number: usize) -> Message {
    Message { body: Bytes::from(number.to_string()), ..Message::default() }
}

fn number_of(message: &Message) -> usize {
    let text = std::str::from_utf8(&message.body).expect("our own messages hold text");
    text.parse().expect("our own messages hold a number")
}

fn to_queue(queue: &QueueName, message: Message) -> Publish {
    delayed(queue, message, Duration::ZERO)
}

fn delayed(queue: &QueueName, message: Message, delay: Duration) -> Publish {
    Publish { target: Target::Queue(queue.clone()), message, delay }
}

fn to_dead(queue: &QueueName, message: Message) -> Publish {
    Publish { target: Target::DeadLetters(queue.clone()), message, delay: Duration::ZERO }
}

async fn try_publish(broker: &dyn Broker, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
    let asked = batch.len();
    let answers = within(4 * ANSWER_TIMEOUT, "a publish to be answered", broker.publish(batch)).await;
    assert_eq!(answers.len(), asked, "one answer for each message");
    answers
}

async fn publish(broker: &dyn Broker, batch: Vec<Publish>) {
    for answer in try_publish(broker, batch).await {
        answer.expect("the broker takes the message");
    }
}

/// Publishes the messages 0 up to `count`.
async fn publish_numbers(broker: &dyn Broker, queue: &QueueName, count: usize) {
    publish(broker, (0..count).map(|number| to_queue(queue, numbered(number))).collect()).await;
}

async fn consume(broker: &dyn Broker, queues: &[&QueueName], prefetch: u16) -> Box<dyn Consumer> {
    let what = Consume { queues: queues.iter().map(|queue| (*queue).clone()).collect(), prefetch };
    within(ANSWER_TIMEOUT, "a subscription", broker.consume(what)).await.expect("the broker lets us consume")
}

async fn side_queue(broker: &dyn Broker, from: SideQueue) -> Option<Box<dyn Consumer>> {
    within(ANSWER_TIMEOUT, "a subscription", broker.consume_side_queue(from, 100))
        .await
        .expect("the broker lets us consume")
}

async fn next(consumer: &mut dyn Consumer) -> Delivery {
    within(ANSWER_TIMEOUT, "a delivery", consumer.next()).await.expect("the subscription goes on")
}

/// The numbers of the next `count` messages, acked, sorted.
async fn drain(consumer: &mut dyn Consumer, count: usize) -> Vec<usize> {
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let delivery = next(consumer).await;
        numbers.push(number_of(&delivery.message));
        delivery.receipt.settle(Settle::Ack).await;
    }
    numbers.sort_unstable();
    numbers
}

async fn depth(broker: &dyn Broker, queue: &QueueName) -> QueueDepth {
    let depths = within(ANSWER_TIMEOUT, "a depth", broker.depth(std::slice::from_ref(queue))).await;
    let mut depths = depths.expect("the broker tells the depth");
    assert_eq!(depths.len(), 1, "one answer for each queue");
    let depth = depths.remove(0);
    assert_eq!(depth.queue, *queue);
    depth
}

/// Asserts that nothing is left in a queue, for anybody: a marker is all that a fresh consumer of a fresh
/// connection finds.
async fn expect_empty(harness: &dyn BrokerHarness, queue: &QueueName) {
    const MARKER: usize = 999_999;
    let broker = harness.connect().await;
    publish(&*broker, vec![to_queue(queue, numbered(MARKER))]).await;
    let mut consumer = consume(&*broker, &[queue], 10).await;
    assert_eq!(drain(&mut *consumer, 1).await, [MARKER], "nothing but the marker is in the queue");
    within(ANSWER_TIMEOUT, "stop", consumer.stop()).await;
    let left =
        crate::eventually(ANSWER_TIMEOUT, async || depth(&*broker, queue).await.ready == Some(0)).await;
    assert!(left, "{queue} never became empty");
    within(ANSWER_TIMEOUT, "close", broker.close()).await;
}
