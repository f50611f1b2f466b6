//! State of a task, as a function of the facts in its record.
//!
//! No state is stored, so no two writers can disagree about it. Every reader folds the facts again.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    FailureKind,
    facts::{
        End, EndVerdict, ErrorText, FactName, Facts, Failure, NumberedFact, Parked, Progress, Retried, Start,
        name,
    },
};
use crate::{args::Results, clock::Timestamp, id::TaskId};

/// State of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskState {
    /// Sent, but no worker has it: it waits in its queue, waits for its time, or was handed back.
    Pending,
    /// A worker has it, and waits for a free slot.
    Received,
    /// A handler runs it. After a crash the state stays until another worker takes over.
    Started,
    /// A run failed or asked to run later; the next run is queued with its due time.
    Retry,
    /// Done, with results. Final.
    Success,
    /// Failed: kind and error give the reason. Final.
    Failure,
}

impl TaskState {
    /// Returns `true` if the state is final.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failure)
    }

    /// Returns the state as it is shown.
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
    /// Id of the task.
    pub id: TaskId,
    /// Name of the task; `None` if the sender's part of the record is missing.
    pub name: Option<String>,
    /// Queue that it was sent to.
    pub queue: Option<String>,
    /// Its state.
    pub state: TaskState,
    /// Kind of its failure; only in state FAILURE.
    pub kind: Option<FailureKind>,
    /// Number of the newest attempt, or 1 if none was started.
    pub attempt: u32,
    /// Worker that ran it last.
    pub worker: Option<String>,
    /// Time of sending.
    pub sent_at: Option<Timestamp>,
    /// Time at which a worker last received it.
    pub received_at: Option<Timestamp>,
    /// Time at which a handler was last started.
    pub started_at: Option<Timestamp>,
    /// Time of its end.
    pub ended_at: Option<Timestamp>,
    /// Time before which it must not run; in state RETRY the due time of the next run.
    pub eta: Option<Timestamp>,
    /// Time after which it must not start.
    pub expires_at: Option<Timestamp>,
    /// Results of its handler; only in state SUCCESS.
    pub results: Option<Results>,
    /// Error of its end, or of its last attempt so far.
    pub error: Option<ErrorText>,
    /// W3C trace context of the sender (`traceparent`).
    pub trace: Option<String>,
    /// Log of the last finished run.
    pub log: String,
    /// Progress of its newest attempt, if its handler reports any.
    pub progress: Option<Progress>,
    /// Reason that results, errors, log and notes are not shown: they are encrypted, and cannot be decrypted here.
    pub locked: Option<String>,
    /// `true` if the task was revoked, and a run has still to answer.
    pub revoked: bool,
    /// Parking of the task, while a rule of admission refuses its start.
    pub parked: Option<Parked>,
    /// Failed task that this one repeats.
    pub retry_of: Option<TaskId>,
    /// Task that repeats this failed one.
    pub retried_as: Option<TaskId>,
    /// Task whose end counts in the place of this one, which has succeeded: its handler has returned
    /// [`Continue`](crate::Continue) with a workflow.
    pub continued_by: Option<TaskId>,
    /// Earlier attempts, oldest first.
    pub history: Vec<Attempt>,
    /// `true` if the state comes from the store of another program that shares the queue. Nothing signs it.
    pub mirrored: bool,
}

/// Attempt that is over and was followed by another.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number.
    pub attempt: u32,
    /// Time of its end.
    pub ended_at: Timestamp,
    /// Due time of the next run.
    pub next_run: Timestamp,
    /// Worker that ran it.
    pub worker: String,
    /// Kind of its failure.
    pub kind: FailureKind,
    /// Its error.
    pub error: ErrorText,
}

