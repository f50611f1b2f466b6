//! `worker --health ADDR`: health checks over HTTP, for service managers and load balancers.
//!
//! `/healthz` answers 200 while the broker confirms the worker's subscription and answers on its connection, `/readyz`
//! while the worker takes tasks; else 503, with the problems in the body. Each request checks the servers themselves, but
//! a report less than a second old is used again.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use machinist::{QueueName, worker::Health};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
    time::Instant,
};

use crate::exit::{CliError, Code};

/// Maximum number of requests that are answered at the same time.
const MAX_CONNECTIONS: usize = 32;
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
struct HealthReport {
    /// `ok` or `failing`.
    status: &'static str,
    /// Problems, each with the server that has it in front.
    wrong: Vec<String>,
    worker: String,
    queues: Vec<String>,
    /// Number of running tasks.
    running: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HealthCheck {
    Alive,
    Ready,
}

/// Answers to health checks. Each check has one cached result, so that many requests make one probe.
#[derive(Debug)]
struct HealthService {
    health: Health,
    queues: Vec<String>,
    alive: Mutex<Option<(Instant, Vec<String>)>>,
    ready: Mutex<Option<(Instant, Vec<String>)>>,
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
    pub(crate) async fn serve(self, health: Health, queues: &[QueueName]) -> Infallible {
        let queues = queues.iter().map(ToString::to_string).collect();
        let service =
            Arc::new(HealthService { health, queues, alive: Mutex::default(), ready: Mutex::default() });
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            // INVARIANT: the semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is open");
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let service = Arc::clone(&service);
                    connections.spawn(async move {
                        let _in_time =
                            tokio::time::timeout(CONNECTION_TIMEOUT, serve_connection(stream, service)).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the health checks cannot accept a connection");
                    tokio::time::sleep(REPORT_MAX_AGE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn serve_connection(stream: TcpStream, service: Arc<HealthService>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(&request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a health check was not answered");
    }
}

impl HealthService {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let check = match request.uri().path() {
            "/healthz" => HealthCheck::Alive,
            "/readyz" => HealthCheck::Ready,
            _ => return plain(StatusCode::NOT_FOUND, "not found: use /healthz or /readyz\n"),
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed: use GET or HEAD\n");
            refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let wrong = self.ask(check).await;
        let (code, status) = match wrong.is_empty() {
            true => (StatusCode::OK, "ok"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "failing"),
        };
        let answer = HealthReport {
            status,
            wrong,
            worker: self.health.worker().to_owned(),
            queues: self.queues.clone(),
            running: self.health.running(),
        };
        // INVARIANT: the report holds only texts and numbers.
        let body = serde_json::to_vec(&answer).expect("plain data");
        respond(code, "application/json", body)
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
            HealthCheck::Ready => self.health.obstacles().await,
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
