//! `machinist.toml`: from text to values that know their line.
//!
//! The file is walked by hand instead of being deserialized, because only so every error can say what was
//! expected at which line and column, and no error quotes a line that may hold a password.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use machinist_core::{
    Backoff, QueueName,
    sign::{KeyConfig, KeyError, KeyId, KeyState, SecretText},
};
use toml::de::{DeTable, DeValue};

use super::{Setting, SettingOrigin, SettingsError, TaskSettings, Topology, text};
use crate::{
    redact,
    url::{Role, ServerUrl},
};

/// What a file says; nothing where it is silent.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) broker: Option<Setting<ServerUrl>>,
    pub(super) backend: Option<Setting<ServerUrl>>,
    pub(super) namespace: Option<Setting<String>>,
    pub(super) results_ttl: Option<Setting<Duration>>,
    pub(super) freshness: Option<Setting<Duration>>,
    pub(super) limits: [Option<Setting<usize>>; 6],
    pub(super) key_file: Option<Setting<PathBuf>>,
    pub(super) keys: Vec<Setting<KeyConfig>>,
    pub(super) allow_unsigned: Option<Setting<bool>>,
    pub(super) insecure_plaintext: Option<Setting<bool>>,
    pub(super) topology: Option<Setting<Topology>>,
    pub(super) tls_ca_file: Option<Setting<PathBuf>>,
    pub(super) tls_cert_file: Option<Setting<PathBuf>>,
    pub(super) tls_key_file: Option<Setting<PathBuf>>,
    pub(super) queues: Option<Setting<Vec<QueueName>>>,
    pub(super) concurrency: Option<Setting<usize>>,
    pub(super) grace: Option<Setting<Duration>>,
    pub(super) consumer_timeout: Option<Setting<Duration>>,
    pub(super) tasks: BTreeMap<String, TaskSettings>,
}

const TOP: [&str; 14] = [
    "broker",
    "backend",
    "namespace",
    "results_ttl",
    "freshness",
    "limits",
    "key_file",
    "keys",
    "allow_unsigned",
    "insecure_plaintext",
    "topology",
    "tls",
    "worker",
    "tasks",
];
const KEY: [&str; 11] =
    ["id", "alg", "secret", "public", "file", "env", "state", "not_before", "not_after", "tasks", "queues"];
