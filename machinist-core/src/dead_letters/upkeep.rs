//! Upkeep of the dead letters of a queue: unlisted letters are listed, and messages that a broker moved there go back to
//! their queue.
//!
//! A broker moves a message to the dead letters, without a mark, when it was delivered too often. Every process that can
//! publish can put a copy there too, of a task that waits or runs. So such a message proves nothing about its task. It
//! goes back to its queue, where a worker verifies it and the record of its task decides.

use std::{borrow::Cow, time::Duration};

use machinist_adapter::header;
use serde::{Deserialize, Serialize};

use super::{
    DeadLetter, index,
    scan::{DeadLetterScan, ScannedLetter},
};
use crate::{
    backend::{Commit, Committed, Expiry},
    broker::{DeadLetterCause, Delivery, HeaderValue, Message, Publish, Settle, Target},
    client::Client,
    clock::Timestamp,
    control::ControlError,
    id::{QueueName, RecordId, RecordKind},
    record::{end_turn, json, name, take_turn},
};

/// Number of letters that are looked up at once.
const BATCH: usize = 100;
/// Delay of the first return of a message to its queue; each further one takes twice as long.
const FIRST_RETURN_DELAY: Duration = Duration::from_secs(15);
/// Maximum delay of a return.
const MAX_RETURN_DELAY: Duration = Duration::from_secs(3600);
/// Time for which one process has the upkeep of a queue. A scan that takes longer is not the only one.
const TURN: Duration = Duration::from_secs(600);
/// A queue is scanned for at most one part of the time in so many.
const SHARE: u32 = 10;
/// Minimum time between two counts of the letters that are listed, of all workers together. A little less than the interval at
/// which each worker asks.
const COUNT_INTERVAL: Duration = Duration::from_secs(50);

impl Client {
    /// Adds a queue's dead letters to the index that are missing there, and returns their number. A message that a broker
    /// moved there, because it had been delivered too often, goes back to its queue after a while, and counts too.
    ///
    /// Takes nothing out of the queue if all letters are in the index. Of the letters of messages that are not believed,
    /// only a limited number is listed.
    ///
    /// # Errors
    /// [`ControlError`] where broker or backend cannot be asked.
    ///
    /// # Cancel safety
    /// Safe: it may be repeated.
    pub async fn index_dead_letters(&self, queue: &QueueName) -> Result<usize, ControlError> {
        // In this order: what is listed after it was counted is no surplus.
        let lying = self.count_lying(queue).await?;
        if lying == 0 || lying <= index::count_listed(&self.app, queue).await? {
            return Ok(0);
        }
        self.list_all(queue).await
    }

    /// Does the same for a worker: at most once a minute for all workers, if no other process is at it, and if the number of
    /// unlisted letters has grown since the last time.
    pub(crate) async fn tend_dead_letters(
        &self,
        queue: &QueueName,
        worker: &str,
    ) -> Result<usize, ControlError> {
        let lying = self.count_lying(queue).await?;
        if lying == 0 {
            return Ok(0);
        }
        // The turn comes before the count, which reads both indexes from end to end.
        let work = format!("dead {queue}");
        let mut take = take_turn(&work, worker, TURN);
        let known = self.read(take.id.clone()).await?;
        let last: Option<LastScan> = known.read(LAST_SCAN);
        let began = self.app.clock().now();
        if known.has(name::HOLDER) || last.as_ref().is_some_and(|last| began < last.next) {
            return Ok(0);
        }
        // Of two workers that have read the same, one comes first.
        match known.get(LAST_SCAN) {
            Some(last) => take.require.push((LAST_SCAN.into(), last.clone())),
            None => take.unless.push(LAST_SCAN.into()),
        }
        if !matches!(self.commit(take).await?, Committed::Done { .. }) {
            return Ok(0);
        }
        let left_before = last.map_or(0, |last| last.left);
        match self.list_surplus(queue, lying, left_before).await {
            Ok((added, left)) => {
                let now = self.app.clock().now();
                let pause = now.since(began).saturating_mul(SHARE).max(COUNT_INTERVAL);
                let mut done = Commit::new(RecordId::new(RecordKind::Lock, &work));
                done.drop = vec![name::HOLDER.into(), LAST_SCAN.into()];
                done.facts = vec![(LAST_SCAN.into(), json(&LastScan { left, next: now.plus(pause) }))];
                done.expiry = Expiry::After(TURN.max(pause));
                self.commit(done).await?;
                Ok(added)
            }
            Err(error) => {
                // Without it the next try, of whatever worker, would wait for the end of the turn.
                if let Err(error) = self.commit(end_turn(&work, worker)).await {
                    tracing::debug!(%queue, %error, "the turn at the dead letters was not given up");
                }
                Err(error)
            }
        }
    }

    /// Lists the letters of a queue, if more of them are unlisted than this number, for which there was no place the last time.
    /// Returns how many were added, and how many are left unlisted.
    async fn list_surplus(
        &self,
        queue: &QueueName,
        lying: u64,
        left_before: u64,
    ) -> Result<(usize, u64), ControlError> {
        let surplus = lying.saturating_sub(index::count_listed(&self.app, queue).await?);
        if surplus <= left_before {
            return Ok((0, surplus));
        }
        let added = self.list_all(queue).await?;
        Ok((added, surplus.saturating_sub(added as u64)))
    }

