//! Settings, and the place that sets each value.
//!
//! A flag goes before a `MACHINIST_*` variable, a variable before `machinist.toml`, the file before the default.
//! Every value keeps its [`SettingOrigin`], so that `machinist config` can say where a surprising value comes from.
//! Nothing is guessed: an unknown key or a value that does not fit is an error that names its place and the expected
//! value.
//!
//! | key | flag | variable | default | meaning |
//! |---|---|---|---|---|
//! | `broker` | `--broker` | `MACHINIST_BROKER` | `sqlite://machinist.db` | URL of the broker, which moves messages: amqp://, amqps://, postgres://, sqlite://FILE; several of a cluster's nodes, separated by commas, or as a list in the file |
//! | `broker_file` | `--broker-file` | `MACHINIST_BROKER_FILE` | none | File that holds the broker's URL, for a URL with a password: every user of a host can read the flags of a process |
//! | `backend` | `--backend` | `MACHINIST_BACKEND` | `sqlite://machinist.db` | URL of the backend, which stores states and results: redis://, rediss://, redis+sentinel://, redis+cluster://, redis+unix://, postgres://, sqlite://FILE |
//! | `backend_file` | `--backend-file` | `MACHINIST_BACKEND_FILE` | none | File that holds the backend's URL, for a URL with a password |
//! | `namespace` | `--namespace` | `MACHINIST_NAMESPACE` | `machinist` | Prefix of exchange, queues and keys, for applications that share servers |
//! | `results_ttl` |  | `MACHINIST_RESULTS_TTL` | `1d` | Time for which a record is kept after its task has ended |
//! | `freshness` |  |  | any age; old messages are recognized by their records | Maximum age of a message, counted from its signature or, if that is later, its ETA |
//! | `key_file` | `--key-file` | `MACHINIST_KEY_FILE` | next to an sqlite:// broker's file: machinist.db.key | File of the key that signs tasks and results; `machinist keygen` makes one |
//! | `keys` |  |  | none | Further keys of the key ring, each under a line `[[keys]]` |
//! | `allow_unsigned` | `--allow-unsigned` | `MACHINIST_ALLOW_UNSIGNED` | `false` | Need no key and run unsigned tasks: anyone who can publish to a queue can then run every task of its workers |
//! | `insecure_plaintext` | `--insecure-plaintext` | `MACHINIST_INSECURE_PLAINTEXT` | `false` | Send passwords to other hosts without TLS |
//! | `topology` |  | `MACHINIST_TOPOLOGY` | `declare` | declare creates missing exchanges and queues of RabbitMQ, and the schema in PostgreSQL; verify only checks them |
//! | `events` |  | `MACHINIST_EVENTS` | `failures` | Events that processes publish for `machinist events`: all, failures or off |
//! | `tls.ca_file` | `--tls-ca-file` | `MACHINIST_TLS_CA_FILE` | the system's certificates | Certificates to trust on amqps:// and rediss://, in PEM |
//! | `tls.cert_file` | `--tls-cert-file` | `MACHINIST_TLS_CERT_FILE` | none | Client certificate, for servers that ask for one, in PEM |
//! | `tls.key_file` | `--tls-key-file` | `MACHINIST_TLS_KEY_FILE` | none | Private key of the client certificate, in PEM |
//! | `worker.name` | `--name` | `MACHINIST_WORKER_NAME` | host name | Name of the worker in records and listings |
//! | `worker.tags` | `--tag` | `MACHINIST_TAGS` | none | Word about the worker, like gpu or zone:eu, at most 16; the flag can be repeated, the variable separates tags by commas |
//! | `worker.queues` | `--queue` | `MACHINIST_QUEUES` | default, and the queues of command tasks and task definitions | Queue to consume, or a pattern like tenant-* for all that are called so; the flag can be repeated, the variable separates queues by commas, and the file may give weights |
//! | `worker.strict` |  |  | `false` | Start the tasks of a queue only while no queue of a larger weight has tasks that wait |
//! | `worker.sleep` |  |  | none | Hours in which the worker takes no tasks, as a list like [{ days = "mon-fri", from = "22:00", to = "06:00", time_zone = "Europe/Berlin" }] |
//! | `worker.concurrency` | `--concurrency` | `MACHINIST_CONCURRENCY` | `16` | Number of tasks to run at once, 1 to 10000 |
//! | `worker.look_ahead` | `--look-ahead` | `MACHINIST_LOOK_AHEAD` | the concurrency, at least 16 | Maximum number of tasks to hold in addition to those that run, 0 to 10000. A worker holds them only while its tasks are short |
//! | `worker.keep_args` |  | `MACHINIST_KEEP_ARGS` | `false` | Keep the arguments of every task in its record, for people. Delayed and failed tasks always keep them |
//! | `worker.grace` | `--grace` | `MACHINIST_GRACE` | `20s` | Time that running tasks get to end when the worker is told to stop |
//! | `worker.consumer_timeout` |  | `MACHINIST_CONSUMER_TIMEOUT` | `30m` | Time for which RabbitMQ lets a worker hold a delivery (its consumer_timeout), at least 1s |
//! | `worker.restart_exit_code` |  | `MACHINIST_RESTART_EXIT_CODE` | none | Exit code at which the supervisor of the worker starts it again, 1 to 255; without it `workers restart` is refused |
//! | `worker.max_tasks` |  | `MACHINIST_MAX_TASKS` | none | Number of ended tasks after which the worker ends with `restart_exit_code`, to be started again |
//! | `worker.max_memory` |  | `MACHINIST_MAX_MEMORY` | none | Memory of the process, like 512MiB, at which the worker ends with `restart_exit_code`, to be started again |
//! | `worker.metrics_token_file` |  | `MACHINIST_METRICS_TOKEN_FILE` | none | File with the bearer token that `/metrics` requires; without it everybody who reaches the address may read |
//! | `client.buffer` |  |  | 10,000 tasks with 64 MiB, for 30 s | Bounds of the tasks that `Client::send_buffered` keeps in memory, like { tasks = 10000, bytes = "64MiB", for = "30s" } |
//! | `links.trace` |  | `MACHINIST_TRACE_LINK` | none | Link to the trace of a task that status prints, with {trace_id}, {id}, {task} and {queue} |
//! | `web.listen` | `--listen` | `MACHINIST_WEB_LISTEN` | `127.0.0.1:8780` | Address at which the dashboard listens; one that is not of this host alone needs a way to log in |
//! | `web.name` |  | `MACHINIST_WEB_NAME` | none | Name of the installation, on every page of the dashboard |
//! | `web.read_only` | `--read-only` | `MACHINIST_WEB_READ_ONLY` | `false` | Let nobody change anything in the dashboard; it then needs no key |
//! | `web.password_file` |  | `MACHINIST_WEB_PASSWORD_FILE` | none | File of the people who may use the dashboard, with lines that `machinist web user NAME` prints |
//! | `web.token_file` |  | `MACHINIST_WEB_TOKEN_FILE` | none | File of the programs that may use the API of the dashboard, with lines of the form NAME:ROLE:TOKEN |
//! | `web.proxy_header` |  | `MACHINIST_WEB_PROXY_HEADER` | none | Header in which a proxy names the user whom it has logged in, such as X-Forwarded-User |
//! | `web.proxy_addresses` |  | `MACHINIST_WEB_PROXY_ADDRESSES` | none | Addresses of the proxy whose header is believed; the variable separates them by commas |
//! | `web.proxy_role` |  | `MACHINIST_WEB_PROXY_ROLE` | `viewer` | Role of those whom a proxy has logged in: viewer, operator or admin |
//! | `sizes.body` |  |  | `1MiB` | Maximum size of a message's body |
//! | `sizes.headers` |  |  | `16KiB` | Maximum size of a message's headers |
//! | `sizes.args` |  |  | `1024` | Maximum number of arguments |
//! | `sizes.depth` |  |  | `100` | Maximum nesting of arguments and results, at most 100 |
//! | `sizes.results` |  |  | `1MiB` | Maximum size of a task's results |
//! | `sizes.errors` |  |  | `64KiB` | Maximum size of a task's error |
//! | the file | `--config` | `MACHINIST_CONFIG` | machinist.toml in the current folder, if there is one | File of settings |
//!
//! An application reads its own section `[app]` with [`Settings::app_section`].
//!
//! The file also holds command tasks and options of other tasks, `[tasks.NAME]`: see [`TaskSettings`]; periodic tasks,
//! `[periodic.NAME]`: see `docs/periodic.md`; for `[[keys]]` see [`keys`](crate::keys). Workflow files are read by
//! [`flow_file`]. An empty variable counts as not set; other variables are ignored. The section `[limits]`, the old name
//! of `[sizes]`, is still read in this version, with a warning.

