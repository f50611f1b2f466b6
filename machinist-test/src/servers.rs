//! Fixtures over real servers: what a broker or a Redis does is tested on one, and not on its likeness in memory.
//!
//! Each fixture has its own namespace, so tests share servers and may run side by side. A test without servers says so and
//! passes, unless `MACHINIST_REQUIRE_SERVICES=1` forbids it.

use std::{fmt, sync::Arc, time::Duration};

use machinist_backend_redis::{RedisBackend, RedisOptions};
use machinist_broker_amqp::{AmqpBroker, AmqpOptions};
use machinist_conformance::service_url;
use machinist_core::{
    App, AppBuilder, Client, PurgeMode, TaskId, Worker, WorkerBuilder,
    error::chain_text,
    worker::{Drained, WorkerError},
};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::built;

/// Variable with the URL of RabbitMQ.
const AMQP_URL: &str = "MACHINIST_TEST_AMQP_URL";
/// Variable with the URL of Redis.
const REDIS_URL: &str = "MACHINIST_TEST_REDIS_URL";
/// Time for which Redis keeps what a test leaves behind.
const KEPT: Duration = Duration::from_secs(600);
/// Time within which a worker has to start, or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// An application over the RabbitMQ of `MACHINIST_TEST_AMQP_URL` and the Redis of `MACHINIST_TEST_REDIS_URL`, in a new
/// namespace.
///
/// # Examples
/// ```no_run
/// use machinist_core::{TaskDef, TaskError};
/// use machinist_test::TestServers;
/// use std::time::Duration;
///
/// const DOUBLE: TaskDef<i64, i64> = TaskDef::new("double");
///
/// async fn double(n: i64) -> Result<i64, TaskError> {
///     Ok(2 * n)
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let Some(servers) = TestServers::connect().await else { return Ok(()) };
/// let worker = servers.start(|worker| worker.task(DOUBLE, double)).await;
/// let sent = servers.client().send(DOUBLE.call(21)).await?;
/// assert_eq!(sent.wait(Duration::from_secs(30)).await?, 42);
/// worker.stop().await;
/// servers.clean_up().await;
/// # Ok(())
/// # }
/// ```
pub struct TestServers {
    app: App,
    namespace: String,
}

impl TestServers {
    /// Connects without keys. Returns `None` without servers, after a line on stderr.
    ///
    /// # Panics
    /// If a server does not answer, and if a variable is missing although `MACHINIST_REQUIRE_SERVICES` is `1`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connect() -> Option<Self> {
        Self::with(AppBuilder::allow_unsigned).await
    }

    /// Connects as [`connect`](Self::connect) does; `adjust` changes the builder of the application: keys, hooks, codec,
    /// middleware. It has to give keys or to allow unsigned tasks.
    ///
    /// # Panics
    /// As [`connect`](Self::connect), and if the application cannot be built.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn with(adjust: impl FnOnce(AppBuilder) -> AppBuilder) -> Option<Self> {
        let (amqp, redis) = (service_url(AMQP_URL)?, service_url(REDIS_URL)?);
        // At most 40 characters, of which the id has 36.
        let namespace = format!("t-{}", TaskId::fresh());
        let options = AmqpOptions { namespace: namespace.clone(), ..AmqpOptions::default() };
        let broker = match AmqpBroker::connect(&amqp, options).await {
            Ok(broker) => broker,
            Err(error) => panic!("the RabbitMQ of {AMQP_URL} does not answer: {}", chain_text(&error)),
        };
        let options = RedisOptions { prefix: namespace.clone(), ..RedisOptions::default() };
        let backend = match RedisBackend::connect(&redis, options).await {
            Ok(backend) => backend,
            Err(error) => panic!("the Redis of {REDIS_URL} does not answer: {}", chain_text(&error)),
        };
        let builder =
            App::builder(Arc::new(broker), Arc::new(backend)).namespace(&namespace).results_ttl(KEPT);
        Some(Self { app: built(adjust(builder)).await, namespace })
    }

    /// Returns the application.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Returns a client.
    pub fn client(&self) -> Client {
        self.app.client()
    }

    /// Returns the namespace: the prefix of the queues on RabbitMQ and of the keys in Redis.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Starts a worker with these tasks, and waits until it consumes.
    ///
    /// # Panics
    /// If the worker cannot be built, or does not consume within a minute.
    ///
    /// # Cancel safety
    /// A dropped future leaves a worker that stops.
    pub async fn start(&self, set_up: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> TestWorker {
        let worker = match set_up(Worker::builder(&self.app)).build() {
            Ok(worker) => worker,
            Err(error) => panic!("the worker cannot be built: {}", chain_text(&error)),
        };
        let (ready, stop) = (worker.ready(), CancellationToken::new());
        let working = tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
        let stop = stop.drop_guard();
        let consumes = tokio::time::timeout(PATIENCE, ready.cancelled()).await;
        assert!(consumes.is_ok(), "the worker does not consume within {PATIENCE:?}");
        TestWorker { stop, working }
    }

    /// Revokes the tasks that wait, deletes the queues, and closes the connections. What Redis holds expires within ten
    /// minutes. Stop the workers before.
    ///
    /// # Panics
    /// If a server refuses.
    ///
    /// # Cancel safety
    /// A dropped future leaves some queues there.
    pub async fn clean_up(self) {
        let client = self.client();
        let done: Result<(), Box<dyn std::error::Error>> = async {
            for queue in client.listed_queues().await?.into_keys() {
                client.purge_queue(&queue, PurgeMode::End, |_| ()).await?;
                self.app.broker().delete_queue(&queue).await?;
            }
            Ok(())
        }
        .await;
        if let Err(error) = done {
            panic!("the queues of {} are not deleted: {}", self.namespace, chain_text(&*error));
        }
        self.app.broker().close().await;
    }
}

impl fmt::Debug for TestServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServers").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// A worker over real servers. Dropped, it is asked to stop, and nobody waits for its end.
#[derive(Debug)]
#[must_use = "the worker stops when this is dropped"]
pub struct TestWorker {
    stop: DropGuard,
    working: JoinHandle<Result<Drained, WorkerError>>,
}

impl TestWorker {
    /// Stops the worker, and waits for its end. Tasks that run have their grace.
    ///
    /// # Panics
    /// If the worker ends with an error, or not within a minute.
    ///
    /// # Cancel safety
    /// A dropped future leaves a worker that stops.
    pub async fn stop(self) -> Drained {
        drop(self.stop);
        match tokio::time::timeout(PATIENCE, self.working).await {
            Ok(Ok(Ok(drained))) => drained,
            Ok(Ok(Err(error))) => panic!("the worker ended with an error: {}", chain_text(&error)),
            Ok(Err(error)) => panic!("the worker panicked: {error}"),
            Err(_) => panic!("the worker does not end within {PATIENCE:?}"),
        }
    }
}
