//! Measurement of the queues: one worker at a time looks at all of them, and emits what it finds.
//!
//! Brokers do not tell how old the oldest message of a queue is. It follows from two instants, which are facts of a record of
//! the queue: the time from which the message could have run that workers took last (`taken`), and the last time at which the
//! queue was seen to be empty, written when it is no longer empty (`empty`). What waits now is not older than either. So the
//! age of a queue from which nothing is taken grows, and no message is touched to know it.
//!
//! Only workers with an observer that asks for it take part.

use std::{collections::HashMap, time::Duration};

use super::WorkerContext;
use crate::{
    backend::{BackendError, Commit, Committed, Expiry, Index},
    clock::Timestamp,
    error::BoxError,
    event::EventKind,
    fleet::WorkerFilter,
    id::{QueueName, RecordId, RecordKind, RunId},
    record::{Facts, PresenceState, json, keep_turn, take_turn},
};

/// Interval between two measurements.
const INTERVAL: Duration = Duration::from_secs(10);
/// Time for which a worker has the right to measure. Observers show a measurement for a shorter time.
const MEASURE_TURN: Duration = Duration::from_secs(25);
/// Maximum time of a measurement.
const LIMIT: Duration = Duration::from_secs(4);
/// Maximum number of queues that are measured.
const MAX_QUEUES: usize = 1000;
/// Time for which the record of a queue is kept.
const AGE_TTL: Duration = Duration::from_secs(24 * 3600);

const WORK: &str = "measure";
const TAKEN: &str = "taken";
const EMPTY: &str = "empty";

/// Returns the time for which the oldest ready message waits at most; `None` if nothing is known about the queue.
fn oldest_age(
    ready: u64,
    taken: Option<Timestamp>,
    empty: Option<Timestamp>,
    now: Timestamp,
) -> Option<Duration> {
    if ready == 0 {
        return Some(Duration::ZERO);
    }
    taken.max(empty).map(|since| now.since(since))
}

fn age_record(queue: &QueueName) -> RecordId {
    RecordId::new(RecordKind::Control, &format!("queue-age {queue}"))
}

/// Creates the commit that replaces an instant of a queue. A smaller one of another worker may replace it for a few seconds.
fn put_instant(queue: &QueueName, name: &'static str, at: Timestamp) -> Commit {
    let mut commit = Commit::new(age_record(queue));
    commit.drop = vec![name.into()];
    commit.facts = vec![(name.into(), json(&at))];
    commit.expiry = Expiry::After(AGE_TTL);
    commit
}

/// Measures for as long as an observer asks for it.
pub(super) async fn measure_forever(worker: &WorkerContext) {
    if !worker.app.0.observers.measure_queues() {
        return;
    }
    let mut measurer = Measurer {
        worker,
        holder: format!("{} {}", worker.name, RunId::fresh()),
        has_turn: false,
        seen_empty: HashMap::new(),
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

/// A worker that measures when it is its turn.
struct Measurer<'w> {
    worker: &'w WorkerContext,
    /// Name of the worker with a random part: two processes of one name have different turns.
    holder: String,
    has_turn: bool,
    /// Last time at which each queue was seen to be empty, while it was.
    seen_empty: HashMap<QueueName, Timestamp>,
}

impl Measurer<'_> {
    /// Stores what this worker took, and measures if it is its turn.
    async fn step(&mut self) -> Result<(), BoxError> {
        let taken = self.worker.events.last_taken.unstored();
        self.commit(taken.iter().map(|(queue, at)| put_instant(queue, TAKEN, *at)).collect()).await?;
        let turn = if self.has_turn { keep_turn } else { take_turn };
        let commit = turn(WORK, &self.holder, MEASURE_TURN);
        let answer = self.worker.app.client().commit(commit).await?;
        self.has_turn = matches!(answer, Committed::Done { .. });
        if self.has_turn { self.measure().await } else { Ok(()) }
    }

    async fn measure(&mut self) -> Result<(), BoxError> {
        let app = &self.worker.app;
        let listed = app.backend().list(&Index::Queues, None, MAX_QUEUES).await?;
        let names: Vec<QueueName> =
            listed.iter().filter_map(|(_, name)| QueueName::parse(name).ok()).collect();
        let depths = app.broker().depth(&names).await?;
        let records: Vec<RecordId> = names.iter().map(age_record).collect();
        let ages = app.backend().read_each(&records).await?;
        let workers = app.client().workers(&WorkerFilter::new()).await?;
        let now = self.worker.now();
        let mut changes = Vec::new();
        for (depth, facts) in depths.iter().zip(ages) {
            // One that does not exist has no messages, and no series.
            let Some(ready) = depth.ready else { continue };
            let queue = &depth.queue;
            let oldest_age = self.age(queue, ready, &facts.unwrap_or_default(), now, &mut changes);
            let takes = workers
                .iter()
                .filter(|worker| worker.state == PresenceState::Awake && worker.takes_from(queue));
            self.worker.emit(EventKind::QueueMeasured {
                queue,
                ready,
                dead: depth.dead.unwrap_or(0),
                consumers: takes.count() as u64,
                oldest_age,
            });
        }
        self.seen_empty.retain(|queue, _| names.contains(queue));
        self.commit(changes).await?;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_message_is_not_older_than_what_is_known() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let age = |ready, taken: Option<i64>, empty: Option<i64>| {
            oldest_age(ready, taken.map(at), empty.map(at), at(100)).map(|age| age.as_secs())
        };
        assert_eq!(age(0, Some(10), Some(20)), Some(0));
        assert_eq!(age(1, Some(70), Some(20)), Some(30));
        assert_eq!(age(1, Some(10), Some(20)), Some(80));
        assert_eq!(age(1, None, Some(99)), Some(1));
        assert_eq!(age(1, Some(200), None), Some(0), "a clock that has moved back");
        assert_eq!(age(1, None, None), None);
    }
}
