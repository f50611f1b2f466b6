//! Syntax of `machinist history` and `machinist mark`.

use std::time::Duration;

use clap::Args;
use machinist::{QueueName, TaskName, settings::parse_duration};

use super::value::queue;

/// Numbers of tasks that came and ended, how long they took, and how deep the queues were.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist history --since 15m
  machinist history --queue mail --since 24h --json

Buckets have ten seconds for the last hour, a minute for the last day, and ten minutes for the last 30 days. Workers record
the history every ten seconds, unless events = \"off\".")]
pub(crate) struct HistoryArgs {
    /// Only this queue
    #[arg(long, value_name = "NAME", value_parser = queue)]
    pub(crate) queue: Option<QueueName>,
    /// Only tasks with this name
    #[arg(long, value_name = "NAME", value_parser = TaskName::parse)]
    pub(crate) task: Option<TaskName>,
    /// Since this long ago, for 30 days at most
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1h")]
    pub(crate) since: Duration,
}

/// Marks this moment in the history, such as a release. Workers of a new version of machinist mark their first start by
/// themselves.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  machinist mark \"shop 1.2 is live\"")]
pub(crate) struct MarkArgs {
    /// Text of the mark, 200 bytes at most
    #[arg(value_name = "TEXT")]
    pub(crate) text: String,
}
