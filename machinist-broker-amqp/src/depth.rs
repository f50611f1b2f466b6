//! How much lies in a queue, and whether anybody takes it.

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

/// Looks into queues. A missing queue costs the channel it was asked on, so that is one of its own.
#[derive(Debug)]
pub(crate) struct DepthReader {
    live: Arc<LiveConnection>,
    channel: Option<Channel>,
}

/// What is in a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DepthReading {
    pub(crate) ready: u64,
    pub(crate) consumers: u64,
}

impl DepthReader {
    pub(crate) fn new(live: Arc<LiveConnection>) -> Self {
        Self { live, channel: None }
    }

    /// `None` where the queue does not exist.
    pub(crate) async fn read(&mut self, queue: &str) -> Result<Option<DepthReading>, AmqpError> {
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.live.channel().await?,
        };
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = ShortString::try_new(queue).unwrap_or_default();
        let asked =
            rpc("asking for a queue's depth", channel.queue_declare(name, options, FieldTable::default()))
                .await;
        match asked {
            Ok(found) => {
                self.channel = Some(channel);
                let (ready, consumers) = (found.message_count().into(), found.consumer_count().into());
                Ok(Some(DepthReading { ready, consumers }))
            }
            Err(trouble) if trouble.complaint().is_some_and(|complaint| complaint.code == 404) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }
}
