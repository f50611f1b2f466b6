//! One delivery, from its arrival to its settlement.
//!
//! The order is the promise: open, start, run, decide, record, follow, settle. Recording is the commit point; the
//! acknowledgement is last, so a crash between any two steps repeats work from the message and never loses it.
//!
//! Each step has a file: what comes before a start ([`arrive`]), the start itself ([`start`]), the handler ([`call`]),
//! its outcome ([`outcome`]), what that demands ([`follow`]), and what is never run here ([`refuse`]). The decisions are
//! in [`crate::record`].
//!
//! What happens to few deliveries is boxed where it is awaited, so that the future of every delivery stays small.

mod arrive;
mod call;
mod follow;
mod outcome;
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

use futures_util::future::BoxFuture;
use tokio::{sync::Semaphore, time::Instant};

use self::start::Asked;
use super::{
    DeadLetterCounts, Drained, Stages, TaskOptions,
    exclusive::ExclusiveSlots,
    refusal_log::RefusalLog,
    server_calls::{ServerCalls, Unanswered},
    session::Sessions,
};
use crate::{
    app::App,
    broker::{Delivery, Receipt, Settle, Settled},
    clock::Timestamp,
    context::StateMap,
    handler::DynHandler,
    id::TaskName,
    middleware::Middleware,
    security::{Admission, admit},
    sign::Key,
    wire::Envelope,
};

/// How long a delivery of a busy task waits before it asks again, as often as this; then until the session that holds it
/// can have been found gone. A run that ends soon, or a lost reply, is so noticed soon.
const BUSY_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// A task that this worker knows.
pub(super) struct RegisteredTask {
    pub(super) handler: Arc<dyn DynHandler>,
    pub(super) options: TaskOptions,
}

/// Takes deliveries through the protocol.
pub(super) struct TaskProcessor {
    pub(super) app: App,
    pub(super) name: Arc<str>,
    pub(super) tasks: HashMap<TaskName, RegisteredTask>,
    pub(super) middleware: Arc<[Arc<dyn Middleware>]>,
    pub(super) state: Arc<StateMap>,
    /// A delivery is not held longer than this: half of the broker's `consumer_timeout`.
    pub(super) max_hold: Duration,
    pub(super) slots: Arc<Semaphore>,
    pub(super) exclusive: ExclusiveSlots,
    pub(super) sessions: Arc<Sessions>,
    pub(super) calls: Arc<ServerCalls>,
    pub(super) stages: Stages,
    pub(super) tally: Tally,
    pub(super) refusals: RefusalLog,
    pub(super) dead_letter_counts: DeadLetterCounts,
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
pub(super) enum Settlement {
    /// All that it demands is done.
    Ack,
    /// It has not been run: somebody else may.
    HandBack,
    /// Unknown, or not finished in time: say nothing; the broker delivers it again.
    Leave,
}

impl From<Unanswered> for Settlement {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::Leaving => Self::Leave,
            Unanswered::GivenUp => Self::HandBack,
        }
    }
}