impl Record {
    /// Creates a record that says the state of a task alone.
    pub(crate) fn of(id: TaskId, state: TaskState) -> Self {
        Self {
            id,
            name: None,
            queue: None,
            state,
            kind: None,
            attempt: 1,
            worker: None,
            sent_at: None,
            received_at: None,
            started_at: None,
            ended_at: None,
            eta: None,
            expires_at: None,
            results: None,
            error: None,
            trace: None,
            log: String::new(),
            progress: None,
            locked: None,
            revoked: false,
            parked: None,
            retry_of: None,
            retried_as: None,
            continued_by: None,
            history: Vec::new(),
            mirrored: false,
        }
    }

    /// Returns the trace id: the second field of `traceparent`.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace.as_deref()?.split('-').nth(1)
    }
}

/// Folds facts into a record; `None` if there are none.
pub fn fold(id: &TaskId, facts: &Facts) -> Option<Record> {
    if facts.is_empty() {
        return None;
    }
    let attempts = Attempts::of(facts);
    let end: Option<End> = facts.read(name::END);
    let newest = attempts.newest();
    let start = attempts.newest_start(newest).and_then(|s| facts.read::<Start>(&name::start(newest, s)));
    let history: Vec<Attempt> =
        attempts.0.keys().filter_map(|attempt| past_attempt(facts, *attempt)).collect();
    let retried: Option<Retried> = facts.read(&name::retried(newest));
    let mut record = Record {
        name: facts.text(name::TASK),
        queue: facts.text(name::QUEUE),
        attempt: newest.max(1),
        worker: start.as_ref().map(|s| s.worker.to_string()),
        sent_at: facts.read(name::SENT),
        received_at: start.as_ref().map(|s| s.received_at).or_else(|| facts.read(&name::received(newest))),
        started_at: start.as_ref().map(|s| s.started_at),
        eta: retried.as_ref().map(|r| r.due).or_else(|| facts.read(name::ETA)),
        expires_at: facts.read(name::EXPIRES),
        error: history.last().map(|a| a.error.clone()),
        trace: facts.text(name::TRACE),
        log: retried.map(|r| r.log).unwrap_or_default(),
        history,
        revoked: end.is_none() && facts.has(name::REVOKED),
        parked: parked(facts),
        retry_of: task_id(facts, name::RETRY_OF),
        retried_as: task_id(facts, name::RETRIED_AS),
        ..Record::of(id.clone(), state(facts, &attempts))
    };
    if let Some(end) = end {
        apply_end(&mut record, end);
    }
    record.progress = facts.read(name::PROGRESS).filter(|p: &Progress| p.attempt == record.attempt);
    Some(record)
}

fn task_id(facts: &Facts, name: &str) -> Option<TaskId> {
    TaskId::parse(&facts.text(name)?).ok()
}

fn apply_end(record: &mut Record, end: End) {
    record.ended_at = Some(end.at);
    record.log = end.log;
    record.continued_by = end.continued_by;
    if let Some(origin) = end.origin {
        record.attempt = origin.attempt;
        record.worker = Some(origin.worker.to_string());
    }
    match end.verdict {
        EndVerdict::Success { results } => {
            record.results = Some(results);
            record.error = None;
        }
        EndVerdict::Failure(Failure { kind, error, .. }) => {
            record.kind = Some(kind);
            record.error = Some(error);
        }
    }
}

