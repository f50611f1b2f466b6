//! Settling dead letters: replaying their tasks, purging them.
//!
//! A letter leaves its queue only after its consequence is certain: the message of the task's successor is confirmed
//! first. An interrupted replay is repeated safely: a successor is named once, and is one task however often
//! it is sent.

use std::{collections::HashMap, time::Duration};

use machinist_adapter::header;

use super::{
    DeadLetter, index,
    scan::{DeadLetterScan, ScannedLetter},
};
use crate::{
    broker::{Delivery, Message, Publish, Settle, Settled, Target},
    client::Client,
    control::ControlError,
    id::{QueueName, TaskId},
    record::{DeadReason, TaskState, fold},
    security::open,
    wire::without_mark,
};

/// Result of settling a dead letter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DeadLetterOutcome {
    /// Its task was sent again, under this id, and the letter is gone. It is the same id if the task has not ended, because
    /// only its message was refused.
    Replayed(TaskId),
    /// The letter is gone.
    Purged,
    /// It stays, for this reason.
    Refused(String),
    /// In the index, and not found in its queue: another process holds it or has removed it. Purging removes it
    /// from the index.
    Missing,
}

/// The letters of one queue that a caller wants to settle, by id, each with its outcome.
type Wanted<'a> = HashMap<&'a str, (&'a DeadLetter, Option<DeadLetterOutcome>)>;

/// Action on dead letters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DeadLetterAction {
    Replay,
    Purge,
}

impl Client {
    /// Sends the tasks of these dead letters again, each as a new task, at most one in each `pace`, and
    /// reports the result of each. A task is sent again once: if [`retry`](Self::retry) was called before, it is that
    /// task. A task that has not ended, because only its message was refused, stays the same task.
    ///
    /// A letter that no worker signed is refused and stays. So is one whose message no worker with these keys would have
    /// run at the time of the letter.
    ///
    /// # Errors
    /// [`ControlError`] where broker or backend cannot be asked. What was said before is done, the rest is as it was;
    /// asking again is fine.
    ///
    /// # Cancel safety
    /// A dropped future leaves each letter settled or not; asking again is fine.
    pub async fn replay_dead_letters(
        &self,
        letters: &[DeadLetter],
        pace: Duration,
        told: impl FnMut(&DeadLetter, DeadLetterOutcome),
    ) -> Result<(), ControlError> {
        self.settle_dead_letters(letters, DeadLetterAction::Replay, pace, told).await
    }

    /// Purges these dead letters, at most one in each `pace`, and reports the result of each.
    ///
    /// # Errors
    /// As [`replay_dead_letters`](Self::replay_dead_letters).
    ///
    /// # Cancel safety
    /// A dropped future leaves each letter there or not; asking again is fine.
    pub async fn purge_dead_letters(
        &self,
        letters: &[DeadLetter],
        pace: Duration,
        told: impl FnMut(&DeadLetter, DeadLetterOutcome),
    ) -> Result<(), ControlError> {
        self.settle_dead_letters(letters, DeadLetterAction::Purge, pace, told).await
    }

    async fn settle_dead_letters(
        &self,
        letters: &[DeadLetter],
        action: DeadLetterAction,
        pace: Duration,
        mut told: impl FnMut(&DeadLetter, DeadLetterOutcome),
    ) -> Result<(), ControlError> {
        let mut by_queue: HashMap<&QueueName, Wanted<'_>> = HashMap::new();
        let mut queues = Vec::new();
        for letter in letters {
            let of_queue = by_queue.entry(&letter.queue).or_insert_with(|| {
                queues.push(&letter.queue);
                HashMap::new()
            });
            of_queue.insert(&letter.dead_id, (letter, None));
        }
        for queue in queues {
            let Some(wanted) = by_queue.get_mut(queue) else { continue };
            if let Some(mut scan) = DeadLetterScan::begin(&self.app, queue).await? {
                let done = self.settle_in(&mut scan, wanted, action, pace, &mut told).await;
                // Also where it went wrong: what stays is handed back.
                scan.end().await;
                done?;
            }
            for (letter, settled) in wanted.values() {
                if settled.is_none() {
                    if action == DeadLetterAction::Purge {
                        index::remove_from_index(&self.app, letter).await?;
                    }
                    told(letter, DeadLetterOutcome::Missing);
                }
            }
        }
        Ok(())
    }

