//! Table of settings: name, flag, variable, default, syntax and meaning of each, in one place.
//!
//! Resolving, `machinist config`, the table in the documentation of [`settings`](super) and the help of the
//! command line all read it. Its order is the order in which settings are listed.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use machinist_core::{
    BufferLimits, QueuePattern, event_stream::PublishedEvents, sign::shown_path, worker::Tag,
};
use toml::de::DeValue;

use super::{Topology, TraceLink, buffer, parse_duration, show_duration, text, value};

/// Description of one setting, for documentation and help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingInfo {
    /// Key in `machinist.toml`, with its section: `worker.concurrency`. Empty for the file itself.
    pub name: &'static str,
    /// Flag of the command line, if there is one.
    pub flag: Option<&'static str>,
    /// Environment variable, if there is one.
    pub variable: Option<&'static str>,
    /// Value in force if nothing sets it.
    pub default: SettingDefault,
    /// Meaning, in one line.
    pub meaning: &'static str,
}

/// Default of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettingDefault {
    /// A value, as a user would write it.
    Value(&'static str),
    /// A default that depends on other settings or on the system, in words.
    Described(&'static str),
    /// No value.
    Nothing,
}

impl SettingInfo {
    /// Help of the setting's flag: meaning, default and variable.
    pub fn help(&self) -> String {
        let default = match self.default {
            // A switch is off unless it is given, as everywhere.
            SettingDefault::Value("false") | SettingDefault::Nothing => String::new(),
            SettingDefault::Value(text) | SettingDefault::Described(text) => format!(" [default: {text}]"),
        };
        let variable = self.variable.map(|name| format!(" [{name}]")).unwrap_or_default();
        format!("{}{default}{variable}", self.meaning)
    }
}

/// A setting and its syntax.
pub(super) struct Definition<T> {
    pub(super) info: SettingInfo,
    /// Reads the text of a flag, a variable or the default.
    pub(super) parse: fn(&str) -> Result<T, String>,
    /// Reads the value in `machinist.toml`; relative paths start at the file's folder.
    pub(super) read: fn(&DeValue<'_>, &Path) -> Result<T, String>,
    /// Writes the value as `machinist config` shows it.
    pub(super) show: fn(&T) -> String,
}

impl<T> Definition<T> {
    /// Key within its section: `concurrency` of `worker.concurrency`.
    pub(super) fn key(&self) -> &'static str {
        self.info.name.rsplit_once('.').map_or(self.info.name, |(_, key)| key)
    }
}

/// Returns all settings but command tasks (`[tasks.NAME]`), in the order in which they are listed. The last one is the
/// file itself.
pub fn setting_infos() -> impl Iterator<Item = &'static SettingInfo> {
    TABLE.iter().copied()
}

/// Returns the setting of a flag, given as `--name`.
pub fn setting_of_flag(flag: &str) -> Option<&'static SettingInfo> {
    setting_infos().find(|info| info.flag == Some(flag))
}

/// Section of the application.
pub(super) const APP: &str = "app";

/// Returns the keys of a section, `worker`, in the order in which they are listed.
pub(super) fn keys_of_section(section: &str) -> Vec<&'static str> {
    let key = |info: &SettingInfo| info.name.strip_prefix(section)?.strip_prefix('.');
    setting_infos().filter_map(key).collect()
}

/// Returns the keys and sections at the top of the file, in the order in which they are listed.
pub(super) fn top_keys() -> Vec<&'static str> {
    let heads = setting_infos().filter(|info| !info.name.is_empty());
    let mut keys: Vec<_> = heads.filter_map(|info| info.name.split('.').next()).collect();
    keys.dedup();
    keys.extend(["tasks", "queues", "periodic", APP]);
    keys
}

