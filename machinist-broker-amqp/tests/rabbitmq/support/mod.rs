//! Shared parts of the adapter's tests: a client that is not machinist, and a broker that remembers the queues to delete.

// Each test binary uses another part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use machinist_broker_amqp::{AmqpBroker, AmqpOptions, ExistingQueue};
use machinist_conformance::{BrokerHarness, Proxy, service_url};
use machinist_core::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, HeaderValue, HeldCounts, Message,
        PeekedMessage, Publish, PublishError, QueueDepth, SideQueue,
    },
    diagnose::{Diagnose, Finding},
    id::QueueName,
};

use crate::namespace::delete_delays;

/// Environment variable with the URL of the server.
pub const AMQP_URL: &str = "MACHINIST_TEST_AMQP_URL";

/// Runs a test in a new namespace and leaves nothing behind.
pub async fn in_namespace(test: impl AsyncFnOnce(&Harness)) {
    let Some(server) = service_url(AMQP_URL) else { return };
    let harness = Harness::new(server, format!("test-{:08x}", rand::random::<u32>())).await;
    let outcome = AssertUnwindSafe(test(&harness)).catch_unwind().await;
    harness.clean_up().await;
    delete_delays(&harness.url, &harness.namespace).await.expect("the test broker answers");
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// A broker behind a proxy that can be cut. Everything on it is deleted afterwards.
pub struct Harness {
    pub url: String,
    pub proxy: Proxy,
    pub namespace: String,
    queues: Arc<Mutex<BTreeSet<QueueName>>>,
}

impl Harness {
    pub async fn new(server: String, namespace: impl Into<String>) -> Self {
        let (proxy, url) = Proxy::before(&server).await.expect("a free port");
        Self { url, proxy, namespace: namespace.into(), queues: Arc::default() }
    }

    pub fn options(&self) -> AmqpOptions {
        AmqpOptions { namespace: self.namespace.clone(), ..AmqpOptions::default() }
    }

    pub async fn broker(&self, options: AmqpOptions) -> RecordingBroker {
        let broker = AmqpBroker::connect(&self.url, options).await.expect("the test broker answers");
        RecordingBroker { broker, queues: Arc::clone(&self.queues) }
    }

    /// Name of a queue on the broker.
    pub fn on_broker(&self, queue: &QueueName) -> String {
        format!("{}:{queue}", self.namespace)
    }
}

#[async_trait]
impl BrokerHarness for Harness {
    async fn connect(&self) -> Arc<dyn Broker> {
        Arc::new(self.broker(self.options()).await)
    }

    async fn interrupt(&self) -> bool {
        self.proxy.cut();
        true
    }

    async fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        let raw = Raw::connect(&self.url).await;
        let mut letters = Vec::new();
        while let Some(letter) = raw.get(&format!("{}.dead", self.on_broker(queue))).await {
            letters.push(letter);
        }
        letters
    }

    async fn delete_queue(&self, queue: &QueueName) -> bool {
        Raw::connect(&self.url).await.delete_queue(&self.on_broker(queue)).await;
        true
    }

    async fn connect_with_limit(&self, queue: &QueueName, limit: u32) -> Option<Arc<dyn Broker>> {
        let name = self.on_broker(queue);
        Raw::connect(&self.url).await.declare(&name, &at_most(limit)).await;
        let existing_queues = HashMap::from([(queue.clone(), ExistingQueue::new(name))]);
        Some(Arc::new(self.broker(AmqpOptions { existing_queues, ..self.options() }).await))
    }

    async fn orders_by_priority(&self, broker: &dyn Broker) -> bool {
        let findings = broker.diagnose().await;
        let version =
            findings.iter().find(|finding| finding.subject == "version").expect("a diagnosis tells it");
        let numbers = version.found.split_once(' ').map_or("", |(_, numbers)| numbers).split('.');
        let mut numbers = numbers.map_while(|number| number.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(4), Some(3))
    }

    fn delivers_returned_first(&self) -> bool {
        true
    }

    async fn clean_up(&self) {
        let queues: Vec<_> = self.queues.lock().unwrap().iter().cloned().collect();
        let raw = Raw::connect(&self.url).await;
        for queue in queues {
            let name = self.on_broker(&queue);
            raw.delete_queue(&name).await;
            raw.delete_queue(&format!("{name}.dead")).await;
        }
    }
}

