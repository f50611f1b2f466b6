//! Shared parts of the adapter's tests: a schema for each test, and a connection that is not machinist.

use std::time::Duration;

use machinist_conformance::{Proxy, service_url};
use machinist_core::{
    broker::{Broker, Consume, Consumer, Message, Publish, PublishError, Target},
    id::{QueueName, TaskId},
};
use machinist_postgres::{PostgresOptions, PostgresStore, tokio_postgres};

/// Environment variable with the URL of the server.
pub(crate) const POSTGRES_URL: &str = "MACHINIST_TEST_POSTGRES_URL";

/// Maximum time of one step of a test: it ends a test that hangs, on a slow machine too.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(300);

/// A schema that no other test has, on the server of the tests.
pub(crate) struct Schema {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Schema {
    /// `None` where there is no server to test with.
    pub(crate) fn fresh() -> Option<Self> {
        let url = service_url(POSTGRES_URL)?;
        Some(Self { url, name: format!("test-{}", TaskId::fresh()) })
    }

    pub(crate) fn options(&self) -> PostgresOptions {
        PostgresOptions { namespace: self.name.clone(), ..PostgresOptions::default() }
    }

    pub(crate) async fn connect(&self) -> PostgresStore {
        self.connect_through(&self.url).await
    }

    pub(crate) async fn connect_through(&self, url: &str) -> PostgresStore {
        PostgresStore::connect(url, self.options()).await.expect("the test server is there")
    }

    /// A connection beside the adapter, to look and to break things.
    pub(crate) async fn side_door(&self) -> tokio_postgres::Client {
        side_door(&self.url).await
    }

    /// Runs statements in which `{s}` stands for the schema.
    pub(crate) async fn run(&self, sql: &str) {
        let sql = sql.replace("{s}", &format!("\"{}\"", self.name));
        self.side_door().await.batch_execute(&sql).await.unwrap();
    }

    /// Returns the number that a question answers.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        let sql = sql.replace("{s}", &format!("\"{}\"", self.name));
        self.side_door().await.query_one(&sql, &[]).await.unwrap().get(0)
    }

    /// Lets another process find the leases of all holders expired.
    pub(crate) async fn expire_leases(&self) {
        self.run("DELETE FROM {s}.holders; UPDATE {s}.messages SET holder = NULL WHERE holder IS NOT NULL")
            .await;
    }

    /// Deletes what a test left behind.
    pub(crate) async fn drop(&self) {
        self.run("SET client_min_messages = error; DROP SCHEMA IF EXISTS {s} CASCADE").await;
    }
}

pub(crate) async fn side_door(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A proxy in front of the test server, and the URL that leads through it.
pub(crate) async fn proxy(url: &str) -> (Proxy, String) {
    Proxy::before(url).await.expect("a free port")
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::parse(name).unwrap()
}

pub(crate) async fn try_publish(
    broker: &dyn Broker,
    queue: &QueueName,
    number: usize,
) -> Result<(), PublishError> {
    let message = Message { body: number.to_string().into(), ..Message::default() };
    let publish = Publish { target: Target::Queue(queue.clone()), message, delay: Duration::ZERO };
    broker.publish(vec![publish]).await.remove(0)
}

pub(crate) async fn publish(broker: &dyn Broker, queue: &QueueName, numbers: std::ops::Range<usize>) {
    for number in numbers {
        try_publish(broker, queue, number).await.unwrap();
    }
}

pub(crate) async fn consume(broker: &dyn Broker, queue: &QueueName, prefetch: u16) -> Box<dyn Consumer> {
    broker.consume(Consume { queues: vec![queue.clone()], prefetch }).await.unwrap()
}

pub(crate) fn number_of(message: &Message) -> usize {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}
