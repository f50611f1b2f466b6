//! The seam to message brokers: something that moves opaque messages and loses none.
//!
//! A broker knows no task, no state and no retry policy. It publishes, it delivers, it settles; it calls nobody
//! back. What an implementation must hold is written on each method and proven by `machinist-conformance`.
//!
//! # Why not a richer seam
//! A broker that runs handlers or decides about acks (as in Go machinery) puts the worker's promises into every
//! adapter. A broker that is only `Stream + Sink` cannot say *unroutable* or *unknown*. So: two directions,
//! plain values, typed errors.
//!
//! # Connections
//! Adapters reconnect by themselves, for ever, with jittered back-off. A [`Consumer`] lives through any number of
//! reconnections; what was delivered before one is delivered again after it.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    clock::Timestamp,
    diagnose::Diagnose,
    error::BoxError,
    header,
    id::{QueueName, TaskId, TaskName},
};

/// A value in a message's headers.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// Bytes that are not text.
    Bytes(Bytes),
}

impl HeaderValue {
    /// The text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
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

/// The headers of a message. Headers whose type a broker cannot carry through are left out, never misread.
///
/// The names of our own are known beforehand ([`header_name`]), and every message has several.
pub type Headers = BTreeMap<Cow<'static, str>, HeaderValue>;

/// The name of a header, without a copy where it is one of ours.
pub fn header_name(name: &str) -> Cow<'static, str> {
    match header::NAMES.iter().find(|known| **known == name) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(name.to_owned()),
    }
}

/// An opaque message: properties, headers, body. Everything here survives the broker unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// The task's id, as text: what comes from outside need not be one (AMQP `message-id`).
    pub id: Option<String>,
    /// The task's name, as text (AMQP `type`).
    pub kind: Option<String>,
    /// The media type of the body (AMQP `content-type`).
    pub content_type: Option<String>,
    /// When it was made (AMQP `timestamp`, whole seconds there).
    pub timestamp: Option<Timestamp>,
    /// 0 (default) to 9, larger is sooner, where the broker and queue can.
    pub priority: Option<u8>,
    /// Who made it (AMQP `app-id`).
    pub app_id: Option<String>,
    /// Headers.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A task queue.
    Queue(QueueName),
    /// The dead letters of a task queue.
    DeadLetters(QueueName),
}

impl Target {
    /// The task queue that is meant, or whose dead letters are.
    pub fn queue(&self) -> &QueueName {
        match self {
            Self::Queue(queue) | Self::DeadLetters(queue) => queue,
        }
    }
}

/// One message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// Where it goes. Declared by the adapter when this process first names it.
    pub target: Target,
    /// What goes there.
    pub message: Message,
    /// How long the broker keeps it before anybody can receive it. Never shortened; it may take longer.
    pub delay: Duration,
}

/// What became of a publish that did not succeed. The three groups ask for different answers:
/// *certainly not queued* (change the message or the queue), *not sent* (try later), *unknown* (send the same id
/// again: it is safe).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Certainly not queued: the queue does not exist, and the adapter does not declare it here.
    #[error("queue {queue} does not exist on the broker")]
    Unroutable {
        /// The queue that was named.
        queue: QueueName,
    },
    /// Certainly not queued: larger than the broker takes.
    #[error("the message has {size} bytes, more than the {limit} that the broker takes")]
    TooLarge {
        /// The message's size in bytes.
        size: usize,
        /// The largest that is possible, in bytes.
        limit: usize,
    },
    /// Certainly not queued: the broker said no (negative confirm, queue at its limit, not permitted, a queue
    /// that exists with other arguments).
    #[error("the broker refused the message: {reason}")]
    Rejected {
        /// What the broker said, and the remedy where there is one.
        reason: String,
    },
    /// Not sent before the deadline: the broker takes no messages now (memory or disk alarm).
    #[error("the broker blocks publishers ({reason})")]
    Blocked {
        /// What the broker said.
        reason: String,
    },
    /// Not sent before the deadline: no connection.
    #[error("the broker cannot be reached")]
    Unavailable(#[source] BoxError),
    /// Sent, and not confirmed: it may be queued or not. Publishing the same message again is safe.
    #[error("the broker did not confirm the message")]
    Unknown(#[source] BoxError),
}

impl PublishError {
    /// Whether the message is certainly not queued and never will be by sending it again unchanged.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::Unroutable { .. } | Self::TooLarge { .. } | Self::Rejected { .. })
    }
}

