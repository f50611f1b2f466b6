//! Answers in words: a sentence and an advice for each reason. Pure.

use std::time::Duration;

use super::{
    Evidence,
    code::WhyReason,
    situation::{QueueSituation, TaskSituation},
    spent::{TimeSpent, time_spent},
};
use crate::{
    affinity::{TagQueue, base_queue},
    fleet::WorkerInfo,
    nearest::nearest,
    record::{FailureKind, PresenceState, Record, TaskState},
};

/// Advice about a task that nothing continues.
const IT_MAY_HAVE_RUN: &str = "it may have run: look at its effects, then send it again";

/// Number of names that a sentence lists.
const LISTED: usize = 5;

/// A sentence, and the advice that belongs to it.
pub(super) struct Words {
    pub(super) sentence: String,
    pub(super) advice: String,
}

impl Words {
    fn new(sentence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), advice: advice.into() }
    }
}

/// Returns the answer that a server is away.
pub(super) fn away(server: WhyReason, problem: &str) -> Words {
    let (name, what) = match server {
        WhyReason::BackendAway => ("backend", "no state can be read, and workers start nothing"),
        _ => ("broker", "nothing is sent or delivered"),
    };
    let advice = format!("is it running there? `machinist doctor` shows details; its name is --{name}");
    Words::new(format!("the {name} cannot be asked, so {what}: {problem}"), advice)
}

/// Returns the answer for the reason that decides about a task.
pub(super) fn of_task(reason: WhyReason, situation: &TaskSituation) -> Words {
    let Some(record) = &situation.record else { return of_absent(reason, situation) };
    let due = record.eta.map_or_else(|| "?".to_owned(), |eta| eta.to_string());
    let left = record.eta.map(|eta| show(eta.since(situation.now))).unwrap_or_default();
    let task = record.name.as_deref().unwrap_or("?");
    let id = &situation.id;
    match reason {
        WhyReason::Ended => of_ended(situation, record),
        WhyReason::NotSent => Words::new(
            format!("it was not sent: {}", error(record)),
            "start a worker of its queue that knows the task, and send it again",
        ),
        WhyReason::Duplicate if record.kind == Some(FailureKind::Replaced) => {
            Words::new(format!("a later task took its place: {}", error(record)), "look at the later task")
        }
        WhyReason::Duplicate => Words::new(
            format!("another task has its unique key: {}", error(record)),
            "look at the other task; --on-conflict decides which of them runs",
        ),
        WhyReason::Refused => of_refused(situation, record),
        WhyReason::DeadLetter => {
            let (letter, reason, error) = situation
                .letter
                .as_ref()
                .map_or(("?", "?", ""), |letter| (&*letter.id, &*letter.reason, &*letter.error));
            Words::new(
                format!("its message is the dead letter {letter} ({reason}): {error}"),
                format!(
                    "`machinist dead show {letter}` shows it, and `machinist dead replay {letter}` sends it again"
                ),
            )
        }
        WhyReason::Running => of_running(situation, record),
        WhyReason::WorkerGone => of_abandoned(situation, record),
        WhyReason::WaitsForSteps | WhyReason::IncompleteSend => of_workflow(reason, situation),
        WhyReason::Delayed => Words::new(
            format!("its time is {due}, in {left}: until then the broker keeps its message"),
            format!("wait, or run it at once: `machinist scheduled --now {id}`"),
        ),
        WhyReason::Retry => Words::new(
            format!(
                "attempt {} has failed ({}), and the next run is due at {due}, in {left}",
                record.attempt,
                error(record)
            ),
            format!("wait, or run it at once: `machinist scheduled --now {id}`"),
        ),
        WhyReason::Overdue => Words::new(
            format!("its time was {due}, and no worker has received it since"),
            "wait: if the broker has lost its message, a worker publishes it again",
        ),
        WhyReason::Stranded => Words::new(
            format!(
                "nothing has happened to it for {}, and its queue is empty: the backend has lost what came after, or \
                 the broker has lost its message",
                show(situation.quiet_for())
            ),
            format!("{IT_MAY_HAVE_RUN}; `machinist revoke {id}` ends this record"),
        ),
        WhyReason::Disabled => Words::new(
            format!("the task {task} is disabled for all workers"),
            format!("`machinist registered enable {task}` lets its tasks run"),
        ),
        WhyReason::CircuitOpen => Words::new(
            format!(
                "a worker failed the task {task} again and again, and has left this one to others for a while"
            ),
            "wait; `machinist workers show` names the worker (circuits), and its log tells why it fails",
        ),
        WhyReason::Limited => of_limited(situation, record),
        reason => match &situation.queue {
            Some(queue) => of_queue_for(reason, queue, Some(task), record.state == TaskState::Received),
            None => Words::new("it waits; the sender's part of its record is missing", "wait"),
        },
    }
}

