//! The application: broker, backend, clock, keys and defaults, shared by senders and workers.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    args::Arg,
    backend::{Backend, BackendError},
    broker::{Broker, Message, PublishError},
    clock::{Clock, Timestamp},
    error::BoxError,
    event::{Event, EventKind, Observer, Observers},
    event_stream::{EventPublisher, PublishedEvents},
    fair_queues::{FairQueues, FairShare},
    history::HistoryRecorder,
    id::{InvalidName, QueueName, TaskName},
    log_lines::LogLines,
    middleware::{Middleware, PublishHook},
    priority_queues::PriorityQueues,
    queue_depths::QueueDepths,
    queue_list::ListedQueues,
    record::{FactName, name},
    security::{QueueOptions, QueueRules, Trust, is_encrypted},
    send_buffer::{BufferLimits, SendBuffer},
    sign::{KeyError, Keyring, SigningScope},
    wire::{Body, Codec, Envelope, MaxSizes, NestedTasks, message_to_fact, write_foreign},
};

/// Interval at which a process asks the backend for its time.
const TIME_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Difference between the backend's answer and the expected time, in microseconds, that is logged as a jump.
const TIME_JUMP_MICROS: u64 = 2_000_000;

/// An application: a broker, a backend, and its defaults. Cheap to clone.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use machinist_core::{App};
/// use machinist_memory::{MemoryBackend, MemoryBroker};
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
pub struct App(pub(crate) Arc<AppState>);

pub(crate) struct AppState {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) clock: Clock,
    pub(crate) default_queue: QueueName,
    pub(crate) results_ttl: Duration,
    pub(crate) codec: Codec,
    pub(crate) hooks: Vec<Arc<dyn PublishHook>>,
    pub(crate) observers: Observers,
    pub(crate) published_events: Arc<EventPublisher>,
    pub(crate) history: HistoryRecorder,
    /// Middleware of every worker.
    pub(crate) middleware: Vec<Arc<dyn Middleware>>,
    /// Defaults of the workers, whose type belongs to the worker.
    pub(crate) worker_defaults: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) max_sizes: MaxSizes,
    pub(crate) trust: Trust,
    pub(crate) rules: QueueRules,
    pub(crate) log_lines: LogLines,
    pub(crate) listed_queues: ListedQueues,
    pub(crate) depths: QueueDepths,
    pub(crate) buffer: Arc<SendBuffer>,
    pub(crate) priority_queues: PriorityQueues,
    pub(crate) fair_queues: FairQueues,
}

impl AppState {
    /// Returns the queue for a task of this queue: one for its share, for its priority or for both, where the queue has them.
    pub(crate) fn separate_queue(
        &self,
        queue: QueueName,
        fair_key: Option<&str>,
        args: &[Arg],
        headers: &BTreeMap<String, String>,
        priority: Option<u8>,
    ) -> Result<QueueName, InvalidName> {
        let queue = self
            .fair_queues
            .queue_of(queue, |template| fair_key.map_or_else(|| template.of(args, headers), str::to_owned))?;
        self.priority_queues.queue_of(queue, priority)
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("broker", &self.broker.location())
            .field("backend", &self.backend.location())
            .finish_non_exhaustive()
    }
}

