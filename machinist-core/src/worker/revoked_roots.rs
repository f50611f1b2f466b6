//! Workflows that were revoked, as far as this worker knows.
//!
//! Every start of a task of a workflow asks. The answer is kept for a moment, so that a group of ten thousand members does
//! not read the same mark ten thousand times. A run that slips through is told at the next renewal of the session.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::id::TaskId;

/// Time for which an answer is kept.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Maximum number of answers that are kept.
const MAX_KEPT: usize = 4096;

/// Roots that were asked about, with the time and the answer.
#[derive(Debug, Default)]
pub(super) struct RevokedRoots(Mutex<HashMap<TaskId, (Instant, bool)>>);

impl RevokedRoots {
    pub(super) fn known(&self, root: &TaskId) -> Option<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(root).filter(|(asked, _)| asked.elapsed() < KEPT_FOR).map(|(_, revoked)| *revoked)
    }

    pub(super) fn learn(&self, root: &TaskId, revoked: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KEPT {
            known.retain(|_, (asked, _)| asked.elapsed() < KEPT_FOR);
        }
        if known.len() < MAX_KEPT {
            known.insert(root.clone(), (Instant::now(), revoked));
        }
    }
}
