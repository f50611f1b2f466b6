//! The follow-up of a recorded outcome: the next run, or a dead letter.
//!
//! The follow-up is published and confirmed before the record marks it as done, and the record is written before the
//! delivery is acknowledged: the unacknowledged message is the outbox.

use bytes::Bytes;

use super::{Settlement, WorkerContext};
use crate::{
    backend::{Index, IndexUpdate},
    broker::PublishError,
    clock::Timestamp,
    dead_letters::{NewDeadLetter, add_to_index},
    delay::keep_for,
    event::{EventKind, EventTask},
    id::TaskId,
    record::{Counters, DeadReason, ErrorText, Facts, Failure, FailureKind, FollowUp, KEPT_FROM},
    wire::{Envelope, dead_id},
    worker::{
        mirroring::Mirrored,
        server_calls::{Unanswered, Unpublished},
    },
};

/// Text in a dead letter in place of an error that is encrypted in the record.
const ENCRYPTED_ERROR: &str = "encrypted: the task's record shows the error to holders of the key";

impl WorkerContext {
    /// Publishes the follow-up of a recorded outcome, then marks it as done in the record.
    pub(super) async fn follow(&self, envelope: &Envelope, follow_up: &FollowUp) -> Settlement {
        self.follow_end(envelope, follow_up, None).await
    }

    /// The same. `end` is the recorded end of the task, if the caller knows it.
    pub(super) async fn follow_end(
        &self,
        envelope: &Envelope,
        follow_up: &FollowUp,
        end: Option<Bytes>,
    ) -> Settlement {
        let mut follows_elsewhere = false;
        if self.app.0.rules.mirror(&envelope.queue).is_some() {
            match Box::pin(self.mirror(envelope, follow_up, end.clone())).await {
                Ok(Mirrored::Done { follows }) => follows_elsewhere = follows,
                Ok(Mirrored::Later) => return Settlement::Ack,
                Err(unpublished) => return self.settled_by::<()>(Err(unpublished)).await,
            }
        }
        match follow_up {
            FollowUp::Nothing => Settlement::Ack,
            FollowUp::Ended { spawns: false } if !follows_elsewhere && !envelope.pairs.are_of_workflow() => {
                Settlement::Ack
            }
            follow_up => Box::pin(self.publish_and_mark_done(envelope, follow_up, end)).await,
        }
    }

    async fn publish_and_mark_done(
        &self,
        envelope: &Envelope,
        follow_up: &FollowUp,
        end: Option<Bytes>,
    ) -> Settlement {
        let mut stopwatch = self.events.stopwatch();
        let place = envelope.place();
        let goes_on = match follow_up {
            FollowUp::Ended { spawns } => *spawns || place.is_some(),
            FollowUp::DeadLetter { .. } => place.is_some(),
            FollowUp::Nothing | FollowUp::NextRun { .. } => false,
        };
        let mut only_joined = false;
        if goes_on {
            match self.continue_workflow(envelope, place.as_ref(), end).await {
                Ok(leads_on) => only_joined = !leads_on && matches!(follow_up, FollowUp::Ended { .. }),
                Err(unpublished) => return self.settled_by::<()>(Err(unpublished)).await,
            }
        }
        let published = match follow_up {
            FollowUp::Nothing | FollowUp::Ended { .. } => Ok(()),
            FollowUp::NextRun { due, counters, token } => {
                self.publish_next(envelope, *due, *counters, *token).await
            }
            FollowUp::DeadLetter { attempt, failure } => {
                if let Err(leaving) = self.calls.can_sign().await {
                    return leaving.into();
                }
                let dead_id = dead_id(&envelope.id, *attempt);
                let message = self.app.message_of_letter(envelope);
                let reason = failure.reason();
                // A handler's error may repeat its arguments: encrypted in the record, it must not be readable here.
                let from_handler = matches!(reason, DeadReason::Failed | DeadReason::Malformed);
                let hidden = from_handler && self.app.0.trust.encrypts_outcomes(envelope);
                let error = if hidden { ErrorText::from(ENCRYPTED_ERROR) } else { failure.error.clone() };
                let task = Some(EventTask::of(envelope));
                let letter =
                    NewDeadLetter::of_task(&self.app, &envelope.queue, &message, dead_id, reason, error);
                self.dead_letter(task, letter, reason).await
            }
        };
        match published {
            Ok(()) => {}
            Err(Unpublished::Unanswered(unanswered)) => return unanswered.into(),
            Err(Unpublished::Never(error)) => return Box::pin(self.never_runs_again(envelope, &error)).await,
        }
        // Joining again is harmless, and nobody asks whether it was done.
        let done = follow_up.done(&envelope.id, envelope.attempt).filter(|_| !only_joined);
        if let Some(done) = done {
            match self.calls.commit_outcome(done).await {
                // Published, it needs no record: only the mark is missing.
                Ok(_) | Err(Unanswered::BadRecord) => {}
                Err(unanswered) => return unanswered.into(),
            }
        }
        let (task, follow_up_wait) = (EventTask::of(envelope), stopwatch.lap());
        self.emit(EventKind::FollowedUp { task, follow_up_wait });
        Settlement::Ack
    }

