//! Syntax of the command line: commands, arguments and flags. Nothing is done here.

mod limits;
mod periodic;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use machinist::{
    Backoff, OnConflict, QueueName, TaskId, TaskName, UniqueUntil,
    clock::Timestamp,
    settings::{
        Overrides, SettingInfo, parse_backoff, parse_duration, parse_on_conflict, parse_unique_until,
        setting_of_flag,
    },
    sign::{Algorithm, KeyId},
    worker::Tag,
};

pub(crate) use limits::{LimitKeyArgs, LimitsCommand};
pub(crate) use periodic::{PeriodicAddArgs, PeriodicCommand};

/// Distributed task queue over RabbitMQ and Redis, or one SQLite file.
#[derive(Debug, Parser)]
#[command(
    name = "machinist",
    version,
    max_term_width = 100,
    after_help = "Settings: flags go before MACHINIST_* variables, variables before machinist.toml, the file before \
                  the default, which is the file machinist.db in the current folder.\n\
                  Exit codes: 0 success, 1 the task failed, 2 not finished, 3 unknown id, 64 usage, 69 broker or \
                  backend cannot be reached, 70 bug in this program, 75 running tasks were handed back, \
                  77 not permitted, 78 configuration."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

/// Flags that every command accepts.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct GlobalArgs {
    #[arg(long, help = flag_help("--broker"), global = true, value_name = "URL", value_hint = ValueHint::Url)]
    broker: Option<String>,
    #[arg(long, help = flag_help("--broker-file"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    broker_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--backend"), global = true, value_name = "URL", value_hint = ValueHint::Url)]
    backend: Option<String>,
    #[arg(long, help = flag_help("--backend-file"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    backend_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--config"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    #[arg(long, help = flag_help("--namespace"), global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[arg(long, help = flag_help("--key-file"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    key_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--allow-unsigned"), global = true)]
    allow_unsigned: bool,
    #[arg(long, help = flag_help("--insecure-plaintext"), global = true)]
    insecure_plaintext: bool,
    #[arg(long, help = flag_help("--tls-ca-file"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_ca_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--tls-cert-file"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_cert_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--tls-key-file"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_key_file: Option<PathBuf>,
    /// Format of the log: text, or one JSON object per line; MACHINIST_LOG or RUST_LOG sets the log level
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    pub(crate) log: Option<LogFormat>,
}

/// Returns the help of a flag that is a setting.
fn flag_help(flag: &str) -> String {
    setting_of_flag(flag).map(SettingInfo::help).unwrap_or_default()
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text
    Human,
    /// One JSON object per line
    Json,
}

