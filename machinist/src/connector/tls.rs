//! Certificates of connections over TLS.

use std::error::Error;

use machinist_core::tls::Tls;

use super::{ConnectRequest, ConnectorError};

impl ConnectRequest<'_> {
    /// Reads the files of `[tls]`. Reads nothing for a scheme without TLS.
    ///
    /// # Errors
    /// [`ConnectorError::Setting`] names the file that cannot be used.
    pub fn tls(&self) -> Result<Tls, ConnectorError> {
        Tls::read(self.tls_files.ca, self.tls_files.identity).map_err(|error| {
            let why = error.source().map(|why| format!(" ({why})")).unwrap_or_default();
            ConnectorError::Setting { name: "tls", problem: format!("{error}{why}") }
        })
    }
}
