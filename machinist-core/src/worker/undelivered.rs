//! Delayed messages that came due while their queue did not exist. Such a message goes to its queue after all, or its
//! task ends with that error.
//!
//! A broker stores these messages separately, because a message that cannot be delivered would block all delayed messages.
//! Anybody with the right to publish there can name any queue, and a worker creates the queues that it names. So each
//! message is opened first, like one from a task queue. If it is authentic it is published unchanged; a stranger's message
//! becomes a dead letter of a queue that the worker consumes.

use std::{borrow::Cow, time::Duration};

use super::{Settlement, WorkerContext};
use crate::{
    broker::{DeadLetterCause, Delivery, Message, Publish, PublishError, Target},
    id::QueueName,
    record::{DeadReason, Failure, FailureKind},
    security::{Acceptance, accept},
    wire::Envelope,
    worker::server_calls::Unpublished,
};

/// Time for which a message is held that cannot be moved yet.
const REDELIVERY_DELAY: Duration = Duration::from_secs(60);

impl WorkerContext {
    /// Moves one such message to its queue, or ends its task. A message that is not authentic goes to the dead letters of
    /// `own`, a queue of this worker.
    pub(super) async fn redirect(&self, delivery: Delivery, own: &QueueName) {
        let Delivery { queue, message, cause, receipt, .. } = delivery;
        let settlement = match self.open_undelivered(&queue, &message, cause) {
            Ok(envelope) => self.to_its_queue(&envelope, message).await,
            Err((reason, error)) => self.dead_letter_unverified(own, &message, reason, &error).await,
        };
        // This delivery is not a task of the worker: the tally does not count it.
        settlement.apply(receipt).await;
    }

    /// Opens a message as if it had come from its queue. Returns the reason to distrust it as the error.
    fn open_undelivered(
        &self,
        queue: &QueueName,
        message: &Message,
        cause: Option<DeadLetterCause>,
    ) -> Result<Box<Envelope>, (DeadReason, Cow<'static, str>)> {
        // The broker says that it names no queue.
        if let Some(DeadLetterCause::Other(cause)) = cause {
            return Err((DeadReason::WrongQueue, cause.into()));
        }
        let app = &self.app.0;
        match accept(&app.trust, &app.rules, &app.max_sizes, queue, message, self.now()) {
            Acceptance::Accepted(envelope, _)
            | Acceptance::Undecryptable(envelope, _)
            | Acceptance::Rejected(envelope, ..) => Ok(Box::new(envelope)),
            Acceptance::Unidentified => Err((DeadReason::Undecodable, "it has no id".into())),
            Acceptance::Deferred(reason, error)
            | Acceptance::NotOurs(reason, error)
            | Acceptance::Refused(reason, error) => {
                Err((reason, format!("it came due for queue {queue}, which did not exist: {error}").into()))
            }
        }
    }

    async fn to_its_queue(&self, envelope: &Envelope, message: Message) -> Settlement {
        let queue = &envelope.queue;
        let target = Target::Queue(queue.clone());
        match self.calls.publish(&Publish { target, message, delay: Duration::ZERO }).await {
            Ok(()) => {
                if let Some(suppressed) = self.app.0.log_lines.due("undelivered", queue.as_str()) {
                    tracing::warn!(%queue, suppressed, "a delayed message came due while its queue did not exist; the queue exists again");
                }
                Settlement::Ack
            }
            Err(Unpublished::Unanswered(unanswered)) => unanswered.into(),
            Err(Unpublished::Never(error @ PublishError::Unroutable { .. })) => {
                let settlement = self.end_unroutable(envelope, &format!("it came due, and {error}")).await;
                self.set_aside_if_necessary(settlement, envelope).await
            }
            Err(Unpublished::Never(error)) => {
                if let Some(suppressed) = self.app.0.log_lines.due("undeliverable", queue.as_str()) {
                    tracing::error!(%queue, %error, suppressed, "a delayed message that came due cannot be published to its queue");
                }
                self.hand_back_later().await
            }
        }
    }

    async fn end_unroutable(&self, envelope: &Envelope, error: &str) -> Settlement {
        let facts = match self.unless_decided(envelope).await {
            Ok(facts) => facts,
            Err(settlement) => return settlement,
        };
        // A guard of a running task: only the run decides how the task ends.
        if self.may_run_elsewhere(&facts, envelope) {
            return self.hand_back_later().await;
        }
        match self.end_as_read(envelope, facts, Failure::new(FailureKind::Unroutable, error)).await {
            Some(settlement) => settlement,
            None => self.hand_back_later().await,
        }
    }

    /// Returns the message to where it was, after a pause. It is delivered again.
    async fn hand_back_later(&self) -> Settlement {
        tokio::select! {
            () = tokio::time::sleep(REDELIVERY_DELAY) => {}
            () = self.stages.reached_drain() => {}
        }
        Settlement::HandBack
    }
}