mod app_section;
mod apply;
mod buffer;
mod entries;
mod file;
pub mod flow_file;
mod limits;
#[cfg(feature = "machinery")]
mod machinery;
mod periodic;
mod resolve;
mod section;
mod table;
mod tasks;
mod text;
mod trace_link;
mod unsigned;
mod url_file;
mod value;
mod web;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use machinist_core::{
    Backoff, BufferLimits, FairShare, MaxSizes, QueueName, QueuePattern, Unique,
    event_stream::PublishedEvents,
    limit::Limit,
    periodic::Periodic,
    sign::{KeyConfig, SecretText},
    worker::{SleepHours, Tag},
};

pub use crate::topology::{QueueAddress, Topology};
use crate::{connector::Connectors, redact, url::ServerUrl};
pub use entries::SettingEntry;
pub use limits::{DEBOUNCE_MAX_WAITS, parse_on_conflict, parse_unique_until};
#[cfg(feature = "machinery")]
pub use machinery::{MachineryConfig, MachineryGap};
pub use machinist_core::show_duration;
pub use table::{SettingDefault, SettingInfo, setting_infos, setting_of_flag};
pub use text::{parse_backoff, parse_duration};
pub use trace_link::{TraceLink, TracedTask};
pub use unsigned::{ProfileName, UnsignedQueue};
pub use web::WebSettings;

