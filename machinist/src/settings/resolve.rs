//! Layers of settings: flags, variables, the file and the defaults.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Once,
};

use machinist_core::{QueuePattern, worker::Tag};

use super::{
    FILE, Overrides, Setting, SettingDefault, SettingInfo, SettingOrigin, Settings, SettingsError,
    SizeSettings, TaskSettings, TlsSettings, WebSettings, WorkerSettings,
    file::{self, FileSettings, FileSizes, FileWorker},
    table::{self, Definition},
    text, url_file,
};
use crate::{
    connector::Connectors,
    url::{Role, ServerUrl},
};

impl Settings {
    /// Reads the environment and the file.
    ///
    /// # Errors
    /// [`SettingsError`] names the value that does not fit, and its place.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&folder)?;
    /// use machinist::{prelude::*, settings::{Overrides, Settings}};
    ///
    /// let settings = Settings::load(Overrides { concurrency: Some(4), ..Overrides::default() })?;
    /// let app = App::from_settings(&settings).await?;
    /// # drop(app);
    /// # Ok(())
    /// # }
    /// ```
    pub fn load(flags: Overrides) -> Result<Self, SettingsError> {
        Self::load_with(&Connectors::default(), flags)
    }

    /// Reads the environment and the file, with URLs of these connectors. The settings keep them, so whatever connects
    /// by the settings uses them.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(connectors: &Connectors, flags: Overrides) -> Result<Self, SettingsError> {
        let env = |name: &str| std::env::var_os(name);
        let file = load_file(flags.config.as_deref(), &env)?;
        let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
        let machinery = flags.machinery_config.clone();
        let settings = Self::resolve_with(connectors, flags, &env, file)?;
        let settings = settings.with_machinery_file(machinery.as_deref())?;
        settings.warn_of_old_names();
        Ok(settings)
    }

    /// Combines flags, variables and the text of a file. Reads nothing else than what `env` reads, and files that hold a
    /// URL.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn resolve(
        flags: Overrides,
        env: &dyn Fn(&str) -> Option<OsString>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, SettingsError> {
        Self::resolve_with(&Connectors::default(), flags, env, file)
    }

    /// Combines flags, variables and the text of a file, with URLs of these connectors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn resolve_with(
        connectors: &Connectors,
        flags: Overrides,
        env: &dyn Fn(&str) -> Option<OsString>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, SettingsError> {
        let path = file.map(|(path, _)| path.to_owned());
        let file = match file {
            Some((path, text)) => file::read(path, text, connectors)?,
            None => FileSettings::default(),
        };
        let layers = Layers { env, connectors };
        let worker = layers.worker(&flags, file.worker, &file.tasks)?;
        let broker = layers.url(&table::BROKER, Role::Broker, flags.broker, file.broker)?;
        let broker_file = layers.optional(&table::BROKER_FILE, flags.broker_file, file.broker_file)?;
        let broker = layers.server(&table::BROKER, Role::Broker, broker, broker_file)?;
        let backend = layers.url(&table::BACKEND, Role::Backend, flags.backend, file.backend)?;
        let backend_file = layers.optional(&table::BACKEND_FILE, flags.backend_file, file.backend_file)?;
        let backend = layers.server(&table::BACKEND, Role::Backend, backend, backend_file)?;
        let namespace =
            layers.required(&table::NAMESPACE, table::NAMESPACE.flag(flags.namespace)?, file.namespace)?;
        let allow_unsigned = flags.allow_unsigned.then_some(true);
        let insecure_plaintext = flags.insecure_plaintext.then_some(true);
        let key_file = layers.optional(&table::KEY_FILE, flags.key_file, file.key_file)?;
        Ok(Self {
            file: path,
            backend,
            namespace,
            results_ttl: layers.required(&table::RESULTS_TTL, None, file.results_ttl)?,
            freshness: layers.optional(&table::FRESHNESS, None, file.freshness)?,
            key_file: key_file.or_else(|| default_key_file(&broker.value, file.keys.is_empty())),
            broker,
            keys: file.keys,
            allow_unsigned: layers.required(&table::ALLOW_UNSIGNED, allow_unsigned, file.allow_unsigned)?,
            insecure_plaintext: layers.required(
                &table::INSECURE_PLAINTEXT,
                insecure_plaintext,
                file.insecure_plaintext,
            )?,
            topology: layers.required(&table::TOPOLOGY, None, file.topology)?,
            events: layers.required(&table::EVENTS, None, file.events)?,
            trace_link: layers.optional(&table::TRACE_LINK, None, file.trace_link)?,
            buffer: layers.optional(&table::BUFFER, None, file.buffer)?,
            web: WebSettings {
                listen: layers.required(&table::WEB_LISTEN, flags.web_listen, file.web.listen)?,
                name: layers.optional(&table::WEB_NAME, None, file.web.name)?,
                read_only: layers.required(
                    &table::WEB_READ_ONLY,
                    flags.web_read_only.then_some(true),
                    file.web.read_only,
                )?,
                password_file: layers.optional(&table::WEB_PASSWORD_FILE, None, file.web.password_file)?,
                token_file: layers.optional(&table::WEB_TOKEN_FILE, None, file.web.token_file)?,
                proxy_header: layers.optional(&table::WEB_PROXY_HEADER, None, file.web.proxy_header)?,
                proxy_addresses: layers.optional(
                    &table::WEB_PROXY_ADDRESSES,
                    None,
                    file.web.proxy_addresses,
                )?,
                proxy_role: layers.required(&table::WEB_PROXY_ROLE, None, file.web.proxy_role)?,
            },
            tls: TlsSettings {
                ca_file: layers.optional(&table::TLS_CA_FILE, flags.tls_ca_file, file.tls.ca_file)?,
                cert_file: layers.optional(&table::TLS_CERT_FILE, flags.tls_cert_file, file.tls.cert_file)?,
                key_file: layers.optional(&table::TLS_KEY_FILE, flags.tls_key_file, file.tls.key_file)?,
            },
            worker,
            sizes: layers.sizes(file.sizes)?,
            old_sizes: file.old_sizes,
            tasks: file.tasks,
            periodic: file.periodic,
            app: file.app,
            queue_limits: file.queues.limits,
            queue_concurrency: file.queues.concurrency,
            max_depths: file.queues.max_depth,
            priority_queues: file.queues.priority,
            fair_shares: file.queues.fair,
            unsigned_queues: file.queues.unsigned,
            connectors: connectors.clone(),
        })
    }

    /// Takes over what a configuration of Go machinery says and nothing else sets.
    #[cfg(feature = "machinery")]
    fn with_machinery_file(self, file: Option<&Path>) -> Result<Self, SettingsError> {
        static SAID: Once = Once::new();
        let Some(file) = file else { return Ok(self) };
        let config = super::MachineryConfig::load(file)?;
        SAID.call_once(|| {
            for super::MachineryGap { key, value, why } in config.gaps() {
                tracing::warn!(file = %file.display(), key, value, why, "a value of Go machinery has no counterpart here");
            }
        });
        self.with_machinery(&config)
    }

    #[cfg(not(feature = "machinery"))]
    fn with_machinery_file(self, file: Option<&Path>) -> Result<Self, SettingsError> {
        let problem = "this program was built without it; build it with the cargo feature `machinery`";
        file.map_or(Ok(self), |_| Err(SettingsError::new("--machinery-config", problem)))
    }

    /// Logs, once in a process, that the file uses a name which the next version refuses.
    fn warn_of_old_names(&self) {
        static WARNED: Once = Once::new();
        if let Some(origin) = &self.old_sizes {
            WARNED.call_once(|| {
                tracing::warn!(
                    from = %origin,
                    "the section [limits] is now called [sizes]; rename it, the next version refuses the old name"
                );
            });
        }
    }
}

