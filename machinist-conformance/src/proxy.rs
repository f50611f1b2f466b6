//! A TCP proxy between an adapter and its server, because a shared server cannot be killed for one test.

use std::{
    fmt,
    io::Result,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Behaviour of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Connections stay open and nothing comes through: a host that has gone, a process that was stopped.
    Stall,
    /// Connections are closed at once: nobody listens.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct Order {
    mode: Mode,
    /// Connections belong to the era in which they were made.
    era: u64,
    /// Connections of earlier eras are cut.
    cut_before: u64,
    /// Nothing comes through on connections of earlier eras.
    stall_before: u64,
    /// `true` if a cut connection ends with a reset instead of an orderly close.
    reset: bool,
    /// Time that each piece is held before it is forwarded.
    delay: Duration,
    /// Maximum size of a piece, in bytes.
    slice: usize,
}

impl Order {
    const PASS: Self = Self {
        mode: Mode::Pass,
        era: 0,
        cut_before: 0,
        stall_before: 0,
        reset: false,
        delay: Duration::ZERO,
        slice: usize::MAX,
    };

    fn stalls(&self, era: u64) -> bool {
        self.mode == Mode::Stall || era < self.stall_before
    }
}

/// Passes bytes on to a server, until it is told to do something else. Dropped, it cuts everything.
///
/// It lives on the runtime of the test that made it.
pub struct Proxy {
    address: SocketAddr,
    order: Arc<watch::Sender<Order>>,
    accepted: Arc<AtomicU64>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// A proxy on a free port of 127.0.0.1, to `server` (`host:port`).
    ///
    /// # Errors
    /// If there is no free port.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn start(server: impl Into<String>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let order = Arc::new(watch::Sender::new(Order::PASS));
        let accepted = Arc::new(AtomicU64::new(0));
        let listening =
            tokio::spawn(listen(listener, server.into(), Arc::clone(&order), Arc::clone(&accepted)));
        Ok(Self { address, order, accepted, listening })
    }

    /// A proxy to the server of a URL such as `amqp://guest:guest@127.0.0.1:5672/%2f`, and the URL that leads
    /// through it.
    ///
    /// # Errors
    /// If there is no free port.
    ///
    /// # Panics
    /// If the URL names no port.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn before(url: &str) -> Result<(Self, String)> {
        let (start, end) = authority(url);
        let proxy = Self::start(&url[start..end]).await?;
        let through = format!("{}{}{}", &url[..start], proxy.address, &url[end..]);
        Ok((proxy, through))
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the number of connections since it was started, reconnections included.
    pub fn connections(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Cuts every connection; new ones pass.
    pub fn cut(&self) {
        self.end_all(Mode::Pass, false);
    }

    /// Resets every connection, so that each side sees an error and not an end; new ones pass.
    pub fn reset(&self) {
        self.end_all(Mode::Pass, true);
    }

    /// Cuts every connection and closes new ones at once, until [`pass`](Self::pass).
    pub fn refuse(&self) {
        self.end_all(Mode::Refuse, false);
    }

    fn end_all(&self, mode: Mode, reset: bool) {
        self.order.send_modify(|order| {
            order.era += 1;
            *order = Order { mode, cut_before: order.era, reset, ..*order };
        });
    }

    /// Lets nothing through any more, on old and new connections, without closing one, until
    /// [`pass`](Self::pass).
    pub fn stall(&self) {
        self.order.send_modify(|order| order.mode = Mode::Stall);
    }

    /// Lets nothing through on the connections that are there now, without closing one, until
    /// [`pass`](Self::pass); new ones pass. So looks a failover from a host that lost its power.
    pub fn stall_old(&self) {
        self.order.send_modify(|order| {
            order.era += 1;
            order.stall_before = order.era;
        });
    }

    /// Holds every piece for `delay`, and passes on at most `slice` bytes at once (at least 1), until
    /// [`pass`](Self::pass).
    pub fn slow(&self, delay: Duration, slice: usize) {
        self.order.send_modify(|order| *order = Order { delay, slice: slice.max(1), ..*order });
    }

    /// Passes bytes on again, those that were stalled first.
    pub fn pass(&self) {
        self.order.send_modify(|order| {
            *order =
                Order { era: order.era, cut_before: order.cut_before, reset: order.reset, ..Order::PASS };
        });
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}, {:?})", self.address, *self.order.borrow())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
        self.listening.abort();
    }
}

