//! The file as a broker.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use machinist_core::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Delivery, Publish, PublishError,
        QueueDepth, Receipt, Settle, Settled, SideQueue, SubscriptionHealth, Target,
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
    store::StoreHandle,
    write_request::{ClaimedDelivery, SqliteSubscription, StoreChange},
};

/// The largest message, in bytes: what RabbitMQ takes where it is told to take the most.
const LARGEST: usize = 512 << 20;

/// Queues in an SQLite file. Made by [`SqliteStore::broker`](crate::SqliteStore::broker).
///
/// Messages are delivered by priority, then by due time, then in the order in which they were published; a queue
/// is declared by whoever first names it. A message is claimed for a process, and comes back when that process
/// dies; the crate's documentation tells how the others learn of it.
#[derive(Debug, Clone)]
pub struct SqliteBroker {
    shared: Arc<StoreHandle>,
}

impl SqliteBroker {
    pub(crate) fn new(shared: Arc<StoreHandle>) -> Self {
        Self { shared }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.shared.broker_closed.load(Ordering::Acquire) {
            return Err(StoreError::closed(&self.shared.path));
        }
        Ok(())
    }

    async fn subscribe(&self, targets: Vec<Target>, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        self.check_open()?;
        let subscription = Arc::new(SqliteSubscription {
            targets,
            prefetch: usize::from(prefetch.max(1)),
            held: AtomicUsize::new(0),
        });
        let (out, incoming) = mpsc::unbounded_channel();
        // Made before the answer: if this future is dropped, the consumer is, and ends the subscription.
        let consumer = SqliteConsumer {
            shared: self.shared.clone(),
            subscription: subscription.clone(),
            incoming,
            stopped: false,
        };
        self.shared.change_one(StoreChange::Subscribe(subscription, out)).await?;
        Ok(Box::new(consumer))
    }
}

#[async_trait]
impl Diagnose for SqliteBroker {
    fn location(&self) -> String {
        self.shared.path.display().to_string()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.shared.diagnose().await
    }
}

#[async_trait]
impl Broker for SqliteBroker {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { durable: true, shared: true, priority: true }
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        if let Err(closed) = self.check_open() {
            return batch.iter().map(|_| Err(closed.clone().into())).collect();
        }
        let too_large = |publish: &Publish| {
            let size = publish.message.size();
            (size > LARGEST).then_some(PublishError::TooLarge { size, limit: LARGEST })
        };
        let refused: Vec<_> = batch.iter().map(too_large).collect();
        let taken = batch.into_iter().zip(&refused).filter(|(_, refused)| refused.is_none());
        let mut answers = self
            .shared
            .change(taken.map(|(publish, _)| StoreChange::Publish(publish)).collect())
            .await
            .into_iter();
        refused
            .into_iter()
            .map(|refused| match refused {
                Some(error) => Err(error),
                None => match answers.next() {
                    Some(answer) => answer.map(drop).map_err(PublishError::from),
                    None => Err(StoreError::closed(&self.shared.path).into()),
                },
            })
            .collect()
    }

    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.subscribe(what.queues.into_iter().map(Target::Queue).collect(), what.prefetch).await
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
            // A delayed message waits in its own queue here, which nobody can delete.
            _ => Ok(None),
        }
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        let queues = queues.to_vec();
        Ok(self.shared.ask(|reply| Query::Depth(queues, reply)).await?)
    }

    async fn close(&self) {
        self.shared.broker_closed.store(true, Ordering::Release);
        self.shared.leave().await;
    }
}

#[derive(Debug)]
struct SqliteConsumer {
    shared: Arc<StoreHandle>,
    subscription: Arc<SqliteSubscription>,
    incoming: UnboundedReceiver<ClaimedDelivery>,
    stopped: bool,
}

impl SqliteConsumer {
    fn receipt(&self, message: i64, tenure: Arc<OwnerRegistration>) -> SqliteReceipt {
        SqliteReceipt {
            shared: self.shared.clone(),
            subscription: self.subscription.clone(),
            tenure,
            message,
            settled: false,
        }
    }

    /// Hands back what has arrived and was not asked for. The receipts do it.
    fn hand_back(&mut self) {
        self.incoming.close();
        while let Ok((claimed, tenure)) = self.incoming.try_recv() {
            drop(self.receipt(claimed.id, tenure));
        }
    }
}

#[async_trait]
impl Consumer for SqliteConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        while !self.stopped {
            let (ClaimedMessage { id, queue, redelivered, message }, tenure) = self.incoming.recv().await?;
            let receipt = self.receipt(id, tenure);
            // What was lost before anybody saw it is somebody else's by now.
            if !receipt.tenure.is_over() {
                return Some(Delivery { queue, message, redelivered, receipt: Box::new(receipt) });
            }
        }
        None
    }

    async fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            // If the file cannot be written, what was handed back stays with this process until it ends.
            let _ = self.shared.change_one(StoreChange::Unsubscribe(self.subscription.clone())).await;
            self.hand_back();
            // After what was handed back.
            let _ = self.shared.change_one(StoreChange::UpdateIndexes(Vec::new())).await;
        }
    }

    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(SqliteSubscriptionHealth(Arc::clone(&self.shared)))
    }
}

/// Whether the file answers, and this store is open: the rest of a subscription is in this process.
#[derive(Debug)]
struct SqliteSubscriptionHealth(Arc<StoreHandle>);

/// How long a file may take to answer.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(5);

#[async_trait]
impl SubscriptionHealth for SqliteSubscriptionHealth {
    async fn check(&self) -> Result<(), String> {
        if self.0.broker_closed.load(Ordering::Acquire) {
            return Err("the store was closed".to_owned());
        }
        match tokio::time::timeout(ANSWER, self.0.ask(|reply| Query::Depth(Vec::new(), reply))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(fault)) => Err(BrokerError::from(fault).to_string()),
            Err(_) => Err(format!("{} does not answer within {ANSWER:?}", self.0.path.display())),
        }
    }

    fn disconnects(&self) -> u64 {
        // There is no connection. What comes nearest is to be taken for dead.
        self.0.hub.losses()
    }
}

impl Drop for SqliteConsumer {
    fn drop(&mut self) {
        // A closed store has handed back everything.
        let _ = self.shared.tell(StoreChange::Unsubscribe(self.subscription.clone()));
        self.hand_back();
    }
}

#[derive(Debug)]
struct SqliteReceipt {
    shared: Arc<StoreHandle>,
    subscription: Arc<SqliteSubscription>,
    tenure: Arc<OwnerRegistration>,
    message: i64,
    settled: bool,
}

impl SqliteReceipt {
    fn tell(&mut self, how: Settle) -> Settled {
        if std::mem::replace(&mut self.settled, true) {
            return Settled::Done;
        }
        self.subscription.held.fetch_sub(1, Ordering::AcqRel);
        let settle = StoreChange::Settle { message: self.message, owner: self.tenure.owner, how };
        if self.tenure.is_over() || self.shared.tell(settle).is_err() { Settled::Lost } else { Settled::Done }
    }
}

#[async_trait]
impl Receipt for SqliteReceipt {
    async fn settle(mut self: Box<Self>, how: Settle) -> Settled {
        self.tell(how)
    }
}

impl Drop for SqliteReceipt {
    fn drop(&mut self) {
        self.tell(Settle::Requeue);
    }
}
