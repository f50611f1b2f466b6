//! The places that the runs of this worker hold under limits of concurrency.
//!
//! A place is noted here before it is requested, so that a place whose reply was lost, or that could not be freed, is
//! freed by the next renewal. A process that dies frees its places with its session.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    WorkerContext,
    server_calls::Unanswered,
    session::{CancelReason, RegisteredRun, Sessions},
};
use crate::{
    admission::WaitReason,
    backend::{BackendError, Committed},
    id::{RecordId, RunId, SessionId},
    limit::places::{Holder, PlaceDecision, RunPlace, decide_place},
    record::Facts,
    wire::Envelope,
};

/// Places that runs of this worker hold, or perhaps hold.
#[derive(Debug, Default)]
pub(super) struct HeldPlaces(Mutex<HashMap<RunId, Vec<RunPlace>>>);

impl HeldPlaces {
    fn all(&self) -> MutexGuard<'_, HashMap<RunId, Vec<RunPlace>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a place, before it is requested.
    fn note(&self, place: &RunPlace) {
        self.all().entry(place.holder.run.clone()).or_default().push(place.clone());
    }

    /// Forgets a place that is certainly not held.
    fn forget(&self, place: &RunPlace) {
        let mut all = self.all();
        let Some(of_run) = all.get_mut(&place.holder.run) else { return };
        of_run.retain(|held| held != place);
        if of_run.is_empty() {
            all.remove(&place.holder.run);
        }
    }

    /// Replaces a place by the same one under another session.
    fn replace(&self, place: &RunPlace, by: RunPlace) {
        if let Some(of_run) = self.all().get_mut(&place.holder.run)
            && let Some(held) = of_run.iter_mut().find(|held| *held == place)
        {
            *held = by;
        }
    }

    fn of_run(&self, run: &RunId) -> Vec<RunPlace> {
        self.all().get(run).cloned().unwrap_or_default()
    }

    /// Returns the places, with those first whose runs have ended.
    fn with_ended(&self, has_ended: impl Fn(&RunId) -> bool) -> (Vec<RunPlace>, Vec<RunPlace>) {
        let all = self.all();
        all.values().flatten().cloned().partition(|place| has_ended(&place.holder.run))
    }
}

/// Answer to the request of a place.
pub(super) enum PlaceReply {
    /// The run holds it.
    Held,
    /// Another run of the same attempt holds one.
    SameTask,
    /// Every place is held.
    Full,
}

impl WorkerContext {
    /// Requests a place for a run.
    pub(super) async fn take_place(
        &self,
        envelope: &Envelope,
        registered: &RegisteredRun,
        record: &RecordId,
        max: u32,
    ) -> Result<PlaceReply, Unanswered> {
        let sessions = &self.sessions;
        let gone = |session: &SessionId, run: &RunId| sessions.is_gone(session, run);
        let mut facts = Facts::new();
        loop {
            let holder = Holder {
                session: sessions.current(),
                run: registered.run.clone(),
                task: envelope.id.clone(),
                attempt: envelope.attempt,
            };
            let (commit, place) = match decide_place(&facts, record, max, &holder, gone, rand::random()) {
                PlaceDecision::Held(place) => {
                    sessions.places.forget(&place);
                    sessions.places.note(&place);
                    return Ok(PlaceReply::Held);
                }
                PlaceDecision::SameTask => return Ok(PlaceReply::SameTask),
                PlaceDecision::Full(holders) => {
                    holders.iter().for_each(|session| sessions.peers.watch(session));
                    return Ok(PlaceReply::Full);
                }
                PlaceDecision::Take(commit, place) => (commit, place),
            };
            sessions.places.note(&place);
            match self.calls.commit(*commit).await? {
                Committed::Done { .. } => return Ok(PlaceReply::Held),
                Committed::Refused(newer) => {
                    if !place.is_of_run(&newer) {
                        sessions.places.forget(&place);
                    }
                    facts = newer;
                }
            }
        }
    }

    /// Frees the places of a run that did not start. Tasks that wait in a process are woken, and no parked task is released:
    /// it would find the same limit that stopped this one.
    pub(super) async fn return_places(&self, run: &RunId) -> Vec<RunPlace> {
        if self.sessions.is_stuck(run) {
            // It runs on: its places are free when it has ended.
            return Vec::new();
        }
        let mut freed = self.sessions.places.of_run(run);
        for place in std::mem::take(&mut freed) {
            match self.sessions.free_place(&place).await {
                Ok(()) => freed.push(place),
                Err(error) => {
                    tracing::debug!(%error, place = %place.record, "a place was not freed; the next renewal frees it");
                }
            }
        }
        freed
    }

    /// Frees the places of a run, and lets a task that is parked for one of them come back at once. What fails is repeated
    /// by the next renewal.
    pub(super) async fn free_places(&self, run: &RunId) {
        for place in self.return_places(run).await {
            self.release_for(&place.record).await;
        }
    }

    /// Lets the task that has been parked longest for a place of this limit come back at once.
    pub(super) async fn release_for(&self, record: &RecordId) {
        let subject = record.id().strip_prefix("run/").unwrap_or_default();
        let reason = WaitReason::new("max_running", subject);
        if let Err(error) = self.app.client().release_one(&reason).await {
            tracing::debug!(%error, %reason, "no parked task was released; they come back by themselves");
        }
    }
}

impl Sessions {
    /// Frees a place. Another holder keeps it.
    async fn free_place(&self, place: &RunPlace) -> Result<(), BackendError> {
        self.commit(place.free()).await?;
        self.places.forget(place);
        Ok(())
    }

    /// Frees the places of runs that have ended, and moves those of the other runs into the present session. A run whose
    /// place another run has taken meanwhile is cancelled as superseded. Renewals repeat it.
    pub(super) async fn keep_places(&self) -> Result<(), BackendError> {
        let (ended, running) = self.places.with_ended(|run| self.has_ended(run));
        for place in ended {
            self.free_place(&place).await?;
        }
        let session = self.current();
        for place in running.into_iter().filter(|place| place.holder.session != session) {
            let (commit, adopted) = place.adopt(&session);
            let Committed::Refused(facts) = self.commit(commit).await? else {
                self.places.replace(&place, adopted);
                continue;
            };
            let holds = adopted.is_of_run(&facts)
                || (place.is_lost(&facts)
                    && matches!(self.commit(adopted.restore()).await?, Committed::Done { .. }));
            if holds {
                self.places.replace(&place, adopted);
            } else {
                tracing::warn!(limit = %place.record, task = %place.holder.task, "another run has taken the place of this one");
                self.cancel(&place.holder.run, CancelReason::TakenOver);
                self.places.forget(&place);
            }
        }
        Ok(())
    }
}
