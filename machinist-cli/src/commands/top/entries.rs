//! Entries of the lists, from what the client knows. Pure.

use std::time::Duration;

use machinist::{
    FailureGroup, FailureGroups, FoundTasks, QueueDetails, WorkerInfo,
    clock::Timestamp,
    event_stream::PublishedEvents,
    record::{PresenceState, Record, TaskState, WorkerHealth},
    settings::show_duration,
};

use super::{
    filter::{Facets, FilterKey},
    listing::{ListCell, ListEntry, Listing, Mood},
};
use crate::args::task_state;

pub(super) fn state_of(name: &str) -> Option<TaskState> {
    task_state(name).ok()
}

/// Returns a time in its largest two units.
pub(super) fn time(time: Option<Duration>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let whole = match time.as_secs() {
        0 => Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(0)),
        seconds => Duration::from_secs(seconds),
    };
    let units = show_duration(whole);
    units.split(' ').take(2).collect()
}

pub(super) fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

fn count(number: u64) -> ListCell {
    ListCell::number(number.to_string(), number as f64)
}

fn perhaps<T>(value: Option<T>, cell: impl FnOnce(T) -> ListCell) -> ListCell {
    value.map_or_else(ListCell::unknown, cell)
}

fn duration(value: Option<Duration>) -> ListCell {
    perhaps(value, |value| ListCell::number(time(Some(value)), value.as_secs_f64()))
}

/// Returns the time since an instant, by which a list is sorted: the largest is the longest ago.
fn since(at: Option<Timestamp>, now: Timestamp) -> ListCell {
    duration(at.map(|at| now.since(at)))
}

