//! Declares the topology, once per connection, and explains the broker's objections.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use machinist_adapter::broker::BrokerError;
use tokio::time::Instant;

use crate::{
    argument_mismatch,
    connection::AmqpConnection,
    error::{AmqpError, rpc},
    options::TopologyMode,
    topology::{AmqpTopology, ArgumentValue, Declaration, ExchangeType},
};

/// Time after its declaration during which a queue may refuse messages that it will take later: a quorum queue that
/// another process is declaring at this moment has no leader yet (negative confirms, seen on 3.10 some 100 ms after).
const NEW_QUEUE_PERIOD: Duration = Duration::from_secs(5);

/// Reason that an exchange, queue or binding is not on the broker as declared.
#[derive(Debug)]
pub(crate) enum DeclareError {
    /// It does not exist, and this process does not create it. The reason includes the remedy.
    Missing { name: String, reason: String },
    /// The broker refuses it; the reason includes the remedy.
    Refused { reason: String },
    /// The broker did not answer. Try again.
    Failed(AmqpError),
}

impl DeclareError {
    /// Error for an object that does not exist while this process only checks.
    pub(crate) fn missing(name: String) -> Self {
        let reason = format!(
            "{name} does not exist on the broker; create it, or set topology to \"declare\" to have it created"
        );
        Self::Missing { name, reason }
    }
}

impl From<DeclareError> for BrokerError {
    fn from(error: DeclareError) -> Self {
        match error {
            DeclareError::Missing { reason, .. } | DeclareError::Refused { reason } => {
                Self::Refused { reason }
            }
            DeclareError::Failed(error) => error.into_broker_error(),
        }
    }
}

/// The part of the topology that one connection knows to exist on the broker.
#[derive(Debug)]
pub(crate) struct DeclaredTopology {
    topology: AmqpTopology,
    mode: TopologyMode,
    known: Mutex<KnownObjects>,
    /// Channel for declarations only, one at a time: the broker closes the channel of a declaration that it refuses.
    channel: tokio::sync::Mutex<Option<Channel>>,
}

#[derive(Debug, Default)]
struct KnownObjects {
    /// `true` if the exchanges and queues that all task queues share are known to exist.
    shared: bool,
    /// Task queues that are known to exist, and the time since when.
    queues: HashMap<String, Instant>,
    /// Number of levels of the ladder, from the lowest, that are known to exist.
    levels: u8,
}

impl DeclaredTopology {
    pub(crate) fn new(topology: AmqpTopology, mode: TopologyMode) -> Self {
        Self { topology, mode, known: Mutex::default(), channel: tokio::sync::Mutex::default() }
    }

    /// Makes sure that a message can be published to a queue: that its exchange exists. The broker itself checks for
    /// each message that the queue exists.
    ///
    /// `queue` is the name of the task queue on the broker, also for a message to its dead letters.
    pub(crate) async fn for_publish(
        &self,
        connection: &AmqpConnection,
        queue: &str,
    ) -> Result<(), DeclareError> {
        match self.mode {
            TopologyMode::Declare => self.for_consume(connection, queue).await,
            TopologyMode::Verify if self.known().shared => Ok(()),
            TopologyMode::Verify => {
                let mut channel = self.channel.lock().await;
                for exchange in [self.topology.task_exchange(), self.topology.dead_letter_exchange()] {
                    find_exchange(connection, &mut channel, exchange).await?;
                }
                self.known().shared = true;
                Ok(())
            }
        }
    }

    /// Makes sure that a queue exists.
    pub(crate) async fn for_consume(
        &self,
        connection: &AmqpConnection,
        queue: &str,
    ) -> Result<(), DeclareError> {
        if self.known().queues.contains_key(queue) {
            return Ok(());
        }
        let mut channel = self.channel.lock().await;
        if self.mode == TopologyMode::Verify {
            find_queue(connection, &mut channel, queue).await?;
            self.known().queues.insert(queue.to_owned(), Instant::now());
            return Ok(());
        }
        self.declare_shared(connection, &mut channel).await?;
        if !self.known().queues.contains_key(queue) {
            declare_all(connection, &mut channel, self.topology.task_queue(queue)).await?;
            self.known().queues.insert(queue.to_owned(), Instant::now());
        }
        Ok(())
    }

    /// Declares a queue once more, so that the broker compares the arguments of the queue that is there.
    pub(crate) async fn confirm_queue(
        &self,
        connection: &AmqpConnection,
        queue: &str,
    ) -> Result<(), DeclareError> {
        let is_itself = |declaration: &Declaration| matches!(declaration, Declaration::Queue { name, .. } if name == queue);
        let declarations = self.topology.task_queue(queue).into_iter().filter(is_itself).collect();
        let mut channel = self.channel.lock().await;
        declare_all(connection, &mut channel, declarations).await
    }

