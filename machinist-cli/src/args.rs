//! Syntax of the command line: commands, arguments and flags. Nothing is done here.

mod bulk;
mod dead;
mod events;
mod fleet;
mod history;
mod limits;
mod page;
mod periodic;
mod queues;
mod task;
mod tasks;
#[cfg(test)]
mod tests;
mod top;
mod value;
#[cfg(feature = "web")]
mod web;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use machinist::{
    QueuePattern, TaskName,
    settings::{Overrides, SettingInfo, parse_duration, setting_of_flag},
    sign::{Algorithm, KeyId},
    worker::Tag,
};

pub(crate) use bulk::{BulkArgs, BulkState};
pub(crate) use dead::{DeadCommand, DeadLetterActionArgs, DeadLetterSelection};
pub(crate) use events::EventsArgs;
pub(crate) use fleet::{StateArg, WorkerSetArgs, WorkerTargets, WorkersArgs, WorkersCommand};
pub(crate) use history::{HistoryArgs, MarkArgs};
pub(crate) use limits::{LimitKeyArgs, LimitsCommand};
pub(crate) use page::PageArgs;
pub(crate) use periodic::{PeriodicAddArgs, PeriodicCommand};
pub(crate) use queues::{QueuesArgs, QueuesCommand};
pub(crate) use task::{
    LogArgs, RetryArgs, RevokeArgs, ScheduledArgs, SendArgs, SendOptions, StatusArgs, WhyArgs,
};
pub(crate) use tasks::{FailuresArgs, FailuresCommand, GroupArgs, TasksArgs};
pub(crate) use top::TopArgs;
pub(crate) use value::{ExpiryArg, task_state};
#[cfg(feature = "web")]
pub(crate) use web::{WebArgs, WebCommand};

use value::{concurrency, health_address, look_ahead, queues};

/// Distributed task queue over RabbitMQ and Redis, or one SQLite file.
#[derive(Debug, Parser)]
#[command(
    name = "machinist",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
                  machinist init && machinist worker              run the tasks of machinist.toml\n  \
                  machinist send resize cat.png 640 --wait        send a task and print its result\n  \
                  machinist status ID                             show its state, arguments and error\n\n\
                  Settings: `machinist COMMAND -h` lists the usual ones, --help all. Flags go before \
                  MACHINIST_* variables, variables before machinist.toml, the file before the default, which is the file \
                  machinist.db in the current folder.\n\
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

impl Cli {
    /// Returns the settings of the command line, with those of the flags of its command.
    pub(crate) fn overrides(&self) -> Overrides {
        match &self.command {
            CliCommand::Worker(worker) => self.global.overrides(Some(worker)),
            #[cfg(feature = "web")]
            CliCommand::Web(web) => Overrides {
                web_listen: web.listen,
                web_read_only: web.read_only,
                ..self.global.overrides(None)
            },
            _ => self.global.overrides(None),
        }
    }
}

