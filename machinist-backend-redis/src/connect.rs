//! Opening connections: one way for a single server, a master found by sentinels, and a cluster.
//!
//! deadpool makes the connections and bounds how long that may take. The backend then keeps what it got, because
//! a checkout for each command costs several times the command. The pool of `deadpool-redis` passes connection
//! settings on for single servers only, so sentinels and clusters have managers here; with theirs the
//! response timeout would silently be half a second.

use std::{sync::Arc, time::Duration};

use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use futures_util::future::join_all;
use machinist_adapter::{
    backend::BackendError,
    tls::{Tls, install_provider, is_spoken},
};
use redis::{
    Arg, AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo as _, PushInfo, RedisError, RedisResult, TlsCertificates, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr},
};

use crate::{
    error::backend_error,
    resolver::LoopbackResolver,
    sentinel::{SentinelSettings, Sentinels},
    target::{ParsedUrl, RedisTarget, tcp},
};

/// Maximum time to connect to a sentinel, and for its answer: there are others.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(1);

/// Handler of push messages and of disconnects.
pub(crate) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RedisTimeouts {
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
}

/// Address of a server, and its TLS settings.
#[derive(Clone)]
pub(crate) struct RedisAddress {
    pub(crate) target: RedisTarget,
    /// `true` for a TLS connection.
    pub(crate) encrypted: bool,
    pub(crate) tls: Tls,
    /// `true` if no address of another host is dialled.
    pub(crate) loopback_only: bool,
}

impl RedisAddress {
    pub(crate) fn new(parsed: &ParsedUrl, tls: Tls, loopback_only: bool) -> Self {
        Self { target: parsed.target.clone(), encrypted: parsed.tls, tls, loopback_only }
    }

    /// Returns the settings of a connection to any of the servers.
    fn settings(&self, patience: RedisTimeouts) -> AsyncConnectionConfig {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience.connect))
            .set_response_timeout(Some(patience.response));
        if self.loopback_only { settings.set_dns_resolver(LoopbackResolver::default()) } else { settings }
    }

    /// Returns the configured certificates, if they differ from the system's and no client certificate.
    fn certificates(&self) -> Option<TlsCertificates> {
        let differs = self.encrypted && (self.tls.ca().is_some() || self.tls.identity().is_some());
        differs.then(|| TlsCertificates {
            client_tls: self.tls.identity().map(|own| ClientTlsConfig {
                client_cert: own.certificates.clone(),
                client_key: own.key.clone(),
            }),
            root_cert: self.tls.ca().map(<[u8]>::to_vec),
        })
    }
}

/// Opens connections to one deployment.
pub(crate) struct ConnectionSource {
    pool: Pool,
    /// In a cluster the one node whose clock is the time of all: the one that holds this key.
    clock: Slot,
}

enum Pool {
    Single(deadpool_redis::Pool),
    Sentinel(managed::Pool<Masters>),
    Cluster(managed::Pool<Nodes>, Option<LoopbackResolver>),
}

/// A connection: cheap to clone, clones share it, commands in flight share round trips.
#[derive(Clone)]
pub(crate) enum RedisConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection, Slot, Option<LoopbackResolver>),
}

