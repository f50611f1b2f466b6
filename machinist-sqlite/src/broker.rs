//! The file as a broker: consumers receive from the store's writing thread, and receipts settle through it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use machinist_adapter::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Delivery, HeldCounts, PeekedMessage,
        Publish, PublishError, QueueDepth, Receipt, Settle, Settled, SideQueue, SubscriptionHealth, Target,
    },
    diagnose::{Diagnose, Finding},
    id::QueueName,
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::{
    error::StoreError,
    file_reader::Query,
    messages::ClaimedMessage,
    owners::OwnerRegistration,
    store_handle::StoreHandle,
    subscription::{ClaimedDelivery, SqliteSubscription, UsedCredit},
    write_request::StoreChange,
};

/// Maximum size of a message, in bytes: the largest maximum that RabbitMQ can be configured with.
const MAX_MESSAGE_BYTES: usize = 512 << 20;

/// Broker in an SQLite file. Created by [`SqliteStore::broker`](crate::SqliteStore::broker).
///
/// Messages are delivered by priority, then by due time, then in the order in which they were published. A queue is
/// declared at its first use. A message is claimed for a process and comes back when that process dies; the
/// documentation of the crate explains how the others detect it.
#[derive(Debug, Clone)]
pub struct SqliteBroker {
    store: Arc<StoreHandle>,
}

impl SqliteBroker {
    pub(crate) fn new(store: Arc<StoreHandle>) -> Self {
        Self { store }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.store.is_broker_closed() {
            return Err(StoreError::closed(&self.store.path));
        }
        Ok(())
    }

    async fn subscribe(&self, targets: Vec<Target>, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        self.check_open()?;
        let subscription = Arc::new(SqliteSubscription::new(targets, prefetch));
        let (deliveries, incoming) = mpsc::unbounded_channel();
        // Created before the request: if this future is dropped, so is the consumer, which ends the subscription.
        let consumer = SqliteConsumer {
            store: self.store.clone(),
            subscription: subscription.clone(),
            incoming,
            stopped: false,
        };
        self.store.apply_change(StoreChange::Subscribe(subscription, deliveries)).await?;
        Ok(Box::new(consumer))
    }
}

#[async_trait]
impl Diagnose for SqliteBroker {
    fn location(&self) -> String {
        self.store.path.display().to_string()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.store.diagnose().await
    }
}

#[async_trait]
impl Broker for SqliteBroker {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { durable: true, shared: true, priority: true, max_delay: None }
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        if let Err(closed) = self.check_open() {
            return batch.iter().map(|_| Err(closed.clone().into())).collect();
        }
        let refusal = |publish: &Publish| {
            let size = publish.message.size();
            let too_large = PublishError::TooLarge { size, limit: MAX_MESSAGE_BYTES };
            if size > MAX_MESSAGE_BYTES { Some(too_large) } else { publish.message.check_depth().err() }
        };
        let refused: Vec<_> = batch.iter().map(refusal).collect();
        let taken = batch.into_iter().zip(&refused).filter(|(_, refused)| refused.is_none());
        let mut outcomes = self
            .store
            .apply_changes(taken.map(|(publish, _)| StoreChange::Publish(publish)).collect())
            .await
            .into_iter();
        refused
            .into_iter()
            .map(|refused| match refused {
                Some(error) => Err(error),
                None => match outcomes.next() {
                    Some(outcome) => outcome.map(drop).map_err(PublishError::from),
                    None => Err(StoreError::closed(&self.store.path).into()),
                },
            })
            .collect()
    }

    async fn consume(&self, consume: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.subscribe(consume.queues.into_iter().map(Target::Queue).collect(), consume.prefetch).await
    }

    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        match from {
            SideQueue::DeadLetters(queue) => {
                self.subscribe(vec![Target::DeadLetters(queue)], prefetch).await.map(Some)
            }
            // A delayed message waits in its own queue, which cannot be deleted.
            SideQueue::Undelivered => Ok(None),
        }
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        let queues = queues.to_vec();
        Ok(self.store.query(|reply| Query::Depth(queues, reply)).await?)
    }

    async fn held(&self, queues: &[QueueName]) -> Result<Vec<HeldCounts>, BrokerError> {
        let queues = queues.to_vec();
        Ok(self.store.query(|reply| Query::Held(queues, reply)).await?)
    }

    async fn peek(&self, queue: &QueueName, limit: u16) -> Result<Option<Vec<PeekedMessage>>, BrokerError> {
        let queue = queue.clone();
        let ready = self.store.query(|reply| Query::Ready(queue, limit, reply)).await?;
        // A select counts no delivery.
        let peeked = |message| PeekedMessage { message, deliveries_left: None };
        Ok(Some(ready.into_iter().map(peeked).collect()))
    }

    async fn close(&self) {
        self.store.close_broker().await;
    }
}