/// Name of the file that is read if no other is named.
pub const FILE: &str = "machinist.toml";

/// Place that sets a value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettingOrigin {
    /// Flag of the command line: `--broker`.
    Flag(&'static str),
    /// Variable of the environment: `MACHINIST_BROKER`.
    Variable(&'static str),
    /// Line of a file, counted from 1.
    File {
        /// Path of the file, as it was given.
        path: PathBuf,
        /// Line of the value.
        line: usize,
    },
    /// No place: the default is in force.
    Default,
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Value and the place that sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// Value in force.
    pub value: T,
    /// Place that sets the value.
    pub origin: SettingOrigin,
}

impl<T> Setting<T> {
    pub(crate) fn new(value: T, origin: SettingOrigin) -> Self {
        Self { value, origin }
    }
}

/// All settings.
///
/// # Examples
/// ```
/// use machinist::settings::{Overrides, Settings};
/// use std::path::Path;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = "[worker]\nconcurrency = 4";
/// let settings = Settings::resolve(Overrides::default(), &|_| None, Some((Path::new("machinist.toml"), file)))?;
/// assert_eq!(settings.worker.concurrency.value, 4);
/// assert_eq!(settings.worker.concurrency.origin.to_string(), "machinist.toml:2");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// File that was read, if there was one.
    pub file: Option<PathBuf>,
    /// URL of the broker, which moves messages.
    pub broker: Setting<ServerUrl>,
    /// URL of the backend, which stores states and results.
    pub backend: Setting<ServerUrl>,
    /// Name of the exchange and prefix of every key. Applications that share servers have different namespaces.
    pub namespace: Setting<String>,
    /// Time for which a record is kept after its task has ended.
    pub results_ttl: Setting<Duration>,
    /// Maximum age of a message, counted from its signature or, if that is later, its ETA; `None` allows any age.
    pub freshness: Option<Setting<Duration>>,
    /// Maximum sizes of payloads.
    pub sizes: SizeSettings,
    /// File of the key that signs. If neither this nor `keys` is configured, a broker in an SQLite file has a key file
    /// next to it, which is created when it is first needed.
    pub key_file: Option<Setting<PathBuf>>,
    /// `[[keys]]`: further keys of the key ring.
    pub keys: Vec<Setting<KeyConfig>>,
    /// `true` if unsigned tasks are run too, and no key is needed.
    pub allow_unsigned: Setting<bool>,
    /// `true` if passwords may be sent to other hosts without TLS.
    pub insecure_plaintext: Setting<bool>,
    /// Treatment of missing exchanges and queues of RabbitMQ.
    pub topology: Setting<Topology>,
    /// Events that this process publishes for readers in other processes.
    pub events: Setting<PublishedEvents>,
    /// Link to the trace of a task, for people.
    pub trace_link: Option<Setting<TraceLink>>,
    /// Bounds of the tasks that a client keeps in memory until they are confirmed.
    pub buffer: Option<Setting<BufferLimits>>,
    /// Settings of the dashboard.
    pub web: WebSettings,
    /// Certificates for `amqps://` and `rediss://`.
    pub tls: TlsSettings,
    /// Settings of a worker.
    pub worker: WorkerSettings,
    /// Command tasks, and options of Rust tasks, by name.
    pub tasks: BTreeMap<String, TaskSettings>,
    /// Periodic tasks, `[periodic.NAME]`, by name.
    pub periodic: BTreeMap<String, Setting<Periodic>>,
    /// Limits of queues, `[queues.NAME]`.
    pub queue_limits: BTreeMap<QueueName, Setting<Limit>>,
    /// Maximum numbers of tasks of queues that run at once in one worker, `[queues.NAME]`.
    pub queue_concurrency: BTreeMap<QueueName, Setting<usize>>,
    /// Maximum numbers of tasks that wait in queues, `[queues.NAME]`: senders refuse more.
    pub max_depths: BTreeMap<QueueName, Setting<u64>>,
    /// Queues whose tasks with higher priorities have separate queues, if the broker does not honour priorities,
    /// `[queues.NAME]`.
    pub priority_queues: BTreeMap<QueueName, Setting<bool>>,
    /// Shares of the keys of a queue, by queue.
    pub fair_shares: BTreeMap<QueueName, Setting<FairShare>>,
    /// Queues from which tasks run without a signature, `[queues.NAME]`.
    pub unsigned_queues: BTreeMap<QueueName, UnsignedQueue>,
    /// Place of the section `[limits]`, the old name of `[sizes]`, if the file has one.
    old_sizes: Option<SettingOrigin>,
    /// The section of the application, if the file has one.
    app: Option<app_section::AppSection>,
    /// Connectors by which the URLs were read.
    pub(crate) connectors: Connectors,
}

