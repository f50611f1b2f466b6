//! The stages of an end: drain, cancel, leave.
//!
//! Each signal goes one stage further, so that a person who is in a hurry can say so, and nothing is lost at any
//! stage: what is cut off is handed back.

use std::time::Duration;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{CANCEL_TIMEOUT, SETTLE_TIMEOUT};

/// The stages of a worker's end. Cheap to clone; clones share the stage.
#[derive(Debug, Clone, Default)]
pub struct Stages {
    /// Stop taking deliveries; hand back those that have not started.
    drain: CancellationToken,
    /// Cancel what runs.
    cancel: CancellationToken,
    /// Cut off what still runs and hand it back.
    leave: CancellationToken,
}

impl Stages {
    /// Goes to the next stage: drain, then cancel what runs, then leave at once.
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

    /// Completes when the worker takes and starts nothing more.
    pub(super) async fn reached_drain(&self) {
        self.drain.cancelled().await;
    }

    /// Completes when runs are cancelled.
    pub(super) async fn reached_cancel(&self) {
        self.cancel.cancelled().await;
    }

    /// Completes when runs are cut off.
    pub(super) async fn reached_leave(&self) {
        self.leave.cancelled().await;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }
}

/// Summary of a worker's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Runs that were cut off and handed back: they run again elsewhere.
    pub handed_back: u64,
    /// Deliveries that could not be finished or handed back in time: the broker delivers them again.
    pub unfinished: u64,
    /// Messages that were refused (unsigned, unreadable, too large, not allowed) and are dead letters now.
    pub refused: u64,
}

impl Drained {
    /// Returns `true` if everything that had started also ended.
    pub const fn is_clean(self) -> bool {
        self.handed_back == 0 && self.unfinished == 0
    }
}

/// UnrecordedOutcome for the end of all that runs, one stage after the other.
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
    // What does not even settle now is left to the broker and to the expiry of the session.
    let _in_time = tokio::time::timeout(SETTLE_TIMEOUT, tracker.wait()).await;
}
