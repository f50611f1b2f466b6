//! The parts of a worker that every step of a delivery shares: its session, its calls to the servers, its
//! events.

use std::{sync::Arc, time::Duration};

use super::{
    Stages, admissions::Admissions, events::WorkerEvents, limits::Limits, look_ahead::LookAhead,
    revoked_roots::RevokedRoots, server_calls::ServerCalls, session::Sessions,
};
use crate::{
    app::App,
    backend::{BackendError, Committed},
    clock::Timestamp,
    event::EventKind,
    record::take_turn,
    refused::RefusedTally,
};

/// Time for which one worker has the turn of work that it does for all.
const TURN: Duration = Duration::from_secs(50);

/// State that a worker shares between deliveries, renewals and maintenance.
pub(super) struct WorkerContext {
    pub(super) app: App,
    /// Name of the worker, for people.
    pub(super) name: Arc<str>,
    /// Maximum time that a delivery is held: half of the broker's `consumer_timeout`.
    pub(super) max_hold: Duration,
    pub(super) sessions: Arc<Sessions>,
    pub(super) calls: Arc<ServerCalls>,
    pub(super) stages: Stages,
    pub(super) admissions: Admissions,
    pub(super) limits: Arc<Limits>,
    pub(super) look_ahead: Arc<LookAhead>,
    pub(super) events: Arc<WorkerEvents>,
    pub(super) refused: RefusedTally,
    pub(super) revoked_roots: RevokedRoots,
}

impl WorkerContext {
    /// Backend time.
    pub(super) fn now(&self) -> Timestamp {
        self.app.clock().now()
    }

    /// Emits an event of this worker.
    #[inline]
    pub(super) fn emit(&self, kind: EventKind<'_>) {
        self.events.emit(kind);
    }

    /// Takes the turn of work that one worker does for all. Returns `false` if another worker has it.
    pub(super) async fn takes_turn(&self, work: &str) -> Result<bool, BackendError> {
        let taken = self.app.client().commit(take_turn(work, &self.name, TURN)).await?;
        Ok(matches!(taken, Committed::Done { .. }))
    }

    /// Completes when deliveries that have not started must go back to the broker.
    pub(super) async fn must_hand_back(&self) {
        tokio::select! {
            () = self.stages.reached_drain() => {}
            () = self.calls.given_up() => {}
        }
    }
}
