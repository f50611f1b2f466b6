//! Runtime for lapin whose streams are [`SanitizedStream`]s.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use async_rs::{
    Runtime, TokioRuntime,
    traits::{Executor, Reactor, RuntimeKit},
    util::Task,
};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::AsyncTcpStream;

use crate::{sanitize::SanitizedStream, socket::SocketHandle};

/// Stream to a broker, plain or encrypted.
pub(crate) type BrokerStream = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

/// The runtime of tokio, except for the stream.
#[derive(Debug, Clone)]
pub(crate) struct SanitizingRuntime(TokioRuntime);

impl SanitizingRuntime {
    /// Runtime for lapin over the current runtime of tokio.
    ///
    /// # Errors
    /// There is no current runtime.
    pub(crate) fn current() -> lapin::Result<Runtime<Self>> {
        lapin::runtime::default_runtime().map(|tokio| Runtime::new(Self(tokio)))
    }
}

impl RuntimeKit for SanitizingRuntime {}

impl Executor for SanitizingRuntime {
    type Task<T: Send + 'static> = <TokioRuntime as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for SanitizingRuntime {
    type TcpStream = SanitizedStream<BrokerStream>;
    type Sleep = <TokioRuntime as Reactor>::Sleep;

    /// Fails, because lapin registers nothing: it gets the stream that it reads from.
    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move {
            let stream = AsyncTcpStream::Plain(connecting.await?);
            Ok(SanitizedStream::new(stream, SocketHandle::default()))
        }
    }
}
