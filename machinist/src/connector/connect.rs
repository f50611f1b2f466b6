//! The seam between URLs and adapters.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use machinist_core::{
    backend::{Backend, BackendError},
    broker::{Broker, BrokerError},
    error::BoxError,
};

use super::ConnectRequest;
use crate::url::{Reach, Role, Scheme, ServerUrl};

/// Error of a connector. The URL is added by the caller, and need not be part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectorError {
    /// The broker cannot be used.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The backend cannot be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The file cannot be used.
    #[error(transparent)]
    File(BoxError),
    /// A setting other than the URL cannot be used.
    #[error("{name}: {problem}")]
    Setting {
        /// Key of the setting, or its section.
        name: &'static str,
        /// Problem and remedy.
        problem: String,
    },
    /// The connector has no server of this role.
    #[error("it cannot be a {}", .0.as_str())]
    Role(Role),
    /// The adapter was not compiled in.
    #[error("the cargo feature `{feature}` is missing")]
    Feature {
        /// Missing cargo feature.
        feature: &'static str,
    },
}

/// Adapter behind one or several URL schemes.
#[async_trait]
pub trait Connector: fmt::Debug + Send + Sync + 'static {
    /// Returns the schemes of the URLs that it connects to, with the roles of each.
    fn schemes(&self) -> Vec<Scheme>;

    /// Checks the syntax of a URL with one of its schemes, before anything is connected.
    ///
    /// # Errors
    /// A sentence about the URL, with the remedy: `names no host; write toy://HOST`. It must not hold the password.
    fn check(&self, url: &ServerUrl) -> Result<(), String> {
        let _ = url;
        Ok(())
    }

    /// Returns the distance to the server of a URL that was checked: by default that of its scheme, unless its options decide
    /// about TLS.
    fn reach(&self, url: &ServerUrl) -> Reach {
        url.scheme().reach()
    }

    /// Returns `true` if one text may hold several of its URLs, separated by commas: the nodes of one server.
    fn takes_list(&self) -> bool {
        false
    }

    /// Connects to the broker of a URL.
    ///
    /// # Errors
    /// [`ConnectorError`]. Unless it is implemented, no URL is a broker.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        let _ = request;
        Err(ConnectorError::Role(Role::Broker))
    }

    /// Connects to the backend of a URL.
    ///
    /// # Errors
    /// [`ConnectorError`]. Unless it is implemented, no URL is a backend.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    async fn backend(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        let _ = request;
        Err(ConnectorError::Role(Role::Backend))
    }

    /// Connects to a server that is broker and backend: both settings hold the same URL. Unless it is implemented, it
    /// connects to each.
    ///
    /// # Errors
    /// [`ConnectorError`] of the first that cannot be used.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    async fn both(
        &self,
        request: &ConnectRequest<'_>,
    ) -> Result<(Arc<dyn Broker>, Arc<dyn Backend>), ConnectorError> {
        Ok((self.broker(request).await?, self.backend(request).await?))
    }
}
