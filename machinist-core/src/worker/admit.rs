//! The check of a task's limits before its start, and the wait of a task that they refuse.
//!
//! Only limited tasks come here. A place is taken first and a start is reserved then, so that no start is reserved for a
//! task that cannot run for lack of a place. A reserved start in the future is the time at which the task comes back.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ActiveDelivery, Settlement, WorkerContext,
    limits::NextStart,
    parking::{LOCAL_WAIT, Refusal},
    places::PlaceReply,
    server_calls::Unanswered,
    session::RegisteredRun,
    wake_up::WakeUp,
};
use crate::{
    admission::WaitReason,
    backend::Committed,
    builtin::WORKFLOW_TASK,
    clock::Timestamp,
    fleet::WorkerFilter,
    id::{RecordId, RunId},
    limit::{
        AppliedLimit, KEY_HASH, Limit,
        bucket::{SOON, Terms, push_back},
        hidden_key,
        places::places,
        stored_key,
    },
    record::{Facts, ReservedStart, ReservedStarts, keep_reserved, reserved_starts},
    security::is_encrypted,
    wire::{Body, Envelope},
};

/// Time by which a start may be later than it was reserved for. One that is later is reserved again.
const LATE: Duration = Duration::from_millis(500);
/// Wait in the process from which on the record of a task keeps its reserved starts.
const RECORDED_FROM: Duration = Duration::from_millis(100);
/// Waits before a task that waits for a place asks again, if nothing wakes it before.
const PLACE_POLLS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Maximum time for which a worker that starts asks for the limits of others.
const COMPARED_WITHIN: Duration = Duration::from_secs(5);
/// Wait of a task whose limit has a record that cannot be used: a person has to remove what is there.
const UNUSABLE_DELAY: Duration = Duration::from_secs(60);
/// Maximum wait of a task whose limit is zero. Nobody releases it if the limit is raised in a configuration, or has keys.
const PAUSED_DELAY: Duration = Duration::from_secs(60);

const _: () =
    assert!(LOCAL_WAIT.as_millis() <= SOON.as_millis(), "starts for which tasks wait here are kept");

/// Knowledge of a delivery about its limits.
#[derive(Debug, Default)]
pub(super) struct LimitState {
    reserved: Vec<ReservedStart>,
    /// Reservations in its record; `None` if they have not been read, and there may be some.
    recorded: Option<Vec<ReservedStart>>,
    /// `true` if the record of the task decides, and not its limits.
    undecided: bool,
    wait: Option<PlaceWait>,
    deadline: Option<Instant>,
}

/// The wait for a place of one limit.
#[derive(Debug)]
struct PlaceWait {
    /// Wake-ups for the record that holds the places.
    wake_up: WakeUp,
    /// Number of places.
    max: u32,
    poll: Duration,
    gone_before: u64,
}

/// Answer to the request of a limited task.
pub(super) enum Admitted {
    /// It may start.
    Yes,
    /// Its record has to decide: a start that is granted is given up.
    Undecided,
    /// It may not start now.
    No(Refusal),
}

impl WorkerContext {
    /// Takes what the limits of a task require for its start.
    ///
    /// A process that dies here leaves places that its session frees, and starts that nobody uses.
    pub(super) async fn admit(
        &self,
        envelope: &Envelope,
        registered: &RegisteredRun,
        state: &mut LimitState,
    ) -> Result<Admitted, Unanswered> {
        if std::mem::take(&mut state.undecided) {
            return Ok(Admitted::Undecided);
        }
        let limits = self.limits_of(envelope);
        if let Some(paused) = limits.iter().find(|limit| limit.limit.is_paused()) {
            state.wait = None;
            let refusal = Refusal::new(paused.paused_reason(), None).within(PAUSED_DELAY);
            return Ok(Admitted::No(refusal));
        }
        for limit in &limits {
            let Some(max) = limit.limit.max_running else { continue };
            let record = limit.places();
            let reply = match self.limits.usable(&record) {
                Ok(()) => self.take_place(envelope, registered, &record, max).await,
                Err(unusable) => Err(unusable),
            };
            let reply = match self.limits.noted(&record, reply) {
                Err(Unanswered::BadRecord) => {
                    state.wait = None;
                    self.return_places(&registered.run).await;
                    let at = self.not_before_usable(&record);
                    return Ok(Admitted::No(Refusal::new(limit.places_reason(), Some(at))));
                }
                reply => reply?,
            };
            match reply {
                PlaceReply::Held => {}
                PlaceReply::SameTask => return Ok(Admitted::Undecided),
                PlaceReply::Full => {
                    self.return_places(&registered.run).await;
                    state.wait_for_place(record, max, self.sessions.peers.gone_count());
                    return Ok(Admitted::No(Refusal::new(limit.places_reason(), None)));
                }
            }
        }
        state.wait = None;
        match self.reserve_starts(envelope, &limits, state).await? {
            None => Ok(Admitted::Yes),
            Some((at, reason)) => {
                self.return_places(&registered.run).await;
                let refusal = Refusal::new(reason, Some(at)).with_reserved(state.reserved.clone());
                Ok(Admitted::No(refusal))
            }
        }
    }

