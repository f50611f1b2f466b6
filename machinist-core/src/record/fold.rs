//! What a record says: the state of a task as a function of its facts.
//!
//! Nobody stores a state, so no two writers can disagree about one. Whoever asks folds the facts anew.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    FailureKind,
    facts::{End, EndVerdict, ErrorText, FactName, Facts, Numbered, Progress, Retried, Start, name},
};
use crate::{args::Results, clock::Timestamp, id::TaskId};

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskState {
    /// Sent, and no worker has it: it waits in its queue, for its time, or was handed back.
    Pending,
    /// A worker has it, and waits for a free slot.
    Received,
    /// A handler runs it. After a crash this stays until another worker takes it over.
    Started,
    /// A run failed or asked for later; the next run is queued with its time.
    Retry,
    /// It is done: its results are there. Final.
    Success,
    /// It will not be done: kind and error say why. Final.
    Failure,
}

impl TaskState {
    /// Whether nothing will happen to the task any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failure)
    }

    /// The state as it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Everything that is known about one task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// The task.
    pub id: TaskId,
    /// Its name; `None` if the sender's part of the record is missing.
    pub name: Option<String>,
    /// The queue it was sent to.
    pub queue: Option<String>,
    /// Where it is in its life.
    pub state: TaskState,
    /// Why it failed; only in state FAILURE.
    pub kind: Option<FailureKind>,
    /// The newest attempt, or 1 if none was started.
    pub attempt: u32,
    /// The worker that ran it last.
    pub worker: Option<String>,
    /// When it was sent.
    pub sent_at: Option<Timestamp>,
    /// When a worker last received it.
    pub received_at: Option<Timestamp>,
    /// When a handler was last started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Not to be run before this; in state RETRY the time of the next run.
    pub eta: Option<Timestamp>,
    /// Not to be started after this.
    pub expires_at: Option<Timestamp>,
    /// What it returned; only in state SUCCESS.
    pub results: Option<Results>,
    /// The error of its end, or of its last attempt so far.
    pub error: Option<ErrorText>,
    /// W3C trace context of the sender (`traceparent`).
    pub trace: Option<String>,
    /// What the last finished run left in its log.
    pub log: String,
    /// How far its newest attempt has come, if its handler says so.
    pub progress: Option<Progress>,
    /// Why results, errors, log and notes are not shown: they are encrypted, and do not open here.
    pub locked: Option<String>,
    /// Somebody asked for its end, and a run has still to answer.
    pub revoked: bool,
    /// The failed task that this one repeats.
    pub retry_of: Option<TaskId>,
    /// The task that repeats this failed one.
    pub retried_as: Option<TaskId>,
    /// Earlier attempts, from the oldest.
    pub history: Vec<Attempt>,
}

/// One attempt that is over and was followed by another.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number.
    pub attempt: u32,
    /// When it was over.
    pub ended_at: Timestamp,
    /// When the next run was due.
    pub next_run: Timestamp,
    /// Where it ran.
    pub worker: String,
    /// What it failed of.
    pub kind: FailureKind,
    /// Its error.
    pub error: ErrorText,
}

impl Record {
    /// The trace id: the second field of `traceparent`.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace.as_deref()?.split('-').nth(1)
    }
}

/// Folds facts into what they say; `None` if there are none.
pub fn fold(id: &TaskId, facts: &Facts) -> Option<Record> {
    if facts.is_empty() {
        return None;
    }
    let attempts = Attempts::of(facts);
    let end: Option<End> = facts.read(name::END);
    let newest = attempts.newest();
    let start = attempts.newest_start(newest).and_then(|s| facts.read::<Start>(&name::start(newest, s)));
    let history: Vec<Attempt> = attempts.0.keys().filter_map(|m| history(facts, *m)).collect();
    let retried: Option<Retried> = facts.read(&name::retried(newest));
    let mut record = Record {
        id: id.clone(),
        name: facts.text(name::TASK),
        queue: facts.text(name::QUEUE),
        state: state(facts, &attempts),
        kind: None,
        attempt: newest.max(1),
        worker: start.as_ref().map(|s| s.worker.to_string()),
        sent_at: facts.read(name::SENT),
        received_at: start.as_ref().map(|s| s.received_at).or_else(|| facts.read(&name::received(newest))),
        started_at: start.as_ref().map(|s| s.started_at),
        ended_at: None,
        eta: retried.as_ref().map(|r| r.due).or_else(|| facts.read(name::ETA)),
        expires_at: facts.read(name::EXPIRES),
        results: None,
        error: history.last().map(|a| a.error.clone()),
        trace: facts.text(name::TRACE),
        log: retried.map(|r| r.log).unwrap_or_default(),
        history,
        progress: None,
        locked: None,
        revoked: end.is_none() && facts.has(name::REVOKED),
        retry_of: task(facts, name::RETRY_OF),
        retried_as: task(facts, name::RETRIED_AS),
    };
    if let Some(end) = end {
        apply_end(&mut record, end);
    }
    record.progress = facts.read(name::PROGRESS).filter(|p: &Progress| p.attempt == record.attempt);
    Some(record)
}

