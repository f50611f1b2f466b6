//! The limits that hold for the tasks of a worker, and its reservations of starts.
//!
//! A limit that people have set live wins over that of the code or the configuration of this worker.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::server_calls::{ServerCalls, Unanswered};
use crate::{
    affinity::with_base,
    backend::Committed,
    clock::{Clock, Timestamp},
    fleet::WorkerInfo,
    id::{QueueName, RecordId, RunId, TaskName},
    limit::{
        Limit, LimitTarget,
        bucket::{LateDecision, ReserveDecision, SOON, Starts, Terms, reserve, shift, start_late},
    },
    record::Facts,
};

/// Time after which a start that was reserved without a task for it lapses.
const LAPSED_AFTER: Duration = Duration::from_millis(100);
/// Number of buckets in memory from which on those that nobody uses are dropped.
const MANY_BUCKETS: usize = 4096;
/// Time for which a record that could not be used is not asked for again: each request keeps a slot for a second.
const UNUSABLE_FOR: Duration = Duration::from_secs(10);

/// Limits of a worker.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Those of the code and the configuration.
    own: RwLock<HashMap<LimitTarget, Arc<Limit>>>,
    live: RwLock<HashMap<LimitTarget, Arc<Limit>>>,
    /// `true` if there is any limit.
    any: AtomicBool,
    buckets: Mutex<HashMap<RecordId, Arc<Bucket>>>,
    /// Records that could not be used, and when they are asked for again.
    unusable: Mutex<HashMap<RecordId, Instant>>,
}

/// A rate that this worker reserves starts of.
#[derive(Debug, Default)]
struct Bucket {
    /// Number of tasks in this process that want a start now, for each cost.
    waiting: Mutex<HashMap<Terms, u32>>,
    pool: tokio::sync::Mutex<StartPool>,
}

impl Bucket {
    fn waiting(&self) -> MutexGuard<'_, HashMap<Terms, u32>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts that this worker has reserved.
#[derive(Debug, Default)]
struct StartPool {
    /// Those of tasks that count for the same number of starts, by the numbers of their rate.
    blocks: HashMap<Terms, Block>,
    /// Time from which the next task asks again whose start has lapsed.
    late_turn: Option<Timestamp>,
    /// Record of the bucket, as it was last known, and when.
    known: Facts,
    known_at: Option<Instant>,
}

/// Starts that were reserved together.
#[derive(Debug)]
struct Block {
    starts: Starts,
    /// Number of starts that were reserved without tasks for them.
    size: u32,
    reserved_at: Instant,
}

/// Answer to a request for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStart {
    /// This start is reserved, in a bucket that had been pushed back by so many microseconds.
    Reserved(Timestamp, i64),
    /// None is reserved, and none would be before this time.
    NotBefore(Timestamp),
}

impl Limits {
    pub(super) fn new(own: HashMap<LimitTarget, Arc<Limit>>) -> Self {
        let limits = Self::default();
        limits.set_own(own);
        limits
    }

