//! Syntax of `machinist tasks` and `machinist failures`.

use std::time::Duration;

use clap::{Args, Subcommand};
use machinist::{QueueName, TaskName, clock::Timestamp, record::TaskState, settings::parse_duration};

use super::value::{positive, queue, task_cursor, task_state};

/// Tasks that have ended or run, the newest first, or those that are known to wait. Notes on standard error say how many
/// listed tasks were looked at, and how the list goes on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist tasks --state failure --error \"exit code 3\" --since 1h
  machinist tasks --name resize --label tenant=acme
  machinist tasks --state pending

The setting `events` decides which ended tasks are listed: failures unless it is set, all or off. They are listed within
seconds, for seven days at most.")]
pub(crate) struct TasksArgs {
    /// Only tasks in this state: success, failure or started; or pending or retry for those that wait
    #[arg(long, value_name = "STATE", value_parser = task_state)]
    pub(crate) state: Option<TaskState>,
    /// Only tasks with this name
    #[arg(long, value_name = "NAME", value_parser = TaskName::parse)]
    pub(crate) name: Option<TaskName>,
    /// Only tasks of this queue
    #[arg(long, value_name = "NAME", value_parser = queue)]
    pub(crate) queue: Option<QueueName>,
    /// Only tasks that this worker ran last
    #[arg(long, value_name = "NAME")]
    pub(crate) worker: Option<String>,
    /// Only tasks that have changed within this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// Only tasks whose error contains this text: the first 300 bytes of the error and its causes are searched
    #[arg(long, value_name = "TEXT")]
    pub(crate) error: Option<String>,
    /// Only ended tasks with this label; can be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Maximum number of tasks
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// Go on after this place, which a note of the page before has named
    #[arg(long, value_name = "CURSOR", value_parser = task_cursor)]
    pub(crate) after: Option<(Timestamp, String)>,
}

/// Failed tasks of one name and kind whose errors are alike are one group: numbers, ids, quoted parts and addresses do not
/// count.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  machinist failures --since 24h
  machinist failures retry 3f9a1c0b77d2 --dry-run
  machinist tasks --state failure --name resize    lists the tasks themselves"
)]
pub(crate) struct FailuresArgs {
    #[command(subcommand)]
    pub(crate) command: Option<FailuresCommand>,
    /// Only failures within this time [default: those that are listed, of seven days at most]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// Also silenced groups
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FailuresCommand {
    /// Send the failed tasks of a group again, as `machinist retry` does
    Retry(GroupArgs),
    /// Purge the dead letters of the failed tasks of a group
    Purge(GroupArgs),
    /// Leave a group out of the list for a while. It is counted all the same
    Silence {
        /// Fingerprint of the group
        #[arg(value_name = "FINGERPRINT")]
        fingerprint: String,
        /// Time for which it is left out, 30 days at most
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, default_value = "7d")]
        duration: Duration,
        /// List it again
        #[arg(long)]
        off: bool,
    },
}

/// Failed tasks of a group.
#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    /// Fingerprint of the group
    #[arg(value_name = "FINGERPRINT")]
    pub(crate) fingerprint: String,
    /// Only failures within this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// Only print which would be selected
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Maximum number of tasks
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) count: Option<u32>,
    /// Maximum number per second
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) rate: Option<u32>,
}
