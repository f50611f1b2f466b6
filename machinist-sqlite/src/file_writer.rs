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
    owners::{self, BEAT, FailureDetector, OwnerLock, OwnerRegistration},
    peer_writers::PeerWriters,
    records, sessions,
    wake_up::WakeSender,
    write_request::{
        ChangeOutcome, ClaimedDelivery, ReadyQueues, SqliteSubscription, StoreChange, WriteRequest,
    },
};

/// Changes in one transaction, about; more would keep other processes waiting for too long.
const BATCH: usize = 512;
/// Delayed messages made ready, and expired rows deleted, in one transaction.
const CHUNK: u32 = 500;
const SWEEP: Duration = Duration::from_secs(10);

type ChangeReply = Option<oneshot::Sender<Vec<Result<ChangeOutcome, StoreError>>>>;

/// The state of the writing thread.
#[derive(Debug)]
pub(crate) struct FileWriter {
    ground: WriteContext,
    jobs: Receiver<WriteRequest>,
    hub: Arc<WatchRegistry>,
    ringer: WakeSender,
    seats: Vec<LocalConsumer>,
    ownership: Option<RegisteredOwner>,
    /// Settlements that failed. Unsettled, their messages would lie with this process for as long as it lives.
    owed: Vec<StoreChange>,
    looks: FailureDetector,
    next_beat: Instant,
    next_sweep: Instant,
    company: PeerWriters,
}

/// What every change needs.
#[derive(Debug)]
struct WriteContext {
    db: Connection,
    path: PathBuf,
    namespace: i64,
    source: i64,
    clock: Arc<HostClock>,
    queues: QueueIds,
}

#[derive(Debug)]
struct RegisteredOwner {
    tenure: Arc<OwnerRegistration>,
    _line: Option<OwnerLock>,
}

/// What a transaction leads to once it is committed.
#[derive(Debug, Default)]
struct TransactionEffects {
    woken: Vec<TaskId>,
    ready: Vec<i64>,
    seated: Vec<LocalConsumer>,
    unseated: Vec<Arc<SqliteSubscription>>,
}

impl FileWriter {
    pub(crate) fn new(
        opened: (Connection, PathBuf, i64),
        source: i64,
        clock: Arc<HostClock>,
        hub: Arc<WatchRegistry>,
        jobs: Receiver<WriteRequest>,
    ) -> Self {
        let (db, path, namespace) = opened;
        let now = Instant::now();
        let ringer = WakeSender::new(&path, source);
        Self {
            ground: WriteContext { db, path, namespace, source, clock, queues: QueueIds::default() },
            jobs,
            hub,
            ringer,
            seats: Vec::new(),
            ownership: None,
            owed: Vec::new(),
            looks: FailureDetector::default(),
            next_beat: now,
            next_sweep: now + SWEEP,
            company: PeerWriters::new(),
        }
    }

