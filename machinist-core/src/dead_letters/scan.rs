//! One pass through the dead letters of a queue: each is looked at once, and stays unless it is settled.

use std::{collections::HashSet, time::Duration};

use super::DeadLetter;
use crate::{
    app::App,
    broker::{BrokerError, Delivery, Receipt, Settle, SideQueue},
    id::QueueName,
    wire::DeadMark,
};

/// After so long without another one the pass is over.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// So many are held at once at least, and at most what fits into the memory below, if all were as large as the largest.
const MIN_PREFETCH: usize = 1000;
const MAX_HELD_BYTES: usize = 256 << 20;

/// A pass under way.
pub(super) struct DeadLetterScan {
    queue: QueueName,
    consumer: Box<dyn crate::broker::Consumer>,
    /// How many letters lay there when it began.
    depth: u64,
    seen: u64,
    ids: HashSet<String>,
    /// What stays. Handed back at once it would come again at once.
    kept: Vec<Box<dyn Receipt>>,
}

/// A letter that a pass came by.
pub(super) struct ScannedLetter {
    pub(super) delivery: Delivery,
    /// What it says about itself; none where a broker put it there by itself.
    pub(super) letter: Option<DeadLetter>,
}

impl DeadLetterScan {
    /// Begins; `largest` is the size of the largest letter there, as far as it is known.
    pub(super) async fn begin(
        app: &App,
        queue: &QueueName,
        largest: usize,
    ) -> Result<Option<Self>, BrokerError> {
        let depths = app.broker().depth(std::slice::from_ref(queue)).await?;
        let Some(depth) = depths.first().and_then(|depth| depth.dead).filter(|dead| *dead > 0) else {
            return Ok(None);
        };
        let held = (MAX_HELD_BYTES / largest.max(1)).max(MIN_PREFETCH);
        let prefetch = u16::try_from(held).unwrap_or(u16::MAX);
        let consumer =
            app.broker().consume_side_queue(SideQueue::DeadLetters(queue.clone()), prefetch).await?;
        Ok(consumer.map(|consumer| Self {
            queue: queue.clone(),
            consumer,
            depth,
            seen: 0,
            ids: HashSet::new(),
            kept: Vec::new(),
        }))
    }

    /// The next letter; `None` when all that lay there have been seen, or no more come.
    pub(super) async fn next(&mut self) -> Option<ScannedLetter> {
        if self.seen >= self.depth {
            return None;
        }
        let delivery = tokio::time::timeout(IDLE_TIMEOUT, self.consumer.next()).await.ok()??;
        let letter = DeadMark::read(&delivery.message)
            .map(|mark| DeadLetter::of(&self.queue, &delivery.message, mark));
        // A connection that was lost meanwhile brings what was kept once more.
        let fresh = letter.as_ref().is_none_or(|letter| self.ids.insert(letter.dead_id.clone()));
        if fresh || !delivery.redelivered {
            self.seen += 1;
        }
        Some(ScannedLetter { delivery, letter })
    }

    /// Leaves a letter where it is.
    pub(super) fn keep(&mut self, delivery: Delivery) {
        self.kept.push(delivery.receipt);
    }

    /// Hands back what stays.
    pub(super) async fn end(mut self) {
        self.consumer.stop().await;
        for receipt in self.kept {
            receipt.settle(Settle::Requeue).await;
        }
    }
}
