//! PostgreSQL as a broker.

use std::{any::Any, sync::Arc};

use async_trait::async_trait;
use machinist_adapter::{
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Publish, PublishError, QueueDepth,
        SideQueue, Target,
    },
    diagnose::{Diagnose, Finding},
    id::QueueName,
};
use tokio::sync::oneshot;

use crate::{
    consumer::PostgresConsumer, diagnose, error::PostgresError, messages, publisher::AwaitedPublish,
    store::Store,
};

/// Maximum size of a message, in bytes. PostgreSQL stores values of up to 1 GiB, and needs several copies of them.
const MAX_MESSAGE_BYTES: usize = 128 << 20;

/// Broker in a PostgreSQL. Created by [`PostgresStore::broker`](crate::PostgresStore::broker).
///
/// Messages are delivered by priority, then by due time, then in the order in which they were published. A queue is declared
/// at its first use and never goes. The documentation of the crate explains how messages are claimed and come back.
#[derive(Debug, Clone)]
pub struct PostgresBroker {
    pub(crate) store: Arc<Store>,
}

impl PostgresBroker {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    async fn subscribe(&self, targets: Vec<Target>, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        if self.store.is_broker_closed() {
            return Err(PostgresError::closed().into());
        }
        self.store.listen();
        self.store.declare(targets.clone()).await?;
        Ok(Box::new(PostgresConsumer::subscribe(Arc::clone(&self.store), targets, prefetch).await?))
    }
}

#[async_trait]
impl Diagnose for PostgresBroker {
    fn location(&self) -> String {
        self.store.location.clone()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        diagnose::examine(&self.store).await
    }
}

#[async_trait]
impl Broker for PostgresBroker {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { durable: true, shared: true, priority: true, max_delay: None }
    }

    fn adapter(&self) -> Option<&dyn Any> {
        Some(self)
    }

    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        let closed = || PublishError::Unavailable(Box::new(PostgresError::closed()));
        let mut answers = Vec::with_capacity(batch.len());
        for publish in batch {
            let size = publish.message.size();
            answers.push(if self.store.is_broker_closed() {
                Err(closed())
            } else if size > MAX_MESSAGE_BYTES {
                Err(PublishError::TooLarge { size, limit: MAX_MESSAGE_BYTES })
            } else if let Err(error) = publish.message.check_depth() {
                Err(error)
            } else {
                let (caller, told) = oneshot::channel();
                self.store.publish(AwaitedPublish { publish, caller }).map(|()| told).map_err(|_| closed())
            });
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(told) => told
                    .await
                    .unwrap_or_else(|_| Err(PublishError::Unknown(Box::new(PostgresError::closed())))),
                Err(error) => Err(error),
            });
        }
        outcomes
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
            // A delayed message waits in its own queue, which is never deleted.
            SideQueue::Undelivered => Ok(None),
        }
    }

    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        let queues = queues.to_vec();
        Ok(self.store.ask(|link| async move { messages::depth(&link, &queues).await }).await?)
    }

    async fn prepare(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        let targets = queues.iter().cloned().map(Target::Queue).collect();
        Ok(self.store.declare(targets).await?)
    }

    async fn close(&self) {
        self.store.close_broker().await;
    }
}