fn task(facts: &Facts, name: &str) -> Option<TaskId> {
    TaskId::parse(&facts.text(name)?).ok()
}

fn apply_end(record: &mut Record, end: End) {
    record.ended_at = Some(end.at);
    record.log = end.log;
    if let Some(origin) = end.origin {
        record.attempt = origin.attempt;
        record.worker = Some(origin.worker.to_string());
    }
    match end.verdict {
        EndVerdict::Success { results } => {
            record.results = Some(results);
            record.error = None;
        }
        EndVerdict::Failure { kind, error } => {
            record.kind = Some(kind);
            record.error = Some(error);
        }
    }
}

fn history(facts: &Facts, attempt: u32) -> Option<Attempt> {
    let retried: Retried = facts.read(&name::retried(attempt))?;
    Some(Attempt {
        attempt,
        ended_at: retried.at,
        next_run: retried.due,
        worker: retried.origin.worker.to_string(),
        kind: retried.kind,
        error: retried.error,
    })
}

/// The state alone.
#[cfg(test)]
pub(crate) fn state_of(facts: &Facts) -> TaskState {
    state(facts, &Attempts::of(facts))
}

pub(super) fn state(facts: &Facts, attempts: &Attempts) -> TaskState {
    // Only the two words matter here; an `end` that this version cannot read is still an end.
    if let Some(end) = facts.get(name::END) {
        let success = serde_json::from_slice::<End>(end)
            .is_ok_and(|end| matches!(end.verdict, EndVerdict::Success { .. }));
        return if success { TaskState::Success } else { TaskState::Failure };
    }
    let newest = attempts.newest();
    let Some(seen) = attempts.0.get(&newest) else { return TaskState::Pending };
    if seen.retried {
        return TaskState::Retry;
    }
    match attempts.newest_start(newest) {
        Some(start) if facts.has(&name::returned(newest, start)) => TaskState::Pending,
        Some(_) => TaskState::Started,
        None if seen.received => TaskState::Received,
        None => TaskState::Pending,
    }
}

/// The newest start of an attempt, if it was started.
pub(crate) fn newest_start(facts: &Facts, attempt: u32) -> Option<Start> {
    let start = Attempts::of(facts).newest_start(attempt)?;
    facts.read(&name::start(attempt, start))
}

/// The starts of an attempt that the record holds, from the first. Those that are there are counted, and not the numbers
/// up to the newest: whoever can write to the backend can write a start with a number of four billion.
pub(super) fn starts(facts: &Facts, attempt: u32) -> BTreeMap<u32, (FactName, Bytes)> {
    let of_attempt = |(name, _): (&str, &Bytes)| match Numbered::parse(name) {
        Some(Numbered::Start { attempt: of, start }) if of == attempt => Some(start),
        _ => None,
    };
    let written = |start| {
        let name = name::start(attempt, start);
        facts.get(&name).map(|fact| (start, (name.clone(), fact.clone())))
    };
    facts.iter().filter_map(of_attempt).filter_map(written).collect()
}

/// What the numbered facts say about each attempt.
pub(crate) struct Attempts(BTreeMap<u32, Seen>);

#[derive(Default)]
struct Seen {
    received: bool,
    retried: bool,
    newest_start: u32,
    newest_guard: u32,
}

impl Attempts {
    pub(crate) fn of(facts: &Facts) -> Self {
        let mut attempts: BTreeMap<u32, Seen> = BTreeMap::new();
        for numbered in facts.iter().filter_map(|(name, _)| Numbered::parse(name)) {
            match numbered {
                Numbered::Received { attempt } => attempts.entry(attempt).or_default().received = true,
                Numbered::Retried { attempt } => attempts.entry(attempt).or_default().retried = true,
                Numbered::Start { attempt, start } => {
                    let seen = attempts.entry(attempt).or_default();
                    seen.newest_start = seen.newest_start.max(start);
                }
                Numbered::Guard { attempt, generation } => {
                    let seen = attempts.entry(attempt).or_default();
                    seen.newest_guard = seen.newest_guard.max(generation);
                }
                Numbered::Returned { .. } | Numbered::Followed { .. } => {}
            }
        }
        Self(attempts)
    }

    /// The newest attempt that left a fact; 0 if none did.
    pub(crate) fn newest(&self) -> u32 {
        self.0.keys().next_back().copied().unwrap_or(0)
    }

    pub(crate) fn newest_start(&self, attempt: u32) -> Option<u32> {
        self.0.get(&attempt).map(|seen| seen.newest_start).filter(|start| *start > 0)
    }

    pub(crate) fn newest_guard(&self, attempt: u32) -> u32 {
        self.0.get(&attempt).map_or(0, |seen| seen.newest_guard)
    }
}
