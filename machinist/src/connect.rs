//! Connections to the servers that the settings name, and the application over them.
//!
//! The schemes of the URLs choose the adapters: see [`connector`](crate::connector). A scheme of this crate whose adapter
//! was not compiled in is an error that names the cargo feature.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use machinist_core::{
    App, AppBuilder, AppError, QueueName, QueueOptions,
    backend::{Backend, BackendError},
    broker::{Broker, BrokerError},
    error::BoxError,
};

use crate::{
    connector::{ConnectRequest, Connector, ConnectorError, TlsFiles},
    plaintext, profiles,
    settings::{Overrides, Setting, Settings, SettingsError, TlsSettings, UnsignedQueue},
    topology::QueueAddress,
    url::{Reach, Role, ServerUrl},
};

/// Error of connecting to the configured servers. Its texts hold no password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The adapter for the URL was not compiled in.
    #[error("{url}: this program was built without {role}s of this kind; build it with the cargo feature `{feature}`", role = role.as_str())]
    Feature {
        /// URL of the server.
        url: ServerUrl,
        /// Role of the server.
        role: Role,
        /// Missing cargo feature.
        feature: &'static str,
    },
    /// The broker cannot be used.
    #[error("broker {url}")]
    Broker {
        /// URL of the broker.
        url: ServerUrl,
        /// Error of the broker.
        source: BrokerError,
    },
    /// The backend cannot be used.
    #[error("backend {url}")]
    Backend {
        /// URL of the backend.
        url: ServerUrl,
        /// Error of the backend.
        source: BackendError,
    },
    /// The broker is reached over a network and no key is configured: anyone who can publish to the broker could run
    /// every task.
    #[error(
        "broker {url}: it is shared over the network, and there is no key to sign and verify tasks; \
         `machinist keygen` makes one: name it by --key-file, MACHINIST_KEY_FILE or key_file in machinist.toml (to \
         send and run unsigned tasks, set --allow-unsigned, MACHINIST_ALLOW_UNSIGNED=true or \
         allow_unsigned = true)"
    )]
    NoKey {
        /// URL of the broker.
        url: ServerUrl,
    },
    /// Broker and backend can be used, but the application cannot be built over them.
    #[error(transparent)]
    App(AppError),
    /// The SQLite file cannot be used.
    #[error("{url}")]
    File {
        /// URL of the file.
        url: ServerUrl,
        /// Error of the file.
        source: BoxError,
    },
    /// The backend is the same server as the broker, which cannot be used.
    #[error("backend {url}: the same server is the broker, and cannot be used")]
    AlsoBroker {
        /// URL of the server.
        url: ServerUrl,
    },
}

/// Broker and backend, each connected or failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Servers {
    /// The broker, or the error of connecting to it.
    pub broker: Result<Arc<dyn Broker>, ConnectError>,
    /// The backend, or the error of connecting to it.
    pub backend: Result<Arc<dyn Backend>, ConnectError>,
}

/// Starts an application with the settings that senders, workers and readers share.
fn builder(broker: Arc<dyn Broker>, backend: Arc<dyn Backend>, settings: &Settings) -> AppBuilder {
    let app = App::builder(broker, backend)
        .namespace(&*settings.namespace.value)
        .results_ttl(settings.results_ttl.value)
        .max_sizes(settings.sizes.max_sizes())
        .events(settings.events.value);
    let depths = settings.max_depths.iter();
    let app = depths.fold(app, |app, (queue, most)| app.max_depth(queue.clone(), most.value));
    let separate = settings.priority_queues.iter().filter(|(_, separate)| separate.value);
    let app = separate.fold(app, |app, (queue, _)| app.priority_queues(queue.clone()));
    let shares = settings.fair_shares.iter();
    let app = shares.fold(app, |app, (queue, share)| app.fair_queue(queue.clone(), share.value.clone()));
    let app = settings.buffer.iter().fold(app, |app, buffer| app.buffer(buffer.value));
    match &settings.freshness {
        Some(window) => app.freshness(window.value),
        None => app,
    }
}

