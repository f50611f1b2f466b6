//! Publishing delayed tasks again that are long overdue and that no worker has seen.
//!
//! One worker of the installation looks at a time, at the early end of the schedule. What it publishes goes straight to
//! its queue, not through the queues that hold delays. A queue that still holds messages is left alone: the overdue task
//! may be among them. [`record::overdue_attempt`](crate::record) decides which tasks count as lost.

use std::{collections::HashMap, time::Duration};

use super::{WorkerContext, server_calls::jittered};
use crate::{
    backend::{BackendError, Index, IndexUpdate},
    broker::{Publish, Target},
    clock::Timestamp,
    control::ControlError,
    event::{EventKind, EventTask},
    id::{QueueName, TaskId},
    record::{Facts, OVERDUE_AFTER, WaitingAttempt, name, overdue_attempt, waiting_attempt},
    wire::Envelope,
};

/// Maximum interval between the looks of one worker.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Time after which a task that was published again counts as overdue once more, less [`OVERDUE_AFTER`].
const NEXT_LOOK: Duration = Duration::from_secs(9 * 60);
/// The same for a task that may still wait in its queue.
const NEXT_LOOK_AT_WAITING: Duration = Duration::ZERO;
/// Number of tasks that are looked at together.
const PAGE_SIZE: usize = 64;
/// Maximum number of pages of one look.
const MAX_PAGES: usize = 64;

/// Numbers of messages in queues that exist.
type ReadyMessages = HashMap<QueueName, Option<u64>>;

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
    // Counted once: what this look publishes does not count.
    let mut ready = ReadyMessages::new();
    for _ in 0..MAX_PAGES {
        let now = worker.now();
        let page = worker.app.backend().list(&Index::Scheduled, after, PAGE_SIZE).await?;
        let overdue: Vec<_> =
            page.into_iter().take_while(|(at, _)| now.since(*at) >= OVERDUE_AFTER).collect();
        if overdue.is_empty() {
            break;
        }
        let tasks: Vec<_> = client.listed(&overdue).await?.collect();
        count_ready(worker, &tasks, &mut ready).await;
        let updates = publish_page(worker, &tasks, &ready, now).await;
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
    ready: &ReadyMessages,
    now: Timestamp,
) -> Vec<IndexUpdate> {
    let mut updates = Vec::new();
    let mut lost = Vec::new();
    for (id, facts) in tasks {
        let member = id.to_string();
        updates.push(match waiting_attempt(facts) {
            None => IndexUpdate::Remove { index: Index::Scheduled, member },
            Some(waiting) => {
                let may_be_lost = is_empty(ready, facts) && !is_shared(worker, facts);
                let next_look = match overdue_attempt(facts, now).filter(|_| may_be_lost) {
                    Some(waiting) => {
                        lost.extend(kept(worker, id, facts, &waiting));
                        NEXT_LOOK
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

/// Counts the messages in the queues of these tasks that were not counted yet.
async fn count_ready(worker: &WorkerContext, tasks: &[(TaskId, Facts)], ready: &mut ReadyMessages) {
    let mut queues: Vec<_> = tasks.iter().filter_map(|(_, facts)| queue_of(facts)).collect();
    queues.sort_unstable();
    queues.dedup();
    queues.retain(|queue| !ready.contains_key(queue));
    if queues.is_empty() {
        return;
    }
    match worker.app.broker().depth(&queues).await {
        Ok(depths) => ready.extend(depths.into_iter().map(|depth| (depth.queue, depth.ready))),
        Err(error) => {
            tracing::debug!(%error, "the queues of overdue tasks were not counted");
            ready.extend(queues.into_iter().map(|queue| (queue, None)));
        }
    }
}

fn queue_of(facts: &Facts) -> Option<QueueName> {
    QueueName::parse(&facts.text(name::QUEUE)?).ok()
}

/// Returns `true` if the queue of this task exists and holds no message.
fn is_empty(ready: &ReadyMessages, facts: &Facts) -> bool {
    queue_of(facts).is_some_and(|queue| ready.get(&queue) == Some(&Some(0)))
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
                        "no worker has received a delayed task, and its queue is empty: it is published again"
                    );
                }
                worker.emit(EventKind::Overdue { task: EventTask::of(envelope), due: *due });
            }
            Err(error) => tracing::debug!(%id, %error, "an overdue task was not published again"),
        }
    }
}
