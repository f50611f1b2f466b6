//! The configuration of Go machinery, as a layer below machinist.toml, and as the machinist.toml that means the same.
//!
//! Go reads a file of YAML or variables of the environment. Here the file goes before the variables, and what neither sets
//! has the default of Go.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use machinist_core::{QueueName, QueuePattern};
use serde_json::{Map, Value};

use super::{ProfileName, Setting, SettingOrigin, Settings, SettingsError, UnsignedQueue};
use crate::{
    topology::QueueAddress,
    url::{Role, ServerUrl},
};

/// Values that machinist has a counterpart for: key of the file, variable, and default of Go.
const KNOWN: [(&str, &str, &str); 7] = [
    ("broker", "BROKER", "amqp://guest:guest@localhost:5672/"),
    ("default_queue", "DEFAULT_QUEUE", "machinery_tasks"),
    ("result_backend", "RESULT_BACKEND", "amqp://guest:guest@localhost:5672/"),
    ("results_expire_in", "RESULTS_EXPIRE_IN", "3600"),
    ("multiple_broker_separator", "MULTIPLE_BROKEN_SEPARATOR", ""),
    ("amqp.exchange", "AMQP_EXCHANGE", "machinery_exchange"),
    ("amqp.binding_key", "AMQP_BINDING_KEY", "machinery_task"),
];

/// Values without a counterpart, and the reason. A name that ends with a dot stands for a section.
const GAPS: [(&str, &str, &str); 14] = [
    ("lock", "LOCK", "ticks are locked in result_backend; set go_program in [queues.NAME] to take part"),
    ("amqp.exchange_type", "AMQP_EXCHANGE_TYPE", "the exchange is taken as it stands"),
    ("amqp.queue_declare_args", "", "the queue is taken as it stands"),
    ("amqp.queue_binding_args", "", "the binding is taken as it stands"),
    ("amqp.auto_delete", "AMQP_AUTO_DELETE", "the queue is taken as it stands"),
    ("amqp.delayed_queue", "", "delays wait in queues of machinist"),
    ("amqp.prefetch_count", "AMQP_PREFETCH_COUNT", "a worker holds what it runs and worker.look_ahead more"),
    ("no_unix_signals", "NO_UNIX_SIGNALS", "the worker ends at SIGTERM and SIGINT"),
    ("redis.master_name", "REDIS_MASTER_NAME", "write a URL redis+sentinel:// into result_backend"),
    ("redis.cluster_enabled", "REDIS_CLUSTER_ENABLED", "write a URL redis+cluster:// into result_backend"),
    ("redis.", "", "machinist keeps one connection, and sets its timeouts"),
    ("sqs.", "", "SQS is no broker of machinist"),
    ("dynamodb.", "", "DynamoDB is no backend of machinist"),
    ("mongodb.", "", "MongoDB is no backend of machinist"),
];

/// Configuration of Go machinery.
#[derive(Clone)]
pub struct MachineryConfig {
    file: PathBuf,
    text: String,
    /// Values by their keys, with their places.
    values: BTreeMap<&'static str, Setting<String>>,
    gaps: Vec<MachineryGap>,
}

/// Value of a configuration of Go machinery that machinist has no counterpart for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineryGap {
    /// Its key.
    pub key: String,
    /// Its value, as text.
    pub value: String,
    /// The reason that it has none, and the remedy.
    pub why: String,
}