    async fn publish_next(
        &self,
        envelope: &Envelope,
        due: Timestamp,
        counters: Counters,
        token: u64,
    ) -> Result<(), Unpublished> {
        let next = envelope.next_attempt(due, counters, token);
        let delay = keep_for(due.since(self.now()), self.app.broker().as_ref());
        let published = self.publish_later(&next, delay);
        tokio::join!(published, self.list_as_scheduled(envelope.id.clone(), due)).0?;
        match envelope.place().filter(|_| delay >= KEPT_FROM) {
            Some(place) => {
                let next = [(place.root_id().clone(), envelope.id.clone())];
                Box::pin(self.revoke_delayed(&next)).await
            }
            None => Ok(()),
        }
    }

    /// Lists a task that waits for its next run as scheduled. Best effort: the task runs in any case.
    async fn list_as_scheduled(&self, id: TaskId, due: Timestamp) {
        let update = IndexUpdate::Put { index: Index::Scheduled, at: due, member: id.to_string() };
        if let Err(error) = self.app.backend().update_indexes(vec![update]).await {
            tracing::debug!(%error, "a task that waits for its next run is not listed as scheduled");
        }
    }

    /// Removes a delayed task from the list of scheduled tasks, because it was started or never will be. Readers of the
    /// list remove the entries that were missed here.
    pub(super) async fn unlist_as_scheduled(&self, id: TaskId) {
        let update = IndexUpdate::Remove { index: Index::Scheduled, member: id.to_string() };
        if let Err(error) = self.app.backend().update_indexes(vec![update]).await {
            tracing::debug!(%error, "a task that was started is still listed as scheduled");
        }
    }

    /// Ends a task whose next run can never be queued, with an error that is recorded.
    async fn never_runs_again(&self, envelope: &Envelope, error: &PublishError) -> Settlement {
        let error = format!("its next run could not be queued: {error}");
        tracing::error!(id = %envelope.id, error, "a task ends because its message cannot be published");
        let next = Envelope { attempt: envelope.attempt.saturating_add(1), ..envelope.clone() };
        let ended =
            Box::pin(self.end_as_read(&next, Facts::new(), Failure::new(FailureKind::Unroutable, &*error)))
                .await;
        // Refused without an outcome: the next run is under way after all.
        ended.unwrap_or(Settlement::Ack)
    }

    /// Publishes a dead letter. A letter that can never be published is logged and dropped; its task ends all the same.
    pub(super) async fn dead_letter(
        &self,
        task: Option<EventTask<'_>>,
        letter: NewDeadLetter,
        reason: DeadReason,
    ) -> Result<(), Unpublished> {
        let NewDeadLetter { publish, entry } = letter;
        let queue = publish.target.queue();
        match self.calls.publish(&publish).await {
            Ok(()) => self.emit(EventKind::DeadLettered {
                queue,
                task,
                dead_id: &entry.dead_id,
                reason: reason.as_str(),
                error: &entry.error,
            }),
            Err(Unpublished::Never(error)) => {
                if let Some(suppressed) = self.app.0.log_lines.due("dead letter", queue.as_str()) {
                    tracing::error!(
                        dead_id = entry.dead_id,
                        %error,
                        suppressed,
                        "a dead letter cannot be published and is dropped; its record stays"
                    );
                }
                return Ok(());
            }
            Err(leaving) => return Err(leaving),
        }
        if let Err(error) = add_to_index(&self.app, &entry).await {
            tracing::debug!(%error, "a dead letter was not indexed; the next listing finds it in its queue");
        }
        Ok(())
    }
}
