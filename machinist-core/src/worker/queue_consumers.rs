//! Separate subscriptions to the queues of a worker, as one consumer.
//!
//! A subscription to several queues may fill its credit with the tasks of one of them. Where queues have weights, some tasks
//! of each must be there to choose from.

use std::fmt;

use async_trait::async_trait;
use futures_util::future::{join_all, select_all};

use crate::broker::{Consumer, Delivery, SubscriptionHealth};

/// Credit for each slot: one for the task that runs, and one for the task that waits for its place.
const CREDIT_OF_SLOT: u16 = 2;

/// Subscription to one queue, and its credit.
pub(super) struct QueueConsumer {
    consumer: Box<dyn Consumer>,
    /// Credit since the last pause.
    given: u16,
    /// Maximum credit, for a queue that may not use every slot.
    most: u16,
    ended: bool,
}

impl QueueConsumer {
    pub(super) const fn new(consumer: Box<dyn Consumer>, most: u16, given: u16) -> Self {
        Self { consumer, given, most, ended: false }
    }

    /// Returns the credit for a number of slots.
    pub(super) const fn credit_of(slots: u16) -> u16 {
        slots.saturating_mul(CREDIT_OF_SLOT)
    }
}

/// Subscriptions to several queues.
pub(super) struct QueueConsumers {
    queues: Vec<QueueConsumer>,
    /// Queue that is asked first.
    first: usize,
}

impl QueueConsumers {
    pub(super) const fn new(queues: Vec<QueueConsumer>) -> Self {
        Self { queues, first: 0 }
    }
}

#[async_trait]
impl Consumer for QueueConsumers {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let first = self.first;
            let open = self.queues.iter_mut().enumerate().filter(|(_, queue)| !queue.ended);
            let mut asked: Vec<_> = open
                .map(|(place, queue)| {
                    let next = queue.consumer.next();
                    Box::pin(async move { (place, next.await) })
                })
                .collect();
            if asked.is_empty() {
                return None;
            }
            // A quick queue must not hide the others.
            let turn = first % asked.len();
            asked.rotate_left(turn);
            let ((place, delivery), ..) = select_all(asked).await;
            self.first = first.wrapping_add(1);
            match delivery {
                Some(delivery) => return Some(delivery),
                None => self.queues[place].ended = true,
            }
        }
    }

    async fn add_credit(&mut self, credit: u16) {
        join_all(self.queues.iter_mut().map(|queue| async move {
            let more = QueueConsumer::credit_of(credit).min(queue.most.saturating_sub(queue.given));
            if more > 0 {
                queue.consumer.add_credit(more).await;
                queue.given += more;
            }
        }))
        .await;
    }

    async fn pause(&mut self) {
        join_all(self.queues.iter_mut().map(|queue| async move {
            queue.consumer.pause().await;
            queue.given = 0;
        }))
        .await;
    }

    async fn stop(&mut self) {
        join_all(self.queues.iter_mut().map(|queue| queue.consumer.stop())).await;
    }

    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(QueuesHealth(self.queues.iter().map(|queue| queue.consumer.health()).collect()))
    }
}

impl fmt::Debug for QueueConsumers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueConsumers").field("queues", &self.queues.len()).finish_non_exhaustive()
    }
}

/// Health of several subscriptions.
#[derive(Debug)]
struct QueuesHealth(Vec<Box<dyn SubscriptionHealth>>);

#[async_trait]
impl SubscriptionHealth for QueuesHealth {
    async fn check(&self) -> Result<(), String> {
        join_all(self.0.iter().map(|queue| queue.check())).await.into_iter().collect()
    }

    fn disconnects(&self) -> u64 {
        self.0.iter().map(|queue| queue.disconnects()).sum()
    }
}
