//! Results of the last upkeep, which the next one need not ask for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use machinist_adapter::diagnose::Finding;
use tokio::time::Instant;

/// Results of the last upkeep.
#[derive(Debug, Default)]
pub(crate) struct UpkeepState(Mutex<UpkeepResults>);

#[derive(Debug, Default)]
pub(crate) struct UpkeepResults {
    /// Highest level of the ladder that exists; the outer `None` before the first look.
    pub(crate) top: Option<Option<u8>>,
    /// Findings of the management API, and when they were made.
    pub(crate) threats: Option<(Instant, Vec<Finding>)>,
}

/// The ladder as it is on the broker.
#[derive(Debug, Default)]
pub(crate) struct LadderReading {
    /// Highest level that exists; `None` if there is no ladder.
    pub(crate) top: Option<u8>,
    /// Number of messages that wait in it.
    pub(crate) delayed: u64,
    /// Number of its queues.
    pub(crate) queues: usize,
    /// Queues that are missing below the highest level.
    pub(crate) missing: Vec<String>,
}

impl UpkeepState {
    pub(crate) fn found(&self) -> MutexGuard<'_, UpkeepResults> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
