//! Settling dead letters: replaying their tasks, purging them, indexing them.
//!
//! A letter leaves its queue only after its consequence is certain: the message of the task's successor is confirmed
//! first. An interrupted replay is repeated safely: a successor is named once, and is one task however often
//! it is sent.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use super::{
    DeadFilter, DeadLetter, NewDeadLetter, index,
    scan::{DeadLetterScan, ScannedLetter},
};
use crate::{
    backend::Committed,
    broker::{DeadLetterCause, Delivery, Message, Settle},
    client::Client,
    control::ControlError,
    event::{EventKind, EventTask},
    id::{QueueName, TaskId},
    record::{
        DeadReason, ErrorText, Facts, Failure, FailureKind, TaskState, failure_without_run, fold, is_alive,
        newest_start, recorded_follow_up,
    },
    security::{Acceptance, accept},
    wire::{DeadMark, Envelope, dead_id},
};

/// Result of settling a dead letter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DeadLetterOutcome {
    /// Its task was sent again, under this id, and the letter is gone.
    Replayed(TaskId),
    /// The letter is gone.
    Purged,
    /// It stays, for this reason.
    Refused(String),
    /// In the index, and not found in its queue: another process holds it or has removed it. Purging removes it
    /// from the index.
    Missing,
}

/// Action on dead letters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DeadLetterAction {
    Replay,
    Purge,
}