    /// Says that the record of a limit cannot be used, and returns the time before which none of its tasks starts. The
    /// task is not to blame, and without the limit it must not run.
    fn not_before_usable(&self, record: &RecordId) -> Timestamp {
        if let Some(suppressed) = self.app.0.log_lines.due("limit", record.id()) {
            tracing::error!(
                %record,
                suppressed,
                "the record of a limit cannot be used: its tasks wait until somebody removes what is there"
            );
        }
        self.now().plus(UNUSABLE_DELAY)
    }

    /// Reserves the starts that a task has not reserved yet. Returns the time before which it may not start, if there is
    /// one, and the reason.
    async fn reserve_starts(
        &self,
        envelope: &Envelope,
        limits: &[AppliedLimit],
        state: &mut LimitState,
    ) -> Result<Option<(Timestamp, WaitReason)>, Unanswered> {
        let rates: Vec<_> = limits.iter().filter_map(|limit| Some((limit, limit.terms()?))).collect();
        if rates.is_empty() {
            return Ok(None);
        }
        if state.recorded.is_none() {
            let facts = self.calls.read(&envelope.id).await?;
            state.reserved = reserved_starts(&facts, envelope.attempt, envelope.generation);
            state.recorded = Some(state.reserved.clone());
        }
        for start in &mut state.reserved {
            let Some((limit, _)) = rates.iter().find(|(limit, _)| limit.bucket().id() == start.bucket) else {
                continue;
            };
            let shift = match self.limits.shift(&limit.bucket(), &self.calls).await {
                Err(Unanswered::BadRecord) => {
                    return Ok(Some((self.not_before_usable(&limit.bucket()), limit.rate_reason())));
                }
                shift => shift?,
            };
            let more = u64::try_from(shift.saturating_sub(start.shift)).unwrap_or(0);
            start.at = start.at.plus(Duration::from_micros(more));
            start.shift = shift;
        }
        state.reserved.retain(|start| rates.iter().any(|(limit, _)| limit.bucket().id() == start.bucket));
        loop {
            // First those that it has to wait for: a start now would lapse meanwhile.
            if let Some(later) = self.latest_start(&rates, state).await? {
                return Ok(Some(later));
            }
            if let Some(refused) = self.start_late(&rates, state).await? {
                return Ok(Some(refused));
            }
            if state.reserved.len() == rates.len() {
                return Ok(None);
            }
        }
    }

    /// Reserves a start of each rate of which none is reserved. Returns the latest time before which the task may not start, if
    /// there is one, and the reason.
    async fn latest_start(
        &self,
        rates: &[(&AppliedLimit, Terms)],
        state: &mut LimitState,
    ) -> Result<Option<(Timestamp, WaitReason)>, Unanswered> {
        let mut latest: Option<(Timestamp, WaitReason)> = None;
        for (limit, terms) in rates {
            let bucket = limit.bucket();
            let known = state.reserved.iter().find(|start| start.bucket == bucket.id()).map(|start| start.at);
            let at = match known {
                Some(at) => at,
                None => match self.next_start(limit, *terms).await {
                    Ok(NextStart::Reserved(at, shift)) => {
                        let (bucket, step) = (bucket.id().to_owned(), Some(terms.step()));
                        state.reserved.push(ReservedStart { bucket, at, shift, step });
                        at
                    }
                    Ok(NextStart::NotBefore(at)) => at,
                    Err(Unanswered::BadRecord) => self.not_before_usable(&bucket),
                    Err(unanswered) => return Err(unanswered),
                },
            };
            if at > self.now() && latest.as_ref().is_none_or(|(latest, _)| at > *latest) {
                latest = Some((at, limit.rate_reason()));
            }
        }
        Ok(latest)
    }

