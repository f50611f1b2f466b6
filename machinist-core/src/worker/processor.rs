//! One delivery, from its arrival to its settlement.
//!
//! The order is the promise: open, start, run, decide, record, follow, settle. Recording is the commit point; the
//! acknowledgement is last, so a crash between any two steps repeats work from the message and never loses it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::{
    Drained, Stages, TaskOptions,
    alone::{self, Alone},
    guard::absence,
    open::{Opened, Refusals, open},
    run::{Call, Ended, Limits},
    session::{Cancelled, Registered, Sessions},
    steady::{Leaving, Steady, Unpublished},
};
use crate::{
    app::App,
    backend::{Commit, Committed, Expiry, Index, Note},
    broker::{Delivery, Message, Publish, PublishError, Receipt, Settle, Settled, Target},
    clock::Timestamp,
    context::{Run, StateMap, TaskContext},
    envelope::{Body, DeadReason, Envelope, dead_letter},
    error::TaskError,
    handler::DynHandler,
    id::{QueueName, SessionId, TaskId, TaskName},
    limits::json_size,
    middleware::{Middleware, Next},
    record::{
        Counters, ErrorText, FactName, Facts, FailureKind, FollowUp, Held, Meaning, Outcome, Refusal,
        SHORTEST, Starting, Suspicion, UNENDED, Verdict, decide, end_by_anybody, follows, judge, name,
        newest_start, owed, record, refused, suspicion, with_progress,
    },
    retry::RetryPolicy,
    stored::stored,
    trace::TraceContext,
};

