//! What is configured, and where each value came from.
//!
//! A flag goes before a `MACHINIST_*` variable, a variable before `machinist.toml`, the file before the default.
//! Every value keeps its [`SettingOrigin`], so that `machinist config` can answer the question that follows every
//! surprise. Nothing is guessed: an unknown key or a value that does not fit is an error that says where it
//! stands and what was expected.
//!
//! | key | variable | default |
//! |---|---|---|
//! | `broker` | `MACHINIST_BROKER` | `sqlite://machinist.db` |
//! | `backend` | `MACHINIST_BACKEND` | `sqlite://machinist.db` |
//! | `namespace` | `MACHINIST_NAMESPACE` | `machinist` |
//! | `results_ttl` | `MACHINIST_RESULTS_TTL` | `1d` |
//! | `freshness` | | none: old messages are told by their records |
//! | `limits.body`, `.headers`, `.results`, `.errors` | | `1MiB`, `16KiB`, `1MiB`, `64KiB` |
//! | `limits.args`, `.depth` | | 1024, 100 |
//! | `key_file` | `MACHINIST_KEY_FILE` | beside a `sqlite://` broker's file, as `machinist.db.key` |
//! | `[[keys]]` | | none: further keys, see [`keys`](crate::keys) |
//! | `allow_unsigned` | `MACHINIST_ALLOW_UNSIGNED` | `false` |
//! | `insecure_plaintext` | `MACHINIST_INSECURE_PLAINTEXT` | `false` |
//! | `topology` | `MACHINIST_TOPOLOGY` | `declare`: exchanges and queues are made; `verify` only checks |
//! | `tls.ca_file` | `MACHINIST_TLS_CA_FILE` | the certificates of the system |
//! | `tls.cert_file`, `tls.key_file` | `MACHINIST_TLS_CERT_FILE`, `MACHINIST_TLS_KEY_FILE` | none is shown |
//! | `worker.queues` | `MACHINIST_QUEUES` (with commas) | `default`, and the queues of `[tasks]` |
//! | `worker.concurrency` | `MACHINIST_CONCURRENCY` | 16 |
//! | `worker.grace` | `MACHINIST_GRACE` | `20s` |
//! | `worker.consumer_timeout` | `MACHINIST_CONSUMER_TIMEOUT` | `30m`, as RabbitMQ's |
//! | the file itself | `MACHINIST_CONFIG` | `machinist.toml` of the current folder, if there is one |
//!
//! An empty variable counts as not set; other variables are ignored.

mod file;
mod text;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use machinist_core::{Backoff, MaxSizes, QueueName, sign::KeyConfig};

use crate::{
    redact,
    url::{Role, ServerUrl},
};
pub use text::{parse_backoff, parse_duration, show_duration};

/// The file that is read when no other is named.
pub const FILE: &str = "machinist.toml";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettingOrigin {
    /// A flag of the command line: `--broker`.
    Flag(&'static str),
    /// A variable of the environment: `MACHINIST_BROKER`.
    Variable(&'static str),
    /// A line of a file, counted from 1.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line of the value.
        line: usize,
    },
    /// Nobody said anything else.
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

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// What is in force.
    pub value: T,
    /// Who said so.
    pub origin: SettingOrigin,
}

impl<T> Setting<T> {
    pub(crate) fn new(value: T, origin: SettingOrigin) -> Self {
        Self { value, origin }
    }
}

/// Row of `machinist config`: a setting as text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingEntry {
    /// Key in `machinist.toml`, with its section: `worker.grace`.
    pub key: String,
    /// Value, without passwords and secrets.
    pub value: String,
    /// Place that sets the value.
    pub origin: SettingOrigin,
}

