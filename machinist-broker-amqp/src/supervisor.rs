//! A connection that comes back: one supervisor for each, which reconnects forever.
//!
//! lapin's own recovery stays off: once its retries run out nobody is told, and after some errors its consumers
//! hang silently. So each user takes the current connection from here, fails with it, and waits here for the next.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use lapin::{Channel, Event};
use machinist_adapter::{broker::BrokerError, tls::Tls};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    backoff::ReconnectBackoff,
    connect::FailedConnect,
    connection::{AmqpConnection, close_channel},
    declare::DeclaredTopology,
    endpoint::{Addresses, Endpoint},
    error::{AmqpError, RPC_TIMEOUT, error_chain},
    options::TopologyMode,
    topology::AmqpTopology,
};

/// Interval between two probes of a connection.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Minimum lifetime of a connection after which the next reconnect starts with a short wait again: a connection that
/// dies as soon as it is open must not make the supervisor spin.
const STABLE_CONNECTION_AGE: Duration = Duration::from_secs(10);

/// Settings that all connections of one broker share.
#[derive(Debug)]
pub(crate) struct ConnectionSettings {
    pub(crate) addresses: Addresses,
    pub(crate) tls: Tls,
    pub(crate) connection_name: String,
    pub(crate) topology: AmqpTopology,
    pub(crate) topology_mode: TopologyMode,
    pub(crate) management_port: Option<u16>,
}

/// A supervised connection. Its last owner ends it.
#[derive(Debug)]
pub(crate) struct SupervisedConnection {
    state: watch::Receiver<SupervisedState>,
    probe_request: Arc<Notify>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// State of a supervised connection.
#[derive(Debug, Clone)]
enum SupervisedState {
    Up(Arc<LiveConnection>),
    Down(AmqpError),
    Closed,
}

/// One connection while it lives.
#[derive(Debug)]
pub(crate) struct LiveConnection {
    pub(crate) connection: AmqpConnection,
    /// Objects known to exist on the broker. The knowledge ends with the connection: while there was none, anybody
    /// may have deleted anything.
    pub(crate) declared: DeclaredTopology,
}

impl LiveConnection {
    async fn open(settings: &ConnectionSettings, role: &str) -> Result<Self, FailedConnect> {
        let name = format!("{} ({role})", settings.connection_name);
        let connection = AmqpConnection::open(&settings.addresses, &settings.tls, &name).await?;
        let declared = DeclaredTopology::new(settings.topology.clone(), settings.topology_mode);
        Ok(Self { connection, declared })
    }
}

impl SupervisedConnection {
    /// Connects, in one bounded attempt, and from then on stays connected.
    ///
    /// # Errors
    /// The error of the first attempt.
    pub(crate) async fn open(
        settings: Arc<ConnectionSettings>,
        role: &'static str,
    ) -> Result<Self, FailedConnect> {
        let live = Arc::new(LiveConnection::open(&settings, role).await?);
        let (state_sender, state) = watch::channel(SupervisedState::Up(Arc::clone(&live)));
        let probe_request = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            settings,
            role,
            state: state_sender,
            probe_request: Arc::clone(&probe_request),
            stop: stop.clone(),
        };
        tokio::spawn(supervisor.run(live));
        Ok(Self { state, probe_request, _stop_on_drop: stop.clone().drop_guard(), stop })
    }

    /// Waits for a connection and returns the current one.
    ///
    /// # Errors
    /// [`AmqpError::closed`] once the supervised connection is closed.
    pub(crate) async fn current(&self) -> Result<Arc<LiveConnection>, AmqpError> {
        let mut state = self.state.clone();
        let found = state.wait_for(|state| !matches!(state, SupervisedState::Down(_))).await;
        match found.as_deref() {
            Ok(SupervisedState::Up(live)) => Ok(Arc::clone(live)),
            _ => Err(AmqpError::closed()),
        }
    }

    /// Returns the current connection if there is one within [`RPC_TIMEOUT`].
    pub(crate) async fn current_in_time(&self) -> Result<Arc<LiveConnection>, BrokerError> {
        match timeout(RPC_TIMEOUT, self.current()).await {
            Ok(live) => live.map_err(AmqpError::into_broker_error),
            Err(_) => Err(AmqpError::timeout("waiting for a connection", RPC_TIMEOUT).into_broker_error()),
        }
    }

    /// Waits until the broker takes messages and returns the current connection.
    ///
    /// # Errors
    /// [`AmqpError::closed`] once the supervised connection is closed.
    pub(crate) async fn unblocked(&self) -> Result<Arc<LiveConnection>, AmqpError> {
        let mut state = self.state.clone();
        let open = |state: &SupervisedState| match state {
            SupervisedState::Up(live) => live.connection.blocked().is_none(),
            SupervisedState::Down(_) => false,
            SupervisedState::Closed => true,
        };
        match state.wait_for(open).await.as_deref() {
            Ok(SupervisedState::Up(live)) => Ok(Arc::clone(live)),
            _ => Err(AmqpError::closed()),
        }
    }

