//! One delivery, from its arrival to its settlement.
//!
//! The order is the promise: open, start, run, decide, record, follow, settle. Recording is the commit point; the
//! acknowledgement is last, so a crash between any two steps repeats work from the message and never loses it.
//!
//! Each step has a file: what comes before a start ([`arrive`]), the start itself ([`start`]), the handler ([`call`]),
//! its outcome ([`record`]), what that demands ([`follow`]), and what is never run here ([`refuse`]). The decisions are
//! in [`crate::record`].
//!
//! What happens to few deliveries is boxed where it is awaited, so that the future of every delivery stays small.

mod arrive;
mod call;
mod follow;
mod record;
mod refuse;
mod start;
mod undelivered;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;

use self::start::Asked;
use super::{
    DeadLetters, Drained, Stages, TaskOptions,
    alone::Alone,
    open::{Opened, Refusals, open},
    session::Sessions,
    steady::{Leaving, Steady},
};
use crate::{
    app::App,
    broker::{Delivery, Receipt, Settle, Settled},
    clock::Timestamp,
    context::StateMap,
    envelope::Envelope,
    handler::DynHandler,
    id::TaskName,
    middleware::Middleware,
};

/// After these waits a delivery of a busy task becomes a guard, but not before the session that holds it can have been
/// found gone: a guard may stay away for longer than anybody looks.
const BUSY_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// A task that this worker knows.
pub(super) struct Registration {
    pub(super) handler: Arc<dyn DynHandler>,
    pub(super) options: TaskOptions,
}

/// Takes deliveries through the protocol.
pub(super) struct TaskProcessor {
    pub(super) app: App,
    pub(super) name: String,
    pub(super) tasks: HashMap<TaskName, Registration>,
    pub(super) middleware: Arc<[Arc<dyn Middleware>]>,
    pub(super) state: Arc<StateMap>,
    /// A delivery is not held longer than this: half of the broker's `consumer_timeout`.
    pub(super) longest_hold: Duration,
    pub(super) slots: Arc<Semaphore>,
    pub(super) alone: Alone,
    pub(super) sessions: Arc<Sessions>,
    pub(super) steady: Arc<Steady>,
    pub(super) stages: Stages,
    pub(super) tally: Tally,
    pub(super) refusals: Refusals,
    pub(super) dead_letters: DeadLetters,
}

/// What happened to deliveries, for the end of the worker.
#[derive(Debug, Default)]
pub(super) struct Tally {
    arrived: AtomicU64,
    settled: AtomicU64,
    handed_back: AtomicU64,
}

/// How a delivery is to be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// All that it demands is done.
    Ack,
    /// It has not been run: somebody else may.
    HandBack,
    /// Unknown, or not finished in time: say nothing; the broker delivers it again.
    Leave,
}

impl From<Leaving> for Ending {
    fn from(Leaving: Leaving) -> Self {
        Self::Leave
    }
}

/// The message in hand, and the duty to settle it, until a guard has taken over.
pub(super) struct Holding {
    pub(super) envelope: Envelope,
    pub(super) receipt: Option<Box<dyn Receipt>>,
}

impl TaskProcessor {
    pub(super) fn worker_name(&self) -> &str {
        &self.name
    }

    pub(super) fn task_names(&self) -> Vec<&TaskName> {
        let mut names: Vec<&TaskName> = self.tasks.keys().collect();
        names.sort_unstable();
        names
    }

    pub(super) fn now(&self) -> Timestamp {
        self.app.clock().now()
    }

    pub(super) fn drained(&self) -> Drained {
        let Tally { arrived, settled, handed_back } = &self.tally;
        Drained {
            handed_back: handed_back.load(Ordering::Relaxed),
            refused: self.refusals.count(),
            unfinished: arrived.load(Ordering::Relaxed).saturating_sub(settled.load(Ordering::Relaxed)),
        }
    }

    /// Takes one delivery from its arrival to its settlement.
    pub(super) async fn process(self: Arc<Self>, delivery: Delivery) {
        self.tally.arrived.fetch_add(1, Ordering::Relaxed);
        let Delivery { queue, message, receipt, .. } = delivery;
        let app = &self.app.0;
        let (ending, receipt) = match open(&app.trust, &app.limits, &queue, &message, self.now()) {
            Opened::Task(envelope) => {
                let mut holding = Holding { envelope, receipt: Some(receipt) };
                let ending = Box::pin(self.work(&mut holding)).await;
                (ending, holding.receipt)
            }
            Opened::Rejected(envelope, reason, error) => {
                let ending = Box::pin(self.reject(&envelope, &message, reason, &error)).await;
                (ending, Some(receipt))
            }
            Opened::NotYet(reason, error) => {
                (Box::pin(self.postpone(&queue, &message, reason, &error)).await, Some(receipt))
            }
            Opened::Dead(reason, error) => {
                (Box::pin(self.bury_foreign(&queue, &message, reason, &error)).await, Some(receipt))
            }
        };
        self.settle(ending, receipt).await;
    }

    async fn settle(&self, ending: Ending, receipt: Option<Box<dyn Receipt>>) {
        let how = match ending {
            Ending::Ack => Settle::Ack,
            Ending::HandBack => Settle::Requeue,
            Ending::Leave => return,
        };
        if let Some(receipt) = receipt
            && receipt.settle(how).await == Settled::Lost
        {
            tracing::debug!("a delivery could not be settled: it comes again, and its record tells");
        }
        self.tally.settled.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything between opening and settling.
    async fn work(&self, holding: &mut Holding) -> Ending {
        let received_at = self.now();
        if let Some(ending) = self.too_early_or_too_late(&holding.envelope).await {
            return ending;
        }
        let Some(task) = self.tasks.get(&holding.envelope.name) else {
            return Box::pin(self.unknown_task(&holding.envelope)).await;
        };
        let more = self.sessions.verdict().saturating_sub(BUSY_WAITS.iter().sum());
        let waits = BUSY_WAITS.into_iter().chain((!more.is_zero()).then_some(more));
        let mut busy_waits = waits.filter(|wait| *wait < self.longest_hold);
        let mut alone = false;
        loop {
            let slot = if alone {
                Box::pin(self.all_slots(&holding.envelope)).await
            } else {
                self.slot(&holding.envelope, received_at).await
            };
            let slot = match slot {
                Ok(slot) => slot,
                Err(ending) => return ending,
            };
            let registered = self.sessions.register(&holding.envelope.id);
            match self.start(&holding.envelope, &registered, received_at, alone).await {
                Asked::Settle(ending) => return ending,
                Asked::Started(held) => match self.run(holding, task, held, &registered, slot).await {
                    Some(ending) => return ending,
                    // Another run holds the attempt now: treat the delivery as if it had just arrived.
                    None => continue,
                },
                Asked::Suspect => {
                    alone = true;
                    continue;
                }
                Asked::Busy => drop((slot, registered)),
            }
            alone = false;
            match busy_waits.next() {
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.stages.reached_drain() => return Ending::HandBack,
                },
                None => return Box::pin(self.become_guard(&holding.envelope)).await,
            }
        }
    }
}

impl std::fmt::Debug for TaskProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskProcessor").field("worker", &self.name).finish_non_exhaustive()
    }
}
