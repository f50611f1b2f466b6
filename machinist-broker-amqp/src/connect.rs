//! One connection: opened within a bounded time, and certain to end when we say so.

use std::{
    fmt, io,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use async_rs::{TokioRuntime, traits::Reactor};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind, tcp::TLSConfig};
use machinist_core::broker::BrokerError;

use crate::{address::Address, trouble::Trouble};

/// How long one attempt to connect may take: name lookup, TCP, TLS, login.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream to a broker, plain or encrypted.
type Stream = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

/// A way to end a connection that does not ask the peer.
///
/// lapin closes a connection by talking to the broker; with a peer that no longer answers its thread and its
/// socket would stay for ever, one pair for each attempt. A second handle on the socket can shut it down, and
/// then everything that waits on it fails at once.
#[derive(Clone, Default)]
pub(crate) struct Fuse(Arc<Mutex<Option<TcpStream>>>);

impl Fuse {
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

impl fmt::Debug for Fuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fuse")
    }
}

/// Opens a connection, in [`CONNECT_TIMEOUT`] or not at all.
///
/// # Cancel safety
/// Dropped early, the attempt ends by itself within [`CONNECT_TIMEOUT`] or with its peer.
pub(crate) async fn connect(address: &Address, name: &str) -> Result<(Connection, Fuse), Trouble> {
    let fuse = Fuse::default();
    let armed = BlowOnDrop(Some(fuse.clone()));
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "machinist".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let what = format!("connecting to {address}");
    let runtime = lapin::runtime::default_runtime().map_err(|error| Trouble::lapin(&what, error))?;
    let target = address.clone();
    let open = Connection::connector(
        address.uri(),
        runtime,
        async move |_, runtime| {
            let dial = async {
                let stream = dial_plain(&target, &runtime).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    fuse.arm(duplicate(plain.get_ref())?);
                }
                with_tls(stream, &target).await
            };
            // This runs on lapin's own thread and outlives the future that asked for it.
            let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial).await;
            dialled
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
                .map_err(|error| ErrorKind::IOError(Arc::new(error)).into())
        },
        properties,
    );
    match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
        Ok(Ok(connection)) => Ok((connection, armed.disarm())),
        Ok(Err(error)) => Err(Trouble::lapin(what, error)),
        Err(_) => Err(Trouble::silence(what, CONNECT_TIMEOUT)),
    }
}

/// Ends an attempt that is given up, or that failed half-way.
struct BlowOnDrop(Option<Fuse>);

impl BlowOnDrop {
    fn disarm(mut self) -> Fuse {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for BlowOnDrop {
    fn drop(&mut self) {
        if let Some(fuse) = &self.0 {
            fuse.blow();
        }
    }
}

/// A stream to the broker and nothing said on it.
pub(crate) async fn dial(address: &Address) -> io::Result<Stream> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    with_tls(dial_plain(address, &runtime).await?, address).await
}

async fn dial_plain(address: &Address, runtime: &TokioRuntime) -> io::Result<Stream> {
    let place = runtime.to_socket_addrs((address.host().to_owned(), address.port()));
    AsyncTcpStream::connect(runtime, place).await
}

async fn with_tls(stream: Stream, address: &Address) -> io::Result<Stream> {
    if !address.tls() {
        return Ok(stream);
    }
    use_ring();
    stream.into_tls(address.host(), TLSConfig::default()).await
}

/// One TLS provider for the whole process, whichever adapter comes first: rustls panics where it finds two
/// compiled in and none chosen.
fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Refused where the application has chosen one already: its choice stands.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
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
pub(crate) fn explain(trouble: Trouble, address: &Address) -> BrokerError {
    let Some(complaint) = trouble.complaint() else {
        return BrokerError::Unavailable(Box::new(trouble));
    };
    let reason = match complaint.code {
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
