//! Seam to message brokers, which move opaque messages and lose none.
//!
//! A broker knows no task, no state and no retry policy. It publishes, delivers and settles, and calls nobody back. The
//! docs of each method state what an implementation must guarantee, and `machinist-conformance` proves it.
//!
//! # Why not a richer seam
//! A broker that runs handlers or decides about acks (as in Go machinery) puts the worker's promises into every
//! adapter. A broker that is only `Stream + Sink` cannot express *unroutable* or *unknown*. Therefore this seam has two
//! directions, plain values and typed errors.
//!
//! # Connections
//! Adapters reconnect by themselves, forever, with jittered back-off. A [`Consumer`] outlives any number of
//! reconnections; deliveries that were unsettled before a reconnection are delivered again after it.

use std::{any::Any, borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    error::BoxError,
    header,
    id::{QueueName, TaskId, TaskName},
};

/// Maximum number of lists and tables inside each other in one header.
///
/// A reader descends into a header, so without a bound any publisher could overflow the stack of every reader.
pub const MAX_HEADER_DEPTH: usize = 8;

/// Value of a message header.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A Boolean.
    Bool(bool),
    /// Bytes that are not text.
    Bytes(Bytes),
    /// A number that need not be whole.
    Float(f64),
    /// A value that is named and empty, such as `None` in the headers of Celery.
    Null,
    /// A list of values.
    List(Vec<Self>),
    /// Values by name.
    Table(BTreeMap<String, Self>),
}

impl HeaderValue {
    /// Returns the text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the number, if it is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// Returns `true` if it has at most `levels` lists and tables inside each other.
    fn is_within(&self, levels: usize) -> bool {
        match (self, levels.checked_sub(1)) {
            (Self::List(all), Some(levels)) => all.iter().all(|value| value.is_within(levels)),
            (Self::Table(all), Some(levels)) => all.values().all(|value| value.is_within(levels)),
            (Self::List(_) | Self::Table(_), None) => false,
            _ => true,
        }
    }

    /// Returns the approximate size on the wire, in bytes, with the type and the length.
    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len() + 6,
            Self::Bytes(bytes) => bytes.len() + 6,
            Self::Int(_) | Self::Float(_) | Self::Bool(_) | Self::Null => 10,
            Self::List(all) => 6 + all.iter().map(Self::size).sum::<usize>(),
            Self::Table(all) => 6 + all.iter().map(|(name, value)| name.len() + value.size()).sum::<usize>(),
        }
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for HeaderValue {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for HeaderValue {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

/// Headers of a message. A header whose type the broker cannot carry is left out, never misread.
///
/// Names of machinist's own headers are known beforehand ([`header_name`]), and every message has several of them.
pub type Headers = BTreeMap<Cow<'static, str>, HeaderValue>;

/// Returns the name of a header, without a copy if it is one of machinist's.
pub fn header_name(name: &str) -> Cow<'static, str> {
    match header::NAMES.iter().find(|known| **known == name) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(name.to_owned()),
    }
}

/// Opaque message: properties, headers, body. Everything in it survives the broker unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// Id of the task, as text: a message from another producer need not hold a valid id (AMQP `message-id`).
    pub id: Option<String>,
    /// Name of the task, as text (AMQP `type`).
    pub kind: Option<String>,
    /// Media type of the body (AMQP `content-type`).
    pub content_type: Option<String>,
    /// Creation time (AMQP `timestamp`, in whole seconds there).
    pub timestamp: Option<Timestamp>,
    /// Priority from 0 (default) to 9; a larger one is delivered sooner, if the broker and queue support it.
    pub priority: Option<u8>,
    /// Application that created the message (AMQP `app-id`).
    pub app_id: Option<String>,
    /// Id by which its sender recognizes the answer (AMQP `correlation-id`). machinist neither sets nor reads it.
    pub correlation_id: Option<String>,
    /// Queue for the answer (AMQP `reply-to`). machinist neither sets nor reads it.
    pub reply_to: Option<String>,
    /// Encoding of the body, such as `gzip` or `utf-8` (AMQP `content-encoding`). machinist neither sets nor reads it.
    pub content_encoding: Option<String>,
    /// Headers.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

/// Destination of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A task queue.
    Queue(QueueName),
    /// The dead letters of a task queue.
    DeadLetters(QueueName),
}

impl Target {
    /// Returns the task queue of the destination.
    pub fn queue(&self) -> &QueueName {
        match self {
            Self::Queue(queue) | Self::DeadLetters(queue) => queue,
        }
    }
}

