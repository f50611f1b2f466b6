//! Exclusive runs of suspects, in a process that runs nothing else at the same time.
//!
//! A suspect that waits for an empty process keeps the process from starting other tasks. Therefore the wait is short,
//! and a process that did not become empty in time is not asked again for a while.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::capacity::{ExclusiveClaim, SlotPermit, SlotPool};

/// Maximum time that a suspect waits for the process to become empty.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for which no suspect waits again for a process that did not become empty.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);
/// Number of attempts to find an empty process, after which a suspect runs together with other tasks.
pub(super) const EXCLUSIVE_TRIES: u32 = 10;

/// All slots of the process, taken at once by a suspect.
#[derive(Debug)]
pub(super) struct ExclusiveSlots {
    capacity: Arc<SlotPool>,
    closed_until: Mutex<Instant>,
}

impl ExclusiveSlots {
    /// Wraps the slots of a process.
    pub(super) fn new(capacity: Arc<SlotPool>) -> Self {
        Self { capacity, closed_until: Mutex::new(Instant::now()) }
    }

    /// Takes every slot of the process. Returns `None` if it does not become empty.
    pub(super) async fn all_slots(&self) -> Option<(SlotPermit, ExclusiveClaim)> {
        let closed_until = *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < closed_until {
            return None;
        }
        let claim = self.capacity.claim_all()?;
        // The slots are given out in order: from now on no other delivery gets one.
        let Ok(taken) = tokio::time::timeout(EMPTY_TIMEOUT, claim.take()).await else {
            *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + RETRY_AFTER;
            return None;
        };
        Some((taken?, claim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::slot_order::SlotShares;

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_an_empty_process_only_for_a_limited_time() {
        let capacity = SlotPool::new(2, SlotShares::default());
        let exclusive = ExclusiveSlots::new(Arc::clone(&capacity));
        drop(exclusive.all_slots().await.expect("nothing runs"));
        let running = capacity.try_take().unwrap();
        let before = Instant::now();
        assert!(exclusive.all_slots().await.is_none());
        assert_eq!(before.elapsed(), EMPTY_TIMEOUT);
        drop(running);
        assert!(exclusive.all_slots().await.is_none(), "it waits before it tries again");
        drop([(); 2].map(|()| capacity.try_take().expect("and other tasks get their slots")));
        tokio::time::advance(RETRY_AFTER).await;
        assert!(exclusive.all_slots().await.is_some());
    }
}
