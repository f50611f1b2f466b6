//! Refusals: tasks without a handler in this worker, and messages that are not understood, not trusted or not allowed.

use std::{borrow::Cow, time::Duration};

use machinist_adapter::header;

use super::{ActiveDelivery, Settlement, WorkerContext};
use crate::{
    broker::{Message, Publish, Target},
    clock::Timestamp,
    dead_letters::NewDeadLetter,
    event::{EventKind, EventTask},
    id::{QueueName, TaskId},
    record::{DeadReason, ErrorText, Facts, Failure, FailureKind, abandoned_start, recorded_follow_up},
    refused::note_waiting,
    security::{VerifyError, encryption::DecryptError},
    wire::{Envelope, dead_id},
    worker::server_calls::Unpublished,
};

/// Time for which a task may be unknown to all workers before it ends: a rolling deploy must lose nothing.
const UNKNOWN_TASK_TIMEOUT: Duration = Duration::from_secs(3600);
/// Minimum and maximum wait before an unknown task is offered again.
const UNKNOWN_TASK_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Wait before a message is offered again that no key here opens: a key comes by hand, and every copy costs the broker.
const UNREAD_DELAY: Duration = Duration::from_secs(60);

impl WorkerContext {
    /// Handles a task without a handler here: it is offered again for an hour, then ended.
    pub(super) async fn unknown_task(&self, envelope: &Envelope) -> Settlement {
        let error = format!("no worker of queue {} knows the task {}", envelope.queue, envelope.name);
        self.count_waiting(envelope, DeadReason::Unregistered, &error);
        self.retry_unknown(envelope, Failure::new(FailureKind::Unregistered, &*error), unknown_wait).await
    }

    /// Handles a task whose arguments no key here decrypts: it is offered again for an hour, then ended.
    pub(super) async fn unreadable_task(&self, envelope: &Envelope, error: &str) -> Settlement {
        // Readable or not, a task that arrives too early is published again with a delay.
        let settlement = match self.check_time(envelope).await {
            Some(settlement) => settlement,
            None => {
                self.count_waiting(envelope, DeadReason::UnknownKey, error);
                let failure = Failure::rejected(DeadReason::UnknownKey, error);
                self.retry_unknown(envelope, failure, |_| UNREAD_DELAY).await
            }
        };
        self.set_aside_if_necessary(settlement, envelope).await
    }

    /// Counts a task that waits for another worker, when it begins to wait.
    fn count_waiting(&self, envelope: &Envelope, reason: DeadReason, error: &str) {
        let first = u64::from(envelope.unknown_since.is_none());
        self.refused.add(&envelope.queue, reason, true, first, error, self.now());
    }

    /// Offers a task again that is not run here, unless its attempt already has an outcome.
    async fn retry_unknown(
        &self,
        envelope: &Envelope,
        failure: Failure,
        wait: impl Fn(Duration) -> Duration,
    ) -> Settlement {
        match self.unless_decided(envelope).await {
            Ok(facts) => self.offer_again(Offer::Task { envelope, facts, failure }, wait).await,
            Err(settlement) => settlement,
        }
    }

    /// Offers something again that other workers may accept, or this worker later. After an hour it ends, unless it is for
    /// the program that shares the queue: nobody here knows for how long that is away.
    async fn offer_again(&self, offer: Offer<'_>, wait: impl Fn(Duration) -> Duration) -> Settlement {
        let now = self.now();
        let waited = offer.waited(now);
        let remaining = match offer {
            Offer::Theirs { .. } => Duration::MAX,
            Offer::Task { .. } | Offer::Message { .. } => UNKNOWN_TASK_TIMEOUT.saturating_sub(waited),
        };
        if remaining.is_zero() {
            return self.end_offer(offer).await;
        }
        self.emit(offer.deferred(&offer.error(), remaining));
        let published = self.publish_offer(&offer, now, wait(waited)).await;
        match (published, offer) {
            // Nobody has verified such a message, so no delivery is held for it.
            (Err(Unpublished::Never(_)), offer @ (Offer::Message { .. } | Offer::Theirs { .. })) => {
                self.end_offer(offer).await
            }
            (published, _) => self.settled_by(published).await,
        }
    }