/// One message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// Destination. The adapter declares it when this process first names it.
    pub target: Target,
    /// The message.
    pub message: Message,
    /// Time for which the broker keeps the message before anybody can receive it. Never shorter, unless it is longer
    /// than [`BrokerCapabilities::max_delay`]: then the broker keeps the message for that time. It may be longer.
    pub delay: Duration,
}

/// Error of a publish. Each of the four groups needs a different response: *certainly not queued* (change the message
/// or the queue), *not taken now* and *not sent* (try later), *unknown* (send the same id again, which is safe).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Certainly not queued: the queue does not exist, and the adapter does not declare it here.
    #[error("queue {queue} does not exist on the broker")]
    Unroutable {
        /// The queue that was named.
        queue: QueueName,
    },
    /// Certainly not queued: larger than the broker accepts.
    #[error("the message has {size} bytes, more than the {limit} that the broker takes")]
    TooLarge {
        /// The message's size in bytes.
        size: usize,
        /// Maximum size that the broker accepts, in bytes.
        limit: usize,
    },
    /// Certainly not queued, and never will be in this form: the broker or the adapter refuses it (not permitted, a name
    /// that is too long, a queue that exists with other arguments).
    #[error("the broker refused the message: {reason}")]
    Rejected {
        /// Answer of the broker, and the remedy if there is one.
        reason: String,
    },
    /// Not taken now: the broker answered with a negative confirm (a queue at its limit, a queue without its majority of
    /// nodes), or something between it and its queue is missing that the adapter does not make. It says nothing about the
    /// message: the same one may be taken later. Publishing it again is safe, and needed if it must not be lost; in rare
    /// cases the broker had stored it before its queue failed.
    #[error("the broker does not take the message now: {reason}")]
    Nacked {
        /// The queue, and what can be the cause, or what is missing.
        reason: String,
    },
    /// Not sent before the deadline: the broker accepts no messages now (memory or disk alarm).
    #[error("the broker blocks publishers ({reason})")]
    Blocked {
        /// Answer of the broker.
        reason: String,
    },
    /// Not sent before the deadline: no connection.
    #[error("the broker cannot be reached")]
    Unavailable(#[source] BoxError),
    /// Sent but not confirmed: it may or may not be queued. Publishing the same message again is safe.
    #[error("the broker did not confirm the message")]
    Unknown(#[source] BoxError),
}

impl PublishError {
    /// Returns `true` if the message is certainly not queued, and sending it again unchanged will never queue it.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::Unroutable { .. } | Self::TooLarge { .. } | Self::Rejected { .. })
    }
}

/// Error of a broker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The broker cannot be reached, or did not answer in time. Try again later.
    #[error("the broker cannot be reached")]
    Unavailable(#[source] BoxError),
    /// The broker can be reached and refuses: credentials, permissions, a queue declared elsewhere with other
    /// arguments. Trying again changes nothing; the text names the remedy.
    #[error("the broker refused: {reason}")]
    Refused {
        /// Answer of the broker, and the remedy.
        reason: String,
    },
    /// A setting of the adapter is wrong.
    #[error("{0}")]
    Configuration(String),
}

/// Queues to consume, and how.
#[derive(Debug, Clone)]
pub struct Consume {
    /// The queues, in any order. The adapter declares them when this process first names them.
    pub queues: Vec<QueueName>,
    /// Maximum number of deliveries that may be unsettled at once: at least this many over all the queues together, and
    /// at most this many per queue. At least 1. It is the first credit of the consumer
    /// ([`Consumer::add_credit`]).
    pub prefetch: u16,
}

/// Side queue: no task is run from its messages. Only maintenance takes messages from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SideQueue {
    /// The dead letters of a task queue.
    DeadLetters(QueueName),
    /// Messages that came due for a queue that no longer exists, if a broker keeps such messages apart. A delivery
    /// names the queue that the message was for; if there is none, its cause says so.
    Undelivered,
}

/// Cause for which a broker moved a message from a task queue to its dead letters by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadLetterCause {
    /// It was delivered as often as the queue allows.
    DeliveryLimit,
    /// The queue was at its limit, and the broker dropped its oldest message.
    QueueFull,
    /// It waited for longer than the queue, or the message, allows.
    Expired,
    /// A consumer rejected it. Workers never do.
    Rejected,
    /// Another cause, in the words of the broker.
    Other(String),
}

