//! `machinist.toml`: from text to values that know their line.
//!
//! The file is walked by hand instead of being deserialized. Only so can every error name the line, the column and
//! the expected value, and quote no line that may hold a password.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use machinist_core::{
    BufferLimits, QueuePattern,
    event_stream::PublishedEvents,
    periodic::Periodic,
    sign::{KeyConfig, KeyError, KeyId, KeyState, SecretText},
    worker::{SleepHours, Tag},
};
use toml::de::DeTable;

use super::{
    Setting, SettingInfo, SettingOrigin, SettingsError, TaskSettings, Topology, TraceLink,
    app_section::AppSection,
    limits, periodic,
    section::{OLD_SIZES, Section, TomlText},
    table::{self, APP},
    tasks, value,
};
use crate::{
    connector::Connectors,
    url::{Role, ServerUrl},
};

/// Values of a file; `None` and empty collections for what it does not mention.
#[derive(Debug, Default)]
pub(super) struct FileSettings {
    pub(super) broker: Option<Setting<ServerUrl>>,
    pub(super) broker_file: Option<Setting<PathBuf>>,
    pub(super) backend: Option<Setting<ServerUrl>>,
    pub(super) backend_file: Option<Setting<PathBuf>>,
    pub(super) namespace: Option<Setting<String>>,
    pub(super) results_ttl: Option<Setting<Duration>>,
    pub(super) freshness: Option<Setting<Duration>>,
    pub(super) key_file: Option<Setting<PathBuf>>,
    pub(super) keys: Vec<Setting<KeyConfig>>,
    pub(super) allow_unsigned: Option<Setting<bool>>,
    pub(super) insecure_plaintext: Option<Setting<bool>>,
    pub(super) topology: Option<Setting<Topology>>,
    pub(super) events: Option<Setting<PublishedEvents>>,
    pub(super) tls: FileTls,
    pub(super) worker: FileWorker,
    pub(super) trace_link: Option<Setting<TraceLink>>,
    pub(super) buffer: Option<Setting<BufferLimits>>,
    pub(super) web: FileWeb,
    pub(super) sizes: FileSizes,
    /// Place of the section `[limits]`, the old name of `[sizes]`.
    pub(super) old_sizes: Option<SettingOrigin>,
    pub(super) tasks: BTreeMap<String, TaskSettings>,
    pub(super) periodic: BTreeMap<String, Setting<Periodic>>,
    pub(super) app: Option<AppSection>,
    pub(super) queues: limits::FileQueues,
}

/// Values of `[tls]`.
#[derive(Debug, Default)]
pub(super) struct FileTls {
    pub(super) ca_file: Option<Setting<PathBuf>>,
    pub(super) cert_file: Option<Setting<PathBuf>>,
    pub(super) key_file: Option<Setting<PathBuf>>,
}

/// Values of `[worker]`.
#[derive(Debug, Default)]
pub(super) struct FileWorker {
    pub(super) name: Option<Setting<String>>,
    pub(super) tags: Option<Setting<Vec<Tag>>>,
    pub(super) look_ahead: Option<Setting<usize>>,
    pub(super) keep_args: Option<Setting<bool>>,
    pub(super) queues: Option<Setting<Vec<QueuePattern>>>,
    pub(super) weights: Option<Setting<BTreeMap<QueuePattern, u32>>>,
    pub(super) strict: Option<Setting<bool>>,
    pub(super) sleep: Vec<Setting<SleepHours>>,
    pub(super) concurrency: Option<Setting<usize>>,
    pub(super) grace: Option<Setting<Duration>>,
    pub(super) consumer_timeout: Option<Setting<Duration>>,
    pub(super) restart_exit_code: Option<Setting<u8>>,
    pub(super) max_tasks: Option<Setting<usize>>,
    pub(super) max_memory: Option<Setting<usize>>,
    pub(super) metrics_token_file: Option<Setting<PathBuf>>,
}

/// Values of `[web]`.
#[derive(Debug, Default)]
pub(super) struct FileWeb {
    pub(super) listen: Option<Setting<SocketAddr>>,
    pub(super) name: Option<Setting<String>>,
    pub(super) read_only: Option<Setting<bool>>,
    pub(super) password_file: Option<Setting<PathBuf>>,
    pub(super) token_file: Option<Setting<PathBuf>>,
    pub(super) proxy_header: Option<Setting<String>>,
    pub(super) proxy_addresses: Option<Setting<Vec<IpAddr>>>,
    pub(super) proxy_role: Option<Setting<String>>,
}

