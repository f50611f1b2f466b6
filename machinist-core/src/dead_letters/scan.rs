//! A scan of a queue's dead letters: each is seen once, and stays unless it is settled.
//!
//! A scan holds few letters at once, whatever their number and their sizes: every process that can publish can put messages
//! there that are larger than any of ours. Those that it passes and has no room for are published again behind the last one,
//! before they are acknowledged.

use std::{collections::HashSet, time::Duration};

use super::DeadLetter;
use crate::{
    app::App,
    broker::{BrokerError, Delivery, Publish, Settle, SideQueue, Target},
    id::QueueName,
    wire::{DeadMark, MarkedMessage},
};

/// Time without another letter after which a scan ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of letters that the broker sends before the scan has seen them. Small, because they can be of any size.
const READ_AHEAD: u16 = 4;
/// Size of the letters that a scan keeps, in bytes, from which on it moves them.
const MAX_KEPT_BYTES: usize = 64 << 20;
/// Maximum number of letters that a scan keeps.
const MAX_KEPT: usize = 256;

/// A scan in progress.
pub(super) struct DeadLetterScan {
    app: App,
    queue: QueueName,
    consumer: Box<dyn crate::broker::Consumer>,
    /// Number of letters in the queue when the scan began.
    depth: u64,
    seen: u64,
    ids: HashSet<String>,
    /// Letters that stay. Handed back at once, they would come again at once.
    kept: Vec<Delivery>,
    /// Size of the kept letters, in bytes.
    kept_bytes: usize,
}

/// A letter that a scan has received.
pub(super) struct ScannedLetter {
    pub(super) delivery: Delivery,
    /// Description from its mark; none if the broker moved the message there.
    pub(super) letter: Option<DeadLetter>,
}

impl DeadLetterScan {
    /// Begins a scan.
    pub(super) async fn begin(app: &App, queue: &QueueName) -> Result<Option<Self>, BrokerError> {
        let depths = app.broker().depth(std::slice::from_ref(queue)).await?;
        let Some(depth) = depths.first().and_then(|depth| depth.dead).filter(|dead| *dead > 0) else {
            return Ok(None);
        };
        let consumer =
            app.broker().consume_side_queue(SideQueue::DeadLetters(queue.clone()), READ_AHEAD).await?;
        Ok(consumer.map(|consumer| Self {
            app: app.clone(),
            queue: queue.clone(),
            consumer,
            depth,
            seen: 0,
            ids: HashSet::new(),
            kept: Vec::new(),
            kept_bytes: 0,
        }))
    }

    /// Returns the next letter; `None` when all have been seen, or no more come.
    pub(super) async fn next(&mut self) -> Option<ScannedLetter> {
        if self.seen >= self.depth || (self.is_full() && !self.make_room().await) {
            return None;
        }
        let delivery = tokio::time::timeout(IDLE_TIMEOUT, self.consumer.next()).await.ok()??;
        let message = &delivery.message;
        let letter = DeadMark::read(message).map(|mark| {
            DeadLetter::new(&self.app, &self.queue, mark, MarkedMessage::of(message), message.size())
        });
        // A connection that was lost meanwhile brings what was kept once more.
        let fresh = letter.as_ref().is_none_or(|letter| self.ids.insert(letter.dead_id.clone()));
        if fresh || !delivery.redelivered {
            self.seen += 1;
        }
        Some(ScannedLetter { delivery, letter })
    }

    /// Keeps a letter in the queue.
    pub(super) async fn keep(&mut self, delivery: Delivery) {
        self.kept_bytes = self.kept_bytes.saturating_add(delivery.message.size());
        self.kept.push(delivery);
        // Kept letters use up the credit.
        if self.kept.len() % usize::from(READ_AHEAD) == 0 && !self.is_full() {
            self.consumer.add_credit(READ_AHEAD).await;
        }
    }

    fn is_full(&self) -> bool {
        self.kept.len() >= MAX_KEPT || self.kept_bytes >= MAX_KEPT_BYTES
    }

    /// Moves the kept letters behind all others. Returns `false` if that is not possible: then they are handed back when
    /// the scan ends.
    async fn make_room(&mut self) -> bool {
        let again = |delivery: &Delivery| Publish {
            target: Target::DeadLetters(self.queue.clone()),
            message: delivery.message.clone(),
            delay: Duration::ZERO,
        };
        let answers = self.app.broker().publish(self.kept.iter().map(again).collect()).await;
        let mut moved = true;
        // Their credit is for the letters that come next, of which few may come at once.
        self.consumer.pause().await;
        self.kept_bytes = 0;
        for (delivery, answer) in std::mem::take(&mut self.kept).into_iter().zip(answers) {
            match answer {
                Ok(()) => drop(delivery.receipt.settle(Settle::Ack).await),
                Err(error) => {
                    tracing::debug!(%error, "a dead letter was not moved behind the others");
                    self.kept_bytes = self.kept_bytes.saturating_add(delivery.message.size());
                    self.kept.push(delivery);
                    moved = false;
                }
            }
        }
        self.consumer.add_credit(READ_AHEAD).await;
        moved
    }

    /// Hands the kept letters back.
    pub(super) async fn end(mut self) {
        self.consumer.stop().await;
        for delivery in self.kept {
            delivery.receipt.settle(Settle::Requeue).await;
        }
    }
}