impl GlobalArgs {
    /// Returns the settings of the command line, with those of a worker's flags.
    pub(crate) fn overrides(&self, worker: Option<&WorkerArgs>) -> Overrides {
        Overrides {
            config: self.config.clone(),
            broker: self.broker.clone(),
            broker_file: self.broker_file.clone(),
            backend: self.backend.clone(),
            backend_file: self.backend_file.clone(),
            namespace: self.namespace.clone(),
            key_file: self.key_file.clone(),
            allow_unsigned: self.allow_unsigned,
            insecure_plaintext: self.insecure_plaintext,
            tls_ca_file: self.tls_ca_file.clone(),
            tls_cert_file: self.tls_cert_file.clone(),
            tls_key_file: self.tls_key_file.clone(),
            name: worker.and_then(|w| w.name.clone()),
            tags: worker.map(|w| w.tags.clone()).unwrap_or_default(),
            look_ahead: worker.and_then(|w| w.look_ahead).map(usize::from),
            queues: worker.map(|w| w.queues.clone()).unwrap_or_default(),
            concurrency: worker.and_then(|w| w.concurrency).map(usize::from),
            grace: worker.and_then(|w| w.grace),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Write a machinist.toml with an example, and a key
    Init(InitArgs),
    /// Run tasks from queues until a signal stops it
    Worker(WorkerArgs),
    /// Send a task or a workflow and print its id
    Send(Box<SendArgs>),
    /// Show the state and the result of a task or a workflow
    Status(StatusArgs),
    /// Cancel a task or a workflow
    Revoke(RevokeArgs),
    /// Send a failed task or workflow again, under a new id
    Retry(RetryArgs),
    /// List tasks that wait for their ETA or a retry, or run one now
    Scheduled(ScheduledArgs),
    /// Add, list and control periodic tasks
    #[command(subcommand)]
    Periodic(PeriodicCommand),
    /// List the queues and their numbers of messages
    Queues(QueuesArgs),
    /// Say why a task does not run, and what to do
    Why {
        /// Id of the task
        #[arg(value_parser = id)]
        id: TaskId,
    },
    /// List the live workers, or pause, resume, drain or ping them
    Workers(WorkersArgs),
    /// List the task names that live workers know, or disable one for all workers
    Registered(RegisteredArgs),
    /// List the limits of tasks and queues, or set one for all workers
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Copy the embedded file, also while processes use it
    #[cfg(feature = "sqlite")]
    Backup(BackupArgs),
    /// List, replay and purge dead letters
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Create a key that signs tasks and results, or one that encrypts them
    Keygen(KeygenArgs),
    /// List or check the configured keys, or one key file; secrets are never shown
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Check broker, backend and keys, and report problems
    Doctor,
    /// Show the settings in force, and the place that sets each
    Config,
    /// Print completions for a shell
    Completions {
        /// Name of the shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct QueuesArgs {
    /// First create the queues of `worker.queues` with their exchanges and delay queues, for users without the
    /// permission (with topology = "verify": check them)
    #[arg(long)]
    pub(crate) declare: bool,
}

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
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// Show one worker, and what it runs
    Show {
        /// Name of the worker
        name: String,
    },
    /// Put workers to sleep: they start nothing until they are resumed, also after a restart
    Pause(WorkerOrderArgs),
    /// Wake workers up
    Resume(WorkerTargets),
    /// Let workers end: they take no more tasks, and stop when the running ones have ended
    Drain(WorkerOrderArgs),
    /// Measure how long workers take to answer
    Ping(WorkerTargets),
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

#[derive(Debug, Args)]
pub(crate) struct RegisteredArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RegisteredCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegisteredCommand {
    /// Disable a task name for all workers: its tasks wait, and nothing is lost
    Disable {
        /// Name of the task
        #[arg(value_parser = TaskName::parse)]
        name: TaskName,
    },
    /// Enable a task name again, and let its tasks run
    Enable {
        /// Name of the task
        #[arg(value_parser = TaskName::parse)]
        name: TaskName,
    },
}

#[cfg(feature = "sqlite")]
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// File to write; an existing file is never overwritten
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Overwrite an existing file
    #[arg(long)]
    pub(crate) force: bool,
}

/// The file can be read by its owner only. An existing file is never overwritten.
#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// Algorithm: hmac-sha256, where all have the same secret; ed25519, where others can verify but not sign; or
    /// xchacha20-poly1305, which encrypts arguments and results
    #[arg(long, value_name = "ALG", default_value_t)]
    pub(crate) alg: Algorithm,
    /// Id of the key, which is part of every message [default: today's date and random letters]
    #[arg(long, value_name = "ID", value_parser = KeyId::parse)]
    pub(crate) id: Option<KeyId>,
    /// File to write
    #[arg(long, value_name = "FILE", default_value = KEY_FILE, value_hint = ValueHint::FilePath)]
    pub(crate) out: PathBuf,
}

/// Default name of the key file that `init` and `keygen` write.
pub(crate) const KEY_FILE: &str = "machinist.key";

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the keys: their use, and the place that configures each
    List {
        /// Key file [default: the configured keys]
        file: Option<PathBuf>,
    },
    /// Check that each key can be read, by its owner only, and is valid, and that one signs
    Check {
        /// Key file [default: the configured keys]
        file: Option<PathBuf>,
    },
}