/// Flags that every command accepts.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct GlobalArgs {
    #[arg(long, help = flag_help("--broker"), global = true, value_name = "URL", value_hint = ValueHint::Url)]
    broker: Option<String>,
    #[arg(long, help = flag_help("--broker-file"), global = true, hide_short_help = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    broker_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--backend"), global = true, value_name = "URL", value_hint = ValueHint::Url)]
    backend: Option<String>,
    #[arg(long, help = flag_help("--backend-file"), global = true, hide_short_help = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    backend_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--config"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    #[arg(long, help = flag_help("--namespace"), global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Print JSON, errors too
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[arg(long, help = flag_help("--key-file"), global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    key_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--allow-unsigned"), global = true, hide_short_help = true)]
    allow_unsigned: bool,
    #[arg(long, help = flag_help("--insecure-plaintext"), global = true, hide_short_help = true)]
    insecure_plaintext: bool,
    #[arg(long, help = flag_help("--tls-ca-file"), global = true, hide_short_help = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_ca_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--tls-cert-file"), global = true, hide_short_help = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    tls_cert_file: Option<PathBuf>,
    #[arg(long, help = flag_help("--tls-key-file"), global = true, hide_short_help = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
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
            machinery_config: worker.and_then(|w| w.machinery_config.clone()),
            ..Overrides::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Print the machinist.toml that means the same as a configuration of Go machinery (YAML, and its variables), with
    /// passwords; its comments name what has no counterpart
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) from_machinery: Option<PathBuf>,
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
    /// Cancel a task or a workflow, or many tasks
    Revoke(RevokeArgs),
    /// Send a failed task or workflow again, under a new id, or many tasks
    Retry(RetryArgs),
    /// List tasks that wait for their ETA or a retry, or run one now
    Scheduled(ScheduledArgs),
    /// Add, list and control periodic tasks
    #[command(subcommand)]
    Periodic(PeriodicCommand),
    /// List the queues with what waits, comes and goes, or peek into, pause, resume, purge or delete one
    Queues(QueuesArgs),
    /// Watch queues, workers, tasks and failures on the whole terminal, and act on one
    Top(TopArgs),
    /// Serve the dashboard to browsers, and its JSON API
    #[cfg(feature = "web")]
    Web(WebArgs),
    /// Say why a task or a queue stands still, and what to do
    Why(WhyArgs),
    /// Search tasks that have ended, run or wait
    Tasks(TasksArgs),
    /// Group failed tasks by cause, and retry, purge or silence a group
    Failures(FailuresArgs),
    /// Show what happened to tasks and queues since a moment, in buckets of time
    History(HistoryArgs),
    /// Mark this moment in the history
    Mark(MarkArgs),
    /// Print the log of a task, also while it runs
    Log(LogArgs),
    /// Print what happens to tasks and workers everywhere, as it happens
    Events(EventsArgs),
    /// List the live workers, or give them orders
    Workers(WorkersArgs),
    /// List the leaders and the shards of live workers, and who holds them
    Fleet(PageArgs),
    /// List the task names that live workers know, or disable one for all workers
    Registered(RegisteredArgs),
    /// List the limits of tasks and queues, or set one for all workers
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Copy the embedded file, also while processes use it
    #[cfg(feature = "sqlite")]
    Backup(BackupArgs),
    /// Create or update the schema in PostgreSQL
    #[cfg(feature = "postgres")]
    Migrate(MigrateArgs),
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
    Config(ConfigArgs),
    /// Print completions for a shell
    Completions {
        /// Name of the shell
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command into a folder
    #[cfg(feature = "man")]
    #[command(hide = true)]
    Man {
        /// Folder to write into, which is created
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RegisteredArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RegisteredCommand>,
    #[command(flatten)]
    pub(crate) page: PageArgs,
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

/// Without an option it makes all migrations that are missing.
#[cfg(feature = "postgres")]
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Change nothing; exit with 2 if migrations are missing
    #[arg(long, conflicts_with_all = ["print", "to"])]
    pub(crate) check: bool,
    /// Change nothing; print the SQL of all migrations, and the rights that workers and senders need
    #[arg(long, conflicts_with = "to")]
    pub(crate) print: bool,
    /// Version to stop at; there is no way back
    #[arg(long, value_name = "N")]
    pub(crate) to: Option<u32>,
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
/// once, the third cuts them off, the fourth exits. SIGHUP reloads
/// machinist.toml.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[arg(help = flag_help("--queue"), long = "queue", short, value_name = "NAME", value_parser = queues)]
    queues: Vec<QueuePattern>,
    #[arg(help = flag_help("--concurrency"), long, short, value_name = "N", value_parser = concurrency)]
    concurrency: Option<u16>,
    #[arg(help = flag_help("--grace"), long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
    #[arg(help = flag_help("--look-ahead"), long, value_name = "N", value_parser = look_ahead)]
    look_ahead: Option<u16>,
    #[arg(help = flag_help("--name"), long, value_name = "NAME")]
    name: Option<String>,
    #[arg(help = flag_help("--tag"), long = "tag", value_name = "TAG", value_parser = Tag::parse)]
    tags: Vec<Tag>,
    /// Serve health checks at this address, over HTTP: /healthz succeeds while the broker confirms the subscription,
    /// /readyz while the worker takes tasks, and /metrics shows the metrics for Prometheus
    #[arg(long, value_name = "IP:PORT", value_parser = health_address)]
    pub(crate) health: Option<SocketAddr>,
    /// Take broker, backend and queue from a configuration of Go machinery (YAML, and its variables), where nothing else
    /// sets them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    machinery_config: Option<PathBuf>,
    /// Also run the demo tasks: add, echo, sleep, fail
    #[arg(long)]
    pub(crate) demo: bool,
}