static TABLE: [&SettingInfo; 47] = [
    &BROKER,
    &BROKER_FILE.info,
    &BACKEND,
    &BACKEND_FILE.info,
    &NAMESPACE.info,
    &RESULTS_TTL.info,
    &FRESHNESS.info,
    &KEY_FILE.info,
    &KEYS,
    &ALLOW_UNSIGNED.info,
    &INSECURE_PLAINTEXT.info,
    &TOPOLOGY.info,
    &EVENTS.info,
    &TLS_CA_FILE.info,
    &TLS_CERT_FILE.info,
    &TLS_KEY_FILE.info,
    &WORKER_NAME.info,
    &TAGS.info,
    &QUEUES.info,
    &STRICT.info,
    &SLEEP,
    &CONCURRENCY.info,
    &LOOK_AHEAD.info,
    &KEEP_ARGS.info,
    &GRACE.info,
    &CONSUMER_TIMEOUT.info,
    &RESTART_EXIT_CODE.info,
    &MAX_TASKS.info,
    &MAX_MEMORY.info,
    &METRICS_TOKEN_FILE.info,
    &BUFFER.info,
    &TRACE_LINK.info,
    &WEB_LISTEN.info,
    &WEB_NAME.info,
    &WEB_READ_ONLY.info,
    &WEB_PASSWORD_FILE.info,
    &WEB_TOKEN_FILE.info,
    &WEB_PROXY_HEADER.info,
    &WEB_PROXY_ADDRESSES.info,
    &WEB_PROXY_ROLE.info,
    &BODY_SIZE.info,
    &HEADERS_SIZE.info,
    &ARGUMENT_COUNT.info,
    &NESTING_DEPTH.info,
    &RESULT_SIZE.info,
    &ERROR_SIZE.info,
    &CONFIG_FILE,
];

/// Its value is read by the connectors.
pub(super) static BROKER: SettingInfo = SettingInfo {
    name: "broker",
    flag: Some("--broker"),
    variable: Some("MACHINIST_BROKER"),
    default: SettingDefault::Value("sqlite://machinist.db"),
    meaning: "URL of the broker, which moves messages: amqp://, amqps://, postgres://, sqlite://FILE; several of a cluster's nodes, \
              separated by commas, or as a list in the file",
};

/// Its value is read by the connectors.
pub(super) static BACKEND: SettingInfo = SettingInfo {
    name: "backend",
    flag: Some("--backend"),
    variable: Some("MACHINIST_BACKEND"),
    default: SettingDefault::Value("sqlite://machinist.db"),
    meaning: "URL of the backend, which stores states and results: redis://, rediss://, redis+sentinel://, \
              redis+cluster://, redis+unix://, postgres://, sqlite://FILE",
};

pub(super) static BROKER_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "broker_file",
    flag: Some("--broker-file"),
    variable: Some("MACHINIST_BROKER_FILE"),
    default: SettingDefault::Nothing,
    meaning: "File that holds the broker's URL, for a URL with a password: every user of a host can read the flags of a \
              process",
});

pub(super) static BACKEND_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "backend_file",
    flag: Some("--backend-file"),
    variable: Some("MACHINIST_BACKEND_FILE"),
    default: SettingDefault::Nothing,
    meaning: "File that holds the backend's URL, for a URL with a password",
});

pub(super) static NAMESPACE: Definition<String> = Definition {
    info: SettingInfo {
        name: "namespace",
        flag: Some("--namespace"),
        variable: Some("MACHINIST_NAMESPACE"),
        default: SettingDefault::Value("machinist"),
        meaning: "Prefix of exchange, queues and keys, for applications that share servers",
    },
    parse: text::namespace,
    read: |value, _| text::namespace(value::string(value, "a name")?),
    show: String::clone,
};

pub(super) static RESULTS_TTL: Definition<Duration> = duration(SettingInfo {
    name: "results_ttl",
    flag: None,
    variable: Some("MACHINIST_RESULTS_TTL"),
    default: SettingDefault::Value("1d"),
    meaning: "Time for which a record is kept after its task has ended",
});