    /// Replaces the limits of the code and the configuration.
    pub(super) fn set_own(&self, own: HashMap<LimitTarget, Arc<Limit>>) {
        for (target, limit) in &own {
            warn_if_paused(target, limit);
        }
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        self.any.store(!own.is_empty() || !live.is_empty(), Ordering::Relaxed);
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// Replaces the limits that people have set live.
    pub(super) fn set_live(&self, live: HashMap<LimitTarget, Arc<Limit>>) {
        let mut known = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let has_own = !self.own.read().unwrap_or_else(PoisonError::into_inner).is_empty();
        self.any.store(has_own || !live.is_empty(), Ordering::Relaxed);
        if *known != live {
            for (target, limit) in live.iter().filter(|(target, limit)| known.get(target) != Some(limit)) {
                tracing::info!(%target, %limit, "a limit was set live");
                warn_if_paused(target, limit);
            }
            *known = live;
        }
    }

    /// Returns `true` if no task is limited: the usual case, which costs no more than this.
    pub(super) fn is_open(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// Returns the limits of a task, that of its name first.
    pub(super) fn of(&self, task: &TaskName, queue: &QueueName) -> Vec<(LimitTarget, Arc<Limit>)> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let found = |target: LimitTarget| {
            let limit = live.get(&target).or_else(|| own.get(&target))?;
            (!limit.is_empty()).then(|| (target, Arc::clone(limit)))
        };
        // Tasks that require tags are tasks of their queue, and share its limit.
        let of_queue = with_base(queue).find_map(|queue| found(LimitTarget::Queue(queue.into_owned())));
        found(LimitTarget::Task(task.clone())).into_iter().chain(of_queue).collect()
    }

    /// The limits of the code and the configuration of this worker.
    pub(super) fn own(&self) -> Vec<(LimitTarget, Arc<Limit>)> {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        own.iter().map(|(target, limit)| (target.clone(), Arc::clone(limit))).collect()
    }

    /// Returns the targets for which these workers have other limits, each with the worker. A live limit wins over all.
    pub(super) fn differing<'a>(
        &self,
        workers: &'a [WorkerInfo],
    ) -> Vec<(LimitTarget, &'a Limit, &'a WorkerInfo)> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        let all = self.own();
        for worker in workers {
            for (target, own) in all.iter().filter(|(target, _)| !live.contains_key(target)) {
                let other = worker.limits.iter().find(|(name, _)| **name == target.to_string());
                if let Some((_, other)) = other.filter(|(_, other)| *other != &**own) {
                    found.push((target.clone(), other, worker));
                }
            }
        }
        found
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<RecordId, Arc<Bucket>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bucket(&self, id: &RecordId) -> Arc<Bucket> {
        let mut buckets = self.buckets();
        if buckets.len() >= MANY_BUCKETS {
            buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1);
        }
        Arc::clone(buckets.entry(id.clone()).or_default())
    }

    /// Notes that the record of a limit cannot be used, if that is the answer to a request for it.
    pub(super) fn noted<T>(&self, id: &RecordId, answer: Result<T, Unanswered>) -> Result<T, Unanswered> {
        if let Err(Unanswered::BadRecord) = answer {
            let now = Instant::now();
            let mut unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
            unusable.retain(|_, until| now < *until);
            unusable.entry(id.clone()).or_insert(now + UNUSABLE_FOR);
        }
        answer
    }

    /// Refuses to ask for the record of a limit that could not be used a moment ago.
    pub(super) fn usable(&self, id: &RecordId) -> Result<(), Unanswered> {
        let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        match unusable.get(id).is_some_and(|until| Instant::now() < *until) {
            true => Err(Unanswered::BadRecord),
            false => Ok(()),
        }
    }

    /// Forgets what is reserved and known of a bucket, because it was pushed back.
    pub(super) fn forget(&self, id: &RecordId) {
        self.buckets().remove(id);
    }

    /// Reserves a start for a task.
    ///
    /// Tasks of this process that count for the same number of starts get theirs in the order in which they ask. The first of
    /// them reserves for all that wait, and at full speed a block worth at most 100 ms, so that the record of a bucket is not
    /// written for each start.
    ///
    /// # Cancel safety
    /// A dropped future may leave starts reserved that nobody uses.
    pub(super) async fn next_start(
        &self,
        id: &RecordId,
        terms: Terms,
        calls: &ServerCalls,
        clock: &Clock,
    ) -> Result<NextStart, Unanswered> {
        let bucket = self.bucket(id);
        let waiting = AskingTask::of(&bucket, terms);
        let mut pool = bucket.pool.lock().await;
        if let Some(block) = pool.blocks.get_mut(&terms)
            && let Some(at) = block.starts.take(clock.now(), LAPSED_AFTER)
        {
            return Ok(NextStart::Reserved(at, block.starts.shift));
        }
        self.usable(id)?;
        let size = pool.next_block(terms, clock.now());
        let reserved = pool.reserve(id, terms, waiting.number().max(size), calls, clock).await;
        let mut starts = match self.noted(id, reserved)? {
            Ok(starts) => starts,
            Err(not_before) => return Ok(NextStart::NotBefore(not_before)),
        };
        // Its own start never lapses here: whoever takes it checks if it is late.
        let first = starts.take(clock.now(), Duration::MAX);
        let shift = starts.shift;
        pool.blocks.insert(terms, Block { starts, size, reserved_at: Instant::now() });
        Ok(NextStart::Reserved(first.unwrap_or_else(|| clock.now()), shift))
    }

    /// Requests a start now for a task whose start was reserved for `lapsed`; `None` if it was reserved under a faster rate. One
    /// that may not start yet is told when to ask again. Those of this process ask one after the other, within [`SOON`];
    /// a later time is not kept for the task.
    ///
    /// # Cancel safety
    /// A dropped future may push the bucket back by a start that nobody uses.
    pub(super) async fn start_late(
        &self,
        id: &RecordId,
        terms: Terms,
        lapsed: Option<Timestamp>,
        calls: &ServerCalls,
        clock: &Clock,
    ) -> Result<NextStart, Unanswered> {
        let bucket = self.bucket(id);
        let mut pool = bucket.pool.lock().await;
        self.usable(id)?;
        let by = RunId::fresh();
        let mut attempted = None;
        loop {
            let now = clock.now();
            match start_late(&pool.known, id, terms, lapsed, by.as_str(), now) {
                LateDecision::NotBefore(next) => {
                    // One further ahead was counted under a slower rate.
                    let furthest = now.plus(SOON.saturating_add(terms.step_time()));
                    let turn = pool.late_turn.filter(|turn| *turn <= furthest);
                    let turn = turn.map_or(next, |turn| turn.max(next));
                    if turn <= now.plus(SOON) {
                        pool.late_turn = Some(turn.plus(terms.step_time()));
                    }
                    return Ok(NextStart::NotBefore(turn));
                }
                // INVARIANT: nothing is made that was not attempted.
                LateDecision::Made => return Ok(attempted.expect("an attempt")),
                LateDecision::Commit(commit, shift) => {
                    let start = NextStart::Reserved(now, shift);
                    attempted = Some(start);
                    let written = commit.facts.iter().cloned().collect();
                    let committed = calls.commit(*commit).await;
                    pool.known_at = Some(Instant::now());
                    match self.noted(id, committed)? {
                        Committed::Done { .. } => {
                            pool.known = written;
                            return Ok(start);
                        }
                        Committed::Refused(facts) => pool.known = facts,
                    }
                }
            }
        }
    }

    /// Returns the time by which a bucket has been pushed back, in microseconds, as it was at most 100 ms ago.
    pub(super) async fn shift(&self, id: &RecordId, calls: &ServerCalls) -> Result<i64, Unanswered> {
        let bucket = self.bucket(id);
        let mut pool = bucket.pool.lock().await;
        Ok(shift(self.known(id, &mut pool, calls).await?))
    }

    /// Returns the time before which [`Limits::start_late`] would refuse a task; `None` if it would not. Takes nothing.
    pub(super) async fn late_turn(
        &self,
        id: &RecordId,
        terms: Terms,
        calls: &ServerCalls,
        clock: &Clock,
    ) -> Result<Option<Timestamp>, Unanswered> {
        let bucket = self.bucket(id);
        let mut pool = bucket.pool.lock().await;
        let known = self.known(id, &mut pool, calls).await?;
        match start_late(known, id, terms, None, RunId::fresh().as_str(), clock.now()) {
            LateDecision::NotBefore(at) => Ok(Some(at)),
            LateDecision::Made | LateDecision::Commit(..) => Ok(None),
        }
    }

    /// Returns the record of a bucket, as it was at most 100 ms ago.
    async fn known<'a>(
        &self,
        id: &RecordId,
        pool: &'a mut StartPool,
        calls: &ServerCalls,
    ) -> Result<&'a Facts, Unanswered> {
        if pool.known_at.is_none_or(|at| at.elapsed() >= LAPSED_AFTER) {
            self.usable(id)?;
            pool.known = self.noted(id, calls.read_record(id).await)?;
            pool.known_at = Some(Instant::now());
        }
        Ok(&pool.known)
    }
}

