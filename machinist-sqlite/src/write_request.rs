//! What the writer is asked for, as plain data, so that it can be done again alone when its batch has failed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use machinist_core::{
    backend::{Commit, Committed, IndexUpdate, Renewed},
    broker::{Publish, Settle},
    clock::Timestamp,
    id::{SessionId, TaskId},
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::{
    error::StoreError,
    subscription::{ClaimedDelivery, SqliteSubscription},
};

/// One change of the file.
#[derive(Debug)]
pub(crate) enum StoreChange {
    Publish(Publish),
    Settle {
        message: i64,
        owner: i64,
        settle: Settle,
    },
    Subscribe(Arc<SqliteSubscription>, UnboundedSender<ClaimedDelivery>),
    Unsubscribe(Arc<SqliteSubscription>),
    Commit(Commit),
    OpenSession {
        session: SessionId,
        lease: Duration,
        info: Bytes,
    },
    RenewSession {
        session: SessionId,
        lease: Duration,
        info: Bytes,
        running: Vec<TaskId>,
    },
    CloseSession(SessionId),
    UpdateIndexes(Vec<IndexUpdate>),
    /// A change of nothing, to learn whether the file can be written.
    Probe,
}

/// What became of a change.
#[derive(Debug)]
pub(crate) enum ChangeOutcome {
    Done,
    At(Timestamp),
    Committed(Committed),
    Renewed(Renewed),
}

/// Changes that are requested together.
#[derive(Debug)]
pub(crate) struct ChangeRequest {
    pub(crate) changes: Vec<StoreChange>,
    pub(crate) reply: Option<ChangeReply>,
}

/// Channel for the outcomes of changes, in the order of the changes.
pub(crate) type ChangeReply = oneshot::Sender<Vec<Result<ChangeOutcome, StoreError>>>;

/// What a thread of this process sends to the writer.
#[derive(Debug)]
pub(crate) enum WriteRequest {
    /// Changes, and who waits for the answers; nobody for settlements.
    Changes(ChangeRequest),
    /// Something happened in the file that subscriptions should look at.
    Ready(ReadyQueues),
    /// Ends every subscription and hands back what is held. Answered when that is done.
    EndSubscriptions(oneshot::Sender<()>),
    /// Ends the writer after what was asked before. Answered when the file is closed.
    Close(Option<oneshot::Sender<()>>),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadyQueues {
    /// Queues in which something waits.
    pub(crate) queues: Vec<i64>,
    /// Whether a delayed message has come due.
    pub(crate) delayed_due: bool,
}
