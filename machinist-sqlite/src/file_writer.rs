//! The thread that writes the file, many callers' changes in one transaction.
//!
//! While one transaction is being synced, the next callers queue up; then all of them share one. Nobody is told of
//! success before the commit. A batch that fails is rolled back and its changes are made one by one, so that one
//! caller's trouble is not its neighbours'.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use machinist_core::{
    backend::{Committed, Renewed},
    broker::Settle,
    id::TaskId,
};
use rusqlite::Connection;
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::{
    clock::HostClock,
    error::{StoreError, StoreErrorKind, kind_of},
    file_watcher::WatchRegistry,
    local_consumer::LocalConsumer,
    messages::{self, ClaimedMessage, QueueIds},
    owners::{self, FailureDetector, HEARTBEAT_INTERVAL, OwnerLock, OwnerRegistration},
    peer_writers::PeerWriters,
    records, sessions,
    wake_up::WakeSender,
    write_request::{
        ChangeOutcome, ClaimedDelivery, ReadyQueues, SqliteSubscription, StoreChange, WriteRequest,
    },
};

/// Changes in one transaction, about; more would keep other processes waiting for too long.
const MAX_CHANGES_PER_TRANSACTION: usize = 512;
/// Delayed messages made ready, and expired rows deleted, in one transaction.
const MAX_ROWS_PER_MAINTENANCE: u32 = 500;
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

type ChangeReply = Option<oneshot::Sender<Vec<Result<ChangeOutcome, StoreError>>>>;

/// The state of the writing thread.
#[derive(Debug)]
pub(crate) struct FileWriter {
    context: WriteContext,
    requests: Receiver<WriteRequest>,
    watches: Arc<WatchRegistry>,
    wake_sender: WakeSender,
    consumers: Vec<LocalConsumer>,
    ownership: Option<RegisteredOwner>,
    /// Settlements that failed. Unsettled, their messages would lie with this process for as long as it lives.
    failed_settlements: Vec<StoreChange>,
    failure_detector: FailureDetector,
    next_heartbeat: Instant,
    next_sweep: Instant,
    peers: PeerWriters,
}

/// What every change needs.
#[derive(Debug)]
struct WriteContext {
    db: Connection,
    path: PathBuf,
    namespace: i64,
    store_id: i64,
    clock: Arc<HostClock>,
    queues: QueueIds,
}

#[derive(Debug)]
struct RegisteredOwner {
    registration: Arc<OwnerRegistration>,
    _lock: Option<OwnerLock>,
}

/// What a transaction leads to once it is committed.
#[derive(Debug, Default)]
struct TransactionEffects {
    changed_tasks: Vec<TaskId>,
    ready_queues: Vec<i64>,
    subscribed: Vec<LocalConsumer>,
    unsubscribed: Vec<Arc<SqliteSubscription>>,
}

impl FileWriter {
    pub(crate) fn new(
        opened: (Connection, PathBuf, i64),
        store_id: i64,
        clock: Arc<HostClock>,
        watches: Arc<WatchRegistry>,
        requests: Receiver<WriteRequest>,
    ) -> Self {
        let (db, path, namespace) = opened;
        let now = Instant::now();
        let wake_sender = WakeSender::new(&path, store_id);
        Self {
            context: WriteContext { db, path, namespace, store_id, clock, queues: QueueIds::default() },
            requests,
            watches,
            wake_sender,
            consumers: Vec::new(),
            ownership: None,
            failed_settlements: Vec::new(),
            failure_detector: FailureDetector::default(),
            next_heartbeat: now,
            next_sweep: now + SWEEP_INTERVAL,
            peers: PeerWriters::new(),
        }
    }