fn past_attempt(facts: &Facts, attempt: u32) -> Option<Attempt> {
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

/// Returns the state alone.
#[cfg(test)]
pub(crate) fn state_of(facts: &Facts) -> TaskState {
    state(facts, &Attempts::of(facts))
}

pub(super) fn state(facts: &Facts, attempts: &Attempts) -> TaskState {
    // Only the two tags matter here; an `end` that this version cannot read is still an end.
    if let Some(end) = facts.get(name::END) {
        let success = serde_json::from_slice::<End>(end)
            .is_ok_and(|end| matches!(end.verdict, EndVerdict::Success { .. }));
        return if success { TaskState::Success } else { TaskState::Failure };
    }
    let newest = attempts.newest();
    let Some(summary) = attempts.0.get(&newest) else { return TaskState::Pending };
    if summary.retried {
        return TaskState::Retry;
    }
    match attempts.newest_start(newest) {
        Some(start) if facts.has(&name::returned(newest, start)) => TaskState::Pending,
        Some(_) => TaskState::Started,
        None if summary.received => TaskState::Received,
        None => TaskState::Pending,
    }
}

/// Returns how a task is parked; `None` if it has been started or has ended since.
pub(crate) fn parked(facts: &Facts) -> Option<Parked> {
    let parked: Parked = facts.read(name::PARKED)?;
    let attempts = Attempts::of(facts);
    let is_over = facts.has(name::END) || facts.has(&name::retried(parked.attempt));
    let is_newest = attempts.newest() <= parked.attempt
        && abandoned_start(facts, parked.attempt).is_none()
        && attempts.newest_guard(parked.attempt) <= parked.generation;
    (is_newest && !is_over).then_some(parked)
}

/// Returns the newest start of an attempt, if it was started.
pub(crate) fn newest_start(facts: &Facts, attempt: u32) -> Option<Start> {
    let start = Attempts::of(facts).newest_start(attempt)?;
    facts.read(&name::start(attempt, start))
}

/// Returns the newest start of an attempt, unless it was handed back.
pub(crate) fn abandoned_start(facts: &Facts, attempt: u32) -> Option<Start> {
    let start = Attempts::of(facts).newest_start(attempt)?;
    facts.read(&name::start(attempt, start)).filter(|_| !facts.has(&name::returned(attempt, start)))
}

/// Returns the starts of an attempt in the record, ordered by number. It iterates over the facts that exist, not over
/// the numbers up to the newest: anybody who can write to the backend can write a start with a number of four billion.
pub(super) fn starts(facts: &Facts, attempt: u32) -> BTreeMap<u32, (FactName, Bytes)> {
    let number_of = |(name, _): (&str, &Bytes)| match NumberedFact::parse(name) {
        Some(NumberedFact::Start { attempt: of, start }) if of == attempt => Some(start),
        _ => None,
    };
    let fact_of = |start| {
        let name = name::start(attempt, start);
        facts.get(&name).map(|fact| (start, (name.clone(), fact.clone())))
    };
    facts.iter().filter_map(number_of).filter_map(fact_of).collect()
}

/// Numbered facts of a record, summarized for each attempt.
pub(crate) struct Attempts(BTreeMap<u32, AttemptSummary>);

#[derive(Default)]
struct AttemptSummary {
    received: bool,
    retried: bool,
    newest_start: u32,
    newest_guard: u32,
}

impl Attempts {
    pub(crate) fn of(facts: &Facts) -> Self {
        let mut attempts: BTreeMap<u32, AttemptSummary> = BTreeMap::new();
        for numbered in facts.iter().filter_map(|(name, _)| NumberedFact::parse(name)) {
            match numbered {
                NumberedFact::Received { attempt } => attempts.entry(attempt).or_default().received = true,
                NumberedFact::Retried { attempt } => attempts.entry(attempt).or_default().retried = true,
                NumberedFact::Start { attempt, start } => {
                    let summary = attempts.entry(attempt).or_default();
                    summary.newest_start = summary.newest_start.max(start);
                }
                NumberedFact::Guard { attempt, generation } => {
                    let summary = attempts.entry(attempt).or_default();
                    summary.newest_guard = summary.newest_guard.max(generation);
                }
                NumberedFact::Returned { .. } | NumberedFact::Followed { .. } => {}
            }
        }
        Self(attempts)
    }

    /// Returns the newest attempt that left a fact; 0 if none did.
    pub(crate) fn newest(&self) -> u32 {
        self.0.keys().next_back().copied().unwrap_or(0)
    }

    pub(crate) fn newest_start(&self, attempt: u32) -> Option<u32> {
        self.0.get(&attempt).map(|summary| summary.newest_start).filter(|start| *start > 0)
    }

    pub(crate) fn newest_guard(&self, attempt: u32) -> u32 {
        self.0.get(&attempt).map_or(0, |summary| summary.newest_guard)
    }
}
