//! Syntax of `machinist periodic`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueHint};
use machinist::{
    clock::Timestamp,
    periodic::{Misfire, Overlap},
    settings::parse_duration,
};

use super::{PageArgs, SendOptions, value::instant};

/// Periodic tasks are sent by the workers at the instants of a schedule. Live ones are in the backend; others are in
/// machinist.toml, `[periodic.NAME]`, or in the code of an application, and are changed there.
#[derive(Debug, Subcommand)]
pub(crate) enum PeriodicCommand {
    /// Add a periodic task, or replace the live one of this name
    Add(Box<PeriodicAddArgs>),
    /// Remove a live periodic task
    Remove(PeriodicNameArgs),
    /// List the periodic tasks
    List(PageArgs),
    /// Show a periodic task, its policies and its newest ticks
    Show(PeriodicNameArgs),
    /// Pause a periodic task until it is resumed
    Pause(PeriodicNameArgs),
    /// Resume a periodic task; the ticks of its pause are left out
    Resume(PeriodicNameArgs),
    /// Send an extra tick now
    Trigger(PeriodicNameArgs),
    /// List the next ticks
    Next(PeriodicNextArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PeriodicNameArgs {
    /// Name of the periodic task
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct PeriodicNextArgs {
    /// Name of the periodic task
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Number of ticks
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) count: u16,
}

/// Each tick is a task with the id tick.NAME.INSTANT. ARG is as for `send`, and so are the other options.
#[derive(Debug, Args)]
pub(crate) struct PeriodicAddArgs {
    /// Name of the periodic task: letters, digits, `.`, `_` and `-`
    #[arg(value_name = "NAME")]
    pub(crate) periodic: String,
    /// Name of the task
    #[arg(value_name = "TASK", required_unless_present = "flow")]
    pub(crate) task: Option<String>,
    /// Arguments, in order
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    pub(crate) args: Vec<String>,
    /// Send the workflow that this file describes: TOML, or JSON by its suffix; - reads JSON from standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) flow: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) when: ScheduleArgs,
    /// Time zone of the cron expression, like Europe/Berlin [default: UTC]
    #[arg(long, value_name = "TZ", conflicts_with = "every")]
    pub(crate) time_zone: Option<String>,
    /// Ticks that no worker sent within a minute: skip, once (send the newest) or all [default: once]
    #[arg(long, value_name = "POLICY", value_parser = Misfire::parse)]
    pub(crate) misfire: Option<Misfire>,
    /// A tick when the task of the last one has not ended: allow, skip, queue (send it afterwards) or cancel (revoke the
    /// last one) [default: allow]
    #[arg(long, value_name = "POLICY", value_parser = Overlap::parse)]
    pub(crate) overlap: Option<Overlap>,
    /// Send each tick up to this much later, by a hash of name and instant
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) jitter: Option<Duration>,
    /// Tick at this instant at the earliest (RFC 3339, with an offset); --every counts from it
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    pub(crate) from: Option<Timestamp>,
    /// Tick at this instant at the latest (RFC 3339, with an offset)
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    pub(crate) until: Option<Timestamp>,
    /// Make up for missed ticks up to this age, at most 7d [default: 1d]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) catch_up: Option<Duration>,
    #[command(flatten)]
    pub(crate) options: SendOptions,
    #[command(flatten)]
    pub(crate) refused: OneTimeOptions,
}

/// Schedule: one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ScheduleArgs {
    /// Cron expression: minute, hour, day, month, weekday; with the second before them; or @daily and the like
    #[arg(long, value_name = "EXPR")]
    pub(crate) cron: Option<String>,
    /// Interval between ticks, at least 1s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) every: Option<Duration>,
}

/// Options of `send` that make no sense here. They are known so that they are refused with a reason.
#[derive(Debug, Args)]
pub(crate) struct OneTimeOptions {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    wait: Option<String>,
    #[arg(long, hide = true)]
    count: Option<String>,
    #[arg(long, hide = true)]
    id: Option<String>,
    #[arg(long, hide = true)]
    eta: Option<String>,
    #[arg(long, hide = true)]
    countdown: Option<String>,
}

impl OneTimeOptions {
    /// Returns the first of these options that was given, and the reason against it.
    pub(crate) fn given(&self) -> Option<(&'static str, &'static str)> {
        let Self { wait, count, id, eta, countdown } = self;
        let when = "the schedule says when it runs; --from sets the first instant";
        [
            (
                wait,
                "--wait",
                "a tick comes later; `machinist periodic show NAME` shows how the last ones ended",
            ),
            (count, "--count", "each tick is sent once; --until sets the last instant"),
            (id, "--id", "each tick has an id of its name and its instant"),
            (eta, "--eta", when),
            (countdown, "--countdown", when),
        ]
        .into_iter()
        .find_map(|(given, option, why)| given.as_ref().map(|_| (option, why)))
    }
}