pub(super) static FRESHNESS: Definition<Duration> = Definition {
    parse: |text| text::positive(parse_duration(text)?),
    read: |value, _| value::positive_duration(value),
    ..duration(SettingInfo {
        name: "freshness",
        flag: None,
        variable: None,
        default: SettingDefault::Described("any age; old messages are recognized by their records"),
        meaning: "Maximum age of a message, counted from its signature or, if that is later, its ETA",
    })
};

pub(super) static KEY_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "key_file",
    flag: Some("--key-file"),
    variable: Some("MACHINIST_KEY_FILE"),
    default: SettingDefault::Described("next to an sqlite:// broker's file: machinist.db.key"),
    meaning: "File of the key that signs tasks and results; `machinist keygen` makes one",
});

static KEYS: SettingInfo = SettingInfo {
    name: "keys",
    flag: None,
    variable: None,
    default: SettingDefault::Nothing,
    meaning: "Further keys of the key ring, each under a line [[keys]]",
};

pub(super) static ALLOW_UNSIGNED: Definition<bool> = switch(SettingInfo {
    name: "allow_unsigned",
    flag: Some("--allow-unsigned"),
    variable: Some("MACHINIST_ALLOW_UNSIGNED"),
    default: SettingDefault::Value("false"),
    meaning: "Need no key and run unsigned tasks: anyone who can publish to a queue can then run every task of its \
              workers",
});

pub(super) static INSECURE_PLAINTEXT: Definition<bool> = switch(SettingInfo {
    name: "insecure_plaintext",
    flag: Some("--insecure-plaintext"),
    variable: Some("MACHINIST_INSECURE_PLAINTEXT"),
    default: SettingDefault::Value("false"),
    meaning: "Send passwords to other hosts without TLS",
});

pub(super) static TOPOLOGY: Definition<Topology> = Definition {
    info: SettingInfo {
        name: "topology",
        flag: None,
        variable: Some("MACHINIST_TOPOLOGY"),
        default: SettingDefault::Value("declare"),
        meaning: "declare creates missing exchanges and queues of RabbitMQ, and the schema in PostgreSQL; verify only checks them",
    },
    parse: text::topology,
    read: |value, _| text::topology(value::string(value, "declare or verify")?),
    show: |topology| topology.as_str().to_owned(),
};

pub(super) static EVENTS: Definition<PublishedEvents> = Definition {
    info: SettingInfo {
        name: "events",
        flag: None,
        variable: Some("MACHINIST_EVENTS"),
        default: SettingDefault::Value("failures"),
        meaning: "Events that processes publish for `machinist events`: all, failures or off",
    },
    parse: text::events,
    read: |value, _| text::events(value::string(value, "all, failures or off")?),
    show: PublishedEvents::to_string,
};

pub(super) static TLS_CA_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "tls.ca_file",
    flag: Some("--tls-ca-file"),
    variable: Some("MACHINIST_TLS_CA_FILE"),
    default: SettingDefault::Described("the system's certificates"),
    meaning: "Certificates to trust on amqps:// and rediss://, in PEM",
});

pub(super) static TLS_CERT_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "tls.cert_file",
    flag: Some("--tls-cert-file"),
    variable: Some("MACHINIST_TLS_CERT_FILE"),
    default: SettingDefault::Nothing,
    meaning: "Client certificate, for servers that ask for one, in PEM",
});

pub(super) static TLS_KEY_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "tls.key_file",
    flag: Some("--tls-key-file"),
    variable: Some("MACHINIST_TLS_KEY_FILE"),
    default: SettingDefault::Nothing,
    meaning: "Private key of the client certificate, in PEM",
});

pub(super) static WORKER_NAME: Definition<String> = Definition {
    info: SettingInfo {
        name: "worker.name",
        flag: Some("--name"),
        variable: Some("MACHINIST_WORKER_NAME"),
        default: SettingDefault::Described("host name"),
        meaning: "Name of the worker in records and listings",
    },
    parse: text::worker_name,
    read: |value, _| text::worker_name(value::string(value, "a name")?),
    show: String::clone,
};