/// One message that was delivered to this process and is not yet settled.
#[derive(Debug)]
pub struct Delivery {
    /// The queue it came from.
    pub queue: QueueName,
    /// The message.
    pub message: Message,
    /// `true` if the broker may have delivered it before. It may be `true` for a first delivery, but is never `false`
    /// for a repeated one.
    pub redelivered: bool,
    /// Cause for which the broker itself moved the message here, if it did and tells why.
    pub cause: Option<DeadLetterCause>,
    /// Receipt that settles the delivery. If it is dropped unsettled, the message is delivered again (at the latest
    /// when this consumer stops or its connection ends).
    pub receipt: Box<dyn Receipt>,
}

/// Way to settle a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// The work is done: the broker forgets the message.
    Ack,
    /// Hands the message back: the broker delivers it again, here or elsewhere.
    Requeue,
}

/// Result of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The broker was told.
    Done,
    /// The connection that delivered it is lost: the message will be delivered again.
    Lost,
}

/// Right and duty to settle one delivery, once.
#[async_trait]
pub trait Receipt: fmt::Debug + Send + Sync {
    /// Tells the broker. Returns when the settlement is on its way, not when the broker has read it, so that many
    /// acknowledgements share a packet.
    ///
    /// # Errors
    /// None: a settlement that cannot reach the broker is [`Settled::Lost`], and the message is delivered again.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, the delivery counts as dropped unsettled.
    async fn settle(self: Box<Self>, how: Settle) -> Settled;
}

/// Health of a subscription, for the supervision of a process. Outlives the consumer.
#[async_trait]
pub trait SubscriptionHealth: fmt::Debug + Send + Sync {
    /// Succeeds if the broker has confirmed the subscription to every queue, and answers a request on the very
    /// connection that delivers, within 5 s.
    ///
    /// # Errors
    /// A description of the problem.
    ///
    /// # Cancel safety
    /// Safe.
    async fn check(&self) -> Result<(), String>;

    /// Returns a number that grows when the connection that delivers is lost, and whenever this is called while there
    /// is none. Deliveries that were unsettled then are delivered again, perhaps to other workers. Sends nothing to the
    /// broker.
    fn disconnects(&self) -> u64;
}

/// Subscription to queues that survives reconnections.
#[async_trait]
pub trait Consumer: fmt::Debug + Send {
    /// Returns the next delivery. Waits forever while there is none or the broker is away. Returns `None` only after
    /// [`stop`](Self::stop) or the broker's [`close`](Broker::close).
    ///
    /// # Cancel safety
    /// Safe: a dropped future loses no delivery.
    async fn next(&mut self) -> Option<Delivery>;

    /// Lets the consumer hold `credit` more unsettled deliveries at once; with an adapter that subscribes to each queue
    /// separately, `credit` more of each queue. Best effort: while the broker is away, the credit counts from the next
    /// subscription.
    ///
    /// # Cancel safety
    /// A dropped future adds the credit or not.
    async fn add_credit(&mut self, credit: u16);

    /// Takes all credit away: no delivery arrives until credit is added. Messages that the broker sent and `next` has not
    /// returned are handed back. Deliveries that were returned can still be settled, and that does not give credit.
    ///
    /// # Cancel safety
    /// If the future is dropped early, some credit may remain.
    async fn pause(&mut self);

    /// Ends the subscription: messages that the broker sent and `next` has not returned are handed back. Deliveries
    /// that were returned can still be settled.
    ///
    /// # Cancel safety
    /// If the future is dropped early, the rest is handed back when the consumer is dropped.
    async fn stop(&mut self);

    /// Returns a handle that reports the health of this subscription while another task waits for its deliveries.
    fn health(&self) -> Box<dyn SubscriptionHealth>;
}

/// Number of messages and consumers of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDepth {
    /// The queue.
    pub queue: QueueName,
    /// Messages that wait for a worker; `None` if the queue does not exist.
    pub ready: Option<u64>,
    /// Subscriptions of all processes; `None` if the broker cannot tell.
    pub consumers: Option<u64>,
    /// Messages among its dead letters; `None` if it never had any.
    pub dead: Option<u64>,
}

/// Messages of a queue that no consumer can take now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldCounts {
    /// Messages that wait for their time; `None` if the broker does not tell.
    pub delayed: Option<u64>,
    /// Deliveries that are not settled; `None` if the broker does not tell.
    pub unacked: Option<u64>,
}

