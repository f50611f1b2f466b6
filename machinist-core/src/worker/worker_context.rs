//! The parts of a worker that every step of a delivery shares: its session, its calls to the servers, its counters.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    DeadLetterCounts, Drained, Stages, refusal_log::RefusalLog, server_calls::ServerCalls, session::Sessions,
};
use crate::{app::App, clock::Timestamp};

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
    pub(super) tally: Tally,
    pub(super) refusals: RefusalLog,
    pub(super) dead_letter_counts: DeadLetterCounts,
}

/// Counts of deliveries, reported when the worker ends.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) arrived: AtomicU64,
    pub(super) settled: AtomicU64,
    pub(super) handed_back: AtomicU64,
}

impl WorkerContext {
    /// Backend time.
    pub(super) fn now(&self) -> Timestamp {
        self.app.clock().now()
    }

    /// Returns the counts of the work that the worker leaves behind when it ends.
    pub(super) fn drained(&self) -> Drained {
        let Tally { arrived, settled, handed_back } = &self.tally;
        Drained {
            handed_back: handed_back.load(Ordering::Relaxed),
            refused: self.refusals.count(),
            unfinished: arrived.load(Ordering::Relaxed).saturating_sub(settled.load(Ordering::Relaxed)),
        }
    }

    /// Completes when deliveries that have not started must go back to the broker.
    pub(super) async fn must_hand_back(&self) {
        tokio::select! {
            () = self.stages.reached_drain() => {}
            () = self.calls.given_up() => {}
        }
    }
}