/// `[tls]`: files in PEM.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TlsSettings {
    /// Certificates to trust, instead of the system's.
    pub ca_file: Option<Setting<PathBuf>>,
    /// Client certificate for servers that ask for one, with the certificates between it and its authority.
    pub cert_file: Option<Setting<PathBuf>>,
    /// Private key of the client certificate.
    pub key_file: Option<Setting<PathBuf>>,
}

/// `[sizes]`: maximum sizes of payloads.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SizeSettings {
    /// Maximum size of a message's body, in bytes.
    pub body: Setting<usize>,
    /// Maximum size of a message's headers, in bytes.
    pub headers: Setting<usize>,
    /// Maximum number of arguments.
    pub args: Setting<usize>,
    /// Maximum nesting of arguments and results.
    pub depth: Setting<usize>,
    /// Maximum size of a task's results, in bytes.
    pub results: Setting<usize>,
    /// Maximum size of a task's error, in bytes.
    pub errors: Setting<usize>,
}

impl SizeSettings {
    /// Returns the sizes without their places.
    pub fn max_sizes(&self) -> MaxSizes {
        MaxSizes::default()
            .body(self.body.value)
            .headers(self.headers.value)
            .args(self.args.value)
            .depth(self.depth.value)
            .results(self.results.value)
            .errors(self.errors.value)
    }
}