pub(super) static TAGS: Definition<Vec<Tag>> = Definition {
    info: SettingInfo {
        name: "worker.tags",
        flag: Some("--tag"),
        variable: Some("MACHINIST_TAGS"),
        default: SettingDefault::Nothing,
        meaning: "Word about the worker, like gpu or zone:eu, at most 16; the flag can be repeated, the variable \
                  separates tags by commas",
    },
    parse: text::tags,
    read: |value, _| value::tags(value),
    show: |tags| text::join(tags),
};

pub(super) static LOOK_AHEAD: Definition<usize> = Definition {
    info: SettingInfo {
        name: "worker.look_ahead",
        flag: Some("--look-ahead"),
        variable: Some("MACHINIST_LOOK_AHEAD"),
        default: SettingDefault::Described("the concurrency, at least 16"),
        meaning: "Maximum number of tasks to hold in addition to those that run, 0 to 10000. A worker \
                  holds them only while its tasks are short",
    },
    parse: text::look_ahead,
    read: |value, _| value::look_ahead(value),
    show: usize::to_string,
};

pub(super) static KEEP_ARGS: Definition<bool> = switch(SettingInfo {
    name: "worker.keep_args",
    flag: None,
    variable: Some("MACHINIST_KEEP_ARGS"),
    default: SettingDefault::Value("false"),
    meaning: "Keep the arguments of every task in its record, for people. Delayed and failed tasks always keep them",
});

pub(super) static QUEUES: Definition<Vec<QueuePattern>> = Definition {
    info: SettingInfo {
        name: "worker.queues",
        flag: Some("--queue"),
        variable: Some("MACHINIST_QUEUES"),
        default: SettingDefault::Described("default, and the queues of command tasks and task definitions"),
        meaning: "Queue to consume, or a pattern like tenant-* for all that are called so; the flag can be repeated, the \
                  variable separates queues by commas, and the file may give weights",
    },
    parse: text::queues,
    read: |value, _| value::queues(value),
    show: |names| text::join(names),
};

pub(super) static STRICT: Definition<bool> = switch(SettingInfo {
    name: "worker.strict",
    flag: None,
    variable: None,
    default: SettingDefault::Value("false"),
    meaning: "Start the tasks of a queue only while no queue of a larger weight has tasks that wait",
});

static SLEEP: SettingInfo = SettingInfo {
    name: "worker.sleep",
    flag: None,
    variable: None,
    default: SettingDefault::Nothing,
    meaning: "Hours in which the worker takes no tasks, as a list like [{ days = \"mon-fri\", from = \"22:00\", to = \"06:00\", \
              time_zone = \"Europe/Berlin\" }]",
};

pub(super) static CONCURRENCY: Definition<usize> = Definition {
    info: SettingInfo {
        name: "worker.concurrency",
        flag: Some("--concurrency"),
        variable: Some("MACHINIST_CONCURRENCY"),
        default: SettingDefault::Value("16"),
        meaning: "Number of tasks to run at once, 1 to 10000",
    },
    parse: text::concurrency,
    read: |value, _| value::concurrency(value),
    show: usize::to_string,
};

pub(super) static RESTART_EXIT_CODE: Definition<u8> = Definition {
    info: SettingInfo {
        name: "worker.restart_exit_code",
        flag: None,
        variable: Some("MACHINIST_RESTART_EXIT_CODE"),
        default: SettingDefault::Nothing,
        meaning: "Exit code at which the supervisor of the worker starts it again, 1 to 255; without it \
                  `workers restart` is refused",
    },
    parse: text::exit_code,
    read: |value, _| value::exit_code(value),
    show: u8::to_string,
};

