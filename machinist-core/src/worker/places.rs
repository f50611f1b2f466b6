//! The places that the runs of this worker hold under limits of concurrency.
//!
//! A place is noted here before it is requested, so that a place whose reply was lost, or that could not be freed, is
//! freed by the next renewal. A process that dies frees its places with its session.

use std::collections::HashSet;

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
                PlaceDecision::SameTask(session) => {
                    sessions.peers.watch(&session);
                    return Ok(PlaceReply::SameTask);
                }
                PlaceDecision::Full(holders) => {
                    holders.iter().for_each(|session| sessions.peers.watch(session));
                    return Ok(PlaceReply::Full);
                }
                PlaceDecision::Take(commit, place) => (commit, place),
            };
            sessions.places.note(&place);
            match self.calls.commit(*commit).await {
                Ok(Committed::Done { .. }) => return Ok(PlaceReply::Held),
                Ok(Committed::Refused(newer)) => {
                    if !place.is_of_run(&newer) {
                        sessions.places.forget(&place);
                    }
                    facts = newer;
                }
                Err(unanswered) => {
                    if unanswered == Unanswered::BadRecord {
                        // There is no place, and every further try of a task would leave one more to be freed.
                        sessions.places.forget(&place);
                    }
                    return Err(unanswered);
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

    /// Lets the task that has been parked longest for a place of this limit come back at once. Returns `false` if none is
    /// parked.
    pub(super) async fn release_for(&self, record: &RecordId) -> bool {
        let subject = record.id().strip_prefix("run/").unwrap_or_default();
        let reason = WaitReason::new("max_running", subject);
        self.app.client().release_one(&reason).await.unwrap_or_else(|error| {
            tracing::debug!(%error, %reason, "no parked task was released; they come back by themselves");
            true
        })
    }
}

impl Sessions {
    /// Frees a place. Another holder keeps it.
    async fn free_place(&self, place: &RunPlace) -> Result<(), BackendError> {
        self.commit(place.free()).await?;
        self.places.forget(place);
        Ok(())
    }

    /// Frees the places of runs that have ended, and moves those of the other runs into the present session. A run
    /// whose place another run has taken meanwhile is cancelled as superseded. Renewals repeat it, also for places in a
    /// record that cannot be used: nobody takes a place there.
    pub(super) async fn keep_places(&self) -> Result<(), BackendError> {
        let (ended, running) = self.places.with_ended(|run| self.has_ended(run));
        // Asked for once: many places may be in one record, and the lease does not wait.
        let mut unusable = HashSet::new();
        for place in ended {
            if unusable.contains(&place.record) {
                continue;
            }
            let freed = self.free_place(&place).await;
            if self.usable(&place.record, freed)?.is_none() {
                unusable.insert(place.record);
            }
        }
        let session = self.current();
        for place in running.into_iter().filter(|place| place.holder.session != session) {
            if unusable.contains(&place.record) {
                continue;
            }
            let (commit, adopted) = place.adopt(&session);
            let moved = self.commit(commit).await;
            let Some(moved) = self.usable(&place.record, moved)? else {
                unusable.insert(place.record);
                continue;
            };
            let Committed::Refused(facts) = moved else {
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
