//! The thread that writes the file. It applies the changes of many callers in one transaction.
//!
//! While one transaction is being synced, the next callers queue up, and then all of them share the next transaction.
//! No caller is told of success before the commit. A batch that fails is rolled back and its changes are applied one
//! by one, so that the error of one caller does not affect the others.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use machinist_adapter::{backend::Committed, broker::Settle, id::RecordId};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::{
    clock::CourseChange,
    error::{StoreError, StoreErrorKind, kind_of},
    indexes,
    local_consumer::{ConsumerClaim, LocalConsumer},
    messages,
    own_sessions::{self, OwnSessions},
    owners::{self, FailureDetector, HEARTBEAT_INTERVAL, OwnerRegistration, RegisteredOwner},
    peer_writers::PeerWriters,
    records,
    subscription::{ClaimedDelivery, SqliteSubscription},
    wake_up::WakeSender,
    watch_registry::WatchRegistry,
    write_context::WriteContext,
    write_request::{ChangeOutcome, ChangeRequest, ReadyQueues, StoreChange, WriteRequest},
};

/// Number of changes after which a transaction takes no further request. More would block other processes for too
/// long.
const MAX_CHANGES_PER_TRANSACTION: usize = 512;
/// Maximum number of delayed messages made ready, or of expired rows deleted per table, in one transaction.
const MAX_ROWS_PER_MAINTENANCE: u32 = 500;
/// Interval between two deletions of expired rows.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The same if the last deletion left expired rows.
const SWEEP_CONTINUE_DELAY: Duration = Duration::from_millis(20);

/// Maximum time for which the writer waits, at its end, for the other connections of the store.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// State of the writing thread.
#[derive(Debug)]
pub(crate) struct FileWriter {
    context: WriteContext,
    requests: Receiver<WriteRequest>,
    /// Disconnected when the other connections of this store are closed.
    other_connections: Receiver<Infallible>,
    watches: Arc<WatchRegistry>,
    wake_sender: WakeSender,
    consumers: Vec<LocalConsumer>,
    registered_owner: Option<RegisteredOwner>,
    own_sessions: OwnSessions,
    /// Settlements that failed. Without a retry this process would hold their messages for as long as it lives.
    failed_settlements: Vec<StoreChange>,
    failure_detector: FailureDetector,
    next_heartbeat: Instant,
    next_sweep: Instant,
    peers: PeerWriters,
}

/// Consequences of a transaction, which take effect after its commit.
#[derive(Debug, Default)]
struct TransactionEffects {
    changed_records: Vec<RecordId>,
    ready_queues: Vec<i64>,
    subscribed: Vec<LocalConsumer>,
    unsubscribed: Vec<Arc<SqliteSubscription>>,
    course_change: Option<CourseChange>,
}

/// Requests that are served in one transaction.
#[derive(Debug, Default)]
struct WriteBatch {
    requests: Vec<ChangeRequest>,
    /// Number of changes in all requests.
    size: usize,
    /// `true` if a delayed message may have become due.
    delayed_due: bool,
}

/// Messages that were claimed in one transaction.
#[derive(Debug, Default)]
struct MessageClaims {
    registration: Option<Arc<OwnerRegistration>>,
    by_consumer: Vec<ConsumerClaim>,
}

impl FileWriter {
    pub(crate) fn new(
        context: WriteContext,
        watches: Arc<WatchRegistry>,
        requests: Receiver<WriteRequest>,
        other_connections: Receiver<Infallible>,
    ) -> Self {
        let now = Instant::now();
        let wake_sender = WakeSender::new(&context.path, context.store_id);
        Self {
            context,
            requests,
            other_connections,
            watches,
            wake_sender,
            consumers: Vec::new(),
            registered_owner: None,
            own_sessions: OwnSessions::default(),
            failed_settlements: Vec::new(),
            failure_detector: FailureDetector::default(),
            next_heartbeat: now,
            next_sweep: now + SWEEP_INTERVAL,
            peers: PeerWriters::new(),
        }
    }