/// The message in hand, and the duty to settle it, until a guard has taken over.
pub(super) struct ActiveDelivery {
    pub(super) envelope: Envelope,
    pub(super) receipt: Option<Box<dyn Receipt>>,
    /// What becomes of the task is written so that only who has this key can read it.
    pub(super) outcome_key: Option<Box<Key>>,
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
        let (settlement, receipt) = match self.admit(delivery) {
            Ok(mut active) => (Box::pin(self.work(&mut active)).await, active.receipt),
            Err((instead, receipt)) => (instead.await, Some(receipt)),
        };
        self.settle(settlement, receipt).await;
    }

    /// The task that a delivery asks for; or what is done instead.
    fn admit(
        &self,
        delivery: Delivery,
    ) -> Result<ActiveDelivery, (BoxFuture<'_, Settlement>, Box<dyn Receipt>)> {
        let Delivery { queue, message, receipt, .. } = delivery;
        let app = &self.app.0;
        let instead: BoxFuture<'_, Settlement> =
            match admit(&app.trust, &app.max_sizes, &queue, &message, self.now()) {
                Admission::Accepted(envelope) => {
                    let outcome_key = app.trust.outcome_key(&envelope).map(Box::new);
                    return Ok(ActiveDelivery { envelope, receipt: Some(receipt), outcome_key });
                }
                Admission::Undecryptable(envelope, error) => {
                    Box::pin(async move { self.unreadable_task(&envelope, &error).await })
                }
                Admission::Rejected(envelope, reason, error) => {
                    Box::pin(async move { self.reject(&envelope, &message, reason, &error).await })
                }
                Admission::Deferred(reason, error) => {
                    Box::pin(async move { self.postpone(&queue, &message, reason, &error).await })
                }
                Admission::Refused(reason, error) => {
                    Box::pin(
                        async move { self.dead_letter_unverified(&queue, &message, reason, &error).await },
                    )
                }
            };
        Err((instead, receipt))
    }

    async fn settle(&self, settlement: Settlement, receipt: Option<Box<dyn Receipt>>) {
        let how = match settlement {
            Settlement::Ack => Settle::Ack,
            Settlement::HandBack => Settle::Requeue,
            Settlement::Leave => return,
        };
        if let Some(receipt) = receipt
            && receipt.settle(how).await == Settled::Lost
        {
            tracing::debug!("a delivery could not be settled: it comes again, and its record tells");
        }
        self.tally.settled.fetch_add(1, Ordering::Relaxed);
    }

    /// Completes when what has not started is to go back.
    pub(super) async fn must_hand_back(&self) {
        tokio::select! {
            () = self.stages.reached_drain() => {}
            () = self.calls.given_up() => {}
        }
    }

    /// Everything between opening and settling.
    async fn work(&self, active: &mut ActiveDelivery) -> Settlement {
        let received_at = self.now();
        if let Some(settlement) = self.check_time(&active.envelope).await {
            return settlement;
        }
        let Some(task) = self.tasks.get(&active.envelope.name) else {
            return Box::pin(self.unknown_task(&active.envelope)).await;
        };
        let mut busy = Busy::new(self.max_hold.min(self.sessions.patience()));
        let mut alone = false;
        loop {
            let slot = if alone {
                Box::pin(self.all_slots(&active.envelope)).await
            } else {
                self.slot(&active.envelope, received_at).await
            };
            let slot = match slot {
                Ok(slot) => slot,
                Err(settlement) => return settlement,
            };
            let registered = self.sessions.register(&active.envelope.id);
            let gone_before = self.sessions.gone_count();
            match self.start(&active.envelope, &registered, received_at, alone).await {
                Asked::Settle(settlement) => return settlement,
                Asked::Started(claim) => match self.run(active, task, claim, &registered, slot).await {
                    Some(settlement) => return settlement,
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
            match busy.next_wait(Instant::now()) {
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.sessions.gone_after(gone_before) => {}
                    () = self.must_hand_back() => return Settlement::HandBack,
                },
                None => return Box::pin(self.become_guard(&active.envelope)).await,
            }
        }
    }
}

/// The patience of a delivery whose task is busy, before it becomes a guard: a guard may stay away for longer than anybody
/// looks at the session that holds the task.
struct Busy {
    patience: Duration,
    asked: usize,
    since: Option<Instant>,
}

impl Busy {
    fn new(patience: Duration) -> Self {
        Self { patience, asked: 0, since: None }
    }

    /// How long to wait before asking again, unless it was long enough.
    fn next_wait(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let left = self.patience.saturating_sub(now - since);
        let wait = BUSY_WAITS.get(self.asked).map_or(left, |wait| left.min(*wait));
        self.asked += 1;
        (!wait.is_zero()).then_some(wait)
    }
}

impl std::fmt::Debug for TaskProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskProcessor").field("worker", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_task_is_asked_about_sooner_at_first_and_until_the_patience_ends() {
        let begin = Instant::now();
        let waits = |patience: u64| {
            let mut busy = Busy::new(Duration::from_millis(patience));
            let mut now = begin;
            let next = || busy.next_wait(now).inspect(|wait| now += *wait).map(|wait| wait.as_millis());
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        assert_eq!(waits(25_000), [1_000, 5_000, 19_000]);
        assert_eq!(waits(1_500), [1_000, 500]);
        assert_eq!(waits(300), [300]);
    }
}