/// Why a broker could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// It cannot be reached, or did not answer in time. Try again later.
    #[error("the broker cannot be reached")]
    Unavailable(#[source] BoxError),
    /// It can be reached and says no: credentials, permissions, a queue declared elsewhere with other arguments.
    /// Trying again changes nothing; the text names the remedy.
    #[error("the broker refused: {reason}")]
    Refused {
        /// What it said, and the remedy.
        reason: String,
    },
    /// A setting of the adapter is wrong.
    #[error("{0}")]
    Configuration(String),
}

/// What to consume.
#[derive(Debug, Clone)]
pub struct Consume {
    /// The queues, in no order. Declared by the adapter when this process first names them.
    pub queues: Vec<QueueName>,
    /// How many deliveries may be unsettled at once, over all the queues together at least this many and per
    /// queue at most this many. At least 1.
    pub prefetch: u16,
}

/// Where messages lie aside: no task is run from there, and only who puts things in order takes from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SideQueue {
    /// The dead letters of a task queue.
    DeadLetters(QueueName),
    /// What came due for a queue that was gone, where a broker keeps such messages apart. A delivery names the
    /// queue that the message was for.
    Undelivered,
}

/// One message handed to this process, and not yet settled.
#[derive(Debug)]
pub struct Delivery {
    /// The queue it came from.
    pub queue: QueueName,
    /// The message.
    pub message: Message,
    /// Whether the broker has handed it out before. `true` may be said too often, never too seldom.
    pub redelivered: bool,
    /// The way to settle it. Dropped unsettled, the message is delivered again (at the latest when this
    /// consumer stops or its connection ends).
    pub receipt: Box<dyn Receipt>,
}

/// What to do with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// It is done: forget the message.
    Ack,
    /// Hand it back: deliver it again, here or elsewhere.
    Requeue,
}

/// What became of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The broker was told.
    Done,
    /// The connection that delivered it is gone: the message will be delivered again.
    Lost,
}

/// The right and duty to settle one delivery, once.
#[async_trait]
pub trait Receipt: fmt::Debug + Send + Sync {
    /// Tells the broker. Returns when the answer is on its way, not when the broker has read it, so that many
    /// acknowledgements share a packet.
    ///
    /// # Errors
    /// None: a settlement that cannot be told is [`Settled::Lost`], and the message comes again.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the delivery counts as dropped unsettled.
    async fn settle(self: Box<Self>, how: Settle) -> Settled;
}

/// How a subscription is, for those who watch over a process. Outlives the consumer.
#[async_trait]
pub trait SubscriptionHealth: fmt::Debug + Send + Sync {
    /// Asks the broker: it has confirmed the subscription to every queue, and answers a question on the very
    /// connection that delivers, within 5 s.
    ///
    /// # Errors
    /// What is wrong, in words for people.
    ///
    /// # Cancel safety
    /// Safe.
    async fn check(&self) -> Result<(), String>;

    /// A number that grows when the connection that delivers is lost, and whenever this is called while there is none.
    /// What was unsettled then is delivered again, perhaps to others. Nothing is asked of the broker.
    fn disconnects(&self) -> u64;
}

/// A subscription to queues, alive through reconnections.
#[async_trait]
pub trait Consumer: fmt::Debug + Send {
    /// The next delivery; waits for ever while there is none or the broker is away.
    /// `None` only after [`stop`](Self::stop) or the broker's [`close`](Broker::close).
    ///
    /// # Cancel safety
    /// Safe: a dropped future loses no delivery.
    async fn next(&mut self) -> Option<Delivery>;