impl App {
    /// Starts an application over this broker and this backend.
    pub fn builder(broker: Arc<dyn Broker>, backend: Arc<dyn Backend>) -> AppBuilder {
        AppBuilder {
            broker,
            backend,
            // INVARIANT: the name is allowed.
            default_queue: QueueName::parse("default").expect("a plain word"),
            results_ttl: Duration::from_secs(24 * 3600),
            codec: Codec::default(),
            hooks: Vec::new(),
            observers: Observers::default(),
            published_events: PublishedEvents::Off,
            middleware: Vec::new(),
            worker_defaults: None,
            max_sizes: MaxSizes::default(),
            keyring: None,
            allow_unsigned: false,
            freshness: None,
            namespace: String::new(),
            realm: None,
            queues: HashMap::new(),
            max_depths: HashMap::new(),
            buffer: BufferLimits::default(),
            priority_queues: HashSet::new(),
            fair_queues: HashMap::new(),
        }
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

    /// Puts another key ring in the place of the present one, for what is signed and verified from now on: a
    /// rotation without a restart.
    ///
    /// # Errors
    /// [`KeyError::NoneActive`] if this application signs and could not with that ring: the old one stays, but what the new
    /// one revokes is revoked. If that is the key that signs, nothing is sent, and workers take no deliveries, until a ring
    /// has another.
    pub fn replace_keyring(&self, keyring: impl Into<Keyring>) -> Result<(), KeyError> {
        self.0.trust.replace(keyring.into())
    }

    /// The message that carries an envelope, signed by this application where it has a key.
    pub(crate) fn signed_message(&self, envelope: &Envelope) -> Message {
        self.0.trust.signed_message(envelope, self.0.clock.now())
    }

    /// Emits an event of a sender.
    pub(crate) fn emit(&self, kind: EventKind<'_>) {
        let event = Event::new(kind, None, &self.0.clock);
        self.0.published_events.note(&event);
        self.0.observers.notify(&event);
    }

    /// Publishes the events that are still gathered ([`AppBuilder::events`]), and the last part of the history. Workers call it when they end. A process that
    /// only sends need not, unless it ends at once and its last events matter.
    ///
    /// # Cancel safety
    /// Events of a batch that was being published may be lost.
    pub async fn flush_events(&self) {
        self.0.published_events.flush(self.0.backend.as_ref(), &self.0.clock, true).await;
        self.0.history.flush(self.0.backend.as_ref(), self.0.clock.now()).await;
    }

    /// The message that carries an envelope, in the format of its queue.
    ///
    /// # Errors
    /// The format cannot express it.
    pub(crate) fn message(&self, envelope: &Envelope) -> Result<Message, PublishError> {
        self.message_with(envelope, NestedTasks::default())
    }

    /// The message that carries an envelope and what follows it, in the format of its queue.
    ///
    /// # Errors
    /// The format cannot express it.
    pub(crate) fn message_with(
        &self,
        envelope: &Envelope,
        nested: NestedTasks,
    ) -> Result<Message, PublishError> {
        let app = &self.0;
        let Some(profile) = app.rules.profile(&envelope.queue) else {
            return Ok(self.signed_message(envelope));
        };
        write_foreign(profile, envelope, nested, &app.max_sizes).map_err(|error| PublishError::Rejected {
            reason: format!("it cannot be written as {}: {error}", profile.name()),
        })
    }

    /// Returns the fact that stores the message of a task that ends without success. `None` if its format cannot express
    /// it, or if it is too large to be kept: then only a dead letter holds it.
    pub(crate) fn message_fact(&self, envelope: &Envelope) -> Option<(FactName, Bytes)> {
        let message = self.message(envelope).ok()?;
        Some((name::MESSAGE.into(), message_to_fact(&message, message.size())?))
    }

    /// The message of an envelope for a dead letter. What its format cannot express is kept in ours.
    pub(crate) fn message_of_letter(&self, envelope: &Envelope) -> Message {
        let mut message = self.message(envelope).unwrap_or_else(|_| envelope.message());
        // Listings of dead letters show both, in any format.
        message.id.get_or_insert_with(|| envelope.id.to_string());
        message.kind.get_or_insert_with(|| envelope.name.to_string());
        message
    }

    /// Checks that this application may publish this task now: that it may sign it, or that its queue has a format
    /// without signatures.
    pub(crate) fn may_publish(&self, task: &TaskName, queue: &QueueName) -> Result<(), String> {
        match self.0.rules.profile(queue) {
            // What is to be hidden must not go out because of the queue that it goes to.
            Some(profile) if self.0.trust.encrypts() => Err(format!(
                "messages of queue {queue} have the format {}, which cannot be encrypted, and this application encrypts",
                profile.name()
            )),
            Some(_) => Ok(()),
            None => self.0.trust.may_sign(task, queue, self.0.clock.now()),
        }
    }

    /// The body of an envelope, decrypted where it is encrypted.
    pub(crate) fn decode(&self, envelope: &Envelope) -> Result<Body, BoxError> {
        if is_encrypted(envelope) {
            self.0.trust.decrypt(envelope)?.decode(&self.0.max_sizes)
        } else {
            envelope.decode(&self.0.max_sizes)
        }
    }

    /// Returns the queue of signatures that name none.
    pub fn default_queue(&self) -> &QueueName {
        &self.0.default_queue
    }
}

/// Makes an [`App`].
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use machinist_core::{App, Codec, sign::{Algorithm, Key}};
/// use machinist_memory::{MemoryBackend, MemoryBroker};
/// use std::{sync::Arc, time::Duration};
///
/// let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()))
///     .keyring(Key::generate(Algorithm::HmacSha256, "2026-11")?)
///     .results_ttl(Duration::from_secs(7 * 24 * 3600))
///     .max_depth("mail".try_into()?, 10_000)
///     .codec(Codec::Json)
///     .build()
///     .await?;
/// assert_eq!(app.default_queue().as_str(), "default");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct AppBuilder {
    broker: Arc<dyn Broker>,
    backend: Arc<dyn Backend>,
    default_queue: QueueName,
    results_ttl: Duration,
    codec: Codec,
    hooks: Vec<Arc<dyn PublishHook>>,
    observers: Observers,
    published_events: PublishedEvents,
    middleware: Vec<Arc<dyn Middleware>>,
    pub(crate) worker_defaults: Option<Arc<dyn Any + Send + Sync>>,
    max_sizes: MaxSizes,
    keyring: Option<Keyring>,
    allow_unsigned: bool,
    freshness: Option<Duration>,
    namespace: String,
    realm: Option<String>,
    queues: HashMap<QueueName, QueueOptions>,
    max_depths: HashMap<QueueName, u64>,
    buffer: BufferLimits,
    priority_queues: HashSet<QueueName>,
    fair_queues: HashMap<QueueName, FairShare>,
}

