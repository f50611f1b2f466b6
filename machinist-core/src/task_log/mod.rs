//! Log of a task: the lines of its runs, with level and time, readable while they run.
//!
//! [`Client::log`](crate::Client::log) reads it. The lines are in a record of the task's id, apart from the facts of the task,
//! in *chunks*: facts that hold the lines of one run up to a few kilobytes. A writer that exceeds the bound drops the oldest
//! chunks. Lines are numbered within their run, so that a reader sees where some are missing.
//!
//! Nothing depends on the log: it is best effort, and no outcome waits for it without a bound.

mod chunk;
mod line;
mod run_log;
mod writer;

pub(crate) use chunk::{StoredLine, TakenLines, log_record, read_log};
pub use line::{LogLevel, LogLine, TaskLog};
pub(crate) use run_log::RunLog;
pub(crate) use writer::{LogRun, LogWriter};

/// Maximum size of the log of a task, in bytes.
pub(crate) const MAX_LOG_BYTES: usize = 64 * 1024;
/// Maximum size of a line, in bytes. The rest is cut off.
pub(crate) const MAX_LINE_BYTES: usize = 4 * 1024;
/// Size that is counted for each line in addition to its text.
const LINE_OVERHEAD: usize = 32;
