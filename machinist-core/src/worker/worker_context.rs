//! The parts of a worker that every step of a delivery shares: its session, its calls to the servers, its
//! events.

use std::sync::Arc;

use super::{
    Stages, admissions::Admissions, events::WorkerEvents, look_ahead::LookAhead, server_calls::ServerCalls,
    session::Sessions,
};
use crate::{app::App, clock::Timestamp, event::EventKind, refused::RefusedTally};

/// State that a worker shares between deliveries, renewals and maintenance.
pub(super) struct WorkerContext {
    pub(super) app: App,
    /// Name of the worker, for people.
    pub(super) name: Arc<str>,
    /// Maximum time that a delivery is held: half of the broker's `consumer_timeout`.
    pub(super) max_hold: std::time::Duration,
    pub(super) sessions: Arc<Sessions>,
    pub(super) calls: Arc<ServerCalls>,
    pub(super) stages: Stages,
    pub(super) admissions: Admissions,
    pub(super) look_ahead: Arc<LookAhead>,
    pub(super) events: Arc<WorkerEvents>,
    pub(super) refused: RefusedTally,
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

    /// Completes when deliveries that have not started must go back to the broker.
    pub(super) async fn must_hand_back(&self) {
        tokio::select! {
            () = self.stages.reached_drain() => {}
            () = self.calls.given_up() => {}
        }
    }
}
