//! The death of a worker at one step of the delivery protocol.

use std::sync::Mutex;

use async_trait::async_trait;
use machinist_conformance::arrows::{ArrowStep, Side, Witness};
use tokio_util::sync::CancellationToken;

/// Sees each step of a worker, and ends it at one of them.
#[derive(Debug)]
pub(crate) struct Fate {
    end: Mutex<Option<(ArrowStep, Side)>>,
    dead: CancellationToken,
}

impl Fate {
    pub(crate) fn new(end: Option<(ArrowStep, Side)>) -> Self {
        Self { end: Mutex::new(end), dead: CancellationToken::new() }
    }

    /// Completes when the worker has died.
    pub(crate) async fn died(&self) {
        self.dead.cancelled().await;
    }

    /// Ends the worker now.
    pub(crate) fn kill(&self) {
        self.dead.cancel();
    }
}

#[async_trait]
impl Witness for Fate {
    async fn at(&self, step: ArrowStep, side: Side) {
        let end = *self.end.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if end == Some((step, side)) {
            self.kill();
        }
        if self.dead.is_cancelled() {
            // A dead process does nothing more. Its futures are dropped with the runtime of the test.
            std::future::pending().await
        }
    }
}