fn warn_if_paused(target: &LimitTarget, limit: &Limit) {
    if limit.is_paused() {
        tracing::warn!(%target, %limit, "a limit of zero pauses these tasks: they wait until it is raised");
    }
}

impl StartPool {
    /// Reserves starts. Returns the time of the next one if as many are reserved as may be.
    async fn reserve(
        &mut self,
        id: &RecordId,
        terms: Terms,
        number: u32,
        calls: &ServerCalls,
        clock: &Clock,
    ) -> Result<Result<Starts, Timestamp>, Unanswered> {
        let by = RunId::fresh();
        let mut attempted = None;
        loop {
            match reserve(&self.known, id, terms, number, by.as_str(), clock.now()) {
                ReserveDecision::Full(_) if self.known_at.is_none_or(|at| at.elapsed() >= LAPSED_AFTER) => {
                    // Somebody may have reset it meanwhile.
                    self.known = calls.read_record(id).await?;
                    self.known_at = Some(Instant::now());
                }
                ReserveDecision::Full(at) => return Ok(Err(at)),
                // INVARIANT: nothing is made that was not attempted.
                ReserveDecision::Made => return Ok(Ok(attempted.expect("an attempt"))),
                ReserveDecision::Commit(commit, starts) => {
                    attempted = Some(starts);
                    let written = commit.facts.iter().cloned().collect();
                    let committed = calls.commit(*commit).await?;
                    self.known_at = Some(Instant::now());
                    match committed {
                        Committed::Done { .. } => {
                            self.known = written;
                            return Ok(Ok(starts));
                        }
                        Committed::Refused(facts) => self.known = facts,
                    }
                }
            }
        }
    }