/// Values of `[sizes]`.
#[derive(Debug, Default)]
pub(super) struct FileSizes {
    pub(super) body: Option<Setting<usize>>,
    pub(super) headers: Option<Setting<usize>>,
    pub(super) args: Option<Setting<usize>>,
    pub(super) depth: Option<Setting<usize>>,
    pub(super) results: Option<Setting<usize>>,
    pub(super) errors: Option<Setting<usize>>,
}

const TLS: &str = "tls";
const WORKER: &str = "worker";
const CLIENT: &str = "client";
const LINKS: &str = "links";
const WEB: &str = "web";
const SIZES: &str = "sizes";
/// Keys of a key, under `[[keys]]`.
const KEY_KEYS: [&str; 12] = [
    "id",
    "alg",
    "secret",
    "public",
    "file",
    "env",
    "state",
    "not_before",
    "not_after",
    "tasks",
    "queues",
    "control",
];
/// Reads the text of a file; relative paths in it start at the file's folder.
pub(super) fn read(path: &Path, text: &str, connectors: &Connectors) -> Result<FileSettings, SettingsError> {
    let source = TomlText { path, text };
    let document = DeTable::parse(text)
        .map_err(|error| source.error(error.span().unwrap_or(0..0), error.message().to_owned()))?;
    let top = Section::top(source, document.get_ref())?;
    let tasks = tasks::read(&top)?;
    let old_sizes = top.section(OLD_SIZES, &table::keys_of_section(SIZES))?;
    Ok(FileSettings {
        broker: read_url(&top, &table::BROKER, Role::Broker, connectors)?,
        broker_file: top.setting(&table::BROKER_FILE)?,
        backend: read_url(&top, &table::BACKEND, Role::Backend, connectors)?,
        backend_file: top.setting(&table::BACKEND_FILE)?,
        namespace: top.setting(&table::NAMESPACE)?,
        results_ttl: top.setting(&table::RESULTS_TTL)?,
        freshness: top.setting(&table::FRESHNESS)?,
        key_file: top.setting(&table::KEY_FILE)?,
        allow_unsigned: top.setting(&table::ALLOW_UNSIGNED)?,
        insecure_plaintext: top.setting(&table::INSECURE_PLAINTEXT)?,
        topology: top.setting(&table::TOPOLOGY)?,
        events: top.setting(&table::EVENTS)?,
        tls: read_tls(&top)?,
        worker: read_worker(&top)?,
        trace_link: read_links(&top)?,
        buffer: read_client(&top)?,
        web: read_web(&top)?,
        old_sizes: old_sizes.as_ref().map(Section::origin),
        sizes: read_sizes(&top, old_sizes)?,
        keys: read_keys(&top)?,
        periodic: periodic::read(&top, &tasks)?,
        app: top.has_table(APP)?.then(|| AppSection::new(path, text)),
        queues: limits::read_queues(&top, connectors)?,
        tasks,
    })
}

fn read_url(
    top: &Section<'_>,
    info: &SettingInfo,
    role: Role,
    connectors: &Connectors,
) -> Result<Option<Setting<ServerUrl>>, SettingsError> {
    let folder = top.source.folder();
    top.get(info.name, |v| {
        let urls = match role {
            Role::Broker => value::urls(v)?,
            Role::Backend => vec![value::string(v, "a URL")?.to_owned()],
        };
        for url in &urls {
            connectors.url(url, role)?;
        }
        Ok(connectors.url(&urls.join(","), role)?.relative_to(folder))
    })
}

fn read_tls(top: &Section<'_>) -> Result<FileTls, SettingsError> {
    let Some(tls) = top.section(TLS, &table::keys_of_section(TLS))? else { return Ok(FileTls::default()) };
    Ok(FileTls {
        ca_file: tls.setting(&table::TLS_CA_FILE)?,
        cert_file: tls.setting(&table::TLS_CERT_FILE)?,
        key_file: tls.setting(&table::TLS_KEY_FILE)?,
    })
}

