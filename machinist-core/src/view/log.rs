//! The log of a task.

use serde::Serialize;

use crate::{LogLine, TaskLog};

/// Log of a task, as `log` prints it.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct TaskLogView<'a> {
    /// Id of the task.
    pub id: &'a str,
    /// Lines, in their order.
    pub lines: Vec<LogLineView<'a>>,
    /// Number of lines that were cut.
    pub missing: u64,
    /// Reason that lines are not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked: Option<&'a str>,
}

impl<'a> TaskLogView<'a> {
    /// Creates the view of a log, with some of its lines.
    pub fn new(log: &'a TaskLog, lines: impl IntoIterator<Item = &'a LogLine>) -> Self {
        Self {
            id: log.id.as_str(),
            lines: lines.into_iter().map(Into::into).collect(),
            missing: log.all_missing(),
            locked: log.locked.as_deref(),
        }
    }
}

/// Line of a log.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct LogLineView<'a> {
    /// Attempt.
    pub attempt: u32,
    /// Run of the attempt.
    pub run: u32,
    /// Number of the line in its run.
    pub number: u64,
    /// Number of lines before it that were cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// Time.
    pub at: String,
    /// Level, as a word.
    pub level: &'static str,
    /// Text.
    pub text: &'a str,
}

impl<'a> From<&'a LogLine> for LogLineView<'a> {
    fn from(line: &'a LogLine) -> Self {
        let LogLine { attempt, run, number, missing, at, level, text } = line;
        Self {
            attempt: *attempt,
            run: *run,
            number: *number,
            missing: Some(*missing).filter(|missing| *missing > 0),
            at: at.to_string(),
            level: level.as_str(),
            text,
        }
    }
}
