//! All that is known about queues: what waits, what comes and goes, and for how long the oldest message waits.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::{
    affinity::with_base,
    backend::{BackendError, Index},
    client::Client,
    clock::Timestamp,
    control::ControlError,
    history::RecentHistory,
    id::{QueueName, RecordId},
    listed_tasks::TaskList,
    queue_age::{EMPTY, TAKEN, age_record, oldest_age},
};

/// Maximum number of pages of the schedule that are counted, where the broker does not tell the delayed messages.
const MAX_PAGES: usize = 4;

/// All that is known about a queue. A number that is not known is `None`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueueDetails {
    /// The queue.
    pub queue: QueueName,
    /// Messages that wait for a worker; `None` if the queue does not exist.
    pub ready: Option<u64>,
    /// Maximum of `ready`, if this application bounds it ([`AppBuilder::max_depth`](crate::AppBuilder::max_depth)).
    pub max_depth: Option<u64>,
    /// Messages that wait for their time. A broker that does not tell has the tasks of the schedule counted, if they are not
    /// more than 2,000.
    pub delayed: Option<u64>,
    /// Deliveries that are not settled, if the broker tells it.
    pub unacked: Option<u64>,
    /// Messages among its dead letters; `None` if it never had any.
    pub dead: Option<u64>,
    /// Subscriptions of all processes.
    pub consumers: Option<u64>,
    /// Messages per second that came in during the last minute, from the history.
    pub in_rate: Option<f64>,
    /// Messages per second that workers took during the last minute, from the history.
    pub out_rate: Option<f64>,
    /// Time for which the oldest ready message waits at most.
    pub oldest_age: Option<Duration>,
    /// Time until the queue is empty at the present rates; `None` if it does not become empty, or the rates are not known.
    pub empty_in: Option<Duration>,
    /// `true` if no worker takes tasks from it until it is resumed.
    pub paused: bool,
}

/// Returns the time until so many messages are gone.
#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn empty_in(ready: u64, into: f64, out: f64) -> Option<Duration> {
    if ready == 0 {
        return Some(Duration::ZERO);
    }
    let gone = out - into;
    // A queue that hardly shrinks does not become empty in a time that means anything.
    if gone < 1e-3 { None } else { Duration::try_from_secs_f64(ready as f64 / gone).ok() }
}

/// Maximum number of queue names that are read at once.
const PAGE_NAMES: usize = 1000;

impl Client {
    /// Returns the queues that workers have consumed or senders have named, with the time of the last of that. The list may
    /// lag.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn listed_queues(&self) -> Result<BTreeMap<QueueName, Timestamp>, BackendError> {
        let mut listed = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.app.backend().list(&Index::Queues, after, PAGE_NAMES).await?;
            listed.extend(page.iter().filter_map(|(at, name)| Some((QueueName::parse(name).ok()?, *at))));
            if page.len() < PAGE_NAMES {
                return Ok(listed);
            }
            after = page.into_iter().last();
        }
    }

    /// Returns all that is known about these queues, in their order. Changes nothing.
    ///
    /// The rates come from the history ([`AppBuilder::events`](crate::AppBuilder::events)), and the age from what workers have
    /// taken last.
    ///
    /// # Errors
    /// [`ControlError::Broker`], [`ControlError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn queue_details(&self, queues: &[QueueName]) -> Result<Vec<QueueDetails>, ControlError> {
        let (broker, backend) = (self.app.broker(), self.app.backend());
        let depths = broker.depth(queues).await?;
        let held = broker.held(queues).await?;
        let now = self.app.clock().now();
        let records: Vec<RecordId> = queues.iter().map(age_record).collect();
        let ages = backend.read_each(&records).await?;
        let recent = RecentHistory::read(backend.as_ref(), now).await?;
        let paused = self.paused_queues().await?;
        let scheduled = match held.iter().any(|counts| counts.delayed.is_none()) {
            true => self.scheduled_by_queue().await?,
            false => None,
        };
        let mut details = Vec::with_capacity(queues.len());
        for ((depth, held), facts) in depths.into_iter().zip(held).zip(ages) {
            let facts = facts.unwrap_or_default();
            let rates = depth.ready.and_then(|ready| recent.rates(depth.queue.as_str(), ready, now));
            let counted =
                |counts: &HashMap<String, u64>| counts.get(depth.queue.as_str()).copied().unwrap_or(0);
            let is_paused = |queue: &QueueName| with_base(queue).any(|queue| paused.contains(&*queue));
            details.push(QueueDetails {
                ready: depth.ready,
                max_depth: self.app.0.depths.most_of(&depth.queue),
                delayed: held.delayed.or_else(|| scheduled.as_ref().map(counted)),
                unacked: held.unacked,
                dead: depth.dead,
                consumers: depth.consumers,
                in_rate: rates.map(|rates| rates.into),
                out_rate: rates.map(|rates| rates.out),
                oldest_age: depth
                    .ready
                    .and_then(|ready| oldest_age(ready, facts.read(TAKEN), facts.read(EMPTY), now)),
                empty_in: depth.ready.and_then(|ready| match rates {
                    Some(rates) => empty_in(ready, rates.into, rates.out),
                    None => empty_in(ready, 0.0, 0.0),
                }),
                paused: is_paused(&depth.queue),
                queue: depth.queue,
            });
        }
        Ok(details)
    }

    /// Counts the tasks that wait for their time, by queue; `None` if they are too many.
    async fn scheduled_by_queue(&self) -> Result<Option<HashMap<String, u64>>, BackendError> {
        let mut counts: HashMap<String, u64> = HashMap::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let page = self.list_tasks(TaskList::Scheduled, after).await?;
            for queue in page.records.into_iter().filter_map(|record| record.queue) {
                *counts.entry(queue).or_default() += 1;
            }
            after = page.next;
            if after.is_none() {
                return Ok(Some(counts));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_becomes_empty_only_if_more_goes_than_comes() {
        assert_eq!(empty_in(0, 5.0, 0.0), Some(Duration::ZERO));
        assert_eq!(empty_in(100, 5.0, 15.0), Some(Duration::from_secs(10)));
        assert_eq!(empty_in(100, 5.0, 5.0), None);
        assert_eq!(empty_in(100, 5.0, 1.0), None);
        assert_eq!(empty_in(u64::MAX, 0.0, 0.002), None);
    }
}