/// Everything that is configured.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// Where messages go.
    pub broker: Setting<ServerUrl>,
    /// Where states are remembered.
    pub backend: Setting<ServerUrl>,
    /// The exchange's name and the prefix of every key: applications that share servers differ in it.
    pub namespace: Setting<String>,
    /// How long a record is kept after its task has ended.
    pub results_ttl: Setting<Duration>,
    /// How old a message may be, counted from when it was signed or due; any age where nothing is said.
    pub freshness: Option<Setting<Duration>>,
    /// How large things may be.
    pub limits: LimitSettings,
    /// The key that signs, in a file. Not configured and without `keys`, a broker in an SQLite file has one
    /// beside it, made when it is first needed.
    pub key_file: Option<Setting<PathBuf>>,
    /// `[[keys]]`: further keys of the ring.
    pub keys: Vec<Setting<KeyConfig>>,
    /// Whether unsigned tasks are run too, and no key is needed.
    pub allow_unsigned: Setting<bool>,
    /// Whether passwords may be sent to other hosts without TLS.
    pub insecure_plaintext: Setting<bool>,
    /// Whether the exchanges and queues of RabbitMQ are made where they are missing, or only checked.
    pub topology: Setting<Topology>,
    /// Whose certificates are trusted on `amqps://` and `rediss://`, and which one is shown.
    pub tls: TlsSettings,
    /// What a worker consumes and how.
    pub worker: WorkerSettings,
    /// Command tasks, by name.
    pub tasks: BTreeMap<String, TaskSettings>,
}

/// Whether the exchanges and queues of RabbitMQ are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Topology {
    /// Where they are missing.
    #[default]
    Declare,
    /// They are only checked: for users without the permission to configure.
    Verify,
}

impl Topology {
    /// The word for it in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Declare => "declare",
            Self::Verify => "verify",
        }
    }
}

/// `[tls]`: files in PEM.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TlsSettings {
    /// The certificates that are trusted, in place of the system's.
    pub ca_file: Option<Setting<PathBuf>>,
    /// The certificate that is shown to servers that ask for one, and those between it and its authority.
    pub cert_file: Option<Setting<PathBuf>>,
    /// Its private key.
    pub key_file: Option<Setting<PathBuf>>,
}

impl TlsSettings {
    /// Each with its key, in the order in which they are listed.
    fn files(&self) -> impl Iterator<Item = (&'static str, &Setting<PathBuf>)> {
        let all = [
            ("tls.ca_file", &self.ca_file),
            ("tls.cert_file", &self.cert_file),
            ("tls.key_file", &self.key_file),
        ];
        all.into_iter().filter_map(|(key, file)| Some((key, file.as_ref()?)))
    }
}

/// The keys of `[limits]`.
const LIMITS: [&str; 6] = ["body", "headers", "args", "depth", "results", "errors"];

/// `[limits]`: see [`MaxSizes`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LimitSettings {
    /// The limits that hold.
    pub value: MaxSizes,
    /// Where each came from, in the order `body`, `headers`, `args`, `depth`, `results`, `errors`.
    pub origins: [SettingOrigin; 6],
}

impl LimitSettings {
    fn of(file: [Option<Setting<usize>>; 6]) -> Self {
        let origins =
            file.each_ref().map(|limit| limit.as_ref().map_or(SettingOrigin::Default, |l| l.origin.clone()));
        let (said, default) = (file.map(|limit| limit.map(|limit| limit.value)), MaxSizes::default());
        let value = MaxSizes::default()
            .body(said[0].unwrap_or(default.body))
            .headers(said[1].unwrap_or(default.headers))
            .args(said[2].unwrap_or(default.args))
            .depth(said[3].unwrap_or(default.depth))
            .results(said[4].unwrap_or(default.results))
            .errors(said[5].unwrap_or(default.errors));
        Self { value, origins }
    }

    /// Those that were configured, as they are listed.
    fn entries(&self) -> impl Iterator<Item = SettingEntry> {
        let MaxSizes { body, headers, args, depth, results, errors, .. } = self.value;
        let values = [
            text::show_size(body),
            text::show_size(headers),
            args.to_string(),
            depth.to_string(),
            text::show_size(results),
            text::show_size(errors),
        ];
        let all = LIMITS.into_iter().zip(values).zip(self.origins.clone());
        all.filter(|(_, origin)| *origin != SettingOrigin::Default)
            .map(|((key, value), origin)| SettingEntry { key: format!("limits.{key}"), value, origin })
    }
}

/// `[worker]`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerSettings {
    /// The queues it consumes.
    pub queues: Setting<Vec<QueueName>>,
    /// How many tasks it runs at once; at least 1.
    pub concurrency: Setting<usize>,
    /// How long running tasks may go on after it was told to stop.
    pub grace: Setting<Duration>,
    /// For how long the broker lets a delivery be held without a word; at least a second.
    pub consumer_timeout: Setting<Duration>,
}

