//! The definition of a periodic task that is in force.

use crate::{
    flow::Outline,
    id::{QueueName, TaskId, TaskName},
    periodic::Plan,
    signature::SignatureParts,
    worker::WorkerContext,
    workflow::SendableParts,
};

/// Definition in force.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) plan: Plan,
    /// Signature of each tick, but for its id. The queues of its steps are complete.
    pub(super) parts: SignatureParts,
    /// Outline of the workflow, if it is one.
    pub(super) outline: Option<Outline>,
    pub(super) task: TaskName,
    pub(super) queue: QueueName,
}

impl Active {
    /// Returns what is sent at a tick.
    pub(super) fn tick(&self, id: TaskId) -> SendableParts {
        let parts = SignatureParts { id, ..self.parts.clone() };
        SendableParts { outline: self.outline.clone(), ..SendableParts::from(parts) }
    }

    /// Checks that this worker can send the ticks, with all steps.
    pub(super) fn check_sendable(&self, worker: &WorkerContext) -> Result<(), String> {
        let may_send = |task: &TaskName, queue: &QueueName| worker.app.may_publish(task, queue);
        let steps = || self.parts.flow.as_ref().map_or(Ok(()), |flow| flow.check_targets(may_send));
        may_send(&self.task, &self.queue)
            .and_then(|()| steps())
            .map_err(|why| format!("this worker cannot send it: {why}"))
    }
}
