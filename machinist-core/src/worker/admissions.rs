//! Rules that decide if a task may start in this worker, among them the names that are disabled for all workers.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    admission::{AdmissionDecision, AdmissionRequest, AdmissionRule, WaitReason},
    id::TaskName,
};

/// Number of places for tasks that know when they start, besides those for all refused tasks. Tasks that wait for others to end
/// would take all, and one that knows its time comes late if it has to wait in the broker.
const TIMED_PLACES: usize = 8;

/// Rules of a worker, and the places for refused tasks in its process.
#[derive(Debug)]
pub(super) struct Admissions {
    disabled: Arc<DisabledTasks>,
    rules: Vec<Arc<dyn AdmissionRule>>,
    places: Semaphore,
    timed_places: Semaphore,
}

impl Admissions {
    /// `look_ahead` is the number of deliveries that the worker holds in addition to those that run: half of them may
    /// be refused ones.
    pub(super) fn new(
        disabled: Arc<DisabledTasks>,
        rules: Vec<Arc<dyn AdmissionRule>>,
        look_ahead: usize,
    ) -> Self {
        Self {
            disabled,
            rules,
            places: Semaphore::new(look_ahead / 2),
            timed_places: Semaphore::new(TIMED_PLACES),
        }
    }

    /// Takes a place for a refused task, if one is free. `timed` is `true` if it is known when the task may start.
    pub(super) fn place(&self, timed: bool) -> Option<SemaphorePermit<'_>> {
        let own = timed.then(|| self.timed_places.try_acquire().ok()).flatten();
        own.or_else(|| self.places.try_acquire().ok())
    }

    /// Returns `true` if nothing can refuse a task: the usual case, which costs no more than this.
    pub(super) fn is_open(&self) -> bool {
        self.rules.is_empty() && !self.disabled.any()
    }

    /// Asks the rules in their order. The first refusal counts.
    pub(super) async fn decide(&self, request: &AdmissionRequest<'_>) -> AdmissionDecision {
        if self.disabled.has(request.name) {
            return AdmissionDecision::NotHere(WaitReason::disabled(request.name));
        }
        for rule in &self.rules {
            match rule.admit(request).await {
                AdmissionDecision::Now => {}
                refused => return refused,
            }
        }
        AdmissionDecision::Now
    }
}

/// Names of tasks that are disabled for all workers, as this worker last read them.
#[derive(Debug, Default)]
pub(super) struct DisabledTasks(RwLock<HashSet<TaskName>>);

impl DisabledTasks {
    /// Replaces the names.
    pub(super) fn replace(&self, names: HashSet<TaskName>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Returns `true` if any name is disabled.
    pub(super) fn any(&self) -> bool {
        !self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn has(&self, task: &TaskName) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(task)
    }
}
