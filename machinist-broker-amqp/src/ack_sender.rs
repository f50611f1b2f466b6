//! Tells the broker what became of deliveries: one task per consuming channel, so that a worker never waits
//! for a frame to be written, and answers that can share a frame do.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use machinist_core::broker::{Receipt, Settle, Settled};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    ack_frames::{AckFrame, SettledTags},
    error::RPC_TIMEOUT,
};

const MAX_SETTLEMENTS_PER_BATCH: usize = 1024;

/// The way back to the broker for everything delivered on one channel.
#[derive(Clone)]
pub(crate) struct AckSender {
    answers: mpsc::UnboundedSender<(u64, Settle)>,
    channel: Arc<Channel>,
}

impl AckSender {
    /// Opens the desk of a channel. Its task ends when every receipt is gone, or soon after `close`.
    pub(crate) fn open(
        channel: Channel,
        close: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (answers, questions) = mpsc::unbounded_channel();
        let channel = Arc::new(channel);
        let desk = Self { answers, channel: Arc::clone(&channel) };
        // The task must not keep the sender, or it would never end.
        (desk, work(channel, questions, close))
    }

    /// Whether answers still reach the broker. After its end every delivery of the channel comes again.
    pub(crate) fn is_open(&self) -> bool {
        self.channel.status().connected() && !self.answers.is_closed()
    }

    /// The receipt of a delivery. `held` is shared by the unsettled deliveries of a queue.
    pub(crate) fn receipt(&self, tag: u64, held: &Arc<()>) -> AmqpReceipt {
        AmqpReceipt { desk: self.clone(), tag, settled: false, _held: Arc::clone(held) }
    }

    fn settle(&self, tag: u64, how: Settle) -> Settled {
        if self.is_open() && self.answers.send((tag, how)).is_ok() { Settled::Done } else { Settled::Lost }
    }
}

impl fmt::Debug for AckSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AckSender(channel {})", self.channel.id())
    }
}

async fn work(
    channel: Arc<Channel>,
    mut questions: mpsc::UnboundedReceiver<(u64, Settle)>,
    close: CancellationToken,
) {
    let mut ledger = SettledTags::default();
    let mut batch = Vec::with_capacity(MAX_SETTLEMENTS_PER_BATCH);
    loop {
        let taken = tokio::select! {
            biased;
            taken = questions.recv_many(&mut batch, MAX_SETTLEMENTS_PER_BATCH) => taken,
            () = close.cancelled() => {
                // From here on receipts say that they are lost; what was promised before is still written.
                questions.close();
                questions.recv_many(&mut batch, MAX_SETTLEMENTS_PER_BATCH).await
            }
        };
        if taken == 0 {
            return;
        }
        let answers = ledger.answer(&batch);
        batch.clear();
        let writing = answers.into_iter().map(|answer| write(&channel, answer));
        match timeout(RPC_TIMEOUT, join_all(writing)).await {
            Ok(written) => {
                if let Some(error) = written.into_iter().find_map(Result::err) {
                    tracing::debug!(%error, "a settlement was lost with its channel; its message comes again");
                    return;
                }
            }
            // The supervisor's probe ends such a connection; its messages come again.
            Err(_) => return,
        }
    }
}

async fn write(channel: &Channel, answer: AckFrame) -> Result<(), lapin::Error> {
    match answer {
        AckFrame::Ack(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: false }).await,
        AckFrame::AckUpTo(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
        AckFrame::Requeue(tag) => {
            channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
        }
    }
}

/// One delivery's receipt. Dropped unsettled it hands the message back.
#[derive(Debug)]
pub(crate) struct AmqpReceipt {
    desk: AckSender,
    tag: u64,
    settled: bool,
    _held: Arc<()>,
}

impl AmqpReceipt {
    /// Whether the channel that delivered it is gone, so that the message comes again whatever is done here.
    pub(crate) fn is_stale(&self) -> bool {
        !self.desk.is_open()
    }
}

#[async_trait]
impl Receipt for AmqpReceipt {
    async fn settle(mut self: Box<Self>, how: Settle) -> Settled {
        self.settled = true;
        self.desk.settle(self.tag, how)
    }
}

impl Drop for AmqpReceipt {
    fn drop(&mut self) {
        if !self.settled {
            self.desk.settle(self.tag, Settle::Requeue);
        }
    }
}