fn read_links(top: &Section<'_>) -> Result<Option<Setting<TraceLink>>, SettingsError> {
    let links = top.section(LINKS, &table::keys_of_section(LINKS))?;
    links.map_or(Ok(None), |links| links.setting(&table::TRACE_LINK))
}

fn read_client(top: &Section<'_>) -> Result<Option<Setting<BufferLimits>>, SettingsError> {
    let client = top.section(CLIENT, &table::keys_of_section(CLIENT))?;
    client.map_or(Ok(None), |client| client.setting(&table::BUFFER))
}

fn read_web(top: &Section<'_>) -> Result<FileWeb, SettingsError> {
    let Some(web) = top.section(WEB, &table::keys_of_section(WEB))? else { return Ok(FileWeb::default()) };
    Ok(FileWeb {
        listen: web.setting(&table::WEB_LISTEN)?,
        name: web.setting(&table::WEB_NAME)?,
        read_only: web.setting(&table::WEB_READ_ONLY)?,
        password_file: web.setting(&table::WEB_PASSWORD_FILE)?,
        token_file: web.setting(&table::WEB_TOKEN_FILE)?,
        proxy_header: web.setting(&table::WEB_PROXY_HEADER)?,
        proxy_addresses: web.setting(&table::WEB_PROXY_ADDRESSES)?,
        proxy_role: web.setting(&table::WEB_PROXY_ROLE)?,
    })
}

fn read_worker(top: &Section<'_>) -> Result<FileWorker, SettingsError> {
    let Some(worker) = top.section(WORKER, &table::keys_of_section(WORKER))? else {
        return Ok(FileWorker::default());
    };
    Ok(FileWorker {
        name: worker.setting(&table::WORKER_NAME)?,
        tags: worker.setting(&table::TAGS)?,
        look_ahead: worker.setting(&table::LOOK_AHEAD)?,
        keep_args: worker.setting(&table::KEEP_ARGS)?,
        queues: worker.setting(&table::QUEUES)?,
        weights: worker.get("queues", value::queue_weights)?.filter(|weights| !weights.value.is_empty()),
        strict: worker.setting(&table::STRICT)?,
        sleep: read_sleep(&worker)?,
        concurrency: worker.setting(&table::CONCURRENCY)?,
        grace: worker.setting(&table::GRACE)?,
        consumer_timeout: worker.setting(&table::CONSUMER_TIMEOUT)?,
        restart_exit_code: worker.setting(&table::RESTART_EXIT_CODE)?,
        max_tasks: worker.setting(&table::MAX_TASKS)?,
        max_memory: worker.setting(&table::MAX_MEMORY)?,
        metrics_token_file: worker.setting(&table::METRICS_TOKEN_FILE)?,
    })
}

/// Reads the hours in which a worker sleeps. Without days, they are those of every day; without a time zone, of UTC.
fn read_sleep(worker: &Section<'_>) -> Result<Vec<Setting<SleepHours>>, SettingsError> {
    let sections = worker.list("sleep", &["days", "from", "to", "time_zone"])?;
    let read = |section: &Section<'_>| {
        let text =
            |key: &str, expected: &str| section.value(key, |v| value::string(v, expected).map(str::to_owned));
        let (from, to) = (text("from", "a time like \"22:00\"")?, text("to", "a time like \"06:00\"")?);
        let (Some(from), Some(to)) = (from, to) else {
            return Err(section.error("needs from and to, like from = \"22:00\", to = \"06:00\""));
        };
        let days = text("days", "days like \"mon-fri\"")?.unwrap_or_else(|| "mon-sun".to_owned());
        let zone =
            text("time_zone", "a time zone like \"Europe/Berlin\"")?.unwrap_or_else(|| "UTC".to_owned());
        let hours = SleepHours::new(&days, &from, &to, &zone)
            .map_err(|wrong| section.error(&format!("is wrong: {wrong}")))?;
        Ok(Setting::new(hours, section.origin()))
    };
    sections.iter().map(read).collect()
}

