//! Parking of tasks whose start is refused: for seconds in the process, then as a guard in the broker.
//!
//! What is published and confirmed here is the guard. The message in the record and the entry in an index let the end of
//! the reason release the task at once; without them it comes back by itself.

use std::{
    collections::HashSet,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use super::{Settlement, WorkerContext, server_calls::Unpublished};
use crate::{
    admission::{AdmissionDecision, AdmissionRequest, AdmissionRule, WaitReason},
    backend::{Index, IndexUpdate},
    clock::Timestamp,
    event::{EventKind, EventTask},
    id::TaskName,
    record::{Facts, ParkDecision, Parked, abandoned_start, decide_parking, name, park},
    wire::{Envelope, message_to_fact},
};

/// Time for which a refused task waits in the process.
const LOCAL_WAIT: Duration = Duration::from_secs(5);
/// Interval at which a task that waits in the process asks again.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// Delay of the first guard of a parked task; each further one stays away twice as long.
const FIRST_PARK_DELAY: Duration = Duration::from_secs(15);
/// Maximum delay of such a guard.
const MAX_PARK_DELAY: Duration = Duration::from_secs(3600);

/// Rules of a worker, and the places for refused tasks in its process.
#[derive(Debug)]
pub(super) struct Admissions {
    disabled: Arc<DisabledTasks>,
    rules: Vec<Arc<dyn AdmissionRule>>,
    places: Semaphore,
}

impl Admissions {
    /// `look_ahead` is the number of deliveries that the worker holds in addition to those that run: half of them may
    /// be refused ones.
    pub(super) fn new(
        disabled: Arc<DisabledTasks>,
        rules: Vec<Arc<dyn AdmissionRule>>,
        look_ahead: usize,
    ) -> Self {
        Self { disabled, rules, places: Semaphore::new(look_ahead / 2) }
    }

    /// Returns `true` if nothing can refuse a task: the usual case, which costs no more than this.
    pub(super) fn is_open(&self) -> bool {
        self.rules.is_empty() && !self.disabled.any()
    }

    async fn decide(&self, request: &AdmissionRequest<'_>) -> AdmissionDecision {
        if self.disabled.has(request.name) {
            return AdmissionDecision::NotHere(WaitReason::disabled(request.name));
        }
        for rule in &self.rules {
            match rule.admit(request).await {
                AdmissionDecision::Now => {}
                refused => return refused,
            }
        }
        AdmissionDecision::Now
    }
}

/// Names of tasks that are disabled for all workers, as this worker last read them.
#[derive(Debug, Default)]
pub(super) struct DisabledTasks {
    any: AtomicBool,
    names: RwLock<HashSet<TaskName>>,
}

impl DisabledTasks {
    /// Replaces the names with those of the control record.
    pub(super) fn read(&self, facts: &Facts) {
        let named = |(fact, _): (&str, _)| TaskName::parse(fact.strip_prefix(name::DISABLED)?).ok();
        let names: HashSet<_> = facts.iter().filter_map(named).collect();
        let any = !names.is_empty();
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
        self.any.store(any, Ordering::Release);
    }

    fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn has(&self, task: &TaskName) -> bool {
        self.any() && self.names.read().unwrap_or_else(PoisonError::into_inner).contains(task)
    }
}

/// Refusal of a start.
struct Refusal {
    reason: WaitReason,
    /// Time before which no rule will allow it, if one is known.
    not_before: Option<Timestamp>,
}

impl Refusal {
    /// Returns the time until the rules are asked again in this process.
    fn local_wait(&self, now: Timestamp) -> Duration {
        self.not_before.map_or(ASK_INTERVAL, |at| at.since(now))
    }

    /// Returns the delay of the guard that parks the task.
    fn park_delay(&self, generation: u32, now: Timestamp) -> Duration {
        match self.not_before {
            Some(at) => at.since(now).min(MAX_PARK_DELAY),
            None => FIRST_PARK_DELAY.saturating_mul(1 << generation.min(8)).min(MAX_PARK_DELAY),
        }
    }
}

impl WorkerContext {
    /// Asks the rules if a task may start. Returns `None` if it may, or if its record has to decide; otherwise the task
    /// is parked.
    pub(super) async fn park_if_refused(&self, envelope: &Envelope) -> Option<Settlement> {
        let mut refusal = self.refusal(envelope).await?;
        if let Ok(_place) = self.admissions.places.try_acquire() {
            let deadline = Instant::now() + LOCAL_WAIT;
            loop {
                let next = Instant::now() + refusal.local_wait(self.now());
                if next > deadline {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.must_hand_back() => return Some(Settlement::HandBack),
                }
                refusal = self.refusal(envelope).await?;
            }
        }
        self.park(envelope, &refusal).await
    }

    async fn refusal(&self, envelope: &Envelope) -> Option<Refusal> {
        let request = AdmissionRequest {
            id: &envelope.id,
            name: &envelope.name,
            queue: &envelope.queue,
            attempt: envelope.attempt,
            now: self.now(),
        };
        match self.admissions.decide(&request).await {
            AdmissionDecision::Now => None,
            AdmissionDecision::NotBefore(at, _) if at <= request.now => None,
            AdmissionDecision::NotBefore(at, reason) => Some(Refusal { reason, not_before: Some(at) }),
            AdmissionDecision::NotHere(reason) => Some(Refusal { reason, not_before: None }),
        }
    }

    /// Parks a refused task as a guard, if its record allows it. Returns `None` if the record says otherwise: then the
    /// start is requested as usual.
    async fn park(&self, envelope: &Envelope, refusal: &Refusal) -> Option<Settlement> {
        let facts = match self.calls.read(&envelope.id).await {
            Ok(facts) => facts,
            Err(unanswered) => return Some(unanswered.into()),
        };
        let start = abandoned_start(&facts, envelope.attempt);
        let may_run = start.is_some_and(|start| !self.sessions.is_gone(&start.session, &start.run));
        match decide_parking(&facts, envelope.attempt, envelope.generation, may_run) {
            ParkDecision::Over(follow_up) => Some(self.follow(envelope, &follow_up).await),
            ParkDecision::NewerGuard => Some(Settlement::Ack),
            ParkDecision::Proceed => None,
            ParkDecision::Park(earlier) => {
                Some(self.settled_by(self.publish_parked(envelope, refusal, earlier).await).await)
            }
        }
    }

    /// Publishes the guard of a parked task, and then notes in its record and in an index that it waits.
    async fn publish_parked(
        &self,
        envelope: &Envelope,
        refusal: &Refusal,
        earlier: Option<Parked>,
    ) -> Result<(), Unpublished> {
        let now = self.now();
        let delay = refusal.park_delay(envelope.generation, now);
        let guard = envelope.next_guard(now.plus(delay));
        self.publish_later(&guard, delay).await?;
        let reason = refusal.reason.as_str();
        let earlier = earlier.filter(|earlier| earlier.reason == reason);
        let parked = Parked {
            attempt: guard.attempt,
            generation: guard.generation,
            reason: reason.to_owned(),
            since: earlier.map_or(now, |earlier| earlier.since),
            until: now.plus(delay),
        };
        let message = self.app.signed_message(&guard);
        let message = message_to_fact(&message, message.size());
        self.calls.commit(park(&guard.id, &parked, message, now)).await?;
        self.emit(EventKind::Parked { task: EventTask::of(envelope), reason, until: parked.until });
        let index = Index::Parked(refusal.reason.text());
        let update = IndexUpdate::Put { index, at: parked.since, member: guard.id.to_string() };
        if let Err(error) = self.app.backend().update_indexes(vec![update]).await {
            tracing::debug!(%error, "a parked task is not listed: it comes back by itself");
        }
        Ok(())
    }
}
