//! Roles in which a worker takes part: each once.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::slot::{RoleError, RoleName};

/// Roles in which a worker takes part.
#[derive(Debug, Default)]
pub(super) struct Roles {
    names: Mutex<BTreeSet<RoleName>>,
    tracker: TaskTracker,
    /// Fires when the worker has ended, so that no session protects what runs.
    over: CancellationToken,
}

impl Roles {
    fn names(&self) -> MutexGuard<'_, BTreeSet<RoleName>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, name: &RoleName) -> Result<(), RoleError> {
        if self.names().insert(name.clone()) { Ok(()) } else { Err(RoleError::Twice(name.to_string())) }
    }

    pub(super) fn remove(&self, name: &RoleName) {
        self.names().remove(name);
    }

    pub(super) fn listed(&self) -> Vec<String> {
        self.names().iter().map(ToString::to_string).collect()
    }

    pub(super) fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }

    /// Waits until all roles are left. Nothing runs for them then.
    pub(super) async fn left(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Returns a guard that cuts off everything that runs for the roles when it is dropped.
    pub(super) fn over_on_drop(&self) -> DropGuard {
        self.over.clone().drop_guard()
    }
}