    /// Requests starts now in place of those that have lapsed: those for which the task comes late, and those that were
    /// reserved under a faster rate. One that it cannot have soon is forgotten: another is reserved. Returns the time at which
    /// the task asks again, if that is soon, and the reason.
    async fn start_late(
        &self,
        rates: &[(&AppliedLimit, Terms)],
        state: &mut LimitState,
    ) -> Result<Option<(Timestamp, WaitReason)>, Unanswered> {
        let now = self.now();
        let found =
            |start: &ReservedStart| rates.iter().find(|(limit, _)| limit.bucket().id() == start.bucket);
        let is_too_fast =
            |start: &ReservedStart, terms: Terms| start.step.is_some_and(|step| step < terms.step());
        let has_lapsed =
            |start: &ReservedStart, terms| start.at.plus(LATE) < now || is_too_fast(start, terms);
        let lapsed = |start: &ReservedStart| found(start).filter(|(_, terms)| has_lapsed(start, *terms));
        if state.reserved.iter().filter_map(lapsed).count() > 1 {
            // What one rate grants is lost if another one refuses then: all are looked at before any is asked.
            let (mut latest, known) = (None, state.reserved.len());
            for start in std::mem::take(&mut state.reserved) {
                let turn = match lapsed(&start) {
                    Some((limit, terms)) => {
                        let bucket = limit.bucket();
                        let turn =
                            self.limits.late_turn(&bucket, *terms, &self.calls, self.app.clock()).await;
                        turn.map(|turn| turn.map(|at| (at, limit.rate_reason())))
                    }
                    None => Ok(None),
                };
                match turn {
                    Ok(Some((at, _))) if at > now.plus(LOCAL_WAIT) => continue,
                    Ok(Some((at, reason))) if latest.as_ref().is_none_or(|(latest, _)| at > *latest) => {
                        latest = Some((at, reason));
                    }
                    Ok(_) => {}
                    Err(Unanswered::BadRecord) => continue,
                    Err(unanswered) => return Err(unanswered),
                }
                state.reserved.push(start);
            }
            if latest.is_some() || state.reserved.len() < known {
                return Ok(latest);
            }
        }
        let mut refused = None;
        for start in std::mem::take(&mut state.reserved) {
            let Some((limit, terms)) = lapsed(&start).filter(|_| refused.is_none()) else {
                state.reserved.push(start);
                continue;
            };
            let own = (!is_too_fast(&start, *terms)).then_some(start.at);
            match self.limits.start_late(&limit.bucket(), *terms, own, &self.calls, self.app.clock()).await {
                // Kept if another limit refuses the task now: the bucket has been pushed back for it.
                Ok(NextStart::Reserved(at, shift)) => {
                    let step = Some(terms.step());
                    state.reserved.push(ReservedStart { at, shift, step, ..start });
                }
                Ok(NextStart::NotBefore(at)) if at <= now.plus(LOCAL_WAIT) => {
                    refused = Some((at, limit.rate_reason()));
                    state.reserved.push(start);
                }
                Ok(NextStart::NotBefore(_)) | Err(Unanswered::BadRecord) => {}
                Err(unanswered) => return Err(unanswered),
            }
        }
        Ok(refused)
    }

    async fn next_start(&self, limit: &AppliedLimit, terms: Terms) -> Result<NextStart, Unanswered> {
        self.limits.next_start(&limit.bucket(), terms, &self.calls, self.app.clock()).await
    }