/// Arguments of a queue that refuses messages while about this many wait.
pub fn at_most(limit: u32) -> [(&'static str, AMQPValue); 3] {
    [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-max-length", AMQPValue::LongLongInt(limit.into())),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ]
}

/// A client of the broker that is not machinist.
pub struct Raw {
    pub channel: Channel,
    connection: Connection,
}

impl Raw {
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        Self { channel: connection.create_channel().await.unwrap(), connection }
    }

    /// Maximum number of channels of a connection, as the broker has stated it.
    pub fn max_channels(&self) -> usize {
        self.connection.configuration().channel_max().into()
    }

    pub async fn declare(&self, queue: &str, arguments: &[(&str, AMQPValue)]) {
        let mut table = FieldTable::default();
        for (key, value) in arguments {
            table.insert((*key).into(), value.clone());
        }
        self.channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), table).await.unwrap();
    }

    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions::default();
        let bind = self.channel.queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            options,
            FieldTable::default(),
        );
        bind.await.unwrap();
    }

    /// Number of messages of a queue that nobody holds.
    pub async fn ready(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declared = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        declared.unwrap().message_count()
    }

    pub async fn delete_queue(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    pub async fn publish(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions::default();
        self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
    }

    pub async fn get(&self, queue: &str) -> Option<Message> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()?;
        let properties = &got.delivery.properties;
        let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
        let headers = properties.headers().as_ref().map(|table| {
            let added = ["x-delivery-count"];
            let ours = table.inner().iter().filter(|(name, _)| !added.contains(&name.as_str()));
            ours.map(|(name, value)| (name.to_string().into(), header(value))).collect()
        });
        Some(Message {
            id: text(properties.message_id()),
            kind: text(properties.kind()),
            content_type: text(properties.content_type()),
            timestamp: properties
                .timestamp()
                .map(|seconds| machinist_core::clock::Timestamp::from_micros(seconds as i64 * 1_000_000)),
            priority: *properties.priority(),
            app_id: text(properties.app_id()),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            content_encoding: text(properties.content_encoding()),
            headers: headers.unwrap_or_default(),
            body: Bytes::from(got.delivery.data.clone()),
        })
    }
}

fn header(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(truth) => HeaderValue::Bool(*truth),
        AMQPValue::LongLongInt(number) => HeaderValue::Int(*number),
        AMQPValue::LongString(text) => HeaderValue::Text(text.to_string()),
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes.as_slice())),
        AMQPValue::Double(number) => HeaderValue::Float(*number),
        AMQPValue::Void => HeaderValue::Null,
        AMQPValue::FieldArray(all) => HeaderValue::List(all.as_slice().iter().map(header).collect()),
        AMQPValue::FieldTable(all) => {
            let all = all.inner().iter().map(|(name, value)| (name.to_string(), header(value)));
            HeaderValue::Table(all.collect())
        }
        other => panic!("no test sends {other:?}"),
    }
}

/// A broker that remembers the queues that it is asked about, so that a test leaves none behind.
#[derive(Debug)]
pub struct RecordingBroker {
    broker: AmqpBroker,
    queues: Arc<Mutex<BTreeSet<QueueName>>>,
}

impl RecordingBroker {
    fn remember<'a>(&self, queues: impl Iterator<Item = &'a QueueName>) {
        self.queues.lock().unwrap().extend(queues.cloned());
    }
}

#[async_trait]
impl Diagnose for RecordingBroker {
    fn location(&self) -> String {
        self.broker.location()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.broker.diagnose().await
    }
}

#[async_trait]
impl Broker for RecordingBroker {
    fn capabilities(&self) -> BrokerCapabilities {
        self.broker.capabilities()
    }

    fn realm(&self) -> String {
        self.broker.realm()
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        self.remember(batch.iter().map(|publish| publish.target.queue()));
        self.broker.publish(batch).await
    }

    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.remember(what.queues.iter());
        self.broker.consume(what).await
    }

    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        self.broker.consume_side_queue(from, prefetch).await
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        self.broker.depth(queues).await
    }

    async fn held(&self, queues: &[QueueName]) -> Result<Vec<HeldCounts>, BrokerError> {
        self.broker.held(queues).await
    }

    async fn peek(&self, queue: &QueueName, limit: u16) -> Result<Option<Vec<PeekedMessage>>, BrokerError> {
        self.remember([queue].into_iter());
        self.broker.peek(queue, limit).await
    }

    async fn prepare(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.remember(queues.iter());
        self.broker.prepare(queues).await
    }

    async fn maintain(&self) -> Result<Vec<Finding>, BrokerError> {
        self.broker.maintain().await
    }

    async fn close(&self) {
        self.broker.close().await;
    }
}
