//! Servers of the test: an SQLite file, or Redis and RabbitMQ behind a proxy that counts connections.

use std::{sync::Arc, time::Duration};

use lapin::{
    Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueDeleteOptions},
    types::AMQPValue,
};
use machinist::{
    TaskId,
    amqp::{AmqpBroker, AmqpOptions},
    backend::Backend,
    broker::{Broker, Consume},
    redis::{RedisBackend, RedisOptions},
    sqlite::{SqliteOptions, SqliteStore, Synchronous},
};
use machinist_conformance::{Proxy, service_url};

use crate::{
    corpus::Corpus,
    namespace::delete_delays,
    queue,
    raw::{RawMessage, RawPublisher, entry, long},
};

/// Header with the number of a hostile message. Several are equal in everything else. Tasks that were accepted lose it, and
/// have different ids; messages that no library can write have different bodies.
pub(crate) const NUMBER: &str = "x-number";
const DEAD_REASON: &str = "machinist-dead-reason";

pub(crate) enum Servers {
    File(tempfile::TempDir),
    Network(Box<Network>),
}

pub(crate) struct Network {
    server: String,
    amqp: (Proxy, String),
    redis: String,
    namespace: String,
}

pub(crate) fn file() -> Servers {
    Servers::File(tempfile::tempdir().unwrap())
}

/// Returns the test servers behind proxies; `None` if there are no test servers.
pub(crate) async fn network() -> Option<Servers> {
    let server = service_url("MACHINIST_TEST_AMQP_URL")?;
    let redis = service_url("MACHINIST_TEST_REDIS_URL")?;
    Some(Servers::Network(Box::new(Network {
        amqp: Proxy::before(&server).await.unwrap(),
        redis,
        server,
        namespace: format!("t-{}", TaskId::fresh()),
    })))
}

impl Servers {
    /// Opens new connections, as another process would.
    pub(crate) async fn open(&self) -> (Arc<dyn Broker>, Arc<dyn Backend>) {
        match self {
            Self::File(folder) => {
                let store = open(folder).await;
                (Arc::new(store.broker()), Arc::new(store.backend()))
            }
            Self::Network(network) => {
                let options = AmqpOptions { namespace: network.namespace.clone(), ..AmqpOptions::default() };
                let broker = AmqpBroker::connect(&network.amqp.1, options).await.unwrap();
                let options = RedisOptions { prefix: network.namespace.clone(), ..RedisOptions::default() };
                let backend = RedisBackend::connect(&network.redis, options).await.unwrap();
                (Arc::new(broker), Arc::new(backend))
            }
        }
    }

    /// Returns the number of connections to the broker so far.
    pub(crate) fn connections(&self) -> u64 {
        match self {
            Self::File(_) => 0,
            Self::Network(network) => network.amqp.0.connections(),
        }
    }

    /// Publishes messages that a library cannot write. Returns the expected reasons of those that the broker accepts.
    pub(crate) async fn publish_raw(&self, corpus: &Corpus, round: usize) -> Vec<&'static str> {
        let Self::Network(network) = self else { return Vec::new() };
        let url = network.server.clone();
        let messages = raw_messages(corpus, &format!("{}:{}", network.namespace, queue()), round);
        let publish = move || {
            let mut publisher = RawPublisher::connect(&url);
            let mut taken = 0;
            for message in &messages {
                if publisher.publish(message) {
                    taken += 1;
                } else {
                    publisher = RawPublisher::connect(&url);
                }
            }
            taken
        };
        let taken = tokio::task::spawn_blocking(publish).await.unwrap();
        assert!(taken > 10, "the broker takes nearly all of them");
        vec!["undecodable"; taken]
    }

    /// Removes all dead letters. Returns of each what its message was, and the reason: a message is buried again if its worker
    /// did not have the answer of the broker in time.
    pub(crate) async fn dead_letters(&self) -> Vec<(String, String)> {
        match self {
            Self::File(folder) => {
                let db = rusqlite::Connection::open(folder.path().join("machinist.db")).unwrap();
                // The dead letters are in a queue whose name is not allowed; under another marker they can be consumed.
                db.execute("UPDATE queues SET dead = 0, name = 'opened' WHERE dead = 1", []).unwrap();
                let opened = "opened".try_into().unwrap();
                let broker = open(folder).await.broker();
                let count = broker.depth(std::slice::from_ref(&opened)).await.unwrap()[0].ready.unwrap();
                let what = Consume { queues: vec![opened], prefetch: u16::MAX };
                let mut consumer = broker.consume(what).await.unwrap();
                let mut letters = Vec::new();
                for _ in 0..count {
                    let letter = consumer.next().await.unwrap().message;
                    let message = match letter.headers.get(NUMBER) {
                        Some(number) => format!("{number:?}"),
                        None => format!("{:?} {:?}", letter.id, letter.body),
                    };
                    letters.push((message, letter.headers[DEAD_REASON].as_text().unwrap().to_owned()));
                }
                letters
            }
            Self::Network(network) => network.dead_letters().await,
        }
    }

    /// Removes everything from the shared servers.
    pub(crate) async fn clean_up(&self) {
        let Self::Network(network) = self else { return };
        delete_delays(&network.server, &network.namespace).await.unwrap();
        let channel = network.channel().await;
        let task = format!("{}:{}", network.namespace, queue());
        for queue in [format!("{task}.dead"), task] {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        }
    }
}

async fn open(folder: &tempfile::TempDir) -> SqliteStore {
    let options = SqliteOptions { synchronous: Synchronous::Normal, ..SqliteOptions::default() };
    SqliteStore::open(folder.path().join("machinist.db"), options).await.unwrap()
}