/// Error of [`AppBuilder::build`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// The backend could not be asked for its time.
    #[error("the backend could not be asked")]
    Backend(#[from] BackendError),
    /// Other processes can publish to the broker, and no key verifies tasks.
    #[error(
        "the broker ({broker}) is shared with other processes, and there is no key to sign tasks with and to \
         verify them: `machinist keygen` makes one (and `machinist init` a whole configuration); name it by \
         `--key-file`, MACHINIST_KEY_FILE or `AppBuilder::keyring`. To run whatever the broker holds, say \
         `--allow-unsigned` (`AppBuilder::allow_unsigned`)"
    )]
    NoKey {
        /// Location of the broker.
        broker: String,
    },
    /// The signing key is not valid now.
    #[error("the key ring cannot be used: {0}")]
    Key(String),
    /// The options of a queue contradict each other.
    #[error("queue {queue}: {why}")]
    Queue {
        /// The queue.
        queue: QueueName,
        /// The contradiction, and the remedy.
        why: String,
    },
    /// A replayed task would still be fresh after its record has expired.
    #[error(
        "the freshness window ({window:?}) is longer than results are kept ({results_ttl:?}): raise \
         `results_ttl`, or narrow `freshness`"
    )]
    Freshness {
        /// The window.
        window: Duration,
        /// Time that records are kept.
        results_ttl: Duration,
    },
}

impl std::fmt::Debug for AppBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppBuilder").field("default_queue", &self.default_queue).finish_non_exhaustive()
    }
}

impl AppBuilder {
    /// Sets the queue of signatures that name none. Default: `default`.
    pub fn default_queue(mut self, queue: QueueName) -> Self {
        self.default_queue = queue;
        self
    }

    /// Sets the time that a record is kept after its task has ended. Default: one day; at least 15 minutes.
    pub fn results_ttl(mut self, ttl: Duration) -> Self {
        self.results_ttl = ttl;
        self
    }

    /// Sets the codec that writes bodies. Default: MessagePack. Both codecs are always read.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Calls `hook` with every signature before it is sent. See [`PublishHook`].
    pub fn on_publish(mut self, hook: impl PublishHook) -> Self {
        self.hooks.push(Arc::new(hook));
        self
    }

