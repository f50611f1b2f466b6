//! Sends settlements of deliveries to the broker: one task per consuming channel, so that a worker never waits for a
//! frame to be written, and settlements share frames where they can.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use machinist_adapter::broker::{Receipt, Settle, Settled};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    ack_frames::{AckFrame, SettledTags},
    connection::close_channel,
    error::RPC_TIMEOUT,
};

/// Maximum number of settlements that are turned into frames at once.
const MAX_SETTLEMENTS_PER_BATCH: usize = 1024;

/// Sender of the settlements of all deliveries of one channel.
#[derive(Clone)]
pub(crate) struct AckSender {
    settlements: mpsc::UnboundedSender<(u64, Settle)>,
    channel: Arc<Channel>,
}

impl AckSender {
    /// Creates the sender of a channel and its task. The task ends when every receipt is gone, or soon after `close`.
    pub(crate) fn open(
        channel: Channel,
        close: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (settlements, receiver) = mpsc::unbounded_channel();
        let channel = Arc::new(channel);
        let sender = Self { settlements, channel: Arc::clone(&channel) };
        // The task must not keep the sender, or it would never end.
        (sender, send_settlements(channel, receiver, close))
    }

    /// Returns `true` while settlements still reach the broker. Afterwards every unsettled delivery of the channel comes
    /// again.
    pub(crate) fn is_open(&self) -> bool {
        self.channel.status().connected() && !self.settlements.is_closed()
    }

    /// Creates the receipt of a delivery. The unsettled deliveries of a queue share `unsettled`.
    pub(crate) fn receipt(&self, tag: u64, unsettled: &Arc<()>) -> AmqpReceipt {
        AmqpReceipt { acks: self.clone(), tag, is_settled: false, _unsettled: Arc::clone(unsettled) }
    }

    fn settle(&self, tag: u64, how: Settle) -> Settled {
        if self.is_open() && self.settlements.send((tag, how)).is_ok() {
            Settled::Done
        } else {
            Settled::Lost
        }
    }
}

impl fmt::Debug for AckSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AckSender(channel {})", self.channel.id())
    }
}

/// Sends settlements until there are no more, and closes the channel.
async fn send_settlements(
    channel: Arc<Channel>,
    settlements: mpsc::UnboundedReceiver<(u64, Settle)>,
    close: CancellationToken,
) {
    if send_until_closed(&channel, settlements, close).await {
        close_channel(&channel).await;
    }
}

/// Returns `false` if the channel is lost.
async fn send_until_closed(
    channel: &Channel,
    mut settlements: mpsc::UnboundedReceiver<(u64, Settle)>,
    close: CancellationToken,
) -> bool {
    let mut settled = SettledTags::default();
    let mut batch = Vec::with_capacity(MAX_SETTLEMENTS_PER_BATCH);
    loop {
        let taken = tokio::select! {
            biased;
            taken = settlements.recv_many(&mut batch, MAX_SETTLEMENTS_PER_BATCH) => taken,
            () = close.cancelled() => {
                // From here on receipts report that they are lost; settlements promised before are still written.
                settlements.close();
                settlements.recv_many(&mut batch, MAX_SETTLEMENTS_PER_BATCH).await
            }
        };
        if taken == 0 {
            return true;
        }
        let frames = settled.settle(&batch);
        batch.clear();
        let writing = frames.into_iter().map(|frame| write(channel, frame));
        match timeout(RPC_TIMEOUT, join_all(writing)).await {
            Ok(written) => {
                if let Some(error) = written.into_iter().find_map(Result::err) {
                    tracing::debug!(%error, "a settlement was lost with its channel; its message comes again");
                    return false;
                }
            }
            // The supervisor's probe ends such a connection; its messages come again.
            Err(_) => return false,
        }
    }
}

async fn write(channel: &Channel, frame: AckFrame) -> Result<(), lapin::Error> {
    match frame {
        AckFrame::Ack(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: false }).await,
        AckFrame::AckUpTo(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
        AckFrame::Requeue(tag) => {
            channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
        }
    }
}

/// Receipt of one delivery. Dropped unsettled, it hands the message back.
#[derive(Debug)]
pub(crate) struct AmqpReceipt {
    acks: AckSender,
    tag: u64,
    is_settled: bool,
    _unsettled: Arc<()>,
}

impl AmqpReceipt {
    /// Returns `true` if the channel of the delivery is gone, so that the message comes again in any case.
    pub(crate) fn is_stale(&self) -> bool {
        !self.acks.is_open()
    }
}

#[async_trait]
impl Receipt for AmqpReceipt {
    async fn settle(mut self: Box<Self>, how: Settle) -> Settled {
        self.is_settled = true;
        self.acks.settle(self.tag, how)
    }
}

impl Drop for AmqpReceipt {
    fn drop(&mut self) {
        if !self.is_settled {
            self.acks.settle(self.tag, Settle::Requeue);
        }
    }
}
