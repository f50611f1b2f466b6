//! The facts of a record: their names, their shapes, and the set that holds them.
//!
//! Nothing in a record is ever overwritten. A record is a growing set of named facts, each written once, first
//! writer wins; the state is a function of the facts (see [`fold`](super::fold)). Values are JSON text, so that a
//! person with `redis-cli` or `sqlite3` can read them.

use std::sync::Arc;

use bytes::Bytes;
pub use machinist_adapter::facts::{FactName, Facts};
use serde::{Deserialize, Serialize};

use super::FailureKind;
use crate::{
    args::Results,
    clock::Timestamp,
    id::{RunId, SessionId},
};

/// How long the facts of most tasks are at most, in bytes.
const USUAL_FACT_BYTES: usize = 256;

/// A fact's value as it is stored: JSON text.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    let mut text = Vec::with_capacity(USUAL_FACT_BYTES);
    // INVARIANT: the shapes in this module have string keys and no failing `Serialize`.
    serde_json::to_writer(&mut text, value).expect("a fact is plain data");
    Bytes::from(text)
}

/// The names of facts.
pub(crate) mod name {
    use super::FactName;

    pub(crate) const TASK: &str = "name";
    pub(crate) const QUEUE: &str = "queue";
    pub(crate) const TRACE: &str = "trace";
    pub(crate) const SENT: &str = "sent";
    pub(crate) const ETA: &str = "eta";
    pub(crate) const EXPIRES: &str = "exp";
    /// The message, so that it can be sent again: of delayed tasks by their sender, of failed ones by their worker.
    pub(crate) const MESSAGE: &str = "msg";
    /// Which failed task this one repeats.
    pub(crate) const RETRY_OF: &str = "retry_of";
    /// Which task repeats this failed one.
    pub(crate) const RETRIED_AS: &str = "retried_as";
    /// What a sender writes: dropped again when its message was certainly not queued.
    pub(crate) const OF_SENDER: [&str; 8] = [TASK, QUEUE, TRACE, SENT, ETA, EXPIRES, MESSAGE, RETRY_OF];

    /// About a dead letter, in a record of its own.
    pub(crate) const DEAD: &str = "dead";

    pub(crate) const END: &str = "end";
    pub(crate) const FOLLOWED: &str = "f";
    pub(crate) const REVOKED: &str = "rv";
    /// Beside `rv`: whoever runs it is to be cut off at once.
    pub(crate) const TERMINATED: &str = "rt";
    /// The one fact that changes. Shown, never decided on.
    pub(crate) const PROGRESS: &str = "pg";

    pub(crate) fn received(attempt: u32) -> FactName {
        format!("rc:{attempt}").into()
    }
    pub(crate) fn start(attempt: u32, start: u32) -> FactName {
        // The one that every task has.
        if (attempt, start) == (1, 1) {
            FactName::Borrowed("s:1:1")
        } else {
            format!("s:{attempt}:{start}").into()
        }
    }
    /// The start that would come after this one.
    pub(crate) fn start_after(attempt: u32, last: u32) -> FactName {
        start(attempt, last.saturating_add(1))
    }
    pub(crate) fn returned(attempt: u32, start: u32) -> FactName {
        format!("r:{attempt}:{start}").into()
    }
    pub(crate) fn retried(attempt: u32) -> FactName {
        // The one whose absence every task asks for.
        if attempt == 1 { FactName::Borrowed("o:1") } else { format!("o:{attempt}").into() }
    }
    pub(crate) fn guard(attempt: u32, generation: u32) -> FactName {
        format!("g:{attempt}:{generation}").into()
    }
    pub(crate) fn followed(attempt: u32) -> FactName {
        format!("f:{attempt}").into()
    }
}

/// A fact's name, taken apart; `None` for the names that carry no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbered {
    Received { attempt: u32 },
    Start { attempt: u32, start: u32 },
    Returned { attempt: u32, start: u32 },
    Retried { attempt: u32 },
    Guard { attempt: u32, generation: u32 },
    Followed { attempt: u32 },
}

impl Numbered {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split(':');
        let (letter, attempt) = (parts.next()?, parts.next()?.parse().ok()?);
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
    /// The worker's name, for people.
    pub(crate) worker: Arc<str>,
    pub(crate) token: u64,
    #[serde(rename = "received")]
    pub(crate) received_at: Timestamp,
    #[serde(rename = "at")]
    pub(crate) started_at: Timestamp,
    /// Nothing else ran in its process: if that died, this was the reason.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) alone: bool,
}

/// Which run of a task an outcome is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunOrigin {
    pub(crate) attempt: u32,
    pub(crate) start: u32,
    pub(crate) run: RunId,
    pub(crate) token: u64,
    pub(crate) worker: Arc<str>,
}

