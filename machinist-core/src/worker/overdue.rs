//! Publishing delayed tasks again that are long overdue and that no worker has seen.
//!
//! One worker of the installation looks at a time, at the early end of the schedule. What it publishes goes straight to
//! its queue, not through the queues that hold delays. A queue that still holds messages is left alone, because the
//! overdue task may be among them, unless workers take messages from it that came much later.
//! [`record::overdue_attempt`](crate::record) decides which tasks count as lost.

use std::{collections::HashMap, time::Duration};

use super::{WorkerContext, server_calls::jittered};
use crate::{
    backend::{BackendError, Index, IndexUpdate},
    broker::{Publish, Target},
    clock::Timestamp,
    control::ControlError,
    event::{EventKind, EventTask},
    id::{QueueName, TaskId},
    queue_age::{TAKEN, age_record},
    record::{Facts, OVERDUE_AFTER, WaitingAttempt, is_overtaken, name, overdue_attempt, waiting_attempt},
    wire::Envelope,
};

/// Maximum interval between the looks of one worker.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Time after which a task that was published again counts as overdue once more, less [`OVERDUE_AFTER`].
const NEXT_LOOK: Duration = Duration::from_secs(9 * 60);
/// The same for a task that was published again into a queue that holds messages: it waits for its turn, and each
/// further copy takes one more.
const NEXT_LOOK_AT_BACKLOG: Duration = Duration::from_secs(59 * 60);
/// The same for a task that may still wait in its queue.
const NEXT_LOOK_AT_WAITING: Duration = Duration::ZERO;
/// Number of tasks that are looked at together.
const PAGE_SIZE: usize = 64;
/// Maximum number of pages of one look.
const MAX_PAGES: usize = 64;

/// Knowledge about the queues of overdue tasks.
type QueueLooks = HashMap<QueueName, QueueLook>;

/// Knowledge about a queue.
#[derive(Debug, Clone, Copy, Default)]
struct QueueLook {
    /// Number of its messages; `None` if it does not exist, or was not counted.
    ready: Option<u64>,
    /// Latest time from which a message could have run that workers took from it.
    taken: Option<Timestamp>,
}

impl QueueLook {
    /// Returns `true` if the queue exists, and does not hold the message of an attempt that was due at this time.
    fn has_lost(self, due: Timestamp) -> bool {
        self.ready.is_some_and(|ready| ready == 0 || is_overtaken(due, self.taken))
    }

    /// Returns the time after which a task that is published again counts as overdue once more, less [`OVERDUE_AFTER`].
    fn next_look(self) -> Duration {
        if self.ready == Some(0) { NEXT_LOOK } else { NEXT_LOOK_AT_BACKLOG }
    }
}

/// A task that is published again.
struct OverdueTask {
    id: TaskId,
    envelope: Envelope,
    due: Timestamp,
}

/// Looks for overdue tasks, and publishes them again. Never completes.
pub(super) async fn publish_forever(worker: &WorkerContext) {
    let mut is_usable = true;
    loop {
        tokio::time::sleep(jittered(LOOK_INTERVAL)).await;
        match look(worker).await {
            Ok(()) => is_usable = true,
            // A person has to remove what is there.
            Err(error) if error.is_of_one_record() && is_usable => {
                is_usable = false;
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the schedule cannot be searched: delayed tasks that the broker has lost are not published again"
                );
            }
            Err(error) => tracing::debug!(%error, "the schedule was not searched for overdue tasks"),
        }
    }
}

async fn look(worker: &WorkerContext) -> Result<(), BackendError> {
    if !worker.takes_turn("overdue").await? {
        return Ok(());
    }
    let client = worker.app.client();
    let mut after = None;
    // Asked once: what this look publishes does not count.
    let mut queues = QueueLooks::new();
    for _ in 0..MAX_PAGES {
        let now = worker.now();
        let page = worker.app.backend().list(&Index::Scheduled, after, PAGE_SIZE).await?;
        let overdue: Vec<_> =
            page.into_iter().take_while(|(at, _)| now.since(*at) >= OVERDUE_AFTER).collect();
        if overdue.is_empty() {
            break;
        }
        let tasks: Vec<_> = client.listed(&overdue).await?.collect();
        look_at_queues(worker, &tasks, &mut queues).await?;
        let updates = publish_page(worker, &tasks, &queues, now).await;
        if !updates.is_empty() {
            worker.app.backend().update_indexes(updates).await?;
        }
        if overdue.len() < PAGE_SIZE {
            break;
        }
        after = overdue.into_iter().last();
    }
    Ok(())
}