/// The first SIGINT or SIGTERM lets running tasks continue for the time of --grace, the second hands them back at
/// once, the third cuts them off, the fourth exits. SIGHUP reloads the keys.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[arg(help = flag_help("--queue"), long = "queue", short, value_name = "NAME", value_parser = queue)]
    queues: Vec<QueueName>,
    #[arg(help = flag_help("--concurrency"), long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    concurrency: Option<u16>,
    #[arg(help = flag_help("--grace"), long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
    #[arg(help = flag_help("--look-ahead"), long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=10_000))]
    look_ahead: Option<u16>,
    #[arg(help = flag_help("--name"), long, value_name = "NAME")]
    name: Option<String>,
    #[arg(help = flag_help("--tag"), long = "tag", value_name = "TAG", value_parser = Tag::parse)]
    tags: Vec<Tag>,
    /// Serve health checks at this address, over HTTP: /healthz succeeds while the broker confirms the subscription,
    /// /readyz while the worker takes tasks
    #[arg(long, value_name = "IP:PORT", value_parser = health_address)]
    pub(crate) health: Option<SocketAddr>,
    /// Also run the demo tasks: add, echo, sleep, fail
    #[arg(long)]
    pub(crate) demo: bool,
}

/// Each ARG is JSON if it parses as JSON, else text: 2 is a number, cat.png and '"2"' are text. @FILE is the contents
/// of a file, @@ is an @ itself.
#[derive(Debug, Args)]
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
    /// Send it only if no other task of its name has this key
    #[arg(long, value_name = "KEY", conflicts_with = "flow")]
    pub(crate) unique: Option<String>,
    /// Keep the key until the task starts, until it ends, or for a duration: start, end (default) or 10m
    #[arg(long, value_name = "WHEN", value_parser = parse_unique_until, conflicts_with = "flow")]
    pub(crate) unique_until: Option<UniqueUntil>,
    /// If another task has the key: print its id (existing, default; drop), fail (refuse), or replace it
    #[arg(long, value_name = "ACTION", value_parser = parse_on_conflict, conflicts_with = "flow")]
    pub(crate) on_conflict: Option<OnConflict>,
    /// Key of its limits, in place of the one that workers make of its arguments
    #[arg(long, value_name = "KEY", conflicts_with = "flow")]
    pub(crate) limit_key: Option<String>,
    #[command(flatten)]
    pub(crate) options: SendOptions,
    /// Wait until the task has ended, and print its result; --wait=20s waits at most 20 seconds
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, num_args = 0..=1, require_equals = true,
          default_missing_value = "8760h")]
    pub(crate) wait: Option<Duration>,
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
    /// Send it only if a live worker can run it; otherwise it ends in FAILURE/no_worker, code -201
    #[arg(long)]
    pub(crate) require_worker: bool,
    /// Priority, 0 to 9: higher ones are delivered first if broker and queue support it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(crate) priority: Option<u8>,
}

/// Time after which a task is not started any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpiryArg {
    At(Timestamp),
    In(Duration),
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Id of the task, or of a workflow
    #[arg(value_parser = id)]
    pub(crate) id: TaskId,
    /// Follow the task or workflow until it has ended, and print every change
    #[arg(long)]
    pub(crate) watch: bool,
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

/// A task that does not run ends at once, even if it waits for its ETA or a retry. A running task is asked to end, and
/// is cut off five seconds later. Of a workflow, nothing more starts.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// Id of the task
    #[arg(value_parser = id)]
    pub(crate) id: TaskId,
    /// Cut a run off at once, as at its hard timeout, without asking it to end
    #[arg(long)]
    pub(crate) terminate: bool,
}

/// The records of both tasks name each other. A failed task is sent again only once: a second call prints the id of the
/// first.
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// Id of the failed task
    #[arg(value_parser = id)]
    pub(crate) id: TaskId,
}

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
    #[arg(long, value_name = "WORD")]
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

#[derive(Debug, Args)]
pub(crate) struct ScheduledArgs {
    /// Maximum number to list, the earliest first
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// Run this task as soon as a worker is free, instead of listing
    #[arg(long, value_name = "ID", value_parser = id)]
    pub(crate) now: Option<TaskId>,
}