    /// Reports if messages can be sent now, and the reason if they cannot.
    pub(crate) fn availability(&self) -> PublishAvailability {
        match &*self.state.borrow() {
            SupervisedState::Up(live) => match live.connection.blocked() {
                None => PublishAvailability::Available,
                Some(reason) => PublishAvailability::Blocked(reason),
            },
            SupervisedState::Down(error) => PublishAvailability::Down(error.clone()),
            SupervisedState::Closed => PublishAvailability::Down(AmqpError::closed()),
        }
    }

    /// Has the supervisor probe the current connection at once, because something on it failed.
    pub(crate) fn probe_now(&self) {
        self.probe_request.notify_one();
    }

    /// Closes the connection and keeps it closed. Idempotent.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        let mut state = self.state.clone();
        // An error means that the supervisor is gone, and with it the connection.
        let _ = state.wait_for(|state| matches!(state, SupervisedState::Closed)).await;
    }
}

/// Answer to the question if messages can be sent now.
#[derive(Debug)]
pub(crate) enum PublishAvailability {
    Available,
    /// The broker takes no messages, for this reason.
    Blocked(String),
    /// No connection is open, because of this error.
    Down(AmqpError),
}

/// Task that keeps one connection open.
struct Supervisor {
    settings: Arc<ConnectionSettings>,
    role: &'static str,
    state: watch::Sender<SupervisedState>,
    probe_request: Arc<Notify>,
    stop: CancellationToken,
}

impl Supervisor {
    async fn run(self, first: Arc<LiveConnection>) {
        let mut live = first;
        let mut backoff = ReconnectBackoff::new();
        loop {
            let since = Instant::now();
            let stop = self.stop.clone();
            let mut probe_channel = None;
            let end = stop.run_until_cancelled(self.watch(&live.connection, &mut probe_channel)).await;
            let Some(error) = end else {
                if let Some(channel) = probe_channel {
                    close_channel(&channel).await;
                }
                break self.close(&live.connection).await;
            };
            live.connection.abort();
            let Endpoint { address, peer } = live.connection.endpoint();
            // Another node is tried first: this one may be up again only in a while.
            self.settings.addresses.failed(*peer);
            tracing::warn!(role = self.role, broker = %address, error = %error_chain(&error), "lost the broker");
            self.state.send_replace(SupervisedState::Down(error));
            if since.elapsed() > STABLE_CONNECTION_AGE {
                backoff = ReconnectBackoff::new();
            }
            match stop.run_until_cancelled(self.reconnect(&mut backoff)).await {
                Some(next) => live = next,
                None => {
                    self.state.send_replace(SupervisedState::Closed);
                    break;
                }
            }
            tracing::info!(role = self.role, broker = %live.connection.endpoint().address, "reached the broker again");
            self.state.send_replace(SupervisedState::Up(Arc::clone(&live)));
        }
    }

    async fn reconnect(&self, backoff: &mut ReconnectBackoff) -> Arc<LiveConnection> {
        loop {
            tokio::time::sleep(backoff.next()).await;
            match LiveConnection::open(&self.settings, self.role).await {
                Ok(live) => return Arc::new(live),
                Err(FailedConnect { error, .. }) => {
                    tracing::debug!(role = self.role, error = %error_chain(&error), "no connection yet");
                    self.state.send_replace(SupervisedState::Down(error));
                }
            }
        }
    }

    /// Returns the reason when the connection is dead.
    ///
    /// `probe_channel` keeps the channel of the probes.
    async fn watch(&self, connection: &AmqpConnection, probe_channel: &mut Option<Channel>) -> AmqpError {
        let mut events = std::pin::pin!(connection.events());
        loop {
            let probe_is_due = tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(role = self.role, reason, "the broker blocks publishers");
                        connection.set_blocked(Some(reason));
                        self.state.send_modify(|_| {});
                        false
                    }
                    Some(Event::ConnectionUnblocked) => {
                        connection.set_blocked(None);
                        self.state.send_modify(|_| {});
                        false
                    }
                    Some(Event::Error(_)) | None => true,
                    Some(_) => false,
                },
                () = self.probe_request.notified() => true,
                () = tokio::time::sleep(PROBE_INTERVAL) => true,
            };
            // A blocked connection does not answer: the broker has stopped reading from it.
            if probe_is_due && connection.blocked().is_none() {
                if let Err(error) = connection.probe(probe_channel).await {
                    return error;
                }
            } else if probe_is_due && !connection.is_connected() {
                return AmqpError::connection_closed("waiting for the broker to unblock");
            }
        }
    }

    async fn close(&self, connection: &AmqpConnection) {
        if let Err(error) = connection.close().await {
            tracing::debug!(role = self.role, error = %error_chain(&error), "the connection did not close by itself");
        }
        self.state.send_replace(SupervisedState::Closed);
    }
}
