//! What a recorded outcome demands: the next run, or a dead letter.
//!
//! It is published and confirmed before the record says so, and said before the delivery is acknowledged: the
//! unacknowledged message is the outbox.

use super::{Settlement, WorkerContext};
use crate::{
    backend::{Index, IndexUpdate},
    broker::{Message, PublishError},
    clock::Timestamp,
    dead_letters::{NewDeadLetter, add_to_index},
    delay::keep_for,
    id::{QueueName, TaskId},
    record::{Counters, ErrorText, Facts, FailureKind, FollowUp},
    wire::{DeadMark, DeadReason, Envelope},
    worker::server_calls::Unpublished,
};

/// What a dead letter says in the place of an error that is hidden in the record.
const ENCRYPTED_ERROR: &str = "encrypted: the record tells whoever has the key";

impl WorkerContext {
    /// Does what a recorded outcome demands, then says so.
    pub(super) async fn follow(&self, envelope: &Envelope, follow_up: &FollowUp) -> Settlement {
        match follow_up {
            FollowUp::Nothing => Settlement::Ack,
            demanding => Box::pin(self.publish_and_say_so(envelope, demanding)).await,
        }
    }

    async fn publish_and_say_so(&self, envelope: &Envelope, follow_up: &FollowUp) -> Settlement {
        let published = match follow_up {
            FollowUp::Nothing => Ok(()),
            FollowUp::NextRun { due, counters, token } => {
                self.publish_next(envelope, *due, *counters, *token).await
            }
            FollowUp::DeadLetter { attempt, kind, error } => {
                let dead_id = format!("{}.{attempt}", envelope.id);
                let (message, reason) = (self.app.seal(envelope), DeadReason::of(*kind, error));
                // What went wrong in a handler may repeat its arguments: hidden in the record, it is not told here.
                let tells = matches!(reason, DeadReason::Failed | DeadReason::Malformed);
                let hidden = tells && self.app.0.trust.encrypts_outcomes(envelope);
                let error = if hidden { ErrorText::from(ENCRYPTED_ERROR) } else { error.clone() };
                self.dead_letter(&envelope.queue, &message, dead_id, reason, error).await
            }
        };
        match published {
            Ok(()) => {}
            Err(Unpublished::Unanswered(why)) => return why.into(),
            Err(Unpublished::Never(error)) => return Box::pin(self.never_runs_again(envelope, &error)).await,
        }
        if let Some(done) = follow_up.done(&envelope.id, envelope.attempt)
            && let Err(why) = self.calls.commit_outcome(done).await
        {
            return why.into();
        }
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
        let published = self.publish_later(&next, keep_for(due.since(self.now())));
        tokio::join!(published, self.on_the_schedule(envelope.id.clone(), due)).0
    }

    /// Lists a task that waits for its next run among those that wait. Best effort: it runs all the same.
    async fn on_the_schedule(&self, id: TaskId, due: Timestamp) {
        let note = IndexUpdate::Put { index: Index::Scheduled, at: due, member: id.to_string() };
        if let Err(error) = self.app.backend().update_indexes(vec![note]).await {
            tracing::debug!(%error, "a task that waits for its next run is not listed as scheduled");
        }
    }

    /// Takes a delayed task that was started, or will not be, off the list of those that wait. Whoever reads the
    /// list does the same for what was missed.
    pub(super) async fn off_the_schedule(&self, id: TaskId) {
        let note = IndexUpdate::Remove { index: Index::Scheduled, member: id.to_string() };
        if let Err(error) = self.app.backend().update_indexes(vec![note]).await {
            tracing::debug!(%error, "a task that was started is still listed as scheduled");
        }
    }

    /// A next run that can never be queued: the task ends here, visibly.
    async fn never_runs_again(&self, envelope: &Envelope, error: &PublishError) -> Settlement {
        let error = format!("its next run could not be queued: {error}");
        tracing::error!(id = %envelope.id, error, "a task ends because its message cannot be published");
        let next = Envelope { attempt: envelope.attempt.saturating_add(1), ..envelope.clone() };
        let ended = Box::pin(self.end_as_read(&next, Facts::new(), FailureKind::Unroutable, &*error)).await;
        // Refused without an outcome: the next run is under way after all.
        ended.unwrap_or(Settlement::Ack)
    }

    /// Publishes a dead letter. A letter that can never be published is logged and dropped; its task ends all the same.
    pub(super) async fn dead_letter(
        &self,
        queue: &QueueName,
        message: &Message,
        dead_id: String,
        reason: DeadReason,
        error: ErrorText,
    ) -> Result<(), Unpublished> {
        let mark = DeadMark { dead_id, reason: reason.as_str().to_owned(), error, at: self.now() };
        let NewDeadLetter { publish, entry } = NewDeadLetter::new(queue, message, mark);
        match self.calls.publish(&publish).await {
            Ok(()) => self.dead_letter_counts.count(reason),
            Err(Unpublished::Never(error)) => {
                tracing::error!(
                    dead_id = entry.dead_id,
                    %error,
                    "a dead letter cannot be published and is dropped; its record stays"
                );
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