/// Returns the answer for the reason that decides about a queue.
pub(super) fn of_queue(reason: WhyReason, queue: &QueueSituation) -> Words {
    match (reason, &queue.unread) {
        (WhyReason::Refused, Some((why, count))) => Words::new(
            format!("messages that no worker of queue {} can read wait, {count} so far: {why}", queue.name),
            "`machinist doctor` names the remedy",
        ),
        _ => of_queue_for(reason, queue, None, false),
    }
}

fn of_absent(reason: WhyReason, situation: &TaskSituation) -> Words {
    match reason {
        WhyReason::WaitsForSteps => of_workflow(reason, situation),
        _ => Words::new(
            "there is no record: it was never sent, its record has expired, or it is in another namespace or backend",
            "check the id, and that --backend and --namespace are those of the sender",
        ),
    }
}

fn of_ended(situation: &TaskSituation, record: &Record) -> Words {
    let state = record.state;
    let outcome = match record.kind {
        Some(kind) => format!("it has ended in {state}/{kind}: {}", error(record)),
        None => format!("it has ended in {state}"),
    };
    let spent = time_spent(situation);
    let advice = match (state, &situation.letter) {
        (TaskState::Failure, Some(letter)) => {
            format!("`machinist dead replay {}` sends it again", letter.id)
        }
        (TaskState::Failure, None) => format!("`machinist retry {}` sends it again", situation.id),
        _ => format!("`machinist status {}` shows its results", situation.id),
    };
    Words::new(format!("{outcome}{}", time_in_words(&spent)), advice)
}

/// Returns where the time of a task went, as the end of a sentence.
fn time_in_words(spent: &[TimeSpent]) -> String {
    let waits: Vec<&TimeSpent> = spent.iter().filter(|part| part.is_wait()).collect();
    let run = spent.iter().find(|part| part.on == "run");
    let total: Duration = waits.iter().map(|part| part.duration()).sum();
    let mut text = String::new();
    if !total.is_zero() {
        let parts: Vec<String> = waits
            .iter()
            .map(|part| format!("{} for {}", show(part.duration()), waited_for(&part.on)))
            .collect();
        text = format!("; it waited {} ({})", show(total), parts.join(", "));
    }
    if let Some(run) = run {
        text = format!("{text}; its run took {}", show(run.duration()));
    }
    text
}

fn waited_for(on: &str) -> String {
    match on {
        "queue" => "a worker".to_owned(),
        "slot" => "a slot".to_owned(),
        reason => reason.to_owned(),
    }
}

fn of_refused(situation: &TaskSituation, record: &Record) -> Words {
    let why = match &situation.waits_unread {
        Some(why) => format!(
            "no worker of its queue can read a message that claims to be this task, and it waits: {why}"
        ),
        None => format!("the workers did not accept it: {}", error(record)),
    };
    Words::new(why, "check the keys, the task name and the arguments; `machinist doctor` names the remedy")
}

fn of_running(situation: &TaskSituation, record: &Record) -> Words {
    let worker = record.worker.as_deref().unwrap_or("?");
    let since = record.started_at.map(|at| show(situation.now.since(at))).unwrap_or_default();
    let mut sentence = format!("worker {worker} runs attempt {} since {since}", record.attempt);
    if record.revoked {
        sentence.push_str("; it was revoked, and the run was asked to end");
    }
    if let Some(progress) = record.progress.as_ref().filter(|progress| progress.total > 0) {
        sentence.push_str(&format!("; progress {} of {}", progress.done, progress.total));
    }
    Words::new(sentence, format!("wait; `machinist workers show {worker}` shows its worker"))
}

fn of_abandoned(situation: &TaskSituation, record: &Record) -> Words {
    let worker = record.worker.as_deref().unwrap_or("?");
    let takeover =
        "another worker takes it over within half a minute after the broker has delivered it again";
    if !situation.queue_is_empty() {
        return Words::new(
            format!("worker {worker} ran it, and its session is gone"),
            format!("wait: {takeover}"),
        );
    }
    Words::new(
        format!("worker {worker} ran it, its session is gone, and its queue is empty"),
        format!(
            "wait: {takeover}, which can take six minutes. If nothing changes, the backend has lost what came after, \
             or the broker has lost its message: {IT_MAY_HAVE_RUN}"
        ),
    )
}

