//! The slots of a worker for handlers that run at once, whose number can change while it runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// Slots of a worker.
#[derive(Debug)]
pub(super) struct SlotPool {
    slots: Arc<Semaphore>,
    state: Mutex<SlotPoolState>,
}

#[derive(Debug)]
struct SlotPoolState {
    /// Number of slots.
    limit: usize,
    /// Number of slots in use beyond the limit: they are not given out again.
    surplus: usize,
    /// Number of suspects that hold all slots, or wait for them.
    exclusive: usize,
}

/// One slot, or all of them, until it is dropped.
#[derive(Debug)]
pub(super) struct SlotPermit {
    permit: OwnedSemaphorePermit,
    capacity: Arc<SlotPool>,
}

/// Claim of a suspect to all slots. Their number does not change meanwhile.
#[derive(Debug)]
pub(super) struct ExclusiveClaim {
    capacity: Arc<SlotPool>,
    slots: usize,
}

impl SlotPool {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let state = SlotPoolState { limit, surplus: 0, exclusive: 0 };
        Arc::new(Self { slots: Arc::new(Semaphore::new(limit)), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, SlotPoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of handlers that may run at once.
    pub(super) fn limit(&self) -> usize {
        self.state().limit
    }

    /// Changes the number of slots. What runs goes on: slots in use beyond a smaller number vanish when they are free.
    ///
    /// # Errors
    /// The reason that the number cannot change now.
    pub(super) fn set_limit(&self, limit: usize) -> Result<(), &'static str> {
        let mut state = self.state();
        if state.exclusive > 0 && limit != state.limit {
            return Err("a task that may have killed processes runs alone; ask again when it has ended");
        }
        if limit > state.limit {
            let more = limit - state.limit;
            let kept = more.min(state.surplus);
            state.surplus -= kept;
            self.slots.add_permits(more - kept);
        } else {
            let fewer = state.limit - limit;
            state.surplus += fewer - self.slots.forget_permits(fewer);
        }
        state.limit = limit;
        Ok(())
    }

    /// Takes a free slot.
    pub(super) fn try_take(self: &Arc<Self>) -> Result<SlotPermit, TryAcquireError> {
        let permit = Arc::clone(&self.slots).try_acquire_owned()?;
        Ok(SlotPermit { permit, capacity: Arc::clone(self) })
    }

    /// Waits for a free slot. Returns `None` never while the worker lives.
    pub(super) async fn take(self: Arc<Self>) -> Option<SlotPermit> {
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        Some(SlotPermit { permit, capacity: self })
    }

    /// Claims all slots for a suspect. Returns `None` while more handlers run than there are slots.
    pub(super) fn claim_all(self: &Arc<Self>) -> Option<ExclusiveClaim> {
        let mut state = self.state();
        if state.surplus > 0 {
            return None;
        }
        state.exclusive += 1;
        Some(ExclusiveClaim { capacity: Arc::clone(self), slots: state.limit })
    }
}

impl ExclusiveClaim {
    /// Waits until all slots are free, and takes them. The claim has to be kept until the slots are dropped.
    pub(super) async fn take(&self) -> Option<SlotPermit> {
        let all = u32::try_from(self.slots).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.capacity.slots).acquire_many_owned(all).await.ok()?;
        Some(SlotPermit { permit, capacity: Arc::clone(&self.capacity) })
    }
}

impl Drop for ExclusiveClaim {
    fn drop(&mut self) {
        self.capacity.state().exclusive -= 1;
    }
}

impl Drop for SlotPermit {
    fn drop(&mut self) {
        let mut state = self.capacity.state();
        let vanish = state.surplus.min(self.permit.num_permits());
        if let Some(vanishing) = self.permit.split(vanish) {
            vanishing.forget();
            state.surplus -= vanish;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_beyond_a_smaller_limit_vanish_when_they_are_free() {
        let capacity = SlotPool::new(3);
        let [a, b] = [capacity.try_take().unwrap(), capacity.try_take().unwrap()];
        capacity.set_limit(1).unwrap();
        assert!(capacity.try_take().is_err());
        assert!(capacity.claim_all().is_none(), "two run, and one slot is left");
        drop(a);
        assert!(capacity.try_take().is_err(), "the other one has the only slot");
        drop(b);
        let held = capacity.try_take().unwrap();
        assert!(capacity.try_take().is_err());
        capacity.set_limit(2).unwrap();
        drop((held, capacity.try_take().unwrap()));
        assert_eq!((capacity.slots.available_permits(), capacity.limit()), (2, 2));
    }

    #[test]
    fn a_larger_limit_first_keeps_the_slots_that_were_to_vanish() {
        let capacity = SlotPool::new(2);
        let held = [capacity.try_take().unwrap(), capacity.try_take().unwrap()];
        capacity.set_limit(1).unwrap();
        capacity.set_limit(3).unwrap();
        let third = capacity.try_take().unwrap();
        assert!(capacity.try_take().is_err());
        drop((held, third));
        assert_eq!(capacity.slots.available_permits(), 3);
    }

    #[tokio::test]
    async fn the_number_does_not_change_while_a_suspect_runs_alone() {
        let capacity = SlotPool::new(2);
        let claim = capacity.claim_all().unwrap();
        let all = claim.take().await.unwrap();
        assert!(capacity.set_limit(3).is_err() && capacity.try_take().is_err());
        drop((all, claim));
        assert!(capacity.set_limit(3).is_ok());
    }
}
