//! The slots of a worker for handlers that run at once, whose number can change while it runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::slot_order::{SlotLane, SlotOrder, SlotShares};
use crate::id::{QueueName, TaskName};

/// Slots of a worker.
#[derive(Debug)]
pub(super) struct SlotPool {
    slots: Arc<Semaphore>,
    state: Mutex<SlotPoolState>,
    /// Order of the queues, if slots are not given in the order of arrival.
    order: Option<Mutex<SlotOrder<SlotPermit>>>,
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
    /// `None` only while it is dropped.
    permit: Option<OwnedSemaphorePermit>,
    /// Lane of the delivery that has the slot, if there is an order.
    lane: Option<SlotLane>,
    capacity: Arc<SlotPool>,
}

/// Claim of a suspect to all slots. Their number does not change meanwhile.
#[derive(Debug)]
pub(super) struct ExclusiveClaim {
    capacity: Arc<SlotPool>,
    slots: usize,
}

impl SlotPool {
    /// Creates slots. They are given by the shares of queues and tasks, or in the order of arrival if nothing has a share.
    pub(super) fn new(limit: usize, shares: SlotShares) -> Arc<Self> {
        let state = SlotPoolState { limit, surplus: 0, exclusive: 0 };
        let order = (!shares.is_empty()).then(|| Mutex::new(SlotOrder::new(shares)));
        Arc::new(Self { slots: Arc::new(Semaphore::new(limit)), state: Mutex::new(state), order })
    }

    /// Returns `true` if slots are not given in the order of arrival.
    pub(super) const fn is_ordered(&self) -> bool {
        self.order.is_some()
    }

    /// Returns `true` if no more than a number of this task run at once in this worker.
    pub(super) fn limits_task(&self, task: &TaskName) -> bool {
        self.order().is_some_and(|order| order.limits_task(task))
    }

    /// Maximum number of tasks of a queue that run at once, if it is smaller than the number of slots.
    pub(super) fn most_of(&self, queue: &QueueName) -> Option<usize> {
        self.order()?.most_of(queue)
    }

    fn order(&self) -> Option<MutexGuard<'_, SlotOrder<SlotPermit>>> {
        Some(self.order.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a slot for a task of a queue, as the order says. Returns `None` never while the worker lives.
    ///
    /// # Cancel safety
    /// A dropped future gives its slot to the next one.
    pub(super) async fn take_in_order(
        self: Arc<Self>,
        queue: &QueueName,
        task: &TaskName,
    ) -> Option<SlotPermit> {
        let given = {
            let mut order = self.order()?;
            let lane = order.lane(queue, task);
            order.wait(lane)
        };
        self.give();
        given.await.ok()
    }

    /// Gives free slots to the deliveries that are next.
    pub(super) fn give(self: &Arc<Self>) {
        loop {
            // Dropped outside of the lock: a slot that nobody takes any more is given to the next one.
            let unclaimed = {
                let Some(mut order) = self.order() else { return };
                let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() else { return };
                let Some((lane, give)) = order.next() else { return };
                drop(order);
                let permit =
                    SlotPermit { permit: Some(permit), lane: Some(lane), capacity: Arc::clone(self) };
                give.send(permit)
            };
            drop(unclaimed);
        }
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
        Ok(SlotPermit { permit: Some(permit), lane: None, capacity: Arc::clone(self) })
    }

    /// Waits for a free slot. Returns `None` never while the worker lives.
    pub(super) async fn take(self: Arc<Self>) -> Option<SlotPermit> {
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        Some(SlotPermit { permit: Some(permit), lane: None, capacity: self })
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
        Some(SlotPermit { permit: Some(permit), lane: None, capacity: Arc::clone(&self.capacity) })
    }
}

impl Drop for ExclusiveClaim {
    fn drop(&mut self) {
        self.capacity.state().exclusive -= 1;
    }
}

impl Drop for SlotPermit {
    fn drop(&mut self) {
        let Some(mut permit) = self.permit.take() else { return };
        let mut state = self.capacity.state();
        let vanish = state.surplus.min(permit.num_permits());
        if let Some(vanishing) = permit.split(vanish) {
            vanishing.forget();
            state.surplus -= vanish;
        }
        drop(state);
        drop(permit);
        if self.capacity.is_ordered() {
            if let (Some(lane), Some(mut order)) = (&self.lane, self.capacity.order()) {
                order.end(lane);
            }
            self.capacity.give();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::worker::slot_order::QueueShare;

    #[test]
    fn slots_beyond_a_smaller_limit_vanish_when_they_are_free() {
        let capacity = SlotPool::new(3, SlotShares::default());
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
        let capacity = SlotPool::new(2, SlotShares::default());
        let held = [capacity.try_take().unwrap(), capacity.try_take().unwrap()];
        capacity.set_limit(1).unwrap();
        capacity.set_limit(3).unwrap();
        let third = capacity.try_take().unwrap();
        assert!(capacity.try_take().is_err());
        drop((held, third));
        assert_eq!(capacity.slots.available_permits(), 3);
    }

    #[tokio::test]
    async fn slots_that_are_free_again_go_to_the_queue_that_is_next() {
        let name = |name| QueueName::parse(name).unwrap();
        let task = TaskName::parse("t").unwrap();
        let mut shares = SlotShares { strict: true, ..SlotShares::default() };
        shares.queues.insert(name("a").into(), QueueShare { weight: 2, concurrency: None });
        let capacity = SlotPool::new(1, shares);
        let [a, low] = [name("a"), name("low")];
        let take = |queue| Box::pin(Arc::clone(&capacity).take_in_order(queue, &task));
        let held = take(&low).await.unwrap();
        let [mut lowest, mut first, mut second] = [take(&low), take(&a), take(&a)];
        for waiting in [&mut lowest, &mut first, &mut second] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(held);
        let held = first.await.unwrap();
        assert!((&mut lowest).now_or_never().is_none());
        // One that has left gives its slot to the next one.
        drop(second);
        drop(held);
        let claim = capacity.claim_all().unwrap();
        let held = lowest.await.unwrap();
        let mut all = Box::pin(claim.take());
        assert!((&mut all).now_or_never().is_none());
        drop(held);
        let all = all.await.unwrap();
        let mut next = take(&a);
        assert!((&mut next).now_or_never().is_none(), "a suspect runs alone");
        drop(all);
        assert!(next.await.is_some());
    }

    #[tokio::test]
    async fn the_number_does_not_change_while_a_suspect_runs_alone() {
        let capacity = SlotPool::new(2, SlotShares::default());
        let claim = capacity.claim_all().unwrap();
        let all = claim.take().await.unwrap();
        assert!(capacity.set_limit(3).is_err() && capacity.try_take().is_err());
        drop((all, claim));
        assert!(capacity.set_limit(3).is_ok());
    }
}