    /// Serves requests until the file is closed.
    pub(crate) fn run(mut self) {
        loop {
            let wait = self.next_maintenance().saturating_duration_since(Instant::now());
            let first = match self.requests.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.close(None),
            };
            let (batch, last) = self.gather(first);
            self.run_batch(batch);
            match last {
                Some(WriteRequest::Close(reply)) => return self.close(reply),
                Some(WriteRequest::EndSubscriptions(reply)) => {
                    self.end_subscriptions();
                    let _ = reply.send(());
                }
                _ => {}
            }
            self.run_maintenance();
        }
    }

    fn next_maintenance(&self) -> Instant {
        if self.registered_owner.is_some() {
            self.next_heartbeat.min(self.next_sweep)
        } else {
            self.next_sweep
        }
    }

    /// Takes the queued requests until the batch is full or a request must run after it. Returns that request, too.
    fn gather(&mut self, first: Option<WriteRequest>) -> (WriteBatch, Option<WriteRequest>) {
        let mut batch = WriteBatch::default();
        let mut next = first;
        if next.is_some() {
            // Before the queue is emptied, so that requests that arrive meanwhile join the batch.
            self.peers.yield_to_peers();
        }
        while let Some(request) = next {
            match request {
                WriteRequest::Changes(request) => {
                    batch.size += request.changes.len();
                    batch.requests.push(request);
                }
                WriteRequest::Ready(ReadyQueues { queues, delayed_due }) => {
                    batch.delayed_due |= delayed_due;
                    self.mark_ready(&queues);
                }
                last @ (WriteRequest::EndSubscriptions(_) | WriteRequest::Close(_)) => {
                    return (batch, Some(last));
                }
            }
            let is_full = batch.size >= MAX_CHANGES_PER_TRANSACTION;
            next = if is_full { None } else { self.requests.try_recv().ok() };
        }
        (batch, None)
    }

    /// Applies the whole batch in one transaction or, if that fails, each change in its own.
    fn run_batch(&mut self, batch: WriteBatch) {
        let can_claim = self.consumers.iter().any(LocalConsumer::can_claim);
        if batch.requests.is_empty() && !batch.delayed_due && !can_claim {
            return;
        }
        let done = self.transaction(|writer, effects| {
            if batch.delayed_due {
                writer.promote_delayed(effects)?;
            }
            let outcomes = writer.apply_requests(&batch.requests, effects)?;
            let claims = writer.claim_all(effects)?;
            Ok((outcomes, claims))
        });
        match done {
            Ok((outcomes, claims)) => {
                self.deliver(claims);
                for (request, outcomes) in batch.requests.into_iter().zip(outcomes) {
                    self.reply(request, outcomes.into_iter().map(Ok).collect());
                }
            }
            Err(error) if kind_of(&error) == StoreErrorKind::Busy => {
                let error = StoreError::of(&self.context.path, &error);
                for request in batch.requests {
                    let outcomes = request.changes.iter().map(|_| Err(error.clone())).collect();
                    self.reply(request, outcomes);
                }
            }
            Err(error) => {
                tracing::debug!(file = %self.context.path.display(), %error, "a batch failed; applying each change \
                    in its own transaction");
                for request in batch.requests {
                    let outcomes = request.changes.iter().map(|change| self.apply_single(change)).collect();
                    self.reply(request, outcomes);
                }
            }
        }
        self.peers.note_commit(&self.context.db);
    }

    /// Makes delayed messages ready whose time has come.
    fn promote_delayed(&self, effects: &mut TransactionEffects) -> rusqlite::Result<()> {
        let WriteContext { db, now, .. } = &self.context;
        if messages::promote(db, *now, MAX_ROWS_PER_MAINTENANCE)? {
            effects.ready_queues.extend(self.subscribed_queues());
        }
        Ok(())
    }

    /// Sends the outcomes to the caller. Keeps failed settlements, which have no caller, for a retry.
    fn reply(&mut self, request: ChangeRequest, outcomes: Vec<Result<ChangeOutcome, StoreError>>) {
        if let Some(reply) = request.reply {
            // The caller may have gone. Its changes are made all the same.
            let _ = reply.send(outcomes);
            return;
        }
        for (change, outcome) in request.changes.into_iter().zip(outcomes) {
            if let Err(error) = outcome {
                tracing::warn!(%error, "a settlement failed; it will be retried");
                self.failed_settlements.push(change);
            }
        }
    }

    fn apply_single(&mut self, change: &StoreChange) -> Result<ChangeOutcome, StoreError> {
        self.transaction(|writer, effects| writer.apply_change(change, effects))
            .map_err(|error| StoreError::of(&self.context.path, &error))
    }

    /// Runs `change` in a transaction. Its effects happen only after the commit.
    fn transaction<T>(
        &mut self,
        change: impl FnOnce(&mut Self, &mut TransactionEffects) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let had_owner = self.registered_owner.is_some();
        let mut effects = TransactionEffects::default();
        let result = self.context.run("BEGIN IMMEDIATE").and_then(|()| {
            (self.context.now, effects.course_change) = self.context.clock.stamp(&self.context.db)?;
            let done = change(self, &mut effects)?;
            self.context.run("COMMIT")?;
            Ok(done)
        });
        match &result {
            Ok(_) => self.run_effects(effects),
            Err(_) => {
                if !self.context.db.is_autocommit() {
                    // If even this fails, the connection is beyond repair and every later change reports it.
                    let _ = self.context.run("ROLLBACK");
                }
                self.context.queues.forget();
                if !had_owner {
                    // Its row was rolled back with the transaction.
                    self.registered_owner = None;
                }
            }
        }
        result
    }

    fn run_effects(&mut self, effects: TransactionEffects) {
        if let Some(change) = effects.course_change {
            change.report(&self.context.path);
        }
        for id in &effects.changed_records {
            self.watches.notify(id);
        }
        let include_own = !effects.ready_queues.is_empty() || !effects.subscribed.is_empty();
        for consumer in effects.subscribed {
            self.watches.subscribe(&consumer.queues);
            self.consumers.push(consumer);
        }
        for ended in effects.unsubscribed {
            if let Some(index) = self.consumers.iter().position(|consumer| consumer.belongs_to(&ended)) {
                let consumer = self.consumers.swap_remove(index);
                self.watches.unsubscribe(&consumer.queues);
            }
        }
        self.mark_ready(&effects.ready_queues);
        if include_own || !effects.changed_records.is_empty() {
            // The listener of this process, too: for messages that it cannot claim now, and for the due times of
            // its delayed messages.
            self.wake_sender.send(include_own);
        }
    }

    /// Marks the consumers of these queues: the queues hold ready messages.
    fn mark_ready(&mut self, ready_queues: &[i64]) {
        for consumer in &mut self.consumers {
            consumer.may_have_ready |= consumer.consumes_any(ready_queues);
        }
    }

    /// Ids of the queues that this process consumes from, once for each subscription.
    fn subscribed_queues(&self) -> impl Iterator<Item = i64> {
        self.consumers.iter().flat_map(|consumer| consumer.queues.iter().copied())
    }

    fn apply_requests(
        &mut self,
        requests: &[ChangeRequest],
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<Vec<Vec<ChangeOutcome>>> {
        requests
            .iter()
            .map(|request| request.changes.iter().map(|change| self.apply_change(change, effects)).collect())
            .collect()
    }

    /// Applies one change.
    fn apply_change(
        &mut self,
        change: &StoreChange,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<ChangeOutcome> {
        let WriteContext { db, namespace, store_id, now, queues, .. } = &mut self.context;
        let (namespace, now) = (*namespace, *now);
        match change {
            StoreChange::Publish(publish) => {
                let queue = queues.declare(db, namespace, &publish.target)?;
                messages::publish(db, queue, now, publish)?;
                if effects.ready_queues.last() != Some(&queue) {
                    effects.ready_queues.push(queue);
                }
            }
            StoreChange::Settle { message, owner, settle, used } => {
                if !messages::settle(db, *message, *owner, *settle)? {
                    tracing::debug!(message, owner, how = ?settle, "settled too late: the message was handed to \
                        another consumer");
                } else if *settle == Settle::Requeue {
                    effects.ready_queues.extend(self.subscribed_queues());
                }
                if let Some(used) = used {
                    used.give_back();
                }
            }
            StoreChange::Subscribe(subscription, deliveries) => {
                self.subscribe(subscription, deliveries, effects)?
            }
            StoreChange::Unsubscribe(subscription) => self.unsubscribe(subscription, effects)?,
            StoreChange::Commit(commit) => {
                let committed = records::commit(db, namespace, now, commit)?;
                if matches!(committed, Committed::Done { .. }) {
                    let owner = self.registered_owner.as_ref().map(RegisteredOwner::id);
                    self.own_sessions.note(db, namespace, owner, commit)?;
                    if commit.wake {
                        records::add_wake_up(db, namespace, *store_id, &commit.id)?;
                        effects.changed_records.push(commit.id.clone());
                    }
                }
                return Ok(ChangeOutcome::Committed(committed));
            }
            StoreChange::UpdateIndexes(updates) => {
                updates.iter().try_for_each(|update| indexes::update(db, namespace, update))?
            }
            StoreChange::Probe => {
                db.execute("UPDATE namespaces SET name = name WHERE id = ?1", [namespace])?;
            }
        }
        Ok(ChangeOutcome::Done)
    }

    fn subscribe(
        &mut self,
        subscription: &Arc<SqliteSubscription>,
        deliveries: &UnboundedSender<ClaimedDelivery>,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<()> {
        let owner = self.ensure_owner()?;
        let WriteContext { db, namespace, queues, .. } = &mut self.context;
        let mut ids = Vec::with_capacity(subscription.targets.len());
        for target in &subscription.targets {
            let queue = queues.declare(db, *namespace, target)?;
            owners::count_subscriptions(db, owner, queue, 1)?;
            ids.push(queue);
        }
        effects.subscribed.push(LocalConsumer::new(subscription.clone(), deliveries.clone(), ids));
        Ok(())
    }

    fn unsubscribe(
        &mut self,
        subscription: &Arc<SqliteSubscription>,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<()> {
        let consumer = self.consumers.iter().find(|consumer| consumer.belongs_to(subscription));
        if let (Some(consumer), Some(own)) = (consumer, &self.registered_owner) {
            for &queue in &consumer.queues {
                owners::count_subscriptions(&self.context.db, own.id(), queue, -1)?;
            }
        }
        effects.unsubscribed.push(subscription.clone());
        Ok(())
    }

    /// Returns the id of the owner row that this process claims with. Registers it at first use and after a loss.
    fn ensure_owner(&mut self) -> rusqlite::Result<i64> {
        if let Some(own) = &self.registered_owner {
            return Ok(own.id());
        }
        let own = owners::register(&self.context.db, &self.context.path, self.context.now)?;
        let owner = own.id();
        for queue in self.subscribed_queues() {
            owners::count_subscriptions(&self.context.db, owner, queue, 1)?;
        }
        self.own_sessions.bind(&self.context.db, self.context.namespace, owner)?;
        self.registered_owner = Some(own);
        // Dead owners are looked for at once, so that a restarted worker gets its messages back now.
        self.next_heartbeat = Instant::now();
        Ok(owner)
    }

    /// Claims ready messages for every consumer that has credit.
    fn claim_all(&mut self, effects: &mut TransactionEffects) -> rusqlite::Result<MessageClaims> {
        let mut claims = MessageClaims::default();
        let TransactionEffects { ready_queues, subscribed, unsubscribed, .. } = effects;
        let can_claim = |consumer: &LocalConsumer| {
            consumer.has_capacity()
                && (consumer.may_have_ready || consumer.consumes_any(ready_queues))
                && !unsubscribed.iter().any(|ended| consumer.belongs_to(ended))
        };
        if !self.consumers.iter().chain(subscribed.iter()).any(can_claim) {
            return Ok(claims);
        }
        self.check_registration()?;
        let owner = self.ensure_owner()?;
        claims.registration = self.registered_owner.as_ref().map(|own| own.registration.clone());
        for consumer in self.consumers.iter_mut().chain(subscribed).filter(|consumer| can_claim(consumer)) {
            claims.by_consumer.push(consumer.claim(&self.context.db, owner)?);
        }
        Ok(claims)
    }

    /// Drops the registration if its row was deleted. A process that was stopped for long may have been declared dead,
    /// and messages that it claimed for the old row would never be handed back.
    fn check_registration(&mut self) -> rusqlite::Result<()> {
        if let Some(own) = &self.registered_owner
            && !owners::is_registered(&self.context.db, own.id())?
        {
            self.lose_ownership();
        }
        Ok(())
    }

    fn lose_ownership(&mut self) {
        if let Some(lost) = self.registered_owner.take() {
            tracing::warn!(file = %self.context.path.display(), owner = lost.id(), "this process was declared dead; \
                the messages that it held were handed to others");
            lost.registration.end();
            self.watches.count_ownership_loss();
            self.failed_settlements.clear();
        }
    }

    /// Delivers claimed messages after their claims are committed.
    fn deliver(&mut self, claims: MessageClaims) {
        let Some(registration) = claims.registration else { return };
        for claim in claims.by_consumer {
            let consumer =
                self.consumers.iter_mut().find(|consumer| consumer.belongs_to(&claim.subscription));
            let refused = match consumer {
                Some(consumer) => {
                    consumer.may_have_ready = claim.may_have_more;
                    consumer.deliver(claim.messages, claim.capacity, &registration)
                }
                None => claim.messages,
            };
            for message in refused {
                let owner = registration.owner;
                let requeue =
                    StoreChange::Settle { message: message.id, owner, settle: Settle::Requeue, used: None };
                let outcome = self.apply_single(&requeue);
                self.reply(ChangeRequest { changes: vec![requeue], reply: None }, vec![outcome]);
            }
        }
    }

    /// Runs the periodic work that has become due: the heartbeat, and the deletion of expired rows.
    fn run_maintenance(&mut self) {
        let now = Instant::now();
        if self.registered_owner.is_some() && now >= self.next_heartbeat {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            if let Err(error) = self.heartbeat() {
                tracing::warn!(file = %self.context.path.display(), %error, "cannot renew the claims on messages");
            }
        }
        if now >= self.next_sweep {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let swept = self.transaction(|writer, _| {
            let WriteContext { db, now, .. } = &writer.context;
            records::sweep(db, *now, MAX_ROWS_PER_MAINTENANCE)
        });
        let delay = if matches!(swept, Ok(true)) { SWEEP_CONTINUE_DELAY } else { SWEEP_INTERVAL };
        self.next_sweep = Instant::now() + delay;
        if let Err(error) = swept {
            tracing::warn!(file = %self.context.path.display(), %error, "cannot delete expired rows");
        }
    }

    /// Raises the heartbeat of this process and removes the owners that are dead.
    fn heartbeat(&mut self) -> rusqlite::Result<()> {
        let own = self.registered_owner.as_ref().map(RegisteredOwner::id);
        let dead = self.failure_detector.find_dead(&self.context.db, &self.context.path, own)?;
        let registered = self.transaction(|writer, effects| {
            for dead in &dead {
                tracing::info!(
                    owner = dead.owner,
                    evidence = dead.evidence,
                    "a process is dead; its messages come back"
                );
                if dead.is_certainly_gone() {
                    own_sessions::end(&writer.context.db, dead.owner)?;
                }
                if owners::remove(&writer.context.db, dead.owner)? {
                    effects.ready_queues.extend(writer.subscribed_queues());
                }
            }
            if messages::release_orphans(&writer.context.db)? {
                effects.ready_queues.extend(writer.subscribed_queues());
            }
            own.map_or(Ok(true), |own| owners::raise_heartbeat(&writer.context.db, own))
        })?;
        if !registered {
            self.lose_ownership();
            if !self.consumers.is_empty() {
                self.transaction(|writer, _| writer.ensure_owner())?;
            }
        }
        self.retry_settlements();
        Ok(())
    }

    /// Retries failed settlements, and claims the messages that came back from dead owners.
    fn retry_settlements(&mut self) {
        let changes = std::mem::take(&mut self.failed_settlements);
        let mut batch = WriteBatch { size: changes.len(), ..WriteBatch::default() };
        if !changes.is_empty() {
            batch.requests.push(ChangeRequest { changes, reply: None });
        }
        self.run_batch(batch);
    }

    /// Ends every subscription and hands back the messages that this process holds.
    fn end_subscriptions(&mut self) {
        for consumer in self.consumers.drain(..) {
            self.watches.unsubscribe(&consumer.queues);
        }
        if let Some(own) = self.registered_owner.take() {
            own.registration.end();
            if let Err(error) = self.transaction(|writer, _| owners::remove(&writer.context.db, own.id())) {
                // The lock is released at the end of this block, which tells the others the same.
                tracing::warn!(file = %self.context.path.display(), %error, "cannot hand messages back");
            }
        }
    }

    fn close(mut self, reply: Option<oneshot::Sender<()>>) {
        self.end_subscriptions();
        // The thread that watches the file waits for this.
        self.wake_sender.send(true);
        let Self { context, requests, other_connections, .. } = self;
        // Last: only the last connection to a file moves the log into it. Nothing is ever sent on this channel.
        let _ = other_connections.recv_timeout(CLOSE_TIMEOUT);
        context.close();
        // Callers that still wait are answered by the end of the channel.
        drop(requests);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }
}
