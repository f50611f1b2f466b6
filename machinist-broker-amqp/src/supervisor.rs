//! A connection that comes back: one supervisor for each, reconnecting for ever.
//!
//! lapin's own recovery stays off: once its retries run out nobody is told, and after some errors its consumers
//! hang without a word. So whoever uses a connection takes the present one from here, fails with it, and waits
//! here for the next.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use lapin::{Channel, Connection, Event, options::BasicQosOptions};
use machinist_core::tls::Tls;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    address::Address,
    backoff::ReconnectBackoff,
    connect::{self, SocketHandle},
    declare::DeclaredTopology,
    error::{AmqpError, CLOSE_TIMEOUT, rpc, within},
    options::TopologyMode,
    topology::AmqpTopology,
};

/// How often a connection is asked whether it is alive, and how long it has for the answer.
const PROBE_PERIOD: Duration = Duration::from_secs(5);

/// What all connections of one broker have in common.
#[derive(Debug)]
pub(crate) struct ConnectionSettings {
    pub(crate) address: Address,
    pub(crate) tls: Tls,
    pub(crate) connection_name: String,
    pub(crate) plan: AmqpTopology,
    pub(crate) topology: TopologyMode,
}

/// A supervised connection. Ends with its last owner.
#[derive(Debug)]
pub(crate) struct SupervisedConnection {
    state: watch::Receiver<SupervisedState>,
    suspicion: Arc<Notify>,
    stop: CancellationToken,
    _ends_with_us: DropGuard,
}

#[derive(Debug, Clone)]
enum SupervisedState {
    Up(Arc<LiveConnection>),
    Down(AmqpError),
    Closed,
}

/// One connection while it lives.
#[derive(Debug)]
pub(crate) struct LiveConnection {
    connection: Connection,
    fuse: SocketHandle,
    /// Why the broker takes no messages on it now.
    blocked: Mutex<Option<String>>,
    /// What is known to stand on the broker. Belongs to the connection, because while there was none anybody
    /// may have deleted anything.
    pub(crate) declared: DeclaredTopology,
}

impl SupervisedConnection {
    /// Connects, in one bounded attempt, and from then on stays connected.
    ///
    /// # Errors
    /// Why the first attempt failed.
    pub(crate) async fn open(
        settings: Arc<ConnectionSettings>,
        role: &'static str,
    ) -> Result<Self, AmqpError> {
        let live = Arc::new(LiveConnection::open(&settings, role).await?);
        let (tell, state) = watch::channel(SupervisedState::Up(Arc::clone(&live)));
        let suspicion = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let supervisor =
            Supervisor { settings, role, tell, suspicion: Arc::clone(&suspicion), stop: stop.clone() };
        tokio::spawn(supervisor.run(live));
        Ok(Self { state, suspicion, _ends_with_us: stop.clone().drop_guard(), stop })
    }

    /// The present connection, as soon as there is one.
    ///
    /// # Errors
    /// The link was closed.
    pub(crate) async fn up(&self) -> Result<Arc<LiveConnection>, AmqpError> {
        let mut state = self.state.clone();
        let found = state.wait_for(|state| !matches!(state, SupervisedState::Down(_))).await;
        match found.as_deref() {
            Ok(SupervisedState::Up(live)) => Ok(Arc::clone(live)),
            _ => Err(AmqpError::closed()),
        }
    }

    /// The present connection on which the broker takes messages, as soon as there is one.
    ///
    /// # Errors
    /// The link was closed.
    pub(crate) async fn unblocked(&self) -> Result<Arc<LiveConnection>, AmqpError> {
        let mut state = self.state.clone();
        let open = |state: &SupervisedState| match state {
            SupervisedState::Up(live) => live.blocked().is_none(),
            SupervisedState::Down(_) => false,
            SupervisedState::Closed => true,
        };
        match state.wait_for(open).await.as_deref() {
            Ok(SupervisedState::Up(live)) => Ok(Arc::clone(live)),
            _ => Err(AmqpError::closed()),
        }
    }

    /// Why nothing can be sent now.
    pub(crate) fn obstacle(&self) -> PublishAvailability {
        match &*self.state.borrow() {
            SupervisedState::Up(live) => {
                live.blocked().map_or(PublishAvailability::None, PublishAvailability::Blocked)
            }
            SupervisedState::Down(trouble) => PublishAvailability::Down(trouble.clone()),
            SupervisedState::Closed => PublishAvailability::Down(AmqpError::closed()),
        }
    }

    /// Has the present connection looked at now, because something on it failed.
    pub(crate) fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// Closes the connection and stays closed. Idempotent.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        let mut state = self.state.clone();
        // An error means that the supervisor is gone, and with it the connection.
        let _ = state.wait_for(|state| matches!(state, SupervisedState::Closed)).await;
    }
}

/// What stands between a message and the broker.
#[derive(Debug)]
pub(crate) enum PublishAvailability {
    None,
    Blocked(String),
    Down(AmqpError),
}

impl LiveConnection {
    async fn open(settings: &ConnectionSettings, role: &str) -> Result<Self, AmqpError> {
        let name = format!("{} ({role})", settings.connection_name);
        let (connection, fuse) = connect::connect(&settings.address, &settings.tls, &name).await?;
        let declared = DeclaredTopology::new(settings.plan.clone(), settings.topology);
        Ok(Self { connection, fuse, blocked: Mutex::default(), declared })
    }

