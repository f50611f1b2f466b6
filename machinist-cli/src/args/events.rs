//! Syntax of `machinist events`.

use std::time::Duration;

use clap::Args;
use machinist::{QueueName, TaskName, settings::parse_duration};

use super::value::queue;

/// Events are notifications: some may be missing, and a line `gap` tells of it. The record of a task is the truth.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist events
  machinist events --task resize --state failure --json

The setting `events` decides what processes publish: failures unless it is set, all or off.")]
pub(crate) struct EventsArgs {
    /// Only events about tasks of this name
    #[arg(long, value_name = "NAME", value_parser = TaskName::parse)]
    pub(crate) task: Option<TaskName>,
    /// Only events about this queue
    #[arg(long, value_name = "NAME", value_parser = queue)]
    pub(crate) queue: Option<QueueName>,
    /// Only events after which the task or the worker has this state
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    /// Only events of this worker
    #[arg(long, value_name = "NAME")]
    pub(crate) worker: Option<String>,
    /// Also events of this time before now, at most a minute
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "0s")]
    pub(crate) since: Duration,
    /// End after this number of events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
}
