//! `machinist.toml`: from text to values that know their line.
//!
//! The file is walked by hand instead of being deserialized. Only so can every error name the line, the column and
//! the expected value, and quote no line that may hold a password.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use machinist_core::{
    QueueName,
    sign::{KeyConfig, KeyError, KeyId, KeyState, SecretText},
    worker::Tag,
};
use toml::de::{DeTable, DeValue};

use super::{
    Setting, SettingInfo, SettingOrigin, SettingsError, TaskSettings, Topology,
    table::{self, Definition},
    text, value,
};
use crate::{
    connector::Connectors,
    url::{Role, ServerUrl},
};

/// Values of a file; `None` and empty collections for what it does not mention.
#[derive(Debug, Default)]
pub(super) struct FileSettings {
    pub(super) broker: Option<Setting<ServerUrl>>,
    pub(super) backend: Option<Setting<ServerUrl>>,
    pub(super) namespace: Option<Setting<String>>,
    pub(super) results_ttl: Option<Setting<Duration>>,
    pub(super) freshness: Option<Setting<Duration>>,
    pub(super) key_file: Option<Setting<PathBuf>>,
    pub(super) keys: Vec<Setting<KeyConfig>>,
    pub(super) allow_unsigned: Option<Setting<bool>>,
    pub(super) insecure_plaintext: Option<Setting<bool>>,
    pub(super) topology: Option<Setting<Topology>>,
    pub(super) tls: FileTls,
    pub(super) worker: FileWorker,
    pub(super) sizes: FileSizes,
    /// Place of the section `[limits]`, the old name of `[sizes]`.
    pub(super) old_sizes: Option<SettingOrigin>,
    pub(super) tasks: BTreeMap<String, TaskSettings>,
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
    pub(super) queues: Option<Setting<Vec<QueueName>>>,
    pub(super) concurrency: Option<Setting<usize>>,
    pub(super) grace: Option<Setting<Duration>>,
    pub(super) consumer_timeout: Option<Setting<Duration>>,
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
const SIZES: &str = "sizes";
/// Old name of the section `[sizes]`, which this version still reads.
const OLD_SIZES: &str = "limits";
/// Keys of a key, under `[[keys]]`.
const KEY_KEYS: [&str; 11] =
    ["id", "alg", "secret", "public", "file", "env", "state", "not_before", "not_after", "tasks", "queues"];
/// Keys of a task, under `[tasks.NAME]`.
const TASK_KEYS: [&str; 9] = [
    "command",
    "args",
    "queue",
    "timeout",
    "soft_timeout",
    "retries",
    "retry_for",
    "retry_timeouts",
    "backoff",
];

/// Reads the text of a file; relative paths in it start at the file's folder.
pub(super) fn read(path: &Path, text: &str, connectors: &Connectors) -> Result<FileSettings, SettingsError> {
    let source = TomlText { path, text };
    let document = DeTable::parse(text)
        .map_err(|error| source.error(error.span().unwrap_or(0..0), error.message().to_owned()))?;
    let top = Section::top(source, document.get_ref())?;
    let old_sizes = top.section(OLD_SIZES, &table::keys_of_section(SIZES))?;
    Ok(FileSettings {
        broker: read_url(&top, &table::BROKER, Role::Broker, connectors)?,
        backend: read_url(&top, &table::BACKEND, Role::Backend, connectors)?,
        namespace: top.setting(&table::NAMESPACE)?,
        results_ttl: top.setting(&table::RESULTS_TTL)?,
        freshness: top.setting(&table::FRESHNESS)?,
        key_file: top.setting(&table::KEY_FILE)?,
        allow_unsigned: top.setting(&table::ALLOW_UNSIGNED)?,
        insecure_plaintext: top.setting(&table::INSECURE_PLAINTEXT)?,
        topology: top.setting(&table::TOPOLOGY)?,
        tls: read_tls(&top)?,
        worker: read_worker(&top)?,
        old_sizes: old_sizes.as_ref().map(Section::origin),
        sizes: read_sizes(&top, old_sizes)?,
        keys: read_keys(&top)?,
        tasks: read_tasks(&top)?,
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

fn read_worker(top: &Section<'_>) -> Result<FileWorker, SettingsError> {
    let Some(worker) = top.section(WORKER, &table::keys_of_section(WORKER))? else {
        return Ok(FileWorker::default());
    };
    Ok(FileWorker {
        name: worker.setting(&table::WORKER_NAME)?,
        tags: worker.setting(&table::TAGS)?,
        look_ahead: worker.setting(&table::LOOK_AHEAD)?,
        queues: worker.setting(&table::QUEUES)?,
        concurrency: worker.setting(&table::CONCURRENCY)?,
        grace: worker.setting(&table::GRACE)?,
        consumer_timeout: worker.setting(&table::CONSUMER_TIMEOUT)?,
    })
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

fn read_tasks(top: &Section<'_>) -> Result<BTreeMap<String, TaskSettings>, SettingsError> {
    let sections = top.sections("tasks", &TASK_KEYS)?;
    sections.into_iter().map(|(name, section)| Ok((name, read_task(&section)?))).collect()
}

fn read_task(section: &Section<'_>) -> Result<TaskSettings, SettingsError> {
    let command =
        section.get("command", |v| match value::strings(v, "a list of the program and its arguments")? {
            list if list.is_empty() => Err("names no program; write [\"./program\", \"{0}\"]".to_owned()),
            list => Ok(list),
        })?;
    if section.table.is_empty() {
        let remedy =
            "write command = [\"./program\", \"{0}\"], or options of a task in Rust, such as retries = 3";
        return Err(section.error(&format!("is empty; {remedy}")));
    }
    let args = section.get("args", |v| match &command {
        Some(_) => value::strings(v, "a list of names"),
        None => {
            Err("names arguments of a command, and there is none; add the command, or leave args out".into())
        }
    })?;
    Ok(TaskSettings {
        origin: command.as_ref().map_or_else(|| section.origin(), |command| command.origin.clone()),
        command,
        args,
        queue: section.get("queue", |v| {
            QueueName::parse(value::string(v, "a queue name")?).map_err(|e| e.to_string())
        })?,
        timeout: section.get("timeout", value::positive_duration)?,
        soft_timeout: section.get("soft_timeout", value::positive_duration)?,
        retry_timeouts: section.get("retry_timeouts", value::boolean)?,
        retry_for: section.get("retry_for", value::duration)?,
        retries: section.get("retries", |v| {
            let number = value::integer(v, "a number of retries")?;
            u32::try_from(number).map_err(|_| format!("{number} is not a number of retries; take 0 or more"))
        })?,
        backoff: section.get("backoff", |v| text::parse_backoff(value::string(v, "a back-off")?))?,
    })
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
        _ => Err(value::wrong_type(v, "\"active\", \"verify\" or \"revoked\"")),
    })?;
    let mut config = KeyConfig::default();
    config.id = id;
    config.alg = alg;
    config.secret = secret;
    config.public = section.value("public", |v| Ok(value::string(v, "base64")?.to_owned()))?;
    config.file = section.value("file", |v| Ok(folder.join(value::string(v, "the name of a file")?)))?;
    config.env = section.value("env", |v| Ok(value::string(v, "the name of a variable")?.to_owned()))?;
    config.state = state;
    config.not_before = section.value("not_before", value::instant)?;
    config.not_after = section.value("not_after", value::instant)?;
    config.tasks = section.value("tasks", |v| value::strings(v, "a list like [\"mail.*\"]"))?;
    config.queues = section.value("queues", |v| value::strings(v, "a list like [\"mail\"]"))?;
    Ok(config)
}

/// The text of a file, in which a position is found.
#[derive(Clone, Copy)]
struct TomlText<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> TomlText<'a> {
    fn folder(&self) -> &'a Path {
        self.path.parent().unwrap_or_else(|| Path::new(""))
    }

    /// Line and column, both counted from 1, the column in characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn origin(&self, span: Range<usize>) -> SettingOrigin {
        SettingOrigin::File { path: self.path.to_owned(), line: self.position(span.start).0 }
    }

