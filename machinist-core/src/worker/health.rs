//! Health checks of a worker, for service managers and people: each check asks the servers themselves.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;

use super::{Stages, WorkerContext};
use machinist_adapter::error::chain;

use crate::{
    broker::SubscriptionHealth,
    id::QueuePattern,
    record::{PresenceState, WorkerHealth},
};

/// Time that a server has to answer a check.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval at which the health is looked at for those who want to know its changes.
const CHANGE_INTERVAL: Duration = Duration::from_secs(5);

/// Checks the health of a worker. Cheap to clone; outlives the worker.
#[derive(Clone)]
pub struct Health {
    worker: Arc<WorkerContext>,
    stages: Stages,
    subscription: Arc<Mutex<SubscriptionState>>,
}

/// Health of a worker, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HealthReport {
    /// Green, yellow or red.
    pub color: WorkerHealth,
    /// Reason that it is not green.
    pub reason: Option<String>,
    /// State of the worker.
    pub state: PresenceState,
    /// Every reason that the worker takes no tasks, with the part that has it in front.
    pub detail: Vec<String>,
}

/// State of a worker's subscription to its queues.
#[derive(Debug, Default)]
enum SubscriptionState {
    /// The worker is about to subscribe.
    #[default]
    NotYet,
    /// The worker has subscribed; this handle checks that the subscription still exists.
    Made(Arc<dyn SubscriptionHealth>),
    /// The worker has unsubscribed, because the backend is away.
    Withdrawn,
    /// The worker has unsubscribed, because people want it to sleep.
    Asleep,
}

impl Health {
    pub(super) fn new(worker: Arc<WorkerContext>, stages: Stages) -> Self {
        Self { worker, stages, subscription: Arc::default() }
    }

    /// Sets the state: subscribed.
    pub(super) fn subscribed(&self, health: Arc<dyn SubscriptionHealth>) {
        *self.subscription() = SubscriptionState::Made(health);
    }

    /// Sets the state: unsubscribed because the backend is away.
    pub(super) fn withdrawn(&self) {
        *self.subscription() = SubscriptionState::Withdrawn;
    }

    /// Sets the state: unsubscribed because people want the worker to sleep.
    pub(super) fn asleep(&self) {
        *self.subscription() = SubscriptionState::Asleep;
    }

    /// Sets the state: about to subscribe again.
    pub(super) fn subscribing(&self) {
        *self.subscription() = SubscriptionState::NotYet;
    }

    fn subscription(&self) -> MutexGuard<'_, SubscriptionState> {
        self.subscription.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the problems of a worker that should be alive, or nothing if it is healthy. A worker is healthy if the
    /// broker has confirmed its subscription to every queue and answers on that connection within 5 s. A draining worker
    /// is healthy. So is one that takes no tasks because the backend is away: if it were stopped, the outcomes that it
    /// keeps would be lost.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn troubles(&self) -> Vec<String> {
        if self.stages.is_draining() {
            return Vec::new();
        }
        let health = match &*self.subscription() {
            SubscriptionState::NotYet => return vec!["broker: the worker has not subscribed yet".to_owned()],
            SubscriptionState::Withdrawn | SubscriptionState::Asleep => return Vec::new(),
            SubscriptionState::Made(health) => Arc::clone(health),
        };
        match tokio::time::timeout(PROBE_TIMEOUT + Duration::from_secs(1), health.check()).await {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(error)) => vec![format!("broker: {error}")],
            Err(_) => vec!["broker: no answer".to_owned()],
        }
    }

    /// Returns the reasons that a worker does not take tasks, or nothing if it takes them. A worker takes tasks if it is
    /// healthy, the backend answers within 5 s, and it is not draining.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn obstacles(&self) -> Vec<String> {
        let (mut wrong, backend) = tokio::join!(self.troubles(), self.backend());
        wrong.extend(backend.err());
        if matches!(*self.subscription(), SubscriptionState::Withdrawn) {
            wrong.push(
                "worker: it has handed back its deliveries, because the backend was away for a long time"
                    .to_owned(),
            );
        }
        if matches!(*self.subscription(), SubscriptionState::Asleep) {
            let reason = self.worker.sessions.presence.sleep_reason();
            wrong.extend(reason.map(|sleep| format!("worker: it is asleep: {}", sleep.reason)));
        }
        if self.stages.is_draining() {
            wrong.push("worker: it drains, and stops when its running tasks have ended".to_owned());
        }
        wrong
    }

    async fn backend(&self) -> Result<(), String> {
        match tokio::time::timeout(PROBE_TIMEOUT, self.worker.app.backend().now()).await {
            Ok(Ok(_)) if self.worker.calls.is_backend_away() => {
                Err("backend: it was away, and the worker takes no tasks yet".to_owned())
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("backend: {}", chain(&error).join(": "))),
            Err(_) => Err(format!("backend: no answer within {PROBE_TIMEOUT:?}")),
        }
    }

    /// Returns the health of the worker as its session shows it, with its problems in detail. The servers are asked, as by
    /// [`obstacles`](Self::obstacles).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn report(&self) -> HealthReport {
        let detail = self.obstacles().await;
        let sessions = &self.worker.sessions;
        let (mut color, mut reason) = sessions.health();
        if color == WorkerHealth::Green
            && let Some(first) = Self::trouble_of(&detail)
        {
            (color, reason) = (WorkerHealth::Yellow, Some(first.clone()));
        }
        HealthReport { color, reason, state: sessions.presence.state(), detail }
    }

    /// Calls `changed` with the health of the worker now, and whenever its colour, its reason or its state has changed. The
    /// servers are asked every 5 s. Completes when the worker drains.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn on_change(&self, mut changed: impl FnMut(&HealthReport)) {
        let mut told: Option<HealthReport> = None;
        loop {
            let report = self.report().await;
            let about = |report: &HealthReport| (report.color, report.reason.clone(), report.state);
            if told.as_ref().map(about) != Some(about(&report)) {
                changed(&report);
                told = Some(report);
            }
            tokio::select! {
                () = tokio::time::sleep(CHANGE_INTERVAL) => {}
                () = self.stages.reached_drain() => return,
            }
        }
    }

    /// Returns the first problem of a server. That people have put the worker to sleep, or that it drains, is none.
    fn trouble_of(detail: &[String]) -> Option<&String> {
        detail.iter().find(|problem| problem.starts_with("broker:") || problem.starts_with("backend:"))
    }

    /// Name of the worker, as its session holds it: a second live process of a name is `NAME#2`.
    pub fn worker(&self) -> &str {
        self.worker.name.held()
    }

    /// Queues from which the worker takes tasks now, and the patterns of those that it follows, sorted.
    pub fn queues(&self) -> Vec<QueuePattern> {
        self.worker.sessions.presence.own_queues().into_iter().collect()
    }

    /// Number of handlers that may run at once.
    pub fn slots(&self) -> usize {
        self.worker.capacity.limit()
    }

    /// Number of handlers that run.
    pub fn running(&self) -> usize {
        self.worker.sessions.running()
    }

    /// Time since the session was last renewed.
    pub fn session_age(&self) -> Duration {
        self.worker.sessions.age()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("worker", &self.worker()).finish_non_exhaustive()
    }
}
