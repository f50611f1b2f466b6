//! Measurement of the queues: one worker at a time looks at all of them, emits what it finds, and adds it to the history.
//!
//! Brokers do not tell how old the oldest message of a queue is. It follows from two instants, which are facts of a record of
//! the queue: the time from which the message could have run that workers took last (`taken`), and the last time at which the
//! queue was seen to be empty, written when it is no longer empty (`empty`). What waits now is not older than either. So the
//! age of a queue from which nothing is taken grows, and no message is touched to know it.
//!
//! The turn for observers and that for the history are apart: the worker that measures for the history need not have an
//! observer that shows the numbers. A worker with both has both turns where it can, and measures once.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::WorkerContext;
use crate::{
    backend::{BackendError, Commit, Committed, Index},
    broker::{BrokerError, HeldCounts},
    clock::Timestamp,
    error::BoxError,
    event::EventKind,
    fleet::{WorkerFilter, WorkerInfo},
    history::{QueueGauges, fold_due, put_gauges},
    id::{QueueName, RecordId, RunId},
    queue_age::{EMPTY, TAKEN, age_record, oldest_age, put_instant},
    record::{Facts, PresenceState, keep_turn, take_turn},
};

/// Interval between two measurements.
const INTERVAL: Duration = Duration::from_secs(10);
/// Time for which a worker has the right to measure. Observers show a measurement for a shorter time.
const MEASURE_TURN: Duration = Duration::from_secs(25);
/// Number of measurements for which counts hold that cost the broker more.
const HELD_HOLDS_FOR: u32 = 6;
/// Maximum time of a measurement.
const LIMIT: Duration = Duration::from_secs(4);
/// Maximum number of queues that are measured.
const MAX_QUEUES: usize = 1000;
/// Turn of those who show measurements to observers.
const FOR_OBSERVERS: &str = "measure";
/// Turn of those who keep the history.
const FOR_HISTORY: &str = "history";

