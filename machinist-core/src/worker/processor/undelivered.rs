//! What came due for a queue that was gone: it goes to its queue after all, or its task ends, saying so.
//!
//! A broker keeps such messages apart, because one that nobody receives would hold up all delays. They are published
//! unchanged, whoever signed them: their queue's workers verify them. Only what cannot be published is opened here.

use std::time::Duration;

use super::{Ending, TaskProcessor};
use crate::{
    broker::{Delivery, Message, Publish, PublishError, Target},
    envelope::Envelope,
    id::QueueName,
    record::FailureKind,
    worker::{
        open::{Opened, open},
        steady::Unpublished,
    },
};

/// How long a message stays here that cannot go anywhere yet.
const PAUSE: Duration = Duration::from_secs(60);

impl TaskProcessor {
    /// Takes one such message to its queue, or to its end.
    pub(in crate::worker) async fn redirect(&self, delivery: Delivery) {
        let Delivery { queue, message, receipt, .. } = delivery;
        let target = Target::Queue(queue.clone());
        let publish = Publish { target, message, delay: Duration::ZERO };
        let ending = match self.steady.publish(&publish).await {
            Ok(()) => {
                tracing::warn!(%queue, "a delayed message came due while its queue was gone; the queue is there again");
                Ending::Ack
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
        // Nothing here counts as work of this worker: it is not in the tally.
        let how = match ending {
            Ending::Ack => crate::broker::Settle::Ack,
            Ending::HandBack => crate::broker::Settle::Requeue,
            Ending::Leave => return,
        };
        receipt.settle(how).await;
    }

    async fn cannot_arrive(&self, queue: &QueueName, message: &Message, error: &PublishError) -> Ending {
        let error = format!("it came due, and {error}");
        let app = &self.app.0;
        match open(&app.trust, &app.max_sizes, queue, message, self.now()) {
            Opened::Task(envelope) | Opened::Locked(envelope, _) | Opened::Rejected(envelope, ..) => {
                self.end_unroutable(&envelope, &error).await
            }
            Opened::NotYet(reason, why) | Opened::Dead(reason, why) => {
                self.bury_foreign(queue, message, reason, &why).await
            }
        }
    }

    async fn end_unroutable(&self, envelope: &Envelope, error: &str) -> Ending {
        let facts = match self.unpaid(envelope).await {
            Ok(facts) => facts,
            Err(ending) => return ending,
        };
        // A guard of a task that runs: only its run can say how it ends.
        if self.may_run_elsewhere(&facts, envelope) {
            return self.later().await;
        }
        match self.end_as_read(envelope, facts, FailureKind::Unroutable, error).await {
            Some(ending) => ending,
            None => self.later().await,
        }
    }

    /// It stays where it is, and comes again after a pause.
    async fn later(&self) -> Ending {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = self.stages.reached_drain() => {}
        }
        Ending::HandBack
    }
}