pub(super) static MAX_TASKS: Definition<usize> = Definition {
    info: SettingInfo {
        name: "worker.max_tasks",
        flag: None,
        variable: Some("MACHINIST_MAX_TASKS"),
        default: SettingDefault::Nothing,
        meaning: "Number of ended tasks after which the worker ends with `restart_exit_code`, to be started again",
    },
    parse: |text| text::allows_tasks(text::parse_count(text)?),
    read: |value, _| value::count(value),
    show: usize::to_string,
};

pub(super) static MAX_MEMORY: Definition<usize> = Definition {
    info: SettingInfo {
        name: "worker.max_memory",
        flag: None,
        variable: Some("MACHINIST_MAX_MEMORY"),
        default: SettingDefault::Nothing,
        meaning: "Memory of the process, like 512MiB, at which the worker ends with `restart_exit_code`, to be \
                  started again",
    },
    parse: |text| text::allows_tasks(text::parse_size(text)?),
    read: |value, _| value::size(value),
    show: |bytes| text::show_size(*bytes),
};
pub(super) static METRICS_TOKEN_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "worker.metrics_token_file",
    flag: None,
    variable: Some("MACHINIST_METRICS_TOKEN_FILE"),
    default: SettingDefault::Nothing,
    meaning: "File with the bearer token that `/metrics` requires; without it everybody who reaches the address may read",
});

pub(super) static TRACE_LINK: Definition<TraceLink> = Definition {
    info: SettingInfo {
        name: "links.trace",
        flag: None,
        variable: Some("MACHINIST_TRACE_LINK"),
        default: SettingDefault::Nothing,
        meaning: "Link to the trace of a task that status prints, with {trace_id}, {id}, {task} and {queue}",
    },
    parse: TraceLink::parse,
    read: |value, _| TraceLink::parse(value::string(value, "a link")?),
    show: TraceLink::to_string,
};

pub(super) static BUFFER: Definition<BufferLimits> = Definition {
    info: SettingInfo {
        name: "client.buffer",
        flag: None,
        variable: None,
        default: SettingDefault::Described("10,000 tasks with 64 MiB, for 30 s"),
        meaning: "Bounds of the tasks that `Client::send_buffered` keeps in memory, like { tasks = 10000, bytes = \"64MiB\", \
                  for = \"30s\" }",
    },
    parse: |_| Err("it stands in the file alone".to_owned()),
    read: |value, _| buffer::read(value),
    show: buffer::show,
};

pub(super) static WEB_LISTEN: Definition<SocketAddr> = Definition {
    info: SettingInfo {
        name: "web.listen",
        flag: Some("--listen"),
        variable: Some("MACHINIST_WEB_LISTEN"),
        default: SettingDefault::Value("127.0.0.1:8780"),
        meaning: "Address at which the dashboard listens; one that is not of this host alone needs a way to log in",
    },
    parse: text::address,
    read: |value, _| text::address(value::string(value, "an address like \"127.0.0.1:8780\"")?),
    show: SocketAddr::to_string,
};

pub(super) static WEB_NAME: Definition<String> = Definition {
    info: SettingInfo {
        name: "web.name",
        flag: None,
        variable: Some("MACHINIST_WEB_NAME"),
        default: SettingDefault::Nothing,
        meaning: "Name of the installation, on every page of the dashboard",
    },
    parse: |text| Ok(text.to_owned()),
    read: |value, _| Ok(value::string(value, "a name")?.to_owned()),
    show: String::clone,
};

pub(super) static WEB_READ_ONLY: Definition<bool> = switch(SettingInfo {
    name: "web.read_only",
    flag: Some("--read-only"),
    variable: Some("MACHINIST_WEB_READ_ONLY"),
    default: SettingDefault::Value("false"),
    meaning: "Let nobody change anything in the dashboard; it then needs no key",
});

pub(super) static WEB_PASSWORD_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "web.password_file",
    flag: None,
    variable: Some("MACHINIST_WEB_PASSWORD_FILE"),
    default: SettingDefault::Nothing,
    meaning: "File of the people who may use the dashboard, with lines that `machinist web user NAME` prints",
});