/// Measures for as long as an observer asks for it, or the history is kept.
pub(super) async fn measure_forever(worker: &WorkerContext) {
    let (observers, history) = (worker.app.0.observers.measure_queues(), worker.app.0.history.is_on());
    if !observers && !history {
        return;
    }
    let mut measurer = Measurer {
        worker,
        holder: format!("{} {}", worker.name, RunId::fresh()),
        observers: observers.then(|| Turn::new(FOR_OBSERVERS)),
        history: history.then(|| Turn::new(FOR_HISTORY)),
        seen_empty: HashMap::new(),
        held: HashMap::new(),
        until_held: 0,
    };
    loop {
        match tokio::time::timeout(LIMIT, measurer.step()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = &*error, "the queues were not measured"),
            Err(_) => tracing::debug!("the queues were not measured in time"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Right to measure, which one worker has at a time.
#[derive(Debug)]
struct Turn {
    work: &'static str,
    is_ours: bool,
}

impl Turn {
    const fn new(work: &'static str) -> Self {
        Self { work, is_ours: false }
    }

    /// Takes or keeps the turn. Returns `true` if it is ours.
    async fn is_ours(&mut self, worker: &WorkerContext, holder: &str) -> Result<bool, BackendError> {
        let turn = if self.is_ours { keep_turn } else { take_turn };
        let answer = worker.app.client().commit(turn(self.work, holder, MEASURE_TURN)).await.map(Some);
        let answer = worker.passed_over("the turn of measurements", answer)?;
        self.is_ours = matches!(answer, Some(Committed::Done { .. }));
        Ok(self.is_ours)
    }
}

/// A worker that measures when it is its turn.
struct Measurer<'w> {
    worker: &'w WorkerContext,
    /// Name of the worker with a random part: two processes of one name have different turns.
    holder: String,
    observers: Option<Turn>,
    history: Option<Turn>,
    /// Last time at which each queue was seen to be empty, while it was.
    seen_empty: HashMap<QueueName, Timestamp>,
    /// Messages that nobody can take, as they were last counted.
    held: HashMap<QueueName, HeldCounts>,
    /// Number of measurements until they are counted again.
    until_held: u32,
}

impl Measurer<'_> {
    /// Stores what this worker took, and measures if it is its turn.
    async fn step(&mut self) -> Result<(), BoxError> {
        let taken = self.worker.events.last_taken.unstored();
        self.commit(taken.iter().map(|(queue, at)| put_instant(queue, TAKEN, *at)).collect()).await?;
        let (mut for_observers, mut for_history) = (false, false);
        if let Some(turn) = &mut self.observers {
            for_observers = turn.is_ours(self.worker, &self.holder).await?;
        }
        if let Some(turn) = &mut self.history {
            for_history = turn.is_ours(self.worker, &self.holder).await?;
        }
        if for_observers || for_history {
            let gauges = self.measure(for_observers).await?;
            if for_history {
                let kept = self.keep(gauges).await;
                self.worker.passed_over("the history of the queues", kept)?;
            }
        }
        Ok(())
    }

    /// Adds a measurement to the history, and merges the buckets whose time has come.
    async fn keep(&self, gauges: BTreeMap<String, QueueGauges>) -> Result<(), BackendError> {
        let (backend, now) = (self.worker.app.backend(), self.worker.now());
        if !gauges.is_empty() {
            for answer in backend.commit(vec![put_gauges(now, gauges)]).await {
                let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
            }
        }
        fold_due(backend.as_ref(), now).await
    }

    /// Counts the messages that nobody can take, once in a while.
    async fn count_held(&mut self, names: &[QueueName]) -> Result<(), BrokerError> {
        if self.until_held == 0 {
            let counts = self.worker.app.broker().held(names).await?;
            self.held = names.iter().cloned().zip(counts).collect();
            self.until_held = HELD_HOLDS_FOR;
        }
        self.until_held -= 1;
        Ok(())
    }

    /// Looks at all queues. Emits what it finds, if that is asked for.
    async fn measure(&mut self, emit: bool) -> Result<BTreeMap<String, QueueGauges>, BoxError> {
        let app = &self.worker.app;
        let listed = app.backend().list(&Index::Queues, None, MAX_QUEUES).await?;
        let names: Vec<QueueName> =
            listed.iter().filter_map(|(_, name)| QueueName::parse(name).ok()).collect();
        let depths = app.broker().depth(&names).await?;
        let records: Vec<RecordId> = names.iter().map(age_record).collect();
        let ages = app.backend().read_each(&records).await?;
        let workers = app.client().workers(&WorkerFilter::new()).await?;
        if emit {
            self.count_held(&names).await?;
        }
        let now = self.worker.now();
        let (mut changes, mut gauges) = (Vec::new(), BTreeMap::new());
        for (depth, facts) in depths.iter().zip(ages) {
            // One that does not exist has no messages, and no series.
            let Some(ready) = depth.ready else { continue };
            let queue = &depth.queue;
            let oldest_age = self.age(queue, ready, &facts.unwrap_or_default(), now, &mut changes);
            let takes =
                |worker: &&WorkerInfo| worker.state == PresenceState::Awake && worker.takes_from(queue);
            let takers: Vec<&WorkerInfo> = workers.iter().filter(takes).collect();
            let (dead, consumers) = (depth.dead.unwrap_or(0), takers.len() as u64);
            if emit {
                let HeldCounts { delayed, unacked } = self.held.get(queue).copied().unwrap_or_default();
                self.worker.emit(EventKind::QueueMeasured {
                    queue,
                    ready,
                    dead,
                    consumers,
                    oldest_age,
                    delayed,
                    unacked,
                });
            }
            let sum = |of: fn(&WorkerInfo) -> u32| takers.iter().map(|worker| u64::from(of(worker))).sum();
            let slots = [sum(|worker| worker.running), sum(|worker| worker.concurrency)];
            gauges.insert(queue.to_string(), QueueGauges::new([ready, dead, consumers], oldest_age, slots));
        }
        self.seen_empty.retain(|queue, _| names.contains(queue));
        self.commit(changes).await?;
        Ok(gauges)
    }

    /// Returns the age of the oldest message, and what has to be stored so that another worker goes on from here.
    fn age(
        &mut self,
        queue: &QueueName,
        ready: u64,
        facts: &Facts,
        now: Timestamp,
        changes: &mut Vec<Commit>,
    ) -> Duration {
        if ready == 0 {
            self.seen_empty.insert(queue.clone(), now);
            return Duration::ZERO;
        }
        let taken = facts.read(TAKEN);
        let mut empty = facts.read(EMPTY);
        if let Some(seen) = self.seen_empty.remove(queue) {
            changes.push(put_instant(queue, EMPTY, seen));
            empty = empty.max(Some(seen));
        }
        oldest_age(ready, taken, empty, now).unwrap_or_else(|| {
            // Nobody has looked at this queue before: the age counts from now.
            changes.push(put_instant(queue, EMPTY, now));
            Duration::ZERO
        })
    }

    async fn commit(&self, changes: Vec<Commit>) -> Result<(), BackendError> {
        if changes.is_empty() {
            return Ok(());
        }
        let batch = changes.into_iter().map(Into::into).collect();
        self.worker.app.backend().commit(batch).await.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    }
}