/// Gives the queues from which tasks run without a signature their options. States of tasks are shown to the programs that
/// share the queues, and read where those programs have run a task.
async fn with_unsigned_queues(app: AppBuilder, settings: &Settings) -> Result<AppBuilder, ConnectError> {
    let mut app = app;
    for (queue, unsigned) in &settings.unsigned_queues {
        let mut options = profiles::options(queue, unsigned, settings)?;
        if unsigned.profile.is_some() {
            options = Box::pin(mirrored(options, queue, unsigned, settings)).await?;
        }
        app = app.queue(queue.clone(), options);
    }
    Ok(app)
}

/// Adds the mirror of a queue of Go machinery to its options, if there is a Redis.
#[cfg(feature = "machinery")]
async fn mirrored(
    options: QueueOptions,
    queue: &QueueName,
    unsigned: &UnsignedQueue,
    settings: &Settings,
) -> Result<QueueOptions, ConnectError> {
    let setting = unsigned.result_backend.as_ref().unwrap_or(&settings.backend);
    if !setting.value.scheme().as_str().starts_with("redis") {
        tracing::warn!(
            %queue,
            "the states of its tasks are not shown to Go machinery, because the backend is not its Redis; set \
             result_backend in [queues.{queue}]"
        );
        return Ok(options);
    }
    let existing = BTreeMap::new();
    let request = request(setting, settings, &existing)?;
    let redis = crate::connector::redis::open(&request).await;
    let redis = redis.map_err(|error| connector_error(error, Role::Backend, &setting.value))?;
    Ok(options.mirror(profiles::mirror(&redis, queue, unsigned, settings)))
}

#[cfg(not(feature = "machinery"))]
async fn mirrored(
    options: QueueOptions,
    _queue: &QueueName,
    _unsigned: &UnsignedQueue,
    _settings: &Settings,
) -> Result<QueueOptions, ConnectError> {
    Ok(options)
}

impl Servers {
    /// Connects to the configured broker and backend, with the connectors by which the settings were read. One server
    /// that is both is opened once.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    pub async fn reach(settings: &Settings) -> Self {
        if settings.broker.value.is_same_server(&settings.backend.value) {
            return Self::reach_both(settings).await;
        }
        Self { broker: reach_broker(settings).await, backend: reach_backend(settings).await }
    }

    async fn reach_both(settings: &Settings) -> Self {
        let setting = &settings.broker;
        let reached = async {
            let existing = settings.existing_queues();
            let request = request(setting, settings, &existing)?;
            let both = connector(setting, settings)?.both(&request).await;
            both.map_err(|error| connector_error(error, Role::Broker, &setting.value))
        };
        match reached.await {
            Ok((broker, backend)) => Self { broker: Ok(broker), backend: Ok(backend) },
            Err(error) => {
                let backend = ConnectError::AlsoBroker { url: settings.backend.value.clone() };
                Self { broker: Err(error), backend: Err(backend) }
            }
        }
    }

    /// Builds an application over both, with the configured keys.
    ///
    /// # Errors
    /// [`ConnectError`] of the server or the key that cannot be used.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    pub async fn app(self, settings: &Settings) -> Result<App, ConnectError> {
        self.app_with(settings, |app| app).await
    }

    /// Builds an application as [`app`](Self::app) does, after `adjust` has changed its builder: hooks, codec, middleware,
    /// observers.
    ///
    /// # Errors
    /// As [`app`](Self::app).
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    pub async fn app_with(
        self,
        settings: &Settings,
        adjust: impl FnOnce(AppBuilder) -> AppBuilder,
    ) -> Result<App, ConnectError> {
        check_keys(settings)?;
        let app = builder(self.broker?, self.backend?, settings).worker_defaults(settings.worker_defaults());
        let app = with_unsigned_queues(app, settings).await?;
        let mut app = adjust(app);
        if let Some(keyring) = settings.signing_keyring()? {
            app = app.keyring(keyring);
        }
        if settings.allow_unsigned.value {
            tracing::warn!(
                from = %settings.allow_unsigned.origin,
                "unsigned tasks are allowed: anyone who can publish to a queue can run every task of its workers"
            );
            app = app.allow_unsigned();
        }
        app.build().await.map_err(|error| build_error(error, settings))
    }

    /// Builds an application that only reads: it needs no key, and creates none. Without a key it cannot verify that
    /// results were written by a worker.
    ///
    /// # Errors
    /// [`ConnectError`] of the server or the configured key that cannot be used.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    pub async fn reader(self, settings: &Settings) -> Result<App, ConnectError> {
        let app = builder(self.broker?, self.backend?, settings);
        let mut app = with_unsigned_queues(app, settings).await?;
        match settings.keyring()? {
            Some(keyring) => {
                app = app.keyring(keyring);
                if settings.allow_unsigned.value {
                    app = app.allow_unsigned();
                }
            }
            None => {
                tracing::debug!("there is no key here, so it is not checked who wrote the results");
                app = app.allow_unsigned();
            }
        }
        app.build().await.map_err(|error| build_error(error, settings))
    }
}

