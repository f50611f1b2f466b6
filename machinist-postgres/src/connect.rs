//! Opening of connections.

use std::{future::poll_fn, io, sync::Arc, time::Duration};

use machinist_adapter::tls::{self, Tls};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{error::PostgresError, target::ServerTarget};

/// Maximum time to open a connection, login included, over all hosts.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Receives what the server says without being asked, until the connection has ended.
pub(crate) type OnMessage = Box<dyn FnMut(AsyncMessage) + Send>;

/// A server, and how to connect to it.
pub(crate) struct ServerConnector {
    pub(crate) target: ServerTarget,
    tls: Tls,
    rustls: Option<MakeRustlsConnect>,
}

impl ServerConnector {
    pub(crate) fn new(target: ServerTarget, tls: Tls) -> Result<Self, PostgresError> {
        let rustls = target.tls.then(|| client_config(&tls)).transpose();
        let rustls =
            rustls.map_err(|error| PostgresError::configuration(format!("TLS cannot be used: {error}")))?;
        Ok(Self { target, tls, rustls: rustls.map(MakeRustlsConnect::new) })
    }

    /// Opens a connection. A task of this runtime reads it until it ends.
    pub(crate) async fn open(&self, on_message: OnMessage) -> Result<Client, PostgresError> {
        let opened = timeout(OPEN_TIMEOUT, async {
            match &self.rustls {
                Some(rustls) => {
                    let (client, connection) = self.target.config.connect(rustls.clone()).await?;
                    tokio::spawn(read(connection, on_message));
                    Ok(client)
                }
                None => {
                    let (client, connection) = self.target.config.connect(NoTls).await?;
                    tokio::spawn(read(connection, on_message));
                    Ok(client)
                }
            }
        });
        match opened.await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => Err(PostgresError::lost(format!("no connection within {OPEN_TIMEOUT:?}"))),
        }
    }

    fn explain(&self, error: &Error) -> PostgresError {
        match self.tls.explain(error) {
            Some(why) => PostgresError::refused(format!("{} {why}", self.target.location)),
            None if PostgresError::of(error).to_string().contains("does not support TLS") => {
                PostgresError::refused(format!(
                    "{} does not speak TLS; set ssl = on there, or, on a trusted network, add ?sslmode=disable to the URL",
                    self.target.location
                ))
            }
            None => PostgresError::of(error),
        }
    }
}

/// Reads a connection until it has ended.
async fn read<S, T>(mut connection: tokio_postgres::Connection<S, T>, mut on_message: OnMessage)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(message)) => on_message(message),
            Some(Err(error)) => {
                tracing::debug!(%error, "a connection to PostgreSQL has ended");
                return;
            }
            None => return,
        }
    }
}

/// Returns the settings of TLS: the certificates to trust, and the one to show.
fn client_config(tls: &Tls) -> Result<ClientConfig, io::Error> {
    tls::install_provider();
    let mut roots = RootCertStore::empty();
    match tls.ca() {
        Some(pem) => {
            for certificate in tls::certificates(pem)? {
                roots.add(certificate).map_err(io::Error::other)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(io::Error::other(
                    "the system has no trusted certificates; install ca-certificates, or name a file with ca_file under [tls]",
                ));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let builder = builder.with_root_certificates(roots);
    match tls.identity() {
        Some(identity) => builder
            .with_client_auth_cert(tls::certificates(&identity.certificates)?, tls::key(&identity.key)?)
            .map_err(io::Error::other),
        None => Ok(builder.with_no_client_auth()),
    }
}