/// Message that somebody has looked at and left where it was.
#[derive(Debug, Clone, PartialEq)]
pub struct PeekedMessage {
    /// The message.
    pub message: Message,
    /// Number of further deliveries after which the broker moves the message to the dead letters by itself; `None` if no
    /// look brings it closer to that.
    pub deliveries_left: Option<u64>,
}

/// Result of the deletion of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueDeletion {
    /// The queue and the queue of its dead letters are gone, or were not there.
    Deleted,
    /// Not deleted, because there are messages.
    NotEmpty {
        /// Messages in the queue.
        ready: u64,
        /// Messages among its dead letters.
        dead: u64,
    },
    /// Not deleted, because somebody consumes the queue.
    Consumed {
        /// Number of consumers.
        consumers: u64,
    },
}

impl QueueDeletion {
    /// Decides from the depth of a queue whether it may be deleted: [`Deleted`](Self::Deleted) if so.
    pub fn decide(depth: &QueueDepth) -> Self {
        let (consumers, ready) = (depth.consumers.unwrap_or(0), depth.ready.unwrap_or(0));
        let dead = depth.dead.unwrap_or(0);
        if consumers > 0 {
            Self::Consumed { consumers }
        } else if ready > 0 || dead > 0 {
            Self::NotEmpty { ready, dead }
        } else {
            Self::Deleted
        }
    }
}

/// Capabilities of a broker adapter beyond the minimum. The conformance suite prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerCapabilities {
    /// Messages survive the end of the process that published them.
    pub durable: bool,
    /// Several processes can share it.
    pub shared: bool,
    /// [`Message::priority`] is honoured.
    pub priority: bool,
    /// Longest delay that the broker keeps, at least one second; `None` if it keeps every delay. A worker publishes a
    /// message again that comes out before its time, so tasks may wait for longer than this.
    pub max_delay: Option<Duration>,
}

