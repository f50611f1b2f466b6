//! The reader's side of events.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::{
    KEPT_FOR, StreamedEvent,
    publisher::{BATCH, EventBatch, batch_record, parse_member},
};
use crate::{
    app::App,
    backend::{BackendError, Index, IndexUpdate},
    client::Client,
    clock::Timestamp,
    id::{QueueName, RecordId, TaskName},
};

/// Interval at which a reader looks for batches.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Time for which a batch may be listed later than one with a later instant.
const OVERLAP: Duration = Duration::from_secs(2);
/// Number of batches that are listed at once.
const PAGE_SIZE: usize = 200;

/// Selection of events: those that match all criteria. A gap matches every filter.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EventFilter {
    /// Only those about tasks of this name.
    pub task: Option<TaskName>,
    /// Only those about this queue.
    pub queue: Option<QueueName>,
    /// Only those after which the task, or the worker, has this state.
    pub state: Option<String>,
    /// Only those of this worker.
    pub worker: Option<String>,
    /// Also those of this time before now, at most a minute.
    pub since: Duration,
}

impl EventFilter {
    /// Creates a filter that every event matches from now on.
    pub fn new() -> Self {
        Self::default()
    }

    fn fits(&self, event: &StreamedEvent) -> bool {
        let is = |wanted: Option<&str>, found: &Option<String>| {
            wanted.is_none_or(|wanted| found.as_deref() == Some(wanted))
        };
        let state_fits = self.state.as_ref().is_none_or(|wanted| {
            event.state.as_ref().is_some_and(|state| state.eq_ignore_ascii_case(wanted))
        });
        event.event == "gap"
            || (is(self.task.as_ref().map(TaskName::as_str), &event.task)
                && is(self.queue.as_ref().map(QueueName::as_str), &event.queue)
                && is(self.worker.as_deref(), &event.worker)
                && state_fits)
    }
}

/// Events of all processes of the installation, in the order of their batches. Those of one process keep their order.
#[derive(Debug)]
pub struct EventStream {
    app: App,
    filter: EventFilter,
    /// Instant of the newest batch that was listed.
    newest: Timestamp,
    /// Batches that were read within the overlap.
    seen: HashSet<(Timestamp, String)>,
    /// Number of the last batch of each process.
    last: HashMap<String, u64>,
    ready: VecDeque<StreamedEvent>,
}

impl Client {
    /// Reads the events that the processes of the installation publish ([`AppBuilder::events`](crate::AppBuilder::events)),
    /// within a second.
    ///
    /// Events are notifications: a reader that is told of a gap reads the records.
    pub fn events(&self, filter: EventFilter) -> EventStream {
        let newest = self.app.clock().now().minus(filter.since.min(KEPT_FOR));
        EventStream {
            app: self.app.clone(),
            filter,
            newest,
            seen: HashSet::new(),
            last: HashMap::new(),
            ready: VecDeque::new(),
        }
    }
}

impl EventStream {
    /// Returns the next event. Waits while there is none.
    ///
    /// # Errors
    /// [`BackendError`]. The stream goes on where it was: call it again, after a while.
    ///
    /// # Cancel safety
    /// A dropped future loses no event.
    pub async fn next(&mut self) -> Result<StreamedEvent, BackendError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if !self.look().await? {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// Reads batches that are new. Returns `false` if there is none.
    async fn look(&mut self) -> Result<bool, BackendError> {
        let backend = self.app.backend();
        let mut after = Some((self.newest.minus(OVERLAP), String::new()));
        let mut unseen = Vec::new();
        loop {
            let page = backend.list(&Index::Events, after, PAGE_SIZE).await?;
            let is_last = page.len() < PAGE_SIZE;
            after = page.last().cloned();
            unseen.extend(page.into_iter().filter(|batch| !self.seen.contains(batch)));
            // The rest comes with the next look.
            if is_last || unseen.len() >= PAGE_SIZE {
                break;
            }
        }
        let records: Vec<RecordId> = unseen.iter().map(|(_, member)| batch_record(member)).collect();
        let facts = if records.is_empty() { Vec::new() } else { backend.read_each(&records).await? };
        let found = !unseen.is_empty();
        let mut over = Vec::new();
        for ((at, member), facts) in unseen.into_iter().zip(facts) {
            let batch: Option<EventBatch> = facts.ok().and_then(|facts| facts.read(BATCH));
            match batch {
                Some(batch) => self.take(at, &member, batch),
                // It has expired, and so has the process that would take it off the list.
                None => over.push(IndexUpdate::Remove { index: Index::Events, member: member.clone() }),
            }
            self.newest = self.newest.max(at);
            self.seen.insert((at, member));
        }
        let begin = self.newest.minus(OVERLAP * 2);
        self.seen.retain(|(at, _)| *at > begin);
        if !over.is_empty() {
            self.app.backend().update_indexes(over).await?;
        }
        Ok(found)
    }

    /// Adds the events of a batch, and a gap before them if there is one.
    fn take(&mut self, at: Timestamp, member: &str, batch: EventBatch) {
        let Some((process, number)) = parse_member(member) else { return };
        let last = self.last.insert(process.to_owned(), number);
        let skipped = last.map_or(0, |last| number.saturating_sub(last).saturating_sub(1));
        if skipped > 0 || batch.dropped > 0 {
            let worker = batch.events.first().and_then(|event| event.worker.clone());
            self.ready.push_back(StreamedEvent::gap(at.to_string(), worker, batch.dropped.max(skipped)));
        }
        let fitting = batch.events.into_iter().filter(|event| self.filter.fits(event));
        self.ready.extend(fitting);
    }
}