const TLS: [&str; 3] = ["ca_file", "cert_file", "key_file"];
const WORKER: [&str; 4] = ["queues", "concurrency", "grace", "consumer_timeout"];
const TASK: [&str; 9] = [
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

pub(super) fn read(path: &Path, text: &str) -> Result<File, SettingsError> {
    let source = Source { path, text };
    let document = DeTable::parse(text)
        .map_err(|error| source.error(error.span().unwrap_or(0..0), error.message().to_owned()))?;
    let top = Section::new(source, "", document.get_ref(), &TOP)?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let url = |role: Role| {
        move |value: &DeValue<'_>| Ok(ServerUrl::parse(string(value, "a URL")?, role)?.relative_to(folder))
    };
    let path_to = |value: &DeValue<'_>| Ok(folder.join(string(value, "the name of a file")?));
    let mut file = File {
        broker: top.get("broker", url(Role::Broker))?,
        backend: top.get("backend", url(Role::Backend))?,
        namespace: top.get("namespace", |v| text::namespace(string(v, "a name")?))?,
        results_ttl: top.get("results_ttl", duration)?,
        freshness: top.get("freshness", limit)?,
        key_file: top.get("key_file", path_to)?,
        allow_unsigned: top.get("allow_unsigned", truth)?,
        insecure_plaintext: top.get("insecure_plaintext", truth)?,
        topology: top.get("topology", |v| text::topology(string(v, "declare or verify")?))?,
        ..File::default()
    };
    if let Some(tls) = top.section("tls", &TLS)? {
        file.tls_ca_file = tls.get("ca_file", path_to)?;
        file.tls_cert_file = tls.get("cert_file", path_to)?;
        file.tls_key_file = tls.get("key_file", path_to)?;
    }
    if let Some(worker) = top.section("worker", &WORKER)? {
        file.queues = worker.get("queues", queues)?;
        file.concurrency = worker.get("concurrency", |v| {
            let number = integer(v, "a number of tasks")?;
            let fits = usize::try_from(number).ok().filter(|n| text::CONCURRENCY.contains(n));
            fits.ok_or_else(|| text::wrong_concurrency(&number))
        })?;
        file.grace = worker.get("grace", duration)?;
        file.consumer_timeout = worker
            .get("consumer_timeout", |v| text::consumer_timeout(string(v, "a duration like \"20s\",")?))?;
    }
    if let Some(limits) = top.section("limits", &super::LIMITS)? {
        for (at, key) in super::LIMITS.into_iter().enumerate() {
            file.limits[at] = limits.get(key, |v| size(v, key))?;
        }
    }
    for section in top.list("keys", &KEY)? {
        let origin = section.origin();
        file.keys.push(Setting::new(key(&section, folder)?, origin));
    }
    for (name, section) in top.sections("tasks", &TASK)? {
        file.tasks.insert(name, task(&section)?);
    }
    Ok(file)
}

fn task(section: &Section<'_>) -> Result<TaskSettings, SettingsError> {
    let command =
        section.get("command", |v| match strings(v, "a list of the program and its arguments")? {
            list if list.is_empty() => Err("names no program; write [\"./program\", \"{0}\"]".to_owned()),
            list => Ok(list),
        })?;
    let Some(command) = command else {
        return Err(section.error("has no command; write command = [\"./program\", \"{0}\"]"));
    };
    Ok(TaskSettings {
        origin: command.origin.clone(),
        command,
        args: section.get("args", |v| strings(v, "a list of names"))?,
        queue: section
            .get("queue", |v| QueueName::parse(string(v, "a queue name")?).map_err(|e| e.to_string()))?,
        timeout: section.get("timeout", limit)?,
        soft_timeout: section.get("soft_timeout", limit)?,
        retry_timeouts: section
            .get("retry_timeouts", |v| v.as_bool().ok_or_else(|| wrong(v, "true or false")))?,
        retry_for: section.get("retry_for", duration)?,
        retries: section.get("retries", |v| {
            let number = integer(v, "a number of retries")?;
            u32::try_from(number).map_err(|_| format!("{number} is not a number of retries; take 0 or more"))
        })?,
        backoff: section.get("backoff", |v| -> Result<Backoff, String> {
            text::parse_backoff(string(v, "a back-off")?)
        })?,
    })
}

/// A number of bytes (`"64KiB"`, `"1MiB"` or a plain number), or of what the limit counts.
fn size(value: &DeValue<'_>, key: &str) -> Result<usize, String> {
    let bytes = !matches!(key, "args" | "depth");
    let expected = if bytes { "a size like \"64KiB\" or a number of bytes" } else { "a number" };
    let size = match value.as_str() {
        Some(text) if bytes => text::parse_size(text)?,
        _ => usize::try_from(integer(value, expected)?)
            .map_err(|_| format!("expected {expected}, 1 or more"))?,
    };
    match size {
        0 => Err("0 would refuse every task; leave it out for the default".to_owned()),
        deep if key == "depth" && deep > 100 => {
            Err(format!("{deep} levels are more than the 100 that are read"))
        }
        size => Ok(size),
    }
}

fn limit(value: &DeValue<'_>) -> Result<Duration, String> {
    match duration(value)? {
        Duration::ZERO => Err("0s would refuse or end every run; leave it out for no limit".to_owned()),
        limit => Ok(limit),
    }
}

/// What a key is is checked here; what it is good for, and that it fits its ring, where the ring is made.
fn key(section: &Section<'_>, folder: &Path) -> Result<KeyConfig, SettingsError> {
    let id = section.get("id", |v| KeyId::parse(string(v, "a key's name")?).map_err(|e| e.to_string()))?;
    let alg = section.get("alg", |v| {
        string(v, "`hmac-sha256` or `ed25519`")?.parse().map_err(|e: KeyError| e.to_string())
    })?;
    let secret = section.get("secret", |v| match v.as_str() {
        Some(text) => Ok(SecretText::new(text.to_owned())),
        // Whatever it is, it may be what should not be shown.
        None => Err("expected base64 in quotes".to_owned()),
    })?;
    let state = section.get("state", |v| match v.as_str() {
        Some("active") => Ok(KeyState::Active),
        Some("verify") => Ok(KeyState::Verify),
        Some("revoked") => Ok(KeyState::Revoked),
        _ => Err(wrong(v, "\"active\", \"verify\" or \"revoked\"")),
    })?;
    let mut config = KeyConfig::default();
    config.id = id.map(|id| id.value);
    config.alg = alg.map(|alg| alg.value);
    config.secret = secret.map(|secret| secret.value);
    config.public = section.get("public", |v| Ok(string(v, "base64")?.to_owned()))?.map(|s| s.value);
    config.file =
        section.get("file", |v| Ok(folder.join(string(v, "the name of a file")?)))?.map(|s| s.value);
    config.env =
        section.get("env", |v| Ok(string(v, "the name of a variable")?.to_owned()))?.map(|s| s.value);
    config.state = state.map(|state| state.value);
    config.not_before = section.get("not_before", instant)?.map(|s| s.value);
    config.not_after = section.get("not_after", instant)?.map(|s| s.value);
    config.tasks = section.get("tasks", |v| strings(v, "a list like [\"mail.*\"]"))?.map(|s| s.value);
    config.queues = section.get("queues", |v| strings(v, "a list like [\"mail\"]"))?.map(|s| s.value);
    Ok(config)
}

/// The text, and where in it something stands.
#[derive(Clone, Copy)]
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
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

/// A table whose keys are all known.
struct Section<'a> {
    source: Source<'a>,
    /// `worker`, `tasks.resize`; empty for the top.
    name: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    fn new(
        source: Source<'a>,
        name: &str,
        table: &'a DeTable<'a>,
        known: &[&str],
    ) -> Result<Self, SettingsError> {
        for (key, _) in table.iter() {
            if !known.contains(&key.get_ref().as_ref()) {
                let place = if name.is_empty() { String::new() } else { format!(" in [{name}]") };
                let problem =
                    format!("unknown key \"{}\"{place}; {}", key.get_ref(), nearest(key.get_ref(), known));
                return Err(source.error(key.span(), problem));
            }
        }
        Ok(Self { source, name: name.to_owned(), span: 0..0, table })
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

    /// A table below this one.
    fn section(&self, key: &str, known: &[&str]) -> Result<Option<Self>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let name = self.path(key);
        let Some(table) = value.get_ref().as_table() else {
            return Err(self
                .source
                .error(value.span(), format!("{name}: {}", wrong(value.get_ref(), "a table"))));
        };
        Ok(Some(Self { span: value.span(), ..Section::new(self.source, &name, table, known)? }))
    }

    /// The tables of a list of them, `[[key]]`.
    fn list(&self, key: &str, known: &[&str]) -> Result<Vec<Self>, SettingsError> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let name = self.path(key);
        let wrong = |value: &toml::Spanned<DeValue<'_>>| {
            let expected = format!("tables, each under a line [[{name}]]");
            self.source.error(value.span(), format!("{name}: {}", wrong(value.get_ref(), &expected)))
        };
        let list = value.get_ref().as_array().ok_or_else(|| wrong(value))?;
        let section = |item: &'a toml::Spanned<DeValue<'a>>| {
            let table = item.get_ref().as_table().ok_or_else(|| wrong(item))?;
            Ok(Self { span: item.span(), ..Section::new(self.source, &name, table, known)? })
        };
        list.iter().map(section).collect()
    }

    /// The tables below a table of this one, by name.
    fn sections(&self, key: &str, known: &[&str]) -> Result<Vec<(String, Self)>, SettingsError> {
        let names: Vec<&str> = match self.table.get(key).and_then(|v| v.get_ref().as_table()) {
            Some(table) => table.keys().map(|k| k.get_ref().as_ref()).collect(),
            None => Vec::new(),
        };
        let Some(all) = self.section(key, &names)? else { return Ok(Vec::new()) };
        let each = |name: &&str| Ok(all.section(name, known)?.map(|section| ((*name).to_owned(), section)));
        names.iter().filter_map(|name| each(name).transpose()).collect()
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

/// The key that was probably meant, else all that there are.
fn nearest(key: &str, known: &[&str]) -> String {
    let best = known.iter().map(|name| (strsim::damerau_levenshtein(key, name), name)).min();
    match best {
        Some((distance, name)) if distance <= 1 + key.len() / 4 => format!("did you mean \"{name}\"?"),
        _ => format!("the keys here are {}", known.join(", ")),
    }
}

fn string<'v>(value: &'v DeValue<'_>, expected: &str) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| wrong(value, &format!("{expected} in quotes")))
}

