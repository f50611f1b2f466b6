//! The task that claims messages for the consumers of this process, settles them, and keeps the lease.
//!
//! It does one thing after the other, so that an answer that was lost cannot overtake what follows: nothing is claimed before
//! the settlements are answered, and at each renewal what the server holds for this process and this process does not know is
//! handed back.

mod claim;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use machinist_adapter::broker::{Settle, Target};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    claim_request::ClaimRequest,
    error::{ErrorKind, PostgresError},
    holders,
    link::Link,
    messages,
    notifier::Notifier,
    settlements::Settlements,
    subscription::{HeldDelivery, LEASE, MessageHolder, Subscription},
    wake_up::{StoreWakeUp, queue_number},
};

/// Time between two renewals of the lease.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(4);
/// Time after which a consumer looks into its queues although nobody has woken it.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Waits before another try after an error: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// Maximum number of requests that are taken at once.
const MAX_REQUESTS: usize = 1_024;
/// Maximum number of delayed messages that are made ready in one statement.
const MAX_PROMOTED: i32 = 1_000;
/// Number of deliveries after which a message becomes a dead letter: the last resort against one that ends its process before
/// any code has counted it.
pub(crate) const MAX_DELIVERIES: i32 = 1_000;

/// Consumer of this process.
struct ClaimingConsumer {
    subscription: Arc<Subscription>,
    deliveries: mpsc::UnboundedSender<HeldDelivery>,
    /// Numbers of its queues.
    numbers: Vec<u64>,
    /// `true` if the queues may hold messages that can be claimed.
    may_have_ready: bool,
    /// Index of the queue that the next claim starts with. It rotates, so that no queue starves.
    first: usize,
}

/// The task's state.
pub(crate) struct Claims {
    link: Arc<Link>,
    notifier: Notifier,
    losses: Arc<AtomicU64>,
    consumers: Vec<ClaimingConsumer>,
    holder: Option<Arc<MessageHolder>>,
    /// Messages that this process has claimed and not settled.
    held: HashSet<i64>,
    settlements: Settlements,
    /// Queues of messages that were handed back.
    handed_back: BTreeSet<u64>,
    renew_at: Instant,
    poll_at: Instant,
    /// Time at which the next delayed message is due; `None` if there is none.
    due_at: Option<Instant>,
    /// `true` if `due_at` may be wrong.
    asks_due: bool,
    retry_at: Option<Instant>,
    wait: Duration,
    waiting: ClaimCallers,
}

/// Way to somebody who waits for the answer of the server.
type ClaimCaller = oneshot::Sender<Result<(), PostgresError>>;

/// Callers that wait for the end of a step.
#[derive(Default)]
struct ClaimCallers {
    subscribed: Vec<(Arc<Subscription>, ClaimCaller)>,
    synced: Vec<oneshot::Sender<()>>,
    checks: Vec<ClaimCaller>,
    ends: Vec<oneshot::Sender<()>>,
}

impl Claims {
    pub(crate) fn new(link: Arc<Link>, notifier: Notifier, losses: Arc<AtomicU64>) -> Self {
        let now = Instant::now();
        Self {
            link,
            notifier,
            losses,
            consumers: Vec::new(),
            holder: None,
            held: HashSet::new(),
            settlements: Settlements::default(),
            handed_back: BTreeSet::new(),
            renew_at: now,
            poll_at: now,
            due_at: None,
            asks_due: true,
            retry_at: None,
            wait: WAITS.0,
            waiting: ClaimCallers::default(),
        }
    }

    /// Carries out requests for as long as somebody can send them.
    pub(crate) async fn work(mut self, mut requests: mpsc::UnboundedReceiver<ClaimRequest>) {
        let mut arrived = Vec::new();
        loop {
            tokio::select! {
                count = requests.recv_many(&mut arrived, MAX_REQUESTS) => if count == 0 { return },
                () = sleep_until(self.next_deadline()) => {}
            }
            arrived.drain(..).for_each(|request| self.take(request));
            self.step().await;
        }
    }

    /// Returns when there is something to do although no request arrives.
    fn next_deadline(&self) -> Instant {
        if let Some(retry_at) = self.retry_at {
            return retry_at;
        }
        if !self.settlements.is_empty() {
            return Instant::now();
        }
        let far = Instant::now() + Duration::from_secs(3600);
        if self.consumers.is_empty() && self.holder.is_none() {
            return far;
        }
        let claims = self.consumers.iter().any(ClaimingConsumer::has_capacity);
        let poll = if claims { self.poll_at } else { far };
        let due = self.due_at.filter(|_| claims).unwrap_or(far);
        self.renew_at.min(poll).min(due)
    }

