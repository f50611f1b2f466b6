//! Syntax of the commands for workers, and for what all workers do.

use clap::{Args, Subcommand, ValueEnum};
use machinist::{QueueName, QueuePattern, TaskName, worker::Tag};

use super::{
    page::PageArgs,
    value::{queue, queues},
};

/// A worker that was killed is listed until its session has expired.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct WorkersArgs {
    #[command(subcommand)]
    pub(crate) command: Option<WorkersCommand>,
    /// Only those that take tasks from this queue
    #[arg(long, short, value_name = "NAME", value_parser = queue)]
    pub(crate) queue: Option<QueueName>,
    /// Only those that run this task
    #[arg(long, value_name = "NAME", value_parser = TaskName::parse)]
    pub(crate) task: Option<TaskName>,
    /// Only those with this tag
    #[arg(long, value_name = "TAG", value_parser = Tag::parse)]
    pub(crate) tag: Option<Tag>,
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_enum)]
    pub(crate) state: Option<StateArg>,
    /// Print the list again whenever it has changed, until a signal ends it
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

/// State of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StateArg {
    /// Before its subscription
    Starting,
    /// It takes tasks
    Awake,
    /// It has unsubscribed
    Asleep,
    /// It stops when its running tasks have ended
    Draining,
    /// It has ended: such workers are not listed
    Offline,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// Show one worker, and what it runs
    Show {
        /// Name of the worker
        name: String,
        /// Ask the worker for all that it runs, instead of reading what it has shown last
        #[arg(long)]
        all: bool,
    },
    /// Put workers to sleep: they start nothing until they are resumed, also after a restart
    Pause(WorkerOrderArgs),
    /// Wake workers up
    Resume(WorkerTargets),
    /// Let workers end: they take no more tasks, and stop when the running ones have ended
    Drain(WorkerOrderArgs),
    /// Let workers end and be started again, where `restart_exit_code` is configured
    Restart(WorkerOrderArgs),
    /// Let workers read machinist.toml again: keys, tasks, periodic tasks, limits, their queues, tags and hours of sleep
    Reload(WorkerTargets),
    /// Change the options of running workers, until they are started again
    Set(WorkerSetArgs),
    /// Measure how long workers take to answer
    Ping(WorkerTargets),
    /// Show an order of the last day and its answers
    Order {
        /// Id of the order
        id: String,
    },
}

/// Exits with 1 if a worker refused or did not answer within 20 s, with 3 if there is no such worker.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct WorkerSetArgs {
    #[command(flatten)]
    pub(crate) targets: WorkerTargets,
    /// Number of tasks to run at once; running ones go on
    #[arg(long, value_name = "N", group = "change", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: Option<u32>,
    /// Also take tasks from this queue, or from those of a pattern like tenant-*; can be repeated
    #[arg(long, value_name = "QUEUE", group = "change", value_parser = queues)]
    pub(crate) add_queue: Vec<QueuePattern>,
    /// Take no more tasks from this queue, or from those of this pattern; can be repeated
    #[arg(long, value_name = "QUEUE", group = "change", value_parser = queues)]
    pub(crate) drop_queue: Vec<QueuePattern>,
    /// Log level, like debug, or machinist=debug,warn
    #[arg(long, value_name = "LEVEL", group = "change")]
    pub(crate) log_level: Option<String>,
}

/// Exits with 1 if a worker refused or did not answer within 20 s, with 3 if there is no such worker.
#[derive(Debug, Args)]
pub(crate) struct WorkerOrderArgs {
    #[command(flatten)]
    pub(crate) targets: WorkerTargets,
    /// Hand the running tasks back at once, instead of letting them end
    #[arg(long)]
    pub(crate) now: bool,
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WorkerTargets {
    /// Names of workers
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "with_tag"], conflicts_with_all = ["all", "with_tag"])]
    pub(crate) names: Vec<String>,
    /// All live workers
    #[arg(long)]
    pub(crate) all: bool,
    /// The workers with this tag
    #[arg(long = "tag", id = "with_tag", value_name = "TAG", value_parser = Tag::parse, conflicts_with = "all")]
    pub(crate) with_tag: Option<Tag>,
}