    async fn count_lying(&self, queue: &QueueName) -> Result<u64, ControlError> {
        let depths = self.app.broker().depth(std::slice::from_ref(queue)).await?;
        Ok(depths.first().and_then(|depth| depth.dead).unwrap_or_default())
    }

    async fn list_all(&self, queue: &QueueName) -> Result<usize, ControlError> {
        let Some(mut scan) = DeadLetterScan::begin(&self.app, queue).await? else { return Ok(0) };
        let done = self.list_scanned(queue, &mut scan).await;
        scan.end().await;
        done
    }

    async fn list_scanned(
        &self,
        queue: &QueueName,
        scan: &mut DeadLetterScan,
    ) -> Result<usize, ControlError> {
        let mut added = 0;
        let mut batch = Vec::new();
        while let Some(ScannedLetter { delivery, letter }) = scan.next().await {
            match letter {
                Some(letter) => {
                    scan.keep(delivery).await;
                    batch.push(letter);
                    if batch.len() >= BATCH {
                        added += self.list_batch(std::mem::take(&mut batch)).await?;
                    }
                }
                None => added += usize::from(self.return_to_queue(queue, delivery, scan).await?),
            }
        }
        Ok(added + self.list_batch(batch).await?)
    }

    async fn list_batch(&self, letters: Vec<DeadLetter>) -> Result<usize, ControlError> {
        let unlisted = index::unlisted(&self.app, letters).await?;
        for letter in &unlisted {
            index::add_to_index(&self.app, letter).await?;
        }
        Ok(unlisted.len())
    }

    /// Returns a message to its queue, unchanged. Returns `false` if it stays, because that is not possible.
    async fn return_to_queue(
        &self,
        queue: &QueueName,
        delivery: Delivery,
        scan: &mut DeadLetterScan,
    ) -> Result<bool, ControlError> {
        let (message, delay) = returned(&delivery.message);
        let why = cause_of(delivery.cause.as_ref());
        let publish = Publish { target: Target::Queue(queue.clone()), message, delay };
        match self.publish_one(publish).await {
            Ok(()) => {
                if let Some(suppressed) = self.app.0.log_lines.due("returned", queue.as_str()) {
                    tracing::warn!(
                        %queue,
                        id = delivery.message.id.as_deref().unwrap_or_default(),
                        suppressed,
                        "a message among the dead letters has no mark of a worker: {why}. It goes back to its queue in {delay:?}"
                    );
                }
                delivery.receipt.settle(Settle::Ack).await;
                Ok(true)
            }
            Err(error) if error.is_certain() => {
                if let Some(suppressed) = self.app.0.log_lines.due("not returned", queue.as_str()) {
                    tracing::error!(%queue, %error, suppressed, "a message among the dead letters cannot go back to its queue");
                }
                scan.keep(delivery).await;
                Ok(false)
            }
            Err(error) => {
                scan.keep(delivery).await;
                Err(ControlError::unpublished(error))
            }
        }
    }
}

/// The last scan of a queue.
const LAST_SCAN: &str = "last";

/// Result of the last scan of a queue.
#[derive(Debug, Serialize, Deserialize)]
struct LastScan {
    /// Number of letters that it left unlisted: there is no place for them.
    left: u64,
    /// Time before which there is no other.
    next: Timestamp,
}

/// Returns a message as it goes back to its queue, and its delay. Whatever the message says of earlier returns only
/// determines the delay, so that one that kills its workers kills few.
fn returned(message: &Message) -> (Message, Duration) {
    let returns =
        message.headers.get(header::RETURNS).and_then(HeaderValue::as_int).unwrap_or(0).clamp(0, 30);
    let mut message = message.clone();
    message.headers.insert(header::RETURNS.into(), (returns + 1).into());
    let delay = FIRST_RETURN_DELAY.saturating_mul(1 << returns).min(MAX_RETURN_DELAY);
    (message, delay)
}

/// Returns why the broker moved a message to the dead letters, as the broker says it. Every process that can publish can
/// say the same.
fn cause_of(cause: Option<&DeadLetterCause>) -> Cow<'static, str> {
    Cow::Borrowed(match cause {
        None => "the broker does not say why, or somebody put it there",
        Some(DeadLetterCause::DeliveryLimit) => "the broker had delivered it too often",
        Some(DeadLetterCause::QueueFull) => {
            "the broker dropped it from its full queue; remove max-length from the policies and arguments of the queue"
        }
        Some(DeadLetterCause::Expired) => {
            "its time in the queue was over; remove message-ttl from the policies and arguments of the queue"
        }
        Some(DeadLetterCause::Rejected) => "a consumer rejected it that is no worker of machinist",
        Some(DeadLetterCause::Other(cause)) => return Cow::Owned(format!("the broker says {cause}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_take_longer_and_longer_whatever_the_message_claims() {
        let mut message = Message::default();
        let mut secs = Vec::new();
        for _ in 0..10 {
            let (again, delay) = returned(&message);
            secs.push(delay.as_secs());
            message = again;
        }
        assert_eq!(secs, [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        for claim in [i64::MIN, i64::MAX] {
            message.headers.insert(header::RETURNS.into(), claim.into());
            assert!((FIRST_RETURN_DELAY..=MAX_RETURN_DELAY).contains(&returned(&message).1));
        }
    }
}
