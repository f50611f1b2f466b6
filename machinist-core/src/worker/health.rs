//! How a worker is, for service managers and people: asked of the servers themselves, never guessed.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Stages, WorkerContext};
use machinist_adapter::error::chain;

use crate::broker::SubscriptionHealth;

/// How long a server may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells how a worker is. Cheap to clone; outlives the worker.
#[derive(Clone)]
pub struct Health {
    worker: Arc<WorkerContext>,
    stages: Stages,
    subscription: Arc<Mutex<SubscriptionState>>,
}

/// How a worker stands with its broker.
#[derive(Debug, Default)]
enum SubscriptionState {
    /// It is about to subscribe.
    #[default]
    NotYet,
    /// It has subscribed; whether that still holds is to be asked.
    Made(Arc<dyn SubscriptionHealth>),
    /// It wants none, because the backend is away.
    Withdrawn,
}

impl Health {
    pub(super) fn new(worker: Arc<WorkerContext>, stages: Stages) -> Self {
        Self { worker, stages, subscription: Arc::default() }
    }

    /// From now on there is a subscription to ask about.
    pub(super) fn subscribed(&self, health: Arc<dyn SubscriptionHealth>) {
        *self.subscription() = SubscriptionState::Made(health);
    }

    /// From now on no subscription is wanted.
    pub(super) fn withdrawn(&self) {
        *self.subscription() = SubscriptionState::Withdrawn;
    }

    /// From now on there should be one again.
    pub(super) fn subscribing(&self) {
        *self.subscription() = SubscriptionState::NotYet;
    }

    fn subscription(&self) -> MutexGuard<'_, SubscriptionState> {
        self.subscription.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with a worker that is to be alive; nothing if it is well: the broker has confirmed its
    /// subscription to every queue, and answers on that connection within 5 s. A worker that drains is well. So is one
    /// that takes nothing because the backend is away: ended, it would lose the outcomes that it keeps.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn troubles(&self) -> Vec<String> {
        if self.stages.is_draining() {
            return Vec::new();
        }
        let health = match &*self.subscription() {
            SubscriptionState::NotYet => return vec!["broker: it has not subscribed yet".to_owned()],
            SubscriptionState::Withdrawn => return Vec::new(),
            SubscriptionState::Made(health) => Arc::clone(health),
        };
        match tokio::time::timeout(PROBE_TIMEOUT + Duration::from_secs(1), health.check()).await {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(why)) => vec![format!("broker: {why}")],
            Err(_) => vec!["broker: no answer".to_owned()],
        }
    }

    /// What keeps a worker from taking tasks; nothing if it takes them: it is well, the backend answers within 5 s, and
    /// it does not drain.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn obstacles(&self) -> Vec<String> {
        let (mut wrong, backend) = tokio::join!(self.troubles(), self.backend());
        wrong.extend(backend.err());
        if matches!(*self.subscription(), SubscriptionState::Withdrawn) {
            wrong.push(
                "worker: it has handed back what it held, because the backend was away for long".to_owned(),
            );
        }
        if self.stages.is_draining() {
            wrong.push("worker: it drains, and ends when what runs has ended".to_owned());
        }
        wrong
    }

    async fn backend(&self) -> Result<(), String> {
        match tokio::time::timeout(PROBE_TIMEOUT, self.worker.app.backend().now()).await {
            Ok(Ok(_)) if self.worker.calls.is_backend_away() => {
                Err("backend: it was away, and no tasks are taken yet".to_owned())
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("backend: {}", chain(&error).join(": "))),
            Err(_) => Err(format!("backend: no answer within {PROBE_TIMEOUT:?}")),
        }
    }

    /// The worker's name.
    pub fn worker(&self) -> &str {
        &self.worker.name
    }

    /// How many handlers run.
    pub fn running(&self) -> usize {
        self.worker.sessions.running()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("worker", &self.worker()).finish_non_exhaustive()
    }
}
