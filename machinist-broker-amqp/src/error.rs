//! Failed operations on the broker, and their translation into errors of the broker seam.

use std::{error::Error, fmt, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use lapin::{ErrorKind, protocol::AMQPErrorKind};
use machinist_adapter::broker::BrokerError;

use crate::address::Address;

/// Maximum time that the broker has to answer an operation. lapin itself would wait forever.
pub(crate) const RPC_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time that the broker has to answer a close or a cancel. The caller has a process to end, and the broker
/// finds out by itself what it was not told.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One failed operation on the broker.
#[derive(Debug, Clone)]
pub(crate) struct AmqpError {
    /// The operation, as a noun: `opening a channel`.
    operation: String,
    cause: AmqpErrorCause,
}

#[derive(Debug, Clone)]
enum AmqpErrorCause {
    /// The broker did not answer.
    NoAnswer,
    /// The broker did not answer within this time.
    Timeout(Duration),
    /// Error of lapin: an error reply of the broker, or the end of the connection.
    Lapin(lapin::Error),
    /// The adapter was closed.
    Closed,
}

/// Error reply of the broker to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerError<'a> {
    /// Code of AMQP: 403, 404, 406, 530 …
    pub(crate) code: u16,
    /// Sentence that comes with the code.
    pub(crate) text: &'a str,
    /// `true` if the error closed the channel only, `false` if it closed the connection.
    pub(crate) closes_only_channel: bool,
}

impl ServerError<'_> {
    /// Returns `true` if the named queue or exchange does not exist. RabbitMQ gives the same code for a queue that exists
    /// and is out of reach: its node is down, its process is stopped, its leader did not answer in time.
    pub(crate) fn says_missing(&self) -> bool {
        self.code == 404 && self.text.contains("NOT_FOUND - no ")
    }
}

impl AmqpError {
    /// Error of an operation that the broker did not answer within `waited`.
    pub(crate) fn timeout(operation: impl Into<String>, waited: Duration) -> Self {
        Self { operation: operation.into(), cause: AmqpErrorCause::Timeout(waited) }
    }

    /// Error of an operation that the broker did not answer.
    pub(crate) fn no_answer(operation: impl Into<String>) -> Self {
        Self { operation: operation.into(), cause: AmqpErrorCause::NoAnswer }
    }

    /// Error of the look-up of a name.
    pub(crate) fn lookup(address: &Address, error: std::io::Error) -> Self {
        let error = ErrorKind::IOError(Arc::new(error));
        Self::lapin(format!("looking up {} for {address}", address.host()), error.into())
    }

    /// Error of an address that is not of this host, while the login must stay here.
    pub(crate) fn not_loopback(address: &Address, peer: SocketAddr) -> Self {
        let refused = "the password would go there without TLS; use amqps://, or, on a trusted network, \
                       insecure_plaintext = true";
        let error = std::io::Error::new(std::io::ErrorKind::PermissionDenied, refused);
        Self::lapin(format!("connecting to {address} at {peer}"), ErrorKind::IOError(Arc::new(error)).into())
    }

    /// Error of an operation that failed in lapin.
    pub(crate) fn lapin(operation: impl Into<String>, error: lapin::Error) -> Self {
        Self { operation: operation.into(), cause: AmqpErrorCause::Lapin(error) }
    }

    /// Error of an operation on a connection that lapin knows to be closed.
    pub(crate) fn connection_closed(operation: impl Into<String>) -> Self {
        let closed = ErrorKind::InvalidConnectionState(lapin::ConnectionState::Closed);
        Self::lapin(operation, closed.into())
    }

    /// Error of any operation after the adapter was closed.
    pub(crate) fn closed() -> Self {
        Self { operation: "using a closed broker".to_owned(), cause: AmqpErrorCause::Closed }
    }