fn of_workflow(reason: WhyReason, situation: &TaskSituation) -> Words {
    let Some(part) = &situation.workflow else { return Words::new("it waits for steps", "wait") };
    let (root, done, total) = (&part.root, part.done, part.total);
    if reason == WhyReason::IncompleteSend {
        return Words::new(
            format!(
                "not all first steps of the workflow are certainly sent: {done} of {total} tasks have ended"
            ),
            "wait: the broker delivers its root again, and a worker sends the rest",
        );
    }
    let missing = names(&part.missing);
    Words::new(
        format!("it waits for steps: {done} of {total} tasks have ended, missing {missing}"),
        format!(
            "wait; `machinist status {root}` shows the steps, and `machinist why` tells about each of them"
        ),
    )
}

fn of_limited(situation: &TaskSituation, record: &Record) -> Words {
    let Some(parked) = &record.parked else { return Words::new("a limit holds it back", "wait") };
    let (reason, since) = (&parked.reason, show(situation.now.since(parked.since)));
    let set = match situation.limit_source.as_deref() {
        Some("live") => ", set live".to_owned(),
        Some(source) => format!(", set by worker {source}"),
        None => String::new(),
    };
    if situation.limit_is_zero {
        return Words::new(
            format!(
                "it has waited {since} for {reason}{set}, and that limit is zero: nothing starts until it is raised"
            ),
            "`machinist limits set` raises the limit, and `machinist limits list` shows it",
        );
    }
    Words::new(
        format!("it has waited {since} for {reason}{set}; it asks again at {} at the latest", parked.until),
        "wait; `machinist limits list` shows the limits, and `machinist limits set` changes them",
    )
}

/// Returns the answer for a reason that concerns the queue. `holds`: a worker has received the task.
fn of_queue_for(reason: WhyReason, queue: &QueueSituation, task: Option<&str>, holds: bool) -> Words {
    let name = &queue.name;
    let knowing = task.map(|task| format!(" that knows the task {task}")).unwrap_or_default();
    let ahead = queue.ready().map(|ready| format!(" with {ready} messages")).unwrap_or_default();
    match reason {
        WhyReason::BrokerAway => away(reason, queue.depth.as_ref().err().map_or("", String::as_str)),
        WhyReason::UnknownId => {
            let meant = nearest(name.as_str(), queue.known.iter().map(String::as_str));
            Words::new(
                format!("there is no queue {name}, and no worker takes tasks from one"),
                match meant {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => "`machinist queues` lists the known ones".to_owned(),
                },
            )
        }
        WhyReason::NoConsumer => Words::new(
            format!("no live worker takes tasks from queue {name}{}", elsewhere(queue)),
            format!("start a worker with `machinist worker --queue {name}`"),
        ),
        WhyReason::NoTag => of_missing_tags(queue),
        WhyReason::UnknownTask => {
            let task = task.unwrap_or("?");
            let known = queue.consumers().flat_map(|worker| worker.tasks.iter().map(String::as_str));
            let meant =
                nearest(task, known).map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            Words::new(
                format!("no live worker of queue {name} knows the task {task}{meant}"),
                "start a worker of this queue that knows the task, or correct the name and send it again",
            )
        }
        WhyReason::Paused if queue.paused => Words::new(
            format!("queue {name} is paused for all workers"),
            format!("`machinist queues resume {name}` lets workers take from it"),
        ),
        WhyReason::Paused => Words::new(
            format!("every worker of queue {name}{knowing} is asleep{}", asleep_because(queue)),
            "`machinist workers resume --all` wakes those that were paused",
        ),
        WhyReason::Asleep => Words::new(
            format!("every worker of queue {name}{knowing} is asleep{}", asleep_because(queue)),
            "wait until one wakes up, or start another worker",
        ),
        WhyReason::Busy if holds => Words::new(
            format!("a worker of queue {name} holds it and has no free slot{}", busy_with(queue)),
            "wait, or start more workers",
        ),
        WhyReason::Busy => Words::new(
            format!(
                "no worker of queue {name}{knowing} has a free slot{}; the queue{}",
                busy_with(queue),
                depth_words(queue)
            ),
            "wait, or start more workers",
        ),
        _ if task.is_none() => Words::new(
            format!(
                "nothing is wrong with queue {name}{ahead}: {} workers take from it",
                queue.consumers().count()
            ),
            "wait",
        ),
        _ => Words::new(
            format!(
                "it waits for its turn in queue {name}{ahead}, which has {} workers",
                queue.consumers().count()
            ),
            "wait",
        ),
    }
}