    /// Returns the number of starts to reserve without tasks for them: more, the more often this worker reserves for such tasks.
    /// Forgets the blocks that nobody can use any more.
    fn next_block(&mut self, terms: Terms, now: Timestamp) -> u32 {
        let is_new = |block: &Block| block.reserved_at.elapsed() < LAPSED_AFTER;
        self.blocks.retain(|_, block| is_new(block) || !block.starts.are_over(now, LAPSED_AFTER));
        let last = self.blocks.get(&terms).filter(|block| is_new(block));
        last.map_or(1, |block| block.size.saturating_mul(2).clamp(1, terms.block()))
    }
}

/// A task that wants a start, counted until it has one.
struct AskingTask<'a> {
    bucket: &'a Bucket,
    terms: Terms,
}

impl<'a> AskingTask<'a> {
    fn of(bucket: &'a Bucket, terms: Terms) -> Self {
        *bucket.waiting().entry(terms).or_default() += 1;
        Self { bucket, terms }
    }

    /// Number of tasks that want such a start.
    fn number(&self) -> u32 {
        self.bucket.waiting().get(&self.terms).copied().unwrap_or(1)
    }
}

impl Drop for AskingTask<'_> {
    fn drop(&mut self) {
        let mut waiting = self.bucket.waiting();
        match waiting.get_mut(&self.terms) {
            Some(number) if *number > 1 => *number -= 1,
            _ => drop(waiting.remove(&self.terms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RecordKind;

    #[test]
    fn a_million_keys_take_a_bounded_number_of_buckets() {
        let limits = Limits::new(HashMap::new());
        let id = |number: usize| RecordId::new(RecordKind::Limit, &format!("rate/task:t:{number}"));
        let in_use: Vec<_> = (0..10).map(|number| limits.bucket(&id(number))).collect();
        for number in 0..1_000_000 {
            drop(limits.bucket(&id(number)));
            assert!(limits.buckets().len() <= MANY_BUCKETS + 1);
        }
        assert!((0..10).all(|number| Arc::ptr_eq(&limits.bucket(&id(number)), &in_use[number])));
    }
}