fn build_error(error: AppError, settings: &Settings) -> ConnectError {
    match error {
        AppError::Backend(source) => ConnectError::Backend { url: settings.backend.value.clone(), source },
        other => ConnectError::App(other),
    }
}

/// Checks the keys, before anything is connected.
pub(crate) fn check_keys(settings: &Settings) -> Result<(), ConnectError> {
    if settings.lacks_key() && !settings.allow_unsigned.value {
        return Err(ConnectError::NoKey { url: settings.broker.value.clone() });
    }
    settings.keyring()?;
    Ok(())
}

/// Refuses to send a password without TLS to another host.
fn check_plaintext(setting: &Setting<ServerUrl>, settings: &Settings) -> Result<(), SettingsError> {
    let tls = match setting.value.scheme().reach() {
        Reach::Network { over_tls: Some(scheme) } if scheme == setting.value.scheme().as_str() => {
            "sslmode=verify-full in the URL".to_owned()
        }
        Reach::Network { over_tls: Some(scheme) } => format!("{scheme}://"),
        _ => "a connection without a password".to_owned(),
    };
    match plaintext::exposed_to(&setting.value).filter(|_| !settings.insecure_plaintext.value) {
        None => Ok(()),
        Some(host) => Err(SettingsError::new(
            &setting.origin,
            format!(
                "{} would send its password to {host} in plain text; use {tls}, or, on a trusted network, \
                 --insecure-plaintext, MACHINIST_INSECURE_PLAINTEXT=true or insecure_plaintext = true",
                setting.value
            ),
        )),
    }
}

/// Returns the files of `[tls]`, but only for a URL that uses TLS.
fn tls_files<'a>(url: &ServerUrl, files: &'a TlsSettings) -> Result<TlsFiles<'a>, SettingsError> {
    if !url.scheme().is_tls() {
        return Ok(TlsFiles::default());
    }
    let lacks = |file: &Setting<_>, problem: &str| Err(SettingsError::new(&file.origin, problem));
    let identity = match (&files.cert_file, &files.key_file) {
        (Some(certificate), Some(key)) => Some((&*certificate.value, &*key.value)),
        (None, None) => None,
        (Some(file), None) => return lacks(file, "tls.cert_file needs its private key: set tls.key_file"),
        (None, Some(file)) => return lacks(file, "tls.key_file needs its certificate: set tls.cert_file"),
    };
    Ok(TlsFiles { ca: files.ca_file.as_ref().map(|file| &*file.value), identity })
}

/// Returns the request for a server, unless its URL would send a password in plain text.
pub(crate) fn request<'a>(
    setting: &'a Setting<ServerUrl>,
    settings: &'a Settings,
    existing_queues: &'a BTreeMap<QueueName, QueueAddress>,
) -> Result<ConnectRequest<'a>, SettingsError> {
    check_plaintext(setting, settings)?;
    Ok(ConnectRequest {
        url: &setting.value,
        namespace: &settings.namespace.value,
        topology: settings.topology.value,
        existing_queues,
        tls_files: tls_files(&setting.value, &settings.tls)?,
        loopback_only: plaintext::is_plain_login(&setting.value) && !settings.insecure_plaintext.value,
    })
}

/// Returns the connector of a server. Settings hold no URL without one.
fn connector<'a>(
    setting: &Setting<ServerUrl>,
    settings: &'a Settings,
) -> Result<&'a dyn Connector, SettingsError> {
    let unknown = || SettingsError::new(&setting.origin, format!("{} has an unknown scheme", setting.value));
    settings.connectors.connector(&setting.value).ok_or_else(unknown)
}