/// `pg`: how far a run has come, as its handler says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// The attempt that says so.
    pub attempt: u32,
    /// How much is done.
    pub done: u64,
    /// Out of how much; 0 where the handler cannot know.
    pub total: u64,
    /// What it is doing, in its own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// When it said so.
    pub at: Timestamp,
}

/// `rv`: somebody asked for the end. `rt`: without waiting for its last words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revocation {
    pub(crate) at: Timestamp,
}

/// The error of a run, as text: safe to store, safe to print.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ErrorText {
    /// What went wrong, outermost first; the rest is what caused it.
    pub chain: Vec<String>,
}

/// The longest text kept of one error message, in bytes.
const MESSAGE_LIMIT: usize = 4 * 1024;
/// How many links of a chain of causes are kept.
const CHAIN_LIMIT: usize = 16;

impl ErrorText {
    /// Takes over messages, outermost first, and bounds them: an error is never larger than 64 KiB.
    pub fn new(messages: impl IntoIterator<Item = String>) -> Self {
        let shorten = |mut text: String| {
            if text.len() > MESSAGE_LIMIT {
                let end = (0..=MESSAGE_LIMIT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                text.truncate(end);
                text.push('…');
            }
            text
        };
        Self { chain: messages.into_iter().take(CHAIN_LIMIT).map(shorten).collect() }
    }

    /// Cuts off what is beyond so many bytes, causes first.
    pub(crate) fn shorten(&mut self, bytes: usize) {
        let mut room = bytes;
        for text in &mut self.chain {
            let end = (0..=room.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            if end < text.len() {
                text.truncate(end);
                text.push('…');
            }
            room -= end;
        }
        self.chain.retain(|text| !text.is_empty() && text != "…");
    }

    /// The outermost message.
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
    /// When the next attempt is due.
    pub(crate) due: Timestamp,
    pub(crate) counters: Counters,
    pub(crate) kind: FailureKind,
    pub(crate) error: ErrorText,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) log: String,
}

/// How much of its budgets a task has spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) retries: u32,
    pub(crate) postponements: u32,
}

/// `end`: the task is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct End {
    /// The run that ended it; none where somebody else did.
    #[serde(flatten, default)]
    pub(crate) origin: Option<RunOrigin>,
    pub(crate) at: Timestamp,
    #[serde(flatten)]
    pub(crate) verdict: EndVerdict,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) log: String,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "UPPERCASE")]
pub(crate) enum EndVerdict {
    Success { results: Results },
    Failure { kind: FailureKind, error: ErrorText },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_they_were_made() {
        assert_eq!(Numbered::parse(&name::start(3, 2)), Some(Numbered::Start { attempt: 3, start: 2 }));
        assert_eq!(Numbered::parse(&name::returned(1, 1)), Some(Numbered::Returned { attempt: 1, start: 1 }));
        assert_eq!(Numbered::parse(&name::retried(7)), Some(Numbered::Retried { attempt: 7 }));
        assert_eq!(Numbered::parse(&name::received(7)), Some(Numbered::Received { attempt: 7 }));
        assert_eq!(Numbered::parse(&name::guard(1, 9)), Some(Numbered::Guard { attempt: 1, generation: 9 }));
        assert_eq!(Numbered::parse(&name::followed(1)), Some(Numbered::Followed { attempt: 1 }));
        for other in ["name", "end", "f", "s:1", "s:1:2:3", "s:x:1", "f:1:1", ""] {
            assert_eq!(Numbered::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_end_is_readable_and_reads_back() {
        let end = End {
            origin: Some(RunOrigin { attempt: 1, start: 1, run: "r".into(), token: 7, worker: "w".into() }),
            at: Timestamp::from_micros(5),
            verdict: EndVerdict::Success { results: Results::default() },
            log: String::new(),
        };
        let text = json(&end);
        assert_eq!(
            text,
            r#"{"attempt":1,"start":1,"run":"r","token":7,"worker":"w","at":5,"state":"SUCCESS","results":[]}"#
        );
        assert_eq!(serde_json::from_slice::<End>(&text).unwrap(), end);
        let anybody = End { origin: None, ..end };
        assert_eq!(serde_json::from_slice::<End>(&json(&anybody)).unwrap(), anybody);
    }

    #[test]
    fn errors_are_bounded() {
        let error = ErrorText::new((0..100).map(|_| "é".repeat(10_000)));
        let mut short = error.clone();
        short.shorten(5_001);
        assert_eq!(short.chain.iter().map(String::len).sum::<usize>(), 4_099 + 902 + '…'.len_utf8());
        assert!(error.chain.len() == CHAIN_LIMIT && error.chain.iter().all(|m| m.len() <= MESSAGE_LIMIT + 4));
    }
}
