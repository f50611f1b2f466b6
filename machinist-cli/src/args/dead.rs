//! Syntax of `machinist dead`.

use std::time::Duration;

use clap::{Args, Subcommand};
use machinist::{QueueName, TaskName, settings::parse_duration};

use super::value::{queue, reason};

/// Dead letters are messages that no worker will run. Each queue keeps its own, with their reasons. Listing and showing
/// them does not remove them.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List dead letters, the oldest first
    List {
        #[command(flatten)]
        which: DeadLetterSelection,
        /// Maximum number to list
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Also list the arguments
        #[arg(long)]
        args: bool,
    },
    /// Show everything about one dead letter, without removing it from its queue
    Show {
        /// Id of the dead letter, as `dead list` shows it
        id: String,
    },
    /// Send the tasks of dead letters again, each as a new task, after verifying each message as a worker does
    Replay(DeadLetterActionArgs),
    /// Delete dead letters
    Purge(DeadLetterActionArgs),
}

/// Selection of dead letters: those that match all given criteria.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DeadLetterSelection {
    /// Ids of dead letters, as `dead list` shows them
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Only those of this queue
    #[arg(long, short, value_name = "NAME", value_parser = queue)]
    pub(crate) queue: Option<QueueName>,
    /// Only those with this reason: failed, lost, expired, unsigned, ...
    #[arg(long, value_name = "WORD", value_parser = reason)]
    pub(crate) reason: Option<String>,
    /// Only those of this task
    #[arg(long, value_name = "NAME", value_parser = TaskName::parse)]
    pub(crate) task: Option<TaskName>,
    /// Only those that have been dead for at least this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,
    /// Only those that have been dead for less than this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) newer_than: Option<Duration>,
}

impl DeadLetterSelection {
    /// Returns `true` if no criterion is given.
    pub(crate) fn is_everything(&self) -> bool {
        let Self { ids, queue, reason, task, older_than, newer_than } = self;
        ids.is_empty()
            && queue.is_none()
            && reason.is_none()
            && task.is_none()
            && older_than.is_none()
            && newer_than.is_none()
    }
}

/// Exits with 1 if any dead letter was refused.
#[derive(Debug, Args)]
pub(crate) struct DeadLetterActionArgs {
    #[command(flatten)]
    pub(crate) which: DeadLetterSelection,
    /// Select all dead letters
    #[arg(long)]
    pub(crate) all: bool,
    /// Only print which would be selected
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Maximum number, the oldest first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
    /// Maximum number per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: Option<u32>,
}