fn queue(text: &str) -> Result<QueueName, String> {
    QueueName::parse(text).map_err(|e| e.to_string())
}

/// Reads the address of the health checks. A bare port is refused: it would not say who may ask.
fn health_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| match text.trim_start_matches(':').parse::<u16>() {
        Ok(port) => format!(
            "{text:?} has no address; write 127.0.0.1:{port}, or [::]:{port} to answer other hosts too"
        ),
        Err(_) => format!("{text:?} is not an address with its port; write one like 127.0.0.1:8080"),
    })
}

fn id(text: &str) -> Result<TaskId, String> {
    TaskId::parse(text).map_err(|e| e.to_string())
}

fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("0s would end every run at once; leave it out for no timeout".to_owned()),
        timeout => Ok(timeout),
    }
}

fn instant(text: &str) -> Result<Timestamp, String> {
    let parsed: Result<jiff::Timestamp, _> = text.trim().parse();
    let parsed = parsed.map_err(|_| {
        format!("{text:?} is not an instant with its offset; write one like 2026-11-20T23:37:14Z or 2026-11-20T23:37:14+01:00")
    })?;
    Ok(Timestamp::from_micros(parsed.as_microsecond()))
}

fn expiry(text: &str) -> Result<ExpiryArg, String> {
    match (instant(text), parse_duration(text)) {
        (Ok(at), _) => Ok(ExpiryArg::At(at)),
        (_, Ok(in_)) => Ok(ExpiryArg::In(in_)),
        _ => Err(format!("{text:?} is neither an instant like 2026-11-20T23:37:14Z nor a duration like 20s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use machinist::settings::setting_infos;

    fn send(line: &str) -> Result<SendArgs, clap::Error> {
        match Cli::try_parse_from(["machinist", "send"].into_iter().chain(line.split(' ')))?.command {
            CliCommand::Send(send) => Ok(*send),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_hold() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_that_is_a_setting_is_accepted_and_has_its_help() {
        let mut command = Cli::command();
        let worker = command.find_subcommand("worker").unwrap();
        let flags: Vec<_> = command.get_arguments().chain(worker.get_arguments()).collect();
        for info in setting_infos().filter(|info| info.flag.is_some()) {
            let name = info.flag.unwrap().strip_prefix("--");
            let flag = flags.iter().find(|flag| flag.get_long() == name);
            let help = flag.unwrap_or_else(|| panic!("{info:?}")).get_help().unwrap().to_string();
            assert_eq!(help, info.help());
        }
        assert!(flags.iter().all(|flag| flag.get_help().is_some_and(|help| !help.to_string().is_empty())));
        command.build();
    }

    #[test]
    fn a_negative_number_is_an_argument() {
        assert_eq!(send("add 2 -1").unwrap().args, ["2", "-1"]);
        assert_eq!(send("add -1.5 -2").unwrap().args, ["-1.5", "-2"]);
        assert_eq!(send("add --queue q -1").unwrap().args, ["-1"]);
        assert_eq!(send("add -- -x").unwrap().args, ["-x"]);
        assert!(send("add -x").is_err());
    }

    #[test]
    fn a_name_after_wait_is_no_duration() {
        let given = send("--wait add 2 3").unwrap();
        assert_eq!((given.name.as_deref(), given.args.len()), (Some("add"), 2));
        assert!(given.wait.is_some());
        assert_eq!(send("add 2 3 --wait=20s").unwrap().wait, Some(Duration::from_secs(20)));
        assert_eq!(send("add 2 3").unwrap().wait, None);
        assert!(send("add --wait=soon").unwrap_err().to_string().contains("is not a duration"));
    }

    #[test]
    fn settings_are_accepted_after_every_command() {
        for command in [
            "init",
            "worker",
            "send add",
            "status 1",
            "revoke 1",
            "retry 1",
            "scheduled",
            "periodic list",
            "periodic pause x",
            "periodic add x add --every 1s",
            "queues",
            "workers",
            "workers pause --all",
            "registered",
            "why 1",
            "dead list",
            "dead show 1",
            "dead replay --all",
            "dead purge --all",
            "keygen",
            "keys list",
            "doctor",
            "config",
            "completions bash",
        ] {
            let line = format!(
                "machinist {command} --broker b --backend c --config f --namespace n --json --allow-unsigned \
                 --insecure-plaintext --key-file k"
            );
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.global.json);
            let flags = cli.global.overrides(None);
            assert_eq!(flags.broker.as_deref(), Some("b"));
            assert!(flags.allow_unsigned && flags.insecure_plaintext && flags.key_file.is_some());
        }
    }

    #[test]
    fn options_of_a_worker_are_settings() {
        let worker = |line: &str| {
            let cli = Cli::try_parse_from(["machinist", "worker"].into_iter().chain(line.split(' ')))?;
            let CliCommand::Worker(worker) = &cli.command else { panic!("{cli:?}") };
            Ok::<_, clap::Error>(cli.global.overrides(Some(worker)))
        };
        let flags = worker("--name w --tag gpu --tag zone:eu --look-ahead 0").unwrap();
        assert_eq!((flags.name.as_deref(), flags.look_ahead), (Some("w"), Some(0)));
        assert_eq!(flags.tags, [Tag::parse("gpu").unwrap(), Tag::parse("zone:eu").unwrap()]);
        let error = |line: &str| worker(line).unwrap_err().to_string();
        assert!(error("--tag GPU").contains("is not a word like gpu or zone:eu"));
        for port in ["8080", ":8080"] {
            let error = error(&format!("--health {port}"));
            assert!(error.contains("write 127.0.0.1:8080, or [::]:8080 to answer other hosts"), "{error}");
        }
        assert!(error("--health here").contains("is not an address with its port"));
    }

    #[test]
    fn a_periodic_task_has_one_schedule_and_the_options_of_send() {
        let add = |line: &str| {
            let line = ["machinist", "periodic", "add"].into_iter().chain(line.split(' '));
            match Cli::try_parse_from(line)?.command {
                CliCommand::Periodic(PeriodicCommand::Add(add)) => Ok::<_, clap::Error>(*add),
                other => panic!("{other:?}"),
            }
        };
        let given = add("beat --every 1s add 2 -1 --retries 3 --queue q").unwrap();
        assert_eq!((given.periodic.as_str(), given.task.as_str()), ("beat", "add"));
        assert_eq!(
            (&given.args[..], given.options.retries),
            (&["2".to_owned(), "-1".to_owned()][..], Some(3))
        );
        assert!(given.refused.given().is_none());
        for refused in ["--wait", "--wait=1s", "--count 2", "--id x", "--eta x", "--countdown 1s"] {
            let given = add(&format!("beat --every 1s add {refused}")).unwrap();
            assert!(refused.starts_with(given.refused.given().unwrap().0), "{refused}");
        }
        for wrong in ["beat add", "beat --every 1s --cron @daily add", "beat --every 1s --time-zone UTC add"]
        {
            assert!(add(wrong).is_err(), "{wrong}");
        }
        let error = add("beat --every 1s --misfire twice add").unwrap_err().to_string();
        assert!(error.contains("write one of skip, once, all"), "{error}");
    }

    #[test]
    fn instants_need_an_offset() {
        assert_eq!(instant("2026-11-20T23:37:14Z"), instant("2026-11-21T00:37:14+01:00"));
        assert!(instant("2026-11-20T23:37:14").is_err());
        assert_eq!(expiry("10s"), Ok(ExpiryArg::In(Duration::from_secs(10))));
        assert!(matches!(expiry("2026-11-20T23:37:14Z"), Ok(ExpiryArg::At(_))));
        assert!(expiry("later").is_err());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(send("add --countdown 1s --eta 2026-11-20T23:37:14Z").is_err());
        assert!(send("add --id x --count 2").is_err());
        assert!(send("add --priority 10").is_err());
        assert!(send("add --count 0").is_err());
        assert!(send("add --queue x.dead").is_err());
    }
}
