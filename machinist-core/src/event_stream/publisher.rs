//! Publication of the events of one process, in batches, without keeping any task from its work.

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{KEPT_FOR, StreamedEvent};
use crate::{
    backend::{Backend, BackendError, Commit, Committed, Expiry, Index, IndexUpdate},
    clock::{Clock, Timestamp},
    ended::EndedList,
    event::{Event, EventKind},
    id::{RecordId, RecordKind, RunId},
    record::json,
};

/// Time for which events are gathered before they are published.
const GATHER_TIME: Duration = Duration::from_millis(250);
/// Interval at which a publisher without events lists ended tasks, and looks whether its application is still there.
const LOOK_FOR_APP: Duration = Duration::from_secs(5);
/// Maximum number of events that wait. What comes above is dropped and counted.
const MAX_WAITING: usize = 4000;
/// Maximum number of events of one batch.
const MAX_BATCH: usize = 1000;
/// Fact of a batch.
pub(crate) const BATCH: &str = "batch";

/// Events that a process publishes for readers elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PublishedEvents {
    /// None.
    #[default]
    Off,
    /// Failures, retries, refusals, dead letters, takeovers, and the states of workers.
    Failures,
    /// All.
    All,
}

impl PublishedEvents {
    /// All values, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::All, Self::Failures, Self::Off];

    /// Returns the value as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Failures => "failures",
            Self::All => "all",
        }
    }

    /// Returns `true` if an event of this kind is published.
    #[inline]
    const fn include(self, kind: &EventKind<'_>) -> bool {
        match (self, kind) {
            (Self::Off, _) => false,
            // Logs of tasks are stored, and measurements are of use to this process alone.
            (
                _,
                EventKind::Logged { .. } | EventKind::QueueMeasured { .. } | EventKind::WorkerMeasured { .. },
            ) => false,
            (Self::All, _) => true,
            (Self::Failures, EventKind::Ended { failure, .. }) => failure.is_some(),
            (
                Self::Failures,
                EventKind::Retried { .. }
                | EventKind::SendDropped { .. }
                | EventKind::Refused { .. }
                | EventKind::DeadLettered { .. }
                | EventKind::TakenOver { .. }
                | EventKind::Overdue { .. }
                | EventKind::WorkerStarted { .. }
                | EventKind::WorkerState { .. }
                | EventKind::WorkerEnded { .. },
            ) => true,
            (Self::Failures, _) => false,
        }
    }
}

