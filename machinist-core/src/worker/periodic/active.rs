//! The definition of a periodic task that is in force.

use crate::{
    id::{QueueName, TaskName},
    periodic::Plan,
    signature::SignatureParts,
};

/// Definition in force.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) plan: Plan,
    /// Signature of each tick, but for its id.
    pub(super) parts: SignatureParts,
    pub(super) task: TaskName,
    pub(super) queue: QueueName,
}
