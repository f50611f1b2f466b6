//! The limits of concurrency for whose places this worker has parked tasks, so that it looks at those places.
//!
//! If this worker dies too, the tasks come back by themselves, some of them within a lease.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{id::RecordId, record::Facts};

/// Maximum delay of a guard that waits for a place.
const MAX_PLACE_DELAY: Duration = Duration::from_secs(30);
/// Number of tasks that come back within a lease, of those that this worker parks for one limit in the time of a lease. The
/// others are so many that some come back all the time.
const EARLY: u32 = 16;
/// Maximum number of limits that a worker looks at. Tasks of further ones come back within a lease.
const MAX_LIMITS: usize = 4096;

/// Limits of concurrency for whose places this worker has parked tasks.
#[derive(Debug, Default)]
pub(super) struct PlaceWaits(Mutex<HashMap<RecordId, ParkedForPlaces>>);

/// Parked tasks of one limit, as this worker knows them.
#[derive(Debug)]
struct ParkedForPlaces {
    /// Number of places.
    max: u32,
    last_parked: Instant,
    /// Beginning of the lease in which `early` tasks have been parked that come back early.
    lease_began: Instant,
    early: u32,
    /// Record of the places as the last look has found it, if some were free.
    free_then: Option<Facts>,
}

impl PlaceWaits {
    fn all(&self) -> MutexGuard<'_, HashMap<RecordId, ParkedForPlaces>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a task is parked for a place. Returns the maximum delay of its guard.
    pub(super) fn note(&self, record: &RecordId, max: u32, lease: Duration) -> Duration {
        let now = Instant::now();
        let early_delay = lease.min(MAX_PLACE_DELAY);
        let mut all = self.all();
        if !all.contains_key(record) && all.len() >= MAX_LIMITS {
            return early_delay;
        }
        let new = || ParkedForPlaces { max, last_parked: now, lease_began: now, early: 0, free_then: None };
        let parked = all.entry(record.clone()).or_insert_with(new);
        (parked.max, parked.last_parked) = (max, now);
        if now >= parked.lease_began + lease {
            (parked.lease_began, parked.early) = (now, 0);
        }
        parked.early = parked.early.saturating_add(1);
        if parked.early <= EARLY { early_delay } else { MAX_PLACE_DELAY }
    }

    /// Returns the limits to look at. Those are forgotten whose parked tasks have come back, wherever they were parked again.
    pub(super) fn to_look_at(&self) -> Vec<(RecordId, u32)> {
        let now = Instant::now();
        let mut all = self.all();
        all.retain(|_, parked| now < parked.last_parked + 2 * MAX_PLACE_DELAY);
        all.iter().map(|(record, parked)| (record.clone(), parked.max)).collect()
    }

    pub(super) fn forget(&self, record: &RecordId) {
        self.all().remove(record);
    }

    /// Returns the number of tasks to wake for places that nobody holds: none before two looks in a row have found the same,
    /// because a task that was woken needs some time to take its place.
    pub(super) fn to_wake(&self, record: &RecordId, facts: Facts, free: u32) -> u32 {
        let mut all = self.all();
        let Some(parked) = all.get_mut(record) else { return 0 };
        let before = parked.free_then.take();
        if free == 0 {
            return 0;
        }
        if before.as_ref() == Some(&facts) {
            return free;
        }
        parked.free_then = Some(facts);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RecordKind;

    const LEASE: Duration = Duration::from_secs(15);

    fn record(name: &str) -> RecordId {
        RecordId::new(RecordKind::Limit, &format!("run/task:{name}"))
    }

    #[tokio::test(start_paused = true)]
    async fn some_tasks_of_each_limit_come_back_within_a_lease() {
        let waits = PlaceWaits::default();
        let early = |name| (0..100).filter(|_| waits.note(&record(name), 1, LEASE) == LEASE).count();
        assert_eq!((early("a"), early("b"), early("a")), (16, 16, 0));
        tokio::time::advance(LEASE).await;
        assert_eq!(early("a"), 16);
        assert_eq!(waits.to_look_at().len(), 2);
        tokio::time::advance(2 * MAX_PLACE_DELAY).await;
        assert!(waits.to_look_at().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_free_place_wakes_tasks_when_two_looks_have_found_the_same() {
        let waits = PlaceWaits::default();
        let a = record("a");
        waits.note(&a, 2, LEASE);
        let mut facts = Facts::new();
        facts.put("p0", "one");
        assert_eq!(waits.to_wake(&a, facts.clone(), 1), 0);
        assert_eq!(waits.to_wake(&a, facts.clone(), 1), 1);
        assert_eq!(waits.to_wake(&a, facts.clone(), 1), 0, "those that were woken have time");
        assert_eq!(waits.to_wake(&a, Facts::new(), 2), 0, "it has changed");
        assert_eq!(waits.to_wake(&a, Facts::new(), 0), 0);
        assert_eq!(waits.to_wake(&a, Facts::new(), 2), 0, "it was full in between");
        assert_eq!(waits.to_wake(&a, Facts::new(), 2), 2);
        assert_eq!(waits.to_wake(&record("other"), Facts::new(), 1), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_limits_is_bounded() {
        let waits = PlaceWaits::default();
        for number in 0..2 * MAX_LIMITS {
            waits.note(&record(&number.to_string()), 1, LEASE);
        }
        assert_eq!(waits.to_look_at().len(), MAX_LIMITS);
        assert_eq!(waits.note(&record("more"), 1, LEASE), LEASE);
    }
}
