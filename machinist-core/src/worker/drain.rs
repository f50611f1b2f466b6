//! The stages of a shutdown: drain, cancel, leave.
//!
//! Each signal advances the shutdown by one stage, so that an operator can speed it up. Nothing is lost at any
//! stage: runs that are cut off are handed back.

use std::time::Duration;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{CANCEL_TIMEOUT, SETTLE_TIMEOUT};

/// The stages of a worker's shutdown. Cheap to clone; clones share the stage.
#[derive(Debug, Clone, Default)]
pub struct Stages {
    /// Take no more deliveries; hand back those that have not started.
    drain: CancellationToken,
    /// Cancel all runs.
    cancel: CancellationToken,
    /// Cut off the runs that continue, and hand them back.
    leave: CancellationToken,
}

impl Stages {
    /// Advances to the next stage: drain, then cancel all runs, then leave at once.
    pub fn advance(&self) {
        if !self.drain.is_cancelled() {
            self.drain.cancel();
        } else if !self.cancel.is_cancelled() {
            self.cancel.cancel();
        } else {
            self.leave.cancel();
        }
    }

    /// Completes when the worker begins to drain, for any reason.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    pub(super) fn drain(&self) {
        self.drain.cancel();
    }

    /// Completes when no more deliveries may be taken or started.
    pub(super) async fn reached_drain(&self) {
        self.drain.cancelled().await;
    }

    /// Completes when all runs must be cancelled.
    pub(super) async fn reached_cancel(&self) {
        self.cancel.cancelled().await;
    }

    /// Completes when the remaining runs must be cut off.
    pub(super) async fn reached_leave(&self) {
        self.leave.cancelled().await;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }
}

/// Counts of the work that a worker left behind when it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Number of runs that were cut off and handed back: they run again elsewhere.
    pub handed_back: u64,
    /// Number of deliveries that could not be finished or handed back in time: the broker delivers them again.
    pub unfinished: u64,
    /// Number of messages that were refused (unsigned, unreadable, too large, not allowed) and are dead letters now.
    pub refused: u64,
    /// Exit code with which the process has to end so that its supervisor starts it again, if the worker was ordered to
    /// restart.
    pub restart_exit_code: Option<u8>,
}

impl Drained {
    /// Returns `true` if everything that had started also ended.
    pub const fn is_clean(self) -> bool {
        self.handed_back == 0 && self.unfinished == 0
    }
}

/// Waits for the end of all runs, one stage after another.
pub(super) async fn wait_through(tracker: &TaskTracker, stages: &Stages, grace: Duration) {
    tokio::select! {
        () = tracker.wait() => return,
        () = tokio::time::sleep(grace) => stages.cancel.cancel(),
        () = stages.reached_cancel() => {}
    }
    tokio::select! {
        () = tracker.wait() => return,
        () = tokio::time::sleep(CANCEL_TIMEOUT) => stages.leave.cancel(),
        () = stages.reached_leave() => {}
    }
    // Deliveries that are still not settled are left to the broker and to the expiry of the session.
    let _in_time = tokio::time::timeout(SETTLE_TIMEOUT, tracker.wait()).await;
}
