//! The gate of a worker: code of an application that decides whether the worker takes tasks now.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::WorkerContext;
use crate::id::QueueName;

/// Interval at which a gate is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time that a gate has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Answer of the gate of a worker ([`WorkerBuilder::gate`](crate::WorkerBuilder::gate)).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// The worker takes tasks.
    Open,
    /// The worker unsubscribes and sleeps. What runs goes on.
    Closed {
        /// Reason, which is shown with the worker.
        reason: String,
        /// Time after which the gate is asked again; a second at least.
        again_after: Duration,
    },
}

impl Gate {
    /// Closes the gate. It is asked again after a second.
    pub fn closed(reason: impl Into<String>) -> Self {
        Self::closed_for(INTERVAL, reason)
    }

    /// Closes the gate for a while, in which it is not asked.
    pub fn closed_for(while_: Duration, reason: impl Into<String>) -> Self {
        Self::Closed { reason: reason.into(), again_after: while_ }
    }
}

/// State of the worker, for its gate.
#[derive(Clone)]
pub struct GateContext {
    worker: Arc<WorkerContext>,
}

impl GateContext {
    /// Name of the worker.
    pub fn worker(&self) -> &str {
        self.worker.name.held()
    }

    /// Number of handlers that run.
    pub fn running(&self) -> usize {
        self.worker.sessions.running()
    }

    /// Queues from which the worker takes tasks while the gate is open.
    pub fn queues(&self) -> Vec<QueueName> {
        self.worker.sessions.presence.queues()
    }
}

impl fmt::Debug for GateContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateContext").field("worker", &self.worker()).finish_non_exhaustive()
    }
}

/// Function that is asked.
pub(super) type AskGate =
    Arc<dyn Fn(GateContext) -> Pin<Box<dyn Future<Output = Gate> + Send>> + Send + Sync>;

/// Gate of a running worker.
pub(super) struct GateKeeper {
    worker: Arc<WorkerContext>,
    ask: AskGate,
    /// Time before which it is not asked.
    not_before: Instant,
}

impl GateKeeper {
    /// Begins with a gate that is closed until it has answered.
    pub(super) fn new(worker: Arc<WorkerContext>, ask: AskGate) -> Self {
        worker.sessions.presence.want_by_gate(Some("its gate has not answered yet".to_owned()));
        Self { worker, ask, not_before: Instant::now() }
    }

    /// Asks the gate, unless it is closed for longer. A gate that panics or does not answer leaves everything as it is.
    pub(super) async fn look(&mut self) {
        if Instant::now() < self.not_before {
            return;
        }
        let context = GateContext { worker: Arc::clone(&self.worker) };
        let observers = &self.worker.app.0.observers;
        let asked = observers.await_hook("the gate of this worker", async || (self.ask)(context).await);
        let closed = match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Some(Gate::Open)) => None,
            Ok(Some(Gate::Closed { reason, again_after })) => {
                self.not_before = Instant::now() + again_after;
                Some(format!("its gate is closed: {reason}"))
            }
            Ok(None) => return,
            Err(_) => {
                observers.hook_failed();
                return tracing::error!(
                    "the gate of this worker gave no answer in {TIMEOUT:?}, and stays as it was"
                );
            }
        };
        self.worker.sessions.presence.want_by_gate(closed);
    }

    /// Asks the gate until the worker drains.
    pub(super) async fn run(mut self) {
        let stages = self.worker.stages.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stages.reached_drain() => return,
            }
            self.look().await;
        }
    }
}