/// `[worker]`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerSettings {
    /// Name of the worker; `None` for one of host name and process id.
    pub name: Option<Setting<String>>,
    /// Words that tell workers apart in listings.
    pub tags: Setting<Vec<Tag>>,
    /// Queues to consume, and patterns of queues.
    pub queues: Setting<Vec<QueuePattern>>,
    /// Weights of the queues, by which they get slots.
    pub weights: Option<Setting<BTreeMap<QueuePattern, u32>>>,
    /// `true` if the tasks of a queue start only while no queue of a larger weight has tasks that wait; `None` for `false`.
    pub strict: Option<Setting<bool>>,
    /// Hours in which the worker sleeps.
    pub sleep: Vec<Setting<SleepHours>>,
    /// Number of tasks to run at once; at least 1.
    pub concurrency: Setting<usize>,
    /// Maximum number of tasks to hold in addition to those that run; `None` for the worker's default.
    pub look_ahead: Option<Setting<usize>>,
    /// `true` if the record of every task keeps its arguments; `None` for `false`.
    pub keep_args: Option<Setting<bool>>,
    /// Time that running tasks get to end when the worker is told to stop.
    pub grace: Setting<Duration>,
    /// Time for which the broker lets a worker hold a delivery; at least a second.
    pub consumer_timeout: Setting<Duration>,
    /// Exit code at which the supervisor of the worker starts it again.
    pub restart_exit_code: Option<Setting<u8>>,
    /// Number of ended tasks after which the worker ends, to be started again.
    pub max_tasks: Option<Setting<usize>>,
    /// Memory of the process in bytes at which the worker ends, to be started again.
    pub max_memory: Option<Setting<usize>>,
    /// File with the bearer token that readers of the metrics have to show.
    pub metrics_token_file: Option<Setting<PathBuf>>,
}

impl WorkerSettings {
    /// Returns the queues to consume that are named, without the patterns.
    pub fn named_queues(&self) -> impl Iterator<Item = QueueName> + '_ {
        self.queues.value.iter().filter_map(QueuePattern::queue)
    }
}

/// `[tasks.NAME]`: a task whose handler is a program, in any language, or the options of a task whose handler is in an
/// application.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TaskSettings {
    /// Program and its arguments, in which `{name}` and `{0}` are replaced; at least the program. `None` for the options
    /// of a task that an application registers.
    pub command: Option<Setting<Vec<String>>>,
    /// Names of the positional arguments; `None` accepts any arguments.
    pub args: Option<Setting<Vec<String>>>,
    /// Queue to which the program sends the task. Its worker consumes the queue of a command task unless other queues are
    /// set; a worker that registers a task without a command has to name the queue.
    pub queue: Option<Setting<QueueName>>,
    /// Tags that a worker must have to run the task, where the program sends it.
    pub requires: Option<Setting<Vec<Tag>>>,
    /// Time after which a run is ended.
    pub timeout: Option<Setting<Duration>>,
    /// Time after which a run is asked to end.
    pub soft_timeout: Option<Setting<Duration>>,
    /// `true` if a run that a timeout ended is tried again.
    pub retry_timeouts: Option<Setting<bool>>,
    /// Maximum time from the task's due time to the start of a retry.
    pub retry_for: Option<Setting<Duration>>,
    /// Number of retries after failures.
    pub retries: Option<Setting<u32>>,
    /// Time before each retry.
    pub backoff: Option<Setting<Backoff>>,
    /// Variables that the program gets, by name.
    pub env: Option<Setting<BTreeMap<String, SecretText>>>,
    /// Names of further variables that the program inherits from the worker; one that ends with `*` stands for all that
    /// begin so, but for none that configures machinist.
    pub env_pass: Option<Setting<Vec<String>>>,
    /// Working directory of the program; `None` for that of the worker.
    pub cwd: Option<Setting<PathBuf>>,
    /// User that runs the program, where the worker runs as root; `None` for that of the worker.
    pub user: Option<Setting<String>>,
    /// `true` if a value that fills the beginning of an argument may begin with a dash, so that the program can take it
    /// for an option.
    pub dash_values: Option<Setting<bool>>,
    /// Limit of its starts and runs in all workers together.
    pub limit: Option<Setting<Limit>>,
    /// Number of failures in a row after which a worker leaves the task to others, and for how long.
    pub circuit: Option<Setting<(u32, Duration)>>,
    /// Maximum number of its runs at once in one worker.
    pub concurrency: Option<Setting<usize>>,
    /// Rule by which the program `machinist send` allows one task for each key.
    pub unique: Option<Setting<Unique>>,
    /// `true` if the records of the task keep its arguments, `false` if only those of delayed and failed tasks do. `None`
    /// for the setting of the worker.
    pub keep_args: Option<Setting<bool>>,
    /// `true` if the program does not show the arguments of the task.
    pub hide_args: Option<Setting<bool>>,
    /// Place of the task; relative paths of programs start at the file's folder.
    pub origin: SettingOrigin,
}

