//! Exclusive slots: a suspect runs in a process that runs nothing else.
//!
//! A wait for an empty process keeps it from starting anything, so the wait is short, and a process that
//! did not become empty in time is left alone for a while.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Maximum time for a process to become empty.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time before a process that did not become empty is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);
/// Number of attempts to find an empty process. After them a suspect runs beside others.
pub(super) const EXCLUSIVE_TRIES: u32 = 10;

#[derive(Debug)]
pub(super) struct ExclusiveSlots {
    slots: Arc<Semaphore>,
    all: u32,
    closed_until: Mutex<Instant>,
}

impl ExclusiveSlots {
    /// `concurrency` is how many `slots` there are.
    pub(super) fn new(slots: Arc<Semaphore>, concurrency: usize) -> Self {
        let all = u32::try_from(concurrency).unwrap_or(u32::MAX);
        Self { slots, all, closed_until: Mutex::new(Instant::now()) }
    }

    /// Every slot of the process; `None` if it does not become empty.
    pub(super) async fn all_slots(&self) -> Option<OwnedSemaphorePermit> {
        let closed_until = *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < closed_until {
            return None;
        }
        // The semaphore is fair: from now on nobody else gets a slot.
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
    async fn it_waits_for_an_empty_process_and_not_for_ever() {
        let slots = Arc::new(Semaphore::new(2));
        let exclusive = ExclusiveSlots::new(Arc::clone(&slots), 2);
        drop(exclusive.all_slots().await.expect("nothing runs"));
        let running = Arc::clone(&slots).acquire_owned().await.unwrap();
        let before = Instant::now();
        assert!(exclusive.all_slots().await.is_none());
        assert_eq!(before.elapsed(), EMPTY_TIMEOUT);
        drop(running);
        assert!(exclusive.all_slots().await.is_none(), "it rests");
        assert_eq!(slots.available_permits(), 2, "and lets others work");
        tokio::time::advance(RETRY_AFTER).await;
        assert!(exclusive.all_slots().await.is_some());
    }
}