impl fmt::Display for PublishedEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Events that were published together.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct EventBatch {
    pub(crate) events: Vec<StreamedEvent>,
    /// Number of events that were dropped before these.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) dropped: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Gathers the events of a process and publishes them.
pub(crate) struct EventPublisher {
    which: PublishedEvents,
    /// Name of the process in the index: random, because a process that starts again counts from 1.
    process: RunId,
    waiting: Mutex<WaitingEvents>,
    /// Wakes the task that publishes.
    gathered: Notify,
    /// Tasks that have ended, among the events that are published.
    ended: EndedList,
    /// Number of the last batch, and the time of those that are still listed.
    published: tokio::sync::Mutex<PublishedBatches>,
}

#[derive(Debug, Default)]
struct WaitingEvents {
    events: VecDeque<StreamedEvent>,
    /// Number of events that were dropped and that no batch has told yet.
    dropped: u64,
    /// Number of events that were dropped since somebody has asked.
    dropped_since_asked: u64,
}

#[derive(Debug, Default)]
struct PublishedBatches {
    last: u64,
    listed: VecDeque<(Timestamp, u64)>,
}

/// Returns the name of a batch in the index.
fn member(process: &RunId, number: u64) -> String {
    format!("{process} {number:020}")
}

/// Returns the process and the number of a batch.
pub(crate) fn parse_member(member: &str) -> Option<(&str, u64)> {
    let (process, number) = member.rsplit_once(' ')?;
    Some((process, number.parse().ok()?))
}

/// Returns the record of a batch.
pub(crate) fn batch_record(member: &str) -> RecordId {
    RecordId::new(RecordKind::Control, &format!("events {member}"))
}

impl EventPublisher {
    pub(crate) fn new(which: PublishedEvents) -> Self {
        Self {
            which,
            process: RunId::fresh(),
            waiting: Mutex::default(),
            gathered: Notify::new(),
            ended: EndedList::new(),
            published: tokio::sync::Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingEvents> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event, if it must be published. Never waits for a server.
    #[inline]
    pub(crate) fn note(&self, event: &Event<'_>) {
        if self.which.include(&event.kind) {
            self.ended.note(event);
            self.gather(event);
        }
    }

    fn gather(&self, event: &Event<'_>) {
        let mut waiting = self.waiting();
        if waiting.events.len() >= MAX_WAITING {
            waiting.dropped += 1;
            waiting.dropped_since_asked += 1;
            return;
        }
        let streamed = StreamedEvent::of(event);
        waiting.events.push_back(streamed);
        drop(waiting);
        self.gathered.notify_one();
    }

    /// Returns `true` if it publishes anything.
    pub(crate) fn is_on(&self) -> bool {
        self.which != PublishedEvents::Off
    }

    /// Returns the number of events that were dropped since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        mem::take(&mut self.waiting().dropped_since_asked)
    }

    /// Waits until events are gathered, and for a moment more; without events for a few seconds.
    pub(crate) async fn gathered(&self) {
        if tokio::time::timeout(LOOK_FOR_APP, self.gathered.notified()).await.is_ok() {
            tokio::time::sleep(GATHER_TIME).await;
        }
    }

    /// Publishes what waits, and lists the tasks that have ended a while ago; with `all`, all of them.
    pub(crate) async fn flush(&self, backend: &dyn Backend, clock: &Clock, all: bool) {
        self.publish_events(backend, clock).await;
        self.ended.flush(backend, clock.now(), all).await;
    }

    async fn publish_events(&self, backend: &dyn Backend, clock: &Clock) {
        let mut published = self.published.lock().await;
        loop {
            let batch = self.next_batch();
            if batch.events.is_empty() && batch.dropped == 0 {
                return;
            }
            let count = batch.events.len() as u64 + batch.dropped;
            published.last += 1;
            if let Err(error) = self.publish(backend, clock.now(), &mut published, &batch).await {
                tracing::debug!(%error, count, "events were not published");
                // Readers see the number of the batch that is missing; the next batch tells how many events it had.
                let mut waiting = self.waiting();
                waiting.dropped += count;
                waiting.dropped_since_asked += batch.events.len() as u64;
                return;
            }
        }
    }

    fn next_batch(&self) -> EventBatch {
        let mut waiting = self.waiting();
        let count = waiting.events.len().min(MAX_BATCH);
        EventBatch {
            events: waiting.events.drain(..count).collect(),
            dropped: mem::take(&mut waiting.dropped),
        }
    }

    async fn publish(
        &self,
        backend: &dyn Backend,
        now: Timestamp,
        published: &mut PublishedBatches,
        batch: &EventBatch,
    ) -> Result<(), BackendError> {
        let number = published.last;
        let member_of = |number| member(&self.process, number);
        let mut commit = Commit::new(batch_record(&member_of(number)));
        commit.facts = vec![(BATCH.into(), json(batch))];
        commit.expiry = Expiry::After(KEPT_FOR);
        for answer in backend.commit(vec![commit.into()]).await {
            // Its name is new: only a repetition of the same commit could be refused.
            let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
        }
        published.listed.push_back((now, number));
        let mut updates = vec![IndexUpdate::Put { index: Index::Events, at: now, member: member_of(number) }];
        while published.listed.front().is_some_and(|(at, _)| now.since(*at) > KEPT_FOR) {
            let over = published.listed.pop_front();
            updates.extend(
                over.map(|(_, number)| IndexUpdate::Remove {
                    index: Index::Events,
                    member: member_of(number),
                }),
            );
        }
        backend.update_indexes(updates).await
    }
}

impl fmt::Debug for EventPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventPublisher").field("which", &self.which).finish_non_exhaustive()
    }
}
