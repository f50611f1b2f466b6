//! Publishes of many callers in one statement.

use std::{
    collections::{BTreeSet, HashSet},
    mem,
    sync::Arc,
};

use machinist_adapter::broker::{Publish, PublishError, Target};
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::{ErrorKind, PostgresError},
    link::Link,
    messages::{self, INSERT, MessageColumns},
    notifier::Notifier,
    wake_up::queue_number,
};

/// Maximum number of messages in one statement.
const MAX_MESSAGES: usize = 1_000;
/// Approximate maximum size of a statement, in bytes.
const MAX_BYTES: usize = 8 << 20;

/// Message with the caller that waits for its confirm.
pub(crate) struct AwaitedPublish {
    pub(crate) publish: Publish,
    pub(crate) caller: oneshot::Sender<Result<(), PublishError>>,
}

/// Publishes what arrives, until nobody can send any more.
pub(crate) async fn work(
    link: Arc<Link>,
    notifier: Notifier,
    mut queue: mpsc::UnboundedReceiver<AwaitedPublish>,
) {
    let mut publisher = BatchPublisher { link, notifier, declared: HashSet::new() };
    let mut arrived = Vec::new();
    while queue.recv_many(&mut arrived, MAX_MESSAGES).await > 0 {
        while !arrived.is_empty() {
            let later = arrived.split_off(together(&arrived));
            let batch = mem::replace(&mut arrived, later);
            Box::pin(publisher.publish(batch)).await;
        }
    }
}

/// Returns the number of messages, from the first, that fit into one statement; at least one.
fn together(queued: &[AwaitedPublish]) -> usize {
    let mut bytes = 0;
    let fits = queued.iter().take_while(|queued| {
        bytes += queued.publish.message.size();
        bytes <= MAX_BYTES
    });
    fits.count().max(1)
}

struct BatchPublisher {
    link: Arc<Link>,
    notifier: Notifier,
    /// Queues that this process has declared. They are never deleted.
    declared: HashSet<Target>,
}

impl BatchPublisher {
    async fn publish(&mut self, batch: Vec<AwaitedPublish>) {
        let (publishes, callers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|queued| (queued.publish, queued.caller)).unzip();
        let outcomes: Vec<Result<(), PublishError>> = match self.insert(&publishes).await {
            Ok(()) => publishes.iter().map(|_| Ok(())).collect(),
            // One of them cannot be stored, and the server does not say which one. Nothing was stored.
            Err(error) if error.kind() == ErrorKind::Record && publishes.len() > 1 => {
                let mut apart = Vec::with_capacity(publishes.len());
                for publish in &publishes {
                    let alone = self.insert(std::slice::from_ref(publish)).await;
                    apart.push(alone.map_err(PostgresError::into_publish));
                }
                apart
            }
            Err(error) => publishes.iter().map(|_| Err(error.clone().into_publish())).collect(),
        };
        let stored = publishes.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let (delayed, ready): (Vec<&Publish>, Vec<&Publish>) =
            stored.map(|(publish, _)| publish).partition(|publish| !publish.delay.is_zero());
        let ready: BTreeSet<u64> = ready.iter().map(|publish| queue_number(&publish.target)).collect();
        self.notifier.queues_changed(ready, !delayed.is_empty());
        for (caller, outcome) in callers.into_iter().zip(outcomes) {
            // A caller that has stopped waiting accepts either outcome.
            let _ = caller.send(outcome);
        }
    }

    /// Stores messages in one transaction. `Ok` means that it is committed.
    async fn insert(&mut self, publishes: &[Publish]) -> Result<(), PostgresError> {
        let new: HashSet<&Target> = publishes.iter().map(|publish| &publish.target).collect();
        let new: Vec<Target> =
            new.into_iter().filter(|target| !self.declared.contains(target)).cloned().collect();
        if !new.is_empty() {
            messages::declare(&self.link, &new).await?;
            self.declared.extend(new);
        }
        let columns = MessageColumns::new(publishes);
        let bodies = columns.bodies();
        self.link.query(INSERT, &columns.params(&bodies)).await.map(drop)
    }
}