impl TaskSettings {
    /// Returns the folder at which a relative path of the program starts.
    pub fn folder(&self) -> &Path {
        match &self.origin {
            SettingOrigin::File { path, .. } => path.parent().unwrap_or_else(|| Path::new("")),
            _ => Path::new(""),
        }
    }
}

/// Settings of the command line, which go before all others.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`: the file to read, which has to exist.
    pub config: Option<PathBuf>,
    /// `--broker`.
    pub broker: Option<String>,
    /// `--broker-file`.
    pub broker_file: Option<PathBuf>,
    /// `--backend`.
    pub backend: Option<String>,
    /// `--backend-file`.
    pub backend_file: Option<PathBuf>,
    /// `--namespace`.
    pub namespace: Option<String>,
    /// `--key-file`.
    pub key_file: Option<PathBuf>,
    /// `--allow-unsigned`.
    pub allow_unsigned: bool,
    /// `--insecure-plaintext`.
    pub insecure_plaintext: bool,
    /// `--tls-ca-file`.
    pub tls_ca_file: Option<PathBuf>,
    /// `--tls-cert-file`.
    pub tls_cert_file: Option<PathBuf>,
    /// `--tls-key-file`.
    pub tls_key_file: Option<PathBuf>,
    /// `--queue`, any number of times.
    pub queues: Vec<QueuePattern>,
    /// `--name`.
    pub name: Option<String>,
    /// `--tag`, any number of times.
    pub tags: Vec<Tag>,
    /// `--look-ahead`.
    pub look_ahead: Option<usize>,
    /// `--concurrency`.
    pub concurrency: Option<usize>,
    /// `--grace`.
    pub grace: Option<Duration>,
    /// `--listen`: the address of the dashboard.
    pub web_listen: Option<SocketAddr>,
    /// `--read-only`: a dashboard in which nobody may change anything.
    pub web_read_only: bool,
    /// `--machinery-config`: a configuration of Go machinery, for what nothing else sets.
    pub machinery_config: Option<PathBuf>,
}

/// Error of a setting. Its text names the place (flag, variable, or file with line and column), the problem and the
/// expected value; it never holds a password.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SettingsError {
    place: String,
    problem: String,
    source: Option<std::io::Error>,
}

impl SettingsError {
    /// Creates an error for a value whose syntax is correct, such as a template with an unknown name.
    pub fn new(place: impl fmt::Display, problem: impl Into<String>) -> Self {
        let problem = redact::text(&problem.into()).into_owned();
        Self { place: place.to_string(), problem, source: None }
    }

    /// Creates an error for a file that cannot be read.
    fn unreadable(place: &str, path: &Path, error: std::io::Error) -> Self {
        let problem = format!("cannot read {}", path.display());
        Self { place: place.to_owned(), problem, source: Some(error) }
    }
}