    fn take(&mut self, request: ClaimRequest) {
        match request {
            ClaimRequest::Subscribe(subscription, deliveries, caller) => {
                let numbers = subscription.targets.iter().map(queue_number).collect();
                let consumer = Arc::clone(&subscription);
                self.consumers.push(ClaimingConsumer {
                    subscription: consumer,
                    deliveries,
                    numbers,
                    may_have_ready: true,
                    first: 0,
                });
                self.waiting.subscribed.push((subscription, caller));
                self.register_soon();
            }
            ClaimRequest::Unsubscribe(subscription) => {
                self.consumers.retain(|consumer| !Arc::ptr_eq(&consumer.subscription, &subscription));
                self.register_soon();
            }
            ClaimRequest::Settle { subscription, pauses, holder, message, queue, how } => {
                if self.holder.as_ref().is_some_and(|current| current.id == holder.id) {
                    self.held.remove(&message);
                    if how == Settle::Requeue {
                        self.handed_back.insert(queue);
                    }
                    self.settlements.add(&holder, message, how);
                }
                subscription.settled(pauses);
            }
            ClaimRequest::Sync(caller) => self.waiting.synced.push(caller),
            ClaimRequest::Check(caller) => self.waiting.checks.push(caller),
            ClaimRequest::WakeUp(wake_up) => self.wake(&wake_up),
            ClaimRequest::End(caller) => {
                self.consumers.clear();
                self.waiting.ends.push(caller);
            }
        }
    }

    /// Lets the next step write the list of consumed queues.
    fn register_soon(&mut self) {
        self.renew_at = Instant::now();
        self.retry_at = None;
    }

    fn wake(&mut self, wake_up: &StoreWakeUp) {
        self.asks_due |= wake_up.delays || wake_up.everything;
        for consumer in &mut self.consumers {
            let is_meant = consumer.numbers.iter().any(|number| wake_up.queues.contains(number));
            consumer.may_have_ready |= wake_up.everything || is_meant;
        }
    }

    /// Does what there is to do, and answers those who wait for it.
    async fn step(&mut self) {
        if !self.waiting.ends.is_empty() {
            self.end().await;
        }
        let is_asked = !self.waiting.checks.is_empty() || !self.waiting.subscribed.is_empty();
        if self.retry_at.is_some_and(|at| Instant::now() < at) && !is_asked {
            self.answer(&Ok(()));
            return;
        }
        self.lose_what_is_over();
        let mut outcome = Box::pin(self.try_step()).await;
        if is_asked
            && let Err(error) = &outcome
            && matches!(error.kind(), ErrorKind::Lost | ErrorKind::Away)
        {
            if error.kind() == ErrorKind::Away {
                tokio::time::sleep(WAITS.0 * 4).await;
            }
            // That the connection was lost long ago is only seen by using it.
            outcome = Box::pin(self.try_step()).await;
        }
        match &outcome {
            Ok(()) => {
                self.retry_at = None;
                self.wait = WAITS.0;
            }
            Err(error) => {
                tracing::debug!(%error, "messages cannot be claimed or settled now; trying again");
                self.retry_at = Some(Instant::now() + self.wait.mul_f64(rand::random_range(0.5..1.0)));
                self.wait = (self.wait * 2).min(WAITS.1);
            }
        }
        self.answer(&outcome);
    }

    fn answer(&mut self, outcome: &Result<(), PostgresError>) {
        let ClaimCallers { subscribed, synced, checks, ends } = std::mem::take(&mut self.waiting);
        for (subscription, caller) in subscribed {
            let has_failed = outcome.is_err();
            // A caller that has stopped waiting drops its consumer, which ends the subscription.
            if caller.send(outcome.clone()).is_err() || has_failed {
                self.consumers.retain(|consumer| !Arc::ptr_eq(&consumer.subscription, &subscription));
            }
        }
        // A caller that has stopped waiting needs no answer.
        for caller in checks {
            let _ = caller.send(outcome.clone());
        }
        for caller in synced.into_iter().chain(ends) {
            let _ = caller.send(());
        }
    }

    /// Forgets the holder if its lease is over: its messages may be in other hands.
    fn lose_what_is_over(&mut self) {
        if self.holder.as_ref().is_some_and(|holder| holder.is_lost()) {
            self.lose("its lease has expired");
        }
    }

    fn lose(&mut self, why: &str) {
        let Some(holder) = self.holder.take() else { return };
        if holder.lose() {
            self.losses.fetch_add(1, Ordering::Relaxed);
            if !self.held.is_empty() {
                tracing::warn!(
                    messages = self.held.len(),
                    why,
                    "the claims of this process are lost; its messages come back"
                );
            }
        }
        self.held.clear();
        self.renew_at = Instant::now();
    }