/// What comes no more than this too early is waited for here, instead of riding again.
const NEARLY_DUE: Duration = Duration::from_millis(20);
/// Waiting longer than this for a slot is written down (state RECEIVED).
const SLOT_PATIENCE: Duration = Duration::from_millis(100);
/// After these waits a delivery of a busy task becomes a guard, but not before the session that holds it can have been
/// found gone: a guard may stay away for longer than anybody looks.
const BUSY_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// How long workers may not know a task: a rolling deploy must lose nothing.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(3600);
/// How long a message that cannot be copied is held before it is given back.
const UNPUBLISHABLE: Duration = Duration::from_secs(60);
/// Bounds of the wait before an unknown task is offered again.
const UNKNOWN_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

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
enum Ending {
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

/// What asking for a start came to.
enum Asked {
    Started(Held),
    /// A live session holds the task.
    Busy,
    /// Processes may have died of it: it has to run alone.
    Suspect,
    Settle(Ending),
}

/// What is left to do after a start was refused.
enum Refused {
    /// It was granted after all.
    Ours(Box<Held>),
    /// Commit this instead.
    TakeOver(Box<(Commit, Held)>),
}

/// The message in hand, and the duty to settle it, until a guard has taken over.
struct Holding {
    envelope: Envelope,
    receipt: Option<Box<dyn Receipt>>,
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
                (self.postpone(&queue, &message, reason, &error).await, Some(receipt))
            }
            Opened::Dead(reason, error) => {
                (self.bury_foreign(&queue, &message, reason, &error).await, Some(receipt))
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
            return self.unknown_task(&holding.envelope).await;
        };
        let more = self.sessions.verdict().saturating_sub(BUSY_WAITS.iter().sum());
        let waits = BUSY_WAITS.into_iter().chain((!more.is_zero()).then_some(more));
        let mut busy_waits = waits.filter(|wait| *wait < self.longest_hold);
        let mut alone = false;
        loop {
            let slot = if alone {
                self.all_slots(&holding.envelope).await
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
                None => return self.become_guard(&holding.envelope).await,
            }
        }
    }

    /// Not yet due: ride again. Expired: end it. Neither: `None`.
    async fn too_early_or_too_late(&self, envelope: &Envelope) -> Option<Ending> {
        let now = self.now();
        let early = envelope.eta.map_or(Duration::ZERO, |eta| eta.since(now));
        if early > NEARLY_DUE {
            return Some(self.settled_by(self.publish_later(envelope, early).await).await);
        }
        // Not for nothing: even a sleep of zero waits for the timer's next millisecond.
        if !early.is_zero() {
            tokio::time::sleep(early).await;
        }
        match envelope.expires {
            Some(expires) if envelope.attempt == 1 && expires < self.now() => {
                let error = format!("not started before {expires}");
                // Refused without an outcome: it was started in time, and this is another delivery of it.
                self.end_as_read(envelope, Facts::new(), FailureKind::Expired, &*error).await
            }
            _ => None,
        }
    }

    /// A free slot; meanwhile the worker may drain, and the wait may become known.
    async fn slot(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
    ) -> Result<OwnedSemaphorePermit, Ending> {
        if self.stages.is_draining() {
            return Err(Ending::HandBack);
        }
        // Most find one free, and need neither timer nor listeners. Nobody who waits is overtaken: a slot that
        // is given back goes to them first.
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        let waiting = Arc::clone(&self.slots).acquire_owned();
        tokio::pin!(waiting);
        let taken = tokio::select! {
            taken = &mut waiting => taken,
            () = self.stages.reached_drain() => return Err(Ending::HandBack),
            () = tokio::time::sleep(SLOT_PATIENCE) => {
                self.say_received(envelope, received_at).await?;
                tokio::select! {
                    taken = &mut waiting => taken,
                    () = self.stages.reached_drain() => return Err(Ending::HandBack),
                    () = tokio::time::sleep(self.longest_hold) => return Err(self.become_guard(envelope).await),
                }
            }
        };
        // The semaphore is never closed; if it were, nothing may start any more.
        taken.map_err(|_closed| Ending::HandBack)
    }

    /// Every slot, for a suspect: what else ran here would die with it.
    async fn all_slots(&self, envelope: &Envelope) -> Result<OwnedSemaphorePermit, Ending> {
        tokio::select! {
            taken = self.alone.all_slots() => match taken {
                Some(taken) => Ok(taken),
                None => Err(self.become_guard(envelope).await),
            },
            () = self.stages.reached_drain() => Err(Ending::HandBack),
        }
    }

    async fn say_received(&self, envelope: &Envelope, received_at: Timestamp) -> Result<(), Ending> {
        let mut commit = Commit::new(envelope.id.clone());
        commit.unless = vec![name::END.to_owned()];
        commit.facts = vec![(name::received(envelope.attempt), crate::record::json(&received_at))];
        commit.expiry = Expiry::AfterUnlessSet(UNENDED);
        commit.wake = true;
        self.steady.commit(&commit).await?;
        Ok(())
    }

    /// Asks for the start, and for what it means where it is refused.
    async fn start(
        &self,
        envelope: &Envelope,
        registered: &Registered,
        received_at: Timestamp,
        alone: bool,
    ) -> Asked {
        let Ok(session) = self.session().await else { return Asked::Settle(Ending::Leave) };
        let mut asking = Starting {
            id: envelope.id.clone(),
            attempt: envelope.attempt,
            generation: envelope.generation,
            run: registered.run.clone(),
            session,
            worker: self.name.clone(),
            received_at,
            token: envelope.token,
            alone,
        };
        let (mut commit, mut held) = asking.first(self.now());
        loop {
            match self.steady.commit(&commit).await {
                Ok(Committed::Done) => {}
                Ok(Committed::Refused(facts)) => match self.refused_start(envelope, &asking, facts).await {
                    Ok(Refused::Ours(mine)) => held = *mine,
                    Ok(Refused::TakeOver(next)) => {
                        (commit, held) = *next;
                        continue;
                    }
                    Err(asked) => return asked,
                },
                Err(Leaving) => return Asked::Settle(Ending::Leave),
            }
            if registered.hold(&held) {
                return Asked::Started(held);
            }
            // The session for which it was asked has expired meanwhile, so others may take the task over.
            let Ok(session) = self.session().await else { return Asked::Settle(Ending::Leave) };
            (commit, held) = held.adopt(&session, self.now());
            asking.session = session;
        }
    }

    /// The session under which something may be started.
    async fn session(&self) -> Result<SessionId, Leaving> {
        tokio::select! {
            session = self.sessions.alive() => Ok(session),
            () = self.stages.reached_leave() => Err(Leaving),
        }
    }

    /// What the refusal of a start means.
    async fn refused_start(
        &self,
        envelope: &Envelope,
        asking: &Starting,
        facts: Facts,
    ) -> Result<Refused, Asked> {
        let gone = |session: &_, run: &_| self.sessions.is_gone(session, run);
        Err(match judge(&facts, asking, gone, self.now()) {
            Meaning::Run(mine) => return Ok(Refused::Ours(Box::new(mine))),
            Meaning::TakeOver(next) => match suspicion(&facts, envelope.attempt) {
                Suspicion::Suspect if !asking.alone && envelope.generation < alone::TRIES => Asked::Suspect,
                Suspicion::None | Suspicion::Suspect => return Ok(Refused::TakeOver(next)),
                Suspicion::Lost => {
                    let error = "workers died while it ran alone in them";
                    let ended = self.end_as_read(envelope, facts, FailureKind::Lost, error).await;
                    ended.map_or(Asked::Busy, Asked::Settle)
                }
            },
            Meaning::Over(follow_up) => Asked::Settle(self.follow(envelope, &follow_up).await),
            Meaning::Superseded => Asked::Settle(Ending::Ack),
            Meaning::Revoked => {
                let ended = self.end_as_read(envelope, facts, FailureKind::Revoked, "revoked").await;
                ended.map_or(Asked::Busy, Asked::Settle)
            }
            Meaning::Busy(session) => {
                self.sessions.wonder(&session);
                Asked::Busy
            }
        })
    }

    /// Runs the handler and takes its outcome through decide, record and follow. `None`: another run holds the
    /// attempt now.
    async fn run(
        &self,
        holding: &mut Holding,
        task: &Registration,
        held: Held,
        registered: &Registered,
        slot: OwnedSemaphorePermit,
    ) -> Option<Ending> {
        let started = tokio::time::Instant::now();
        let span = self.span(&holding.envelope, &held);
        let body = holding.envelope.decode(self.app.0.limits.args);
        let (policy, due, decoded) = match body {
            Ok(body) => {
                let policy = body.retry.clone().or_else(|| task.options.retry.clone()).unwrap_or_default();
                (policy, body.eta, Ok(body))
            }
            Err(error) => (RetryPolicy::default(), None, Err(error)),
        };
        let cx = self.context(&holding.envelope, &held, registered, decoded.as_ref().ok());
        let outcome = match decoded {
            Ok(body) => {
                let ended =
                    self.call(holding, task, body, cx.clone(), registered).instrument(span.clone()).await;
                // Slots bound what handlers do at once; recording their outcomes needs none.
                drop(slot);
                match self.outcome(ended, registered) {
                    Ok(outcome) => within(outcome, self.app.0.limits.results),
                    Err(NoOutcome::Superseded) => return self.superseded(holding),
                    Err(NoOutcome::HandBack) => {
                        return Some(self.hand_back(holding, registered, &held).await);
                    }
                    Err(NoOutcome::Unstoppable) => return Some(Ending::Leave),
                }
            }
            Err(error) => Outcome::Failed(TaskError::malformed(error)),
        };
        let outcome = match outcome {
            Outcome::Failed(error) => Outcome::Failed(task.options.classified(error)),
            outcome => outcome,
        };
        let now = self.now();
        let policy =
            policy.aged(now.since(due.unwrap_or(holding.envelope.issued).max(holding.envelope.issued)));
        let verdict = decide(outcome, &policy, holding.envelope.counters, now, rand::random());
        log(&span, &verdict, started.elapsed());
        self.record(holding, registered, verdict, &cx, due, now).await
    }

    /// Calls the handler. If that takes long, a guard takes over from the delivery meanwhile.
    async fn call(
        &self,
        holding: &mut Holding,
        task: &Registration,
        body: Body,
        cx: TaskContext,
        registered: &Registered,
    ) -> Ended {
        let delayed = holding.envelope.attempt == 1 && body.eta.is_some();
        let id = holding.envelope.id.clone();
        let call = Call {
            limits: Limits {
                soft: body.soft_timeout().or(task.options.soft_timeout),
                hard: body.timeout().or(task.options.timeout),
            },
            next: Next::outermost(Arc::clone(&self.middleware), Arc::clone(&task.handler)),
            cx: cx.clone(),
            args: body.args,
            stoppable: task.handler.stops_when_dropped(),
            trace: TraceContext {
                parent: holding.envelope.traceparent.clone().unwrap_or_default(),
                state: holding.envelope.tracestate.clone(),
            },
            registered,
            stages: &self.stages,
        };
        let running = async {
            if delayed { tokio::join!(call.run(), self.off_the_schedule(id)).0 } else { call.run().await }
        };
        let fire_when_cancelled = async {
            self.stages.reached_cancel().await;
            registered.cancel.cancel();
            std::future::pending().await
        };
        let guard = async {
            self.guard_when_long(holding).await;
            std::future::pending().await
        };
        tokio::select! {
            ended = running => ended,
            ended = fire_when_cancelled => ended,
            ended = guard => ended,
            never = self.tell_progress(&cx, registered) => match never {},
        }
    }

    /// Takes a delayed task that was started, or will not be, off the list of those that wait. Whoever reads the
    /// list does the same for what was missed.
    async fn off_the_schedule(&self, id: TaskId) {
        let note = Note::Remove { index: Index::Scheduled, member: id.to_string() };
        if let Err(error) = self.app.backend().note(vec![note]).await {
            tracing::debug!(%error, "a task that was started is still listed as scheduled");
        }
    }

    /// After half the time for which a broker lets a delivery be held, publishes a guard and settles it.
    async fn guard_when_long(&self, holding: &mut Holding) {
        tokio::time::sleep(self.longest_hold).await;
        match self.publish_guard(&holding.envelope, absence(holding.envelope.generation)).await {
            Ok(guard) => {
                holding.envelope = guard;
                if let Some(receipt) = holding.receipt.take() {
                    receipt.settle(Settle::Ack).await;
                }
            }
            Err(unpublished) => {
                tracing::warn!(?unpublished, id = %holding.envelope.id, "no guard was published; the broker may deliver the task again");
            }
        }
    }

    /// What a run's end means.
    fn outcome(&self, ended: Ended, registered: &Registered) -> Result<Outcome, NoOutcome> {
        let told = registered.cancel.is_cancelled();
        match (ended, registered.why()) {
            // The effect did happen: a success counts whatever else was wanted.
            (Ended::Itself(outcome @ Outcome::Returned(_)), _) => Ok(outcome),
            (_, Some(Cancelled::Superseded)) => Err(NoOutcome::Superseded),
            (_, Some(Cancelled::Revoked)) => Ok(Outcome::Revoked),
            (Ended::Unstoppable, None) => Err(NoOutcome::Unstoppable),
            // Told to end by the shutdown, it ended without an outcome.
            (_, None) if told => Err(NoOutcome::HandBack),
            (Ended::Itself(outcome), None) => Ok(outcome),
            (Ended::CutOff, None) => Err(NoOutcome::HandBack),
        }
    }

    /// Commits the verdict, and does what it demands. `None`: another run holds the attempt now.
    async fn record(
        &self,
        holding: &mut Holding,
        registered: &Registered,
        mut verdict: Verdict,
        cx: &TaskContext,
        due: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Ending> {
        let mut held = registered.held()?;
        let log = cx.take_log();
        loop {
            let mut commit = record(&held, &verdict, log.clone(), now, self.kept(due, now));
            self.beside_the_verdict(&mut commit, &verdict, &holding.envelope, cx, due);
            let commit = self.app.0.trust.attest(commit);
            let facts = match self.steady.commit(&commit).await {
                Ok(Committed::Done) => break,
                Ok(Committed::Refused(facts)) => facts,
                Err(Leaving) => return Some(Ending::Leave),
            };
            match refused(&facts, &held, &verdict) {
                Refusal::Recorded => break,
                Refusal::Over(follow_up) => {
                    registered.let_go();
                    return Some(self.follow(&holding.envelope, &follow_up).await);
                }
                Refusal::Revoked => {
                    let error = ErrorText::from("revoked");
                    verdict = Verdict::Failure { kind: FailureKind::Revoked, error };
                }
                Refusal::Again(adopted) => held = adopted,
                Refusal::Superseded => return self.superseded(holding),
            }
        }
        registered.let_go();
        Some(self.follow(&holding.envelope, &follows(&verdict, &held)).await)
    }

    /// What is written with a verdict: the last word of progress, and the message of a failed task, so that it can
    /// be sent again.
    fn beside_the_verdict(
        &self,
        commit: &mut Commit,
        verdict: &Verdict,
        envelope: &Envelope,
        cx: &TaskContext,
        due: Option<Timestamp>,
    ) {
        if let Some(progress) = &*cx.watch_progress().borrow() {
            with_progress(commit, progress);
        }
        match verdict {
            Verdict::Failure { .. } => commit.facts.extend(self.keep_message(envelope)),
            Verdict::Success(_) if due.is_some() => commit.drop.push(name::MESSAGE.to_owned()),
            Verdict::Success(_) | Verdict::Retry { .. } => {}
        }
    }

    /// The message of a task that ends without having succeeded.
    fn keep_message(&self, envelope: &Envelope) -> Option<(FactName, Bytes)> {
        Some((name::MESSAGE.to_owned(), stored(&self.app.seal(envelope))?))
    }

    /// How long the record of a task is kept after its end. One that ended before its time, because somebody sent it
    /// at once, is known until its delayed message has come.
    fn kept(&self, due: Option<Timestamp>, now: Timestamp) -> Duration {
        let early = due.map_or(Duration::ZERO, |due| due.since(now));
        self.app.0.results_ttl.max(SHORTEST) + early
    }

    /// What this run says does not count. Whoever holds the delivery asks anew; who does not is done.
    fn superseded(&self, holding: &Holding) -> Option<Ending> {
        tracing::warn!(id = %holding.envelope.id, "another run has taken this task over: its outcome here does not count");
        if holding.receipt.is_some() { None } else { Some(Ending::Ack) }
    }

    /// Says that this start is over without an outcome, so that nobody waits for our session.
    async fn hand_back(&self, holding: &Holding, registered: &Registered, held: &Held) -> Ending {
        self.tally.handed_back.fetch_add(1, Ordering::Relaxed);
        let held = registered.held().unwrap_or_else(|| held.clone());
        if let Err(Leaving) = self.commit_once(&held.hand_back()).await {
            return Ending::Leave;
        }
        if holding.receipt.is_none() {
            // The delivery became a guard: its next generation goes straight to the queue.
            let guard = holding.envelope.next_guard(self.now());
            let target = Target::Queue(guard.queue.clone());
            let publish = Publish { target, message: self.app.seal(&guard), delay: Duration::ZERO };
            if self.app.broker().publish(vec![publish]).await.iter().any(Result::is_err) {
                return Ending::Leave;
            }
        }
        Ending::HandBack
    }

    /// One try, when all others have left: a hand-back that fails is left to the expiry of the session.
    async fn commit_once(&self, commit: &Commit) -> Result<(), Leaving> {
        let answer = self.app.backend().commit(vec![commit.clone()]);
        match tokio::time::timeout(super::LEAVING, answer).await {
            Ok(answers) if answers.iter().all(Result::is_ok) => Ok(()),
            _ => Err(Leaving),
        }
    }

    /// Does what a recorded outcome demands, then says so.
    async fn follow(&self, envelope: &Envelope, follow_up: &FollowUp) -> Ending {
        let published = match follow_up {
            FollowUp::Nothing => return Ending::Ack,
            FollowUp::NextRun { due, counters, token } => {
                self.publish_next(envelope, *due, *counters, *token).await
            }
            FollowUp::DeadLetter { attempt, kind, error } => {
                let dead_id = format!("{}.{attempt}", envelope.id);
                let (message, reason) = (self.app.seal(envelope), DeadReason::of(*kind, error));
                self.bury(&envelope.queue, &message, &dead_id, reason, error).await
            }
        };
        match published {
            Ok(()) => {}
            Err(Unpublished::Leaving) => return Ending::Leave,
            Err(Unpublished::Never(error)) => return self.never_runs_again(envelope, &error).await,
        }
        if let Some(done) = follow_up.done(&envelope.id, envelope.attempt)
            && self.steady.commit(&done).await.is_err()
        {
            return Ending::Leave;
        }
        Ending::Ack
    }

    async fn publish_next(
        &self,
        envelope: &Envelope,
        due: Timestamp,
        counters: Counters,
        token: u64,
    ) -> Result<(), Unpublished> {
        let next = envelope.next_attempt(due, counters, token);
        self.publish_later(&next, due.since(self.now())).await
    }

    /// A next run that can never be queued: the task ends here, visibly.
    async fn never_runs_again(&self, envelope: &Envelope, error: &PublishError) -> Ending {
        let error = format!("its next run could not be queued: {error}");
        tracing::error!(id = %envelope.id, error, "a task ends because its message cannot be published");
        let next = Envelope { attempt: envelope.attempt.saturating_add(1), ..envelope.clone() };
        let ended = Box::pin(self.end_as_read(&next, Facts::new(), FailureKind::Unroutable, &*error)).await;
        // Refused without an outcome: the next run is under way after all.
        ended.unwrap_or(Ending::Ack)
    }

    /// A task that no handler here is for: offered again for an hour, then ended.
    async fn unknown_task(&self, envelope: &Envelope) -> Ending {
        let facts = match self.steady.read(&envelope.id).await {
            Ok(facts) => facts,
            Err(leaving) => return leaving.into(),
        };
        if let Some(follow_up) = owed(&facts, envelope.attempt) {
            return self.follow(envelope, &follow_up).await;
        }
        let now = self.now();
        let since = envelope.unknown_since.unwrap_or(now);
        let waited = now.since(since);
        let error = format!("no worker of queue {} knows the task {}", envelope.queue, envelope.name);
        if waited >= UNKNOWN_PATIENCE {
            return match self.end_as_read(envelope, facts, FailureKind::Unregistered, &*error).await {
                Some(ending) => ending,
                // A worker that knows the task runs it; a guard comes back to see.
                None => self.become_guard(envelope).await,
            };
        }
        tracing::warn!(id = %envelope.id, "{error}: offered again for {:?}", UNKNOWN_PATIENCE.saturating_sub(waited));
        let later = Envelope { unknown_since: Some(since), ..envelope.clone() };
        self.settled_by(self.publish_later(&later, unknown_wait(waited)).await).await
    }

    /// A message that others may understand, or this worker later: offered again for an hour, as it is, then
    /// buried.
    async fn postpone(
        &self,
        queue: &QueueName,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Ending {
        let (later, waited) = Envelope::still_unread(message, self.now());
        if waited >= UNKNOWN_PATIENCE {
            return self.bury_foreign(queue, message, reason, error).await;
        }
        let target = Target::Queue(queue.clone());
        match self.steady.publish(&Publish { target, message: later, delay: unknown_wait(waited) }).await {
            Ok(()) => Ending::Ack,
            Err(Unpublished::Leaving) => Ending::Leave,
            Err(Unpublished::Never(_)) => self.bury_foreign(queue, message, reason, error).await,
        }
    }

    /// An authentic task that must not be run: its record is asked first, then it ends, saying why.
    async fn reject(
        &self,
        envelope: &Envelope,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Ending {
        let facts = match self.steady.read(&envelope.id).await {
            Ok(facts) => facts,
            Err(leaving) => return leaving.into(),
        };
        if let Some(follow_up) = owed(&facts, envelope.attempt) {
            return self.follow(envelope, &follow_up).await;
        }
        // It runs elsewhere, or did until that worker died. The copy is offered again unsigned by us: what we
        // signed anew would be fresh again.
        if let Some(start) = newest_start(&facts, envelope.attempt)
            && !self.sessions.is_gone(&start.session, &start.run)
        {
            self.sessions.wonder(&start.session);
            return self.postpone(&envelope.queue, message, reason, error).await;
        }
        self.refusals.note(&envelope.queue, reason, error);
        let text = ErrorText::new([reason.as_str().to_owned(), error.to_owned()]);
        match self.end_as_read(envelope, facts, FailureKind::Rejected, text).await {
            Some(ending) => ending,
            None => self.postpone(&envelope.queue, message, reason, error).await,
        }
    }

    /// A delivery goes when its copy is in the broker. One whose copy cannot be published is given back after a
    /// pause: the broker keeps it, and nobody spins.
    async fn settled_by<T: Send>(&self, published: Result<T, Unpublished>) -> Ending {
        match published {
            Ok(_) => Ending::Ack,
            Err(Unpublished::Leaving) => Ending::Leave,
            Err(Unpublished::Never(error)) => {
                tracing::error!(%error, "a copy of a message cannot be published; trying again in {UNPUBLISHABLE:?}");
                tokio::select! {
                    () = tokio::time::sleep(UNPUBLISHABLE) => {}
                    () = self.stages.reached_drain() => {}
                }
                Ending::HandBack
            }
        }
    }

    /// A delivery that would stay too long goes, and a copy comes back later.
    async fn become_guard(&self, envelope: &Envelope) -> Ending {
        self.settled_by(self.publish_guard(envelope, absence(envelope.generation)).await).await
    }

    /// Ends a task that is not run and whose record is as read. Where it has changed meanwhile, what it says
    /// holds; `None` if it says that the task was started.
    async fn end_as_read(
        &self,
        envelope: &Envelope,
        facts: Facts,
        kind: FailureKind,
        error: impl Into<ErrorText>,
    ) -> Option<Ending> {
        let due = envelope.decode(self.app.0.limits.args).ok().and_then(|body| body.eta);
        let now = self.now();
        let ttl = self.kept(due, now);
        let mut commit = end_by_anybody(&envelope.id, &facts, envelope.attempt, kind, error.into(), now, ttl);
        commit.facts.extend(self.keep_message(envelope));
        let commit = self.app.0.trust.attest(commit);
        if due.is_some() {
            self.off_the_schedule(envelope.id.clone()).await;
        }
        let facts = match self.steady.commit(&commit).await {
            Ok(Committed::Done) => commit.facts.into_iter().collect(),
            Ok(Committed::Refused(facts)) => facts,
            Err(leaving) => return Some(leaving.into()),
        };
        let follow_up = owed(&facts, envelope.attempt)?;
        Some(self.follow(envelope, &follow_up).await)
    }

    /// Publishes a dead letter. That it cannot be is said, and does not keep the task from ending.
    async fn bury(
        &self,
        queue: &QueueName,
        message: &Message,
        dead_id: &str,
        reason: DeadReason,
        error: &ErrorText,
    ) -> Result<(), Unpublished> {
        let at = self.now();
        let publish = Publish {
            target: Target::DeadLetters(queue.clone()),
            message: dead_letter(message, dead_id, reason, error, at),
            delay: Duration::ZERO,
        };
        match self.steady.publish(&publish).await {
            Ok(()) => {}
            Err(Unpublished::Never(error)) => {
                tracing::error!(dead_id, %error, "a dead letter cannot be published and is dropped; its record stays");
                return Ok(());
            }
            Err(leaving) => return Err(leaving),
        }
        let note = Note::Put { index: Index::DeadLetters, at, member: format!("{queue} {dead_id}") };
        if let Err(error) = self.app.backend().note(vec![note]).await {
            tracing::debug!(%error, "a dead letter was not indexed; whoever lists them finds it in its queue");
        }
        Ok(())
    }

    /// Buries a message that claims nothing we may believe: no record is written.
    async fn bury_foreign(
        &self,
        queue: &QueueName,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Ending {
        let dead_id = uuid::Uuid::new_v4().to_string();
        self.refusals.note(queue, reason, error);
        match self.bury(queue, message, &dead_id, reason, &ErrorText::from(error)).await {
            Ok(()) => Ending::Ack,
            Err(_) => Ending::Leave,
        }
    }

    fn context(
        &self,
        envelope: &Envelope,
        held: &Held,
        registered: &Registered,
        body: Option<&Body>,
    ) -> TaskContext {
        TaskContext::new(Run {
            id: envelope.id.clone(),
            name: envelope.name.clone(),
            queue: envelope.queue.clone(),
            attempt: held.attempt,
            token: held.token,
            headers: body.map(|body| body.headers.clone()).unwrap_or_default(),
            // A child: a soft limit tells the handler alone.
            cancel: registered.cancel.child_token(),
            state: Arc::clone(&self.state),
            log: Mutex::default(),
            clock: self.app.clock().clone(),
            progress: tokio::sync::watch::Sender::new(None),
        })
    }

    fn span(&self, envelope: &Envelope, held: &Held) -> tracing::Span {
        let span = tracing::info_span!(
            "task",
            id = %envelope.id,
            name = %envelope.name,
            queue = %envelope.queue,
            attempt = held.attempt,
            otel.name = %format_args!("process {}", envelope.name),
            otel.kind = "consumer",
            messaging.system = "machinist",
            messaging.operation.name = "process",
            messaging.operation.type = "process",
            messaging.destination.name = %envelope.queue,
            messaging.message.id = %envelope.id,
        );
        if let Some(parent) = &envelope.traceparent {
            TraceContext { parent: parent.clone(), state: envelope.tracestate.clone() }.adopt(&span);
        }
        span
    }
}

/// Why a run has no outcome.
#[derive(Debug, Clone, Copy)]
enum NoOutcome {
    Superseded,
    HandBack,
    Unstoppable,
}

/// What a task returned, if it is not too large to be kept.
fn within(outcome: Outcome, limit: usize) -> Outcome {
    match outcome {
        Outcome::Returned(results) if json_size(&results) > limit => {
            let error =
                format!("it returned more than {limit} bytes: store the data elsewhere, return where");
            Outcome::Failed(TaskError::permanent(error))
        }
        outcome => outcome,
    }
}

/// A sixth of the time that has passed, so that a short deploy costs little and a long one few messages.
fn unknown_wait(waited: Duration) -> Duration {
    (waited / 6).clamp(UNKNOWN_WAIT.0, UNKNOWN_WAIT.1)
}

/// One line for each run. Arguments and results are not logged: they belong to the user.
fn log(span: &tracing::Span, verdict: &Verdict, took: Duration) {
    let _entered = span.enter();
    match verdict {
        Verdict::Success(_) => tracing::debug!(?took, "SUCCESS"),
        Verdict::Retry { due, error, .. } => tracing::warn!(?took, %due, error = error.message(), "RETRY"),
        Verdict::Failure { kind, error } => tracing::error!(?took, %kind, error = error.message(), "FAILURE"),
    }
}

impl std::fmt::Debug for TaskProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskProcessor").field("worker", &self.name).finish_non_exhaustive()
    }
}
