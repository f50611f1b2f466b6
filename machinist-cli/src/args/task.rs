//! Syntax of the commands about single tasks and workflows: `send`, `status`, `revoke`, `retry`, `scheduled`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueHint};
use machinist::{
    Backoff, LogLevel, OnConflict, QueueName, TaskId, UniqueUntil,
    clock::Timestamp,
    settings::{ProfileName, parse_backoff, parse_duration, parse_on_conflict, parse_unique_until},
    worker::Tag,
};

use super::bulk::BulkArgs;
use super::value::{ExpiryArg, expiry, id, instant, queue, timeout};

/// Each ARG is JSON if it parses as JSON, else text: 2 is a number, cat.png and '"2"' are text. @FILE is the contents
/// of a file, @@ is an @ itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist send resize cat.png 640 --wait=20s    the arguments are text and a number
  machinist send mail anna@example.org --countdown 1h --retries 3
  machinist send import @data.json --arg dry_run=true
  machinist send --flow report.toml --wait

Exit codes: 0 sent, or succeeded with --wait; 1 it failed; 2 it has not ended yet; 64 usage; 69 not sent; 75 not sent, the \
queue is full.")]
pub(crate) struct SendArgs {
    /// Name of the task
    #[arg(required_unless_present = "flow")]
    pub(crate) name: Option<String>,
    /// Arguments, in order
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    pub(crate) args: Vec<String>,
    /// Send the workflow that this file describes: TOML, or JSON by its suffix; - reads JSON from standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) flow: Option<PathBuf>,
    /// Send it in the format of another program (machinery), to a queue which that program declares
    /// [default queue: machinery_tasks]
    #[arg(long, value_name = "NAME", value_parser = ProfileName::parse, conflicts_with = "flow")]
    pub(crate) profile: Option<ProfileName>,
    /// Send it only if no other task of its name has this key
    #[arg(long, value_name = "KEY", conflicts_with = "flow")]
    pub(crate) unique: Option<String>,
    /// Keep the key until the task starts, until it ends, or for a duration: start, end (default) or 10m
    #[arg(long, value_name = "WHEN", value_parser = parse_unique_until, conflicts_with = "flow")]
    pub(crate) unique_until: Option<UniqueUntil>,
    /// Action if another task has the key: print its id (existing, default; drop), fail (refuse), or replace it
    #[arg(long, value_name = "ACTION", value_parser = parse_on_conflict, conflicts_with = "flow")]
    pub(crate) on_conflict: Option<OnConflict>,
    /// Debounce: start it after this time, unless another task with its key replaces it before
    #[arg(long, value_name = "DURATION", value_parser = timeout,
          conflicts_with_all = ["flow", "unique_until", "on_conflict", "throttle", "countdown", "eta"])]
    pub(crate) debounce: Option<Duration>,
    /// Maximum time from the first task of a debounce to the start of the last one [default: 10 times the debounce]
    #[arg(long, value_name = "DURATION", value_parser = timeout, requires = "debounce")]
    pub(crate) debounce_max: Option<Duration>,
    /// Throttle: do not send it if another task with its key was sent within this time
    #[arg(long, value_name = "DURATION", value_parser = timeout, conflicts_with_all = ["flow", "unique_until", "on_conflict"])]
    pub(crate) throttle: Option<Duration>,
    #[command(flatten)]
    pub(crate) options: SendOptions,
    /// Wait until the task has ended, and print its result; --wait=20s waits at most 20 seconds
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, num_args = 0..=1, require_equals = true,
          default_missing_value = "8760h")]
    pub(crate) wait: Option<Duration>,
    /// Wait at most so long while the queue has as many tasks as it may have (`max_depth`)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) wait_for_room: Option<Duration>,
    /// Run it no earlier than after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "eta")]
    pub(crate) countdown: Option<Duration>,
    /// Run it no earlier than at this instant (RFC 3339, with an offset)
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    pub(crate) eta: Option<Timestamp>,
    /// Id of the task; two tasks with one id are one task
    #[arg(long, value_name = "ID", value_parser = id, conflicts_with = "count")]
    pub(crate) id: Option<TaskId>,
    /// Number of times to send it
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
}