async fn reach_broker(settings: &Settings) -> Result<Arc<dyn Broker>, ConnectError> {
    let setting = &settings.broker;
    let existing = settings.existing_queues();
    let request = request(setting, settings, &existing)?;
    let broker = connector(setting, settings)?.broker(&request).await;
    broker.map_err(|error| connector_error(error, Role::Broker, &setting.value))
}

async fn reach_backend(settings: &Settings) -> Result<Arc<dyn Backend>, ConnectError> {
    let setting = &settings.backend;
    let existing = settings.existing_queues();
    let request = request(setting, settings, &existing)?;
    let backend = connector(setting, settings)?.backend(&request).await;
    backend.map_err(|error| connector_error(error, Role::Backend, &setting.value))
}

/// Adds the URL to the error of a connector.
pub(crate) fn connector_error(error: ConnectorError, role: Role, url: &ServerUrl) -> ConnectError {
    let url = url.clone();
    match error {
        ConnectorError::Broker(source) => ConnectError::Broker { url, source },
        ConnectorError::Backend(source) => ConnectError::Backend { url, source },
        ConnectorError::File(source) => ConnectError::File { url, source },
        ConnectorError::Feature { feature } => ConnectError::Feature { url, role, feature },
        ConnectorError::Setting { name, problem } => SettingsError::new(name, problem).into(),
        ConnectorError::Role(role) => {
            SettingsError::new(role.as_str(), format!("{url} cannot be one")).into()
        }
    }
}

/// Constructors of an [`App`] from settings.
///
/// Its workers take over `[worker]`, `[tasks.NAME]` and `[periodic.NAME]`, and the variables `MACHINIST_QUEUES`,
/// `MACHINIST_CONCURRENCY`, `MACHINIST_GRACE` and so on, for what their builders do not set. Queues are added to those of the
/// builder.
pub trait AppExt: Sized {
    /// Builds an application from the `MACHINIST_*` variables and `machinist.toml`, by default over the file
    /// `machinist.db` in the current folder: see [`settings`](crate::settings).
    ///
    /// # Errors
    /// [`ConnectError`] names the setting that is wrong or the server that cannot be reached.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&folder)?;
    /// use machinist::prelude::*;
    ///
    /// let app = App::from_env().await?;
    /// # drop(app);
    /// # Ok(())
    /// # }
    /// ```
    fn from_env() -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// Builds an application from settings.
    ///
    /// # Errors
    /// [`ConnectError`] names the setting that is wrong or the server that cannot be reached.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    fn from_settings(settings: &Settings) -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// Builds an application as [`from_env`](Self::from_env) does, after `adjust` has changed its builder: hooks, codec,
    /// middleware, observers.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), machinist::ConnectError> {
    /// use machinist::{Codec, prelude::*};
    ///
    /// let app = App::from_env_with(|app| app.codec(Codec::Json)).await?;
    /// # Ok(())
    /// # }
    /// ```
    fn from_env_with(
        adjust: impl FnOnce(AppBuilder) -> AppBuilder + Send,
    ) -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// Builds an application as [`from_settings`](Self::from_settings) does, after `adjust` has changed its builder.
    ///
    /// # Errors
    /// As [`from_settings`](Self::from_settings).
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    fn from_settings_with(
        settings: &Settings,
        adjust: impl FnOnce(AppBuilder) -> AppBuilder + Send,
    ) -> impl Future<Output = Result<Self, ConnectError>> + Send;
}

impl AppExt for App {
    async fn from_env() -> Result<Self, ConnectError> {
        Self::from_settings(&Settings::load(Overrides::default())?).await
    }

    async fn from_settings(settings: &Settings) -> Result<Self, ConnectError> {
        Self::from_settings_with(settings, |app| app).await
    }

    async fn from_env_with(
        adjust: impl FnOnce(AppBuilder) -> AppBuilder + Send,
    ) -> Result<Self, ConnectError> {
        Self::from_settings_with(&Settings::load(Overrides::default())?, adjust).await
    }