    /// Makes sure that the source of a subscription exists: `queue` with its dead letters, or without one the queue of
    /// undelivered messages.
    pub(crate) async fn for_subscription(
        &self,
        connection: &AmqpConnection,
        queue: Option<&str>,
    ) -> Result<(), DeclareError> {
        if let Some(queue) = queue {
            return self.for_consume(connection, queue).await;
        }
        let mut channel = self.channel.lock().await;
        match self.mode {
            TopologyMode::Declare => self.declare_shared(connection, &mut channel).await,
            TopologyMode::Verify => find_queue(connection, &mut channel, &self.topology.undelivered()).await,
        }
    }

    /// Makes sure that a message for a queue can go down the ladder from a level, and that there is a queue at the end:
    /// the broker would not report a missing queue, because for the broker such a message has arrived.
    pub(crate) async fn for_delay(
        &self,
        connection: &AmqpConnection,
        queue: &str,
        top_level: u8,
    ) -> Result<(), DeclareError> {
        self.for_consume(connection, queue).await?;
        let levels = self.known().levels;
        if top_level < levels {
            return Ok(());
        }
        let mut channel = self.channel.lock().await;
        match self.mode {
            TopologyMode::Declare => {
                declare_all(connection, &mut channel, self.topology.ladder(top_level)).await?;
            }
            TopologyMode::Verify => {
                for level in (0..=top_level).rev() {
                    find_exchange(connection, &mut channel, self.topology.level_exchange(level)).await?;
                    for queue in self.topology.level_queues(level) {
                        find_queue(connection, &mut channel, &queue).await?;
                    }
                }
            }
        }
        let mut known = self.known();
        known.levels = known.levels.max(top_level + 1);
        Ok(())
    }

    /// Declares the levels of the ladder from the lowest up to this one, whatever is known of them.
    pub(crate) async fn make_ladder(&self, connection: &AmqpConnection, top: u8) -> Result<(), DeclareError> {
        let mut channel = self.channel.lock().await;
        self.declare_shared(connection, &mut channel).await?;
        declare_all(connection, &mut channel, self.topology.ladder(top)).await
    }

    /// Highest level of the ladder that this connection knows to exist.
    pub(crate) fn highest_level(&self) -> Option<u8> {
        self.known().levels.checked_sub(1)
    }

    /// Returns `true` if a queue was declared so recently that it may not work yet.
    pub(crate) fn is_new(&self, queue: &str) -> bool {
        let declared = || self.known().queues.get(queue).copied();
        self.mode == TopologyMode::Declare
            && declared().is_some_and(|since| since.elapsed() < NEW_QUEUE_PERIOD)
    }

    /// Forgets a queue that seems to be gone, and with it everything that all queues share: nothing of the topology may
    /// be there any more.
    pub(crate) fn forget(&self, queue: &str) {
        let mut known = self.known();
        known.shared = false;
        known.levels = 0;
        known.queues.remove(queue);
    }

