//! Facts of a record: their names, their values, and the set that holds them.
//!
//! Nothing in a record is ever overwritten. A record is a growing set of named facts, each written once; the first
//! writer wins. The state is a function of the facts (see [`fold`](super::fold)). Values are JSON text, so that a
//! person with `redis-cli` or `sqlite3` can read them.

use std::sync::Arc;

use bytes::Bytes;
pub use machinist_adapter::facts::{FactName, Facts};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IntoDeserializer, value::StringDeserializer},
};

use super::{DeadReason, FailureKind};
use crate::{
    args::Results,
    clock::Timestamp,
    flow::Spawned,
    id::{RunId, SessionId, TaskId},
};

/// Size that most facts do not exceed, in bytes.
const TYPICAL_FACT_BYTES: usize = 256;

/// Encodes a fact's value as it is stored: as JSON text.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    let mut text = Vec::with_capacity(TYPICAL_FACT_BYTES);
    // INVARIANT: the types in this module have string keys and no failing `Serialize`.
    serde_json::to_writer(&mut text, value).expect("a fact is plain data");
    Bytes::from(text)
}

/// Names of facts.
pub(crate) mod name {
    use super::FactName;

    pub(crate) const TASK: &str = "name";
    pub(crate) const QUEUE: &str = "queue";
    pub(crate) const TRACE: &str = "trace";
    pub(crate) const SENT: &str = "sent";
    pub(crate) const ETA: &str = "eta";
    pub(crate) const EXPIRES: &str = "exp";
    /// The message, stored so that it can be sent again: by the sender for delayed tasks, by the worker for failed
    /// ones.
    pub(crate) const MESSAGE: &str = "msg";
    /// The message of a task whose worker keeps its arguments for people. Nothing is decided by it, and nothing is sent
    /// from it.
    pub(crate) const KEPT_ARGS: &str = "kept";
    /// Id of the failed task that this one repeats.
    pub(crate) const RETRY_OF: &str = "retry_of";
    /// Id of the task that repeats this failed one.
    pub(crate) const RETRIED_AS: &str = "retried_as";
    /// Facts that a sender writes. They are dropped again if its message was certainly not queued.
    pub(crate) const OF_SENDER: [&str; 8] = [TASK, QUEUE, TRACE, SENT, ETA, EXPIRES, MESSAGE, RETRY_OF];

    /// Entry about a dead letter, in a separate record.
    pub(crate) const DEAD: &str = "dead";

    /// The task waits, because a rule refuses its start.
    pub(crate) const PARKED: &str = "pk";
    /// Guard of a task that waits, so that it can be published before it comes back by itself.
    pub(crate) const PARKED_MESSAGE: &str = "pm";
    /// Starts that are reserved for a task which waits for them in a process.
    pub(crate) const RESERVED: &str = "rs";

    /// Prefix of the names of facts that say if a task name is disabled, in the control record.
    pub(crate) const DISABLED: &str = "off:";
    /// Prefix of the names of facts that say if a queue is paused, in the control record.
    pub(crate) const PAUSED: &str = "queue:";

    /// Start of the names of limits that people have set, in the control record.
    pub(crate) const LIMIT: &str = "lim:";

    /// Digest of the arguments that a join has given to the task that waited for it.
    pub(crate) const GATHERED: &str = "ga";
    /// Outline of a workflow, in the record of its root.
    pub(crate) const OUTLINE: &str = "flow";

    /// Tasks on whose ends the result of a workflow depends that other programs run, in the record of its last task.
    pub(crate) const AWAITED: &str = "awaits";

    /// Holder of a lock, in a separate record.
    pub(crate) const HOLDER: &str = "holder";

    /// State that people want a worker to be in, in the record of its name.
    pub(crate) const WANTED: &str = "wanted";
    /// Prefix of the names of orders to a worker, in the record of its name.
    pub(crate) const ORDER: &str = "order:";
    /// Prefix of the names of answers to orders, in the record of the worker's name.
    pub(crate) const ANSWER: &str = "answer:";