    /// Returns `true` if the broker did not answer in time.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self.cause, AmqpErrorCause::Timeout(_) | AmqpErrorCause::NoAnswer)
    }

    /// Returns `true` if a channel could not be opened because of its id: all are in use, or the broker has closed a channel
    /// of this id before, whose error lapin then reports for each later channel of the id.
    pub(crate) fn is_of_channel_id(&self) -> bool {
        let is_limit = |error: &lapin::Error| matches!(error.kind(), ErrorKind::ChannelsLimitReached);
        let is_old = self.server_error().is_some_and(|reply| reply.closes_only_channel);
        is_old || matches!(&self.cause, AmqpErrorCause::Lapin(error) if is_limit(error))
    }

    /// Error reply of the broker, if it sent one.
    pub(crate) fn server_error(&self) -> Option<ServerError<'_>> {
        let AmqpErrorCause::Lapin(error) = &self.cause else { return None };
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        let closes_only_channel = matches!(error.kind(), AMQPErrorKind::Soft(_));
        Some(ServerError { code: error.get_id(), text: error.get_message().as_str(), closes_only_channel })
    }

    /// Returns `true` if the broker has a temporary problem that says nothing about the operation. RabbitMQ answers
    /// with an internal error when several processes declare a new quorum queue at once, forces connections
    /// to close when it stops, and does not find a queue whose node is down.
    pub(crate) fn is_transient(&self) -> bool {
        const CONNECTION_FORCED: u16 = 320;
        const RESOURCE_ERROR: u16 = 506;
        const INTERNAL_ERROR: u16 = 541;
        const NOT_FOUND: u16 = 404;
        let transient = [CONNECTION_FORCED, RESOURCE_ERROR, INTERNAL_ERROR];
        self.server_error().is_some_and(|error| {
            transient.contains(&error.code) || (error.code == NOT_FOUND && !error.says_missing())
        })
    }

    /// Error of the broker seam, for an operation of which nothing more is known than that it failed.
    pub(crate) fn into_broker_error(self) -> BrokerError {
        match self.server_error().filter(|_| !self.is_transient()) {
            Some(ServerError { text, .. }) => {
                BrokerError::Refused { reason: format!("{}: {text}", self.operation) }
            }
            None => BrokerError::Unavailable(Box::new(self)),
        }
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            AmqpErrorCause::NoAnswer => write!(f, "{}: no answer", self.operation),
            AmqpErrorCause::Timeout(waited) => write!(f, "{}: no answer within {waited:?}", self.operation),
            AmqpErrorCause::Lapin(_) => write!(f, "{} failed", self.operation),
            AmqpErrorCause::Closed => write!(f, "{}", self.operation),
        }
    }
}

impl Error for AmqpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            AmqpErrorCause::Lapin(error) => Some(error),
            AmqpErrorCause::NoAnswer | AmqpErrorCause::Timeout(_) | AmqpErrorCause::Closed => None,
        }
    }
}

/// Waits at most [`RPC_TIMEOUT`] for the broker's answer.
///
/// # Cancel safety
/// The same as that of `answer`: the broker may have performed a request that was sent.
pub(crate) async fn rpc<T>(
    operation: &str,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, AmqpError> {
    rpc_within(RPC_TIMEOUT, operation, answer).await
}

/// Does the same as [`rpc`], with another timeout.
pub(crate) async fn rpc_within<T>(
    timeout: Duration,
    operation: &str,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, AmqpError> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(AmqpError::lapin(operation, error)),
        Err(_) => Err(AmqpError::timeout(operation, timeout)),
    }
}

/// Writes an error and its sources on one line.
pub(crate) fn error_chain(error: &dyn Error) -> String {
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

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};

    use super::*;

    #[test]
    fn a_queue_whose_node_is_down_is_not_missing() {
        let found = |text: &str| {
            let error = AMQPError::new(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND), text.into());
            let error = AmqpError::lapin("asking", ErrorKind::ProtocolError(error).into());
            (error.server_error().is_some_and(|reply| reply.says_missing()), error.is_transient())
        };
        assert_eq!(found("NOT_FOUND - no queue 'q' in vhost '/'"), (true, false));
        assert_eq!(found("NOT_FOUND - no exchange 'e' in vhost '/'"), (true, false));
        for text in [
            "NOT_FOUND - home node 'a@b' of durable queue 'q' in vhost '/' is down or inaccessible",
            "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
        ] {
            assert_eq!(found(text), (false, true), "{text}");
        }
    }

    #[test]
    fn a_temporary_problem_of_the_broker_is_no_refusal() {
        let told = |kind: AMQPErrorKind| {
            let error = AMQPError::new(kind, "said".into());
            AmqpError::lapin("asking", ErrorKind::ProtocolError(error).into()).into_broker_error()
        };
        for kind in [AMQPHardError::INTERNALERROR, AMQPHardError::CONNECTIONFORCED] {
            let error = told(AMQPErrorKind::Hard(kind));
            assert!(matches!(error, BrokerError::Unavailable(_)), "{error:?}");
        }
        let refused = [
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED),
        ];
        for kind in refused {
            let error = told(kind);
            assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
        }
    }
}