pub(super) static WEB_TOKEN_FILE: Definition<PathBuf> = path(SettingInfo {
    name: "web.token_file",
    flag: None,
    variable: Some("MACHINIST_WEB_TOKEN_FILE"),
    default: SettingDefault::Nothing,
    meaning: "File of the programs that may use the API of the dashboard, with lines of the form NAME:ROLE:TOKEN",
});

pub(super) static WEB_PROXY_HEADER: Definition<String> = Definition {
    info: SettingInfo {
        name: "web.proxy_header",
        flag: None,
        variable: Some("MACHINIST_WEB_PROXY_HEADER"),
        default: SettingDefault::Nothing,
        meaning: "Header in which a proxy names the user whom it has logged in, such as X-Forwarded-User",
    },
    parse: |text| Ok(text.to_owned()),
    read: |value, _| Ok(value::string(value, "the name of a header")?.to_owned()),
    show: String::clone,
};

pub(super) static WEB_PROXY_ADDRESSES: Definition<Vec<IpAddr>> = Definition {
    info: SettingInfo {
        name: "web.proxy_addresses",
        flag: None,
        variable: Some("MACHINIST_WEB_PROXY_ADDRESSES"),
        default: SettingDefault::Nothing,
        meaning: "Addresses of the proxy whose header is believed; the variable separates them by commas",
    },
    parse: text::ip_addresses,
    read: |value, _| {
        let list = value::strings(value, "a list like [\"10.0.0.1\"]")?;
        text::ip_addresses(&list.join(","))
    },
    show: |addresses| text::join(addresses),
};

pub(super) static WEB_PROXY_ROLE: Definition<String> = Definition {
    info: SettingInfo {
        name: "web.proxy_role",
        flag: None,
        variable: Some("MACHINIST_WEB_PROXY_ROLE"),
        default: SettingDefault::Value("viewer"),
        meaning: "Role of those whom a proxy has logged in: viewer, operator or admin",
    },
    parse: text::role,
    read: |value, _| text::role(value::string(value, "viewer, operator or admin")?),
    show: String::clone,
};

pub(super) static GRACE: Definition<Duration> = duration(SettingInfo {
    name: "worker.grace",
    flag: Some("--grace"),
    variable: Some("MACHINIST_GRACE"),
    default: SettingDefault::Value("20s"),
    meaning: "Time that running tasks get to end when the worker is told to stop",
});

pub(super) static CONSUMER_TIMEOUT: Definition<Duration> = Definition {
    parse: text::consumer_timeout,
    read: |value, _| text::consumer_timeout(value::duration_text(value)?),
    ..duration(SettingInfo {
        name: "worker.consumer_timeout",
        flag: None,
        variable: Some("MACHINIST_CONSUMER_TIMEOUT"),
        default: SettingDefault::Value("30m"),
        meaning: "Time for which RabbitMQ lets a worker hold a delivery (its consumer_timeout), at least 1s",
    })
};

pub(super) static BODY_SIZE: Definition<usize> =
    size("sizes.body", "1MiB", "Maximum size of a message's body");
pub(super) static HEADERS_SIZE: Definition<usize> =
    size("sizes.headers", "16KiB", "Maximum size of a message's headers");
pub(super) static ARGUMENT_COUNT: Definition<usize> = Definition {
    parse: |text| text::allows_tasks(text::parse_count(text)?),
    read: |value, _| value::count(value),
    show: usize::to_string,
    ..size("sizes.args", "1024", "Maximum number of arguments")
};
pub(super) static NESTING_DEPTH: Definition<usize> = Definition {
    parse: |text| text::readable_depth(text::allows_tasks(text::parse_count(text)?)?),
    read: |value, _| value::depth(value),
    show: usize::to_string,
    ..size("sizes.depth", "100", "Maximum nesting of arguments and results, at most 100")
};
pub(super) static RESULT_SIZE: Definition<usize> =
    size("sizes.results", "1MiB", "Maximum size of a task's results");