    pub(crate) fn run(mut self) {
        loop {
            let wait = self.next_maintenance().saturating_duration_since(Instant::now());
            let first = match self.requests.recv_timeout(wait) {
                Ok(job) => Some(job),
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
        if self.ownership.is_some() { self.next_heartbeat.min(self.next_sweep) } else { self.next_sweep }
    }

    /// Takes what is queued, up to a batch, or up to a job that has to come after it.
    fn gather(&mut self, first: Option<WriteRequest>) -> (WriteBatch, Option<WriteRequest>) {
        let mut batch = WriteBatch::default();
        let mut next = first;
        if next.is_some() {
            // Before the queue is emptied: who comes meanwhile goes with it.
            self.peers.yield_to_peers();
        }
        while let Some(job) = next {
            match job {
                WriteRequest::Changes { changes, reply } => {
                    batch.size += changes.len();
                    batch.requests.push((changes, reply));
                }
                WriteRequest::Ready(ReadyQueues { queues, delayed_due }) => {
                    batch.delayed_due |= delayed_due;
                    self.mark_ready(&queues);
                }
                last @ (WriteRequest::EndSubscriptions(_) | WriteRequest::Close(_)) => {
                    return (batch, Some(last));
                }
            }
            next =
                if batch.size < MAX_CHANGES_PER_TRANSACTION { self.requests.try_recv().ok() } else { None };
        }
        (batch, None)
    }

    /// One transaction for all of it, or, where that fails, one for each change.
    fn run_batch(&mut self, batch: WriteBatch) {
        if batch.requests.is_empty()
            && !batch.delayed_due
            && !self.consumers.iter().any(LocalConsumer::can_claim)
        {
            return;
        }
        let done = self.transaction(|writer, effects| {
            if batch.delayed_due
                && messages::promote(
                    &writer.context.db,
                    writer.context.clock.now(),
                    MAX_ROWS_PER_MAINTENANCE,
                )?
            {
                effects.ready_queues.extend(writer.consumers.iter().flat_map(|consumer| &consumer.queues));
            }
            let outcomes = writer.apply_changes(&batch.requests, effects)?;
            let claims = writer.claim_all(effects)?;
            Ok((outcomes, claims))
        });
        match done {
            Ok((outcomes, claims)) => {
                self.deliver(claims);
                for ((_, reply), outcomes) in batch.requests.into_iter().zip(outcomes) {
                    if let Some(reply) = reply {
                        // Whoever asked may have gone: its change is made all the same.
                        let _ = reply.send(outcomes.into_iter().map(Ok).collect());
                    }
                }
            }
            Err(error) if kind_of(&error) == StoreErrorKind::Busy => {
                let error = StoreError::of(&self.context.path, &error);
                for (changes, reply) in batch.requests {
                    let outcomes = changes.iter().map(|_| Err(error.clone())).collect();
                    self.reply(changes, reply, outcomes);
                }
            }
            Err(error) => {
                tracing::debug!(file = %self.context.path.display(), %error, "a batch failed; each change on its own");
                for (changes, reply) in batch.requests {
                    let outcomes = changes.iter().map(|change| self.apply_single(change)).collect();
                    self.reply(changes, reply, outcomes);
                }
            }
        }
        self.peers.note_commit(&self.context.db);
    }

    fn reply(
        &mut self,
        changes: Vec<StoreChange>,
        reply: ChangeReply,
        outcomes: Vec<Result<ChangeOutcome, StoreError>>,
    ) {
        if let Some(reply) = reply {
            // Whoever asked may have gone: its change is made all the same.
            let _ = reply.send(outcomes);
            return;
        }
        for (change, outcome) in changes.into_iter().zip(outcomes) {
            if let Err(error) = outcome {
                tracing::warn!(%error, "a settlement failed; it is tried again");
                self.failed_settlements.push(change);
            }
        }
    }

    fn apply_single(&mut self, change: &StoreChange) -> Result<ChangeOutcome, StoreError> {
        self.transaction(|writer, effects| writer.apply_change(change, effects))
            .map_err(|error| StoreError::of(&self.context.path, &error))
    }

    /// Runs `change` in a transaction; what follows from it happens only after the commit.
    fn transaction<T>(
        &mut self,
        change: impl FnOnce(&mut Self, &mut TransactionEffects) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let had_owner = self.ownership.is_some();
        let mut effects = TransactionEffects::default();
        let result = self.context.run("BEGIN IMMEDIATE").and_then(|()| {
            let done = change(self, &mut effects)?;
            self.context.run("COMMIT")?;
            Ok(done)
        });
        match &result {
            Ok(_) => self.run_effects(effects),
            Err(_) => {
                if !self.context.db.is_autocommit() {
                    // If even this fails, the connection is beyond repair and every later change says so.
                    let _ = self.context.run("ROLLBACK");
                }
                self.context.queues.forget();
                if !had_owner {
                    // Its row is gone with the transaction.
                    self.ownership = None;
                }
            }
        }
        result
    }

    fn run_effects(&mut self, effects: TransactionEffects) {
        for id in &effects.changed_tasks {
            self.watches.notify(id);
        }
        let own_id = !effects.ready_queues.is_empty() || !effects.subscribed.is_empty();
        for consumer in effects.subscribed {
            self.watches.subscribe(&consumer.queues);
            self.consumers.push(consumer);
        }
        for gone in effects.unsubscribed {
            if let Some(place) = self.consumers.iter().position(|consumer| consumer.belongs_to(&gone)) {
                let consumer = self.consumers.swap_remove(place);
                self.watches.unsubscribe(&consumer.queues);
            }
        }
        self.mark_ready(&effects.ready_queues);
        if own_id || !effects.changed_tasks.is_empty() {
            // This process's own ear too: what it cannot claim now, and when its delayed messages come due.
            self.wake_sender.send(own_id);
        }
    }

    /// Something waits in these queues.
    fn mark_ready(&mut self, ready_queues: &[i64]) {
        for consumer in &mut self.consumers {
            consumer.may_have_ready |= consumer.consumes_any(ready_queues);
        }
    }

    fn apply_changes(
        &mut self,
        requests: &[(Vec<StoreChange>, ChangeReply)],
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<Vec<Vec<ChangeOutcome>>> {
        requests
            .iter()
            .map(|(changes, _)| changes.iter().map(|change| self.apply_change(change, effects)).collect())
            .collect()
    }

    /// Makes one change.
    fn apply_change(
        &mut self,
        change: &StoreChange,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<ChangeOutcome> {
        let WriteContext { db, namespace, store_id, clock, queues, .. } = &mut self.context;
        let (namespace, now) = (*namespace, clock.now());
        match change {
            StoreChange::Publish(what) => {
                let queue = queues.declare(db, namespace, &what.target)?;
                messages::publish(db, queue, now, what)?;
                if effects.ready_queues.last() != Some(&queue) {
                    effects.ready_queues.push(queue);
                }
            }
            StoreChange::Settle { message, owner, settle } => {
                if !messages::settle(db, *message, *owner, *settle)? {
                    tracing::debug!(message, owner, how = ?settle, "settled too late: it was handed to others");
                } else if *settle == Settle::Requeue {
                    effects.ready_queues.extend(self.consumers.iter().flat_map(|consumer| &consumer.queues));
                }
            }
            StoreChange::Subscribe(subscription, deliveries) => {
                self.subscribe(subscription, deliveries, effects)?
            }
            StoreChange::Unsubscribe(subscription) => self.unsubscribe(subscription, effects)?,
            StoreChange::Commit(commit) => {
                let committed = records::commit(db, namespace, now, commit)?;
                if commit.wake && committed == Committed::Done {
                    records::add_wake_up(db, namespace, *store_id, &commit.id)?;
                    effects.changed_tasks.push(commit.id.clone());
                }
                return Ok(ChangeOutcome::Committed(committed));
            }
            StoreChange::OpenSession { session, lease, info } => {
                sessions::open(db, namespace, session, now.plus(*lease), info)?;
                return Ok(ChangeOutcome::At(now));
            }
            StoreChange::RenewSession { session, lease, info, running } => {
                let alive = sessions::renew(db, namespace, session, now, *lease, info)?;
                let read = |id| records::read(db, namespace, now, id);
                let records = running.iter().map(read).collect::<Result<_, _>>()?;
                return Ok(ChangeOutcome::Renewed(Renewed { alive, now, records }));
            }
            StoreChange::CloseSession(session) => sessions::close(db, namespace, session)?,
            StoreChange::UpdateIndexes(updates) => {
                updates.iter().try_for_each(|update| sessions::update_index(db, namespace, update))?
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
        let (subscription, deliveries) = (subscription.clone(), deliveries.clone());
        effects.subscribed.push(LocalConsumer::new(subscription, deliveries, ids));
        Ok(())
    }

    fn unsubscribe(
        &mut self,
        subscription: &Arc<SqliteSubscription>,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<()> {
        let consumer = self.consumers.iter().find(|consumer| consumer.belongs_to(subscription));
        if let (Some(consumer), Some(ownership)) = (consumer, &self.ownership) {
            for &queue in &consumer.queues {
                owners::count_subscriptions(&self.context.db, ownership.registration.owner, queue, -1)?;
            }
        }
        effects.unsubscribed.push(subscription.clone());
        Ok(())
    }

    /// The row that this process claims with, made when it is first needed or was lost.
    fn ensure_owner(&mut self) -> rusqlite::Result<i64> {
        if let Some(ownership) = &self.ownership {
            return Ok(ownership.registration.owner);
        }
        let (registration, lock) =
            owners::register(&self.context.db, &self.context.path, self.context.clock.now())?;
        let owner = registration.owner;
        for queue in self.consumers.iter().flat_map(|consumer| &consumer.queues) {
            owners::count_subscriptions(&self.context.db, owner, *queue, 1)?;
        }
        self.ownership = Some(RegisteredOwner { registration: Arc::new(registration), _lock: lock });
        // The dead are looked for at once: a worker that was restarted gets its messages back now.
        self.next_heartbeat = Instant::now();
        Ok(owner)
    }

    /// Gives every hungry subscription what its queues hold, up to its prefetch.
    fn claim_all(&mut self, effects: &mut TransactionEffects) -> rusqlite::Result<MessageClaims> {
        let mut claims = MessageClaims::default();
        let TransactionEffects { ready_queues, subscribed, unsubscribed, .. } = effects;
        let is_leaving = |consumer: &LocalConsumer| unsubscribed.iter().any(|gone| consumer.belongs_to(gone));
        let can_claim = |consumer: &LocalConsumer| {
            consumer.capacity() > 0
                && (consumer.may_have_ready || consumer.consumes_any(ready_queues))
                && !is_leaving(consumer)
        };
        if !self.consumers.iter().chain(subscribed.iter()).any(can_claim) {
            return Ok(claims);
        }
        self.check_registration()?;
        let owner = self.ensure_owner()?;
        claims.registration = self.ownership.as_ref().map(|ownership| ownership.registration.clone());
        for consumer in self.consumers.iter_mut().chain(subscribed).filter(|consumer| can_claim(consumer)) {
            let (claimed, more) = consumer.claim(&self.context.db, owner)?;
            claims.list.push((consumer.subscription.clone(), claimed, more));
        }
        Ok(claims)
    }

    /// A process that was stopped for long may have been declared dead: what it claimed for its old row would never
    /// be handed back.
    fn check_registration(&mut self) -> rusqlite::Result<()> {
        if let Some(ownership) = &self.ownership
            && !owners::is_known(&self.context.db, ownership.registration.owner)?
        {
            self.lose_ownership();
        }
        Ok(())
    }

    fn lose_ownership(&mut self) {
        if let Some(lost) = self.ownership.take() {
            tracing::warn!(file = %self.context.path.display(), owner = lost.registration.owner, "this process was taken \
                for dead; what it held was handed to others");
            lost.registration.end();
            self.watches.count_ownership_loss();
            self.failed_settlements.clear();
        }
    }

    /// Passes on what was claimed, now that it is committed.
    fn deliver(&mut self, claims: MessageClaims) {
        let Some(registration) = claims.registration else { return };
        for (subscription, claimed, more) in claims.list {
            let refused = match self.consumers.iter_mut().find(|consumer| consumer.belongs_to(&subscription))
            {
                Some(consumer) => {
                    consumer.may_have_ready = more;
                    consumer.deliver(claimed, &registration)
                }
                None => claimed,
            };
            for one in refused {
                let change = StoreChange::Settle {
                    message: one.id,
                    owner: registration.owner,
                    settle: Settle::Requeue,
                };
                let outcome = self.apply_single(&change);
                self.reply(vec![change], None, vec![outcome]);
            }
        }
    }

    /// What has to be done from time to time.
    fn run_maintenance(&mut self) {
        let now = Instant::now();
        if self.ownership.is_some() && now >= self.next_heartbeat {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            if let Err(error) = self.heartbeat() {
                tracing::warn!(file = %self.context.path.display(), %error, "cannot renew the hold on messages");
            }
        }
        if now >= self.next_sweep {
            let swept = self.transaction(|writer, _| {
                records::sweep(&writer.context.db, writer.context.clock.now(), MAX_ROWS_PER_MAINTENANCE)
            });
            let pause = if matches!(swept, Ok(true)) { Duration::from_millis(20) } else { SWEEP_INTERVAL };
            self.next_sweep = Instant::now() + pause;
            if let Err(error) = swept {
                tracing::warn!(file = %self.context.path.display(), %error, "cannot delete what has expired");
            }
        }
    }

    fn heartbeat(&mut self) -> rusqlite::Result<()> {
        let own_id = self.ownership.as_ref().map(|ownership| ownership.registration.owner);
        let dead = self.failure_detector.find_dead(&self.context.db, &self.context.path, own_id)?;
        let known = self.transaction(|writer, effects| {
            for dead in &dead {
                tracing::info!(
                    owner = dead.owner,
                    evidence = dead.evidence,
                    "a process is gone; its messages come back"
                );
                if owners::remove(&writer.context.db, dead.owner)? {
                    effects
                        .ready_queues
                        .extend(writer.consumers.iter().flat_map(|consumer| &consumer.queues));
                }
            }
            own_id.map_or(Ok(true), |own_id| owners::raise_heartbeat(&writer.context.db, own_id))
        })?;
        if !known {
            self.lose_ownership();
            if !self.consumers.is_empty() {
                self.transaction(|writer, _| writer.ensure_owner())?;
            }
        }
        self.retry_settlements();
        Ok(())
    }

    /// Tries failed settlements again, and gives what a death brought back to whoever is hungry.
    fn retry_settlements(&mut self) {
        let changes = std::mem::take(&mut self.failed_settlements);
        let mut batch = WriteBatch { size: changes.len(), ..WriteBatch::default() };
        if !changes.is_empty() {
            batch.requests.push((changes, None));
        }
        self.run_batch(batch);
    }

    /// Ends every subscription and hands back what is held.
    fn end_subscriptions(&mut self) {
        for consumer in self.consumers.drain(..) {
            self.watches.unsubscribe(&consumer.queues);
        }
        if let Some(ownership) = self.ownership.take() {
            ownership.registration.end();
            let owner = ownership.registration.owner;
            if let Err(error) = self.transaction(|writer, _| owners::remove(&writer.context.db, owner)) {
                // The lock is let go of right now, which tells the others the same.
                tracing::warn!(file = %self.context.path.display(), %error, "could not hand messages back");
            }
        }
    }

    fn close(mut self, reply: Option<oneshot::Sender<()>>) {
        self.end_subscriptions();
        // Best effort: the log is read again at the next start just as well.
        let _ = self.context.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        let Self { context, requests, .. } = self;
        drop(context);
        // Whoever still asks is answered by the channel's end.
        drop(requests);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }
}

/// What is done in one turn.
#[derive(Debug, Default)]
struct WriteBatch {
    requests: Vec<(Vec<StoreChange>, ChangeReply)>,
    size: usize,
    delayed_due: bool,
}

/// What was claimed in one transaction: for whom, what, and whether there may be more.
#[derive(Debug, Default)]
struct MessageClaims {
    registration: Option<Arc<OwnerRegistration>>,
    list: Vec<(Arc<SqliteSubscription>, Vec<ClaimedMessage>, bool)>,
}

impl WriteContext {
    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(drop)
    }
}
