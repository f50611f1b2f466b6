//! Exclusive runs of suspects, in a process that runs nothing else at the same time.
//!
//! A suspect that waits for an empty process keeps the process from starting other tasks. Therefore the wait is short,
//! and a process that did not become empty in time is not asked again for a while.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Maximum time that a suspect waits for the process to become empty.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for which no suspect waits again for a process that did not become empty.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);
/// Number of attempts to find an empty process, after which a suspect runs together with other tasks.
pub(super) const EXCLUSIVE_TRIES: u32 = 10;

/// All slots of the process, taken at once by a suspect.
#[derive(Debug)]
pub(super) struct ExclusiveSlots {
    slots: Arc<Semaphore>,
    all: u32,
    closed_until: Mutex<Instant>,
}

impl ExclusiveSlots {
    /// Wraps the slots of a process. `concurrency` is their number.
    pub(super) fn new(slots: Arc<Semaphore>, concurrency: usize) -> Self {
        let all = u32::try_from(concurrency).unwrap_or(u32::MAX);
        Self { slots, all, closed_until: Mutex::new(Instant::now()) }
    }

    /// Takes every slot of the process. Returns `None` if it does not become empty.
    pub(super) async fn all_slots(&self) -> Option<OwnedSemaphorePermit> {
        let closed_until = *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < closed_until {
            return None;
        }
        // The semaphore is fair: from now on no other delivery gets a slot.
        let empty = Arc::clone(&self.slots).acquire_many_owned(self.all);
        let Ok(taken) = tokio::time::timeout(EMPTY_TIMEOUT, empty).await else {
            *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + RETRY_AFTER;
            return None;
        };
        taken.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_an_empty_process_only_for_a_limited_time() {
        let slots = Arc::new(Semaphore::new(2));
        let exclusive = ExclusiveSlots::new(Arc::clone(&slots), 2);
        drop(exclusive.all_slots().await.expect("nothing runs"));
        let running = Arc::clone(&slots).acquire_owned().await.unwrap();
        let before = Instant::now();
        assert!(exclusive.all_slots().await.is_none());
        assert_eq!(before.elapsed(), EMPTY_TIMEOUT);
        drop(running);
        assert!(exclusive.all_slots().await.is_none(), "it waits before it tries again");
        assert_eq!(slots.available_permits(), 2, "and other tasks get their slots");
        tokio::time::advance(RETRY_AFTER).await;
        assert!(exclusive.all_slots().await.is_some());
    }
}
