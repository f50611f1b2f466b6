//! Makes what the plan says, once per connection, and explains what the broker has against it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use machinist_core::broker::BrokerError;
use tokio::time::Instant;

use crate::{
    argument_mismatch,
    error::{AmqpError, rpc},
    options::TopologyMode,
    supervisor::LiveConnection,
    topology::{AmqpTopology, ArgumentValue, Declaration, ExchangeType},
};

/// How long after it was declared a queue may refuse messages that it will take later: a quorum queue that another
/// process is making at this moment has no leader yet (negative confirms, seen on 3.10 some 100 ms after).
const NEW_QUEUE_PERIOD: Duration = Duration::from_secs(5);

/// Why something is not there as it should be.
#[derive(Debug)]
pub(crate) enum DeclareError {
    /// It does not exist, and we are only to check.
    Missing { name: String },
    /// The broker says no; with the remedy.
    Refused { reason: String },
    /// Nobody answered. Try again.
    Broken(AmqpError),
}

impl From<DeclareError> for BrokerError {
    fn from(obstruction: DeclareError) -> Self {
        match obstruction {
            DeclareError::Missing { name } => Self::Refused {
                reason: format!(
                    "{name} does not exist on the broker; make it, or set topology to \"declare\" to have it made"
                ),
            },
            DeclareError::Refused { reason } => Self::Refused { reason },
            DeclareError::Broken(trouble) => trouble.into_broker_error(),
        }
    }
}

/// What this connection knows to stand on the broker.
#[derive(Debug)]
pub(crate) struct DeclaredTopology {
    plan: AmqpTopology,
    topology: TopologyMode,
    known: Mutex<KnownObjects>,
    /// A channel of its own, one question at a time: what the broker refuses closes the channel it was asked on.
    channel: tokio::sync::Mutex<Option<Channel>>,
}

#[derive(Debug, Default)]
struct KnownObjects {
    base: bool,
    /// And since when we know it.
    queues: HashMap<String, Instant>,
    /// How many levels of the ladder.
    levels: u8,
}

impl DeclaredTopology {
    pub(crate) fn new(plan: AmqpTopology, topology: TopologyMode) -> Self {
        Self { plan, topology, known: Mutex::default(), channel: tokio::sync::Mutex::default() }
    }

    /// Makes sure that a message can be published to a queue: that its exchange exists. That the queue does
    /// is checked by the broker for each message.
    ///
    /// `queue` is its name on the broker, that of the task queue also where its dead letters are meant.
    pub(crate) async fn for_publish(&self, live: &LiveConnection, queue: &str) -> Result<(), DeclareError> {
        match self.topology {
            TopologyMode::Declare => self.for_consume(live, queue).await,
            TopologyMode::Verify if self.known().base => Ok(()),
            TopologyMode::Verify => {
                let mut channel = self.channel.lock().await;
                for exchange in [self.plan.exchange(), self.plan.dead()] {
                    check_exchange(live, &mut channel, exchange).await?;
                }
                self.known().base = true;
                Ok(())
            }
        }
    }

    /// Makes sure that a queue exists.
    pub(crate) async fn for_consume(&self, live: &LiveConnection, queue: &str) -> Result<(), DeclareError> {
        if self.known().queues.contains_key(queue) {
            return Ok(());
        }
        let mut channel = self.channel.lock().await;
        if self.topology == TopologyMode::Verify {
            check_queue(live, &mut channel, queue).await?;
            self.known().queues.insert(queue.to_owned(), Instant::now());
            return Ok(());
        }
        let base = self.known().base;
        if !base {
            perform(live, &mut channel, self.plan.base()).await?;
            self.known().base = true;
        }
        if !self.known().queues.contains_key(queue) {
            perform(live, &mut channel, self.plan.task_queue(queue)).await?;
            self.known().queues.insert(queue.to_owned(), Instant::now());
        }
        Ok(())
    }

    /// Makes sure that what is subscribed to exists: a task queue with its dead letters, or what all stand on.
    pub(crate) async fn for_subscription(
        &self,
        live: &LiveConnection,
        queue: Option<&str>,
    ) -> Result<(), DeclareError> {
        let Some(queue) = queue else {
            let mut channel = self.channel.lock().await;
            if self.topology == TopologyMode::Verify {
                return check_queue(live, &mut channel, &self.plan.undelivered()).await;
            }
            if !self.known().base {
                perform(live, &mut channel, self.plan.base()).await?;
                self.known().base = true;
            }
            return Ok(());
        };
        self.for_consume(live, queue).await
    }

    /// Makes sure that a message for a queue can ride the ladder from a level on, and that there is a queue at
    /// its end: the broker would not tell, because to it such a message has arrived.
    pub(crate) async fn for_delay(
        &self,
        live: &LiveConnection,
        queue: &str,
        highest: u8,
    ) -> Result<(), DeclareError> {
        self.for_consume(live, queue).await?;
        let levels = self.known().levels;
        if highest < levels {
            return Ok(());
        }
        let mut channel = self.channel.lock().await;
        match self.topology {
            TopologyMode::Declare => perform(live, &mut channel, self.plan.ladder(highest)).await?,
            TopologyMode::Verify => {
                for level in (0..=highest).rev() {
                    check_exchange(live, &mut channel, self.plan.level(level)).await?;
                    for queue in self.plan.rungs(level) {
                        check_queue(live, &mut channel, &queue).await?;
                    }
                }
            }
        }
        let mut known = self.known();
        known.levels = known.levels.max(highest + 1);
        Ok(())
    }