fn strings(value: &DeValue<'_>, expected: &str) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| wrong(value, expected))?;
    list.iter().map(|item| string(item.get_ref(), "text").map(str::to_owned)).collect()
}

fn queues(value: &DeValue<'_>) -> Result<Vec<QueueName>, String> {
    let names = strings(value, "a list of queue names, like [\"default\"]")?;
    if names.is_empty() {
        return Err("names no queue; leave it out for [\"default\"]".to_owned());
    }
    names.iter().map(|name| QueueName::parse(name).map_err(|e| e.to_string())).collect()
}

fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| wrong(value, "true or false"))
}

/// An RFC 3339 time, with quotes or, as TOML has it, without.
fn instant(value: &DeValue<'_>) -> Result<String, String> {
    let text = match value {
        DeValue::Datetime(instant) => instant.to_string(),
        DeValue::String(text) => text.as_ref().to_owned(),
        other => return Err(wrong(other, "a time like 2026-11-20T00:00:00Z")),
    };
    match text.parse::<jiff::Timestamp>() {
        Ok(_) => Ok(text),
        Err(_) => Err(format!("{text:?} is not a time with its offset; write one like 2026-11-20T00:00:00Z")),
    }
}

fn integer(value: &DeValue<'_>, expected: &str) -> Result<i64, String> {
    let number = value.as_integer().ok_or_else(|| wrong(value, expected))?;
    i64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| format!("{} is too large", number.as_str()))
}

fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    text::parse_duration(string(value, "a duration like \"20s\",")?)
}

fn wrong(value: &DeValue<'_>, expected: &str) -> String {
    let found = match value {
        DeValue::String(text) => format!("the text \"{}\"", redact::url(text)),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    format!("expected {expected}, found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read(Path::new("machinist.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_file_is_read() {
        let file = read(
            Path::new("machinist.toml"),
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
        assert_eq!(resize.command.value[1], "{src}");
        assert_eq!(resize.retries.as_ref().unwrap().value, 3);
        assert_eq!(resize.timeout.as_ref().unwrap().origin.to_string(), "machinist.toml:14");
        assert_eq!(file.concurrency.unwrap().value, 4);
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
        let file = read(Path::new("conf/machinist.toml"), text).unwrap();
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
    fn what_is_wrong_with_a_key_is_told_without_its_secret() {
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
        assert!(error("\n[tasks.x]\nretries = 1").contains(":2:"));
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
