//! A signature that is ready to be sent, and one that is tried until it is sent.
//!
//! Each try sends the same message. Otherwise the hooks would run at each try, and the share of a key would be used again, so
//! that two tries could choose different queues.

use crate::{
    backend::Commit,
    broker::{Broker, Publish},
    clock::Timestamp,
    delay::keep_for,
    id::{QueueName, TaskId, TaskName},
    mirror::SentTask,
    unique::UniqueClaim,
    workflow::SendableParts,
};

/// A signature that can be sent: its message, and the facts that its sender writes.
#[derive(Clone)]
pub(crate) struct PreparedSignature {
    pub(crate) publish: Publish,
    pub(crate) facts: Commit,
    pub(crate) sending: Sending,
    /// Key that the task has to claim before it is sent.
    pub(crate) unique: Option<UniqueClaim>,
    /// `true` if it ends unsent where no live worker takes it.
    pub(crate) require_worker: bool,
    /// The task as the program is told that shares its queue; `None` if nobody shares it.
    pub(crate) sent: Option<SentTask>,
}

/// A task on its way to the broker.
#[derive(Clone)]
pub(crate) struct Sending {
    pub(crate) id: TaskId,
    pub(crate) name: TaskName,
    pub(crate) queue: QueueName,
    pub(crate) eta: Option<Timestamp>,
    /// Task whose end is the result.
    pub(crate) result: TaskId,
    /// Ends when it is dropped: after the confirm.
    pub(crate) span: tracing::Span,
}

impl PreparedSignature {
    /// Returns the same for a try at this time: the broker keeps the message for what is left of its delay.
    pub(crate) fn at(&self, now: Timestamp, broker: &dyn Broker) -> Self {
        let mut prepared = self.clone();
        if let Some(eta) = self.sending.eta {
            prepared.publish.delay = keep_for(eta.since(now), broker);
            prepared.sending.eta = (eta > now).then_some(eta);
        }
        prepared
    }
}

/// A signature that is tried until it is sent, or nobody waits for it any more.
pub(crate) struct RetriedSend {
    pub(crate) prepared: PreparedSignature,
    /// The signature itself, if each try has to prepare it: the start of a debounced one depends on those that were sent before.
    pub(crate) debounced: Option<Box<SendableParts>>,
}
