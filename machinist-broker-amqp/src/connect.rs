//! Opening of one connection within a bounded time, with a handle that is certain to end it.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use async_rs::TokioRuntime;
use futures_util::AsyncReadExt as _;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, ErrorKind,
    tcp::{Identity, RustlsConnector, RustlsConnectorConfig, TLSConfig},
};
use machinist_adapter::{
    broker::BrokerError,
    tls::{self, Tls},
};

use crate::{
    address::Address,
    endpoint::{self, Addresses, Endpoint},
    error::{AmqpError, CLOSE_TIMEOUT, error_chain},
    runtime::{BrokerStream, SanitizingRuntime},
    sanitize::SanitizedStream,
    socket::SocketHandle,
};

/// Maximum time of a question to one address: TCP, TLS, and what is asked.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connection as lapin opened it, with the handle that ends it.
pub(crate) struct OpenedConnection {
    pub(crate) connection: Connection,
    pub(crate) socket: SocketHandle,
    pub(crate) endpoint: Endpoint,
}

/// Failed attempt to connect, with the address whose error says most.
#[derive(Debug)]
pub(crate) struct FailedConnect {
    pub(crate) error: AmqpError,
    address: Address,
    /// `None` if the name of the address could not be looked up.
    peer: Option<SocketAddr>,
}

/// Opens a connection to the first address that works, or fails. Each gets its [share](endpoint::share) of the time.
///
/// # Cancel safety
/// If the future is dropped early, the attempt ends by itself within the share of one address, or with its peer.
pub(crate) async fn connect(
    addresses: &Addresses,
    tls: &Tls,
    name: &str,
) -> Result<OpenedConnection, FailedConnect> {
    let (endpoints, errors) = addresses.resolve().await;
    let share = endpoint::share(endpoints.len());
    let mut failed: Vec<FailedConnect> = Vec::new();
    for (address, error) in errors {
        failed.push(FailedConnect { error, address, peer: None });
    }
    for endpoint in endpoints {
        match open(&endpoint, tls, name, share).await {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                addresses.failed(endpoint.peer);
                tracing::debug!(peer = %endpoint.peer, error = %error_chain(&error), "an address of the broker failed");
                failed.push(FailedConnect { error, address: endpoint.address, peer: Some(endpoint.peer) });
            }
        }
    }
    // A broker that answers with an error says more than one that does not answer.
    let says_more = |failed: &FailedConnect| {
        failed.error.server_error().is_some_and(|_| !failed.error.is_transient())
            || tls.explain(&failed.error).is_some()
    };
    let best = failed.iter().position(says_more).unwrap_or_else(|| failed.len().saturating_sub(1));
    Err(failed.swap_remove(best))
}

/// Opens a connection to one endpoint within `share`.
async fn open(
    endpoint: &Endpoint,
    tls: &Tls,
    name: &str,
    share: Duration,
) -> Result<OpenedConnection, AmqpError> {
    let socket = SocketHandle::default();
    let guard = ShutDownOnDrop(Some(socket.clone()));
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "machinist".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let operation = format!("connecting to {} at {}", endpoint.address, endpoint.peer);
    let runtime = SanitizingRuntime::current().map_err(|error| AmqpError::lapin(&operation, error))?;
    let tokio = lapin::runtime::default_runtime().map_err(|error| AmqpError::lapin(&operation, error))?;
    let target = endpoint.clone();
    let tls = tls.clone();
    let end = socket.clone();
    let open = Connection::connector(
        endpoint.address.uri(),
        runtime,
        async move |_, _| {
            let dial = async {
                let stream = dial_plain(&target, &tokio).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    socket.attach(duplicate(plain.get_ref())?);
                }
                with_tls(stream, &target.address, &tls).await
            };
            // This runs on lapin's own thread and outlives the caller's future.
            let dialled = tokio::time::timeout(share, dial).await;
            dialled
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
                .map(|stream| AsyncTcpStream::Plain(SanitizedStream::new(stream, end.clone())))
                .map_err(|error| ErrorKind::IOError(Arc::new(error)).into())
        },
        properties,
    );
    match tokio::time::timeout(share, open).await {
        Ok(Ok(connection)) => {
            let endpoint = endpoint.clone();
            Ok(OpenedConnection { connection, socket: guard.release(), endpoint })
        }
        Ok(Err(error)) => Err(AmqpError::lapin(operation, error)),
        Err(_) => Err(AmqpError::timeout(operation, share)),
    }
}

/// Guard that ends an attempt which was dropped, or failed halfway.
struct ShutDownOnDrop(Option<SocketHandle>);

impl ShutDownOnDrop {
    fn release(mut self) -> SocketHandle {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for ShutDownOnDrop {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket.shut_down();
        }
    }
}

/// Opens a stream to the broker and sends nothing on it but the TLS handshake.
pub(crate) async fn dial(endpoint: &Endpoint, tls: &Tls) -> io::Result<BrokerStream> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    with_tls(dial_plain(endpoint, &runtime).await?, &endpoint.address, tls).await
}

