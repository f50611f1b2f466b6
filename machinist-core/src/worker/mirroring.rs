//! Debts of a worker to the program that shares a queue: the states of its tasks, and the messages that follow them.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    WorkerContext,
    server_calls::{Unanswered, Unpublished, pause},
};
use crate::{
    broker::{Publish, Target},
    dead_letters::NewDeadLetter,
    delay::keep_for,
    mirror::{Mirror, MirroredOutcome, MirroredTask, OwedMessage, PassingState},
    record::{DeadReason, EndVerdict, FollowUp},
    wire::Envelope,
};

impl WorkerContext {
    /// Shows a state that nothing depends on. Does not wait.
    pub(super) fn show(&self, envelope: &Envelope, state: PassingState) {
        let Some((mirror, task)) = self.mirrored(envelope) else { return };
        let mirror = Arc::clone(mirror);
        tokio::spawn(async move { mirror.show(&task, state).await });
    }

    fn mirrored(&self, envelope: &Envelope) -> Option<(&Arc<dyn Mirror>, MirroredTask)> {
        let mirror = self.app.0.rules.mirror(&envelope.queue)?;
        let message = Arc::clone(envelope.source.as_ref()?);
        let (id, name) = (envelope.id.clone(), envelope.name.clone());
        Some((mirror, MirroredTask { id, name, message, at: self.now() }))
    }

    /// Shows a recorded outcome to the program that shares the queue, and publishes what follows the task there. Returns
    /// `true` if something was published: then the record tells others that all of it was.
    pub(super) async fn mirror(
        &self,
        envelope: &Envelope,
        follow_up: &FollowUp,
        end: Option<Bytes>,
    ) -> Result<bool, Unpublished> {
        let Some((mirror, task)) = self.mirrored(envelope) else { return Ok(false) };
        let owed = match follow_up {
            FollowUp::Nothing => return Ok(false),
            FollowUp::NextRun { .. } => self.shown(mirror, &task, MirroredOutcome::Retry).await?,
            FollowUp::Ended { .. } | FollowUp::DeadLetter { .. } => {
                self.calls.can_sign().await?;
                match self.recorded_end(envelope, end).await?.end.verdict {
                    EndVerdict::Success { results } => {
                        self.shown(mirror, &task, MirroredOutcome::Success(&results.0)).await?
                    }
                    EndVerdict::Failure(failure) => {
                        let error = failure.error.chain.join(": ");
                        self.shown(mirror, &task, MirroredOutcome::Failure(&error)).await?
                    }
                }
            }
        };
        let follows = !owed.is_empty();
        for message in owed {
            self.publish_owed(envelope, message).await?;
        }
        Ok(follows)
    }

    /// Shows an outcome, again and again until it is shown.
    async fn shown(
        &self,
        mirror: &Arc<dyn Mirror>,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Vec<OwedMessage>, Unanswered> {
        let mut tries = 0;
        loop {
            let error = match mirror.follow(task, outcome).await {
                Ok(owed) => return Ok(owed),
                Err(error) => machinist_adapter::error::chain(&error).join(": "),
            };
            if let Some(suppressed) = self.app.0.log_lines.due("mirror", &error) {
                tracing::warn!(id = %task.id, error, suppressed, "an outcome is not shown to the program that shares the queue; trying again");
            }
            tokio::select! {
                () = pause(tries) => tries += 1,
                () = self.stages.reached_leave() => return Err(Unanswered::Leaving),
            }
        }
    }

    async fn publish_owed(&self, envelope: &Envelope, owed: OwedMessage) -> Result<(), Unpublished> {
        let OwedMessage { message, queue, delay } = owed;
        let delay = keep_for(delay, self.app.broker().as_ref());
        let unroutable = match queue {
            Ok(queue) => {
                let publish = Publish { target: Target::Queue(queue), message: message.clone(), delay };
                match self.calls.publish(&publish).await {
                    Err(Unpublished::Never(error)) => error.to_string(),
                    other => return other,
                }
            }
            Err(why) => why,
        };
        // It can be replayed once its queue is known: the task that it follows has ended.
        tracing::error!(id = %envelope.id, unroutable, "a message that follows a task becomes a dead letter");
        let reason = DeadReason::Unroutable;
        let letter = NewDeadLetter::refused(&self.app, &envelope.queue, &message, reason, &unroutable);
        self.dead_letter(None, letter, reason).await
    }
}