impl ConnectionSource {
    /// Connects to nothing yet.
    pub(crate) fn new(
        place: &RedisAddress,
        patience: RedisTimeouts,
        clock_key: &str,
        on_push: OnPush,
    ) -> Result<Self, BackendError> {
        let certificates = place.certificates();
        let pool = match &place.target {
            RedisTarget::Single(server) => {
                let settings = place.settings(patience).set_push_sender(pushes(on_push));
                let server = with_certificates((**server).clone(), certificates.as_ref())?;
                let manager = deadpool_redis::Manager::new_with_config(server, settings)
                    .map_err(|e| backend_error(&e))?;
                Pool::Single(build(managed::Pool::builder(manager), patience.connect)?)
            }
            RedisTarget::Sentinel(sentinels) => {
                let quick = RedisTimeouts {
                    connect: patience.connect.min(SENTINEL_TIMEOUT),
                    response: patience.response.min(SENTINEL_TIMEOUT),
                };
                let settings = SentinelSettings {
                    sentinel: place.settings(quick),
                    master: place.settings(patience).set_push_sender(pushes(on_push)),
                    encrypted: place.encrypted,
                    certificates,
                };
                let manager = Masters { sentinels: (**sentinels).clone(), settings };
                Pool::Sentinel(build(managed::Pool::builder(manager), 3 * patience.connect)?)
            }
            RedisTarget::Cluster(nodes) => {
                let builder = ClusterClientBuilder::new(nodes.clone())
                    .connection_timeout(patience.connect)
                    .response_timeout(patience.response)
                    .tcp_settings(tcp(patience.response))
                    .push_sender(pushes(on_push));
                let resolver = place.loopback_only.then(LoopbackResolver::default);
                let builder = match &resolver {
                    Some(resolver) => builder.async_dns_resolver(resolver.clone()),
                    None => builder,
                };
                let builder = match certificates {
                    Some(certificates) => builder.certs(certificates),
                    None => builder,
                };
                let manager = Nodes(builder.build().map_err(|e| backend_error(&e))?);
                Pool::Cluster(build(managed::Pool::builder(manager), 3 * patience.connect)?, resolver)
            }
        };
        Ok(Self { pool, clock: Slot::for_key(clock_key) })
    }

    /// A new connection, logged in.
    pub(crate) async fn open(&self) -> RedisResult<RedisConnection> {
        Ok(match &self.pool {
            Pool::Single(pool) => {
                RedisConnection::Single(deadpool_redis::Connection::take(pool.get().await.map_err(flat)?))
            }
            Pool::Sentinel(pool) => {
                RedisConnection::Single(managed::Object::take(pool.get().await.map_err(flat)?))
            }
            Pool::Cluster(pool, resolver) => {
                let connection = pool.get().await.map_err(|error| explain(resolver.as_ref(), flat(error)))?;
                RedisConnection::Cluster(managed::Object::take(connection), self.clock, resolver.clone())
            }
        })
    }

    /// Returns `true` for a cluster. Such a connection reconnects to its nodes by itself.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.pool, Pool::Cluster(..))
    }
}

impl RedisConnection {
    /// One command.
    pub(crate) async fn one(&mut self, cmd: Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(connection) => cmd.query_async(connection).await,
            Self::Cluster(connection, clock, resolver) => {
                let answer = if is_keyless(&cmd) {
                    let route = Route::with_slot(*clock, SlotAddr::Master);
                    let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
                    connection.route_command(cmd, route).await.and_then(Value::extract_error)
                } else {
                    cmd.query_async(connection).await
                };
                answer.map_err(|error| explain(resolver.as_ref(), error))
            }
        }
    }

    /// Commands in one round trip, in this order on a single server; in a cluster each goes to its node, and only
    /// all of them together are waited for.
    pub(crate) async fn all(&mut self, cmds: Vec<Cmd>) -> RedisResult<Vec<RedisResult<Value>>> {
        match self {
            Self::Single(connection) => {
                let mut pipeline = redis::Pipeline::with_capacity(cmds.len());
                for cmd in cmds {
                    pipeline.add_command(cmd);
                }
                let answers = connection.req_packed_commands(&pipeline, 0, pipeline.len()).await?;
                Ok(answers.into_iter().map(Value::extract_error).collect())
            }
            Self::Cluster(..) => {
                let each = cmds.into_iter().map(|cmd| {
                    let mut wire = self.clone();
                    async move { wire.one(cmd).await }
                });
                Ok(join_all(each).await)
            }
        }
    }

    /// Listens to a channel from now on.
    pub(crate) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(connection) => redis::cmd("SSUBSCRIBE").arg(channel).exec_async(connection).await,
            Self::Cluster(connection, ..) => connection.ssubscribe(channel).await,
        }
    }

    /// Listens to a channel no more.
    pub(crate) async fn unsubscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(connection) => redis::cmd("SUNSUBSCRIBE").arg(channel).exec_async(connection).await,
            Self::Cluster(connection, ..) => connection.sunsubscribe(channel).await,
        }
    }
}

/// Returns the refusal of an address, if that is the cause of this error.
fn explain(resolver: Option<&LoopbackResolver>, error: RedisError) -> RedisError {
    match resolver {
        Some(resolver) => resolver.explain(error),
        None => error,
    }
}