/// Reads `[sizes]`, or the same section under its old name.
fn read_sizes(top: &Section<'_>, old: Option<Section<'_>>) -> Result<FileSizes, SettingsError> {
    let sizes = match (top.section(SIZES, &table::keys_of_section(SIZES))?, old) {
        (Some(_), Some(old)) => {
            return Err(old.error("is the old name of [sizes], and both are given; keep [sizes]"));
        }
        (Some(sizes), None) | (None, Some(sizes)) => sizes,
        (None, None) => return Ok(FileSizes::default()),
    };
    Ok(FileSizes {
        body: sizes.setting(&table::BODY_SIZE)?,
        headers: sizes.setting(&table::HEADERS_SIZE)?,
        args: sizes.setting(&table::ARGUMENT_COUNT)?,
        depth: sizes.setting(&table::NESTING_DEPTH)?,
        results: sizes.setting(&table::RESULT_SIZE)?,
        errors: sizes.setting(&table::ERROR_SIZE)?,
    })
}

fn read_keys(top: &Section<'_>) -> Result<Vec<Setting<KeyConfig>>, SettingsError> {
    let sections = top.list("keys", &KEY_KEYS)?;
    sections.iter().map(|section| Ok(Setting::new(read_key(section)?, section.origin()))).collect()
}