    pub(crate) fn run(mut self) {
        loop {
            let wait = self.next_tick().saturating_duration_since(Instant::now());
            let first = match self.jobs.recv_timeout(wait) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.end(None),
            };
            let (work, last) = self.gather(first);
            self.turn(work);
            match last {
                Some(WriteRequest::Stop(reply)) => return self.end(reply),
                Some(WriteRequest::Leave(reply)) => {
                    self.leave();
                    let _ = reply.send(());
                }
                _ => {}
            }
            self.tick();
        }
    }

    fn next_tick(&self) -> Instant {
        if self.ownership.is_some() { self.next_beat.min(self.next_sweep) } else { self.next_sweep }
    }

    /// Takes what is queued, up to a batch, or up to a job that has to come after it.
    fn gather(&mut self, first: Option<WriteRequest>) -> (WriteBatch, Option<WriteRequest>) {
        let mut work = WriteBatch::default();
        let mut next = first;
        if next.is_some() {
            // Before the queue is emptied: who comes meanwhile goes with it.
            self.company.give_way();
        }
        while let Some(job) = next {
            match job {
                WriteRequest::Ops { ops, reply } => {
                    work.size += ops.len();
                    work.jobs.push((ops, reply));
                }
                WriteRequest::ReadyQueues(ReadyQueues { ready, due }) => {
                    work.due |= due;
                    self.whet(&ready);
                }
                last @ (WriteRequest::Leave(_) | WriteRequest::Stop(_)) => return (work, Some(last)),
            }
            next = if work.size < BATCH { self.jobs.try_recv().ok() } else { None };
        }
        (work, None)
    }

    /// One transaction for all of it, or, where that fails, one for each change.
    fn turn(&mut self, work: WriteBatch) {
        if work.jobs.is_empty() && !work.due && !self.seats.iter().any(LocalConsumer::wants) {
            return;
        }
        let done = self.transaction(|writer, effects| {
            if work.due && messages::promote(&writer.ground.db, writer.ground.clock.now(), CHUNK)? {
                effects.ready.extend(writer.seats.iter().flat_map(|seat| &seat.queues));
            }
            let answers = writer.answer_all(&work.jobs, effects)?;
            let claims = writer.claim_all(effects)?;
            Ok((answers, claims))
        });
        match done {
            Ok((answers, claims)) => {
                self.hand_out(claims);
                for ((_, reply), answers) in work.jobs.into_iter().zip(answers) {
                    if let Some(reply) = reply {
                        // Whoever asked may have gone: its change is made all the same.
                        let _ = reply.send(answers.into_iter().map(Ok).collect());
                    }
                }
            }
            Err(error) if kind_of(&error) == StoreErrorKind::Busy => {
                let fault = StoreError::of(&self.ground.path, &error);
                for (ops, reply) in work.jobs {
                    let answers = ops.iter().map(|_| Err(fault.clone())).collect();
                    self.reply(ops, reply, answers);
                }
            }
            Err(error) => {
                tracing::debug!(file = %self.ground.path.display(), %error, "a batch failed; each change on its own");
                for (ops, reply) in work.jobs {
                    let answers = ops.iter().map(|op| self.alone(op)).collect();
                    self.reply(ops, reply, answers);
                }
            }
        }
        self.company.note(&self.ground.db);
    }

    fn reply(
        &mut self,
        ops: Vec<StoreChange>,
        reply: ChangeReply,
        answers: Vec<Result<ChangeOutcome, StoreError>>,
    ) {
        if let Some(reply) = reply {
            // Whoever asked may have gone: its change is made all the same.
            let _ = reply.send(answers);
            return;
        }
        for (op, answer) in ops.into_iter().zip(answers) {
            if let Err(error) = answer {
                tracing::warn!(%error, "a settlement failed; it is tried again");
                self.owed.push(op);
            }
        }
    }

    fn alone(&mut self, op: &StoreChange) -> Result<ChangeOutcome, StoreError> {
        self.transaction(|writer, effects| writer.answer(op, effects))
            .map_err(|error| StoreError::of(&self.ground.path, &error))
    }

    /// Runs `change` in a transaction; what follows from it happens only after the commit.
    fn transaction<T>(
        &mut self,
        change: impl FnOnce(&mut Self, &mut TransactionEffects) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let had_owner = self.ownership.is_some();
        let mut effects = TransactionEffects::default();
        let result = self.ground.run("BEGIN IMMEDIATE").and_then(|()| {
            let done = change(self, &mut effects)?;
            self.ground.run("COMMIT")?;
            Ok(done)
        });
        match &result {
            Ok(_) => self.apply(effects),
            Err(_) => {
                if !self.ground.db.is_autocommit() {
                    // If even this fails, the connection is beyond repair and every later change says so.
                    let _ = self.ground.run("ROLLBACK");
                }
                self.ground.queues.forget();
                if !had_owner {
                    // Its row is gone with the transaction.
                    self.ownership = None;
                }
            }
        }
        result
    }

    fn apply(&mut self, effects: TransactionEffects) {
        for id in &effects.woken {
            self.hub.wake(id);
        }
        let own = !effects.ready.is_empty() || !effects.seated.is_empty();
        for seat in effects.seated {
            self.hub.subscribe(&seat.queues);
            self.seats.push(seat);
        }
        for gone in effects.unseated {
            if let Some(place) = self.seats.iter().position(|seat| seat.is_of(&gone)) {
                let seat = self.seats.swap_remove(place);
                self.hub.unsubscribe(&seat.queues);
            }
        }
        self.whet(&effects.ready);
        if own || !effects.woken.is_empty() {
            // This process's own ear too: what it cannot claim now, and when its delayed messages come due.
            self.ringer.ring(own);
        }
    }

    /// Something waits in these queues.
    fn whet(&mut self, ready: &[i64]) {
        for seat in &mut self.seats {
            seat.hungry |= seat.eats(ready);
        }
    }

    fn answer_all(
        &mut self,
        jobs: &[(Vec<StoreChange>, ChangeReply)],
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<Vec<Vec<ChangeOutcome>>> {
        jobs.iter().map(|(ops, _)| ops.iter().map(|op| self.answer(op, effects)).collect()).collect()
    }

    /// Makes one change.
    fn answer(
        &mut self,
        op: &StoreChange,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<ChangeOutcome> {
        let WriteContext { db, namespace, source, clock, queues, .. } = &mut self.ground;
        let (namespace, now) = (*namespace, clock.now());
        match op {
            StoreChange::Publish(what) => {
                let queue = queues.declare(db, namespace, &what.target)?;
                messages::publish(db, queue, now, what)?;
                if effects.ready.last() != Some(&queue) {
                    effects.ready.push(queue);
                }
            }
            StoreChange::Settle { message, owner, how } => {
                if !messages::settle(db, *message, *owner, *how)? {
                    tracing::debug!(message, owner, ?how, "settled too late: it was handed to others");
                } else if *how == Settle::Requeue {
                    effects.ready.extend(self.seats.iter().flat_map(|seat| &seat.queues));
                }
            }
            StoreChange::Subscribe(subscription, out) => self.seat(subscription, out, effects)?,
            StoreChange::Unsubscribe(subscription) => self.unseat(subscription, effects)?,
            StoreChange::Commit(commit) => {
                let committed = records::commit(db, namespace, now, commit)?;
                if commit.wake && committed == Committed::Done {
                    records::wake(db, namespace, *source, &commit.id)?;
                    effects.woken.push(commit.id.clone());
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

    fn seat(
        &mut self,
        subscription: &Arc<SqliteSubscription>,
        out: &UnboundedSender<ClaimedDelivery>,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<()> {
        let owner = self.owner()?;
        let WriteContext { db, namespace, queues, .. } = &mut self.ground;
        let mut ids = Vec::with_capacity(subscription.targets.len());
        for target in &subscription.targets {
            let queue = queues.declare(db, *namespace, target)?;
            owners::subscribe(db, owner, queue, 1)?;
            ids.push(queue);
        }
        let (subscription, out) = (subscription.clone(), out.clone());
        effects.seated.push(LocalConsumer::new(subscription, out, ids));
        Ok(())
    }

    fn unseat(
        &mut self,
        subscription: &Arc<SqliteSubscription>,
        effects: &mut TransactionEffects,
    ) -> rusqlite::Result<()> {
        let seat = self.seats.iter().find(|seat| seat.is_of(subscription));
        if let (Some(seat), Some(ownership)) = (seat, &self.ownership) {
            for &queue in &seat.queues {
                owners::subscribe(&self.ground.db, ownership.tenure.owner, queue, -1)?;
            }
        }
        effects.unseated.push(subscription.clone());
        Ok(())
    }

    /// The row that this process claims with, made when it is first needed or was lost.
    fn owner(&mut self) -> rusqlite::Result<i64> {
        if let Some(ownership) = &self.ownership {
            return Ok(ownership.tenure.owner);
        }
        let (tenure, line) = owners::enrol(&self.ground.db, &self.ground.path, self.ground.clock.now())?;
        let owner = tenure.owner;
        for queue in self.seats.iter().flat_map(|seat| &seat.queues) {
            owners::subscribe(&self.ground.db, owner, *queue, 1)?;
        }
        self.ownership = Some(RegisteredOwner { tenure: Arc::new(tenure), _line: line });
        // The dead are looked for at once: a worker that was restarted gets its messages back now.
        self.next_beat = Instant::now();
        Ok(owner)
    }

    /// Gives every hungry subscription what its queues hold, up to its prefetch.
    fn claim_all(&mut self, effects: &mut TransactionEffects) -> rusqlite::Result<MessageClaims> {
        let mut claims = MessageClaims::default();
        let TransactionEffects { ready, seated, unseated, .. } = effects;
        let leaves = |seat: &LocalConsumer| unseated.iter().any(|gone| seat.is_of(gone));
        let wants =
            |seat: &LocalConsumer| seat.free() > 0 && (seat.hungry || seat.eats(ready)) && !leaves(seat);
        if !self.seats.iter().chain(seated.iter()).any(wants) {
            return Ok(claims);
        }
        self.check_tenure()?;
        let owner = self.owner()?;
        claims.tenure = self.ownership.as_ref().map(|ownership| ownership.tenure.clone());
        for seat in self.seats.iter_mut().chain(seated).filter(|seat| wants(seat)) {
            let (claimed, more) = seat.claim(&self.ground.db, owner)?;
            claims.list.push((seat.subscription.clone(), claimed, more));
        }
        Ok(claims)
    }

    /// A process that was stopped for long may have been declared dead: what it claimed for its old row would never
    /// be handed back.
    fn check_tenure(&mut self) -> rusqlite::Result<()> {
        if let Some(ownership) = &self.ownership
            && !owners::is_known(&self.ground.db, ownership.tenure.owner)?
        {
            self.lose_ownership();
        }
        Ok(())
    }

    fn lose_ownership(&mut self) {
        if let Some(lost) = self.ownership.take() {
            tracing::warn!(file = %self.ground.path.display(), owner = lost.tenure.owner, "this process was taken \
                for dead; what it held was handed to others");
            lost.tenure.end();
            self.hub.count_loss();
            self.owed.clear();
        }
    }

    /// Passes on what was claimed, now that it is committed.
    fn hand_out(&mut self, claims: MessageClaims) {
        let Some(tenure) = claims.tenure else { return };
        for (subscription, claimed, more) in claims.list {
            let refused = match self.seats.iter_mut().find(|seat| seat.is_of(&subscription)) {
                Some(seat) => {
                    seat.hungry = more;
                    seat.hand_out(claimed, &tenure)
                }
                None => claimed,
            };
            for one in refused {
                let op = StoreChange::Settle { message: one.id, owner: tenure.owner, how: Settle::Requeue };
                let answer = self.alone(&op);
                self.reply(vec![op], None, vec![answer]);
            }
        }
    }

    /// What has to be done from time to time.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.ownership.is_some() && now >= self.next_beat {
            self.next_beat = now + BEAT;
            if let Err(error) = self.beat() {
                tracing::warn!(file = %self.ground.path.display(), %error, "cannot renew the hold on messages");
            }
        }
        if now >= self.next_sweep {
            let swept = self
                .transaction(|writer, _| records::sweep(&writer.ground.db, writer.ground.clock.now(), CHUNK));
            let pause = if matches!(swept, Ok(true)) { Duration::from_millis(20) } else { SWEEP };
            self.next_sweep = Instant::now() + pause;
            if let Err(error) = swept {
                tracing::warn!(file = %self.ground.path.display(), %error, "cannot delete what has expired");
            }
        }
    }

    fn beat(&mut self) -> rusqlite::Result<()> {
        let own = self.ownership.as_ref().map(|ownership| ownership.tenure.owner);
        let dead = self.looks.look(&self.ground.db, &self.ground.path, own)?;
        let known = self.transaction(|writer, effects| {
            for dead in &dead {
                tracing::info!(
                    owner = dead.owner,
                    sign = dead.sign,
                    "a process is gone; its messages come back"
                );
                if owners::dismiss(&writer.ground.db, dead.owner)? {
                    effects.ready.extend(writer.seats.iter().flat_map(|seat| &seat.queues));
                }
            }
            own.map_or(Ok(true), |own| owners::beat(&writer.ground.db, own))
        })?;
        if !known {
            self.lose_ownership();
            if !self.seats.is_empty() {
                self.transaction(|writer, _| writer.owner())?;
            }
        }
        self.retry_owed();
        Ok(())
    }

    /// Tries failed settlements again, and gives what a death brought back to whoever is hungry.
    fn retry_owed(&mut self) {
        let ops = std::mem::take(&mut self.owed);
        let mut work = WriteBatch { size: ops.len(), ..WriteBatch::default() };
        if !ops.is_empty() {
            work.jobs.push((ops, None));
        }
        self.turn(work);
    }

    /// Ends every subscription and hands back what is held.
    fn leave(&mut self) {
        for seat in self.seats.drain(..) {
            self.hub.unsubscribe(&seat.queues);
        }
        if let Some(ownership) = self.ownership.take() {
            ownership.tenure.end();
            let owner = ownership.tenure.owner;
            if let Err(error) = self.transaction(|writer, _| owners::dismiss(&writer.ground.db, owner)) {
                // The lock is let go of right now, which tells the others the same.
                tracing::warn!(file = %self.ground.path.display(), %error, "could not hand messages back");
            }
        }
    }

    fn end(mut self, reply: Option<oneshot::Sender<()>>) {
        self.leave();
        // Best effort: the log is read again at the next start just as well.
        let _ = self.ground.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        let Self { ground, jobs, .. } = self;
        drop(ground);
        // Whoever still asks is answered by the channel's end.
        drop(jobs);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }
}

/// What is done in one turn.
#[derive(Debug, Default)]
struct WriteBatch {
    jobs: Vec<(Vec<StoreChange>, ChangeReply)>,
    size: usize,
    due: bool,
}

/// What was claimed in one transaction: for whom, what, and whether there may be more.
#[derive(Debug, Default)]
struct MessageClaims {
    tenure: Option<Arc<OwnerRegistration>>,
    list: Vec<(Arc<SqliteSubscription>, Vec<ClaimedMessage>, bool)>,
}

impl WriteContext {
    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(drop)
    }
}