/// Says which tags no worker has. The worker that lacks the fewest is named.
fn of_missing_tags(queue: &QueueSituation) -> Words {
    let name = queue.name.as_str();
    let (Some(required), Some(base)) = (TagQueue::of(name), base_queue(&queue.name)) else {
        return Words::new("no worker takes it", "start one");
    };
    let tags = required.tags.join(", ");
    let missing_of = |worker: &WorkerInfo| -> Vec<String> {
        required.missing(|tag| worker.tags.iter().any(|own| own == tag)).map(str::to_owned).collect()
    };
    let takes = |worker: &&WorkerInfo| worker.state != PresenceState::Draining && worker.takes_from(&base);
    let of_base = queue.workers.iter().filter(takes);
    let nearest =
        of_base.map(|worker| (missing_of(worker), &worker.name)).min_by_key(|(missing, _)| missing.len());
    let sentence = match nearest {
        Some((missing, worker)) => format!(
            "it requires a worker of queue {base} with the tags {tags}, and no live one has them: {worker} lacks {}",
            missing.join(", ")
        ),
        None => format!(
            "it requires a worker of queue {base} with the tags {tags}, and queue {base} has no live worker"
        ),
    };
    let flags: String = required.tags.iter().map(|tag| format!(" --tag {tag}")).collect();
    Words::new(sentence, format!("start a worker with `machinist worker --queue {base}{flags}`"))
}

fn depth_words(queue: &QueueSituation) -> String {
    match queue.ready() {
        Some(ready) => format!(" has {ready} messages"),
        None => " is of unknown depth".to_owned(),
    }
}

/// Says what the live workers do instead of this queue.
fn elsewhere(queue: &QueueSituation) -> String {
    let draining = queue.workers.iter().filter(|worker| worker.takes_from(&queue.name)).count();
    if draining > 0 {
        return format!("; {draining} of its workers drain");
    }
    let mut queues: Vec<String> = queue.workers.iter().flat_map(|worker| worker.queues.clone()).collect();
    queues.sort_unstable();
    queues.dedup();
    match queue.workers.len() {
        0 => "; there is no live worker at all".to_owned(),
        workers => format!("; the {workers} live workers take from {}", names(&queues)),
    }
}

/// Says why workers of the queue are asleep.
fn asleep_because(queue: &QueueSituation) -> String {
    let because = |worker: &WorkerInfo| Some(format!("{}: {}", worker.name, worker.asleep.as_ref()?));
    let reasons: Vec<String> = queue.consumers().filter_map(because).collect();
    if reasons.is_empty() { String::new() } else { format!(" ({})", names(&reasons)) }
}

fn busy_with(queue: &QueueSituation) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for name in &queue.running {
        match counts.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let counts: Vec<String> = counts.into_iter().map(|(name, count)| format!("{name} ({count})")).collect();
    if counts.is_empty() { String::new() } else { format!("; they run {}", names(&counts)) }
}

fn names(all: &[String]) -> String {
    let listed = all.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(LISTED) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

fn error(record: &Record) -> &str {
    record.error.as_ref().map_or("", |error| error.message())
}

/// Adds what the words rest on to the evidence.
pub(super) fn evidence_of_task(situation: &TaskSituation) -> Evidence {
    let mut evidence = situation.queue.as_ref().map(evidence_of_queue).unwrap_or_default();
    if let Some(record) = &situation.record {
        evidence.state = Some(record.state.to_string());
        evidence.task = record.name.clone();
        evidence.queue = record.queue.clone();
        evidence.attempt = Some(record.attempt);
        evidence.worker = record.worker.clone();
        evidence.since = record.started_at.or(record.sent_at).map(|at| at.to_string());
        evidence.due = record.eta.map(|eta| eta.to_string());
        evidence.parked = record.parked.as_ref().map(|parked| parked.reason.clone());
        evidence.error = record.error.as_ref().map(|error| error.message().to_owned());
    }
    if let Some(part) = &situation.workflow {
        evidence.steps_done = Some(part.done);
        evidence.steps_total = Some(part.total);
        evidence.missing = part.missing.clone();
    }
    evidence.limit_source = situation.limit_source.clone();
    evidence.dead_letter = situation.letter.as_ref().map(|letter| letter.id.clone());
    evidence.time_spent = time_spent(situation);
    evidence
}

/// Returns the evidence about a queue.
pub(super) fn evidence_of_queue(queue: &QueueSituation) -> Evidence {
    Evidence {
        queue: Some(queue.name.to_string()),
        queue_paused: queue.paused,
        consumers: queue.consumers().count(),
        ready: queue.ready(),
        running: queue.running.clone(),
        ..Evidence::default()
    }
}

/// Returns a duration for people, in its two largest units.
fn show(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, next: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit} {small}{next}"),
    };
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (millis, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_500, "1s"),
            (60_000, "1m"),
            (61_000, "1m 1s"),
            (7_260_000, "2h 1m"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(show(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let all: Vec<String> = (1..=7).map(|n| n.to_string()).collect();
        assert_eq!(names(&all), "1, 2, 3, 4, 5 and 2 more");
        assert_eq!(names(&all[..2]), "1, 2");
    }
}