/// Reads the file that `--config` or `MACHINIST_CONFIG` names, else the one of the current folder if there is one.
fn load_file(
    flag: Option<&Path>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<(PathBuf, String)>, SettingsError> {
    let named = match flag {
        Some(path) => Some((path.to_owned(), "--config")),
        None => variable(env, "MACHINIST_CONFIG")?.map(|path| (path.into(), "MACHINIST_CONFIG")),
    };
    let may_be_missing = named.is_none();
    let (path, place) = named.unwrap_or_else(|| (FILE.into(), FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SettingsError::unreadable(place, &path, error)),
    }
}

/// The layers in their order: a flag, the variable, the file, the default.
struct Layers<'a> {
    env: &'a dyn Fn(&str) -> Option<OsString>,
    connectors: &'a Connectors,
}

impl Layers<'_> {
    /// Returns the value of the first layer that has one.
    fn first<T>(
        &self,
        info: &SettingInfo,
        flag: Option<T>,
        file: Option<Setting<T>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Setting<T>>, SettingsError> {
        if let Some((name, value)) = info.flag.zip(flag) {
            return Ok(Some(Setting::new(value, SettingOrigin::Flag(name))));
        }
        if let Some(name) = info.variable
            && let Some(text) = variable(self.env, name)?
        {
            let value = parse(&text).map_err(|problem| SettingsError::new(name, problem))?;
            return Ok(Some(Setting::new(value, SettingOrigin::Variable(name))));
        }
        Ok(file)
    }

    /// Returns the value of the first layer that has one.
    fn optional<T>(
        &self,
        definition: &Definition<T>,
        flag: Option<T>,
        file: Option<Setting<T>>,
    ) -> Result<Option<Setting<T>>, SettingsError> {
        self.first(&definition.info, flag, file, definition.parse)
    }

    /// Returns the URL of the first layer that has one, read by the connectors.
    fn url(
        &self,
        info: &SettingInfo,
        role: Role,
        flag: Option<String>,
        file: Option<Setting<ServerUrl>>,
    ) -> Result<Option<Setting<ServerUrl>>, SettingsError> {
        let parse = |text: &str| self.connectors.url(text, role);
        self.first(info, info.flag_value(flag, parse)?, file, parse)
    }

    /// Returns the URL of a server: as it is, or from the file that holds it, whichever the earlier layer names; else the
    /// default.
    fn server(
        &self,
        info: &SettingInfo,
        role: Role,
        url: Option<Setting<ServerUrl>>,
        file: Option<Setting<PathBuf>>,
    ) -> Result<Setting<ServerUrl>, SettingsError> {
        let parse = |text: &str| self.connectors.url(text, role);
        match (url, file) {
            (None, None) => Ok(Setting::new(info.default_value(parse)?, SettingOrigin::Default)),
            (Some(url), Some(file)) if layer(&url.origin) == layer(&file.origin) => {
                let problem = format!("{} sets the {} too; leave one of them out", url.origin, role.as_str());
                Err(SettingsError::new(&file.origin, problem))
            }
            (Some(url), file)
                if file.as_ref().is_none_or(|file| layer(&url.origin) < layer(&file.origin)) =>
            {
                Ok(url)
            }
            (_, Some(Setting { value: path, origin, .. })) => {
                let place = origin.to_string();
                let text =
                    url_file::read(&path).map_err(|error| SettingsError::unreadable(&place, &path, error))?;
                let url = parse(&text)
                    .map_err(|problem| SettingsError::new(place, format!("{}: {problem}", path.display())))?;
                Ok(Setting::new(url, origin))
            }
            (Some(url), None) => Ok(url),
        }
    }

    /// Returns the value of the first layer that has one, else the default.
    fn required<T>(
        &self,
        definition: &Definition<T>,
        flag: Option<T>,
        file: Option<Setting<T>>,
    ) -> Result<Setting<T>, SettingsError> {
        match self.optional(definition, flag, file)? {
            Some(setting) => Ok(setting),
            None => Ok(Setting::new(definition.default()?, SettingOrigin::Default)),
        }
    }

    fn worker(
        &self,
        flags: &Overrides,
        file: FileWorker,
        tasks: &BTreeMap<String, TaskSettings>,
    ) -> Result<WorkerSettings, SettingsError> {
        let name = table::WORKER_NAME.flag(flags.name.clone())?;
        let queues = self.optional(&table::QUEUES, none_if_empty(flags.queues.clone()), file.queues)?;
        Ok(WorkerSettings {
            name: self.optional(&table::WORKER_NAME, name, file.name)?,
            tags: self.tags(flags.tags.clone(), file.tags)?,
            queues: queues.unwrap_or_else(|| default_queues(tasks)),
            weights: file.weights,
            strict: self.optional(&table::STRICT, None, file.strict)?,
            sleep: file.sleep,
            concurrency: self.required(&table::CONCURRENCY, flags.concurrency, file.concurrency)?,
            look_ahead: self.optional(&table::LOOK_AHEAD, flags.look_ahead, file.look_ahead)?,
            keep_args: self.optional(&table::KEEP_ARGS, None, file.keep_args)?,
            grace: self.required(&table::GRACE, flags.grace, file.grace)?,
            consumer_timeout: self.required(&table::CONSUMER_TIMEOUT, None, file.consumer_timeout)?,
            restart_exit_code: self.optional(&table::RESTART_EXIT_CODE, None, file.restart_exit_code)?,
            max_tasks: self.optional(&table::MAX_TASKS, None, file.max_tasks)?,
            max_memory: self.optional(&table::MAX_MEMORY, None, file.max_memory)?,
            metrics_token_file: self.optional(&table::METRICS_TOKEN_FILE, None, file.metrics_token_file)?,
        })
    }

    /// Returns the tags. Those of the command line are counted here, because each flag holds one.
    fn tags(
        &self,
        flags: Vec<Tag>,
        file: Option<Setting<Vec<Tag>>>,
    ) -> Result<Setting<Vec<Tag>>, SettingsError> {
        let flags = text::few_tags(flags).map_err(|problem| SettingsError::new("--tag", problem))?;
        let tags = self.optional(&table::TAGS, none_if_empty(flags), file)?;
        Ok(tags.unwrap_or_else(|| Setting::new(Vec::new(), SettingOrigin::Default)))
    }

    fn sizes(&self, file: FileSizes) -> Result<SizeSettings, SettingsError> {
        Ok(SizeSettings {
            body: self.required(&table::BODY_SIZE, None, file.body)?,
            headers: self.required(&table::HEADERS_SIZE, None, file.headers)?,
            args: self.required(&table::ARGUMENT_COUNT, None, file.args)?,
            depth: self.required(&table::NESTING_DEPTH, None, file.depth)?,
            results: self.required(&table::RESULT_SIZE, None, file.results)?,
            errors: self.required(&table::ERROR_SIZE, None, file.errors)?,
        })
    }
}

