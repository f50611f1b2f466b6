//! Parking of tasks whose start is refused: for seconds in the process, then as a guard in the broker.
//!
//! What is published and confirmed here is the guard. The message in the record and the entry in an index let the end of
//! the reason release the task at once; without them it comes back by itself.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Settlement, WorkerContext,
    server_calls::{Unanswered, Unpublished},
};
use crate::{
    admission::{AdmissionDecision, AdmissionRequest, WaitReason},
    backend::{Index, IndexUpdate},
    clock::Timestamp,
    event::{EventKind, EventTask},
    record::{ParkDecision, Parked, ReservedStart, abandoned_start, decide_parking, park},
    wire::{Envelope, message_to_fact},
};

/// Time for which a refused task waits in the process.
pub(super) const LOCAL_WAIT: Duration = Duration::from_secs(5);
/// Interval at which a task that waits in the process asks again.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// Delay of a task that this worker leaves to others.
const ELSEWHERE_DELAY: Duration = Duration::from_secs(1);
/// Delay of the first guard of a parked task; each further one stays away twice as long.
const FIRST_PARK_DELAY: Duration = Duration::from_secs(15);
/// Maximum time by which a guard comes back before the start that is reserved for its task. It waits for the rest in the
/// process: one that came late would have lost its start, and taken another from the tasks behind it.
const EARLY: Duration = Duration::from_secs(1);
/// Number of starts of a rate for which tasks come back early: more would find no place in the process.
const EARLY_STARTS: u64 = 16;
/// Maximum delay of such a guard.
const MAX_PARK_DELAY: Duration = Duration::from_secs(3600);

/// Returns the delay of a copy that waits for something whose time is not known. `generation` is that of the copy before.
pub(super) fn park_delay(generation: u32) -> Duration {
    FIRST_PARK_DELAY.saturating_mul(1 << generation.min(8)).min(MAX_PARK_DELAY)
}

/// Refusal of a start.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    reason: WaitReason,
    /// Time before which no rule will allow it, if one is known.
    pub(super) not_before: Option<Timestamp>,
    /// Maximum delay of the guard.
    max_delay: Duration,
    /// Starts that are reserved for the task.
    reserved: Vec<ReservedStart>,
}

impl Refusal {
    pub(super) fn new(reason: WaitReason, not_before: Option<Timestamp>) -> Self {
        Self { reason, not_before, max_delay: MAX_PARK_DELAY, reserved: Vec::new() }
    }

    /// Lets the guard come back after `delay` at the latest.
    pub(super) fn within(self, delay: Duration) -> Self {
        Self { max_delay: delay, ..self }
    }

    /// Keeps these starts for the task.
    pub(super) fn with_reserved(self, reserved: Vec<ReservedStart>) -> Self {
        Self { reserved, ..self }
    }

    /// Returns the time until the rules are asked again in this process.
    fn local_wait(&self, now: Timestamp) -> Duration {
        self.not_before.map_or(ASK_INTERVAL, |at| at.since(now))
    }

    /// Returns the time by which the task comes back before its reserved start.
    fn early(&self) -> Duration {
        let steps = self.reserved.iter().filter_map(|start| u64::try_from(start.step?).ok());
        steps.min().map_or(Duration::ZERO, |step| {
            Duration::from_micros(step.saturating_mul(EARLY_STARTS)).min(EARLY)
        })
    }

    /// Returns the delay of the guard that parks the task.
    fn park_delay(&self, generation: u32, now: Timestamp) -> Duration {
        match self.not_before {
            Some(at) => {
                let (wait, early) = (at.since(now), self.early());
                if wait > 2 * early { wait - early } else { wait }.min(self.max_delay)
            }
            None => park_delay(generation).min(self.max_delay),
        }
    }
}