    /// Waits until a refused task may ask again. Returns its settlement if it waits elsewhere.
    pub(super) async fn wait_for_limit(
        &self,
        envelope: &Envelope,
        refusal: &Refusal,
        state: &mut LimitState,
        pauses: u64,
    ) -> Option<Settlement> {
        let deadline = *state.deadline.get_or_insert_with(|| Instant::now() + LOCAL_WAIT);
        if let Some(_place) = self.admissions.place(refusal.not_before.is_some())
            && let Some(wait) = state.next_wait(refusal, self.now())
            && Instant::now() + wait <= deadline
        {
            let _aside = self.look_ahead.aside(pauses);
            let until = Instant::now() + wait;
            let waited = async {
                if wait >= RECORDED_FROM {
                    let kept = Box::pin(self.keep_reserved(envelope, state));
                    let _too_late = tokio::time::timeout_at(until, kept).await;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = state.woken(self) => {}
                }
            };
            return tokio::select! {
                () = waited => None,
                () = self.must_hand_back() => Some(Settlement::HandBack),
            };
        }
        let parked = match &state.wait {
            Some(PlaceWait { wake_up, max, .. }) => {
                let delay = self.place_waits.note(&wake_up.record, *max, self.sessions.lease().duration());
                self.park(envelope, &refusal.clone().within(delay)).await
            }
            None => self.park(envelope, refusal).await,
        };
        state.undecided = parked.is_none();
        if parked.is_some()
            && let Some(wait) = &state.wait
        {
            self.release_if_free(wait).await;
        }
        parked
    }

    /// Notes in the record of a task which starts are reserved for it. Nothing is lost if that fails, but a worker that takes
    /// over the task reserves others then, and nobody uses these.
    async fn keep_reserved(&self, envelope: &Envelope, state: &mut LimitState) {
        if state.reserved.is_empty() || state.is_recorded() {
            return;
        }
        let (attempt, generation) = (envelope.attempt, envelope.generation);
        let reserved = ReservedStarts { attempt, generation, starts: state.reserved.clone() };
        match self.calls.commit(keep_reserved(&envelope.id, &reserved)).await {
            Ok(_) => state.recorded = Some(reserved.starts),
            Err(unanswered) => {
                tracing::debug!(?unanswered, task = %envelope.id, "reserved starts are not kept")
            }
        }
    }

    /// Returns the settlement of a task that leaves without a slot. If it would be handed back by a worker that goes on, and has
    /// reserved starts, it is parked instead: a delivery that comes again would have lost them.
    pub(super) async fn leave_without_slot(
        &self,
        envelope: &Envelope,
        settlement: Settlement,
        state: Option<&mut LimitState>,
    ) -> Settlement {
        let Some(state) = state else { return settlement };
        if settlement == Settlement::Ack {
            // It comes back as a guard, later than its start: then it starts as one that is late.
            self.keep_reserved(envelope, state).await;
            return settlement;
        }
        let reserved = &state.reserved;
        let last = reserved.iter().max_by_key(|start| start.at);
        let goes_on = !self.stages.is_draining() && self.app.0.trust.can_sign();
        let Some(last) = last.filter(|_| goes_on && settlement == Settlement::HandBack) else {
            return settlement;
        };
        let subject = last.bucket.strip_prefix("rate/").unwrap_or_default();
        let refusal = Refusal::new(WaitReason::new("rate", subject), Some(last.at));
        self.park(envelope, &refusal.with_reserved(reserved.clone())).await.unwrap_or(settlement)
    }

    /// Releases a parked task if a place is free. A place that was freed between the refusal of a task and its parking has
    /// found nobody to release.
    async fn release_if_free(&self, wait: &PlaceWait) {
        let Ok(facts) = self.calls.read_record(&wait.wake_up.record).await else { return };
        if places(&facts).count() < wait.max as usize {
            self.release_for(&wait.wake_up.record).await;
        }
    }

    /// Keeps all tasks that share the rate limits of a task from starting before `delay` is over. What fails is only said:
    /// the task itself waits in any case.
    pub(super) async fn push_back(&self, envelope: &Envelope, delay: Duration) {
        let now = self.now();
        for limit in self.limits_of(envelope) {
            let Some(terms) = limit.terms() else { continue };
            let bucket = limit.bucket();
            let by = RunId::fresh();
            let mut facts = Facts::new();
            while let Some(commit) = push_back(&facts, &bucket, terms, now.plus(delay), by.as_str(), now) {
                match self.calls.commit(commit).await {
                    Ok(Committed::Done { .. }) => break,
                    Ok(Committed::Refused(newer)) => facts = newer,
                    Err(unanswered) => {
                        tracing::warn!(?unanswered, bucket = %bucket, "a rate limit was not pushed back");
                        break;
                    }
                }
            }
            self.limits.forget(&bucket);
        }
    }

