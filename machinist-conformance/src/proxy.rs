//! A TCP proxy between an adapter and its server, because a shared server cannot be killed for one test.

use std::{fmt, io::Result, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What the proxy does.
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
    /// Connections that were made under a smaller number are cut.
    generation: u64,
}

/// Passes bytes on to a server, until it is told to do something else. Dropped, it cuts everything.
///
/// It lives on the runtime of the test that made it.
pub struct Proxy {
    address: SocketAddr,
    order: Arc<watch::Sender<Order>>,
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
        let order = Arc::new(watch::Sender::new(Order { mode: Mode::Pass, generation: 0 }));
        let listening = tokio::spawn(listen(listener, server.into(), Arc::clone(&order)));
        Ok(Self { address, order, listening })
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection; new ones pass.
    pub fn cut(&self) {
        self.order.send_modify(|order| order.generation += 1);
    }

    /// Lets nothing through any more, on old and new connections, without closing one, until
    /// [`pass`](Self::pass).
    pub fn stall(&self) {
        self.order.send_modify(|order| order.mode = Mode::Stall);
    }

    /// Cuts every connection and closes new ones at once, until [`pass`](Self::pass).
    pub fn refuse(&self) {
        self.order
            .send_modify(|order| *order = Order { mode: Mode::Refuse, generation: order.generation + 1 });
    }

    /// Passes bytes on again, those that were stalled first.
    pub fn pass(&self) {
        self.order.send_modify(|order| order.mode = Mode::Pass);
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

async fn listen(listener: TcpListener, server: String, order: Arc<watch::Sender<Order>>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, for a moment.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let orders = order.subscribe();
        if orders.borrow().mode != Mode::Refuse {
            tokio::spawn(serve(client, server.clone(), orders));
        }
    }
}

/// Passes bytes in both directions, until one side ends or it is cut.
async fn serve(client: TcpStream, server: String, orders: watch::Receiver<Order>) {
    let generation = orders.borrow().generation;
    let mut cuts = orders.clone();
    let both = async {
        let server = TcpStream::connect(server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        tokio::select! {
            ended = copy(client_read, server_write, orders.clone()) => ended,
            ended = copy(server_read, client_write, orders.clone()) => ended,
        }
    };
    tokio::select! {
        // Either side sees the other's end as its own: that is all there is to say about an error here.
        _ = both => {}
        _ = cuts.wait_for(|order| order.generation > generation) => {}
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut orders: watch::Receiver<Order>,
) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if orders.wait_for(|order| order.mode != Mode::Stall).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{BOUND, within};

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
        within(BOUND, "the echo", stream.read_u8()).await
    }

    #[tokio::test]
    async fn it_passes_cuts_stalls_and_refuses() {
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
        assert_eq!(within(BOUND, "what was stalled", stream.read_u8()).await.unwrap(), 8);
        assert_eq!(within(BOUND, "what was stalled", new.read_u8()).await.unwrap(), 9);

        proxy.refuse();
        assert!(ask(&mut stream).await.is_err());
        assert!(ask(&mut connect().await.unwrap()).await.is_err());
        proxy.pass();
        assert_eq!(ask(&mut connect().await.unwrap()).await.unwrap(), 7);
    }
}