/// `[tasks.NAME]`: a program that any language can provide.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TaskSettings {
    /// The program and its arguments, with `{name}` and `{0}` to be filled in; at least the program.
    pub command: Setting<Vec<String>>,
    /// The names of the positional arguments; `None` where any arguments are taken.
    pub args: Option<Setting<Vec<String>>>,
    /// The queue to which it is sent.
    pub queue: Option<Setting<QueueName>>,
    /// How long one run may take.
    pub timeout: Option<Setting<Duration>>,
    /// After which time a run is told to end.
    pub soft_timeout: Option<Setting<Duration>>,
    /// Whether a run that a time limit ended is tried again.
    pub retry_timeouts: Option<Setting<bool>>,
    /// How long after it was due a retry may begin.
    pub retry_for: Option<Setting<Duration>>,
    /// How often it is tried again when it fails.
    pub retries: Option<Setting<u32>>,
    /// How long to wait before it is tried again.
    pub backoff: Option<Setting<Backoff>>,
    /// Where it is configured; relative program paths start at the file's folder.
    pub origin: SettingOrigin,
}

impl TaskSettings {
    /// The folder at which a relative path of the program starts.
    pub fn folder(&self) -> &Path {
        match &self.origin {
            SettingOrigin::File { path, .. } => path.parent().unwrap_or_else(|| Path::new("")),
            _ => Path::new(""),
        }
    }
}

/// What the command line says; it goes before everything else.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`: the file to read, which then has to exist.
    pub config: Option<PathBuf>,
    /// `--broker`.
    pub broker: Option<String>,
    /// `--backend`.
    pub backend: Option<String>,
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
    pub queues: Vec<QueueName>,
    /// `--concurrency`.
    pub concurrency: Option<usize>,
    /// `--grace`.
    pub grace: Option<Duration>,
}

/// Why what is configured cannot be used. Its text names the place (flag, variable, or file with line and
/// column), what is wrong, and what was expected; it never holds a password.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SettingsError {
    place: String,
    problem: String,
    source: Option<std::io::Error>,
}

impl SettingsError {
    /// Something is wrong with a value that was read without complaint: a template, say.
    pub fn new(place: impl fmt::Display, problem: impl Into<String>) -> Self {
        let problem = redact::text(&problem.into()).into_owned();
        Self { place: place.to_string(), problem, source: None }
    }
}

