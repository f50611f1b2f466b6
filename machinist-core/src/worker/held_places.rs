//! The places that the runs of this worker hold, or perhaps hold, under limits of concurrency.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{id::RunId, limit::places::RunPlace};

/// Places that runs of this worker hold, or perhaps hold.
#[derive(Debug, Default)]
pub(super) struct HeldPlaces(Mutex<HashMap<RunId, Vec<RunPlace>>>);

impl HeldPlaces {
    fn all(&self) -> MutexGuard<'_, HashMap<RunId, Vec<RunPlace>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a place, before it is requested.
    pub(super) fn note(&self, place: &RunPlace) {
        self.all().entry(place.holder.run.clone()).or_default().push(place.clone());
    }

    /// Forgets a place that is certainly not held.
    pub(super) fn forget(&self, place: &RunPlace) {
        let mut all = self.all();
        let Some(of_run) = all.get_mut(&place.holder.run) else { return };
        of_run.retain(|held| held != place);
        if of_run.is_empty() {
            all.remove(&place.holder.run);
        }
    }

    /// Replaces a place by the same one under another session.
    pub(super) fn replace(&self, place: &RunPlace, by: RunPlace) {
        if let Some(of_run) = self.all().get_mut(&place.holder.run)
            && let Some(held) = of_run.iter_mut().find(|held| *held == place)
        {
            *held = by;
        }
    }

    pub(super) fn of_run(&self, run: &RunId) -> Vec<RunPlace> {
        self.all().get(run).cloned().unwrap_or_default()
    }

    /// Returns the places, with those first whose runs have ended.
    pub(super) fn with_ended(&self, has_ended: impl Fn(&RunId) -> bool) -> (Vec<RunPlace>, Vec<RunPlace>) {
        let all = self.all();
        all.values().flatten().cloned().partition(|place| has_ended(&place.holder.run))
    }
}