impl SettingInfo {
    /// Reads the text of the setting's flag.
    fn flag_value<T>(
        &self,
        text: Option<String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        let place = self.flag.unwrap_or(self.name);
        text.map(|text| parse(&text)).transpose().map_err(|problem| SettingsError::new(place, problem))
    }

    /// Reads the default. A test reads that of every setting which needs one.
    fn default_value<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, SettingsError> {
        let value = match self.default {
            SettingDefault::Value(text) => parse(text),
            SettingDefault::Described(_) | SettingDefault::Nothing => Err("has no default".to_owned()),
        };
        value.map_err(|problem| SettingsError::new(self.name, problem))
    }
}

impl<T> Definition<T> {
    fn flag(&self, text: Option<String>) -> Result<Option<T>, SettingsError> {
        self.info.flag_value(text, self.parse)
    }

    fn default(&self) -> Result<T, SettingsError> {
        self.info.default_value(self.parse)
    }
}

fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, SettingsError> {
    match env(name).filter(|text| !text.is_empty()).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(SettingsError::new(name, "is not UTF-8")),
    }
}

/// Returns the position of a layer, from 0.
fn layer(origin: &SettingOrigin) -> u8 {
    match origin {
        SettingOrigin::Flag(_) => 0,
        SettingOrigin::Variable(_) => 1,
        SettingOrigin::File { .. } => 2,
        SettingOrigin::Default => 3,
    }
}