    /// Lease of a session, in a separate record.
    pub(crate) const LEASE: &str = "lease";
    /// Description of the worker, in the record of its session.
    pub(crate) const ABOUT: &str = "about";
    /// State and counts of the worker's work, in the record of its session.
    pub(crate) const RUNS: &str = "runs";
    /// Ids of some of the worker's runs, in the record of its session.
    pub(crate) const RUN_IDS: &str = "ids";

    pub(crate) const END: &str = "end";
    pub(crate) const FOLLOWED: &str = "f";
    /// In addition to `f`: what another program was owed only later is published too.
    pub(crate) const FOLLOWED_SINCE: &str = "fs";
    pub(crate) const REVOKED: &str = "rv";
    /// In addition to `rv`: the run must be cut off at once.
    pub(crate) const TERMINATED: &str = "rt";
    /// The one fact that changes. It is shown, and no decision is based on it.
    pub(crate) const PROGRESS: &str = "pg";

    pub(crate) fn received(attempt: u32) -> FactName {
        format!("rc:{attempt}").into()
    }
    pub(crate) fn start(attempt: u32, start: u32) -> FactName {
        // Every task has this one.
        if (attempt, start) == (1, 1) {
            FactName::Borrowed("s:1:1")
        } else {
            format!("s:{attempt}:{start}").into()
        }
    }
    /// Returns the name of the start that would follow this one.
    pub(crate) fn start_after(attempt: u32, last: u32) -> FactName {
        start(attempt, last.saturating_add(1))
    }
    pub(crate) fn returned(attempt: u32, start: u32) -> FactName {
        format!("r:{attempt}:{start}").into()
    }
    pub(crate) fn retried(attempt: u32) -> FactName {
        // Every task checks that this one is absent.
        if attempt == 1 { FactName::Borrowed("o:1") } else { format!("o:{attempt}").into() }
    }
    pub(crate) fn guard(attempt: u32, generation: u32) -> FactName {
        format!("g:{attempt}:{generation}").into()
    }
    pub(crate) fn followed(attempt: u32) -> FactName {
        format!("f:{attempt}").into()
    }
}

/// Parsed name of a fact; `None` for names without a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberedFact {
    Received { attempt: u32 },
    Start { attempt: u32, start: u32 },
    Returned { attempt: u32, start: u32 },
    Retried { attempt: u32 },
    Guard { attempt: u32, generation: u32 },
    Followed { attempt: u32 },
}

impl NumberedFact {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split(':');
        let letter = parts.next()?;
        let attempt = parts.next()?.parse().ok()?;
        let second = match parts.next() {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        match (letter, second, parts.next()) {
            ("rc", None, None) => Some(Self::Received { attempt }),
            ("s", Some(start), None) => Some(Self::Start { attempt, start }),
            ("r", Some(start), None) => Some(Self::Returned { attempt, start }),
            ("o", None, None) => Some(Self::Retried { attempt }),
            ("g", Some(generation), None) => Some(Self::Guard { attempt, generation }),
            ("f", None, None) => Some(Self::Followed { attempt }),
            _ => None,
        }
    }
}

/// `s:M:E`: an attempt was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) run: RunId,
    pub(crate) session: SessionId,
    /// Name of the worker, for display.
    pub(crate) worker: Arc<str>,
    pub(crate) token: u64,
    #[serde(rename = "received")]
    pub(crate) received_at: Timestamp,
    #[serde(rename = "at")]
    pub(crate) started_at: Timestamp,
    /// `true` if nothing else ran in its process: if the process died, this run was the cause.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) alone: bool,
}

/// Run that an outcome comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunOrigin {
    pub(crate) attempt: u32,
    pub(crate) start: u32,
    pub(crate) run: RunId,
    pub(crate) token: u64,
    pub(crate) worker: Arc<str>,
}

/// `pg`: progress of a run, as its handler reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// Attempt that reports it.
    pub attempt: u32,
    /// Amount that is done.
    pub done: u64,
    /// Total amount; 0 if the handler cannot know it.
    pub total: u64,
    /// Description of the current work, in the handler's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Time of the report.
    pub at: Timestamp,
}

/// `pk`: the task is parked, because a rule refuses its start. It is replaced each time that the task is parked again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Parked {
    /// Attempt that waits.
    pub attempt: u32,
    /// Generation of the guard that comes back.
    pub(crate) generation: u32,
    /// Reason, as `CODE:SUBJECT`.
    pub reason: String,
    /// Time since when it waits for this reason.
    pub since: Timestamp,
    /// Time at which its message comes back by itself.
    pub until: Timestamp,
    /// Starts that are reserved for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) reserved: Vec<ReservedStart>,
}

