//! Depth of a queue and number of its consumers, read from the broker.

use std::sync::Arc;

use lapin::{
    Channel,
    options::QueueDeclareOptions,
    types::{FieldTable, ShortString},
};

use crate::{
    error::{AmqpError, rpc},
    supervisor::LiveConnection,
};

/// Reads the depth of queues, on a separate channel: the broker closes the channel on which a missing queue was
/// asked for.
#[derive(Debug)]
pub(crate) struct DepthReader {
    live: Arc<LiveConnection>,
    channel: Option<Channel>,
}

/// Depth of one queue at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DepthReading {
    /// Number of messages that wait for a consumer.
    pub(crate) ready: u64,
    /// Number of consumers.
    pub(crate) consumers: u64,
}

impl DepthReader {
    pub(crate) fn new(live: Arc<LiveConnection>) -> Self {
        Self { live, channel: None }
    }

    /// Reads the depth of a queue; `None` if the queue does not exist.
    pub(crate) async fn read(&mut self, queue: &str) -> Result<Option<DepthReading>, AmqpError> {
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.live.connection.open_channel().await?,
        };
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = ShortString::try_new(queue).unwrap_or_default();
        let declare = channel.queue_declare(name, options, FieldTable::default());
        match rpc("asking for a queue's depth", declare).await {
            Ok(found) => {
                self.channel = Some(channel);
                let ready = found.message_count().into();
                let consumers = found.consumer_count().into();
                Ok(Some(DepthReading { ready, consumers }))
            }
            Err(error) if error.server_error().is_some_and(|reply| reply.says_missing()) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