impl WorkerContext {
    /// Asks the rules if a task may start. Returns `None` if it may, or if its record has to decide; otherwise the task
    /// is parked. `pauses` is the number of pauses of the look-ahead at the delivery's arrival.
    pub(super) async fn park_if_refused(&self, envelope: &Envelope, pauses: u64) -> Option<Settlement> {
        let mut refusal = self.refusal(envelope).await?;
        if let Some(_place) = self.admissions.place(refusal.not_before.is_some()) {
            let _aside = self.look_ahead.aside(pauses);
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

    /// Parks a task that this worker does not take for this time, because it fails it again and again. Returns `None` if the
    /// record has to decide.
    pub(super) async fn park_for_circuit(&self, envelope: &Envelope, wait: Duration) -> Option<Settlement> {
        let reason = WaitReason::new("circuit", envelope.name.as_str());
        // Other workers may take it before this one does.
        let refusal = Refusal::new(reason, Some(self.now().plus(wait))).within(FIRST_PARK_DELAY);
        self.park(envelope, &refusal).await
    }

    /// Parks a task whose handler has asked for another worker. Returns `None` if this worker takes it after all, or if the
    /// record has to decide.
    pub(super) async fn park_if_left(&self, envelope: &Envelope) -> Option<Settlement> {
        if !self.left_to_others.refuses(&envelope.id) {
            return None;
        }
        let reason = WaitReason::new("elsewhere", self.name.held());
        let refusal = Refusal::new(reason, Some(self.now().plus(ELSEWHERE_DELAY)));
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
            AdmissionDecision::NotBefore(at, reason) => Some(Refusal::new(reason, Some(at))),
            AdmissionDecision::NotHere(reason) => Some(Refusal::new(reason, None)),
        }
    }

    /// Parks a refused task as a guard, if its record allows it. Returns `None` if the record says otherwise: then the
    /// start is requested as usual.
    pub(super) async fn park(&self, envelope: &Envelope, refusal: &Refusal) -> Option<Settlement> {
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
        self.calls.can_sign().await?;
        let message = self.app.message(&guard).map_err(Unpublished::Never)?;
        let stored = message_to_fact(&message, message.size());
        self.publish_message(&guard, message, delay).await?;
        let reason = refusal.reason.as_str();
        let earlier = earlier.filter(|earlier| earlier.reason == reason);
        let parked = Parked {
            attempt: guard.attempt,
            generation: guard.generation,
            reason: reason.to_owned(),
            since: earlier.map_or(now, |earlier| earlier.since),
            until: now.plus(delay),
            reserved: refusal.reserved.clone(),
        };
        match self.calls.commit(park(&guard.id, &parked, stored, now)).await {
            // The guard is published, and decides again when it comes back.
            Ok(_) | Err(Unanswered::BadRecord) => {}
            Err(unanswered) => return Err(unanswered.into()),
        }
        self.emit(EventKind::Parked { task: EventTask::of(envelope), reason, until: parked.until });
        let index = Index::Parked(refusal.reason.text());
        let update = IndexUpdate::Put { index, at: parked.since, member: guard.id.to_string() };
        if let Err(error) = self.app.backend().update_indexes(vec![update]).await {
            tracing::debug!(%error, "a parked task is not listed: it comes back by itself");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn delay(wait: Duration, step: Option<i64>) -> Duration {
        let at = NOW.plus(wait);
        let start = ReservedStart { bucket: "rate/task:t".to_owned(), at, shift: 0, step };
        Refusal::new(WaitReason::new("rate", "task:t"), Some(at))
            .with_reserved(vec![start])
            .park_delay(0, NOW)
    }

    #[test]
    fn a_task_comes_back_before_its_reserved_start_and_as_many_as_can_wait() {
        let (seconds, millis) = (Duration::from_secs, Duration::from_millis);
        assert_eq!(delay(seconds(10), Some(50_000)), millis(9_200), "20 per second");
        assert_eq!(delay(seconds(10), Some(1_000)), millis(9_984), "1,000 per second: 16 wait");
        assert_eq!(delay(millis(1_500), Some(50_000)), millis(1_500), "it has found no place to wait here");
        assert_eq!(delay(seconds(10), None), seconds(10), "reserved by an earlier version");
        let refusal = Refusal::new(WaitReason::new("sleep", "w"), Some(NOW.plus(seconds(10))));
        assert_eq!(refusal.park_delay(0, NOW), seconds(10), "nothing is reserved");
    }
}