impl Settings {
    /// Reads the environment and the file.
    ///
    /// # Errors
    /// [`SettingsError`] names what does not fit, and where it stands.
    pub fn load(flags: Overrides) -> Result<Self, SettingsError> {
        let env = |name: &str| std::env::var_os(name);
        let named = match &flags.config {
            Some(path) => Some((path.clone(), "--config")),
            None => variable(&env, "MACHINIST_CONFIG")?.map(|path| (path.into(), "MACHINIST_CONFIG")),
        };
        let (path, place) = named.clone().unwrap_or_else(|| (FILE.into(), FILE));
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some((path, text)),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                let problem = format!("cannot read {}", path.display());
                return Err(SettingsError { place: place.to_owned(), problem, source: Some(error) });
            }
        };
        Self::resolve(flags, &env, file.as_ref().map(|(path, text)| (path.as_path(), text.as_str())))
    }

    /// Puts flags, variables and the text of a file together. Pure, but for what `env` does.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn resolve(
        flags: Overrides,
        env: &dyn Fn(&str) -> Option<OsString>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, SettingsError> {
        let path = file.map(|(path, _)| path.to_owned());
        let file = match file {
            Some((path, text)) => file::read(path, text)?,
            None => file::File::default(),
        };
        let url = |role: Role| move |text: &str| ServerUrl::parse(text, role);
        let queues = Layers {
            flag: ("--queue", none_if_empty(flags.queues)),
            variable: "MACHINIST_QUEUES",
            file: file.queues,
        }
        .pick(env, text::queues, || default_queues(&file.tasks))?;
        let broker = Layers {
            flag: parsed("--broker", flags.broker, url(Role::Broker))?,
            variable: "MACHINIST_BROKER",
            file: file.broker,
        }
        .pick(env, url(Role::Broker), embedded)?;
        let own = || own_key(&broker.value).filter(|_| file.keys.is_empty());
        let key_file =
            optional_file(("--key-file", flags.key_file), "MACHINIST_KEY_FILE", file.key_file, env)?
                .or_else(|| own().map(|path| Setting::new(path, SettingOrigin::Default)));
        Ok(Self {
            file: path,
            broker,
            backend: Layers {
                flag: parsed("--backend", flags.backend, url(Role::Backend))?,
                variable: "MACHINIST_BACKEND",
                file: file.backend,
            }
            .pick(env, url(Role::Backend), embedded)?,
            namespace: Layers {
                flag: parsed("--namespace", flags.namespace, text::namespace)?,
                variable: "MACHINIST_NAMESPACE",
                file: file.namespace,
            }
            .pick(env, text::namespace, || "machinist".to_owned())?,
            results_ttl: Layers {
                flag: ("", None),
                variable: "MACHINIST_RESULTS_TTL",
                file: file.results_ttl,
            }
            .pick(env, parse_duration, || Duration::from_secs(24 * 3600))?,
            key_file,
            freshness: file.freshness,
            limits: LimitSettings::of(file.limits),
            keys: file.keys,
            allow_unsigned: Layers {
                flag: ("--allow-unsigned", flags.allow_unsigned.then_some(true)),
                variable: "MACHINIST_ALLOW_UNSIGNED",
                file: file.allow_unsigned,
            }
            .pick(env, text::truth, || false)?,
            insecure_plaintext: Layers {
                flag: ("--insecure-plaintext", flags.insecure_plaintext.then_some(true)),
                variable: "MACHINIST_INSECURE_PLAINTEXT",
                file: file.insecure_plaintext,
            }
            .pick(env, text::truth, || false)?,
            topology: Layers { flag: ("", None), variable: "MACHINIST_TOPOLOGY", file: file.topology }.pick(
                env,
                text::topology,
                Topology::default,
            )?,
            tls: TlsSettings {
                ca_file: optional_file(
                    ("--tls-ca-file", flags.tls_ca_file),
                    "MACHINIST_TLS_CA_FILE",
                    file.tls_ca_file,
                    env,
                )?,
                cert_file: optional_file(
                    ("--tls-cert-file", flags.tls_cert_file),
                    "MACHINIST_TLS_CERT_FILE",
                    file.tls_cert_file,
                    env,
                )?,
                key_file: optional_file(
                    ("--tls-key-file", flags.tls_key_file),
                    "MACHINIST_TLS_KEY_FILE",
                    file.tls_key_file,
                    env,
                )?,
            },
            worker: WorkerSettings {
                queues,
                concurrency: Layers {
                    flag: ("--concurrency", flags.concurrency),
                    variable: "MACHINIST_CONCURRENCY",
                    file: file.concurrency,
                }
                .pick(env, text::concurrency, || 16)?,
                grace: Layers {
                    flag: ("--grace", flags.grace),
                    variable: "MACHINIST_GRACE",
                    file: file.grace,
                }
                .pick(env, parse_duration, || Duration::from_secs(20))?,
                consumer_timeout: Layers {
                    flag: ("", None),
                    variable: "MACHINIST_CONSUMER_TIMEOUT",
                    file: file.consumer_timeout,
                }
                .pick(env, text::consumer_timeout, || Duration::from_secs(30 * 60))?,
            },
            tasks: file.tasks,
        })
    }

    /// All settings, in the order in which `machinist config` lists them.
    pub fn entries(&self) -> Vec<SettingEntry> {
        fn row<T>(key: &str, setting: &Setting<T>, show: impl FnOnce(&T) -> String) -> SettingEntry {
            SettingEntry { key: key.to_owned(), value: show(&setting.value), origin: setting.origin.clone() }
        }
        let mut rows = vec![
            row("broker", &self.broker, ToString::to_string),
            row("backend", &self.backend, ToString::to_string),
            row("namespace", &self.namespace, Clone::clone),
            row("results_ttl", &self.results_ttl, |ttl| show_duration(*ttl)),
            row("allow_unsigned", &self.allow_unsigned, ToString::to_string),
            row("insecure_plaintext", &self.insecure_plaintext, ToString::to_string),
            row("topology", &self.topology, |topology| topology.as_str().to_owned()),
            row("worker.queues", &self.worker.queues, |names| text::join(names)),
            row("worker.concurrency", &self.worker.concurrency, ToString::to_string),
            row("worker.grace", &self.worker.grace, |grace| show_duration(*grace)),
            row("worker.consumer_timeout", &self.worker.consumer_timeout, |t| show_duration(*t)),
        ];
        // After `results_ttl`: whose tasks are believed belongs to where they are.
        let of_keys =
            self.key_file.iter().map(|file| row("key_file", file, |file| file.display().to_string()));
        let ring = self.keys.iter().map(|key| row("keys", key, text::show_key));
        let tls = self.tls.files().map(|(key, file)| row(key, file, |file| file.display().to_string()));
        rows.splice(7..7, tls);
        let fresh = self.freshness.iter().map(|window| row("freshness", window, |w| show_duration(*w)));
        rows.splice(4..4, fresh.chain(of_keys).chain(ring));
        rows.extend(self.limits.entries());
        for (name, task) in &self.tasks {
            let key = |field: &str| format!("tasks.{name}.{field}");
            rows.push(row(&key("command"), &task.command, |argv| redact::text(&argv.join(" ")).into_owned()));
            rows.extend(task.args.as_ref().map(|s| row(&key("args"), s, |names| names.join(", "))));
            rows.extend(task.queue.as_ref().map(|s| row(&key("queue"), s, ToString::to_string)));
            rows.extend(
                task.timeout.as_ref().map(|s| row(&key("timeout"), s, |limit| show_duration(*limit))),
            );
            rows.extend(
                task.soft_timeout
                    .as_ref()
                    .map(|s| row(&key("soft_timeout"), s, |limit| show_duration(*limit))),
            );
            rows.extend(
                task.retry_timeouts.as_ref().map(|s| row(&key("retry_timeouts"), s, bool::to_string)),
            );
            rows.extend(
                task.retry_for.as_ref().map(|s| row(&key("retry_for"), s, |limit| show_duration(*limit))),
            );
            rows.extend(task.retries.as_ref().map(|s| row(&key("retries"), s, ToString::to_string)));
            rows.extend(task.backoff.as_ref().map(|s| row(&key("backoff"), s, text::show_backoff)));
        }
        rows
    }
}

