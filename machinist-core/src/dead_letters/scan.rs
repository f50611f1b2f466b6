//! A scan of a queue's dead letters: each is seen once, and stays unless it is settled.
//!
//! A scan holds few letters at once, whatever their number. Those that it passes and has no room for are published again
//! behind the last one, before they are acknowledged.

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
/// Maximum size of the letters that a scan holds, in bytes, if none is larger than the application allows.
const MAX_HELD_BYTES: usize = 64 << 20;
/// Minimum and maximum number of letters that a scan holds.
const HELD_LETTERS: (usize, usize) = (16, 1000);

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
    /// Number of letters that the broker delivers at once.
    room: usize,
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
        let sizes = &app.0.max_sizes;
        let largest = sizes.body.saturating_add(sizes.headers).max(1);
        let room = (MAX_HELD_BYTES / largest).clamp(HELD_LETTERS.0, HELD_LETTERS.1);
        let prefetch = u16::try_from(room).unwrap_or(u16::MAX);
        let consumer =
            app.broker().consume_side_queue(SideQueue::DeadLetters(queue.clone()), prefetch).await?;
        Ok(consumer.map(|consumer| Self {
            app: app.clone(),
            queue: queue.clone(),
            consumer,
            depth,
            seen: 0,
            ids: HashSet::new(),
            kept: Vec::new(),
            room,
        }))
    }

    /// Returns the next letter; `None` when all have been seen, or no more come.
    pub(super) async fn next(&mut self) -> Option<ScannedLetter> {
        if self.seen >= self.depth || (self.kept.len() >= self.room && !self.make_room().await) {
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
    pub(super) fn keep(&mut self, delivery: Delivery) {
        self.kept.push(delivery);
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
        for (delivery, answer) in std::mem::take(&mut self.kept).into_iter().zip(answers) {
            match answer {
                Ok(()) => drop(delivery.receipt.settle(Settle::Ack).await),
                Err(error) => {
                    tracing::debug!(%error, "a dead letter was not moved behind the others");
                    self.kept.push(delivery);
                    moved = false;
                }
            }
        }
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
