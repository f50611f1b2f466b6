//! Consumers, their receipts and their health.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use machinist_adapter::broker::{
    BrokerError, Consumer, DeadLetterCause, Delivery, Receipt, Settle, Settled, SubscriptionHealth, Target,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    claim_request::ClaimRequest,
    claims::MAX_DELIVERIES,
    error::PostgresError,
    messages::ClaimedRow,
    store::Store,
    subscription::{HeldDelivery, MessageHolder, Subscription},
    wake_up::queue_number,
};

/// Maximum time that the server may take to answer a health check.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct PostgresConsumer {
    store: Arc<Store>,
    subscription: Arc<Subscription>,
    incoming: mpsc::UnboundedReceiver<HeldDelivery>,
    stopped: bool,
}

impl PostgresConsumer {
    /// Subscribes to queues. Returns once this process is registered as a consumer.
    pub(crate) async fn subscribe(
        store: Arc<Store>,
        targets: Vec<Target>,
        prefetch: u16,
    ) -> Result<Self, PostgresError> {
        let subscription = Arc::new(Subscription::new(targets, prefetch));
        let (deliveries, incoming) = mpsc::unbounded_channel();
        // Created before the request: if this future is dropped, so is the consumer, which ends the subscription.
        let consumer = Self { store, subscription: Arc::clone(&subscription), incoming, stopped: false };
        let (caller, told) = oneshot::channel();
        consumer.store.claim(ClaimRequest::Subscribe(subscription, deliveries, caller))?;
        told.await.unwrap_or_else(|_| Err(PostgresError::closed()))?;
        Ok(consumer)
    }

    fn receipt(&self, claimed: &ClaimedRow, pauses: u64, holder: Arc<MessageHolder>) -> PostgresReceipt {
        PostgresReceipt {
            store: Arc::clone(&self.store),
            subscription: Arc::clone(&self.subscription),
            holder,
            message: claimed.id,
            queue: queue_number(&claimed.target),
            pauses,
            settled: false,
        }
    }

    /// Hands back the messages that have arrived and were not taken. Dropping their receipts does it.
    fn hand_back(&mut self) {
        while let Ok(delivery) = self.incoming.try_recv() {
            drop(self.receipt(&delivery.claimed, delivery.pauses, delivery.holder));
        }
    }

    /// Waits until the requests so far are carried out, or cannot be.
    async fn sync(&self) {
        let (caller, told) = oneshot::channel();
        if self.store.claim(ClaimRequest::Sync(caller)).is_ok() {
            // Nobody answers if the store is closed.
            let _ = told.await;
        }
    }
}

#[async_trait]
impl Consumer for PostgresConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        while !self.stopped {
            let HeldDelivery { claimed, pauses, holder } = self.incoming.recv().await?;
            let receipt = self.receipt(&claimed, pauses, holder);
            // If the lease is over, the message was handed to another process.
            if receipt.holder.is_lost() {
                continue;
            }
            let is_spent =
                matches!(claimed.target, Target::DeadLetters(_)) && claimed.deliveries > MAX_DELIVERIES;
            return Some(Delivery {
                queue: claimed.target.queue().clone(),
                message: claimed.message,
                redelivered: claimed.deliveries > 1,
                cause: is_spent.then_some(DeadLetterCause::DeliveryLimit),
                receipt: Box::new(receipt),
            });
        }
        None
    }

    async fn add_credit(&mut self, credit: u16) {
        self.subscription.add_credit(credit);
        self.sync().await;
    }

    async fn pause(&mut self) {
        self.subscription.pause();
        // What is claimed at this moment arrives first.
        self.sync().await;
        self.hand_back();
        self.sync().await;
    }

    async fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            // Fails only if the store is closed, which has handed back everything.
            let _ = self.store.claim(ClaimRequest::Unsubscribe(Arc::clone(&self.subscription)));
            self.sync().await;
            self.incoming.close();
            self.hand_back();
            self.sync().await;
        }
    }

    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(PostgresSubscriptionHealth(Arc::clone(&self.store)))
    }
}

impl Drop for PostgresConsumer {
    fn drop(&mut self) {
        // Fails only if the store is closed, which has handed back everything.
        let _ = self.store.claim(ClaimRequest::Unsubscribe(Arc::clone(&self.subscription)));
        self.incoming.close();
        self.hand_back();
    }
}

/// Health of a subscription: good if the server answers on the connection that claims.
#[derive(Debug)]
struct PostgresSubscriptionHealth(Arc<Store>);

#[async_trait]
impl SubscriptionHealth for PostgresSubscriptionHealth {
    async fn check(&self) -> Result<(), String> {
        let (caller, told) = oneshot::channel();
        let asked = self.0.claim(ClaimRequest::Check(caller));
        let answer = async {
            asked?;
            told.await.unwrap_or_else(|_| Err(PostgresError::closed()))
        };
        match timeout(HEALTH_CHECK_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|error| BrokerError::from(error).to_string()),
            Err(_) => Err(format!("{} does not answer within {HEALTH_CHECK_TIMEOUT:?}", self.0.location)),
        }
    }

    fn disconnects(&self) -> u64 {
        // A lost connection loses nothing: what counts is that the messages of this process are in other hands.
        self.0.losses()
    }
}

#[derive(Debug)]
struct PostgresReceipt {
    store: Arc<Store>,
    subscription: Arc<Subscription>,
    holder: Arc<MessageHolder>,
    message: i64,
    queue: u64,
    /// Number of pauses of the subscription before the delivery.
    pauses: u64,
    settled: bool,
}

impl PostgresReceipt {
    fn settle_once(&mut self, how: Settle) -> Settled {
        if std::mem::replace(&mut self.settled, true) {
            return Settled::Done;
        }
        let settle = ClaimRequest::Settle {
            subscription: Arc::clone(&self.subscription),
            pauses: self.pauses,
            holder: Arc::clone(&self.holder),
            message: self.message,
            queue: self.queue,
            how,
        };
        if self.holder.is_lost() || self.store.settle(settle).is_err() {
            self.subscription.settled(self.pauses);
            Settled::Lost
        } else {
            Settled::Done
        }
    }
}

#[async_trait]
impl Receipt for PostgresReceipt {
    async fn settle(mut self: Box<Self>, how: Settle) -> Settled {
        self.settle_once(how)
    }
}

impl Drop for PostgresReceipt {
    fn drop(&mut self) {
        self.settle_once(Settle::Requeue);
    }
}