/// Options of a task that is sent once, or at each tick of a schedule.
#[derive(Debug, Args)]
pub(crate) struct SendOptions {
    /// Argument with a name; can be repeated
    #[arg(long = "arg", value_name = "NAME=ARG")]
    pub(crate) named: Vec<String>,
    /// Queue [default: the task's queue in machinist.toml, else default]
    #[arg(long, short, value_name = "NAME", value_parser = queue)]
    pub(crate) queue: Option<QueueName>,
    /// Let only workers with this tag run it; can be repeated [default: `requires` of the task in machinist.toml]
    #[arg(long, value_name = "TAG", value_parser = Tag::parse)]
    pub(crate) requires: Vec<Tag>,
    /// Do not start it later than this: an instant (RFC 3339), or a time from now
    #[arg(long, value_name = "INSTANT|DURATION", value_parser = expiry)]
    pub(crate) expires: Option<ExpiryArg>,
    /// Maximum number of retries when it fails
    #[arg(long, value_name = "N")]
    pub(crate) retries: Option<u32>,
    /// Time before each retry: fixed:200ms, exponential, fibonacci, exponential:1s:10m
    #[arg(long, value_name = "BACKOFF", value_parser = parse_backoff)]
    pub(crate) backoff: Option<Backoff>,
    /// End a run that takes longer than this (hard timeout)
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
    /// Ask a run that takes longer than this to end (soft timeout)
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) soft_timeout: Option<Duration>,
    /// Retry it when it fails, but start no retry later than this after it was due
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) retry_for: Option<Duration>,
    /// Also retry a run that a timeout ended
    #[arg(long)]
    pub(crate) retry_timeouts: bool,
    /// Label: a short text that stays readable when arguments are encrypted; can be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Send it only if a live worker can run it; otherwise it ends in FAILURE/no_worker, code -201. A worker that is asleep
    /// counts: then the task waits
    #[arg(long)]
    pub(crate) require_worker: bool,
    /// Key of its limits, in place of the one that workers make of its arguments
    #[arg(long, value_name = "KEY")]
    pub(crate) limit_key: Option<String>,
    /// Number of starts for which it counts in its rate limits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) limit_cost: Option<u32>,
    /// Key of its share of a fair queue, such as a tenant, in place of the one that the queue makes of its arguments
    #[arg(long, value_name = "KEY")]
    pub(crate) fair_key: Option<String>,
    /// Priority, 0 to 9: higher ones are delivered first if broker and queue support it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(crate) priority: Option<u8>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Id of the task, or of a workflow
    #[arg(value_parser = id)]
    pub(crate) id: TaskId,
    /// Follow the task or workflow until it has ended, and print every change
    #[arg(long)]
    pub(crate) watch: bool,
    /// Look in the store of another program too (machinery), whose queue machinist.toml does not name
    #[arg(long, value_name = "NAME", value_parser = ProfileName::parse)]
    pub(crate) profile: Option<ProfileName>,
    /// Queue of the task, with --profile [default: that of the other program]
    #[arg(long, value_name = "QUEUE", requires = "profile", value_parser = QueueName::parse)]
    pub(crate) queue: Option<QueueName>,
    /// List the members of this group of a workflow
    #[arg(long, value_name = "STEP", conflicts_with = "watch")]
    pub(crate) members: Option<String>,
    /// List the members after the one with this index
    #[arg(long, value_name = "INDEX", requires = "members")]
    pub(crate) after: Option<u32>,
    /// Maximum number of members to list
    #[arg(long, value_name = "N", default_value_t = 100, requires = "members",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist why 01a1fe04-80aa-75a5-afdf-e10168fdf7b8
  machinist why --queue mail")]
pub(crate) struct WhyArgs {
    /// Id of the task
    #[arg(value_parser = id, required_unless_present = "queue")]
    pub(crate) id: Option<TaskId>,
    /// Say what is in the way of the tasks of this queue
    #[arg(long, value_name = "NAME", value_parser = queue, conflicts_with = "id")]
    pub(crate) queue: Option<QueueName>,
}

/// Lines of its runs: standard error of a command task, lines of `TaskContext::log`, events of `tracing`. The
/// log has at most 64 KiB, of which the oldest lines are cut.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist log 01a1fe04-80aa-75a5-afdf-e10168fdf7b8 -f
  machinist log 01a1fe04-80aa-75a5-afdf-e10168fdf7b8 --attempt 2 --level warn

Exit codes: 0 shown, also if there is no line, 3 unknown id.")]
pub(crate) struct LogArgs {
    /// Id of the task
    #[arg(value_parser = id)]
    pub(crate) id: TaskId,
    /// Print further lines as they come, until the task has ended
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only lines of this level or a more severe one: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub(crate) level: Option<LogLevel>,
    /// Only lines of this attempt
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: Option<u32>,
}

/// A task that does not run ends at once, even if it waits for its ETA or a retry. A running task is asked to end, and
/// is cut off five seconds later. Of a workflow, nothing more starts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist revoke 01a1fe04-80aa-75a5-afdf-e10168fdf7b8
  machinist revoke --queue mail --older-than 1h --dry-run

Exit codes: 0 done, 1 one of many was refused, 3 unknown id, 64 usage.")]
pub(crate) struct RevokeArgs {
    /// Id of the task
    #[arg(value_parser = id, required_unless_present = "selection", conflicts_with = "selection")]
    pub(crate) id: Option<TaskId>,
    #[command(flatten)]
    pub(crate) bulk: BulkArgs,
    /// Cut a run off at once, as at its hard timeout, without asking it to end
    #[arg(long)]
    pub(crate) terminate: bool,
}

/// The records of both tasks name each other. A failed task is sent again only once: a second call prints the id of the
/// first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist retry 01a1fe04-80aa-75a5-afdf-e10168fdf7b8 --arg width=640
  machinist retry --error \"connection refused\" --rate 10 --yes

Exit codes: 0 done, 1 one of many was refused, 3 unknown id, 64 usage.")]
pub(crate) struct RetryArgs {
    /// Id of the failed task; one that waits for its next run runs now
    #[arg(value_parser = id, required_unless_present = "selection", conflicts_with = "selection")]
    pub(crate) id: Option<TaskId>,
    /// Change an argument, by its name or its position, counted from 0: the call is sent as a new task that your key
    /// signs. VALUE is read like an ARG of `send`; can be repeated
    #[arg(long = "arg", value_name = "NAME=VALUE", conflicts_with = "selection")]
    pub(crate) changed: Vec<String>,
    #[command(flatten)]
    pub(crate) bulk: BulkArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduledArgs {
    /// Maximum number to list, the earliest first
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// Run this task as soon as a worker is free, instead of listing
    #[arg(long, value_name = "ID", value_parser = id)]
    pub(crate) now: Option<TaskId>,
}