fn optional(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

pub(super) fn queues(queues: &[QueueDetails]) -> Listing {
    let sum =
        |value: fn(&QueueDetails) -> Option<u64>| queues.iter().filter_map(value).sum::<u64>().to_string();
    let rates = |value: fn(&QueueDetails) -> Option<f64>| {
        let known: Vec<f64> = queues.iter().filter_map(value).collect();
        rate((!known.is_empty()).then(|| known.iter().sum()))
    };
    let oldest = queues.iter().filter_map(|queue| queue.oldest_age).max();
    Listing {
        entries: queues.iter().map(queue).collect(),
        sums: vec![
            ("all", queues.len().to_string()),
            ("ready", sum(|queue| queue.ready)),
            ("unacked", sum(|queue| queue.unacked)),
            ("dead", sum(|queue| queue.dead)),
            ("in/s", rates(|queue| queue.in_rate)),
            ("out/s", rates(|queue| queue.out_rate)),
            ("oldest", time(oldest)),
        ],
        wrong: queues.iter().flat_map(wrong_with_queue).collect(),
        ..Listing::default()
    }
}

/// Returns the state of a queue as a word.
fn queue_state(queue: &QueueDetails) -> (&'static str, Mood) {
    match (queue.paused, queue.ready, queue.consumers) {
        (_, None, _) => ("not declared", Mood::Plain),
        (true, ..) => ("paused", Mood::Warning),
        (false, Some(ready), Some(0)) if ready > 0 => ("no worker", Mood::Bad),
        (false, Some(0), _) => ("empty", Mood::Plain),
        _ => ("works", Mood::Good),
    }
}

fn queue(queue: &QueueDetails) -> ListEntry {
    let (state, mood) = queue_state(queue);
    let name = queue.queue.to_string();
    let per_second = |value: Option<f64>| perhaps(value, |value| ListCell::number(rate(Some(value)), value));
    ListEntry {
        cells: vec![
            ListCell::text(&name),
            ListCell::text(state),
            perhaps(queue.ready, count),
            perhaps(queue.delayed, count),
            perhaps(queue.unacked, count),
            perhaps(queue.dead, count),
            perhaps(queue.consumers, count),
            per_second(queue.in_rate),
            per_second(queue.out_rate),
            duration(queue.oldest_age),
            duration(queue.empty_in),
        ],
        facets: Facets::default().with(FilterKey::Queue, [&name]),
        mood,
        id: name,
        ..ListEntry::default()
    }
}

fn wrong_with_queue(queue: &QueueDetails) -> Vec<String> {
    let name = &queue.queue;
    let mut wrong = Vec::new();
    let ready = queue.ready.unwrap_or(0);
    if queue.paused {
        wrong.push(format!("queue {name} is paused, and {ready} messages wait in it"));
    } else if ready > 0 && queue.consumers == Some(0) {
        wrong.push(format!("queue {name} has {ready} messages and no worker"));
    }
    if let Some(dead) = queue.dead.filter(|dead| *dead > 0) {
        wrong.push(format!("queue {name} has dead letters: {dead}"));
    }
    wrong
}

pub(super) fn workers(workers: &[WorkerInfo], now: Timestamp) -> Listing {
    let slots: u32 = workers.iter().map(|worker| worker.concurrency).sum();
    let running: u32 = workers.iter().map(|worker| worker.running).sum();
    let in_state = |state| workers.iter().filter(|worker| worker.state == state).count().to_string();
    Listing {
        entries: workers.iter().map(|info| worker(info, now)).collect(),
        sums: vec![
            ("all", workers.len().to_string()),
            ("awake", in_state(PresenceState::Awake)),
            ("asleep", in_state(PresenceState::Asleep)),
            ("draining", in_state(PresenceState::Draining)),
            ("running", format!("{running} of {slots}")),
        ],
        wrong: match workers.is_empty() {
            true => vec!["no worker is live".to_owned()],
            false => workers.iter().flat_map(wrong_with_worker).collect(),
        },
        ..Listing::default()
    }
}

fn worker(worker: &WorkerInfo, now: Timestamp) -> ListEntry {
    let mood = match (worker.health, worker.state) {
        (WorkerHealth::Red, _) => Mood::Bad,
        (WorkerHealth::Yellow, _) | (_, PresenceState::Asleep | PresenceState::Draining) => Mood::Warning,
        _ => Mood::Good,
    };
    let queues: Vec<&String> = worker.patterns.iter().chain(&worker.queues).collect();
    let list = |names: &[String]| names.join(", ");
    let memory = |bytes: u64| ListCell::number(format!("{} MiB", bytes >> 20), bytes as f64);
    let mut details = vec![
        ("session", worker.incarnation.clone()),
        ("pid", worker.pid.to_string()),
        ("version", optional(worker.version.as_ref())),
        ("up for", time(Some(now.since(worker.started_at)))),
        ("retried", worker.retried.to_string()),
        ("tags", list(&worker.tags)),
        ("circuits", list(&worker.open_circuits)),
        ("runs", list(&worker.runs)),
        ("tasks", list(&worker.tasks)),
    ];
    details.extend(worker.asleep.clone().map(|reason| ("asleep", reason)));
    details.extend(worker.health_reason.clone().map(|reason| ("not well", reason)));
    ListEntry {
        id: worker.name.clone(),
        session: worker.incarnation.clone(),
        cells: vec![
            ListCell::text(&worker.name),
            ListCell::text(worker.state.as_str()),
            ListCell::text(worker.health.as_str()),
            ListCell::number(format!("{}/{}", worker.running, worker.concurrency), f64::from(worker.running)),
            count(worker.processed),
            count(worker.failed),
            perhaps(worker.memory, memory),
            ListCell::text(queues.iter().map(|queue| queue.as_str()).collect::<Vec<_>>().join(", ")),
            ListCell::text(optional(worker.host.as_ref())),
        ],
        facets: Facets::default()
            .with(FilterKey::Worker, [&worker.name])
            .with(FilterKey::Name, &worker.tasks)
            .with(FilterKey::Queue, queues),
        details,
        mood,
        ..ListEntry::default()
    }
}

fn wrong_with_worker(worker: &WorkerInfo) -> Vec<String> {
    let name = &worker.name;
    let mut wrong = Vec::new();
    if worker.health != WorkerHealth::Green {
        let reason = worker.health_reason.as_deref().unwrap_or("it does not say why");
        wrong.push(format!("worker {name} is {}: {reason}", worker.health.as_str()));
    }
    // One that wakes up by itself follows its timetable or its gate.
    if worker.state == PresenceState::Asleep && !worker.wakes {
        let reason = worker.asleep.as_deref().unwrap_or("people want that");
        wrong.push(format!("worker {name} is asleep: {reason}"));
    }
    if !worker.open_circuits.is_empty() {
        let tasks = worker.open_circuits.join(", ");
        wrong.push(format!(
            "worker {name} does not take {tasks} for a while, because they failed again and again"
        ));
    }
    wrong
}

/// Returns what a filter can ask of a task.
pub(super) fn task_facets(record: &Record) -> Facets {
    let errors = record.error.iter().chain(record.history.last().map(|attempt| &attempt.error));
    Facets::default()
        .with(FilterKey::State, [record.state.as_str()])
        .with(FilterKey::Name, &record.name)
        .with(FilterKey::Queue, &record.queue)
        .with(FilterKey::Worker, &record.worker)
        .with(FilterKey::Error, errors.flat_map(|error| &error.chain))
}

pub(super) fn tasks(records: &[Record], now: Timestamp) -> Listing {
    Listing { entries: records.iter().map(|record| task(record, now)).collect(), ..Listing::default() }
}

fn task(record: &Record, now: Timestamp) -> ListEntry {
    let mood = match record.state {
        TaskState::Failure => Mood::Bad,
        TaskState::Retry => Mood::Warning,
        TaskState::Success | TaskState::Started => Mood::Good,
        _ => Mood::Plain,
    };
    let at = match record.state {
        state if state.is_final() => record.ended_at,
        TaskState::Started => record.started_at,
        _ => record.sent_at,
    };
    let chain = record.error.iter().flat_map(|error| &error.chain);
    let error =
        record.error.as_ref().map(|error| error.message().to_owned()).or_else(|| record.locked.clone());
    let instants = [
        ("sent", record.sent_at),
        ("received", record.received_at),
        ("started", record.started_at),
        ("ended", record.ended_at),
        ("due", record.eta),
        ("expires", record.expires_at),
    ];
    let mut details = vec![("attempt", record.attempt.to_string())];
    details.extend(instants.into_iter().filter_map(|(label, at)| Some((label, at?.to_string()))));
    details.extend(record.kind.map(|kind| ("kind", kind.to_string())));
    details.extend(
        record.progress.as_ref().map(|progress| {
            ("progress", format!("{} of {} {}", progress.done, progress.total, progress.note))
        }),
    );
    details.extend(record.parked.as_ref().map(|parked| ("parked", parked.reason.to_string())));
    details.extend(record.retry_of.as_ref().map(|id| ("retry of", id.to_string())));
    details.extend(record.retried_as.as_ref().map(|id| ("retried as", id.to_string())));
    details.extend(chain.skip(1).map(|cause| ("caused by", cause.clone())));
    ListEntry {
        id: record.id.to_string(),
        about: record.name.clone().unwrap_or_else(|| "unnamed".to_owned()),
        cells: vec![
            ListCell::text(record.id.as_str()),
            ListCell::text(record.state.as_str()),
            ListCell::text(optional(record.name.as_ref())),
            since(at, now),
            ListCell::text(optional(record.queue.as_ref())),
            ListCell::text(optional(record.worker.as_ref())),
            ListCell::text(error.unwrap_or_default()),
        ],
        facets: task_facets(record),
        details,
        mood,
        ..ListEntry::default()
    }
}

/// Returns what a search has left out.
pub(super) fn task_notes(found: &FoundTasks, state: TaskState, events: PublishedEvents) -> Vec<String> {
    let mut notes = Vec::new();
    if found.unnamed > 0 {
        notes.push(format!("{} further tasks run, and are only counted", found.unnamed));
    }
    if let Some(queued) = found.queued {
        notes.push(format!("{queued} wait in queues, and are only counted"));
    }
    if found.cut > 0 {
        notes.push(format!("{} ended tasks are no longer listed", found.cut));
    }
    if state == TaskState::Success && events != PublishedEvents::All {
        notes.push(format!("listed by workers with events = \"all\"; here it is \"{events}\""));
    }
    notes
}

pub(super) fn failures(found: &FailureGroups, now: Timestamp) -> Listing {
    let listed = found.groups.iter().filter(|group| group.silenced_until.is_none());
    let entries: Vec<ListEntry> = listed.map(|group| failure(group, now)).collect();
    let silenced = found.groups.len() - entries.len();
    let mut notes = vec![format!("looked at {} of {} failures", found.looked_at, found.listed)];
    if silenced > 0 {
        notes.push(format!("{silenced} groups are silenced"));
    }
    if found.other > 0 {
        notes.push(format!("{} failures have other causes", found.other));
    }
    if found.cut > 0 {
        notes.push(format!("{} failures are no longer listed", found.cut));
    }
    Listing { entries, notes, ..Listing::default() }
}

fn failure(group: &FailureGroup, now: Timestamp) -> ListEntry {
    ListEntry {
        id: group.fingerprint.clone(),
        about: format!("{}, {}: {}", group.task, group.kind, group.error),
        cells: vec![
            ListCell::text(&group.fingerprint),
            ListCell::text(&group.task),
            ListCell::text(&group.kind),
            count(group.last_hour),
            count(group.last_day),
            count(group.last_week),
            since(Some(group.last_seen), now),
            ListCell::text(&group.error),
        ],
        facets: Facets::default().with(FilterKey::Name, [&group.task]).with(FilterKey::Error, [&group.error]),
        details: vec![
            ("count", group.count.to_string()),
            ("first seen", group.first_seen.to_string()),
            ("last seen", group.last_seen.to_string()),
            ("example", group.example.to_string()),
            ("versions", group.versions.iter().cloned().collect::<Vec<_>>().join(", ")),
        ],
        mood: if group.last_hour > 0 { Mood::Bad } else { Mood::Plain },
        ..ListEntry::default()
    }
}
