//! Chunks of a log as they are stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{LINE_OVERHEAD, LogLevel, LogLine, TaskLog};
use crate::{
    clock::Timestamp,
    id::{RecordId, RecordKind, TaskId},
    record::{FactName, Facts},
};

/// Fact that counts the lines that are missing of runs without a chunk.
pub(super) const MISSING: &str = "missing";

/// Line in a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredLine(Timestamp, LogLevel, String);

impl StoredLine {
    pub(super) fn new(at: Timestamp, level: LogLevel, text: String) -> Self {
        Self(at, level, text)
    }

    /// Returns the time, the level and the text of the line.
    pub(crate) fn parts(&self) -> (Timestamp, LogLevel, &str) {
        (self.0, self.1, &self.2)
    }

    /// Returns the size that is counted for the line.
    pub(super) fn size(&self) -> usize {
        self.2.len() + LINE_OVERHEAD
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.2
    }
}

/// Lines that are stored together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TakenLines {
    /// Number of the first.
    pub(crate) first: u64,
    pub(crate) lines: Vec<StoredLine>,
}

/// Lines of one run that were stored together. The numbers are readable also where the lines are encrypted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Chunk {
    /// Number of the first line.
    pub(super) first: u64,
    /// Number of lines.
    pub(super) count: u64,
    #[serde(default)]
    pub(super) lines: Vec<StoredLine>,
}

/// Place of a chunk in the log: attempt, run and number, by which the chunks are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ChunkPlace {
    pub(super) attempt: u32,
    pub(super) run: u32,
    pub(super) number: u32,
}

impl ChunkPlace {
    /// Returns the name of the fact.
    pub(super) fn name(self) -> FactName {
        format!("l:{}:{}:{}", self.attempt, self.run, self.number).into()
    }

    /// Parses the name of a fact; `None` for another fact.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("l:")?.split(':').map(str::parse);
        let place =
            Self { attempt: parts.next()?.ok()?, run: parts.next()?.ok()?, number: parts.next()?.ok()? };
        parts.next().is_none().then_some(place)
    }
}

/// Returns the record of a task's log.
pub(crate) fn log_record(id: &TaskId) -> RecordId {
    RecordId::new(RecordKind::Log, id.as_str())
}

/// Returns the chunks of a record in their order, with the sizes of the facts.
pub(super) fn chunks(facts: &Facts) -> BTreeMap<ChunkPlace, (Chunk, usize)> {
    facts
        .iter()
        .filter_map(|(name, value)| {
            let place = ChunkPlace::parse(name)?;
            Some((place, (serde_json::from_slice(value).ok()?, value.len())))
        })
        .collect()
}

/// Returns what the record of a log says; `locked` is the reason that chunks are still encrypted.
pub(crate) fn read_log(id: &TaskId, facts: &Facts, locked: Option<String>) -> TaskLog {
    let mut lines = Vec::new();
    let mut last = None;
    for (ChunkPlace { attempt, run, .. }, (chunk, _)) in chunks(facts) {
        let next = match last {
            Some((place, next)) if place == (attempt, run) => next,
            _ => 0,
        };
        let mut missing = chunk.first.saturating_sub(next);
        for (number, StoredLine(at, level, text)) in (chunk.first..).zip(chunk.lines) {
            lines.push(LogLine { attempt, run, number, missing, at, level, text });
            missing = 0;
        }
        last = Some(((attempt, run), chunk.first + chunk.count));
    }
    let missing = facts.read(MISSING).unwrap_or_default();
    TaskLog { id: id.clone(), lines, missing, locked }
}
