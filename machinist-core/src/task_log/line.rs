//! Lines as their readers see them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{clock::Timestamp, id::TaskId};

/// Level of a line, by severity: an error is the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is strange.
    Warn,
    /// Something happened: the level of lines without one.
    Info,
    /// Detail for those who search for an error.
    Debug,
    /// Every step.
    Trace,
}

impl LogLevel {
    /// Every level, the most severe first.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns the level as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = Self::ALL.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(text));
        level.ok_or_else(|| format!("{text:?} is no level; write error, warn, info, debug or trace"))
    }
}

impl From<tracing::Level> for LogLevel {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

/// Line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLine {
    /// Attempt that wrote it.
    pub attempt: u32,
    /// Number of the run within the attempt: above 1 after a takeover.
    pub run: u32,
    /// Number of the line within the run, from 0.
    pub number: u64,
    /// Number of lines of the run directly before this one that are missing, because the log was full.
    pub missing: u64,
    /// Time.
    pub at: Timestamp,
    /// Level.
    pub level: LogLevel,
    /// Text, which may contain control characters.
    pub text: String,
}

/// Log of a task, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskLog {
    /// Id of the task.
    pub id: TaskId,
    /// Lines of all attempts, in their order.
    pub lines: Vec<LogLine>,
    /// Number of lines of earlier runs that are missing because the log was full, where no line of their run is left.
    pub missing: u64,
    /// Reason that lines are not shown: they are encrypted, and cannot be decrypted here.
    pub locked: Option<String>,
}

impl TaskLog {
    /// Returns the number of lines that are known to be missing.
    pub fn all_missing(&self) -> u64 {
        self.missing + self.lines.iter().map(|line| line.missing).sum::<u64>()
    }
}
