//! The end of a process at one of its steps, for the tests of the arrows.

use std::sync::Mutex;

use async_trait::async_trait;
use machinist_conformance::arrows::{ArrowStep, Side, Witness};
use tokio_util::sync::CancellationToken;

/// Sees what a process does, and ends it at one of its steps.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    pub(crate) end: Option<(ArrowStep, Side)>,
    pub(crate) ended: CancellationToken,
    pub(crate) seen: Mutex<Vec<ArrowStep>>,
}

#[async_trait]
impl Witness for Fate {
    async fn at(&self, step: ArrowStep, side: Side) {
        if side == Side::After && !self.ended.is_cancelled() {
            let mut seen = self.seen.lock().unwrap();
            seen.push(step);
            // One that goes round in circles would keep paused time from passing.
            if seen.len() > 1000 {
                self.ended.cancel();
            }
        }
        if self.end == Some((step, side)) {
            self.ended.cancel();
        }
        if self.ended.is_cancelled() {
            std::future::pending().await
        }
    }
}
