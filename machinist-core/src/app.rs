//! What senders and workers share: the broker, the backend, and what the application agreed on.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    args::Results,
    backend::{Backend, BackendError},
    broker::Broker,
    client::Client,
    clock::Clock,
    codec::Codec,
    id::{QueueName, TaskId},
    middleware::PublishHook,
    result::AsyncResult,
};

/// How often a process asks the backend what time it is.
const TIME_CHECK: Duration = Duration::from_secs(60);

/// An application: a broker, a backend, and its defaults. Cheap to clone.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use machinist_core::{App, memory::{MemoryBackend, MemoryBroker}};
/// use std::sync::Arc;
///
/// let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()))
///     .default_queue("mail".try_into()?)
///     .build()
///     .await?;
/// let client = app.client();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct App(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) clock: Clock,
    pub(crate) default_queue: QueueName,
    pub(crate) results_ttl: Duration,
    pub(crate) codec: Codec,
    pub(crate) hooks: Vec<Arc<dyn PublishHook>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("broker", &self.broker.location())
            .field("backend", &self.backend.location())
            .finish_non_exhaustive()
    }
}

impl App {
    /// An application over this broker and this backend.
    pub fn builder(broker: Arc<dyn Broker>, backend: Arc<dyn Backend>) -> AppBuilder {
        AppBuilder {
            broker,
            backend,
            // INVARIANT: the name is allowed.
            default_queue: QueueName::parse("default").expect("a plain word"),
            results_ttl: Duration::from_secs(24 * 3600),
            codec: Codec::default(),
            hooks: Vec::new(),
        }
    }

    /// A client that sends signatures.
    pub fn client(&self) -> Client {
        Client::new(self.clone())
    }

    /// The result of a task that was sent earlier, perhaps by another process.
    pub fn result(&self, id: TaskId) -> AsyncResult<Results> {
        AsyncResult::reopened(self.clone(), id)
    }

    /// The broker.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.0.broker
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.0.backend
    }

    /// Backend time, as this process knows it.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Where signatures go that name no queue.
    pub fn default_queue(&self) -> &QueueName {
        &self.0.default_queue
    }
}

/// Makes an [`App`].
#[must_use]
pub struct AppBuilder {
    broker: Arc<dyn Broker>,
    backend: Arc<dyn Backend>,
    default_queue: QueueName,
    results_ttl: Duration,
    codec: Codec,
    hooks: Vec<Arc<dyn PublishHook>>,
}

impl std::fmt::Debug for AppBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppBuilder").field("default_queue", &self.default_queue).finish_non_exhaustive()
    }
}

impl AppBuilder {
    /// Where signatures go that name no queue; `default` unless set.
    pub fn default_queue(mut self, queue: QueueName) -> Self {
        self.default_queue = queue;
        self
    }

    /// How long a record is kept after its task has ended; a day unless set, never less than 15 minutes.
    pub fn results_ttl(mut self, ttl: Duration) -> Self {
        self.results_ttl = ttl;
        self
    }

    /// How bodies are written; MessagePack unless set. Both codecs are always read.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Shows every signature to `hook` before it is sent.
    pub fn on_publish(mut self, hook: impl PublishHook) -> Self {
        self.hooks.push(Arc::new(hook));
        self
    }

    /// Asks the backend for its time and makes the application.
    ///
    /// # Errors
    /// [`BackendError`] if the backend cannot be asked.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn build(self) -> Result<App, BackendError> {
        let asked = Instant::now();
        let now = self.backend.now().await?;
        let clock = Clock::starting_at(now);
        clock.learn(asked, now);
        let shared = Arc::new(Shared {
            broker: self.broker,
            backend: self.backend,
            clock,
            default_queue: self.default_queue,
            results_ttl: self.results_ttl,
            codec: self.codec,
            hooks: self.hooks,
        });
        tokio::spawn(keep_time(Arc::downgrade(&shared)));
        Ok(App(shared))
    }
}

/// Asks for backend time now and then, for as long as the application is there.
async fn keep_time(app: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(TIME_CHECK).await;
        let Some(app) = app.upgrade() else { return };
        let asked = Instant::now();
        match app.backend.now().await {
            Ok(now) => app.clock.learn(asked, now),
            Err(error) => tracing::debug!(%error, "the backend did not tell the time; going on with ours"),
        }
    }
}