    async fn publish_offer(
        &self,
        offer: &Offer<'_>,
        now: Timestamp,
        delay: Duration,
    ) -> Result<(), Unpublished> {
        match offer {
            Offer::Task { envelope, .. } => {
                let (since, _) = envelope.unknown_for(now);
                let later = Envelope { unknown_since: Some(since), ..(*envelope).clone() };
                self.publish_later(&later, delay).await
            }
            Offer::Message { queue, message, .. } | Offer::Theirs { queue, message, .. } => {
                let (message, _) = Envelope::still_unread(message, now);
                self.calls.publish(&Publish { target: Target::Queue((*queue).clone()), message, delay }).await
            }
        }
    }

    /// Ends what nobody has accepted: a task in FAILURE, another message as a dead letter.
    async fn end_offer(&self, offer: Offer<'_>) -> Settlement {
        match offer {
            Offer::Task { envelope, facts, failure } => self.end_or_guard(envelope, facts, failure).await,
            Offer::Message { queue, message, reason, error }
            | Offer::Theirs { queue, message, reason, error } => {
                self.dead_letter_unverified(queue, message, reason, error).await
            }
        }
    }

    /// Reads the record of a task that is not run here. If the attempt already has an outcome, its follow-up is
    /// published, and the settlement is returned as the error: nothing else remains to be done.
    pub(super) async fn unless_decided(&self, envelope: &Envelope) -> Result<Facts, Settlement> {
        let facts = self.calls.read(&envelope.id).await?;
        match recorded_follow_up(&facts, envelope.attempt) {
            Some(follow_up) => Err(self.follow(envelope, &follow_up).await),
            None => Ok(facts),
        }
    }

    /// Returns `true` unless the newest run is known to be over. Its session is checked from now on.
    pub(super) fn may_run_elsewhere(&self, facts: &Facts, envelope: &Envelope) -> bool {
        let Some(start) = abandoned_start(facts, envelope.attempt) else { return false };
        let may_run = !self.sessions.is_gone(&start.session, &start.run);
        if may_run {
            self.sessions.peers.watch(&start.session);
        }
        may_run
    }

