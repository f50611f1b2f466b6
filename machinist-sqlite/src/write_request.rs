//! The requests to the writing thread. Changes are plain data, so that each can be applied again in a transaction by
//! itself after its batch has failed.

use std::sync::Arc;

use machinist_adapter::{
    backend::{Commit, Committed, IndexUpdate},
    broker::{Publish, Settle},
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::{
    error::StoreError,
    subscription::{ClaimedDelivery, SqliteSubscription, UsedCredit},
};

/// One change of the file.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "most changes publish, and a box for each would cost more than the copy"
)]
pub(crate) enum StoreChange {
    Publish(Publish),
    Settle {
        message: i64,
        owner: i64,
        settle: Settle,
        /// Credit that the message has used.
        used: Option<UsedCredit>,
    },
    Subscribe(Arc<SqliteSubscription>, UnboundedSender<ClaimedDelivery>),
    Unsubscribe(Arc<SqliteSubscription>),
    Commit(Arc<Commit>),
    UpdateIndexes(Vec<IndexUpdate>),
    /// Changes nothing. Tests if the file can be written.
    Probe,
}

/// Outcome of a change that was made.
#[derive(Debug)]
pub(crate) enum ChangeOutcome {
    Done,
    Committed(Committed),
}

/// Changes that are requested together.
#[derive(Debug)]
pub(crate) struct ChangeRequest {
    pub(crate) changes: Vec<StoreChange>,
    /// Channel for the outcomes. `None` if no caller waits, as for settlements.
    pub(crate) reply: Option<ChangeReply>,
}

/// Channel for the outcomes of changes, in the order of the changes.
pub(crate) type ChangeReply = oneshot::Sender<Vec<Result<ChangeOutcome, StoreError>>>;

/// Request of a thread of this process to the writer.
#[derive(Debug)]
pub(crate) enum WriteRequest {
    /// Applies changes.
    Changes(ChangeRequest),
    /// Claims messages that became ready in the file.
    Ready(ReadyQueues),
    /// Ends every subscription and hands back the messages that are held. Answered when that is done.
    EndSubscriptions(oneshot::Sender<()>),
    /// Ends the writer after the requests that were sent before. Answered when the file is closed.
    Close(Option<oneshot::Sender<()>>),
}

/// Queues that were found to hold messages for this process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadyQueues {
    /// Ids of subscribed queues that hold ready messages.
    pub(crate) queues: Vec<i64>,
    /// `true` if a delayed message has become due.
    pub(crate) delayed_due: bool,
}