fn none_if_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// Returns the key file of a broker that is a file, if no key is configured. It is next to that file, so that a
/// process that finds one finds the other.
fn default_key_file(broker: &ServerUrl, no_keys: bool) -> Option<Setting<PathBuf>> {
    let mut path = broker.file().filter(|_| no_keys)?.into_os_string();
    path.push(".key");
    Some(Setting::new(path.into(), SettingOrigin::Default))
}

/// Returns `default` and the queues of the command tasks: a user who writes a task with a queue and starts
/// `machinist worker` expects it to run. The program does not know a task without a command, so the queue of such a task
/// has to be named by the worker that does.
fn default_queues(tasks: &BTreeMap<String, TaskSettings>) -> Setting<Vec<QueuePattern>> {
    // INVARIANT: "default" is an allowed queue name.
    let mut queues = vec![QueuePattern::parse("default").expect("a valid name")];
    let commands = tasks.values().filter(|task| task.command.is_some());
    for queue in commands.filter_map(|task| task.queue.as_ref()) {
        let queue = QueuePattern::from(queue.value.clone());
        if !queues.contains(&queue) {
            queues.push(queue);
        }
    }
    Setting::new(queues, SettingOrigin::Default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SettingEntry;
    use machinist_core::MaxSizes;

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
        assert_eq!(settings.sizes.max_sizes(), MaxSizes::default());
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
                "events=failures (default)",
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
        let file =
            "[tasks.resize]\ncommand = [\"true\"]\nqueue = \"images\"\n[tasks.report]\nqueue = \"reports\"";
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
    fn the_old_section_limits_is_read_as_sizes() {
        let sizes = |file| {
            let settings = resolve(Overrides::default(), &[], file).unwrap();
            let entries = settings.entries();
            let rows = entries.iter().filter(|entry| entry.key.starts_with("sizes."));
            (rows.map(shown_entry).collect::<Vec<_>>(), settings.old_sizes.map(|origin| origin.to_string()))
        };
        let rows = vec!["sizes.body=2KiB (conf/machinist.toml:2)".to_owned()];
        assert_eq!(sizes("[sizes]\nbody = \"2KiB\""), (rows.clone(), None));
        let old = Some("conf/machinist.toml:1".to_owned());
        assert_eq!(sizes("[limits]\nbody = \"2KiB\""), (rows, old));
        let error = |file| resolve(Overrides::default(), &[], file).unwrap_err().to_string();
        assert_eq!(
            error("[sizes]\nbody = 1\n[limits]\nbody = 1"),
            "conf/machinist.toml:3:1: [limits] is the old name of [sizes], and both are given; keep [sizes]"
        );
        assert!(error("[limits]\nbody = 0").contains("conf/machinist.toml:2:8: limits.body: 0 would"));
        assert!(error("[limitz]\nbody = 0").contains("unknown key \"limitz\""));
        assert!(!error("[limitz]\nbody = 0").contains("\"limits\"?"));
    }

    #[test]
    fn a_file_that_was_named_has_to_exist() {
        let flags = Overrides { config: Some("/nowhere/m.toml".into()), ..Overrides::default() };
        let error = Settings::load(flags).unwrap_err();
        assert_eq!(error.to_string(), "--config: cannot read /nowhere/m.toml");
    }
}