impl MachineryConfig {
    /// Reads a file of YAML, and the variables for what it leaves out.
    ///
    /// # Errors
    /// [`SettingsError`] if the file cannot be read, or a value is wrong.
    pub fn load(file: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| SettingsError::unreadable(&file.display().to_string(), file, error))?;
        Self::read(file, &text, &|name| std::env::var_os(name))
    }

    /// Reads the text of a file, and the variables for what it leaves out.
    ///
    /// # Errors
    /// [`SettingsError`] names the value that is wrong.
    pub fn read(
        file: &Path,
        text: &str,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, SettingsError> {
        let wrong = |why: String| SettingsError::new(file.display(), why);
        let parsed: Value = match text.trim() {
            "" => Value::Null,
            _ => serde_saphyr::from_str(text).map_err(|error| wrong(format!("it is not YAML: {error}")))?,
        };
        let fields = match parsed {
            Value::Null => Map::new(),
            Value::Object(fields) => fields,
            _ => return Err(wrong("it holds no keys, like broker: 'amqp://localhost'".to_owned())),
        };
        let mut config =
            Self { file: file.to_owned(), text: text.to_owned(), values: BTreeMap::new(), gaps: Vec::new() };
        let mut found = BTreeMap::new();
        flatten("", &fields, &mut found);
        for (key, value) in found {
            match KNOWN.iter().find(|(known, ..)| *known == key) {
                Some((known, ..)) => {
                    let text = match value {
                        Value::String(text) => text,
                        Value::Number(number) => number.to_string(),
                        Value::Null => continue,
                        other => return Err(config.error(known, &format!("{other} is no text"))),
                    };
                    let origin = config.origin(known);
                    config.values.insert(known, Setting::new(text, origin));
                }
                None => config.note_gap(&key, &value.to_string()),
            }
        }
        for (key, variable, default) in KNOWN {
            if config.values.contains_key(key) {
                continue;
            }
            let set = env(variable).map(|value| value.to_string_lossy().into_owned());
            let setting = match set.filter(|value| !value.is_empty()) {
                Some(value) => Setting::new(value, SettingOrigin::Variable(variable)),
                None => Setting::new(default.to_owned(), SettingOrigin::Default),
            };
            config.values.insert(key, setting);
        }
        for (key, variable, _) in GAPS.iter().filter(|(_, variable, _)| !variable.is_empty()) {
            if let Some(value) = env(variable).filter(|_| !config.gaps.iter().any(|gap| gap.key == *key)) {
                config.note_gap(key, &value.to_string_lossy());
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Returns the values without a counterpart.
    pub fn gaps(&self) -> &[MachineryGap] {
        &self.gaps
    }

    /// Returns the machinist.toml that means the same, for a worker that runs these tasks. Its comments name what has no
    /// counterpart.
    ///
    /// # Errors
    /// [`SettingsError`] names the value that is wrong.
    pub fn to_toml(&self, tasks: &[String]) -> Result<String, SettingsError> {
        let text = |text: &str| toml::Value::from(text).to_string();
        let queue = self.queue()?;
        let mut out = format!("broker = {}\n", text(&self.values["broker"].value));
        let backend = self.redis();
        if let Some(backend) = &backend {
            let _ = writeln!(out, "backend = {}", text(&backend.value));
        }
        let _ = write!(
            out,
            "\n[worker]\nqueues = [{queue}]\n\n[queues.{queue}]\nprofile = \"machinery\"\nallow_unsigned = true\n",
            queue = text(queue.as_str())
        );
        match tasks {
            [] => out.push_str(
                "tasks = [\"NAME\"]  # write the names of the tasks that run here: everybody who can publish can run them\n",
            ),
            names => {
                let names: Vec<String> = names.iter().map(|name| text(name)).collect();
                let _ = writeln!(out, "tasks = [{}]", names.join(", "));
            }
        }
        let address = self.address();
        let _ = writeln!(out, "exchange = {}", text(&address.exchange));
        let _ = writeln!(out, "routing_key = {}", text(&address.routing_key));
        let _ = writeln!(out, "results_ttl = \"{}s\"", self.expiry()?.as_secs());
        if !self.gaps.is_empty() {
            out.push_str("\n# No counterpart:\n");
        }
        for MachineryGap { key, value, why } in &self.gaps {
            let _ = writeln!(out, "# {key} = {}: {why}", value.replace(['\n', '\r'], " "));
        }
        Ok(out)
    }

    fn check(&mut self) -> Result<(), SettingsError> {
        let separator = self.values["multiple_broker_separator"].value.clone();
        let broker = self.values["broker"].clone();
        if let Some((first, rest)) = broker.value.split_once(&*separator).filter(|_| !separator.is_empty()) {
            self.gaps.push(MachineryGap {
                key: "broker".to_owned(),
                value: crate::redact::url(rest).into_owned(),
                why: "machinist takes the first of several brokers; put a name with several addresses into broker".to_owned(),
            });
            self.values.insert("broker", Setting::new(first.to_owned(), broker.origin));
        }
        let broker = &self.values["broker"].value;
        if !broker.starts_with("amqp://") && !broker.starts_with("amqps://") {
            return Err(self.error(
                "broker",
                &format!(
                    "{} is no RabbitMQ; queues are shared with Go machinery over amqp:// or amqps:// only",
                    crate::redact::url(broker)
                ),
            ));
        }
        if self.redis().is_none() {
            let value = crate::redact::url(&self.values["result_backend"].value).into_owned();
            self.gaps.push(MachineryGap {
                key: "result_backend".to_owned(),
                value,
                why: "states are shared with Go machinery in a Redis only, by a URL redis:// or rediss://"
                    .to_owned(),
            });
        }
        self.queue()?;
        self.expiry().map(drop)
    }

    /// Returns the Redis of the states. A name alone before the host is the password in Go.
    fn redis(&self) -> Option<Setting<String>> {
        let Setting { value, origin } = &self.values["result_backend"];
        let (scheme, rest) = value.split_once("://")?;
        if !matches!(scheme, "redis" | "rediss") || rest.contains(',') {
            return None;
        }
        let url = match rest.rsplit_once('@') {
            Some((login, host)) if !login.contains(':') => format!("{scheme}://:{login}@{host}"),
            _ => value.clone(),
        };
        Some(Setting::new(url, origin.clone()))
    }

    fn queue(&self) -> Result<QueueName, SettingsError> {
        QueueName::parse(&self.values["default_queue"].value)
            .map_err(|error| self.error("default_queue", &error.to_string()))
    }

    fn address(&self) -> QueueAddress {
        QueueAddress {
            exchange: self.values["amqp.exchange"].value.clone(),
            routing_key: self.values["amqp.binding_key"].value.clone(),
        }
    }

    fn expiry(&self) -> Result<Duration, SettingsError> {
        let value = &self.values["results_expire_in"].value;
        match value.parse::<u32>() {
            // Go takes its default for 0.
            Ok(0) => Ok(Duration::from_secs(3600)),
            Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
            Err(_) => {
                Err(self.error("results_expire_in", &format!("{value} is no number of seconds, like 3600")))
            }
        }
    }

    fn note_gap(&mut self, key: &str, value: &str) {
        let fits = |name: &str| name == key || name.ends_with('.') && key.starts_with(name);
        let why = GAPS.iter().find(|(name, ..)| fits(name)).map_or("it is not known here", |(_, _, why)| why);
        self.gaps.push(MachineryGap {
            key: key.to_owned(),
            value: crate::redact::text(value).into_owned(),
            why: why.to_owned(),
        });
    }

    /// Returns the place of a key in the file: the line of its last word.
    fn origin(&self, key: &str) -> SettingOrigin {
        let word = key.rsplit('.').next().unwrap_or(key);
        let is_key =
            |line: &str| line.trim_start().strip_prefix(word).is_some_and(|rest| rest.starts_with(':'));
        let line = self.text.lines().position(is_key).map_or(1, |at| at + 1);
        SettingOrigin::File { path: self.file.clone(), line }
    }

    fn error(&self, key: &str, why: &str) -> SettingsError {
        let place = self.values.get(key).map_or_else(|| self.origin(key), |value| value.origin.clone());
        SettingsError::new(place, format!("{key}: {why}"))
    }
}

/// Values are not printed: URLs hold passwords.
impl fmt::Debug for MachineryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineryConfig").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Collects the values of all sections under `section.key`.
fn flatten(section: &str, fields: &Map<String, Value>, found: &mut BTreeMap<String, Value>) {
    for (key, value) in fields {
        let key = format!("{section}{key}");
        match value {
            Value::Object(inner) if section.is_empty() => flatten(&format!("{key}."), inner, found),
            Value::Null => {}
            value => drop(found.insert(key, value.clone())),
        }
    }
}

impl Settings {
    /// Takes over what a configuration of Go machinery says and nothing else sets.
    pub(super) fn with_machinery(mut self, config: &MachineryConfig) -> Result<Self, SettingsError> {
        let url =
            |settings: &Self, setting: &Setting<String>, role| -> Result<Setting<ServerUrl>, SettingsError> {
                let url = settings.connectors.url(&setting.value, role);
                let url = url.map_err(|why| SettingsError::new(&setting.origin, why))?;
                let origin = match &setting.origin {
                    // A default of Go machinery holds because of its file.
                    SettingOrigin::Default => SettingOrigin::File { path: config.file.clone(), line: 1 },
                    origin => origin.clone(),
                };
                Ok(Setting::new(url, origin))
            };
        if self.broker.origin == SettingOrigin::Default {
            self.broker = url(&self, &config.values["broker"], Role::Broker)?;
            self.key_file = self.key_file.filter(|file| file.origin != SettingOrigin::Default);
        }
        let redis = config.redis();
        if let Some(redis) = &redis
            && self.backend.origin == SettingOrigin::Default
        {
            self.backend = url(&self, redis, Role::Backend)?;
        }
        let queue = config.queue()?;
        if !self.unsigned_queues.contains_key(&queue) {
            let tasks = self.tasks_for(&queue);
            if tasks.is_empty() {
                let problem = format!(
                    "it does not say which tasks may run from queue {queue} without a signature; write tasks = [\"add\"] \
                     with profile = \"machinery\" and allow_unsigned = true into [queues.{queue}] of machinist.toml, or \
                     [tasks.NAME] with a command"
                );
                return Err(SettingsError::new(config.file.display(), problem));
            }
            let mut unsigned = UnsignedQueue::of_profile(ProfileName::Machinery, &queue, tasks);
            unsigned.address = Some(config.address());
            unsigned.results_ttl = Some(Setting::new(config.expiry()?, config.origin("results_expire_in")));
            if let Some(redis) = &redis {
                unsigned.result_backend = Some(url(&self, redis, Role::Backend)?);
            }
            self.unsigned_queues.insert(queue.clone(), unsigned);
        }
        let pattern = QueuePattern::from(queue);
        let queues = &mut self.worker.queues;
        if queues.origin == SettingOrigin::Default && !queues.value.contains(&pattern) {
            queues.value.push(pattern);
        }
        Ok(self)
    }

    /// Returns the names of the tasks of the file that may come from this queue.
    fn tasks_for(&self, queue: &QueueName) -> Vec<String> {
        let fits = |own: &Option<Setting<QueueName>>| own.as_ref().is_none_or(|own| own.value == *queue);
        self.tasks.iter().filter(|(_, task)| fits(&task.queue)).map(|(name, _)| name.clone()).collect()
    }

    /// Returns the machinist.toml that means the same as a configuration of Go machinery, for the tasks of these settings.
    ///
    /// # Errors
    /// [`SettingsError`] names the value that is wrong.
    pub fn from_machinery(&self, config: &MachineryConfig) -> Result<String, SettingsError> {
        config.to_toml(&self.tasks_for(&config.queue()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Overrides;

    const YAML: &str = "broker: 'amqp://guest:guest@localhost:5672/'\ndefault_queue: shop_tasks\n\
                        result_backend: 'redis://secret@localhost:6379/2'\nresults_expire_in: 7200\n\
                        amqp:\n  binding_key: shop_key\n  exchange: shop_exchange\n  exchange_type: direct\n  prefetch_count: 3\n\
                        redis:\n  max_idle: 3\nno_unix_signals: false\nnew_key: [1, 2]\n";

    fn read(text: &str) -> Result<MachineryConfig, SettingsError> {
        MachineryConfig::read(Path::new("config.yml"), text, &|_| None)
    }

    #[test]
    fn the_file_of_go_becomes_ours() {
        let config = read(YAML).unwrap();
        let toml = config.to_toml(&["add".to_owned(), "mail.*".to_owned()]).unwrap();
        let expected = "broker = \"amqp://guest:guest@localhost:5672/\"\nbackend = \"redis://:secret@localhost:6379/2\"\n\n\
                        [worker]\nqueues = [\"shop_tasks\"]\n\n[queues.\"shop_tasks\"]\nprofile = \"machinery\"\n\
                        allow_unsigned = true\ntasks = [\"add\", \"mail.*\"]\nexchange = \"shop_exchange\"\n\
                        routing_key = \"shop_key\"\nresults_ttl = \"7200s\"\n";
        assert!(toml.starts_with(expected), "{toml}");
        let gaps: Vec<&str> = config.gaps().iter().map(|gap| gap.key.as_str()).collect();
        assert_eq!(
            gaps,
            ["amqp.exchange_type", "amqp.prefetch_count", "new_key", "no_unix_signals", "redis.max_idle"]
        );
        assert!(toml.contains("# amqp.prefetch_count = 3: a worker holds"), "{toml}");

        // What it says is what the file itself sets.
        let path = Path::new("machinist.toml");
        let command = format!("{toml}\n[tasks.add]\ncommand = [\"true\"]\n");
        let ours = Settings::resolve(Overrides::default(), &|_| None, Some((path, &command))).unwrap();
        let empty = "[tasks.add]\ncommand = [\"true\"]\n";
        let theirs = Settings::resolve(Overrides::default(), &|_| None, Some((path, empty))).unwrap();
        let theirs = theirs.with_machinery(&config).unwrap();
        let queue = QueueName::parse("shop_tasks").unwrap();
        assert_eq!(ours.broker.value, theirs.broker.value);
        assert_eq!(ours.backend.value, theirs.backend.value);
        assert_eq!(ours.unsigned_queues[&queue].address, theirs.unsigned_queues[&queue].address);
        assert_eq!(theirs.unsigned_queues[&queue].tasks.value, ["add"], "the tasks of machinist.toml");
        assert!(theirs.worker.named_queues().any(|named| named == queue));
        assert_eq!(theirs.key_file, None, "the key of the embedded file is not for a network");
        assert_eq!(theirs.broker.origin.to_string(), "config.yml:1");
    }

    #[test]
    fn what_is_left_out_comes_from_the_environment_or_is_gos_default() {
        let env = |name: &str| match name {
            "BROKER" => Some("amqp://other".into()),
            "RESULT_BACKEND" => Some("redis://h".into()),
            "AMQP_PREFETCH_COUNT" => Some("7".into()),
            _ => None,
        };
        let config = MachineryConfig::read(Path::new("c.yml"), "default_queue: q\n", &env).unwrap();
        let toml = config.to_toml(&[]).unwrap();
        for says in ["broker = \"amqp://other\"", "routing_key = \"machinery_task\"", "tasks = [\"NAME\"]"] {
            assert!(toml.contains(says), "{toml}");
        }
        assert_eq!(config.gaps()[0].key, "amqp.prefetch_count");
        assert!(read("").unwrap().gaps()[0].why.contains("in a Redis only"));
        let several =
            "broker: 'amqp://a;amqp://b'\nmultiple_broker_separator: ;\nresult_backend: redis://h\n";
        let config = MachineryConfig::read(Path::new("c.yml"), several, &|_| None).unwrap();
        assert!(config.to_toml(&[]).unwrap().starts_with("broker = \"amqp://a\"\n"));
        assert_eq!(config.gaps()[0].value, "amqp://b");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("broker: [", "it is not YAML"),
            ("- a\n- b\n", "it holds no keys"),
            ("broker: redis://localhost\n", "is no RabbitMQ"),
            ("broker: [a]\n", "broker: [\"a\"] is no text"),
            ("\nresults_expire_in: soon\n", "config.yml:2: results_expire_in: soon is no number"),
            ("default_queue: ''\n", "default_queue"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("config.yml"), "{error}");
        }
        let settings = Settings::resolve(Overrides::default(), &|_| None, None).unwrap();
        let error = settings.with_machinery(&read(YAML).unwrap()).unwrap_err().to_string();
        assert!(error.contains("which tasks may run from queue shop_tasks"), "{error}");
    }
}