    /// Warns if live workers have other limits for what this worker limits: each counts with its own numbers.
    pub(super) async fn warn_of_other_limits(&self) {
        if self.limits.own().is_empty() {
            return;
        }
        let (client, all) = (self.app.client(), WorkerFilter::new());
        let workers = match tokio::time::timeout(COMPARED_WITHIN, client.workers(&all)).await {
            Ok(Ok(workers)) => workers,
            Ok(Err(error)) => return tracing::debug!(%error, "the limits of other workers are not known"),
            Err(_late) => return,
        };
        for (target, other, worker) in self.limits.differing(&workers) {
            tracing::warn!(
                %target, %other, worker = worker.name,
                "another worker has another limit: each counts with its own numbers; make them the same, or set one live"
            );
        }
    }

    /// Returns the limits of a task, under its keys. The body is decoded only if a limit has a key or a rate.
    fn limits_of(&self, envelope: &Envelope) -> Vec<AppliedLimit> {
        if envelope.name.as_str() == WORKFLOW_TASK {
            return Vec::new();
        }
        let mut body: Option<Option<Body>> = None;
        let applied = |(target, limit): (_, Arc<Limit>)| {
            if limit.key.is_none() && limit.rate.is_none() {
                return AppliedLimit::new(&target, limit, None);
            }
            // A task that cannot be decoded fails as malformed when it starts.
            let body = body.get_or_insert_with(|| self.app.decode(envelope).ok()).as_ref();
            let key = limit.key.as_ref().map(|key| {
                let key = body
                    .map(|body| body.limit_key.clone().unwrap_or_else(|| key.of(&body.args, &body.headers)));
                self.stored_key(envelope, &key.unwrap_or_default())
            });
            AppliedLimit::new(&target, limit, key.as_deref()).counting(body.and_then(|body| body.limit_cost))
        };
        self.limits.of(&envelope.name, &envelope.queue).into_iter().map(applied).collect()
    }

    /// Returns a key as the backend may see it: the key of an encrypted task only as a keyed hash.
    fn stored_key(&self, envelope: &Envelope, key: &str) -> String {
        if is_encrypted(envelope) { hidden_key(&self.app.0.trust, KEY_HASH, key) } else { stored_key(key) }
    }
}

impl LimitState {
    pub(super) fn new(active: &ActiveDelivery) -> Self {
        let is_first = active.envelope.generation == 0 && !active.redelivered;
        Self { recorded: is_first.then(Vec::new), ..Self::default() }
    }

    /// Returns `true` if the record of the task has its reservations, as they are, or as they were before their buckets were
    /// pushed back.
    fn is_recorded(&self) -> bool {
        let unshifted = |start: &ReservedStart| start.at.as_micros().saturating_sub(start.shift);
        self.recorded.as_ref().is_some_and(|recorded| {
            recorded.len() == self.reserved.len()
                && recorded.iter().zip(&self.reserved).all(|(recorded, start)| {
                    (&recorded.bucket, recorded.step, unshifted(recorded))
                        == (&start.bucket, start.step, unshifted(start))
                })
        })
    }

    fn wait_for_place(&mut self, record: RecordId, max: u32, gone_before: u64) {
        match &mut self.wait {
            Some(wait) if wait.wake_up.record == record => wait.gone_before = gone_before,
            _ => {
                let wake_up = WakeUp::new(record);
                self.wait = Some(PlaceWait { wake_up, max, poll: PLACE_POLLS.0, gone_before });
            }
        }
    }

    /// Returns the time until the task asks again; `None` if that time is not known.
    fn next_wait(&mut self, refusal: &Refusal, now: Timestamp) -> Option<Duration> {
        if let Some(at) = refusal.not_before {
            // A clock that is behind must not ask in a loop.
            return Some(at.since(now).max(Duration::from_millis(1)));
        }
        let wait = self.wait.as_mut()?;
        let poll = wait.poll;
        wait.poll = (poll * 2).min(PLACE_POLLS.1);
        Some(poll)
    }

    /// Completes when a place may be free. It is never certain: the wait is bounded.
    async fn woken(&mut self, worker: &WorkerContext) {
        let Some(wait) = &mut self.wait else { return std::future::pending().await };
        wait.wake_up.open(worker.app.backend().as_ref()).await;
        tokio::select! {
            () = wait.wake_up.changed() => {}
            () = worker.sessions.peers.gone_after(wait.gone_before) => {}
        }
    }
}