impl Network {
    async fn channel(&self) -> lapin::Channel {
        let connection = Connection::connect(&self.server, ConnectionProperties::default()).await.unwrap();
        connection.create_channel().await.unwrap()
    }

    /// Returns all bytes of a queue of the broker as text; the messages stay in the queue.
    pub(crate) async fn bytes_of_queue(&self, name: &str) -> String {
        let channel = self.channel().await;
        let mut all = String::new();
        let name = format!("{}:{name}", self.namespace);
        // The messages return to the queue when the channel is closed, and none is fetched twice before.
        let options = BasicGetOptions { no_ack: false };
        while let Some(got) = channel.basic_get(name.as_str().into(), options).await.unwrap() {
            all += &format!("{:?} ", got.delivery.properties);
            all += &String::from_utf8_lossy(&got.delivery.data);
        }
        channel.close(200, "looked".into()).await.unwrap();
        all
    }

    /// Returns all bytes of the backend as text.
    pub(crate) async fn bytes_of_backend(&self) -> String {
        let client = redis::Client::open(self.redis.as_str()).unwrap();
        // A busy disk may stop the server for longer than the 500 ms for which this client waits unless told otherwise.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let pattern = format!("{}*", self.namespace);
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
        let mut all = String::new();
        for key in keys {
            let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut connection).await.unwrap();
            let mut read = match kind.as_str() {
                "hash" => redis::cmd("HGETALL"),
                "zset" => redis::cmd("ZRANGE"),
                "set" => redis::cmd("SMEMBERS"),
                _ => redis::cmd("GET"),
            };
            read.arg(&key);
            if kind == "zset" {
                read.arg(0).arg(-1);
            }
            let value: redis::Value = read.query_async(&mut connection).await.unwrap();
            all += &format!("{key} ");
            flatten(&value, &mut all);
        }
        all
    }

    async fn dead_letters(&self) -> Vec<(String, String)> {
        let channel = self.channel().await;
        let name = format!("{}:{}.dead", self.namespace, queue());
        let mut letters = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = channel.basic_get(name.as_str().into(), options).await.unwrap() {
            let headers = got.delivery.properties.headers().clone().unwrap();
            let reason = match &headers.inner()[DEAD_REASON] {
                AMQPValue::LongString(text) => text.to_string(),
                other => panic!("{other:?}"),
            };
            let message = match headers.inner().get(NUMBER) {
                Some(number) => format!("{number:?}"),
                None => format!("{:?} {:?}", got.delivery.properties.message_id(), got.delivery.data),
            };
            letters.push((message, reason));
        }
        letters
    }
}

fn flatten(value: &redis::Value, all: &mut String) {
    match value {
        redis::Value::BulkString(bytes) => *all += &String::from_utf8_lossy(bytes),
        redis::Value::Array(inner) => inner.iter().for_each(|value| flatten(value, all)),
        redis::Value::Map(inner) => inner.iter().for_each(|(k, v)| {
            flatten(k, all);
            flatten(v, all);
        }),
        other => *all += &format!("{other:?}"),
    }
    all.push(' ');
}

/// Returns nested tables, as deep as one frame allows.
fn nested(depth: usize) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..depth {
        value = entry(b"", b'F', &long(&value));
    }
    value
}

/// Returns nested lists.
fn listed(depth: usize) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..depth {
        value = [&b"A"[..], &long(&value)].concat();
    }
    entry(b"list", b'A', &long(&value))
}

fn raw_messages(corpus: &Corpus, queue: &str, round: usize) -> Vec<RawMessage> {
    let no_text = || Some(b"caf\xe9 \xff\xfe".to_vec());
    let good = || RawMessage {
        routing_key: queue.as_bytes().to_vec(),
        content_type: Some(b"application/msgpack".to_vec()),
        message_id: Some(format!("raw-{round}").into_bytes()),
        kind: Some(b"evil".to_vec()),
        body: corpus.body().to_vec(),
        ..RawMessage::default()
    };
    let with_headers = |headers: Vec<u8>| RawMessage { headers: Some(headers), ..good() };
    let copied = [&b"S"[..], &long(queue.as_bytes())].concat();
    let mut messages = vec![
        RawMessage { message_id: no_text(), ..good() },
        RawMessage { kind: no_text(), ..good() },
        RawMessage { content_type: no_text(), ..good() },
        RawMessage { app_id: no_text(), ..good() },
        RawMessage { correlation_id: no_text(), reply_to: no_text(), ..good() },
        with_headers(entry(b"caf\xe9\xff", b'S', &long(b"x"))),
        with_headers(entry(b"x-text", b'S', &long(b"caf\xe9\xff"))),
        with_headers(entry(b"machinist-queue", b'S', &long(b"math\xe9\xff"))),
        with_headers(entry(b"x-float", b'd', &f64::NAN.to_be_bytes())),
        with_headers(entry(b"x-void", b'V', b"")),
        with_headers(nested(5)),
        with_headers(nested(2_500)),
        with_headers(listed(5)),
        with_headers(listed(3_000)),
        // The queue is bound by a header, so that the routing key can be anything.
        RawMessage {
            routing_key: b"caf\xe9\xff".to_vec(),
            headers: Some(entry(b"CC", b'A', &long(&copied))),
            ..good()
        },
    ];
    for (number, message) in messages.iter_mut().enumerate() {
        message.body.extend(format!("{round}.{number}").into_bytes());
    }
    messages
}