    fn error(&self, span: Range<usize>, problem: impl Into<String>) -> SettingsError {
        let (line, column) = self.position(span.start);
        SettingsError::new(format_args!("{}:{line}:{column}", self.path.display()), problem)
    }
}

/// A table of the file, all keys of which are known.
struct Section<'a> {
    source: TomlText<'a>,
    /// `worker`, `tasks.resize`; empty for the top.
    name: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// The whole document. It may have the old section, which no error proposes.
    fn top(source: TomlText<'a>, table: &'a DeTable<'a>) -> Result<Self, SettingsError> {
        let top = Self { source, name: String::new(), span: 0..0, table };
        top.check_keys(&table::top_keys(), Some(OLD_SIZES))?;
        Ok(top)
    }

    /// Refuses keys that are neither known nor the old one.
    fn check_keys(&self, known: &[&str], old: Option<&str>) -> Result<(), SettingsError> {
        for (spanned, _) in self.table.iter() {
            let key: &str = spanned.get_ref();
            if !known.contains(&key) && old != Some(key) {
                let place = if self.name.is_empty() { String::new() } else { format!(" in [{}]", self.name) };
                let problem = format!("unknown key \"{key}\"{place}; {}", nearest(key, known));
                return Err(self.source.error(spanned.span(), problem));
            }
        }
        Ok(())
    }

    /// Reads a value of the table of settings.
    fn setting<T>(&self, definition: &Definition<T>) -> Result<Option<Setting<T>>, SettingsError> {
        self.get(definition.key(), |value| (definition.read)(value, self.source.folder()))
    }

    /// Reads a value, without its place.
    fn value<T>(
        &self,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        Ok(self.get(key, read)?.map(|setting| setting.value))
    }

    fn get<T>(
        &self,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<Option<Setting<T>>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let origin = self.source.origin(value.span());
        match read(value.get_ref()) {
            Ok(value) => Ok(Some(Setting::new(value, origin))),
            Err(problem) => Err(self.source.error(value.span(), format!("{}: {problem}", self.path(key)))),
        }
    }

    /// Returns a table below this one.
    fn section(&self, key: &str, known: &[&str]) -> Result<Option<Self>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        self.below(key, value, known, "a table").map(Some)
    }

    /// Returns the tables of a list of them, `[[key]]`.
    fn list(&self, key: &str, known: &[&str]) -> Result<Vec<Self>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let expected = format!("tables, each under a line [[{}]]", self.path(key));
        let list = value.get_ref().as_array().ok_or_else(|| self.wrong_type(key, value, &expected))?;
        list.iter().map(|item| self.below(key, item, known, &expected)).collect()
    }

    /// Returns the tables below a table of this one, by name.
    fn sections(&self, key: &str, known: &[&str]) -> Result<Vec<(String, Self)>, SettingsError> {
        let names: Vec<&str> = match self.table.get(key).and_then(|v| v.get_ref().as_table()) {
            Some(table) => table.keys().map(|k| k.get_ref().as_ref()).collect(),
            None => Vec::new(),
        };
        let Some(all) = self.section(key, &names)? else { return Ok(Vec::new()) };
        let each = |name: &&str| Ok(all.section(name, known)?.map(|section| ((*name).to_owned(), section)));
        names.iter().filter_map(|name| each(name).transpose()).collect()
    }

    fn below(
        &self,
        key: &str,
        value: &'a toml::Spanned<DeValue<'a>>,
        known: &[&str],
        expected: &str,
    ) -> Result<Self, SettingsError> {
        let table = value.get_ref().as_table().ok_or_else(|| self.wrong_type(key, value, expected))?;
        let section = Self { source: self.source, name: self.path(key), span: value.span(), table };
        section.check_keys(known, None)?;
        Ok(section)
    }

    fn wrong_type(&self, key: &str, value: &toml::Spanned<DeValue<'_>>, expected: &str) -> SettingsError {
        let problem = format!("{}: {}", self.path(key), value::wrong_type(value.get_ref(), expected));
        self.source.error(value.span(), problem)
    }

    fn origin(&self) -> SettingOrigin {
        self.source.origin(self.span.clone())
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn error(&self, problem: &str) -> SettingsError {
        self.source.error(self.span.clone(), format!("[{}] {problem}", self.name))
    }
}