    async fn declare_shared(
        &self,
        connection: &AmqpConnection,
        channel: &mut Option<Channel>,
    ) -> Result<(), DeclareError> {
        let shared = self.known().shared;
        if !shared {
            declare_all(connection, channel, self.topology.shared()).await?;
            self.known().shared = true;
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, KnownObjects> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn declare_all(
    connection: &AmqpConnection,
    slot: &mut Option<Channel>,
    declarations: Vec<Declaration>,
) -> Result<(), DeclareError> {
    for declaration in declarations {
        let channel = open_channel(connection, slot).await?;
        declare(channel, &declaration).await.map_err(|error| declare_error(&declaration, error))?;
    }
    Ok(())
}

/// Returns the channel in `slot`, opened again if the broker has closed it.
async fn open_channel<'a>(
    connection: &AmqpConnection,
    slot: &'a mut Option<Channel>,
) -> Result<&'a Channel, DeclareError> {
    let open = match slot.take().filter(|channel| channel.status().connected()) {
        Some(open) => open,
        None => connection.open_channel().await.map_err(DeclareError::Failed)?,
    };
    Ok(slot.insert(open))
}

async fn declare(channel: &Channel, declaration: &Declaration) -> Result<(), AmqpError> {
    match declaration {
        Declaration::Exchange { name, kind, alternate } => {
            let kind = match kind {
                ExchangeType::Direct => ExchangeKind::Direct,
                ExchangeType::Topic => ExchangeKind::Topic,
                ExchangeType::Fanout => ExchangeKind::Fanout,
            };
            let mut arguments = FieldTable::default();
            if let Some(alternate) = alternate {
                let alternate = AMQPValue::LongString(alternate.as_str().into());
                arguments.insert("alternate-exchange".into(), alternate);
            }
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let declare = channel.exchange_declare(short_string(name), kind, options, arguments);
            rpc("declaring an exchange", declare).await
        }
        Declaration::Queue { name, arguments } => {
            let mut table = FieldTable::default();
            for (key, value) in arguments {
                let value = match value {
                    ArgumentValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
                    ArgumentValue::Number(number) => AMQPValue::LongLongInt(*number),
                };
                table.insert((*key).into(), value);
            }
            let declare = channel.queue_declare(short_string(name), QueueDeclareOptions::durable(), table);
            rpc("declaring a queue", declare).await.map(drop)
        }
        Declaration::ExistingQueue { name } => check_queue(channel, name).await,
        Declaration::ExistingExchange { name } => check_exchange(channel, name).await,
        Declaration::BindQueue { queue, exchange, key } => {
            let bind = channel.queue_bind(
                short_string(queue),
                short_string(exchange),
                short_string(key),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            rpc("binding a queue", bind).await
        }
        Declaration::BindExchange { to, exchange, key } => {
            let bind = channel.exchange_bind(
                short_string(to),
                short_string(exchange),
                short_string(key),
                ExchangeBindOptions::default(),
                FieldTable::default(),
            );
            rpc("binding an exchange", bind).await
        }
    }
}

async fn find_queue(
    connection: &AmqpConnection,
    slot: &mut Option<Channel>,
    name: &str,
) -> Result<(), DeclareError> {
    let channel = open_channel(connection, slot).await?;
    check_queue(channel, name).await.map_err(|error| check_error(format!("queue {name}"), error))
}

async fn find_exchange(
    connection: &AmqpConnection,
    slot: &mut Option<Channel>,
    name: String,
) -> Result<(), DeclareError> {
    let channel = open_channel(connection, slot).await?;
    check_exchange(channel, &name).await.map_err(|error| check_error(format!("exchange {name}"), error))
}

async fn check_queue(channel: &Channel, name: &str) -> Result<(), AmqpError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(short_string(name), options, FieldTable::default());
    rpc("checking a queue", declare).await.map(drop)
}

async fn check_exchange(channel: &Channel, name: &str) -> Result<(), AmqpError> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let declare =
        channel.exchange_declare(short_string(name), ExchangeKind::Direct, options, FieldTable::default());
    rpc("checking an exchange", declare).await
}

/// Explains why the check for an existing object failed.
fn check_error(name: String, error: AmqpError) -> DeclareError {
    match error.server_error() {
        Some(reply) if reply.says_missing() => DeclareError::missing(name),
        // RabbitMQ 4.2.6 and later require a permission even for a passive declaration.
        Some(reply) if reply.code == 403 => DeclareError::Refused {
            reason: format!(
                "this user may not check if {name} exists ({}); grant any permission on it",
                reply.text
            ),
        },
        // A queue that another node is taking over (405), or whose node is down, will be back.
        Some(reply) if reply.closes_only_channel && reply.code != 405 && !error.is_transient() => {
            DeclareError::Refused { reason: format!("{name}: {}", reply.text) }
        }
        _ => DeclareError::Failed(error),
    }
}

/// Explains why a declaration failed.
fn declare_error(declaration: &Declaration, error: AmqpError) -> DeclareError {
    let is_final = !error.is_transient();
    let Some(reply) = error.server_error().filter(|reply| reply.closes_only_channel && is_final) else {
        return DeclareError::Failed(error);
    };
    let object = match declaration {
        Declaration::Exchange { name, .. } => format!("exchange {name}"),
        Declaration::Queue { name, .. } | Declaration::ExistingQueue { name } => format!("queue {name}"),
        Declaration::ExistingExchange { name } => format!("exchange {name}"),
        Declaration::BindQueue { queue, exchange, .. } => {
            format!("the binding of queue {queue} to exchange {exchange}")
        }
        Declaration::BindExchange { to, exchange, .. } => {
            format!("the binding of exchange {exchange} to exchange {to}")
        }
    };
    let reason = match (reply.code, declaration) {
        (404, Declaration::ExistingQueue { .. }) => belongs_to_another(&object),
        (404, Declaration::ExistingExchange { .. }) => {
            return DeclareError::Missing { reason: belongs_to_another(&object), name: object };
        }
        // Somebody deletes what was there a moment ago.
        (404, _) => {
            return DeclareError::Missing { reason: format!("{object}: {}", reply.text), name: object };
        }
        (406, _) => argument_mismatch::explain(&object, reply.text),
        (403, _) => format!(
            "this user may not declare {object} ({}); grant configure, write and read on it, or set topology to \
             \"verify\" and have an administrator create it",
            reply.text
        ),
        _ => format!("{object} cannot be declared: {}", reply.text),
    };
    DeclareError::Refused { reason }
}

fn belongs_to_another(object: &str) -> String {
    format!("{object} belongs to another program and does not exist: start that program first")
}

/// Converts a name of the topology, none of which is longer than a short string.
fn short_string(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}