/// From where to where a URL names `host:port`.
fn authority(url: &str) -> (usize, usize) {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url[after_scheme..].find(['/', '?']).map_or(url.len(), |at| after_scheme + at);
    let start = url[after_scheme..end].rfind('@').map_or(after_scheme, |at| after_scheme + at + 1);
    assert!(url[start..end].contains(':'), "{} names no port", &url[start..end]);
    (start, end)
}

async fn listen(
    listener: TcpListener,
    server: String,
    order: Arc<watch::Sender<Order>>,
    accepted: Arc<AtomicU64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, for a moment.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let orders = order.subscribe();
        if orders.borrow().mode != Mode::Refuse {
            accepted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(client, server.clone(), orders));
        }
    }
}

/// Passes bytes in both directions, until one side ends or it is cut.
async fn serve(mut client: TcpStream, server: String, mut orders: watch::Receiver<Order>) -> Result<()> {
    let era = orders.borrow().era;
    let stalling = orders.clone();
    let mut server = tokio::select! {
        server = TcpStream::connect(server) => server?,
        _ = orders.wait_for(|order| era < order.cut_before) => return Ok(()),
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let cut = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        tokio::select! {
            // Either side sees the other's end as its own: that is all there is to say about an error here.
            _ = copy(client_read, server_write, stalling.clone(), era) => false,
            _ = copy(server_read, client_write, stalling, era) => false,
            _ = orders.wait_for(|order| era < order.cut_before) => true,
        }
    };
    if cut && orders.borrow().reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut orders: watch::Receiver<Order>,
    era: u64,
) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let Ok(order) = orders.wait_for(|order| !order.stalls(era)).await.map(|order| *order) else {
                return Ok(());
            };
            if !order.delay.is_zero() {
                tokio::time::sleep(order.delay).await;
            }
            let (piece, others) = rest.split_at(rest.len().min(order.slice));
            to.write_all(piece).await?;
            rest = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{ANSWER_TIMEOUT, within};

    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut read, mut write) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
            }
        });
        format!("echo://user:p@ss@{address}/%2f?x=y")
    }

    async fn ask(stream: &mut TcpStream) -> Result<u8> {
        stream.write_u8(7).await?;
        within(ANSWER_TIMEOUT, "the echo", stream.read_u8()).await
    }

    #[tokio::test]
    async fn it_does_what_it_is_told() {
        let (proxy, url) = Proxy::before(&echo().await).await.unwrap();
        assert_eq!(url, format!("echo://user:p@ss@{}/%2f?x=y", proxy.address()));
        let connect = || TcpStream::connect(proxy.address());
        let mut stream = connect().await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        proxy.cut();
        assert!(ask(&mut stream).await.is_err());

        let mut stream = connect().await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        proxy.stall();
        stream.write_u8(8).await.unwrap();
        let mut new = connect().await.unwrap();
        new.write_u8(9).await.unwrap();
        let look = Duration::from_millis(50);
        assert!(tokio::time::timeout(look, stream.read_u8()).await.is_err(), "stalled, not cut");
        proxy.pass();
        assert_eq!(within(ANSWER_TIMEOUT, "what was stalled", stream.read_u8()).await.unwrap(), 8);
        assert_eq!(within(ANSWER_TIMEOUT, "what was stalled", new.read_u8()).await.unwrap(), 9);

        proxy.stall_old();
        stream.write_u8(10).await.unwrap();
        assert!(tokio::time::timeout(look, stream.read_u8()).await.is_err(), "old ones are stalled");
        let mut new = connect().await.unwrap();
        assert_eq!(ask(&mut new).await.unwrap(), 7, "new ones pass");
        proxy.pass();
        assert_eq!(within(ANSWER_TIMEOUT, "what was stalled", stream.read_u8()).await.unwrap(), 10);

        proxy.slow(Duration::from_millis(1), 1);
        stream.write_all(b"slow").await.unwrap();
        let mut echoed = [0; 4];
        within(ANSWER_TIMEOUT, "byte by byte", stream.read_exact(&mut echoed)).await.unwrap();
        assert_eq!(&echoed, b"slow");
        proxy.pass();

        proxy.reset();
        let error = ask(&mut stream).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

        let mut stream = connect().await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), 7);
        proxy.refuse();
        assert!(ask(&mut stream).await.is_err());
        assert!(ask(&mut connect().await.unwrap()).await.is_err());
        proxy.pass();
        let before = proxy.connections();
        assert_eq!(ask(&mut connect().await.unwrap()).await.unwrap(), 7);
        assert_eq!(proxy.connections(), before + 1);
    }
}