/// Publishes the tasks that count as lost. Returns the new entries of all tasks in the index.
async fn publish_page(
    worker: &WorkerContext,
    tasks: &[(TaskId, Facts)],
    queues: &QueueLooks,
    now: Timestamp,
) -> Vec<IndexUpdate> {
    let mut updates = Vec::new();
    let mut lost = Vec::new();
    for (id, facts) in tasks {
        let member = id.to_string();
        updates.push(match waiting_attempt(facts) {
            None => IndexUpdate::Remove { index: Index::Scheduled, member },
            Some(waiting) => {
                let queue = queue_of(facts).and_then(|queue| queues.get(&queue)).copied().unwrap_or_default();
                let is_lost = queue.has_lost(waiting.due) && !is_shared(worker, facts);
                let next_look = match overdue_attempt(facts, now).filter(|_| is_lost) {
                    Some(waiting) => {
                        lost.extend(kept(worker, id, facts, &waiting));
                        queue.next_look()
                    }
                    None => NEXT_LOOK_AT_WAITING,
                };
                // Overdue tasks make room for those behind them.
                let at = waiting.due.max(now.plus(next_look));
                IndexUpdate::Put { index: Index::Scheduled, at, member }
            }
        });
    }
    publish(worker, lost).await;
    updates
}

/// Looks at the queues of these tasks that were not looked at yet.
async fn look_at_queues(
    worker: &WorkerContext,
    tasks: &[(TaskId, Facts)],
    looks: &mut QueueLooks,
) -> Result<(), BackendError> {
    let mut queues: Vec<_> = tasks.iter().filter_map(|(_, facts)| queue_of(facts)).collect();
    queues.sort_unstable();
    queues.dedup();
    queues.retain(|queue| !looks.contains_key(queue));
    if queues.is_empty() {
        return Ok(());
    }
    let records: Vec<_> = queues.iter().map(age_record).collect();
    let ages = worker.app.backend().read_each(&records).await?;
    for (queue, facts) in queues.iter().zip(ages) {
        let stored = facts.ok().and_then(|facts| facts.read(TAKEN));
        let taken = worker.events.last_taken.of(queue).max(stored);
        looks.insert(queue.clone(), QueueLook { ready: None, taken });
    }
    match worker.app.broker().depth(&queues).await {
        Ok(depths) => {
            for depth in depths {
                looks.entry(depth.queue).or_default().ready = depth.ready;
            }
        }
        Err(error) => tracing::debug!(%error, "the queues of overdue tasks were not counted"),
    }
    Ok(())
}

fn queue_of(facts: &Facts) -> Option<QueueName> {
    QueueName::parse(&facts.text(name::QUEUE)?).ok()
}

/// Returns `true` if workers of another program take tasks from the queue of this task: they may have run it.
fn is_shared(worker: &WorkerContext, facts: &Facts) -> bool {
    queue_of(facts).is_some_and(|queue| worker.app.0.rules.guards_of(&queue).is_some())
}

/// Returns the task with the message that its record keeps.
fn kept(worker: &WorkerContext, id: &TaskId, facts: &Facts, waiting: &WaitingAttempt) -> Option<OverdueTask> {
    match worker.app.client().waiting_envelope(id, facts, waiting) {
        Ok(envelope) => Some(OverdueTask { id: id.clone(), envelope, due: waiting.due }),
        Err(error @ ControlError::NoMessage { .. }) => {
            if let Some(suppressed) = worker.app.0.log_lines.due("overdue", "") {
                tracing::warn!(%id, due = %waiting.due, %error, suppressed, "an overdue task cannot be published again");
            }
            None
        }
        Err(error) => {
            tracing::debug!(%id, %error, "an overdue task is left to other workers");
            None
        }
    }
}

async fn publish(worker: &WorkerContext, tasks: Vec<OverdueTask>) {
    let with_message =
        tasks.into_iter().filter_map(|task| Some((worker.app.message(&task.envelope).ok()?, task)));
    let (batch, tasks): (Vec<_>, Vec<_>) = with_message
        .map(|(message, task)| {
            let target = Target::Queue(worker.app.0.rules.queue_of(&task.envelope));
            (Publish { target, message, delay: Duration::ZERO }, task)
        })
        .unzip();
    if batch.is_empty() {
        return;
    }
    let answers = worker.app.broker().publish(batch).await;
    for (OverdueTask { id, envelope, due }, answer) in tasks.iter().zip(answers) {
        match answer {
            Ok(()) => {
                let queue = &envelope.queue;
                if let Some(suppressed) = worker.app.0.log_lines.due("published again", queue.as_str()) {
                    tracing::warn!(
                        %id,
                        %due,
                        attempt = envelope.attempt,
                        %queue,
                        suppressed,
                        "no worker has received a delayed task, and its queue is empty or was taken from past it: \
                         it is published again"
                    );
                }
                worker.emit(EventKind::Overdue { task: EventTask::of(envelope), due: *due });
            }
            Err(error) => tracing::debug!(%id, %error, "an overdue task was not published again"),
        }
    }
}
