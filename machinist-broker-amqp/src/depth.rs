//! Depth of a queue and number of its consumers, read from the broker.
//!
//! The broker closes the channel on which a missing queue was asked for, and lapin can use the id of a channel that the
//! broker has closed for no other: each such question costs the connection one of its ids (2047 with the settings of
//! RabbitMQ). So the connection that consumes is asked for a name until it is missing once. From then on
//! a separate connection is asked, which is replaced when it has no id left.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lapin::{
    Channel,
    options::QueueDeclareOptions,
    types::{FieldTable, ShortString},
};

use crate::{
    connection::AmqpConnection,
    error::{AmqpError, rpc},
    supervisor::{ConnectionSettings, LiveConnection},
};

/// Names of queues that were missing, and the connection on which they are asked for again.
#[derive(Debug, Default)]
pub(crate) struct MissingQueues {
    names: Mutex<HashSet<String>>,
    /// Opened when a missing queue is asked for again.
    asking: tokio::sync::Mutex<Option<Asking>>,
}

/// A connection with a channel for questions.
#[derive(Debug)]
struct Asking {
    connection: AmqpConnection,
    channel: Option<Channel>,
}

/// Reads the depth of queues.
#[derive(Debug)]
pub(crate) struct DepthReader<'a> {
    settings: &'a ConnectionSettings,
    missing: &'a MissingQueues,
    live: Arc<LiveConnection>,
    channel: Option<Channel>,
    /// `true` after a queue was missing: where one is, many may be.
    found_missing: bool,
}

/// Depth of one queue at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DepthReading {
    /// Number of messages that wait for a consumer.
    pub(crate) ready: u64,
    /// Number of consumers.
    pub(crate) consumers: u64,
}

impl MissingQueues {
    /// Closes the connection, if one was opened.
    pub(crate) async fn close(&self) {
        if let Some(asking) = self.asking.lock().await.take() {
            // It ends in any case.
            let _ = asking.connection.close().await;
        }
    }

    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks on the separate connection, which is opened if there is none with a free channel.
    async fn ask(
        &self,
        settings: &ConnectionSettings,
        queue: &str,
    ) -> Result<Option<DepthReading>, AmqpError> {
        let mut slot = self.asking.lock().await;
        let is_usable = |asking: &Asking| asking.connection.is_connected();
        let mut asking = match slot.take().filter(is_usable) {
            Some(asking) => asking,
            None => Asking::open(settings).await?,
        };
        let channel = match asking.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => match asking.connection.open_channel().await {
                Ok(channel) => channel,
                // No id is left, or the connection is dead.
                Err(_) => {
                    asking = Asking::open(settings).await?;
                    asking.connection.open_channel().await?
                }
            },
        };
        let reading = ask(&channel, queue).await;
        asking.channel = Some(channel);
        *slot = Some(asking);
        reading
    }
}

impl Asking {
    async fn open(settings: &ConnectionSettings) -> Result<Self, AmqpError> {
        let name = format!("{} (asking)", settings.connection_name);
        let connection = Box::pin(AmqpConnection::open(&settings.addresses, &settings.tls, &name)).await;
        Ok(Self { connection: connection.map_err(|failed| failed.error)?, channel: None })
    }
}

impl<'a> DepthReader<'a> {
    pub(crate) fn new(
        settings: &'a ConnectionSettings,
        missing: &'a MissingQueues,
        live: Arc<LiveConnection>,
    ) -> Self {
        Self { settings, missing, live, channel: None, found_missing: false }
    }

    /// Reads the depth of a queue; `None` if the queue does not exist.
    pub(crate) async fn read(&mut self, queue: &str) -> Result<Option<DepthReading>, AmqpError> {
        let was_missing = self.missing.names().contains(queue);
        let reading = if self.found_missing || was_missing {
            self.missing.ask(self.settings, queue).await?
        } else {
            let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
                Some(channel) => channel,
                None => self.live.connection.open_channel().await?,
            };
            let reading = ask(&channel, queue).await?;
            self.channel = Some(channel);
            reading
        };
        self.found_missing |= reading.is_none();
        match reading {
            Some(_) if was_missing => drop(self.missing.names().remove(queue)),
            None if !was_missing => drop(self.missing.names().insert(queue.to_owned())),
            _ => {}
        }
        Ok(reading)
    }
}

async fn ask(channel: &Channel, queue: &str) -> Result<Option<DepthReading>, AmqpError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let name = ShortString::try_new(queue).unwrap_or_default();
    let declare = channel.queue_declare(name, options, FieldTable::default());
    match rpc("asking for a queue's depth", declare).await {
        Ok(found) => Ok(Some(DepthReading {
            ready: found.message_count().into(),
            consumers: found.consumer_count().into(),
        })),
        Err(error) if error.server_error().is_some_and(|reply| reply.says_missing()) => Ok(None),
        Err(error) => Err(error),
    }
}
