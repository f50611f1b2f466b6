//! Delayed messages that came due while their queue did not exist. Such a message goes to its queue after all, or its
//! task ends with that error.
//!
//! A broker stores these messages separately, because a message that cannot be delivered would block all delayed messages.
//! They are published unchanged, with any signature: the workers of their queue verify them. Only a message that cannot
//! be published is opened here.

use std::time::Duration;

use super::{Settlement, WorkerContext};
use crate::{
    broker::{Delivery, Message, Publish, PublishError, Target},
    id::QueueName,
    record::{Failure, FailureKind},
    security::{Acceptance, accept},
    wire::Envelope,
    worker::server_calls::Unpublished,
};

/// Time for which a message is held that cannot be moved yet.
const REDELIVERY_DELAY: Duration = Duration::from_secs(60);

impl WorkerContext {
    /// Moves one such message to its queue, or ends its task.
    pub(super) async fn redirect(&self, delivery: Delivery) {
        let Delivery { queue, message, receipt, .. } = delivery;
        let target = Target::Queue(queue.clone());
        let publish = Publish { target, message, delay: Duration::ZERO };
        let settlement = match self.calls.publish(&publish).await {
            Ok(()) => {
                tracing::warn!(%queue, "a delayed message came due while its queue did not exist; the queue exists again");
                Settlement::Ack
            }
            Err(Unpublished::Unanswered(unanswered)) => unanswered.into(),
            Err(Unpublished::Never(error @ PublishError::Unroutable { .. })) => {
                self.cannot_arrive(&queue, &publish.message, &error).await
            }
            Err(Unpublished::Never(error)) => {
                tracing::error!(%queue, %error, "a delayed message that came due cannot be published to its queue");
                self.hand_back_later().await
            }
        };
        // This delivery is not a task of the worker: the tally does not count it.
        settlement.apply(receipt).await;
    }

    async fn cannot_arrive(&self, queue: &QueueName, message: &Message, error: &PublishError) -> Settlement {
        let error = format!("it came due, and {error}");
        let app = &self.app.0;
        match accept(&app.trust, &app.rules, &app.max_sizes, queue, message, self.now()) {
            Acceptance::Accepted(envelope, _)
            | Acceptance::Undecryptable(envelope, _)
            | Acceptance::Rejected(envelope, ..) => {
                let settlement = self.end_unroutable(&envelope, &error).await;
                self.set_aside_if_necessary(settlement, &envelope).await
            }
            Acceptance::Deferred(reason, error) | Acceptance::Refused(reason, error) => {
                self.dead_letter_unverified(queue, message, reason, &error).await
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
