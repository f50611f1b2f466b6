//! Where deliveries come in, and the end of that for as long as nothing can come of them.
//!
//! A worker that is without the backend keeps what it holds for ten minutes: most outages are shorter, and what runs goes
//! on. After that others, who perhaps have the backend, should have the messages.

use std::{convert::Infallible, panic::resume_unwind, sync::Arc};

use tokio::{task::JoinError, time::Instant};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    Health, maintenance,
    processor::TaskProcessor,
    server_calls::{AWAY_TIMEOUT, pause},
};
use machinist_adapter::error::chain;

use crate::broker::{Consume, Consumer, SubscriptionHealth};

/// What takes deliveries, and what it needs for it.
pub(super) struct Intake {
    pub(super) processor: Arc<TaskProcessor>,
    pub(super) what: Consume,
    pub(super) health: Health,
    pub(super) tracker: TaskTracker,
    /// Ends, at once, all that was taken.
    pub(super) cut: CancellationToken,
}

/// An intake at work, in a task of its own: whoever waits for the worker's end may be on a thread that is woken for
/// each delivery otherwise. Dropped, it ends.
pub(super) struct Taking {
    task: AbortOnDropHandle<Box<dyn Consumer>>,
    enough: CancellationToken,
    closed: CancellationToken,
}

impl Taking {
    /// Completes when nothing comes any more, because the broker was closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Takes nothing more; the consumer, unless its runtime has ended.
    pub(super) async fn end(self) -> Option<Box<dyn Consumer>> {
        self.enough.cancel();
        match self.task.await.map_err(JoinError::try_into_panic) {
            Ok(consumer) => Some(consumer),
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_cancelled)) => None,
        }
    }
}

impl Intake {
    /// Begins to take deliveries.
    pub(super) fn begin(self, mut consumer: Box<dyn Consumer>) -> Taking {
        let (enough, closed) = (CancellationToken::new(), CancellationToken::new());
        let (told, tells) = (enough.clone(), closed.clone().drop_guard());
        let task = tokio::spawn(async move {
            let _tells = tells;
            tokio::select! {
                biased;
                () = told.cancelled() => {}
                () = self.keep(&mut consumer) => {}
            }
            consumer
        });
        Taking { task: AbortOnDropHandle::new(task), enough, closed }
    }

    /// Takes deliveries for ever, from one subscription after the other. Ends only when the broker was closed.
    async fn keep(&self, consumer: &mut Box<dyn Consumer>) {
        let calls = &self.processor.worker.calls;
        loop {
            self.health.subscribed(consumer.health().into());
            let maintenance = maintenance::run(Arc::clone(&self.processor.worker), self.what.queues.clone());
            let maintenance = AbortOnDropHandle::new(tokio::spawn(maintenance));
            let health = consumer.health();
            tokio::select! {
                () = self.take(consumer.as_mut()) => return,
                () = calls.backend_is_away_for_long() => {}
                never = self.cancel_when_cut_off(health) => match never {},
            }
            tracing::error!(
                running = self.processor.worker.sessions.running(),
                "the backend has been away for {AWAY_TIMEOUT:?}: cancelling what runs, handing back what is held, and taking \
                 nothing until it answers. Outcomes that are not recorded are kept"
            );
            self.health.withdrawn();
            drop(maintenance);
            // First, or what is handed back comes here again at once.
            consumer.stop().await;
            self.processor.worker.sessions.cut_off_all();
            calls.give_up(true);
            calls.backend_is_there().await;
            self.processor.worker.sessions.alive().await;
            calls.give_up(false);
            self.health.subscribing();
            *consumer = self.subscribe().await;
            tracing::info!(queues = ?self.what.queues, "subscribed again");
        }
    }

    /// Cancels what runs where neither server vouches for it: the lease is over, and since it was renewed for the last
    /// time the connection was lost that held the messages. Others may then run them. One of the two alone is no reason.
    async fn cancel_when_cut_off(&self, health: Box<dyn SubscriptionHealth>) -> Infallible {
        let sessions = &self.processor.worker.sessions;
        let mut vouched = sessions.valid_until();
        let (mut disconnects, mut seen) = (health.disconnects(), health.disconnects());
        loop {
            tokio::time::sleep(sessions.lease().check_interval()).await;
            let (until, lost) = (sessions.valid_until(), health.disconnects());
            let before = std::mem::replace(&mut seen, lost);
            if until != vouched {
                // What was lost since the last look may have been lost after the renewal.
                (vouched, disconnects) = (until, before);
            } else if lost != disconnects
                && Instant::now() >= until
                && self.processor.worker.calls.is_backend_away()
            {
                if sessions.running() > 0 {
                    tracing::error!(
                        running = sessions.running(),
                        "the backend and the broker are away, and the lease is over: others may run what runs here, so it \
                         is cancelled"
                    );
                    sessions.cut_off_all();
                }
                disconnects = lost;
            }
        }
    }

    /// Subscribes, however long it takes.
    async fn subscribe(&self) -> Box<dyn Consumer> {
        let mut tries = 0;
        loop {
            match self.processor.worker.app.broker().consume(self.what.clone()).await {
                Ok(consumer) => return consumer,
                Err(error) => {
                    let error = chain(&error).join(": ");
                    tracing::error!(
                        error,
                        tries,
                        "the worker could not subscribe to its queues; trying again"
                    );
                }
            }
            pause(tries).await;
            tries += 1;
        }
    }

    /// Takes deliveries, each into a task of its own. Ends only when the broker was closed.
    async fn take(&self, consumer: &mut dyn Consumer) {
        loop {
            // While the backend is away nothing is taken: what is held stays unacknowledged, and prefetch bounds it.
            self.processor.worker.calls.backend_is_there().await;
            let Some(delivery) = consumer.next().await else { return };
            // On the heap at once: a spawned future is moved several times.
            let (cut, process) = (self.cut.clone(), Box::pin(Arc::clone(&self.processor).process(delivery)));
            self.tracker.spawn(async move {
                tokio::select! {
                    // First: a slot that is free because its holder was cut off is not for the next.
                    biased;
                    () = cut.cancelled() => {}
                    () = process => {}
                }
            });
        }
    }
}
