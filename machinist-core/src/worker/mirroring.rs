//! Debts of a worker to the program that shares a queue: the states of its tasks, and the messages that follow them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::{
    WorkerContext,
    server_calls::{Unanswered, Unpublished, pause},
};
use crate::{
    args::Results,
    broker::{Publish, Target},
    dead_letters::NewDeadLetter,
    delay::keep_for,
    mirror::{Followed, Mirror, MirroredOutcome, MirroredTask, OwedMessage, PassingState},
    record::{DeadReason, EndVerdict, FollowUp, followed_since, name},
    wire::Envelope,
};

/// Time for which a run lasts before the program that shares the queue is shown that it has started.
const STARTED_AFTER: Duration = Duration::from_millis(50);

/// Result of showing an outcome to the program that shares a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mirrored {
    /// Shown, and all that follows there is published.
    Done { follows: bool },
    /// Shown. A guard, which is in the broker, comes back for what follows.
    Later,
}

/// Recorded end of a task, as another program is told it.
enum ShownEnd {
    Success(Results),
    Failure(String),
}

impl ShownEnd {
    fn of(verdict: EndVerdict) -> Self {
        match verdict {
            EndVerdict::Success { results } => Self::Success(results),
            EndVerdict::Failure(failure) => Self::Failure(failure.error.chain.join(": ")),
        }
    }

    fn outcome(&self) -> MirroredOutcome<'_> {
        match self {
            Self::Success(results) => MirroredOutcome::Success(&results.0),
            Self::Failure(error) => MirroredOutcome::Failure(error),
        }
    }
}

impl WorkerContext {
    /// Shows that a run has started, unless it ends soon: the end of the handler drops what is returned, and a state that is
    /// superseded at once is never written. Spawned, because a handler may block its thread.
    pub(super) fn show_started(&self, envelope: &Envelope) -> Option<AbortOnDropHandle<()>> {
        let (mirror, task) = self.mirrored(envelope)?;
        let mirror = Arc::clone(mirror);
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(STARTED_AFTER).await;
            mirror.show(&task, PassingState::Started).await;
        })))
    }

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
        // A guard comes from a queue that only workers of machinist consume.
        let guarded = envelope.generation > 0 || self.app.0.rules.guards_of(&envelope.queue).is_none();
        Some((mirror, MirroredTask { guarded, ..MirroredTask::new(id, name, message, self.now()) }))
    }

    /// Shows a recorded outcome to the program that shares the queue, and publishes what follows the task there. If
    /// something was published, the record tells others that all of it was.
    pub(super) async fn mirror(
        &self,
        envelope: &Envelope,
        follow_up: &FollowUp,
        end: Option<Bytes>,
    ) -> Result<Mirrored, Unpublished> {
        let nothing = Mirrored::Done { follows: false };
        let Some((mirror, mut task)) = self.mirrored(envelope) else { return Ok(nothing) };
        task.repeated = end.is_none();
        let owed = match follow_up {
            FollowUp::Nothing => {
                task.followed = true;
                return Box::pin(self.come_again(mirror, envelope, task)).await;
            }
            FollowUp::NextRun { .. } => {
                self.follow_there(mirror, envelope, task, MirroredOutcome::Retry).await?
            }
            FollowUp::Ended { .. } | FollowUp::DeadLetter { .. } => {
                self.calls.can_sign().await?;
                let end = ShownEnd::of(self.recorded_end(envelope, end).await?.end.verdict);
                self.follow_there(mirror, envelope, task, end.outcome()).await?
            }
        };
        self.publish_all(envelope, owed).await
    }

    /// Publishes what follows a task in the program that shares the queue, or a guard if that is not known yet.
    async fn publish_all(
        &self,
        envelope: &Envelope,
        owed: Option<Vec<OwedMessage>>,
    ) -> Result<Mirrored, Unpublished> {
        let Some(owed) = owed else {
            self.guard_debt(envelope).await?;
            return Ok(Mirrored::Later);
        };
        let follows = !owed.is_empty();
        for message in owed {
            self.publish_owed(envelope, message).await?;
        }
        Ok(Mirrored::Done { follows })
    }

    /// Asks what follows a task, again and again until the mirror answers. Returns `None` if that is not known yet.
    async fn follow_there(
        &self,
        mirror: &Arc<dyn Mirror>,
        envelope: &Envelope,
        mut task: MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Option<Vec<OwedMessage>>, Unpublished> {
        let mut tries = 0;
        loop {
            let answer = match task.followed {
                false => mirror.follow(&task, outcome).await,
                true => mirror.owed_since(&task, outcome).await,
            };
            let error = match answer {
                Ok(Followed::Owes(owed)) => return Ok(Some(owed)),
                Ok(Followed::Later) => return Ok(None),
                // Confirmed before the mirror goes on: from here on, the debt is the guard's too.
                Ok(Followed::NeedsGuard) if !task.guarded => {
                    self.guard_debt(envelope).await?;
                    task.guarded = true;
                    continue;
                }
                Ok(Followed::NeedsGuard) => "the mirror asks for a guard that is there".to_owned(),
                Err(error) => machinist_adapter::error::chain(&error).join(": "),
            };
            self.pause_showing(&task, &error, &mut tries).await?;
        }
    }

    /// Takes care of a task whose message or guard has come again after all that follows it was published: shows its end
    /// again, and publishes what it owes since. If its record cannot be read, what is shown stays.
    async fn come_again(
        &self,
        mirror: &Arc<dyn Mirror>,
        envelope: &Envelope,
        task: MirroredTask,
    ) -> Result<Mirrored, Unpublished> {
        let nothing = Mirrored::Done { follows: false };
        let facts = self.calls.read(&envelope.id).await?;
        let Some(end) = facts.get(name::END) else { return Ok(nothing) };
        self.calls.can_sign().await?;
        let Ok(recorded) = self.recorded_end(envelope, Some(end.clone())).await else { return Ok(nothing) };
        let end = ShownEnd::of(recorded.end.verdict);
        // A guard was never in the hands of the other program: it does not tell that a state has replaced the end.
        if envelope.generation == 0 {
            let mut tries = 0;
            while let Err(error) = mirror.show_again(&task, end.outcome()).await {
                let error = machinist_adapter::error::chain(&error).join(": ");
                self.pause_showing(&task, &error, &mut tries).await?;
            }
        }
        if facts.has(name::FOLLOWED_SINCE) {
            return Ok(nothing);
        }
        let owed = self.follow_there(mirror, envelope, task, end.outcome()).await?;
        let mirrored = self.publish_all(envelope, owed).await?;
        if mirrored == (Mirrored::Done { follows: true }) {
            // Only after the publish: without the mark it is published once more, under the same id.
            match self.calls.commit_outcome(followed_since(&envelope.id)).await {
                Ok(_) | Err(Unanswered::BadRecord) => {}
                Err(unanswered) => return Err(unanswered.into()),
            }
        }
        Ok(mirrored)
    }

    /// Waits before an outcome is shown again that the other store did not take.
    async fn pause_showing(
        &self,
        task: &MirroredTask,
        error: &str,
        tries: &mut u32,
    ) -> Result<(), Unpublished> {
        if let Some(suppressed) = self.app.0.log_lines.due("mirror", error) {
            tracing::warn!(id = %task.id, error, suppressed, "an outcome is not shown to the program that shares the queue; trying again");
        }
        tokio::select! {
            () = pause(*tries) => *tries += 1,
            () = self.stages.reached_leave() => return Err(Unanswered::Leaving.into()),
        }
        Ok(())
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