impl Client {
    /// Sends the tasks of these dead letters again, each as a new task, at most one in each `pace`, and
    /// reports the result of each. A task is sent again once: if [`retry`](Self::retry) was called before, it is that
    /// task.
    ///
    /// The message is opened and verified as a worker does it; one that no key vouches for is refused and stays.
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
        let mut by_queue: HashMap<&QueueName, HashMap<&str, (&DeadLetter, bool)>> = HashMap::new();
        let mut queues = Vec::new();
        for letter in letters {
            let of_queue = by_queue.entry(&letter.queue).or_insert_with(|| {
                queues.push(&letter.queue);
                HashMap::new()
            });
            of_queue.insert(&letter.dead_id, (letter, false));
        }
        for queue in queues {
            let Some(wanted) = by_queue.get_mut(queue) else { continue };
            let largest = wanted.values().map(|(letter, _)| letter.size).max().unwrap_or_default();
            if let Some(mut scan) = DeadLetterScan::begin(&self.app, queue, largest).await? {
                let done = self.settle_in(&mut scan, wanted, action, pace, &mut told).await;
                // Also where it went wrong: what stays is handed back.
                scan.end().await;
                done?;
            }
            for (letter, done) in wanted.values() {
                if !done {
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
        wanted: &mut HashMap<&str, (&DeadLetter, bool)>,
        action: DeadLetterAction,
        pace: Duration,
        told: &mut impl FnMut(&DeadLetter, DeadLetterOutcome),
    ) -> Result<(), ControlError> {
        let mut next = tokio::time::Instant::now();
        while let Some(ScannedLetter { delivery, letter }) = scan.next().await {
            let one = letter.as_ref().and_then(|letter| wanted.get_mut(letter.dead_id.as_str()));
            let Some((letter, done)) = one else {
                scan.keep(delivery);
                continue;
            };
            // A further copy of one letter is settled like the first, and not told.
            if !*done {
                tokio::time::sleep_until(next).await;
                next = tokio::time::Instant::now() + pace;
            }
            let settlement = match action {
                DeadLetterAction::Purge => DeadLetterOutcome::Purged,
                DeadLetterAction::Replay => self.replay(letter, &delivery.message).await?,
            };
            if let DeadLetterOutcome::Refused(_) = settlement {
                scan.keep(delivery);
            } else {
                self.take_away(letter, delivery).await?;
            }
            if !std::mem::replace(done, true) {
                told(letter, settlement);
            }
        }
        Ok(())
    }

    /// Removes a settled letter. If its settlement is lost, it stays in the index and in its queue.
    async fn take_away(&self, letter: &DeadLetter, delivery: Delivery) -> Result<(), ControlError> {
        match delivery.receipt.settle(Settle::Ack).await {
            crate::broker::Settled::Done => Ok(index::remove_from_index(&self.app, letter).await?),
            crate::broker::Settled::Lost => Ok(()),
        }
    }

    async fn replay(
        &self,
        letter: &DeadLetter,
        message: &Message,
    ) -> Result<DeadLetterOutcome, ControlError> {
        let app = &self.app.0;
        let now = app.clock.now();
        let envelope = match accept(&app.trust, &app.rules, &app.max_sizes, &letter.queue, message, now) {
            // Who sends a stale task again vouches for it anew.
            Acceptance::Accepted(envelope) | Acceptance::Rejected(envelope, DeadReason::Stale, _) => envelope,
            Acceptance::Undecryptable(_, why) => return Ok(DeadLetterOutcome::Refused(why)),
            Acceptance::Rejected(_, reason, why)
            | Acceptance::Deferred(reason, why)
            | Acceptance::Refused(reason, why) => {
                return Ok(DeadLetterOutcome::Refused(format!("{}: {why}", reason.as_str())));
            }
        };
        let id = envelope.id.clone();
        let facts = self.read(&id).await?;
        if let Some(record) = fold(&id, &facts).filter(|record| record.state != TaskState::Failure) {
            return Ok(DeadLetterOutcome::Refused(format!("task {id} is {}: nothing failed", record.state)));
        }
        if let Err(why) = self.app.may_publish(&envelope.name, &envelope.queue) {
            return Ok(DeadLetterOutcome::Refused(why));
        }
        // A record that was forgotten is not made anew: the name is written beside the letter.
        let named_at = if facts.is_empty() { index::record_of(&letter.member()) } else { id.into() };
        Ok(DeadLetterOutcome::Replayed(self.send_again(named_at, envelope).await?.id().clone()))
    }

    /// Adds a queue's dead letters to the index that are missing there, and returns their number. A letter that a broker
    /// moved there, because it had been delivered too often, gets its reason, and its task ends in
    /// FAILURE/lost.
    ///
    /// Takes nothing out of the queue if all letters are in the index.
    ///
    /// # Errors
    /// [`ControlError`] where broker or backend cannot be asked.
    ///
    /// # Cancel safety
    /// Safe: it may be repeated.
    pub async fn index_dead_letters(&self, queue: &QueueName) -> Result<usize, ControlError> {
        // In this order: what is listed after it was counted is no surplus.
        let depths = self.app.broker().depth(std::slice::from_ref(queue)).await?;
        let lies = depths.first().and_then(|depth| depth.dead).unwrap_or_default();
        if lies == 0 {
            return Ok(0);
        }
        let which = DeadFilter { queue: Some(queue.clone()), ..DeadFilter::default() };
        let listed = self.dead_letters(&which, usize::MAX).await?;
        if lies <= listed.len() as u64 {
            return Ok(0);
        }
        let largest = listed.iter().map(|letter| letter.size).max().unwrap_or_default();
        let known: std::collections::HashSet<&str> =
            listed.iter().map(|letter| letter.dead_id.as_str()).collect();
        let Some(mut scan) = DeadLetterScan::begin(&self.app, queue, largest).await? else { return Ok(0) };
        let mut added = 0;
        let mut done = Ok(());
        while let Some(ScannedLetter { delivery, letter }) = scan.next().await {
            done = match letter {
                Some(letter) if known.contains(letter.dead_id.as_str()) => {
                    scan.keep(delivery);
                    continue;
                }
                Some(letter) => {
                    scan.keep(delivery);
                    index::add_to_index(&self.app, &letter).await.map_err(ControlError::from)
                }
                None => match self.replace_bare_letter(queue, &delivery).await {
                    Ok(true) => {
                        delivery.receipt.settle(Settle::Ack).await;
                        Ok(())
                    }
                    Ok(false) => {
                        scan.keep(delivery);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            if done.is_err() {
                break;
            }
            added += 1;
        }
        scan.end().await;
        done.map(|()| added)
    }

    /// Gives a letter that the broker moved its reason: it is published again, so that the bare one can go. `false` if that
    /// is left to a process that may sign the end of its task.
    async fn replace_bare_letter(
        &self,
        queue: &QueueName,
        delivery: &Delivery,
    ) -> Result<bool, ControlError> {
        let app = &self.app.0;
        let at = app.clock.now();
        let message = &delivery.message;
        let lost = &*error_of(delivery.cause.as_ref());
        let (envelope, dead_id, reason, error) =
            match accept(&app.trust, &app.rules, &app.max_sizes, queue, message, at) {
                Acceptance::Accepted(envelope)
                | Acceptance::Undecryptable(envelope, _)
                | Acceptance::Rejected(envelope, ..) => {
                    if app.trust.may_sign(&envelope.name, &envelope.queue, at).is_err() {
                        return Ok(false);
                    }
                    self.end_as_lost(&envelope, lost).await?;
                    let dead_id = dead_id(&envelope.id, envelope.attempt);
                    (Some(envelope), dead_id, DeadReason::Lost, lost.to_owned())
                }
                Acceptance::Deferred(reason, why) | Acceptance::Refused(reason, why) => {
                    (None, uuid::Uuid::new_v4().to_string(), reason, why)
                }
            };
        let error = ErrorText::from(error.as_str());
        let mark = DeadMark { dead_id, reason: reason.as_str().to_owned(), error, at };
        let NewDeadLetter { publish, entry } = NewDeadLetter::new(queue, message, mark);
        self.publish_one(publish).await.map_err(ControlError::unpublished)?;
        self.app.emit(EventKind::DeadLettered {
            queue,
            task: envelope.as_ref().map(EventTask::of),
            dead_id: &entry.dead_id,
            reason: reason.as_str(),
            error: &entry.error,
        });
        index::add_to_index(&self.app, &entry).await?;
        Ok(true)
    }

    /// Ends a task whose message will not be delivered again, unless a worker runs it.
    async fn end_as_lost(&self, envelope: &Envelope, error: &str) -> Result<(), ControlError> {
        let app = &self.app.0;
        let id = &envelope.id;
        let now = app.clock.now();
        let facts = self.read(id).await?;
        if recorded_follow_up(&facts, envelope.attempt).is_some()
            || self.somebody_runs(&facts, envelope.attempt).await?
        {
            return Ok(());
        }
        let ttl = app.results_ttl.max(crate::record::MIN_RESULTS_TTL);
        let mut commit = failure_without_run(
            id,
            &facts,
            envelope.attempt,
            Failure::new(FailureKind::Lost, error),
            now,
            ttl,
        );
        commit.facts.extend(self.app.message_fact(envelope));
        // Refused: it was started meanwhile, or has ended.
        let mut stopwatch = app.observers.stopwatch();
        if let Committed::Done { .. } = self.commit(self.signed_end(id, commit)?).await? {
            let (task, kind) = (EventTask::of(envelope), FailureKind::Lost);
            self.app.emit(EventKind::ended_without_run(task, kind, &error.into(), stopwatch.lap()));
        }
        Ok(())
    }

    async fn somebody_runs(&self, facts: &Facts, attempt: u32) -> Result<bool, ControlError> {
        let Some(start) = newest_start(facts, attempt) else { return Ok(false) };
        let records = self.app.0.backend.read(&[start.session.into()]).await?;
        Ok(records.iter().any(is_alive))
    }
}

/// Returns the error of a task whose message the broker dead-lettered by itself.
fn error_of(cause: Option<&DeadLetterCause>) -> Cow<'static, str> {
    Cow::Borrowed(match cause {
        None | Some(DeadLetterCause::DeliveryLimit) => {
            "it was delivered too often: its workers died before they could say what of"
        }
        Some(DeadLetterCause::QueueFull) => {
            "it never ran: the broker dropped it from its full queue; remove max-length from the policies and arguments \
             of the queue"
        }
        Some(DeadLetterCause::Expired) => {
            "it never ran: the broker dropped it when its time in the queue was over; remove message-ttl from the policies \
             and arguments of the queue"
        }
        Some(DeadLetterCause::Rejected) => "it was rejected by a consumer that is no worker of machinist",
        Some(DeadLetterCause::Other(cause)) => {
            return Cow::Owned(format!("the broker dead-lettered it ({cause})"));
        }
    })
}
