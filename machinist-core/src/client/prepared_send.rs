//! Sends that another writer completes: a transaction of the application's database.
//!
//! The client checks, signs and encodes; an adapter writes the message and the record where the application wants them. The
//! core knows no database.

use super::Client;
use crate::{
    backend::{Commit, Index, IndexUpdate},
    broker::Publish,
    error::SendError,
    prepared_signature::PreparedSignature,
    result::AsyncResult,
    workflow::Sendable,
};

/// Task or workflow that is ready to be sent, and is not sent yet.
#[derive(Debug)]
#[non_exhaustive]
pub struct PreparedSend<R> {
    /// The message. The task is sent when it is in its queue.
    pub publish: Publish,
    /// The sender's part of the record. Without it the task runs all the same; its state is unknown until a worker takes it.
    pub record: Commit,
    /// Entry in the list of scheduled tasks, if the task is delayed.
    pub scheduled: Option<IndexUpdate>,
    /// The result, once the task is sent.
    pub result: AsyncResult<R>,
}

impl Client {
    /// Prepares a signature or a workflow for a send that another writer completes, such as a transaction of the application's
    /// database. Nothing is sent by it.
    ///
    /// A unique task, and one that requires a live worker, cannot be prepared: what is decided about them now need not hold
    /// when the transaction is committed.
    ///
    /// # Errors
    /// [`SendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn prepare_send<S: Sendable>(&self, what: S) -> Result<PreparedSend<S::ResultType>, SendError> {
        let sendable = what.into_parts();
        let id = sendable.parts.id.clone();
        let refuse =
            |why: &str| Err(SendError::Invalid(format!("task {id} cannot be sent in a transaction: {why}")));
        if sendable.parts.unique.is_some() {
            return refuse(
                "it is unique, and its key would be taken even if the transaction is rolled back; send it afterwards",
            );
        }
        if sendable.parts.require_worker {
            return refuse(
                "it requires a live worker, and there may be none when the transaction is committed",
            );
        }
        let mut prepared = [self.prepare(sendable)];
        if !self.app.0.depths.is_empty() {
            Box::pin(self.refuse_for_full_queues(&mut prepared)).await;
        }
        let [prepared] = prepared;
        let PreparedSignature { publish, facts, sending, .. } = prepared?;
        let app = &self.app.0;
        app.listed_queues.list(app.backend.as_ref(), app.clock.now(), std::iter::once(&sending.queue)).await;
        let scheduled = sending.eta.map(|at| IndexUpdate::Put {
            index: Index::Scheduled,
            at,
            member: sending.id.to_string(),
        });
        let of_workflow = sending.result != sending.id;
        let result = AsyncResult::sent(self.app.clone(), sending.result);
        let result = if of_workflow { result.of_workflow(sending.id) } else { result };
        Ok(PreparedSend { publish, record: facts, scheduled, result })
    }
}
