//! `worker --health ADDR`: health checks over HTTP, for service managers and load balancers.
//!
//! `/healthz` answers 200 while the broker confirms the worker's subscription and answers on its connection, `/readyz`
//! while the worker takes tasks; else 503, with the problems in the body. `/health` tells the colour, its reason and the
//! state of the worker, and answers 200 unless the colour is red. Each request checks the servers themselves, but
//! a report less than a second old is used again. `/metrics` shows the metrics of the process to those who have the token, if
//! there is one.
//!
//! Clients that say nothing cannot keep others from an answer: a connection without a request is closed after two seconds,
//! and the oldest one makes room when there are too many.

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

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use machinist::{
    record::WorkerHealth,
    worker::{Health, HealthReport as WorkerReport},
};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Mutex,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use crate::{
    exit::{CliError, Code},
    metrics::{MetricsAnswer, MetricsPage},
};

/// Maximum number of open connections.
const MAX_CONNECTIONS: usize = 32;
/// Maximum time until a connection has sent the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time of a connection: the request, the check of the servers (up to 6 s) and the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum age of a report that answers a further request.
const REPORT_MAX_AGE: Duration = Duration::from_secs(1);

/// HTTP server of the health checks.
#[derive(Debug)]
pub(crate) struct HealthServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// Body of an answer.
#[derive(Debug, Clone, Serialize)]
struct ProbeReport {
    /// `ok` or `failing`.
    status: &'static str,
    /// Problems, each with the server that has it in front.
    wrong: Vec<String>,
    worker: String,
    queues: Vec<String>,
    /// Number of running tasks.
    running: usize,
}

/// Body of an answer to `/health`.
#[derive(Debug, Serialize)]
struct ColorReport<'a> {
    #[serde(flatten)]
    report: WorkerReport,
    worker: &'a str,
    queues: Vec<String>,
    /// Number of running tasks.
    running: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HealthCheck {
    Alive,
    Ready,
    Color,
}

/// Answers to health checks. Each check has one cached result, so that many requests make one probe.
#[derive(Debug)]
struct HealthService {
    health: Health,
    metrics: Option<MetricsPage>,
    alive: Mutex<Option<(Instant, Vec<String>)>>,
    ready: Mutex<Option<(Instant, Vec<String>)>>,
    report: Mutex<Option<(Instant, WorkerReport)>>,
}

impl HealthServer {
    /// Binds the address.
    ///
    /// # Errors
    /// The address is in use, or does not belong to this host.
    pub(crate) async fn open(address: SocketAddr) -> Result<Self, CliError> {
        let cannot = |error: &std::io::Error| {
            CliError::from_error(Code::Configuration, error)
                .context(format!("--health {address} cannot be served"))
        };
        let listener = TcpListener::bind(address).await.map_err(|error| cannot(&error))?;
        let address = listener.local_addr().map_err(|error| cannot(&error))?;
        Ok(Self { listener, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until it is dropped.
    pub(crate) async fn serve(self, health: Health, metrics: Option<MetricsPage>) -> Infallible {
        let service = Arc::new(HealthService {
            health,
            metrics,
            alive: Mutex::default(),
            ready: Mutex::default(),
            report: Mutex::default(),
        });
        let mut connections = Connections::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => connections.serve(stream, Arc::clone(&service)),
                Err(error) => {
                    tracing::warn!(%error, "the health checks cannot accept a connection");
                    tokio::time::sleep(REPORT_MAX_AGE).await;
                }
            }
        }
    }
}

/// Open connections, the oldest first.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: VecDeque<Connection>,
}

#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    /// `true` once the head of its request is here.
    has_asked: Arc<AtomicBool>,
}

impl Connections {
    /// Serves a new connection, and closes another one if there are too many.
    fn serve(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        service: Arc<HealthService>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= MAX_CONNECTIONS {
            let asked = self.open.iter().map(|connection| connection.has_asked.load(Ordering::Relaxed));
            if let Some(surplus) = self.open.remove(surplus(asked)) {
                surplus.task.abort();
            }
        }
        let has_asked = Arc::new(AtomicBool::new(false));
        let answering = serve_connection(stream, service, Arc::clone(&has_asked));
        let task = self.tasks.spawn(async move {
            if tokio::time::timeout(CONNECTION_TIMEOUT, answering).await.is_err() {
                tracing::debug!("a health check was not answered in time");
            }
        });
        self.open.push_back(Connection { task, has_asked });
    }
}

/// Returns the connection to close when there are too many: the oldest that has asked nothing, else the oldest.
fn surplus(has_asked: impl IntoIterator<Item = bool>) -> usize {
    has_asked.into_iter().position(|asked| !asked).unwrap_or(0)
}

