//! Decision why a task does not run: from what the stores say to reasons, the decisive one first. Pure.

use std::time::Duration;

use super::{
    code::WhyReason,
    situation::{QueueSituation, TaskSituation, WorkflowPart},
};
use crate::{
    affinity::TagQueue,
    fleet::WorkerInfo,
    record::{FailureKind, PresenceState, Record, TaskState},
};

/// Time without a step from which a task whose queue is empty counts as stranded. Copies of messages that come back
/// later stay away for some minutes.
const STRANDED_AFTER: Duration = Duration::from_secs(30 * 60);

/// Returns the reasons that hold for a task, the decisive one first; at least one.
pub(super) fn of_task(situation: &TaskSituation) -> Vec<WhyReason> {
    let Some(record) = &situation.record else {
        let waits = situation.workflow.is_some();
        return vec![if waits { WhyReason::WaitsForSteps } else { WhyReason::UnknownId }];
    };
    match record.state {
        TaskState::Success | TaskState::Failure => of_ended(situation, record),
        TaskState::Started if situation.session_lives => vec![WhyReason::Running],
        TaskState::Started => with_queue(situation, record, vec![WhyReason::WorkerGone]),
        TaskState::Pending | TaskState::Received | TaskState::Retry => of_waiting(situation, record),
    }
}

/// Returns the reasons that hold for a queue.
pub(super) fn of_queue(queue: &QueueSituation) -> Vec<WhyReason> {
    let mut found = Vec::new();
    match &queue.depth {
        Err(_) => found.push(WhyReason::BrokerAway),
        Ok(depth) if depth.ready.is_none() && queue.consumers().next().is_none() => {
            return vec![WhyReason::UnknownId];
        }
        Ok(_) => {}
    }
    if queue.paused {
        found.push(WhyReason::Paused);
    }
    found.extend(lack_of_workers(queue, None).filter(|lack| !found.contains(lack)));
    if queue.unread.is_some() {
        found.push(WhyReason::Refused);
    }
    if found.is_empty() {
        found.push(WhyReason::Queued);
    }
    found
}

fn of_ended(situation: &TaskSituation, record: &Record) -> Vec<WhyReason> {
    if let Some(WorkflowPart { incomplete, ended: false, .. }) = situation.workflow {
        let open = if incomplete { WhyReason::IncompleteSend } else { WhyReason::WaitsForSteps };
        return vec![open, WhyReason::Ended];
    }
    let mut found = Vec::new();
    match record.kind {
        Some(FailureKind::NoWorker) => found.push(WhyReason::NotSent),
        Some(FailureKind::Duplicate | FailureKind::Replaced) => found.push(WhyReason::Duplicate),
        Some(FailureKind::Rejected | FailureKind::Malformed | FailureKind::Unregistered) => {
            found.push(WhyReason::Refused);
        }
        _ => {}
    }
    found.push(WhyReason::Ended);
    found.extend(situation.letter.as_ref().map(|_| WhyReason::DeadLetter));
    found
}

fn of_waiting(situation: &TaskSituation, record: &Record) -> Vec<WhyReason> {
    let mut found = Vec::new();
    if situation.letter.is_some() {
        found.push(WhyReason::DeadLetter);
    }
    if situation.waits_unread.is_some() {
        found.push(WhyReason::Refused);
    }
    if record.parked.is_none() && record.eta.is_some_and(|eta| eta > situation.now) {
        found.push(if record.state == TaskState::Retry { WhyReason::Retry } else { WhyReason::Delayed });
    }
    if situation.disabled {
        found.push(WhyReason::Disabled);
    }
    match record.parked.as_ref().and_then(|parked| parked.reason.split(':').next()) {
        None | Some("disabled") => {}
        Some("circuit") => found.push(WhyReason::CircuitOpen),
        Some(_) => found.push(WhyReason::Limited),
    }
    with_queue(situation, record, found)
}

/// Adds the reasons that lie in the queue of the task. Those without which nothing goes on come first, unless the task would
/// wait anyway.
fn with_queue(situation: &TaskSituation, record: &Record, mut found: Vec<WhyReason>) -> Vec<WhyReason> {
    let Some(queue) = &situation.queue else {
        found.extend(situation.overdue.then_some(WhyReason::Overdue));
        return non_empty(found, WhyReason::Queued);
    };
    if queue.depth.is_err() {
        found.insert(0, WhyReason::BrokerAway);
    }
    if queue.paused {
        found.push(WhyReason::Paused);
    }
    let lack = lack_of_workers(queue, record.name.as_deref());
    found.extend(lack.filter(|lack| !found.contains(lack)));
    if record.state == TaskState::Started {
        // Nobody takes it over where nobody takes anything.
        let stopped = |reason: &WhyReason| {
            matches!(reason, WhyReason::NoConsumer | WhyReason::NoTag | WhyReason::UnknownTask)
        };
        if let Some(decisive) = found.iter().position(stopped) {
            found.rotate_left(decisive);
        }
        return found;
    }
    let stands_still = found.iter().any(|reason| {
        matches!(
            reason,
            WhyReason::NoConsumer
                | WhyReason::NoTag
                | WhyReason::UnknownTask
                | WhyReason::Paused
                | WhyReason::Asleep
                | WhyReason::Busy
        )
    });
    // With any other reason its message is somewhere else, or nobody would take it.
    if found.is_empty() && situation.queue_is_empty() && situation.quiet_for() >= STRANDED_AFTER {
        found.push(WhyReason::Stranded);
    }
    if situation.overdue && !stands_still {
        found.push(WhyReason::Overdue);
    }
    let holds = record.state == TaskState::Received;
    non_empty(found, if holds { WhyReason::Busy } else { WhyReason::Queued })
}

fn non_empty(mut found: Vec<WhyReason>, otherwise: WhyReason) -> Vec<WhyReason> {
    if found.is_empty() {
        found.push(otherwise);
    }
    found
}

/// Returns the reason that no worker of the queue takes a task now, or one of this name, if there is one.
fn lack_of_workers(queue: &QueueSituation, task: Option<&str>) -> Option<WhyReason> {
    if queue.consumers().next().is_none() {
        let requires = TagQueue::of(queue.name.as_str()).is_some();
        return Some(if requires { WhyReason::NoTag } else { WhyReason::NoConsumer });
    }
    let knows = |worker: &WorkerInfo| task.is_none_or(|task| worker.may_know(task));
    let able: Vec<_> = queue.consumers().filter(|worker| knows(worker)).collect();
    if able.is_empty() {
        return Some(WhyReason::UnknownTask);
    }
    if able.iter().all(|worker| worker.state == PresenceState::Asleep) {
        let wakes = able.iter().any(|worker| worker.wakes);
        return Some(if wakes { WhyReason::Asleep } else { WhyReason::Paused });
    }
    let is_full = able
        .iter()
        .all(|worker| worker.state == PresenceState::Asleep || worker.running >= worker.concurrency);
    is_full.then_some(WhyReason::Busy)
}
