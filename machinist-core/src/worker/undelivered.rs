//! What came due for a queue that was gone: it goes to its queue after all, or its task ends, saying so.
//!
//! A broker keeps such messages apart, because one that nobody receives would hold up all delays. They are published
//! unchanged, whoever signed them: their queue's workers verify them. Only what cannot be published is opened here.

use std::time::Duration;

use super::{Settlement, WorkerContext};
use crate::{
    broker::{Delivery, Message, Publish, PublishError, Target},
    id::QueueName,
    record::FailureKind,
    security::{Admission, admit},
    wire::Envelope,
    worker::server_calls::Unpublished,
};

/// How long a message stays here that cannot go anywhere yet.
const REDELIVERY_DELAY: Duration = Duration::from_secs(60);

impl WorkerContext {
    /// Takes one such message to its queue, or to its end.
    pub(super) async fn redirect(&self, delivery: Delivery) {
        let Delivery { queue, message, receipt, .. } = delivery;
        let target = Target::Queue(queue.clone());
        let publish = Publish { target, message, delay: Duration::ZERO };
        let settlement = match self.calls.publish(&publish).await {
            Ok(()) => {
                tracing::warn!(%queue, "a delayed message came due while its queue was gone; the queue is there again");
                Settlement::Ack
            }
            Err(Unpublished::Unanswered(why)) => why.into(),
            Err(Unpublished::Never(error @ PublishError::Unroutable { .. })) => {
                self.cannot_arrive(&queue, &publish.message, &error).await
            }
            Err(Unpublished::Never(error)) => {
                tracing::error!(%queue, %error, "a message that came due cannot be brought to its queue");
                self.later().await
            }
        };
        // This is no task of the worker: the tally does not count it.
        settlement.apply(receipt).await;
    }

    async fn cannot_arrive(&self, queue: &QueueName, message: &Message, error: &PublishError) -> Settlement {
        let error = format!("it came due, and {error}");
        let app = &self.app.0;
        match admit(&app.trust, &app.max_sizes, queue, message, self.now()) {
            Admission::Accepted(envelope)
            | Admission::Undecryptable(envelope, _)
            | Admission::Rejected(envelope, ..) => self.end_unroutable(&envelope, &error).await,
            Admission::Deferred(reason, why) | Admission::Refused(reason, why) => {
                self.dead_letter_unverified(queue, message, reason, &why).await
            }
        }
    }

    async fn end_unroutable(&self, envelope: &Envelope, error: &str) -> Settlement {
        let facts = match self.unless_decided(envelope).await {
            Ok(facts) => facts,
            Err(settlement) => return settlement,
        };
        // A guard of a task that runs: only its run can say how it ends.
        if self.may_run_elsewhere(&facts, envelope) {
            return self.later().await;
        }
        match self.end_as_read(envelope, facts, FailureKind::Unroutable, error).await {
            Some(settlement) => settlement,
            None => self.later().await,
        }
    }

    /// It stays where it is, and comes again after a pause.
    async fn later(&self) -> Settlement {
        tokio::select! {
            () = tokio::time::sleep(REDELIVERY_DELAY) => {}
            () = self.stages.reached_drain() => {}
        }
        Settlement::HandBack
    }
}
