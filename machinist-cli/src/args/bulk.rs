//! Selection of many tasks, for `revoke` and `retry`.

use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use machinist::{QueueName, TaskName, record::TaskState, settings::parse_duration};

use super::value::{positive, queue};

/// Selection of tasks: those that match all given criteria.
#[derive(Debug, Default, Args)]
#[command(
    next_help_heading = "Many at once",
    group = ArgGroup::new("selection").multiple(true).args(["queue", "name", "state", "error", "older_than"])
)]
pub(crate) struct BulkArgs {
    /// All of this queue
    #[arg(long, short, value_name = "NAME", value_parser = queue)]
    pub(crate) queue: Option<QueueName>,
    /// All with this task name
    #[arg(long, value_name = "NAME", value_parser = TaskName::parse)]
    pub(crate) name: Option<TaskName>,
    /// All in this state
    #[arg(long, value_name = "STATE", value_enum, ignore_case = true)]
    pub(crate) state: Option<BulkState>,
    /// All whose last error contains this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) error: Option<String>,
    /// All that have not changed for at least this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,
    /// Only print which would be selected
    #[arg(long, requires = "selection")]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long, requires = "selection")]
    pub(crate) yes: bool,
    /// Maximum number of tasks
    #[arg(long, value_name = "N", value_parser = positive, requires = "selection")]
    pub(crate) count: Option<u32>,
    /// Maximum number per second
    #[arg(long, value_name = "N", value_parser = positive, requires = "selection")]
    pub(crate) rate: Option<u32>,
}

/// State of the tasks that are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BulkState {
    /// They wait for their ETA
    Pending,
    /// They wait for their next run
    Retry,
    /// They have failed
    Failure,
}

impl From<BulkState> for TaskState {
    fn from(state: BulkState) -> Self {
        match state {
            BulkState::Pending => Self::Pending,
            BulkState::Retry => Self::Retry,
            BulkState::Failure => Self::Failure,
        }
    }
}
