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
        let cannot = |why: String| format!("this worker cannot send it: {why}");
        worker.app.may_publish(&self.task, &self.queue).map_err(cannot)?;
        for step in self.parts.flow.iter().flat_map(|flow| flow.all_steps()) {
            let in_step = |why: String| cannot(format!("step {:?}: {why}", step.name));
            let task = TaskName::parse(&step.task).map_err(|error| in_step(error.to_string()))?;
            let queue = QueueName::parse(&step.queue).map_err(|error| in_step(error.to_string()))?;
            worker.app.may_publish(&task, &queue).map_err(in_step)?;
        }
        Ok(())
    }
}