    /// Opens a channel.
    pub(crate) async fn channel(&self) -> Result<Channel, AmqpError> {
        rpc("opening a channel", self.connection.create_channel()).await
    }

    /// Ends the connection without asking the peer.
    pub(crate) fn kill(&self) {
        self.fuse.blow();
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// What the broker said when it stopped taking messages.
    pub(crate) fn blocked(&self) -> Option<String> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// The largest frame that either side may send, in bytes.
    pub(crate) fn frame_max(&self) -> usize {
        usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX)
    }

    /// How often each side tells the other that it is there, in seconds.
    pub(crate) fn heartbeat(&self) -> u16 {
        self.connection.configuration().heartbeat()
    }
}

struct Supervisor {
    settings: Arc<ConnectionSettings>,
    role: &'static str,
    tell: watch::Sender<SupervisedState>,
    suspicion: Arc<Notify>,
    stop: CancellationToken,
}

impl Supervisor {
    async fn run(self, first: Arc<LiveConnection>) {
        let mut live = first;
        let mut backoff = ReconnectBackoff::new();
        loop {
            let since = Instant::now();
            let stop = self.stop.clone();
            let end = stop.run_until_cancelled(self.watch(&live)).await;
            let Some(trouble) = end else { break self.finish(&live).await };
            live.kill();
            tracing::warn!(role = self.role, broker = %self.settings.address, error = %chain(&trouble), "lost the broker");
            self.tell.send_replace(SupervisedState::Down(trouble));
            if since.elapsed() > PROBE_PERIOD * 2 {
                // A connection that dies as soon as it is made must not make us spin.
                backoff = ReconnectBackoff::new();
            }
            match stop.run_until_cancelled(self.reconnect(&mut backoff)).await {
                Some(next) => live = next,
                None => {
                    self.tell.send_replace(SupervisedState::Closed);
                    break;
                }
            }
            tracing::info!(role = self.role, broker = %self.settings.address, "reached the broker again");
            self.tell.send_replace(SupervisedState::Up(Arc::clone(&live)));
        }
    }

    async fn reconnect(&self, backoff: &mut ReconnectBackoff) -> Arc<LiveConnection> {
        loop {
            tokio::time::sleep(backoff.next()).await;
            match LiveConnection::open(&self.settings, self.role).await {
                Ok(live) => return Arc::new(live),
                Err(trouble) => {
                    tracing::debug!(role = self.role, error = %chain(&trouble), "no connection yet");
                    self.tell.send_replace(SupervisedState::Down(trouble));
                }
            }
        }
    }

    /// Returns when the connection is dead.
    async fn watch(&self, live: &LiveConnection) -> AmqpError {
        let mut events = std::pin::pin!(live.connection.events_listener());
        let mut probe: Option<Channel> = None;
        loop {
            let look = tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(role = self.role, reason, "the broker blocks publishers");
                        live.set_blocked(Some(reason));
                        self.tell.send_modify(|_| {});
                        false
                    }
                    Some(Event::ConnectionUnblocked) => {
                        live.set_blocked(None);
                        self.tell.send_modify(|_| {});
                        false
                    }
                    Some(Event::Error(_)) | None => true,
                    Some(_) => false,
                },
                () = self.suspicion.notified() => true,
                () = tokio::time::sleep(PROBE_PERIOD) => true,
            };
            // A blocked connection does not answer: the broker has stopped reading from it.
            if look && live.blocked().is_none() {
                if let Err(trouble) = ask(live, &mut probe).await {
                    return trouble;
                }
            } else if look && !live.is_connected() {
                return AmqpError::lapin("waiting for the broker to unblock", closed());
            }
        }
    }

    async fn finish(&self, live: &LiveConnection) {
        let close = live.connection.close(200, "OK".into());
        if let Err(trouble) = within(CLOSE_TIMEOUT, "closing the connection", close).await {
            tracing::debug!(role = self.role, error = %chain(&trouble), "the connection did not close by itself");
        }
        live.kill();
        self.tell.send_replace(SupervisedState::Closed);
    }
}

/// The probe: a question that costs nothing and needs no permission.
pub(crate) async fn ask(live: &LiveConnection, channel: &mut Option<Channel>) -> Result<(), AmqpError> {
    if !live.is_connected() {
        return Err(AmqpError::lapin("probing the connection", closed()));
    }
    let question = async {
        let open = match channel.take().filter(|channel| channel.status().connected()) {
            Some(open) => open,
            None => live.connection.create_channel().await?,
        };
        open.basic_qos(1, BasicQosOptions::default()).await?;
        *channel = Some(open);
        Ok::<_, lapin::Error>(())
    };
    match tokio::time::timeout(PROBE_PERIOD, question).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(AmqpError::lapin("probing the connection", error)),
        Err(_) if live.blocked().is_some() => Ok(()),
        Err(_) => Err(AmqpError::silence("probing the connection", PROBE_PERIOD)),
    }
}

fn closed() -> lapin::Error {
    lapin::ErrorKind::InvalidConnectionState(lapin::ConnectionState::Closed).into()
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // lapin's errors repeat their source.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
