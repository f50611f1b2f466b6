//! Requests to the task that claims and settles messages.

use std::sync::Arc;

use machinist_adapter::broker::Settle;
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::PostgresError,
    subscription::{HeldDelivery, MessageHolder, Subscription},
    wake_up::StoreWakeUp,
};

/// Request to the claiming task.
#[derive(Debug)]
pub(crate) enum ClaimRequest {
    /// Begins a subscription; answered when it is registered.
    Subscribe(
        Arc<Subscription>,
        mpsc::UnboundedSender<HeldDelivery>,
        oneshot::Sender<Result<(), PostgresError>>,
    ),
    /// Ends a subscription. Its deliveries can still be settled.
    Unsubscribe(Arc<Subscription>),
    /// Settles a message, and then gives back the credit that it used: with it, a less urgent message must not be claimed
    /// before this one is back.
    Settle {
        subscription: Arc<Subscription>,
        /// Number of pauses of the subscription before the delivery.
        pauses: u64,
        holder: Arc<MessageHolder>,
        message: i64,
        queue: u64,
        how: Settle,
    },
    /// Answered when the requests before it are carried out, or cannot be.
    Sync(oneshot::Sender<()>),
    /// Answered when the server has answered on the connection that claims.
    Check(oneshot::Sender<Result<(), PostgresError>>),
    /// Something has happened.
    WakeUp(StoreWakeUp),
    /// Ends all subscriptions and hands back everything.
    End(oneshot::Sender<()>),
}