/// Reads the syntax of a key. The key ring checks that its parts fit together.
fn read_key(section: &Section<'_>) -> Result<KeyConfig, SettingsError> {
    let folder = section.source.folder();
    let id = section
        .value("id", |v| KeyId::parse(value::string(v, "a key's name")?).map_err(|e| e.to_string()))?;
    let alg = section.value("alg", |v| {
        value::string(v, "`hmac-sha256` or `ed25519`")?.parse().map_err(|e: KeyError| e.to_string())
    })?;
    let secret = section.value("secret", |v| match v.as_str() {
        Some(text) => Ok(SecretText::new(text.to_owned())),
        // A value of another type may be the secret too, so it is not quoted.
        None => Err("expected base64 in quotes".to_owned()),
    })?;
    let state = section.value("state", |v| match v.as_str() {
        Some("active") => Ok(KeyState::Active),
        Some("verify") => Ok(KeyState::Verify),
        Some("revoked") => Ok(KeyState::Revoked),
        _ => Err("expected \"active\", \"verify\" or \"revoked\"".to_owned()),
    })?;
    // No error repeats a value: each can be the secret, in the wrong field.
    let text = |key: &str, expected: &str| {
        section.value(key, |v| {
            v.as_str().map(str::to_owned).ok_or_else(|| format!("expected {expected} in quotes"))
        })
    };
    let instant = |key: &str| {
        section.value(key, |v| {
            value::instant(v)
                .map_err(|_| "expected a time with its offset, like 2026-11-20T00:00:00Z".to_owned())
        })
    };
    let list = |key: &str, expected: &str| {
        section.value(key, |v| value::strings(v, expected).map_err(|_| format!("expected {expected}")))
    };
    let mut config = KeyConfig::default();
    config.id = id;
    config.alg = alg;
    config.secret = secret;
    config.public = text("public", "base64")?;
    config.file = text("file", "the name of a file")?.map(|file| folder.join(file));
    config.env = text("env", "the name of a variable")?;
    config.state = state;
    config.not_before = instant("not_before")?;
    config.not_after = instant("not_after")?;
    config.tasks = list("tasks", "a list like [\"mail.*\"]")?;
    config.queues = list("queues", "a list like [\"mail\"]")?;
    config.control =
        section.value("control", |v| value::boolean(v).map_err(|_| "expected true or false".to_owned()))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read_file("machinist.toml", text).unwrap_err().to_string()
    }

    fn read_file(path: &str, text: &str) -> Result<FileSettings, SettingsError> {
        read(Path::new(path), text, &Connectors::default())
    }

    #[test]
    fn a_whole_file_is_read() {
        let file = read_file(
            "machinist.toml",
            r#"
broker  = "amqp://guest:guest@localhost/%2f"
backend = "redis://localhost"
namespace = "shop"
results_ttl = "1d"
[worker]
queues = ["default", "images"]
concurrency = 4
grace = "5s"
[tasks.resize]
command = ["./resize.sh", "{src}", "{0}"]
args    = ["src", "width"]
queue = "images"
timeout = "30s"
retries = 3
backoff = "fixed:200ms"
[tasks."mail.send"]
command = ["true"]
"#,
        )
        .unwrap();
        assert_eq!(file.tasks.keys().collect::<Vec<_>>(), ["mail.send", "resize"]);
        let resize = &file.tasks["resize"];
        assert_eq!(resize.command.as_ref().unwrap().value[1], "{src}");
        assert_eq!(resize.retries.as_ref().unwrap().value, 3);
        assert_eq!(resize.timeout.as_ref().unwrap().origin.to_string(), "machinist.toml:14");
        assert_eq!(file.worker.concurrency.unwrap().value, 4);
        assert_eq!(file.broker.unwrap().origin.to_string(), "machinist.toml:2");
    }

    #[test]
    fn unknown_keys_are_told_with_the_one_that_was_meant() {
        assert_eq!(
            error("\nbrokr = \"x\""),
            "machinist.toml:2:1: unknown key \"brokr\"; did you mean \"broker\"?"
        );
        assert_eq!(
            error("[worker]\n  concurency = 3"),
            "machinist.toml:2:3: unknown key \"concurency\" in [worker]; did you mean \"concurrency\"?"
        );
        assert_eq!(
            error("[tasks.x]\ncommand = [\"a\"]\nshell = true"),
            "machinist.toml:3:1: unknown key \"shell\" in [tasks.x]; the keys here are command, args, queue, requires, timeout, soft_timeout, retries, retry_for, retry_timeouts, backoff, env, env_pass, cwd, user, dash_values, keep_args, hide_args, concurrency, circuit, circuit_pause, rate, burst, cost, max_running, limit_key, unique, unique_until, on_conflict, debounce, debounce_max, throttle"
        );
    }

    #[test]
    fn hours_of_sleep_are_read_and_what_is_wrong_is_told_with_its_line() {
        let text = "[worker]\nsleep = [\n  { days = \"mon-fri\", from = \"22:00\", to = \"06:00\", time_zone = \"Europe/Berlin\" },\n  \
                    { from = \"00:00\", to = \"01:00\" },\n]";
        let sleep = read_file("machinist.toml", text).unwrap().worker.sleep;
        assert_eq!(sleep[0].value.to_string(), "mon-fri 22:00-06:00 Europe/Berlin");
        assert_eq!(sleep[1].value.to_string(), "mon-sun 00:00-01:00 UTC");
        assert_eq!(sleep[1].origin.to_string(), "machinist.toml:4");
        for (hours, problem) in [
            ("{ from = \"22:00\" }", "machinist.toml:2:11: [worker.sleep] needs from and to"),
            ("{ from = \"22:00\", to = \"6\" }", "\"6\" is no time of a day"),
            ("{ from = 22, to = \"06:00\" }", "worker.sleep.from: expected a time like"),
            (
                "{ from = \"22:00\", to = \"06:00\", time_zone = \"Berlin\" }",
                "time zone \"Berlin\" is unknown",
            ),
            ("{ form = \"22:00\", to = \"06:00\" }", "unknown key \"form\""),
        ] {
            let error = error(&format!("[worker]\nsleep = [ {hours} ]"));
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn keys_are_read_with_their_line() {
        let text = "key_file = \"own.key\"\nallow_unsigned = true\n[[keys]]\nid = \"old\"\nfile = \"old.key\"\n\
                    state = \"verify\"\nnot_after = 2026-12-01T00:00:00Z\ntasks = [\"mail.*\"]\n\
                    [[keys]]\nid = \"gone\"\nstate = \"revoked\"\n";
        let file = read_file("conf/machinist.toml", text).unwrap();
        assert_eq!(file.key_file.unwrap().value, Path::new("conf/own.key"));
        let [old, gone] = &file.keys[..] else { panic!("{:?}", file.keys) };
        assert_eq!(old.origin.to_string(), "conf/machinist.toml:3");
        assert_eq!(old.value.file.as_deref(), Some(Path::new("conf/old.key")));
        assert_eq!(old.value.not_after.as_deref(), Some("2026-12-01T00:00:00Z"));
        assert_eq!(
            (gone.value.state, gone.origin.to_string()),
            (Some(KeyState::Revoked), "conf/machinist.toml:9".into())
        );
    }

    #[test]
    fn what_is_wrong_with_a_key_is_reported_without_its_secret() {
        assert!(
            error("keys = 1")
                .contains("1:8: keys: expected tables, each under a line [[keys]], found the number 1")
        );
        assert!(error("[keys]\nid = \"a\"").contains("expected tables"));
        assert!(
            error("[[keys]]\nidd = \"a\"")
                .contains("2:1: unknown key \"idd\" in [keys]; did you mean \"id\"?")
        );
        assert!(
            error("[[keys]]\nstate = \"on\"")
                .contains("keys.state: expected \"active\", \"verify\" or \"revoked\"")
        );
        assert!(error("[[keys]]\nalg = \"md5\"").contains("keys.alg: the algorithm is unknown"));
        assert!(
            error("[[keys]]\nnot_after = \"soon\"")
                .contains("keys.not_after: expected a time with its offset")
        );
        assert!(error("[[keys]]\nnot_after = 2026-12-01").contains("expected a time with its offset"));
        for text in
            ["secret = [\"geheim\"]", "secret = \"geheim", "secret = geheim", "secret = { a = \"geheim\" }"]
        {
            let error = error(&format!("[[keys]]\n{text}"));
            assert!(!error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn wrong_types_are_told_with_what_was_expected() {
        assert_eq!(
            error("[worker]\nconcurrency = \"many\""),
            "machinist.toml:2:15: worker.concurrency: expected a number of tasks, found the text \"many\""
        );
        assert_eq!(
            error("broker = 5"),
            "machinist.toml:1:10: broker: expected a URL in quotes, found the number 5"
        );
        assert!(
            error("[worker]\ngrace = 20")
                .contains("2:9: worker.grace: expected a duration like \"20s\", in quotes")
        );
        assert!(error("worker = 1").contains("worker: expected a table, found the number 1"));
        assert!(error("tasks = [1]").contains("tasks: expected a table, found a list"));
        assert!(error("[tasks]\nx = 1").contains("2:5: tasks.x: expected a table"));
        assert!(error("[worker]\nqueues = [1]").contains("expected text in quotes, found the number 1"));
        assert!(error("[worker]\nconcurrency = 0").contains("0 is not a number of tasks to run at once"));
        assert!(error("[tasks.x]\ncommand = []").contains("names no program"));
        assert!(
            error("\n[tasks.x]").contains(":2:") && error("[tasks.x]").contains("is empty; write command")
        );
        assert!(error("[tasks.x]\nargs = [\"a\"]").contains("2:8: tasks.x.args: belongs to a command"));
        assert!(error("[worker]\ntags = \"gpu\"").contains("expected a list of tags, like [\"gpu\"]"));
        assert!(
            error("[worker]\ntags = [\"GPU\"]").contains("tag \"GPU\" is not a word like gpu or zone:eu")
        );
        assert!(error("[worker]\nlook_ahead = -1").contains("-1 is not a number of tasks to hold"));
        assert!(error("[worker]\nname = \"\"").contains("cannot name a worker"));
    }

    #[test]
    fn a_broker_may_be_a_list_of_nodes() {
        let read = |text: &str| read_file("machinist.toml", text).unwrap().broker.unwrap().value.to_string();
        assert_eq!(read("broker = [\"amqp://u:p@a\", \"amqp://u:p@b\"]"), "amqp://u:***@a,amqp://u:***@b");
        assert!(error("broker = [\"amqp://a\", \"b\"]").contains("is not a URL"));
        assert!(error("broker = []").contains("names no URL"));
    }

    #[test]
    fn no_error_quotes_a_password() {
        for text in [
            "broker = \"kafka://u:geheim@h\"",
            "broker = amqp://u:geheim@h",
            "broker = \"amqp://u:geheim@h",
            "namespace = \"amqp://u:geheim@h\"",
            "backend = [\"redis://:geheim@h\"]",
            "results_ttl = \"redis://:geheim@h\"",
            "[worker]\nconcurrency = \"redis://:geheim@h\"",
            "[worker]\nqueues = \"redis://:geheim@h\"",
        ] {
            let error = error(text);
            assert!(!error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn broken_toml_has_a_position() {
        assert!(error("broker = = 1").starts_with("machinist.toml:1:"));
        assert_eq!(error("a = 1\na = 2").split(": ").next(), Some("machinist.toml:2:1"));
    }
}
