//! Connections to the servers that the settings name, and the application over them.
//!
//! This is the one place that knows all adapters. A scheme whose adapter was not compiled in is an error that names
//! the cargo feature.

use std::{future::Future, sync::Arc};

use machinist_core::{
    App, AppBuilder, AppError,
    backend::{Backend, BackendError},
    broker::{Broker, BrokerError},
    error::BoxError,
};
use machinist_memory::{MemoryBackend, MemoryBroker};

use crate::{
    plaintext,
    settings::{Overrides, Setting, Settings, SettingsError},
    url::{Role, Scheme, ServerUrl},
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
        .max_sizes(settings.sizes.max_sizes());
    match &settings.freshness {
        Some(window) => app.freshness(window.value),
        None => app,
    }
}

impl Servers {
    /// Connects to the configured broker and backend. One file that is both is opened once.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    pub async fn reach(settings: &Settings) -> Self {
        let broker = &settings.broker.value;
        let backend = &settings.backend.value;
        if let (Some(one), Some(other)) = (broker.file(), backend.file())
            && std::path::absolute(&one).ok() == std::path::absolute(&other).ok()
        {
            return match file::open(broker, Role::Broker, settings).await {
                Ok(store) => store,
                Err(error) => Self {
                    broker: Err(error),
                    backend: Err(ConnectError::File {
                        url: backend.clone(),
                        source: "the same file is the broker, and cannot be used".into(),
                    }),
                },
            };
        }
        Self {
            broker: reach_broker(&settings.broker, settings).await,
            backend: reach_backend(&settings.backend, settings).await,
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
        check_keys(settings)?;
        let mut app = builder(self.broker?, self.backend?, settings);
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
        let mut app = builder(self.broker?, self.backend?, settings);
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
fn check_keys(settings: &Settings) -> Result<(), ConnectError> {
    if settings.lacks_key() && !settings.allow_unsigned.value {
        return Err(ConnectError::NoKey { url: settings.broker.value.clone() });
    }
    settings.keyring()?;
    Ok(())
}

/// Refuses to send a password without TLS to another host.
fn check_plaintext(setting: &Setting<ServerUrl>, settings: &Settings) -> Result<(), SettingsError> {
    let tls = match setting.value.scheme() {
        Scheme::Amqp => "amqps://",
        _ => "rediss://",
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

/// Reads the TLS files, but only for a URL that uses TLS.
#[cfg(any(feature = "amqp", feature = "redis"))]
fn tls(url: &ServerUrl, settings: &Settings) -> Result<machinist_core::tls::Tls, SettingsError> {
    use machinist_core::tls::Tls;

    let files = &settings.tls;
    if !url.scheme().is_tls() {
        return Ok(Tls::default());
    }
    let identity = match (&files.cert_file, &files.key_file) {
        (Some(certificate), Some(key)) => Some((&*certificate.value, &*key.value)),
        (None, None) => None,
        (Some(file), None) => {
            return Err(SettingsError::new(
                &file.origin,
                "tls.cert_file needs its private key: set tls.key_file",
            ));
        }
        (None, Some(file)) => {
            return Err(SettingsError::new(
                &file.origin,
                "tls.key_file needs its certificate: set tls.cert_file",
            ));
        }
    };
    let read = Tls::read(files.ca_file.as_ref().map(|file| &*file.value), identity);
    read.map_err(|error| {
        let why = std::error::Error::source(&error).map(|why| format!(" ({why})")).unwrap_or_default();
        SettingsError::new("tls", format!("{error}{why}"))
    })
}

async fn reach_broker(
    setting: &Setting<ServerUrl>,
    settings: &Settings,
) -> Result<Arc<dyn Broker>, ConnectError> {
    check_plaintext(setting, settings)?;
    let url = &setting.value;
    match url.scheme() {
        Scheme::Amqp | Scheme::Amqps => amqp::reach(url, settings).await,
        Scheme::Sqlite => file::open(url, Role::Broker, settings).await?.broker,
        Scheme::Memory => Ok(Arc::new(MemoryBroker::new())),
        _ => wrong_scheme(url, Role::Broker),
    }
}

async fn reach_backend(
    setting: &Setting<ServerUrl>,
    settings: &Settings,
) -> Result<Arc<dyn Backend>, ConnectError> {
    check_plaintext(setting, settings)?;
    let url = &setting.value;
    match url.scheme() {
        Scheme::Sqlite => file::open(url, Role::Backend, settings).await?.backend,
        Scheme::Memory => Ok(Arc::new(MemoryBackend::new())),
        Scheme::Amqp | Scheme::Amqps => wrong_scheme(url, Role::Backend),
        _ => redis::reach(url, settings).await,
    }
}

/// Refuses a scheme that does not fit the role. Reading a URL has refused it before.
fn wrong_scheme<T>(url: &ServerUrl, role: Role) -> Result<T, ConnectError> {
    Err(SettingsError::new(role.as_str(), format!("{url} cannot be one")).into())
}

#[cfg(feature = "amqp")]
mod amqp {
    use super::*;
    use machinist_broker_amqp::{AmqpBroker, AmqpOptions, TopologyMode};

    pub(super) async fn reach(url: &ServerUrl, settings: &Settings) -> Result<Arc<dyn Broker>, ConnectError> {
        let topology = match settings.topology.value {
            crate::settings::Topology::Declare => TopologyMode::Declare,
            crate::settings::Topology::Verify => TopologyMode::Verify,
        };
        let namespace = settings.namespace.value.clone();
        let options = AmqpOptions { namespace, topology, tls: tls(url, settings)?, ..AmqpOptions::default() };
        match AmqpBroker::connect(url.expose(), options).await {
            Ok(broker) => Ok(Arc::new(broker)),
            Err(source) => Err(ConnectError::Broker { url: url.clone(), source }),
        }
    }
}

#[cfg(not(feature = "amqp"))]
mod amqp {
    use super::*;

    pub(super) async fn reach(url: &ServerUrl, _: &Settings) -> Result<Arc<dyn Broker>, ConnectError> {
        Err(ConnectError::Feature { url: url.clone(), role: Role::Broker, feature: "amqp" })
    }
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use machinist_backend_redis::{RedisBackend, RedisOptions};

    pub(super) async fn reach(
        url: &ServerUrl,
        settings: &Settings,
    ) -> Result<Arc<dyn Backend>, ConnectError> {
        let prefix = settings.namespace.value.clone();
        let options = RedisOptions { prefix, tls: tls(url, settings)?, ..RedisOptions::default() };
        match RedisBackend::connect(url.expose(), options).await {
            Ok(backend) => Ok(Arc::new(backend)),
            Err(source) => Err(ConnectError::Backend { url: url.clone(), source }),
        }
    }
}

#[cfg(not(feature = "redis"))]
mod redis {
    use super::*;

    pub(super) async fn reach(url: &ServerUrl, _: &Settings) -> Result<Arc<dyn Backend>, ConnectError> {
        Err(ConnectError::Feature { url: url.clone(), role: Role::Backend, feature: "redis" })
    }
}

#[cfg(feature = "sqlite")]
mod file {
    use super::*;
    use machinist_sqlite::{SqliteOptions, SqliteStore};

    pub(super) async fn open(url: &ServerUrl, _: Role, settings: &Settings) -> Result<Servers, ConnectError> {
        let options =
            SqliteOptions { namespace: settings.namespace.value.clone(), ..SqliteOptions::default() };
        match SqliteStore::open(url.file().unwrap_or_default(), options).await {
            Ok(store) => {
                Ok(Servers { broker: Ok(Arc::new(store.broker())), backend: Ok(Arc::new(store.backend())) })
            }
            Err(error) => Err(ConnectError::File { url: url.clone(), source: error.into() }),
        }
    }
}

#[cfg(not(feature = "sqlite"))]
mod file {
    use super::*;

    pub(super) async fn open(url: &ServerUrl, role: Role, _: &Settings) -> Result<Servers, ConnectError> {
        Err(ConnectError::Feature { url: url.clone(), role, feature: "sqlite" })
    }
}

/// Constructors of an [`App`] from settings.
pub trait AppExt: Sized {
    /// Builds an application from the `MACHINIST_*` variables and `machinist.toml`, by default over the file
    /// `machinist.db` in the current folder: see [`settings`](crate::settings).
    ///
    /// # Errors
    /// [`ConnectError`] names the setting that is wrong or the server that cannot be reached.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    fn from_env() -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// Builds an application from settings.
    ///
    /// # Errors
    /// [`ConnectError`] names the setting that is wrong or the server that cannot be reached.
    ///
    /// # Cancel safety
    /// Safe: open connections are closed.
    fn from_settings(settings: &Settings) -> impl Future<Output = Result<Self, ConnectError>> + Send;
}

impl AppExt for App {
    async fn from_env() -> Result<Self, ConnectError> {
        Self::from_settings(&Settings::load(Overrides::default())?).await
    }

    async fn from_settings(settings: &Settings) -> Result<Self, ConnectError> {
        check_keys(settings)?;
        Servers::reach(settings).await.app(settings).await
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
        assert!(matches!(servers.backend, Err(ConnectError::File { .. })));
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