/// A start that is reserved for a task whose rate is limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReservedStart {
    /// Bucket of the reservation: the id of its record.
    pub(crate) bucket: String,
    /// Time of the start.
    pub(crate) at: Timestamp,
    /// Time by which the bucket had been pushed back then, in microseconds.
    #[serde(default)]
    pub(crate) shift: i64,
    /// Time between two such starts under the rate of the reservation, in microseconds; `None` in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<i64>,
}

/// `rs`: starts that are reserved for a task while it waits for them in a process. The worker that gets its message next uses
/// them. It is replaced when the task reserves others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReservedStarts {
    pub(crate) attempt: u32,
    /// Generation of the copy that waits.
    pub(crate) generation: u32,
    pub(crate) starts: Vec<ReservedStart>,
}

/// `rv`: the task was revoked. `rt`: its run is cut off without waiting for it to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revocation {
    pub(crate) at: Timestamp,
}

/// Error of a run, as text that is safe to store and to print.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ErrorText {
    /// Messages, outermost first; the later ones are the causes.
    pub chain: Vec<String>,
}

/// Maximum size of one stored error message, in bytes.
const MAX_MESSAGE_BYTES: usize = 4 * 1024;
/// Maximum number of messages that are stored of a chain of causes.
const MAX_CHAIN_LENGTH: usize = 16;

impl ErrorText {
    /// Creates an error from messages, outermost first, and bounds them: an error is never larger than 64 KiB.
    pub fn new(messages: impl IntoIterator<Item = String>) -> Self {
        let shorten = |mut text: String| {
            if text.len() > MAX_MESSAGE_BYTES {
                let end = (0..=MAX_MESSAGE_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                text.truncate(end);
                text.push('…');
            }
            text
        };
        Self { chain: messages.into_iter().take(MAX_CHAIN_LENGTH).map(shorten).collect() }
    }

    /// Cuts off everything beyond a maximum size in bytes, causes first.
    pub(crate) fn shorten(&mut self, bytes: usize) {
        let mut remaining = bytes;
        for text in &mut self.chain {
            let end =
                (0..=remaining.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            if end < text.len() {
                text.truncate(end);
                text.push('…');
            }
            remaining -= end;
        }
        self.chain.retain(|text| !text.is_empty() && text != "…");
    }

    /// Returns the outermost message.
    pub fn message(&self) -> &str {
        self.chain.first().map_or("", String::as_str)
    }
}

impl From<&str> for ErrorText {
    fn from(message: &str) -> Self {
        Self::new([message.to_owned()])
    }
}

/// `o:M`: an attempt ended in RETRY.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retried {
    #[serde(flatten)]
    pub(crate) origin: RunOrigin,
    pub(crate) at: Timestamp,
    /// Due time of the next attempt.
    pub(crate) due: Timestamp,
    pub(crate) counters: Counters,
    pub(crate) kind: FailureKind,
    pub(crate) error: ErrorText,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) log: String,
}

/// Numbers of retries and postponements that a task has spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) retries: u32,
    pub(crate) postponements: u32,
}

/// `end`: the task is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct End {
    /// Run that ended it; `None` if it ended without a run.
    #[serde(flatten, default)]
    pub(crate) origin: Option<RunOrigin>,
    pub(crate) at: Timestamp,
    #[serde(flatten)]
    pub(crate) verdict: EndVerdict,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) log: String,
    /// Number of tasks and workflows that the handler has spawned.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) spawns: usize,
    /// Tasks and workflows that the handler has spawned. Encrypted where outcomes are, so that the number says that there is something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) spawned: Vec<Spawned>,
    /// Task whose end counts in the place of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) continued_by: Option<TaskId>,
    /// Trace context of its run, for the runs of what follows it in a workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl End {
    /// Creates the end of a task that was not run.
    pub(crate) fn without_run(at: Timestamp, verdict: EndVerdict) -> Self {
        Self {
            origin: None,
            at,
            verdict,
            log: String::new(),
            spawns: 0,
            spawned: Vec::new(),
            continued_by: None,
            trace: None,
        }
    }
}