#[derive(Debug)]
struct SqliteConsumer {
    store: Arc<StoreHandle>,
    subscription: Arc<SqliteSubscription>,
    incoming: UnboundedReceiver<ClaimedDelivery>,
    stopped: bool,
}

impl SqliteConsumer {
    fn receipt(&self, message: i64, pauses: u64, registration: Arc<OwnerRegistration>) -> SqliteReceipt {
        SqliteReceipt {
            store: self.store.clone(),
            subscription: self.subscription.clone(),
            registration,
            message,
            pauses,
            settled: false,
        }
    }

    /// Hands back the messages that have arrived and were not taken. Dropping their receipts does it.
    fn hand_back(&mut self) {
        while let Ok(delivery) = self.incoming.try_recv() {
            drop(self.receipt(delivery.message.id, delivery.pauses, delivery.registration));
        }
    }

    /// Waits until the changes so far are applied, and messages are claimed for the credit that is there.
    async fn apply_all(&self) {
        // An empty change. If it is not applied, the file is closed or cannot be written.
        let _ = self.store.apply_change(StoreChange::UpdateIndexes(Vec::new())).await;
    }
}

#[async_trait]
impl Consumer for SqliteConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        while !self.stopped {
            let delivery = self.incoming.recv().await?;
            let ClaimedMessage { id, queue, redelivered, message } = delivery.message;
            let receipt = self.receipt(id, delivery.pauses, delivery.registration);
            // If the registration has ended, the message was handed to another process.
            if !receipt.registration.has_ended() {
                return Some(Delivery {
                    queue,
                    message,
                    redelivered,
                    cause: None,
                    receipt: Box::new(receipt),
                });
            }
        }
        None
    }

    async fn add_credit(&mut self, credit: u16) {
        self.subscription.add_credit(credit);
        self.apply_all().await;
    }

    async fn pause(&mut self) {
        self.subscription.pause();
        self.hand_back();
        self.apply_all().await;
    }

    async fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            // If the file cannot be written, this process holds these messages until it ends.
            let _ = self.store.apply_change(StoreChange::Unsubscribe(self.subscription.clone())).await;
            self.incoming.close();
            self.hand_back();
            self.apply_all().await;
        }
    }

    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(SqliteSubscriptionHealth(Arc::clone(&self.store)))
    }
}

/// Health of a subscription: good if the file answers and the store is open. The rest of a subscription is in this
/// process.
#[derive(Debug)]
struct SqliteSubscriptionHealth(Arc<StoreHandle>);

/// Maximum time that the file may take to answer a health check.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

#[async_trait]
impl SubscriptionHealth for SqliteSubscriptionHealth {
    async fn check(&self) -> Result<(), String> {
        if self.0.is_broker_closed() {
            return Err("the store was closed".to_owned());
        }
        match tokio::time::timeout(
            HEALTH_CHECK_TIMEOUT,
            self.0.query(|reply| Query::Depth(Vec::new(), reply)),
        )
        .await
        {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(BrokerError::from(error).to_string()),
            Err(_) => {
                Err(format!("{} does not answer within {HEALTH_CHECK_TIMEOUT:?}", self.0.path.display()))
            }
        }
    }

    fn disconnects(&self) -> u64 {
        // A file has no connection. The nearest equivalent is that this process was declared dead.
        self.0.watches.ownership_losses()
    }
}

impl Drop for SqliteConsumer {
    fn drop(&mut self) {
        // Fails only if the store is closed. It has handed back everything.
        let _ = self.store.send_change(StoreChange::Unsubscribe(self.subscription.clone()));
        self.incoming.close();
        self.hand_back();
    }
}

#[derive(Debug)]
struct SqliteReceipt {
    store: Arc<StoreHandle>,
    subscription: Arc<SqliteSubscription>,
    registration: Arc<OwnerRegistration>,
    message: i64,
    /// Number of pauses of the subscription before the delivery.
    pauses: u64,
    settled: bool,
}

impl SqliteReceipt {
    fn settle_once(&mut self, how: Settle) -> Settled {
        if std::mem::replace(&mut self.settled, true) {
            return Settled::Done;
        }
        let settle = StoreChange::Settle {
            message: self.message,
            owner: self.registration.owner,
            settle: how,
            used: Some(UsedCredit::new(Arc::clone(&self.subscription), self.pauses)),
        };
        if self.registration.has_ended() || self.store.send_change(settle).is_err() {
            Settled::Lost
        } else {
            Settled::Done
        }
    }
}

#[async_trait]
impl Receipt for SqliteReceipt {
    async fn settle(mut self: Box<Self>, how: Settle) -> Settled {
        self.settle_once(how)
    }
}

impl Drop for SqliteReceipt {
    fn drop(&mut self) {
        self.settle_once(Settle::Requeue);
    }
}
