//! The server of the command `machinist web`: HTTP/1.1 with bounds, so that clients that say nothing keep nobody out.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::dashboard::MAX_BODY;

/// ServerBounds of the server.
const BOUNDS: ServerBounds =
    ServerBounds { connections: 1024, head: Duration::from_secs(10), body: Duration::from_secs(10) };
/// Time that open requests get to end when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// ServerBounds of what clients take.
#[derive(Debug, Clone, Copy)]
struct ServerBounds {
    /// Maximum number of open connections. One more closes another.
    connections: usize,
    /// Maximum time until a connection has sent the head of its next request.
    head: Duration,
    /// Maximum time from the head of a request to the end of its body.
    body: Duration,
}

/// Serves a router until `stop` completes. Requests that are open then have five seconds to end.
///
/// # Cancel safety
/// A dropped future closes all connections.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    serve_within(BOUNDS, listener, router, stop).await;
}

async fn serve_within(
    bounds: ServerBounds,
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
) {
    let stopping = CancellationToken::new();
    let mut connections = ConnectionPlaces::default();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (router, stopping) = (router.clone(), stopping.clone());
                connections.make_room(bounds.connections);
                connections.open(move |has_asked| async move {
                    let connection = ServedConnection { bounds, peer, router, has_asked };
                    connection.serve(stream, &stopping).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the dashboard cannot accept a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    stopping.cancel();
    let mut tasks = connections.tasks;
    if timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        tasks.shutdown().await;
    }
}

/// Open connections, the oldest first.
#[derive(Debug, Default)]
struct ConnectionPlaces {
    tasks: JoinSet<()>,
    open: VecDeque<OpenConnection>,
}

#[derive(Debug)]
struct OpenConnection {
    task: AbortHandle,
    /// `true` once the head of a request is here.
    has_asked: Arc<AtomicBool>,
}

impl ConnectionPlaces {
    /// Closes a connection if there are as many as there may be: the oldest that has asked nothing, else the oldest.
    fn make_room(&mut self, most: usize) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= most {
            let silent = self.open.iter().position(|one| !one.has_asked.load(Ordering::Relaxed));
            if let Some(surplus) = self.open.remove(silent.unwrap_or(0)) {
                surplus.task.abort();
            }
        }
    }

    /// Serves a connection by this function.
    fn open<F: Future<Output = ()> + Send + 'static>(&mut self, serve: impl FnOnce(Arc<AtomicBool>) -> F) {
        let has_asked = Arc::<AtomicBool>::default();
        let task = self.tasks.spawn(serve(Arc::clone(&has_asked)));
        self.open.push_back(OpenConnection { task, has_asked });
    }
}

/// One connection of a client.
struct ServedConnection {
    bounds: ServerBounds,
    peer: SocketAddr,
    router: Router,
    has_asked: Arc<AtomicBool>,
}

impl ServedConnection {
    async fn serve(&self, stream: TcpStream, stopping: &CancellationToken) {
        let answer = service_fn(|request: hyper::Request<Incoming>| async move {
            Ok::<_, Infallible>(self.answer(request).await)
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.bounds.head);
        let connection = http.serve_connection(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection to the dashboard has ended");
        }
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        self.has_asked.store(true, Ordering::Relaxed);
        let (head, body) = request.into_parts();
        let too_large = || StatusCode::PAYLOAD_TOO_LARGE.into_response();
        if body.size_hint().lower() > MAX_BODY as u64 {
            return too_large();
        }
        // Read before the router has it: a body that comes byte by byte would hold an action for as long as it likes.
        let body = match timeout(self.bounds.body, to_bytes(Body::new(body), MAX_BODY)).await {
            Ok(Ok(body)) => Body::from(body),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the body of a request was not read");
                return too_large();
            }
            Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
        };
        let mut request = Request::from_parts(head, body);
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Starts a server, and returns its address.
    async fn start(bounds: ServerBounds) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "well" }).post(|body: String| async { body }));
        tokio::spawn(serve_within(bounds, listener, router, std::future::pending()));
        address
    }

    async fn connect(address: SocketAddr, sent: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        stream
    }

    /// Reads what the server sends until it closes the connection.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that is cut off can end in an error.
        let _cut =
            timeout(Duration::from_secs(60), stream.read_to_end(&mut text)).await.expect("it is closed");
        String::from_utf8(text).unwrap()
    }

    /// Returns a request whose body is said to have this length.
    fn post(length: usize, body: &str) -> String {
        format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn silent_connections_keep_nobody_out() {
        let address = start(ServerBounds { connections: 2, head: LONG, body: LONG }).await;
        let oldest = connect(address, "").await;
        let _other = connect(address, "GET / HT").await;
        assert!(rest(connect(address, GET).await).await.ends_with("well"));
        assert_eq!(rest(oldest).await, "", "it made room");
        assert!(rest(connect(address, GET).await).await.ends_with("well"));
    }

    #[tokio::test]
    async fn heads_come_in_time() {
        let address = start(ServerBounds { connections: 9, head: SHORT, body: LONG }).await;
        for begun in ["", "GET / HTTP/1.1\r\nHost: loc"] {
            assert!(!rest(connect(address, begun).await).await.contains("well"), "{begun:?}");
        }
    }

    #[tokio::test]
    async fn bodies_come_in_time_and_are_small() {
        let address = start(ServerBounds { connections: 9, head: LONG, body: SHORT }).await;
        assert!(rest(connect(address, &post(4, "we")).await).await.contains(" 408 "));
        let patient = start(ServerBounds { connections: 9, head: LONG, body: LONG }).await;
        assert!(rest(connect(patient, &post(4, "well")).await).await.ends_with("well"));
        assert!(rest(connect(patient, &post(MAX_BODY + 1, "")).await).await.contains(" 413 "));
    }
}