    async fn from_settings_with(
        settings: &Settings,
        adjust: impl FnOnce(AppBuilder) -> AppBuilder + Send,
    ) -> Result<Self, ConnectError> {
        check_keys(settings)?;
        Servers::reach(settings).await.app_with(settings, adjust).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(broker: &str, backend: &str) -> Settings {
        let flags = Overrides {
            broker: Some(broker.to_owned()),
            backend: Some(backend.to_owned()),
            ..Overrides::default()
        };
        Settings::resolve(flags, &|_| None, None).unwrap()
    }

    #[tokio::test]
    async fn memory_is_an_application_of_one_process() {
        let app = App::from_settings(&settings("memory://", "memory://")).await.unwrap();
        assert_eq!(app.broker().location(), "memory");
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn one_file_is_opened_once() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/m.db", folder.path().display());
        let app = App::from_settings(&settings(&url, &url)).await.unwrap();
        assert_eq!(app.broker().location(), app.backend().location());
        let url = format!("sqlite://{}", folder.path().display());
        let servers = Servers::reach(&settings(&url, &url)).await;
        assert!(matches!(servers.broker, Err(ConnectError::File { .. })));
        assert!(matches!(servers.backend, Err(ConnectError::AlsoBroker { .. })));
    }

    /// A message that is carried from one namespace of a file to another, where the same key is trusted.
    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn the_namespace_of_the_settings_is_signed() {
        use machinist_core::{
            QueueName, Signature,
            broker::{Consume, Publish, Settle, Target},
        };

        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/m.db", folder.path().display());
        let app = async |namespace: &str| {
            let flags = Overrides {
                broker: Some(url.clone()),
                backend: Some(url.clone()),
                namespace: Some(namespace.to_owned()),
                ..Overrides::default()
            };
            App::from_settings(&Settings::resolve(flags, &|_| None, None).unwrap()).await.unwrap()
        };
        let queue: QueueName = "default".try_into().unwrap();
        let (one, other) = (app("one").await, app("other").await);
        one.client().send(Signature::new("add")).await.unwrap();
        let what = Consume { queues: vec![queue.clone()], prefetch: 1 };
        let captured = one.broker().consume(what).await.unwrap().next().await.unwrap();
        let message = captured.message.clone();
        captured.receipt.settle(Settle::Ack).await;

        let publish =
            Publish { target: Target::Queue(queue.clone()), message, delay: std::time::Duration::ZERO };
        other.broker().publish(vec![publish]).await.remove(0).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let worker = machinist_core::Worker::builder(&other).build().unwrap();
        let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        let which = machinist_core::DeadFilter { queue: Some(queue), ..Default::default() };
        let letter = loop {
            if let Some(letter) = other.client().dead_letters(&which, 1).await.unwrap().pop() {
                break letter;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        assert_eq!(letter.reason, "bad-signature");
        drop(stop);
        worker.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nobody_works_or_sends_over_a_network_without_a_key() {
        let error =
            App::from_settings(&settings("amqp://u:geheim@127.0.0.1:1", "memory://")).await.unwrap_err();
        assert!(matches!(error, ConnectError::NoKey { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("machinist keygen") && text.contains("--key-file"), "{text}");
        assert!(!text.contains("geheim"), "{text}");
    }

    #[tokio::test]
    async fn passwords_stay_here_unless_somebody_says_otherwise() {
        let servers = Servers::reach(&settings("amqp://u:geheim@mq", "redis://:geheim@cache")).await;
        let error = servers.broker.unwrap_err().to_string();
        assert!(error.starts_with("flag --broker: amqp://u:***@mq would send its password to mq"), "{error}");
        assert!(error.contains("amqps://") && error.contains("--insecure-plaintext"), "{error}");
        let error = servers.backend.unwrap_err().to_string();
        assert!(error.contains("rediss://") && !error.contains("geheim"), "{error}");
        let flags = Overrides { insecure_plaintext: true, ..Overrides::default() };
        let env = |name: &str| (name == "MACHINIST_BROKER").then(|| "amqp://u:geheim@mq".into());
        let settings = Settings::resolve(flags, &env, None).unwrap();
        assert!(check_plaintext(&settings.broker, &settings).is_ok());
    }

    #[cfg(not(feature = "amqp"))]
    #[tokio::test]
    async fn a_missing_adapter_is_told_by_its_feature() {
        let error = Servers::reach(&settings("amqp://u:geheim@[::1]", "memory://")).await.broker.unwrap_err();
        assert_eq!(
            error.to_string(),
            "amqp://u:***@[::1]: this program was built without brokers of this kind; build it with the cargo feature `amqp`"
        );
    }
}