/// Proposes the key that was probably meant, or lists all keys.
fn nearest(key: &str, known: &[&str]) -> String {
    let best = known.iter().map(|name| (strsim::damerau_levenshtein(key, name), name)).min();
    match best {
        Some((distance, name)) if distance <= 1 + key.len() / 4 => format!("did you mean \"{name}\"?"),
        _ => format!("the keys here are {}", known.join(", ")),
    }
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
            "machinist.toml:3:1: unknown key \"shell\" in [tasks.x]; the keys here are command, args, queue, timeout, soft_timeout, retries, retry_for, retry_timeouts, backoff"
        );
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
            error("[[keys]]\nstate = \"on\"").contains(
                "keys.state: expected \"active\", \"verify\" or \"revoked\", found the text \"on\""
            )
        );
        assert!(error("[[keys]]\nalg = \"md5\"").contains("keys.alg: algorithm \"md5\" is unknown"));
        assert!(error("[[keys]]\nnot_after = \"soon\"").contains("keys.not_after: \"soon\" is not a time"));
        assert!(error("[[keys]]\nnot_after = 2026-12-01").contains("is not a time with its offset"));
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
        assert!(
            error("[tasks.x]\nargs = [\"a\"]").contains("2:8: tasks.x.args: names arguments of a command")
        );
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