    async fn try_step(&mut self) -> Result<(), PostgresError> {
        if !self.settlements.is_empty() {
            self.settlements.send(&self.link).await?;
        }
        if !self.handed_back.is_empty() {
            let queues = std::mem::take(&mut self.handed_back);
            self.wake(&StoreWakeUp { queues: queues.clone(), ..StoreWakeUp::default() });
            self.notifier.others_queues_changed(queues, false);
        }
        if !self.waiting.checks.is_empty() {
            self.link.query("SELECT 1", &[]).await?;
        }
        if self.consumers.is_empty() && self.held.is_empty() {
            return self.leave().await;
        }
        if self.holder.is_none() || Instant::now() >= self.renew_at {
            self.keep_lease().await?;
        }
        if Instant::now() >= self.poll_at {
            self.poll_at = Instant::now() + POLL_INTERVAL.mul_f64(rand::random_range(0.8..1.2));
            self.asks_due = true;
            self.consumers.iter_mut().for_each(|consumer| consumer.may_have_ready = true);
        }
        self.claim_for_all().await?;
        if self.asks_due || self.due_at.is_some_and(|at| at <= Instant::now()) {
            self.promote().await?;
            self.claim_for_all().await?;
        }
        Ok(())
    }

    /// Registers this process as a holder, or renews its lease, and hands back what nobody holds.
    async fn keep_lease(&mut self) -> Result<(), PostgresError> {
        let queues =
            holders::queues(self.consumers.iter().flat_map(|consumer| &consumer.subscription.targets));
        let asked = Instant::now();
        let renewed = match &self.holder {
            Some(holder) => holders::renew(&self.link, holder.id, LEASE, &queues).await?,
            None => false,
        };
        match &self.holder {
            Some(holder) if renewed => {
                holder.renewed(asked);
                // Of a claim whose answer was lost nobody else knows.
                let known: Vec<i64> = self.held.iter().copied().collect();
                let unknown = holders::release_unknown(&self.link, holder.id, &known).await?;
                self.found(&unknown);
            }
            found => {
                if found.is_some() {
                    self.lose("another process has found its lease expired");
                }
                let id = holders::register(&self.link, LEASE, &queues).await?;
                self.holder = Some(Arc::new(MessageHolder::new(id, asked)));
                self.consumers.iter_mut().for_each(|consumer| consumer.may_have_ready = true);
            }
        }
        let orphans = holders::reap(&self.link).await?;
        self.found(&orphans);
        self.renew_at = asked + RENEWAL_INTERVAL;
        Ok(())
    }

    /// Wakes the consumers of messages that have come back.
    fn found(&mut self, targets: &[Target]) {
        if targets.is_empty() {
            return;
        }
        let queues: BTreeSet<u64> = targets.iter().map(queue_number).collect();
        self.wake(&StoreWakeUp { queues: queues.clone(), ..StoreWakeUp::default() });
        self.notifier.others_queues_changed(queues, false);
    }

    /// Makes delayed messages ready that are due.
    async fn promote(&mut self) -> Result<(), PostgresError> {
        loop {
            let due = messages::next_due(&self.link).await?;
            self.asks_due = false;
            self.due_at = due.map(|due| Instant::now() + due);
            if due != Some(Duration::ZERO) {
                return Ok(());
            }
            let promoted = messages::promote(&self.link, MAX_PROMOTED).await?;
            if promoted.is_empty() {
                // Another process makes them ready at this moment.
                self.due_at = Some(Instant::now() + Duration::from_millis(5));
                self.consumers.iter_mut().for_each(|consumer| consumer.may_have_ready = true);
                return Ok(());
            }
            self.found(&promoted);
        }
    }

    /// Takes the holder out of the table: nobody consumes, and nothing is held.
    async fn leave(&mut self) -> Result<(), PostgresError> {
        if let Some(holder) = &self.holder {
            let targets = holders::leave(&self.link, holder.id).await?;
            self.holder = None;
            self.found(&targets);
        }
        Ok(())
    }

    /// Hands back everything. If the server does not answer, the lease ends by itself.
    async fn end(&mut self) {
        if let Err(error) = self.settlements.send(&self.link).await {
            tracing::debug!(%error, "settlements did not reach the server; the messages come back");
        }
        let Some(holder) = self.holder.take() else { return };
        holder.lose();
        self.losses.fetch_add(1, Ordering::Relaxed);
        self.held.clear();
        match holders::leave(&self.link, holder.id).await {
            Ok(targets) => self.found(&targets),
            Err(error) => {
                tracing::debug!(%error, "messages could not be handed back; they come back with the lease")
            }
        }
    }
}