/// Returns `true` if a command names no key, so that a cluster would ask any node.
fn is_keyless(cmd: &Cmd) -> bool {
    matches!(cmd.args_iter().next(), Some(Arg::Simple(b"TIME" | b"INFO" | b"CONFIG" | b"PING" | b"ACL")))
}

fn with_certificates(
    server: ConnectionInfo,
    certificates: Option<&TlsCertificates>,
) -> Result<ConnectionInfo, BackendError> {
    let Some(certificates) = certificates else { return Ok(server) };
    let client = Client::build_with_tls(server, certificates.clone()).map_err(|e| backend_error(&e))?;
    Ok(client.get_connection_info().clone())
}

/// Asks the sentinels for the master, for every connection.
struct Masters {
    sentinels: Sentinels,
    settings: SentinelSettings,
}

impl managed::Manager for Masters {
    type Type = MultiplexedConnection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<MultiplexedConnection> {
        self.sentinels.connect(&self.settings).await
    }

    async fn recycle(&self, _: &mut MultiplexedConnection, _: &Metrics) -> RecycleResult<RedisError> {
        never_given_back()
    }
}

struct Nodes(ClusterClient);

impl managed::Manager for Nodes {
    type Type = ClusterConnection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<ClusterConnection> {
        self.0.get_async_connection().await
    }

    async fn recycle(&self, _: &mut ClusterConnection, _: &Metrics) -> RecycleResult<RedisError> {
        never_given_back()
    }
}

/// Connections are taken out of the pool for good: one that failed is replaced, never tried again.
fn never_given_back() -> RecycleResult<RedisError> {
    Err(RecycleError::message("connections are not used twice"))
}

fn build<M, W>(
    builder: managed::PoolBuilder<M, W>,
    limit: Duration,
) -> Result<managed::Pool<M, W>, BackendError>
where
    M: managed::Manager,
    W: From<managed::Object<M>>,
{
    let builder =
        builder.runtime(deadpool::Runtime::Tokio1).wait_timeout(Some(limit)).create_timeout(Some(limit));
    builder
        .build()
        .map_err(|e| BackendError::Configuration(format!("the connection pool cannot be made: {e}")))
}

fn pushes(
    on_push: OnPush,
) -> impl Fn(PushInfo) -> Result<(), std::convert::Infallible> + Send + Sync + 'static {
    move |push| {
        on_push(push);
        Ok(())
    }
}

fn flat(error: PoolError<RedisError>) -> RedisError {
    match error {
        PoolError::Backend(error) => error,
        PoolError::Timeout(_) => {
            std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time").into()
        }
        other => std::io::Error::other(other.to_string()).into(),
    }
}

/// Explains a refused first connection if TLS is the reason: a predicate to the server's name.
pub(crate) async fn explain_tls(
    place: &RedisAddress,
    error: &RedisError,
    patience: RedisTimeouts,
) -> Option<String> {
    if place.encrypted
        && let Some(what) = place.tls.explain(error)
    {
        return Some(what);
    }
    // What answers is asked the other way: a plain server waits for the end of the first TLS message as for that of a
    // command, and one that speaks TLS hangs up without a word.
    let RedisTarget::Single(server) = &place.target else { return None };
    let (ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) = server.addr() else {
        return None;
    };
    let otherwise = match place.encrypted {
        true => ConnectionAddr::Tcp(host.clone(), *port),
        false => {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        }
    };
    install_provider();
    // Without the login, which is not for whoever answers there.
    let client = Client::open(otherwise.into_connection_info().ok()?).ok()?;
    let answer = client.get_multiplexed_async_connection_with_config(&place.settings(patience)).await;
    match (place.encrypted, answer) {
        (true, Ok(_)) => Some(PLAIN.to_owned()),
        (true, Err(error)) if error.code().is_some() => Some(PLAIN.to_owned()),
        (false, Ok(_)) => Some(ENCRYPTED.to_owned()),
        (false, Err(error)) if is_spoken(&error) => Some(ENCRYPTED.to_owned()),
        _ => None,
    }
}

const PLAIN: &str = "does not speak TLS on this port; take redis://, or the port with TLS";
const ENCRYPTED: &str = "speaks TLS on this port; take rediss://, or the port without TLS";