    /// Ends the subscription: what the broker sent and `next` has not returned is handed back. Deliveries that
    /// were returned can still be settled.
    ///
    /// # Cancel safety
    /// Dropped early, the rest is handed back when the consumer is dropped.
    async fn stop(&mut self);

    /// The way to ask how this subscription is, while somebody else waits for its deliveries.
    fn health(&self) -> Box<dyn SubscriptionHealth>;
}

/// How much lies in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDepth {
    /// The queue.
    pub queue: QueueName,
    /// Messages that wait for a worker; `None` where the queue does not exist.
    pub ready: Option<u64>,
    /// Subscriptions, of all processes; `None` where the broker cannot tell.
    pub consumers: Option<u64>,
    /// Messages among its dead letters; `None` where there never were any.
    pub dead: Option<u64>,
}

/// What a broker adapter can do beyond the minimum. The conformance suite prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerCapabilities {
    /// Messages survive the end of the process that published them.
    pub durable: bool,
    /// Several processes can share it.
    pub shared: bool,
    /// [`Message::priority`] is honoured.
    pub priority: bool,
}

/// Something that moves opaque messages, at least once.
#[async_trait]
pub trait Broker: Diagnose + fmt::Debug + Send + Sync + 'static {
    /// What this adapter can do.
    fn capabilities(&self) -> BrokerCapabilities;

    /// Publishes messages; one answer for each, in their order.
    ///
    /// `Ok` means that the broker has taken responsibility for exactly this message: stored as durably as it
    /// stores anything, and routed to a queue. All of a batch is under way at once.
    ///
    /// # Errors
    /// See [`PublishError`]; one message's error says nothing about its neighbours.
    ///
    /// # Cancel safety
    /// A dropped future leaves each message either queued or not.
    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>>;

    /// Subscribes to queues. Returns once the broker has confirmed the subscription.
    ///
    /// # Errors
    /// [`BrokerError`]; once this has returned `Ok` the consumer heals itself.
    ///
    /// # Cancel safety
    /// A dropped future ends a subscription that was about to be made.
    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError>;

    /// Subscribes to what lies aside, as [`consume`](Self::consume) does to queues; `None` where this broker has no
    /// such place.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    ///
    /// # Cancel safety
    /// A dropped future ends a subscription that was about to be made.
    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError>;

    /// How much lies in these queues, one answer for each, in their order. Consumes nothing.
    ///
    /// # Errors
    /// [`BrokerError`] when the broker cannot be asked; a queue that does not exist is an answer.
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError>;

    /// Makes sure that everything is there that messages for these queues may need, delays of any length included,
    /// so that others can use it who may make nothing themselves. An adapter that only checks says what is missing.
    ///
    /// # Errors
    /// [`BrokerError`] when the broker cannot be asked, refuses, or lacks something.
    ///
    /// # Cancel safety
    /// A part may have been made; making it again is harmless.
    async fn prepare(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        let _ = queues;
        Ok(())
    }

    /// Closes the connections, after what was published is confirmed or its deadline has passed. Idempotent.
    ///
    /// # Cancel safety
    /// Dropped early, the rest closes when the broker is dropped.
    async fn close(&self);
}

impl Message {
    /// A message about a task, with nothing but its names and a body.
    pub fn new(id: &TaskId, kind: &TaskName, content_type: &str, body: Bytes) -> Self {
        Self {
            id: Some(id.to_string()),
            kind: Some(kind.to_string()),
            content_type: Some(content_type.to_owned()),
            body,
            ..Self::default()
        }
    }

    /// The body and the headers, in bytes, about as they travel.
    pub fn size(&self) -> usize {
        let header = |(name, value): (&Cow<'_, str>, &HeaderValue)| {
            name.len()
                + match value {
                    HeaderValue::Text(text) => text.len() + 6,
                    HeaderValue::Bytes(bytes) => bytes.len() + 6,
                    HeaderValue::Int(_) | HeaderValue::Bool(_) => 10,
                }
        };
        self.body.len() + self.headers.iter().map(header).sum::<usize>()
    }
}

#[cfg(test)]
fn _object_safe(_: &dyn Broker, _: &dyn Consumer, _: &dyn Receipt) {}