    /// Whether a queue was declared so lately that it may not work yet.
    pub(crate) fn is_young(&self, queue: &str) -> bool {
        let declared = || self.known().queues.get(queue).copied();
        self.topology == TopologyMode::Declare
            && declared().is_some_and(|since| since.elapsed() < NEW_QUEUE_PERIOD)
    }

    /// Forgets a queue, because something says that it is gone, and whether anything of ours is there at all.
    pub(crate) fn forget(&self, queue: &str) {
        let mut known = self.known();
        known.base = false;
        known.levels = 0;
        known.queues.remove(queue);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, KnownObjects> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn perform(
    live: &LiveConnection,
    slot: &mut Option<Channel>,
    steps: Vec<Declaration>,
) -> Result<(), DeclareError> {
    for step in steps {
        let channel = usable(live, slot).await?;
        take(channel, &step).await.map_err(|trouble| refusal(&step, trouble))?;
    }
    Ok(())
}

async fn usable<'a>(
    live: &LiveConnection,
    slot: &'a mut Option<Channel>,
) -> Result<&'a Channel, DeclareError> {
    let open = match slot.take().filter(|channel| channel.status().connected()) {
        Some(open) => open,
        None => live.channel().await.map_err(DeclareError::Broken)?,
    };
    Ok(slot.insert(open))
}

async fn take(channel: &Channel, step: &Declaration) -> Result<(), AmqpError> {
    match step {
        Declaration::Exchange { name, kind, alternate } => {
            let kind = match kind {
                ExchangeType::Direct => ExchangeKind::Direct,
                ExchangeType::Topic => ExchangeKind::Topic,
                ExchangeType::Fanout => ExchangeKind::Fanout,
            };
            let mut arguments = FieldTable::default();
            if let Some(alternate) = alternate {
                arguments
                    .insert("alternate-exchange".into(), AMQPValue::LongString(alternate.as_str().into()));
            }
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            rpc("declaring an exchange", channel.exchange_declare(short(name), kind, options, arguments))
                .await
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
            let declare = channel.queue_declare(short(name), QueueDeclareOptions::durable(), table);
            rpc("declaring a queue", declare).await.map(drop)
        }
        Declaration::BindQueue { queue, exchange, key } => {
            let (none, options) = (FieldTable::default(), QueueBindOptions::default());
            rpc(
                "binding a queue",
                channel.queue_bind(short(queue), short(exchange), short(key), options, none),
            )
            .await
        }
        Declaration::BindExchange { to, exchange, key } => {
            let (none, options) = (FieldTable::default(), ExchangeBindOptions::default());
            rpc(
                "binding an exchange",
                channel.exchange_bind(short(to), short(exchange), short(key), options, none),
            )
            .await
        }
    }
}

async fn check_queue(
    live: &LiveConnection,
    slot: &mut Option<Channel>,
    name: &str,
) -> Result<(), DeclareError> {
    let channel = usable(live, slot).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(short(name), options, FieldTable::default());
    let checked = rpc("checking a queue", declare).await.map(drop);
    checked.map_err(|trouble| absence(format!("queue {name}"), trouble))
}

async fn check_exchange(
    live: &LiveConnection,
    slot: &mut Option<Channel>,
    name: String,
) -> Result<(), DeclareError> {
    let channel = usable(live, slot).await?;
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let declare =
        channel.exchange_declare(short(&name), ExchangeKind::Direct, options, FieldTable::default());
    let checked = rpc("checking an exchange", declare).await;
    checked.map_err(|trouble| absence(format!("exchange {name}"), trouble))
}

fn absence(name: String, trouble: AmqpError) -> DeclareError {
    match trouble.complaint() {
        Some(complaint) if complaint.code == 404 => DeclareError::Missing { name },
        // RabbitMQ 4.2.6 and later want a right to what is only looked at.
        Some(complaint) if complaint.code == 403 => DeclareError::Refused {
            reason: format!(
                "this user may not look whether {name} is there ({}); grant it a right to it",
                complaint.text
            ),
        },
        // A queue that is being taken over by another node, or whose node is down: it will be back.
        Some(complaint) if complaint.soft && complaint.code != 405 => {
            DeclareError::Refused { reason: format!("{name}: {}", complaint.text) }
        }
        _ => DeclareError::Broken(trouble),
    }
}

fn refusal(step: &Declaration, trouble: AmqpError) -> DeclareError {
    let Some(complaint) = trouble.complaint().filter(|complaint| complaint.soft) else {
        return DeclareError::Broken(trouble);
    };
    let what = match step {
        Declaration::Exchange { name, .. } => format!("exchange {name}"),
        Declaration::Queue { name, .. } => format!("queue {name}"),
        Declaration::BindQueue { queue, exchange, .. } => {
            format!("the binding of queue {queue} to exchange {exchange}")
        }
        Declaration::BindExchange { to, exchange, .. } => {
            format!("the binding of exchange {exchange} to exchange {to}")
        }
    };
    let reason = match complaint.code {
        406 => argument_mismatch::explain(&what, complaint.text),
        403 => format!(
            "this user may not declare {what} ({}); grant configure, write and read on it, or set topology to \
             \"verify\" and have it made by somebody who may",
            complaint.text
        ),
        _ => format!("{what} cannot be declared: {}", complaint.text),
    };
    DeclareError::Refused { reason }
}

/// The plan makes no name longer than a short string.
fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}