/// Way in which the task ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "UPPERCASE")]
pub(crate) enum EndVerdict {
    Success { results: Results },
    Failure(Failure),
}

/// Failure of a task, as its end states it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// Reason of the dead letter, where the kind does not imply it.
    #[serde(
        default,
        rename = "dead_reason",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "known_reason"
    )]
    pub(crate) reason: Option<DeadReason>,
    pub(crate) error: ErrorText,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, error: impl Into<ErrorText>) -> Self {
        Self { kind, reason: None, error: error.into() }
    }

    /// Creates the failure of an authentic task that must not run.
    pub(crate) fn rejected(reason: DeadReason, error: &str) -> Self {
        let error = ErrorText::new([reason.as_str().to_owned(), error.to_owned()]);
        Self { kind: FailureKind::Rejected, reason: Some(reason), error }
    }

    /// Returns the reason of the task's dead letter.
    pub(crate) fn reason(&self) -> DeadReason {
        self.reason.unwrap_or_else(|| DeadReason::of(self.kind))
    }
}

/// Reads a reason; `None` for one that a newer program wrote, so that its record stays readable.
fn known_reason<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DeadReason>, D::Error> {
    let word = Option::<String>::deserialize(from)?;
    let known = |word: String| {
        let word: StringDeserializer<D::Error> = word.into_deserializer();
        DeadReason::deserialize(word).ok()
    };
    Ok(word.and_then(known))
}

/// Results as the JSON text that a record holds, encoded once: its size is checked before it is committed. With them comes
/// what the handler has spawned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncodedResults {
    text: Bytes,
    pub(crate) spawned: Vec<Spawned>,
    /// Task whose end counts in the place of this one.
    pub(crate) continued_by: Option<TaskId>,
}

impl EncodedResults {
    /// Encodes the results of a run.
    pub(crate) fn of(results: &Results) -> Self {
        Self { text: json(results), spawned: Vec::new(), continued_by: None }
    }

    /// Size of what was spawned, in bytes.
    pub(crate) fn spawned_size(&self) -> usize {
        if self.spawned.is_empty() { 0 } else { json(&self.spawned).len() }
    }

    /// Size of the text, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.text.len()
    }
}

impl Default for EncodedResults {
    fn default() -> Self {
        Self::of(&Results::default())
    }
}