/// Returns the rules of a connection: one request, whose head comes in time.
fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false).header_read_timeout(HEAD_TIMEOUT);
    http
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Arc<HealthService>,
    has_asked: Arc<AtomicBool>,
) {
    let answer = service_fn(|request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(&request).await) }
    });
    if let Err(error) = http().serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a health check was not answered");
    }
}

impl HealthService {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let check = match request.uri().path() {
            "/healthz" => Some(HealthCheck::Alive),
            "/readyz" => Some(HealthCheck::Ready),
            "/health" => Some(HealthCheck::Color),
            "/metrics" => None,
            _ => {
                return plain(
                    StatusCode::NOT_FOUND,
                    "not found: use /healthz, /readyz, /health or /metrics\n",
                );
            }
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed: use GET or HEAD\n");
            refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let Some(check) = check else { return self.show_metrics(request) };
        if check == HealthCheck::Color {
            return self.color().await;
        }
        let wrong = self.ask(check).await;
        let (code, status) = match wrong.is_empty() {
            true => (StatusCode::OK, "ok"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "failing"),
        };
        let answer = ProbeReport {
            status,
            wrong,
            worker: self.health.worker().to_owned(),
            queues: self.queues(),
            running: self.health.running(),
        };
        // INVARIANT: the report holds only texts and numbers.
        let body = serde_json::to_vec(&answer).expect("plain data");
        respond(code, "application/json", body)
    }

    fn show_metrics(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(page) = &self.metrics else { return plain(StatusCode::NOT_FOUND, "there are no metrics\n") };
        match page.answer(request.headers().get(AUTHORIZATION).map(|value| value.as_bytes())) {
            MetricsAnswer::Text(text) => {
                respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into_bytes())
            }
            MetricsAnswer::Unauthorized => {
                let mut refused = plain(StatusCode::UNAUTHORIZED, "a bearer token is required\n");
                let scheme = hyper::header::HeaderValue::from_static("Bearer");
                refused.headers_mut().insert(WWW_AUTHENTICATE, scheme);
                refused
            }
        }
    }

    /// Answers with the colour of the worker and all that belongs to it.
    async fn color(&self) -> Response<Full<Bytes>> {
        let mut last = self.report.lock().await;
        let report = match &*last {
            Some((at, report)) if at.elapsed() < REPORT_MAX_AGE => report.clone(),
            _ => {
                let mut report = self.health.report().await;
                let texts = report.detail.iter_mut().chain(report.reason.as_mut());
                texts.for_each(|text| *text = machinist::redact::text(text).into_owned());
                *last = Some((Instant::now(), report.clone()));
                report
            }
        };
        let code = match report.color {
            WorkerHealth::Red => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        };
        let worker = self.health.worker();
        let answer = ColorReport { report, worker, queues: self.queues(), running: self.health.running() };
        // INVARIANT: the report holds only texts and numbers.
        respond(code, "application/json", serde_json::to_vec(&answer).expect("plain data"))
    }

    /// Returns the queues and patterns that the worker has now.
    fn queues(&self) -> Vec<String> {
        self.health.queues().iter().map(ToString::to_string).collect()
    }

    async fn ask(&self, check: HealthCheck) -> Vec<String> {
        let slot = if check == HealthCheck::Alive { &self.alive } else { &self.ready };
        let mut last = slot.lock().await;
        if let Some((at, wrong)) = &*last
            && at.elapsed() < REPORT_MAX_AGE
        {
            return wrong.clone();
        }
        let wrong = match check {
            HealthCheck::Alive => self.health.troubles().await,
            HealthCheck::Ready | HealthCheck::Color => self.health.obstacles().await,
        };
        let wrong: Vec<String> =
            wrong.iter().map(|text| machinist::redact::text(text).into_owned()).collect();
        *last = Some((Instant::now(), wrong.clone()));
        wrong
    }
}

fn plain(code: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    respond(code, "text/plain; charset=utf-8", text.into())
}

fn respond(code: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn the_oldest_connection_without_a_request_makes_room() {
        assert_eq!(surplus([true, false, false]), 1);
        assert_eq!(surplus([true, true]), 0);
        assert_eq!(surplus([false]), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_of_a_request_comes_in_time() {
        for beginning in ["", "GET /healthz HTTP/1.1\r\nHost: wor"] {
            let (mut client, server) = tokio::io::duplex(1024);
            client.write_all(beginning.as_bytes()).await.expect("room");
            let begun = Instant::now();
            let answer = service_fn(async |_| Ok::<_, Infallible>(plain(StatusCode::OK, "well")));
            let ended = http().serve_connection(TokioIo::new(server), answer).await;
            assert!(ended.is_err_and(|error| error.is_timeout()), "{beginning:?}");
            // The clock of the test moves by the timeouts alone.
            assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
        }
    }
}