    /// Settles the wanted letters of one queue.
    async fn settle_in(
        &self,
        scan: &mut DeadLetterScan,
        wanted: &mut Wanted<'_>,
        action: DeadLetterAction,
        pace: Duration,
        told: &mut impl FnMut(&DeadLetter, DeadLetterOutcome),
    ) -> Result<(), ControlError> {
        let mut next = tokio::time::Instant::now();
        while let Some(ScannedLetter { delivery, letter: scanned }) = scan.next().await {
            let one = scanned.as_ref().and_then(|scanned| {
                wanted.get_mut(scanned.dead_id.as_str()).map(|(letter, settled)| (scanned, *letter, settled))
            });
            let Some((scanned, letter, settled)) = one else {
                scan.keep(delivery).await;
                continue;
            };
            // A further copy of one letter goes where the first went, and is neither sent again nor told.
            let first = settled.is_none();
            let outcome = match settled {
                Some(outcome) => outcome,
                None => {
                    tokio::time::sleep_until(next).await;
                    next = tokio::time::Instant::now() + pace;
                    settled.insert(match action {
                        DeadLetterAction::Purge => DeadLetterOutcome::Purged,
                        DeadLetterAction::Replay => self.replay(scanned, &delivery.message).await?,
                    })
                }
            };
            if let DeadLetterOutcome::Refused(_) = outcome {
                scan.keep(delivery).await;
            } else {
                self.take_away(letter, delivery).await?;
            }
            if first {
                told(letter, outcome.clone());
            }
        }
        Ok(())
    }

    /// Removes a settled letter. If its settlement is lost, it stays in the index and in its queue.
    async fn take_away(&self, letter: &DeadLetter, delivery: Delivery) -> Result<(), ControlError> {
        match delivery.receipt.settle(Settle::Ack).await {
            Settled::Done => Ok(index::remove_from_index(&self.app, letter).await?),
            Settled::Lost => Ok(()),
        }
    }

    /// Sends the task of a letter again, if a worker vouched for the letter and every check of a delivery passes, as of the
    /// time at which it became a letter.
    async fn replay(
        &self,
        letter: &DeadLetter,
        message: &Message,
    ) -> Result<DeadLetterOutcome, ControlError> {
        let refused = |why: String| Ok(DeadLetterOutcome::Refused(why));
        if !letter.verified {
            return refused(format!(
                "{}: every process that can publish could have put it there",
                letter.error.message()
            ));
        }
        // Its worker has signed it again, so that the letter itself is fresh.
        if letter.reason == DeadReason::Stale.as_str() {
            return refused(format!("{}: {}", letter.reason, letter.error.chain.join(": ")));
        }
        let app = &self.app.0;
        let at = letter.at.min(app.clock.now());
        let opened = open(&app.trust, &app.rules, &app.max_sizes, Some(&letter.queue), message, at);
        let envelope = match opened {
            Ok(envelope) => envelope,
            Err((reason, why)) => return refused(format!("{}: {why}", reason.as_str())),
        };
        if let Err(locked) = app.trust.check_decryptable(&envelope) {
            return refused(locked.to_string());
        }
        let id = envelope.id.clone();
        let facts = self.read(&id).await?;
        match fold(&id, &facts).map(|record| record.state) {
            Some(TaskState::Failure) => {}
            // A worker refused its message, perhaps for a key that it has got since: nothing says that the task has ended.
            state if !letter.is_of_task() && state.is_none_or(|state| !state.is_final()) => {
                return self.return_message(letter, message, id).await;
            }
            None => {}
            Some(state) => return refused(format!("task {id} is {state}: nothing failed")),
        }
        if let Err(why) = self.app.may_publish(&envelope.name, &envelope.queue) {
            return refused(why);
        }
        match self.send_copy(&facts, envelope).await {
            Ok(again) => Ok(DeadLetterOutcome::Replayed(again.id().clone())),
            Err(ControlError::NoMessage { why, .. }) => refused(why),
            Err(error) => Err(error),
        }
    }

    /// Returns the message of a task that has not ended to its queue, unchanged: it is the same task.
    async fn return_message(
        &self,
        letter: &DeadLetter,
        message: &Message,
        id: TaskId,
    ) -> Result<DeadLetterOutcome, ControlError> {
        let mut message = without_mark(message);
        message.headers.remove(header::UNREAD_SINCE);
        let target = Target::Queue(letter.queue.clone());
        match self.publish_one(Publish { target, message, delay: Duration::ZERO }).await {
            Ok(()) => Ok(DeadLetterOutcome::Replayed(id)),
            Err(error) if error.is_certain() => Ok(DeadLetterOutcome::Refused(error.to_string())),
            Err(error) => Err(ControlError::unpublished(error)),
        }
    }
}