pub(super) static ERROR_SIZE: Definition<usize> =
    size("sizes.errors", "64KiB", "Maximum size of a task's error");

static CONFIG_FILE: SettingInfo = SettingInfo {
    name: "",
    flag: Some("--config"),
    variable: Some("MACHINIST_CONFIG"),
    default: SettingDefault::Described("machinist.toml in the current folder, if there is one"),
    meaning: "File of settings",
};

const fn duration(info: SettingInfo) -> Definition<Duration> {
    Definition {
        info,
        parse: parse_duration,
        read: |value, _| value::duration(value),
        show: |duration| show_duration(*duration),
    }
}

const fn path(info: SettingInfo) -> Definition<PathBuf> {
    Definition {
        info,
        parse: |text| Ok(text.into()),
        read: |value, folder| Ok(folder.join(value::string(value, "the name of a file")?)),
        show: |path| shown_path(path),
    }
}

const fn switch(info: SettingInfo) -> Definition<bool> {
    Definition { info, parse: text::boolean, read: |value, _| value::boolean(value), show: bool::to_string }
}

/// A maximum size, which only the file sets.
const fn size(name: &'static str, default: &'static str, meaning: &'static str) -> Definition<usize> {
    Definition {
        info: SettingInfo {
            name,
            flag: None,
            variable: None,
            default: SettingDefault::Value(default),
            meaning,
        },
        parse: |text| text::allows_tasks(text::parse_size(text)?),
        read: |value, _| value::size(value),
        show: |bytes| text::show_size(*bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the module's documentation, as it has to be.
    fn rendered() -> String {
        let code = |text: Option<&str>| text.map(|text| format!("`{text}`")).unwrap_or_default();
        let mut lines = vec![
            "//! | key | flag | variable | default | meaning |".to_owned(),
            "//! |---|---|---|---|---|".to_owned(),
        ];
        for info in setting_infos() {
            let name = if info.name.is_empty() { "the file".to_owned() } else { format!("`{}`", info.name) };
            let default = match info.default {
                SettingDefault::Value(text) => format!("`{text}`"),
                SettingDefault::Described(text) => text.to_owned(),
                SettingDefault::Nothing => "none".to_owned(),
            };
            let flag = code(info.flag);
            let variable = code(info.variable);
            let meaning = info.meaning.replace("[[keys]]", "`[[keys]]`");
            lines.push(format!("//! | {name} | {flag} | {variable} | {default} | {meaning} |"));
        }
        lines.join("\n")
    }

    #[test]
    fn the_documentation_shows_the_table() {
        let documented: Vec<&str> =
            include_str!("mod.rs").lines().filter(|line| line.starts_with("//! |")).collect();
        let expected = rendered();
        assert!(documented.join("\n") == expected, "the table of settings/mod.rs has to be:\n{expected}");
    }

    #[test]
    fn a_name_a_flag_and_a_variable_belong_to_one_setting() {
        for (at, info) in TABLE.iter().enumerate() {
            for other in &TABLE[at + 1..] {
                assert_ne!(info.name, other.name);
                assert!(info.flag.is_none() || info.flag != other.flag, "{info:?}");
                assert!(info.variable.is_none() || info.variable != other.variable, "{info:?}");
            }
        }
    }

    #[test]
    fn help_names_default_and_variable() {
        assert_eq!(
            setting_of_flag("--grace").unwrap().help(),
            "Time that running tasks get to end when the worker is told to stop [default: 20s] [MACHINIST_GRACE]"
        );
        let switch = setting_of_flag("--insecure-plaintext").unwrap().help();
        assert_eq!(switch, "Send passwords to other hosts without TLS [MACHINIST_INSECURE_PLAINTEXT]");
    }
}
