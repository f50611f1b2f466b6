//! One open connection to the broker, and the probe that tells if it still answers.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::Stream;
use lapin::{Channel, Connection, Event, options::BasicQosOptions};
use machinist_adapter::tls::Tls;

use crate::{
    connect::{self, FailedConnect, OpenedConnection},
    endpoint::{Addresses, Endpoint},
    error::{AmqpError, CLOSE_TIMEOUT, error_chain, rpc, rpc_within},
    socket::SocketHandle,
};

/// Maximum time that the broker has to answer a probe.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of the looks at a connection that is about to be closed.
const CLOSED_POLL: Duration = Duration::from_millis(1);

/// Number of channel ids that are tried in a row before a connection counts as spoilt.
const CHANNEL_ID_TRIES: usize = 16;

/// An open connection. It may have died since; [`probe`](Self::probe) tells.
#[derive(Debug)]
pub(crate) struct AmqpConnection {
    connection: Connection,
    socket: SocketHandle,
    endpoint: Endpoint,
    /// Reason that the broker gave for taking no messages on this connection now.
    blocked: Mutex<Option<String>>,
}

/// Closes a channel that nothing uses any more, and waits until the broker has.
///
/// lapin closes a channel by itself when its last handle is dropped, but nobody can wait for that, and a connection that
/// is closed meanwhile fails.
pub(crate) async fn close_channel(channel: &Channel) {
    if channel.status().connected()
        && let Err(error) =
            rpc_within(CLOSE_TIMEOUT, "closing a channel", channel.close(200, "OK".into())).await
    {
        tracing::debug!(error = %error_chain(&error), "a channel did not close by itself");
    }
}

impl AmqpConnection {
    /// Connects in one bounded attempt.
    pub(crate) async fn open(addresses: &Addresses, tls: &Tls, name: &str) -> Result<Self, FailedConnect> {
        let OpenedConnection { connection, socket, endpoint } =
            connect::connect(addresses, tls, name).await?;
        Ok(Self { connection, socket, endpoint, blocked: Mutex::default() })
    }

    /// Endpoint of the node at the other end.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Opens a channel. lapin takes the next id each time, and an id whose channel the broker has closed is spoilt. A
    /// connection is ended if only spoilt ids are left, and its supervisor opens a new one.
    pub(crate) async fn open_channel(&self) -> Result<Channel, AmqpError> {
        const OPERATION: &str = "opening a channel";
        for _ in 0..CHANNEL_ID_TRIES {
            match rpc(OPERATION, self.connection.create_channel()).await {
                Err(error) if error.is_of_channel_id() => {
                    tracing::debug!(error = %error_chain(&error), "a channel id is spoilt");
                }
                opened => return opened,
            }
        }
        tracing::debug!("the broker has closed so many channels of a connection that it is replaced");
        self.abort();
        Err(AmqpError::connection_closed(OPERATION))
    }

    /// Events of the connection: blocked, unblocked, failed.
    pub(crate) fn events(&self) -> impl Stream<Item = Event> + '_ {
        self.connection.events_listener()
    }

    /// Asks the broker a question that costs nothing and needs no permission.
    ///
    /// `channel` keeps the channel of the question for the next probe of the same connection.
    pub(crate) async fn probe(&self, channel: &mut Option<Channel>) -> Result<(), AmqpError> {
        const OPERATION: &str = "probing the connection";
        if !self.is_connected() {
            return Err(AmqpError::connection_closed(OPERATION));
        }
        let question = async {
            let open = match channel.take().filter(|channel| channel.status().connected()) {
                Some(open) => open,
                None => self.open_channel().await?,
            };
            let asked = open.basic_qos(1, BasicQosOptions::default()).await;
            asked.map_err(|error| AmqpError::lapin(OPERATION, error))?;
            *channel = Some(open);
            Ok(())
        };
        match tokio::time::timeout(PROBE_TIMEOUT, question).await {
            Ok(asked) => asked,
            Err(_) if self.blocked().is_some() => Ok(()),
            Err(_) => Err(AmqpError::timeout(OPERATION, PROBE_TIMEOUT)),
        }
    }

    /// Ends the connection without asking the peer.
    pub(crate) fn abort(&self) {
        self.socket.shut_down();
    }

    /// Says good-bye to the broker, then ends the connection in any case.
    pub(crate) async fn close(&self) -> Result<(), AmqpError> {
        self.socket.hold_back_end();
        let close = async {
            self.connection.close(200, "OK".into()).await?;
            // The answer of the broker resolves the future above, and lapin processes it a moment later.
            while !self.connection.status().closed() && !self.connection.status().errored() {
                tokio::time::sleep(CLOSED_POLL).await;
            }
            Ok(())
        };
        let closed = rpc_within(CLOSE_TIMEOUT, "closing the connection", close).await;
        self.abort();
        closed
    }

    /// Returns `true` while lapin takes the connection for open.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Reason that the broker gave when it stopped taking messages; `None` while it takes them.
    pub(crate) fn blocked(&self) -> Option<String> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that the broker stopped taking messages, or takes them again.
    pub(crate) fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Maximum size of a frame that either side may send, in bytes.
    pub(crate) fn frame_max(&self) -> usize {
        usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX)
    }

    /// Interval of the heartbeats, in seconds.
    pub(crate) fn heartbeat(&self) -> u16 {
        self.connection.configuration().heartbeat()
    }
}