async fn dial_plain(endpoint: &Endpoint, runtime: &TokioRuntime) -> io::Result<BrokerStream> {
    AsyncTcpStream::connect(runtime, runtime.to_socket_addrs(endpoint.peer)).await
}

async fn with_tls(stream: BrokerStream, address: &Address, tls: &Tls) -> io::Result<BrokerStream> {
    if !address.tls() {
        return Ok(stream);
    }
    tls::install_provider();
    let identity = tls.identity();
    let Some(ca) = tls.ca() else {
        let identity = identity.map(|own| Identity::PKCS8 { pem: &own.certificates, key: &own.key });
        return stream.into_tls(address.host(), TLSConfig { identity, cert_chain: None }).await;
    };
    // Instead of the system's certificates, which the library would add.
    let mut trusted = RustlsConnectorConfig::default();
    trusted.add_parsable_certificates(tls::certificates(ca)?);
    let connector = match identity {
        Some(own) => {
            trusted.connector_with_single_cert(tls::certificates(&own.certificates)?, tls::key(&own.key)?)
        }
        None => trusted.connector_with_no_client_auth(),
    };
    stream.into_rustls(&connector?, address.host()).await
}

/// Error with which the broker rejects our TLS handshake. In TLS 1.3 it sends the error after our side is done, and the
/// error is lost if we have sent anything: so this function sends nothing.
async fn handshake_error(endpoint: &Endpoint, tls: &Tls) -> Option<io::Error> {
    let listen = async { dial(endpoint, tls).await?.read(&mut [0]).await };
    tokio::time::timeout(CLOSE_TIMEOUT, listen).await.ok()?.err()
}

/// Returns `true` if the server speaks TLS on a port that we tried without it. Sends nothing but the handshake, and
/// trusts no certificate.
async fn speaks_tls(endpoint: &Endpoint) -> bool {
    let tried = async {
        let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
        let nobody = RustlsConnector::from(tls::trusting_nobody()?);
        dial_plain(endpoint, &runtime).await?.into_rustls(&nobody, endpoint.address.host()).await.map(drop)
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, tried).await {
        Ok(Err(error)) => tls::is_spoken(&error),
        Ok(Ok(())) => true,
        Err(_) => false,
    }
}

#[cfg(unix)]
fn duplicate(socket: &impl std::os::fd::AsFd) -> io::Result<TcpStream> {
    socket.as_fd().try_clone_to_owned().map(TcpStream::from)
}

#[cfg(windows)]
fn duplicate(socket: &impl std::os::windows::io::AsSocket) -> io::Result<TcpStream> {
    socket.as_socket().try_clone_to_owned().map(TcpStream::from)
}

/// Explains to a user why a connection failed, with the remedy.
pub(crate) async fn explain(failed: FailedConnect, tls: &Tls) -> BrokerError {
    let FailedConnect { error, address, peer } = failed;
    let endpoint = peer.map(|peer| Endpoint { address: address.clone(), peer });
    if let Some(what) = tls.explain(&error) {
        return BrokerError::Refused { reason: format!("{address} {what}") };
    }
    let Some(reply) = error.server_error() else {
        // A peer that does not answer would not answer a second question either.
        if error.is_timeout() {
            return BrokerError::Unavailable(Box::new(error));
        }
        let Some(endpoint) = endpoint else { return BrokerError::Unavailable(Box::new(error)) };
        if address.tls()
            && let Some(what) =
                Box::pin(handshake_error(&endpoint, tls)).await.and_then(|error| tls.explain(&error))
        {
            return BrokerError::Refused { reason: format!("{address} {what}") };
        }
        if !address.tls() && Box::pin(speaks_tls(&endpoint)).await {
            let reason = format!("{address} speaks TLS on this port; use amqps://, or the port without TLS");
            return BrokerError::Refused { reason };
        }
        return BrokerError::Unavailable(Box::new(error));
    };
    let reason = match reply.code {
        403 if address.external() => format!(
            "{address} does not let the name in our certificate in ({}); create a user of that name: rabbitmqctl \
             add_user NAME PASSWORD, and see ssl_cert_login_from for the name that counts",
            reply.text
        ),
        403 => format!(
            "{address} does not accept user {:?} with this password ({}); correct USER and PASSWORD in the broker \
             URL, or create the user: rabbitmqctl add_user {} PASSWORD",
            address.user(),
            reply.text,
            address.user()
        ),
        530 => format!(
            "{address} does not let user {:?} into vhost {:?} ({}); correct VHOST in the broker URL, or create it: \
             rabbitmqctl add_vhost {vhost} and rabbitmqctl set_permissions -p {vhost} {} '.*' '.*' '.*'",
            address.user(),
            address.vhost(),
            reply.text,
            address.user(),
            vhost = address.vhost(),
        ),
        // The broker is shutting down, or somebody closed the connection by hand: it will be back.
        320 | 541 => return BrokerError::Unavailable(Box::new(error)),
        _ => return error.into_broker_error(),
    };
    BrokerError::Refused { reason }
}