/// Message broker: moves opaque messages, at least once.
#[async_trait]
pub trait Broker: Diagnose + fmt::Debug + Send + Sync + 'static {
    /// Returns the capabilities of this adapter.
    fn capabilities(&self) -> BrokerCapabilities;

    /// Returns the name of the closed part of the server in which this broker publishes and consumes, the same for every
    /// spelling of an address: the vhost of RabbitMQ. Empty if the server has no such parts.
    ///
    /// It is under the signature of every task and result, so that a message that was captured in one realm does not run
    /// in another whose workers have the same keys. A broker that wraps another returns the realm of that one.
    fn realm(&self) -> String {
        String::new()
    }

    /// Returns the adapter itself, for what only its kind of server can do, such as sends in a transaction of its database. A
    /// broker that wraps another returns that of the other. Nothing unless it is implemented.
    fn adapter(&self) -> Option<&dyn Any> {
        None
    }

    /// Publishes messages. Returns one answer for each, in their order.
    ///
    /// `Ok` means that the broker has taken responsibility for exactly this message: it is stored as durably as the
    /// broker stores anything, and routed to a queue. All messages of a batch are sent concurrently.
    ///
    /// # Errors
    /// See [`PublishError`]; the error of one message says nothing about the others.
    ///
    /// # Cancel safety
    /// Dropping the future leaves each message either queued or not queued.
    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>>;

    /// Subscribes to queues. Returns once the broker has confirmed the subscription.
    ///
    /// # Errors
    /// [`BrokerError`]; once this has returned `Ok`, the consumer recovers by itself.
    ///
    /// # Cancel safety
    /// Dropping the future ends a subscription that was being made.
    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError>;

    /// Subscribes to a side queue, as [`consume`](Self::consume) does to task queues. Returns `None` if this broker has
    /// no such queue.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    ///
    /// # Cancel safety
    /// Dropping the future ends a subscription that was being made.
    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError>;

    /// Returns the depth of each of these queues, in their order. Consumes nothing.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker cannot be asked; a queue that does not exist is an answer.
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError>;

    /// Returns the numbers of messages of these queues that are delayed or unsettled, in their order. It may cost more than
    /// [`depth`](Self::depth), so workers do not ask for it often. The provided method knows none of them.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker cannot be asked. A broker that does not tell is no error.
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    async fn held(&self, queues: &[QueueName]) -> Result<Vec<HeldCounts>, BrokerError> {
        Ok(vec![HeldCounts::default(); queues.len()])
    }

    /// Looks at the first `limit` messages that wait in a queue, and leaves them there in the order in which they were.
    /// Returns `None` if this broker cannot do that. A queue that does not exist is empty.
    ///
    /// No message is acknowledged, rejected or moved. While an adapter looks, consumers may not see the messages; they see
    /// them as redelivered after that. Where a broker counts looks as deliveries, the answer tells how many are
    /// [left](PeekedMessage::deliveries_left), and callers stop long before the last.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker cannot be asked; [`BrokerError::Refused`] where a look could move or bury messages.
    ///
    /// # Cancel safety
    /// The messages are back in the queue when the broker has noticed that nobody looks any more.
    async fn peek(&self, queue: &QueueName, limit: u16) -> Result<Option<Vec<PeekedMessage>>, BrokerError> {
        let _ = (queue, limit);
        Ok(None)
    }

    /// Ensures that everything exists that messages for these queues may need, including delays of any length, so that
    /// processes without the right to create anything can use it. An adapter that only checks reports what is missing.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker cannot be asked, refuses, or lacks something.
    ///
    /// # Cancel safety
    /// A part may have been created; creating it again is harmless.
    async fn prepare(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        let _ = queues;
        Ok(())
    }

    /// Creates again what messages need and somebody deleted, such as the queues of delays, and returns what threatens
    /// messages. Workers call it when they start and then once a minute. It does nothing unless it is implemented.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker cannot be asked, or refuses.
    ///
    /// # Cancel safety
    /// A part may have been created; the next call creates the rest.
    async fn maintain(&self) -> Result<Vec<Finding>, BrokerError> {
        Ok(Vec::new())
    }

    /// Deletes a task queue and the queue of its dead letters, if both are empty and nobody consumes them. No message is
    /// lost by it: one that is published meanwhile keeps the queue, or its publisher is told that there is none. A
    /// delivery that somebody holds without a subscription may count as gone: callers make sure that no worker is left.
    /// Delayed messages are no reason against it; those that come due for a deleted queue are
    /// [undelivered](SideQueue::Undelivered), where a broker keeps such messages apart.
    ///
    /// The provided method only looks: it is right for a broker whose empty queues cost nothing and need not go.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker cannot be asked, or refuses.
    ///
    /// # Cancel safety
    /// A dropped future leaves each of the two queues there or not; asking again is fine.
    async fn delete_queue(&self, queue: &QueueName) -> Result<QueueDeletion, BrokerError> {
        let depth = self.depth(std::slice::from_ref(queue)).await?.pop();
        Ok(depth.map_or(QueueDeletion::Deleted, |depth| QueueDeletion::decide(&depth)))
    }

    /// Closes the connections after every published message is confirmed or its deadline has passed. Idempotent.
    ///
    /// # Cancel safety
    /// If the future is dropped early, the rest closes when the broker is dropped.
    async fn close(&self);
}

impl Message {
    /// Creates a message about a task that holds only its id, its name and a body.
    pub fn new(id: &TaskId, kind: &TaskName, content_type: &str, body: Bytes) -> Self {
        Self {
            id: Some(id.to_string()),
            kind: Some(kind.to_string()),
            content_type: Some(content_type.to_owned()),
            body,
            ..Self::default()
        }
    }

    /// Returns the approximate size of the body and the headers on the wire, in bytes.
    pub fn size(&self) -> usize {
        let header = |(name, value): (&Cow<'_, str>, &HeaderValue)| name.len() + value.size();
        let properties = [&self.correlation_id, &self.reply_to, &self.content_encoding];
        self.body.len()
            + self.headers.iter().map(header).sum::<usize>()
            + properties.into_iter().flatten().map(String::len).sum::<usize>()
    }

    /// Checks that no header has more than [`MAX_HEADER_DEPTH`] lists and tables inside each other. Adapters refuse such
    /// a message, because nobody would read that header.
    ///
    /// # Errors
    /// [`PublishError::Rejected`].
    pub fn check_depth(&self) -> Result<(), PublishError> {
        match self.headers.iter().find(|(_, value)| !value.is_within(MAX_HEADER_DEPTH)) {
            None => Ok(()),
            Some((name, _)) => Err(PublishError::Rejected {
                reason: format!(
                    "header {name:?} has more than {MAX_HEADER_DEPTH} lists and tables inside each other; flatten it"
                ),
            }),
        }
    }
}

#[cfg(test)]
fn _object_safe(_: &dyn Broker, _: &dyn Consumer, _: &dyn Receipt) {}