/// Encodes the end of a task in SUCCESS: the same text as that of an [`End`] with [`EndVerdict::Success`], without
/// encoding the results again.
pub(crate) fn success(origin: &RunOrigin, at: Timestamp, results: &EncodedResults, log: &str) -> Bytes {
    #[derive(Serialize)]
    struct Head<'a> {
        #[serde(flatten)]
        origin: &'a RunOrigin,
        at: Timestamp,
        state: &'static str,
    }
    let mut text = Vec::with_capacity(TYPICAL_FACT_BYTES + results.size() + log.len());
    // INVARIANT: plain data, as in `json`.
    serde_json::to_writer(&mut text, &Head { origin, at, state: "SUCCESS" }).expect("a fact is plain data");
    // The closing brace.
    text.pop();
    text.extend_from_slice(b",\"results\":");
    text.extend_from_slice(&results.text);
    if !log.is_empty() {
        text.extend_from_slice(b",\"log\":");
        text.extend_from_slice(&json(log));
    }
    if !results.spawned.is_empty() {
        text.extend_from_slice(format!(",\"spawns\":{},\"spawned\":", results.spawned.len()).as_bytes());
        text.extend_from_slice(&json(&results.spawned));
    }
    if let Some(continued_by) = &results.continued_by {
        text.extend_from_slice(b",\"continued_by\":");
        text.extend_from_slice(&json(continued_by));
    }
    text.push(b'}');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::Commit,
        flow::Step,
        record::{add_trace, continued_by},
    };

    #[test]
    fn names_are_parsed_as_they_were_formatted() {
        assert_eq!(
            NumberedFact::parse(&name::start(3, 2)),
            Some(NumberedFact::Start { attempt: 3, start: 2 })
        );
        assert_eq!(
            NumberedFact::parse(&name::returned(1, 1)),
            Some(NumberedFact::Returned { attempt: 1, start: 1 })
        );
        assert_eq!(NumberedFact::parse(&name::retried(7)), Some(NumberedFact::Retried { attempt: 7 }));
        assert_eq!(NumberedFact::parse(&name::received(7)), Some(NumberedFact::Received { attempt: 7 }));
        assert_eq!(
            NumberedFact::parse(&name::guard(1, 9)),
            Some(NumberedFact::Guard { attempt: 1, generation: 9 })
        );
        assert_eq!(NumberedFact::parse(&name::followed(1)), Some(NumberedFact::Followed { attempt: 1 }));
        for other in ["name", "end", "f", "s:1", "s:1:2:3", "s:x:1", "f:1:1", ""] {
            assert_eq!(NumberedFact::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_end_survives_json() {
        let end = End {
            origin: Some(RunOrigin { attempt: 1, start: 1, run: "r".into(), token: 7, worker: "w".into() }),
            at: Timestamp::from_micros(5),
            verdict: EndVerdict::Success { results: Results::default() },
            log: String::new(),
            spawns: 0,
            spawned: Vec::new(),
            continued_by: None,
            trace: None,
        };
        let text = json(&end);
        assert_eq!(
            text,
            r#"{"attempt":1,"start":1,"run":"r","token":7,"worker":"w","at":5,"state":"SUCCESS","results":[]}"#
        );
        assert_eq!(serde_json::from_slice::<End>(&text).unwrap(), end);
        let without_run = End { origin: None, ..end };
        assert_eq!(serde_json::from_slice::<End>(&json(&without_run)).unwrap(), without_run);
    }

    #[test]
    fn the_trace_of_a_run_is_added_to_its_end_alone() {
        let verdict = EndVerdict::Success { results: Results::default() };
        let end = End::without_run(Timestamp::from_micros(5), verdict);
        let mut commit = Commit::new(TaskId::parse("t").unwrap());
        commit.facts.push((name::retried(1), "{}".into()));
        add_trace(&mut commit, "00-a-b-01");
        assert_eq!(commit.facts, [(name::retried(1), "{}".into())]);
        commit.facts.push((name::END.into(), json(&end)));
        add_trace(&mut commit, "00-a-b-01");
        let traced: End = serde_json::from_slice(&commit.facts[1].1).unwrap();
        assert_eq!(traced, End { trace: Some("00-a-b-01".to_owned()), ..end });
    }

    #[test]
    fn errors_are_bounded() {
        let error = ErrorText::new((0..100).map(|_| "é".repeat(10_000)));
        let mut short = error.clone();
        short.shorten(5_001);
        assert_eq!(short.chain.iter().map(String::len).sum::<usize>(), 4_099 + 902 + '…'.len_utf8());
        assert!(
            error.chain.len() == MAX_CHAIN_LENGTH
                && error.chain.iter().all(|m| m.len() <= MAX_MESSAGE_BYTES + 4)
        );
    }
    #[test]
    fn a_success_is_encoded_as_the_end_that_it_is() {
        let origin = RunOrigin { attempt: 2, start: 3, run: "r".into(), token: 7, worker: "w \"ö\"".into() };
        let at = Timestamp::from_micros(5);
        let results: Results =
            serde_json::from_str(r#"[{"name":"","type":"string","value":"x\ny"}]"#).unwrap();
        for log in ["", "a line\n\"quoted\""] {
            let verdict = EndVerdict::Success { results: results.clone() };
            let replacement = Spawned { step: Step::default(), outline: None, replaces: true };
            for spawned in [vec![], vec![replacement]] {
                let continued_by = continued_by(&"R".try_into().unwrap(), &spawned);
                let end = End {
                    origin: Some(origin.clone()),
                    at,
                    verdict: verdict.clone(),
                    log: log.to_owned(),
                    spawns: spawned.len(),
                    spawned: spawned.clone(),
                    continued_by: continued_by.clone(),
                    trace: None,
                };
                let encoded = EncodedResults { spawned, continued_by, ..EncodedResults::of(&results) };
                assert_eq!(success(&origin, at, &encoded, log), json(&end));
            }
        }
    }
}