    /// Handles a message that other workers may understand, or this worker later: it is offered again for an hour,
    /// unchanged, then dead-lettered. Beyond the bound of what may wait it is dead-lettered at once.
    pub(super) async fn wait_for_reader(
        &self,
        queue: &QueueName,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Settlement {
        let now = self.now();
        if !self.refused.may_wait(queue, message.size(), now, now.plus(UNREAD_DELAY)) {
            let error = format!("{error}; and too many messages of queue {queue} wait already");
            return self.dead_letter_unverified(queue, message, reason, &error).await;
        }
        let first = u64::from(!message.headers.contains_key(header::UNREAD_SINCE));
        self.refused.add(queue, reason, true, first, error, now);
        note_waiting(&self.app, queue, message, reason, error).await;
        self.offer_again(Offer::Message { queue, message, reason, error }, |_| UNREAD_DELAY).await
    }

    /// Publishes a message of another program again, with an id: without one, nothing could be recorded about it. A crash
    /// before the acknowledgement leaves two messages with two ids, and the task runs twice, as without ids.
    pub(super) async fn identify(&self, queue: &QueueName, message: &Message) -> Settlement {
        let id = TaskId::fresh();
        let profile = self.app.0.rules.profile(queue);
        let identified = profile.and_then(|profile| {
            let identified = profile.identify(message, &id)?;
            // The format may write the id in another form, under which the task runs.
            let id = profile.read(&identified).map_or(id, |task| task.id);
            Some((identified, id))
        });
        let Some((identified, id)) = identified else {
            let reason = DeadReason::Undecodable;
            return self.dead_letter_unverified(queue, message, reason, "it has no id").await;
        };
        tracing::warn!(%queue, %id, "a message has no id: its task runs under one that this worker gave it");
        let target = Target::Queue(queue.clone());
        let publish = Publish { target, message: identified, delay: Duration::ZERO };
        self.settled_by(self.calls.publish(&publish).await).await
    }

    /// Offers a message of a shared queue again, unchanged, that is for the other program.
    pub(super) async fn leave_to_others(
        &self,
        queue: &QueueName,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Settlement {
        self.offer_again(Offer::Theirs { queue, message, reason, error }, unknown_wait).await
    }

    /// Offers the message of a task again, unchanged, that may run elsewhere.
    pub(super) async fn postpone(
        &self,
        queue: &QueueName,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Settlement {
        self.offer_again(Offer::Message { queue, message, reason, error }, unknown_wait).await
    }

    /// Ends an authentic task that must not be run, with the reason. If its record cannot be used, its message becomes a
    /// dead letter with the same reason.
    pub(super) async fn reject(
        &self,
        envelope: &Envelope,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Settlement {
        match self.reject_as_recorded(envelope, message, reason, error).await {
            Settlement::SetAside => {
                self.dead_letter_unverified(&envelope.queue, message, reason, error).await
            }
            settlement => settlement,
        }
    }

    /// Ends an authentic task that must not be run. Its record is read first.
    async fn reject_as_recorded(
        &self,
        envelope: &Envelope,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Settlement {
        let facts = match self.unless_decided(envelope).await {
            Ok(facts) => facts,
            Err(settlement) => return settlement,
        };
        // The task runs elsewhere, or did until that worker died. The copy is offered again without a new signature:
        // signed again by this worker, it would no longer be stale.
        if self.may_run_elsewhere(&facts, envelope) {
            return self.postpone(&envelope.queue, message, reason, error).await;
        }
        let (queue, task) = (&envelope.queue, Some(EventTask::of(envelope)));
        self.emit(EventKind::Refused { queue, task, reason: reason.as_str(), error });
        match self.end_as_read(envelope, facts, Failure::rejected(reason, error)).await {
            Some(settlement) => settlement,
            None => self.postpone(&envelope.queue, message, reason, error).await,
        }
    }

    /// Publishes the message of a task whose record cannot be used as a dead letter: what the backend cannot hold is in
    /// the broker, and the task can be sent again from there.
    pub(super) async fn set_aside(&self, envelope: &Envelope) -> Settlement {
        let error = format!(
            "the record of task {} cannot be used, so its state is unknown: it may have run. Remove what another program \
             wrote there, then replay this letter to run the task again",
            envelope.id
        );
        let task = Some(EventTask::of(envelope));
        let dead_id = dead_id(&envelope.id, envelope.attempt);
        let message = self.app.message_of_letter(envelope);
        let (reason, error) = (DeadReason::Undecodable, ErrorText::from(&*error));
        let letter = NewDeadLetter::of_task(&self.app, &envelope.queue, &message, dead_id, reason, error);
        match self.dead_letter(task, letter, reason).await {
            Ok(()) => Settlement::Ack,
            Err(_) => Settlement::Leave,
        }
    }

    /// Sets the message of an envelope aside if that is how its delivery ends.
    pub(super) async fn set_aside_if_necessary(
        &self,
        settlement: Settlement,
        envelope: &Envelope,
    ) -> Settlement {
        match settlement {
            Settlement::SetAside => self.set_aside(envelope).await,
            settlement => settlement,
        }
    }

    /// Checks a delivery again that has waited here while the key ring was replaced. Returns `None` if it may still run.
    pub(super) async fn verify_again(&self, active: &mut ActiveDelivery) -> Option<Settlement> {
        let ActiveDelivery { envelope, signature, verified_under, .. } = active;
        let app = &self.app.0;
        if !app.trust.can_sign() {
            return Some(Settlement::HandBack);
        }
        *verified_under = app.trust.generation();
        let signature = signature.as_ref();
        let unsigned = app.rules.allows_unsigned(&envelope.queue, &envelope.name);
        let (queue, message) = (&envelope.queue, || envelope.message_signed_as(signature));
        match app.trust.verify_again(envelope, signature, unsigned) {
            Ok(()) => {}
            Err(VerifyError::Untrusted(reason, error)) => {
                return Some(self.dead_letter_unverified(queue, &message(), reason, &error).await);
            }
            Err(VerifyError::UnknownKey(error)) => {
                return Some(self.wait_for_reader(queue, &message(), DeadReason::UnknownKey, &error).await);
            }
        }
        let rejected = signature.and_then(|signature| app.trust.not_allowed(envelope, signature));
        let rejected = rejected.or_else(|| match app.trust.check_decryptable(envelope) {
            Err(error @ DecryptError::Revoked(_)) => Some((DeadReason::RevokedKey, error.to_string())),
            _ => None,
        });
        let (reason, error) = rejected?;
        Some(self.reject(envelope, &message(), reason, &error).await)
    }

    /// Dead-letters a message whose claims cannot be trusted: no record is written.
    pub(super) async fn dead_letter_unverified(
        &self,
        queue: &QueueName,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Settlement {
        self.emit(EventKind::Refused { queue, task: None, reason: reason.as_str(), error });
        self.refused.add(queue, reason, false, 1, error, self.now());
        let letter = NewDeadLetter::refused(&self.app, queue, message, reason, error);
        match self.dead_letter(None, letter, reason).await {
            Ok(()) => Settlement::Ack,
            Err(_) => Settlement::Leave,
        }
    }
}

/// Something that this worker does not run, and that is offered again.
enum Offer<'a> {
    /// A task, which is signed again.
    Task { envelope: &'a Envelope, facts: Facts, failure: Failure },
    /// A message that is not read here, or that must keep its first signature. It is published unchanged.
    Message { queue: &'a QueueName, message: &'a Message, reason: DeadReason, error: &'a str },
    /// A message for the program that shares the queue. It is published unchanged, for as long as nobody takes it.
    Theirs { queue: &'a QueueName, message: &'a Message, reason: DeadReason, error: &'a str },
}

impl Offer<'_> {
    /// Returns the time since it was first offered again.
    fn waited(&self, now: Timestamp) -> Duration {
        match self {
            Self::Task { envelope, .. } => envelope.unknown_for(now).1,
            Self::Message { message, .. } | Self::Theirs { message, .. } => {
                Envelope::still_unread(message, now).1
            }
        }
    }

    fn error(&self) -> Cow<'_, str> {
        match self {
            Self::Task { failure, .. } => failure.error.chain.join(": ").into(),
            Self::Message { error, .. } | Self::Theirs { error, .. } => (*error).into(),
        }
    }

    fn deferred<'e>(&'e self, error: &'e str, remaining: Duration) -> EventKind<'e> {
        let (queue, task, reason) = match self {
            Self::Task { envelope, failure, .. } => {
                (&envelope.queue, Some(EventTask::of(envelope)), failure.reason())
            }
            Self::Message { queue, reason, .. } | Self::Theirs { queue, reason, .. } => {
                (*queue, None, *reason)
            }
        };
        EventKind::Deferred { queue, task, reason: reason.as_str(), error, remaining }
    }
}

/// Returns the wait before an unknown task is offered again: a sixth of the time that has passed, so that a short deploy
/// delays tasks only a little, and a long one causes few messages.
fn unknown_wait(waited: Duration) -> Duration {
    (waited / 6).clamp(UNKNOWN_TASK_DELAY.0, UNKNOWN_TASK_DELAY.1)
}
