//! From settings to servers: which adapter a URL's scheme means.
//!
//! This is the one place that knows all adapters; a scheme whose adapter was not compiled in is an error that
//! names the cargo feature.

use std::{future::Future, sync::Arc};

use machinist_core::{
    App, AppError,
    backend::{Backend, BackendError},
    broker::{Broker, BrokerError},
    error::BoxError,
    memory::{MemoryBackend, MemoryBroker},
};

use crate::{
    settings::{Overrides, Settings, SettingsError},
    url::{Role, Scheme, ServerUrl},
};

/// Why an application could not be made from what is configured. No text of it holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What is configured cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The adapter for the URL was not compiled in.
    #[error("{url}: this program was built without {role}s of this kind; build it with the cargo feature `{feature}`", role = role.as_str())]
    Feature {
        /// The URL.
        url: ServerUrl,
        /// What it was wanted for.
        role: Role,
        /// The feature that is missing.
        feature: &'static str,
    },
    /// The broker cannot be used.
    #[error("broker {url}")]
    Broker {
        /// Where it should be.
        url: ServerUrl,
        /// What is wrong with it.
        source: BrokerError,
    },
    /// The backend cannot be used.
    #[error("backend {url}")]
    Backend {
        /// Where it should be.
        url: ServerUrl,
        /// What is wrong with it.
        source: BackendError,
    },
    /// Both can be used, and the application that was asked for cannot be made over them.
    #[error(transparent)]
    App(AppError),
    /// The file cannot be used.
    #[error("{url}")]
    File {
        /// The file.
        url: ServerUrl,
        /// What is wrong with it.
        source: BoxError,
    },
}

/// A broker and a backend, each reached or not.
#[derive(Debug)]
#[non_exhaustive]
pub struct Servers {
    /// Where messages go.
    pub broker: Result<Arc<dyn Broker>, ConnectError>,
    /// Where states are remembered.
    pub backend: Result<Arc<dyn Backend>, ConnectError>,
}

impl Servers {
    /// Reaches the broker and the backend that are configured. One file that is both is opened once.
    ///
    /// # Cancel safety
    /// Safe: connections that were made are closed.
    pub async fn reach(settings: &Settings) -> Self {
        let (broker, backend) = (&settings.broker.value, &settings.backend.value);
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
        Self { broker: reach_broker(broker, settings).await, backend: reach_backend(backend, settings).await }
    }

    /// An application over both.
    ///
    /// # Errors
    /// [`ConnectError`] of the one that cannot be used.
    ///
    /// # Cancel safety
    /// Safe: connections that were made are closed.
    pub async fn app(self, settings: &Settings) -> Result<App, ConnectError> {
        // The settings know no keys yet.
        let app = App::builder(self.broker?, self.backend?)
            .results_ttl(settings.results_ttl.value)
            .allow_unsigned()
            .build();
        app.await.map_err(|error| match error {
            AppError::Backend(source) => {
                ConnectError::Backend { url: settings.backend.value.clone(), source }
            }
            other => ConnectError::App(other),
        })
    }
}

async fn reach_broker(url: &ServerUrl, settings: &Settings) -> Result<Arc<dyn Broker>, ConnectError> {
    match url.scheme() {
        Scheme::Amqp | Scheme::Amqps => amqp::reach(url, settings).await,
        Scheme::Sqlite => file::open(url, Role::Broker, settings).await?.broker,
        Scheme::Memory => Ok(Arc::new(MemoryBroker::new())),
        _ => unreachable_scheme(url, Role::Broker),
    }
}

async fn reach_backend(url: &ServerUrl, settings: &Settings) -> Result<Arc<dyn Backend>, ConnectError> {
    match url.scheme() {
        Scheme::Sqlite => file::open(url, Role::Backend, settings).await?.backend,
        Scheme::Memory => Ok(Arc::new(MemoryBackend::new())),
        Scheme::Amqp | Scheme::Amqps => unreachable_scheme(url, Role::Backend),
        _ => redis::reach(url, settings).await,
    }
}

/// A URL whose scheme does not fit was refused when it was read; this is for those who made one otherwise.
fn unreachable_scheme<T>(url: &ServerUrl, role: Role) -> Result<T, ConnectError> {
    Err(SettingsError::new(role.as_str(), format!("{url} cannot be one")).into())
}

#[cfg(feature = "amqp")]
mod amqp {
    use super::*;
    use machinist_broker_amqp::{AmqpBroker, AmqpOptions};

    pub(super) async fn reach(url: &ServerUrl, settings: &Settings) -> Result<Arc<dyn Broker>, ConnectError> {
        let options = AmqpOptions { namespace: settings.namespace.value.clone(), ..AmqpOptions::default() };
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
        let options = RedisOptions { prefix: settings.namespace.value.clone(), ..RedisOptions::default() };
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

/// Making an [`App`] from what is configured.
pub trait AppExt: Sized {
    /// An application over what the `MACHINIST_*` variables and `machinist.toml` say, else over the file
    /// `machinist.db` in the current folder: see [`settings`](crate::settings).
    ///
    /// # Errors
    /// [`ConnectError`] says what is configured wrong, or cannot be reached.
    ///
    /// # Cancel safety
    /// Safe: connections that were made are closed.
    fn from_env() -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// An application over these settings.
    ///
    /// # Errors
    /// [`ConnectError`] says what is configured wrong, or cannot be reached.
    ///
    /// # Cancel safety
    /// Safe: connections that were made are closed.
    fn from_settings(settings: &Settings) -> impl Future<Output = Result<Self, ConnectError>> + Send;
}

impl AppExt for App {
    async fn from_env() -> Result<Self, ConnectError> {
        Self::from_settings(&Settings::load(Overrides::default())?).await
    }

    async fn from_settings(settings: &Settings) -> Result<Self, ConnectError> {
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

    #[cfg(not(feature = "amqp"))]
    #[tokio::test]
    async fn a_missing_adapter_is_told_by_its_feature() {
        let error = App::from_settings(&settings("amqp://u:geheim@h", "memory://")).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "amqp://u:***@h: this program was built without brokers of this kind; build it with the cargo feature `amqp`"
        );
    }
}
