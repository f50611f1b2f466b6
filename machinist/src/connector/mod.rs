//! Connectors: the adapters that the scheme of a URL chooses.
//!
//! A [`Connector`] declares its schemes and connects to a broker, a backend, or both. [`Connectors`] holds them;
//! its default has those of this crate. With another connector, `machinist.toml`, `MACHINIST_BROKER` and
//! `--broker` accept its URLs, and the program works with your servers
//! ([`machinist_cli::Program`](https://docs.rs/machinist-cli)).
//!
//! The only setting of a connector is its URL, which may have a query. The password before the `@`, and query
//! parameters whose names suggest a secret, are never shown: see [`redact`](crate::redact).
//!
//! ```
//! use machinist::{
//!     App, AppExt, Connector, Connectors,
//!     backend::Backend,
//!     broker::Broker,
//!     connector::{ConnectRequest, ConnectorError},
//!     memory::{MemoryBackend, MemoryBroker},
//!     settings::{Overrides, Settings},
//!     url::{Reach, Scheme},
//! };
//! use std::sync::Arc;
//!
//! #[derive(Debug)]
//! struct Toy;
//!
//! #[async_trait::async_trait]
//! impl Connector for Toy {
//!     fn schemes(&self) -> Vec<Scheme> {
//!         vec![Scheme::both("toy", Reach::Process)]
//!     }
//!     async fn broker(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
//!         Ok(Arc::new(MemoryBroker::new()))
//!     }
//!     async fn backend(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
//!         Ok(Arc::new(MemoryBackend::new()))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let flags = Overrides { broker: Some("toy://a".into()), backend: Some("toy://a".into()), ..Overrides::default() };
//! let settings = Settings::load_with(&Connectors::default().with(Toy), flags)?;
//! let app = App::from_settings(&settings).await?;
//! # drop(app);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "amqp")]
mod amqp;
mod built_in;
mod connect;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
mod registry;
mod request;
mod schemes;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "tls")]
mod tls;

pub use connect::{Connector, ConnectorError};
#[cfg(feature = "postgres")]
pub(crate) use postgres::options as postgres_options;
pub use registry::Connectors;
pub use request::{ConnectRequest, TlsFiles};
