//! One connection: opened within a bounded time, and certain to end when we say so.

use std::{
    fmt, io,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_rs::TokioRuntime;
use futures_util::AsyncReadExt as _;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, ErrorKind,
    tcp::{Identity, RustlsConnector, RustlsConnectorConfig, TLSConfig},
};
use machinist_core::{
    broker::BrokerError,
    tls::{self, Tls},
};

use crate::{
    address::Address,
    error::{AmqpError, CLOSE_TIMEOUT},
    runtime::{BrokerStream, SanitizingRuntime},
    sanitize::SanitizedStream,
};

/// How long one attempt to connect may take: name lookup, TCP, TLS, login.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A way to end a connection that does not ask the peer.
///
/// lapin closes a connection by talking to the broker; with a peer that no longer answers its thread and its
/// socket would stay for ever, one pair for each attempt. A second handle on the socket can shut it down, and
/// then everything that waits on it fails at once.
#[derive(Clone, Default)]
pub(crate) struct SocketHandle(Arc<Mutex<Option<TcpStream>>>);

impl SocketHandle {
    fn arm(&self, socket: TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    /// Ends the connection.
    pub(crate) fn blow(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It fails only where the socket is already closed.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl fmt::Debug for SocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SocketHandle")
    }
}

/// Opens a connection, in [`CONNECT_TIMEOUT`] or not at all.
///
/// # Cancel safety
/// Dropped early, the attempt ends by itself within [`CONNECT_TIMEOUT`] or with its peer.
pub(crate) async fn connect(
    address: &Address,
    tls: &Tls,
    name: &str,
) -> Result<(Connection, SocketHandle), AmqpError> {
    let fuse = SocketHandle::default();
    let armed = ShutDownOnDrop(Some(fuse.clone()));
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "machinist".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let what = format!("connecting to {address}");
    let runtime = SanitizingRuntime::here().map_err(|error| AmqpError::lapin(&what, error))?;
    let tokio = lapin::runtime::default_runtime().map_err(|error| AmqpError::lapin(&what, error))?;
    let (target, tls) = (address.clone(), tls.clone());
    let open = Connection::connector(
        address.uri(),
        runtime,
        async move |_, _| {
            let dial = async {
                let stream = dial_plain(&target, &tokio).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    fuse.arm(duplicate(plain.get_ref())?);
                }
                with_tls(stream, &target, &tls).await
            };
            // This runs on lapin's own thread and outlives the future that asked for it.
            let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial).await;
            dialled
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
                .map(|stream| AsyncTcpStream::Plain(SanitizedStream::new(stream)))
                .map_err(|error| ErrorKind::IOError(Arc::new(error)).into())
        },
        properties,
    );
    match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
        Ok(Ok(connection)) => Ok((connection, armed.disarm())),
        Ok(Err(error)) => Err(AmqpError::lapin(what, error)),
        Err(_) => Err(AmqpError::silence(what, CONNECT_TIMEOUT)),
    }
}

/// Ends an attempt that is given up, or that failed half-way.
struct ShutDownOnDrop(Option<SocketHandle>);

impl ShutDownOnDrop {
    fn disarm(mut self) -> SocketHandle {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for ShutDownOnDrop {
    fn drop(&mut self) {
        if let Some(fuse) = &self.0 {
            fuse.blow();
        }
    }
}

/// A stream to the broker and nothing said on it.
pub(crate) async fn dial(address: &Address, tls: &Tls) -> io::Result<BrokerStream> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    with_tls(dial_plain(address, &runtime).await?, address, tls).await
}

async fn dial_plain(address: &Address, runtime: &TokioRuntime) -> io::Result<BrokerStream> {
    let place = runtime.to_socket_addrs((address.host().to_owned(), address.port()));
    AsyncTcpStream::connect(runtime, place).await
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
    // In place of the system's certificates, which the library would add.
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

/// What the broker has against our handshake. In TLS 1.3 it tells so after our side is done, and that is lost where we
/// have begun to talk: so nothing is said here.
async fn handshake(address: &Address, tls: &Tls) -> Option<io::Error> {
    let listen = async { dial(address, tls).await?.read(&mut [0]).await };
    tokio::time::timeout(CLOSE_TIMEOUT, listen).await.ok()?.err()
}

/// Whether TLS is spoken where we tried without. Nothing is told, and no certificate is trusted.
async fn speaks_tls(address: &Address) -> bool {
    let tried = async {
        let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
        let nobody = RustlsConnector::from(tls::trusting_nobody()?);
        dial_plain(address, &runtime).await?.into_rustls(&nobody, address.host()).await.map(drop)
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

/// What a failed connection means to a user, with the remedy.
pub(crate) async fn explain(trouble: AmqpError, address: &Address, tls: &Tls) -> BrokerError {
    if let Some(what) = tls.explain(&trouble) {
        return BrokerError::Refused { reason: format!("{address} {what}") };
    }
    let Some(complaint) = trouble.complaint() else {
        // Whoever is silent would be as silent to a second question.
        if trouble.is_silence() {
            return BrokerError::Unavailable(Box::new(trouble));
        }
        if address.tls()
            && let Some(what) = Box::pin(handshake(address, tls)).await.and_then(|error| tls.explain(&error))
        {
            return BrokerError::Refused { reason: format!("{address} {what}") };
        }
        if !address.tls() && Box::pin(speaks_tls(address)).await {
            let reason = format!("{address} speaks TLS on this port; take amqps://, or the port without TLS");
            return BrokerError::Refused { reason };
        }
        return BrokerError::Unavailable(Box::new(trouble));
    };
    let reason = match complaint.code {
        403 if address.external() => format!(
            "{address} does not let the name in our certificate in ({}); make a user of that name: rabbitmqctl \
             add_user NAME PASSWORD, and see ssl_cert_login_from for which name counts",
            complaint.text
        ),
        403 => format!(
            "{address} does not accept user {:?} with this password ({}); correct USER and PASSWORD in the broker \
             URL, or make the user: rabbitmqctl add_user {} PASSWORD",
            address.user(),
            complaint.text,
            address.user()
        ),
        530 => format!(
            "{address} does not let user {:?} into vhost {:?} ({}); correct VHOST in the broker URL, or make it: \
             rabbitmqctl add_vhost {vhost} and rabbitmqctl set_permissions -p {vhost} {} '.*' '.*' '.*'",
            address.user(),
            address.vhost(),
            complaint.text,
            address.user(),
            vhost = address.vhost(),
        ),
        // The broker is going down, or somebody closed us by hand: it will be back.
        320 | 541 => return BrokerError::Unavailable(Box::new(trouble)),
        _ => return trouble.into_broker_error(),
    };
    BrokerError::Refused { reason }
}