    /// Adds a middleware around the handlers of all workers of this application. It runs outside those that a worker adds.
    pub fn middleware(mut self, middleware: impl Middleware) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }

    /// Passes every event of this application's senders and workers to an observer, after those that were added before.
    /// See [`Observer`].
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use machinist_core::{App, event::Event};
    /// use machinist_memory::{MemoryBackend, MemoryBroker};
    /// use std::sync::Arc;
    ///
    /// let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()))
    ///     .observer(|event: &Event<'_>| println!("{}", event.name()))
    ///     .build()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.add(observer);
        self
    }

    /// Sets the events that this process publishes for readers in other processes ([`Client::events`](crate::Client::events)).
    /// With any of them, its workers also record the history ([`Client::history`](crate::Client::history)). Default: none.
    /// Observers receive all events in any case.
    pub fn events(mut self, which: PublishedEvents) -> Self {
        self.published_events = which;
        self
    }

    /// The keys that sign and verify tasks and results. With them, what is not signed by one of them is refused.
    pub fn keyring(mut self, keyring: impl Into<Keyring>) -> Self {
        self.keyring = Some(keyring.into());
        self
    }

    /// Runs unsigned tasks too. With a key ring, what is signed is still verified, and what this application sends
    /// is signed: the way to bring keys into a system that has none.
    pub fn allow_unsigned(mut self) -> Self {
        self.allow_unsigned = true;
        self
    }

    /// Refuses tasks that were signed (or due, if that is later) longer ago than this. Not set, an old message is
    /// as good as a new one: its record says whether it was run.
    pub fn freshness(mut self, window: Duration) -> Self {
        self.freshness = Some(window);
        self
    }

    /// Gives a queue options that differ from those of the others: the format of its messages, and tasks that may run from
    /// it unsigned. Senders and workers of the queue need the same.
    pub fn queue(mut self, queue: QueueName, options: QueueOptions) -> Self {
        self.queues.insert(queue, options);
        self
    }

    /// Bounds the tasks that wait in a queue: sending another fails with [`SendError::QueueFull`](crate::SendError::QueueFull),
    /// and [`Client::send_when_room`](crate::Client::send_when_room) waits. Retries and other messages of workers are never
    /// refused, and delayed tasks do not count before their time.
    ///
    /// Each sender asks the broker for the depth once a second, so several of them may exceed it by what they send in a second.
    pub fn max_depth(mut self, queue: QueueName, tasks: u64) -> Self {
        self.max_depths.insert(queue, tasks);
        self
    }

    /// Gives the tasks of a queue with priority 4 to 6 and with 7 to 9 separate queues, `QUEUE+priority:medium` and
    /// `QUEUE+priority:high`, if the broker does not honour priorities. Senders and workers of the queue need the same.
    ///
    /// While tasks of all three wait, the queues get the slots of a worker 1 : 3 : 9, or the higher ones first with
    /// [`WorkerBuilder::strict_order`](crate::WorkerBuilder::strict_order).
    pub fn priority_queues(mut self, queue: QueueName) -> Self {
        self.priority_queues.insert(queue);
        self
    }

    /// Gives each key of a queue, such as a tenant, a share. Its tasks within the share have a separate queue,
    /// `QUEUE+fair:share`, and wait only behind the shares of others; what it sends beyond waits in the queue itself. Senders
    /// and workers of the queue need the same.
    ///
    /// While tasks of both wait, they get the slots of a worker 9 : 1, or the shares first with
    /// [`WorkerBuilder::strict_order`](crate::WorkerBuilder::strict_order). Each sending process counts by itself. The tasks of
    /// a key that exceeds its share may overtake each other.
    pub fn fair_queue(mut self, queue: QueueName, share: FairShare) -> Self {
        self.fair_queues.insert(queue, share);
        self
    }

    /// Sets the bounds of the tasks that [`Client::send_buffered`](crate::Client::send_buffered) keeps in memory.
    pub fn buffer(mut self, limits: BufferLimits) -> Self {
        self.buffer = limits;
        self
    }

    /// Sets the namespace that is under every signature. Default: empty. All senders, workers and readers of an
    /// installation have the same one.
    ///
    /// A task that was signed for another namespace does not run here, and its result is not believed, even with the
    /// same keys.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Sets the realm that is under every signature beside the namespace. Default: [`Broker::realm`], the vhost of
    /// RabbitMQ. Needed only where messages reach another realm than the one they are published to, such as by a shovel.
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// Sets the maximum sizes of messages and results.
    pub fn max_sizes(mut self, sizes: MaxSizes) -> Self {
        self.max_sizes = sizes;
        self
    }

    /// Asks the backend for its time and makes the application.
    ///
    /// # Errors
    /// [`AppError`]: a broker that other processes share and no key, keys that do not fit, a backend that cannot
    /// be asked.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn build(self) -> Result<App, AppError> {
        self.check()?;
        let rules = QueueRules::new(self.queues).map_err(|(queue, why)| AppError::Queue { queue, why })?;
        let separated = self.priority_queues.iter().map(|queue| (queue, "priorities", "priority_queues"));
        let mut separated =
            separated.chain(self.fair_queues.keys().map(|queue| (queue, "shares", "fair_key")));
        if let Some((queue, what, option)) = separated.find(|(queue, ..)| rules.profile(queue).is_some()) {
            let why = format!(
                "its messages have the format of another program, which knows no separate queues for {what}; leave {option} out"
            );
            return Err(AppError::Queue { queue: queue.clone(), why });
        }
        let asked = Instant::now();
        let now = self.backend.now().await?;
        let clock = Clock::learned(asked, now);
        if let Some(key) = self.keyring.as_ref().and_then(Keyring::signing_key) {
            key.believed_at(now).map_err(|unfit| AppError::Key(unfit.to_string()))?;
        }
        let scope = SigningScope {
            namespace: self.namespace,
            realm: self.realm.unwrap_or_else(|| self.broker.realm()),
        };
        let priority_queues = PriorityQueues::new(self.priority_queues, self.broker.capabilities().priority);
        let shared = Arc::new(AppState {
            broker: self.broker,
            backend: self.backend,
            clock,
            default_queue: self.default_queue,
            results_ttl: self.results_ttl,
            codec: self.codec,
            hooks: self.hooks,
            observers: self.observers,
            published_events: Arc::new(EventPublisher::new(self.published_events)),
            history: HistoryRecorder::new(self.published_events != PublishedEvents::Off),
            middleware: self.middleware,
            worker_defaults: self.worker_defaults,
            max_sizes: self.max_sizes,
            trust: Trust::new(self.keyring, self.allow_unsigned, self.freshness).within(scope),
            rules,
            log_lines: LogLines::default(),
            listed_queues: ListedQueues::default(),
            depths: QueueDepths::new(self.max_depths),
            buffer: SendBuffer::new(self.buffer),
            priority_queues,
            fair_queues: FairQueues::new(self.fair_queues),
        });
        tokio::spawn(keep_time(Arc::downgrade(&shared)));
        if shared.published_events.is_on() {
            let publisher = Arc::clone(&shared.published_events);
            tokio::spawn(publish_events(Arc::downgrade(&shared), publisher));
        }
        Ok(App(shared))
    }

    /// Checks what needs no server.
    fn check(&self) -> Result<(), AppError> {
        if self.keyring.is_none() && self.broker.capabilities().shared {
            if !self.allow_unsigned {
                return Err(AppError::NoKey { broker: self.broker.location() });
            }
            tracing::info!(broker = self.broker.location(), "tasks are neither signed nor verified");
        }
        match self.freshness {
            Some(window) if window > self.results_ttl => {
                Err(AppError::Freshness { window, results_ttl: self.results_ttl })
            }
            _ => Ok(()),
        }
    }
}

impl AppState {
    /// Adopts the time that the backend answered, and logs a jump.
    pub(crate) fn learn_time(&self, asked: Instant, answered: Timestamp) {
        let later_by = self.clock.learn(asked, answered);
        if later_by.unsigned_abs() > TIME_JUMP_MICROS {
            tracing::warn!(
                later_by_ms = later_by / 1000,
                "backend time has jumped: its clock was set, a server with another clock took over, or this host slept"
            );
        }
    }
}

/// Publishes events for as long as the application is there, which does not live because of a wait for events.
async fn publish_events(app: std::sync::Weak<AppState>, publisher: Arc<EventPublisher>) {
    loop {
        publisher.gathered().await;
        let Some(app) = app.upgrade() else { return };
        publisher.flush(app.backend.as_ref(), &app.clock, false).await;
    }
}

/// Asks for backend time now and then, for as long as the application is there.
async fn keep_time(app: std::sync::Weak<AppState>) {
    loop {
        tokio::time::sleep(TIME_CHECK_INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        let asked = Instant::now();
        match app.backend.now().await {
            Ok(now) => app.learn_time(asked, now),
            Err(error) => tracing::debug!(%error, "the backend did not tell the time; going on with ours"),
        }
    }
}