/// What each layer says about one setting.
struct Layers<T> {
    flag: (&'static str, Option<T>),
    variable: &'static str,
    file: Option<Setting<T>>,
}

impl<T> Layers<T> {
    fn pick(
        self,
        env: &dyn Fn(&str) -> Option<OsString>,
        parse: impl Fn(&str) -> Result<T, String>,
        default: impl FnOnce() -> T,
    ) -> Result<Setting<T>, SettingsError> {
        if let (name, Some(value)) = self.flag {
            return Ok(Setting::new(value, SettingOrigin::Flag(name)));
        }
        if let Some(text) = variable(env, self.variable)? {
            let value = parse(&text).map_err(|problem| SettingsError::new(self.variable, problem))?;
            return Ok(Setting::new(value, SettingOrigin::Variable(self.variable)));
        }
        Ok(self.file.unwrap_or_else(|| Setting::new(default(), SettingOrigin::Default)))
    }
}

/// A file that need not be named.
fn optional_file(
    (flag, named): (&'static str, Option<PathBuf>),
    variable: &'static str,
    file: Option<Setting<PathBuf>>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<Setting<PathBuf>>, SettingsError> {
    let file = file.map(|file| Setting::new(Some(file.value), file.origin));
    let layers = Layers { flag: (flag, named.map(Some)), variable, file };
    let picked = layers.pick(env, |path| Ok(Some(path.into())), || None)?;
    Ok(picked.value.map(|path| Setting::new(path, picked.origin)))
}

fn parsed<T>(
    flag: &'static str,
    text: Option<String>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<(&'static str, Option<T>), SettingsError> {
    let value = text.map(|text| parse(&text)).transpose();
    Ok((flag, value.map_err(|problem| SettingsError::new(flag, problem))?))
}

fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, SettingsError> {
    match env(name).filter(|text| !text.is_empty()).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(SettingsError::new(name, "is not UTF-8")),
    }
}

fn none_if_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// The embedded default: a file in the current folder.
fn embedded() -> ServerUrl {
    ServerUrl::sqlite(Path::new("machinist.db"))
}

/// The key of a broker that is a file: beside it, so that whoever finds one finds the other.
fn own_key(broker: &ServerUrl) -> Option<PathBuf> {
    let mut path = broker.file()?.into_os_string();
    path.push(".key");
    Some(path.into())
}

/// Somebody who writes a task with a queue of its own and starts `machinist worker` expects it to run.
fn default_queues(tasks: &BTreeMap<String, TaskSettings>) -> Vec<QueueName> {
    // INVARIANT: "default" is an allowed queue name.
    let mut queues = vec![QueueName::parse("default").expect("a valid name")];
    for queue in tasks.values().filter_map(|task| task.queue.as_ref()) {
        if !queues.contains(&queue.value) {
            queues.push(queue.value.clone());
        }
    }
    queues
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<OsString> {
        None
    }

    fn shown_entry(entry: &SettingEntry) -> String {
        format!("{}={} ({})", entry.key, entry.value, entry.origin)
    }

    fn resolve(flags: Overrides, env: &[(&str, &str)], file: &str) -> Result<Settings, SettingsError> {
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        Settings::resolve(flags, &env, Some((Path::new("conf/machinist.toml"), file)))
    }

    #[test]
    fn the_default_is_the_embedded_file() {
        let settings = Settings::resolve(Overrides::default(), &nothing, None).unwrap();
        assert_eq!(settings.broker.value.to_string(), "sqlite://machinist.db");
        assert_eq!(settings.backend.value, settings.broker.value);
        assert_eq!(settings.backend.origin, SettingOrigin::Default);
        assert_eq!(text::join(&settings.worker.queues.value), "default");
    }

    #[test]
    fn flags_go_before_variables_before_the_file_before_the_default() {
        let file = "namespace = \"file\"\n[worker]\nconcurrency = 4\n";
        let flags = Overrides { concurrency: Some(9), ..Overrides::default() };
        let env = [("MACHINIST_CONCURRENCY", "7"), ("MACHINIST_GRACE", "1m"), ("MACHINIST_NAMESPACE", "")];
        let settings = resolve(flags, &env, file).unwrap();
        let shown: Vec<String> = settings.entries().iter().map(shown_entry).collect();
        assert_eq!(
            shown,
            [
                "broker=sqlite://machinist.db (default)",
                "backend=sqlite://machinist.db (default)",
                "namespace=file (conf/machinist.toml:1)",
                "results_ttl=1d (default)",
                "key_file=machinist.db.key (default)",
                "allow_unsigned=false (default)",
                "insecure_plaintext=false (default)",
                "topology=declare (default)",
                "worker.queues=default (default)",
                "worker.concurrency=9 (flag --concurrency)",
                "worker.grace=1m (MACHINIST_GRACE)",
                "worker.consumer_timeout=30m (default)",
            ]
        );
    }

    #[test]
    fn what_does_not_fit_names_its_place() {
        let flags = Overrides { broker: Some("kafka://u:geheim@h".into()), ..Overrides::default() };
        let error = resolve(flags, &[], "").unwrap_err().to_string();
        assert!(error.starts_with("--broker: \"kafka://u:***@h\" has an unknown scheme"), "{error}");
        let error =
            resolve(Overrides::default(), &[("MACHINIST_GRACE", "soon")], "").unwrap_err().to_string();
        assert!(error.starts_with("MACHINIST_GRACE: \"soon\" is not a duration"), "{error}");
    }

    #[test]
    fn a_key_comes_from_somewhere_or_lies_beside_the_file() {
        let key = |flags, env: &[(&str, &str)], file: &str| {
            resolve(flags, env, file)
                .unwrap()
                .key_file
                .map(|s| format!("{} ({})", s.value.display(), s.origin))
        };
        let flag = || Overrides { key_file: Some("flag.key".into()), ..Overrides::default() };
        let env = [("MACHINIST_KEY_FILE", "env.key")];
        let file = "key_file = \"file.key\"";
        assert_eq!(key(flag(), &env, file).unwrap(), "flag.key (flag --key-file)");
        assert_eq!(key(Overrides::default(), &env, file).unwrap(), "env.key (MACHINIST_KEY_FILE)");
        assert_eq!(key(Overrides::default(), &[], file).unwrap(), "conf/file.key (conf/machinist.toml:1)");
        assert_eq!(key(Overrides::default(), &[], "").unwrap(), "machinist.db.key (default)");
        assert_eq!(
            key(Overrides::default(), &[], "broker = \"sqlite://x.db\"").unwrap(),
            "conf/x.db.key (default)"
        );
        assert_eq!(key(Overrides::default(), &[], "broker = \"amqp://h\""), None);
        assert_eq!(key(Overrides::default(), &[], "broker = \"memory://\""), None);
        assert_eq!(key(Overrides::default(), &[], "[[keys]]\nfile = \"x\""), None);
    }

    #[test]
    fn files_of_tls_come_from_somewhere_or_are_not_used() {
        let file = "topology = \"verify\"\n[tls]\nca_file = \"ca.pem\"\ncert_file = \"c.pem\"\n";
        let flags = Overrides { tls_cert_file: Some("flag.pem".into()), ..Overrides::default() };
        let env = [("MACHINIST_TLS_KEY_FILE", "env.key")];
        let rows = |settings: Settings| -> Vec<String> {
            let entries = settings.entries();
            entries.iter().filter(|entry| entry.key.starts_with('t')).map(shown_entry).collect()
        };
        assert_eq!(
            rows(resolve(flags, &env, file).unwrap()),
            [
                "topology=verify (conf/machinist.toml:1)",
                "tls.ca_file=conf/ca.pem (conf/machinist.toml:3)",
                "tls.cert_file=flag.pem (flag --tls-cert-file)",
                "tls.key_file=env.key (MACHINIST_TLS_KEY_FILE)",
            ]
        );
        assert_eq!(rows(resolve(Overrides::default(), &[], "").unwrap()), ["topology=declare (default)"]);
        let error = resolve(Overrides::default(), &[("MACHINIST_TOPOLOGY", "make")], "").unwrap_err();
        assert_eq!(error.to_string(), "MACHINIST_TOPOLOGY: \"make\" is neither declare nor verify");
    }

    #[test]
    fn yes_and_no_are_read() {
        let unsigned =
            |env: &[(&str, &str)], file| resolve(Overrides::default(), env, file).map(|s| s.allow_unsigned);
        assert!(unsigned(&[("MACHINIST_ALLOW_UNSIGNED", "1")], "").unwrap().value);
        assert!(!unsigned(&[("MACHINIST_ALLOW_UNSIGNED", "false")], "allow_unsigned = true").unwrap().value);
        assert_eq!(
            unsigned(&[], "allow_unsigned = true").unwrap().origin.to_string(),
            "conf/machinist.toml:1"
        );
        let error = unsigned(&[("MACHINIST_ALLOW_UNSIGNED", "perhaps")], "").unwrap_err().to_string();
        assert_eq!(error, "MACHINIST_ALLOW_UNSIGNED: \"perhaps\" is neither true nor false");
    }

    #[test]
    fn keys_are_shown_without_what_is_secret() {
        let file = "[[keys]]\nid = \"a\"\nsecret = \"Z2VoZWltZ2VoZWlt\"\n[[keys]]\nid = \"b\"\nalg = \"ed25519\"\n\
                    file = \"b.key\"\nstate = \"verify\"\ntasks = [\"mail.*\", \"add\"]\n";
        let settings = resolve(Overrides::default(), &[], file).unwrap();
        let entries = settings.entries();
        let rows: Vec<String> = entries.iter().filter(|entry| entry.key == "keys").map(shown_entry).collect();
        assert_eq!(
            rows,
            [
                "keys=a: secret *** (conf/machinist.toml:1)",
                "keys=b: ed25519, file conf/b.key, verify, tasks mail.* add (conf/machinist.toml:4)",
            ]
        );
        assert!(!format!("{settings:?}").contains("Z2Vo"), "{settings:?}");
    }

    #[test]
    fn the_queues_of_tasks_are_consumed_unless_somebody_says_otherwise() {
        let file = "[tasks.resize]\ncommand = [\"true\"]\nqueue = \"images\"\n";
        let settings = resolve(Overrides::default(), &[], file).unwrap();
        assert_eq!(text::join(&settings.worker.queues.value), "default, images");
        let settings = resolve(Overrides::default(), &[("MACHINIST_QUEUES", "a, b")], file).unwrap();
        assert_eq!(text::join(&settings.worker.queues.value), "a, b");
    }

    #[test]
    fn a_relative_file_belongs_to_the_folder_of_its_configuration() {
        let settings = resolve(Overrides::default(), &[], "broker = \"sqlite://x.db\"").unwrap();
        assert_eq!(settings.broker.value.to_string(), "sqlite://conf/x.db");
    }

    #[test]
    fn a_file_that_was_named_has_to_exist() {
        let flags = Overrides { config: Some("/nowhere/m.toml".into()), ..Overrides::default() };
        let error = Settings::load(flags).unwrap_err();
        assert_eq!(error.to_string(), "--config: cannot read /nowhere/m.toml");
    }
}
