//! What goes wrong between us and the broker, and in which of the seam's words it is told.

use std::{error::Error, fmt, future::Future, time::Duration};

use lapin::{ErrorKind, protocol::AMQPErrorKind};
use machinist_core::broker::BrokerError;

/// How long the broker has for an answer to a question. lapin itself would wait for ever.
pub(crate) const RPC_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it has for an answer to a good-bye. Whoever closes has a process to end, and what the broker did not
/// hear it finds out by itself.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One failed exchange with the broker.
#[derive(Debug, Clone)]
pub(crate) struct AmqpError {
    /// What was being done, as a noun: `opening a channel`.
    what: String,
    cause: AmqpErrorCause,
}

#[derive(Debug, Clone)]
enum AmqpErrorCause {
    /// No answer in this time.
    Silence(Duration),
    /// lapin's error: the broker's word, or the connection's end.
    Lapin(lapin::Error),
    /// The adapter was closed.
    Closed,
}

/// The broker's word against an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerError<'a> {
    /// The code of AMQP: 403, 404, 406, 530 …
    pub(crate) code: u16,
    /// Its sentence.
    pub(crate) text: &'a str,
    /// Whether it cost the channel only, not the connection.
    pub(crate) soft: bool,
}

impl AmqpError {
    pub(crate) fn silence(what: impl Into<String>, waited: Duration) -> Self {
        Self { what: what.into(), cause: AmqpErrorCause::Silence(waited) }
    }

    pub(crate) fn lapin(what: impl Into<String>, error: lapin::Error) -> Self {
        Self { what: what.into(), cause: AmqpErrorCause::Lapin(error) }
    }

    pub(crate) fn closed() -> Self {
        Self { what: "using a closed broker".to_owned(), cause: AmqpErrorCause::Closed }
    }

    /// Whether nobody answered in time.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self.cause, AmqpErrorCause::Silence(_))
    }

    /// The broker's complaint, if it made one.
    pub(crate) fn complaint(&self) -> Option<ServerError<'_>> {
        let AmqpErrorCause::Lapin(error) = &self.cause else { return None };
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        let soft = matches!(error.kind(), AMQPErrorKind::Soft(_));
        Some(ServerError { code: error.get_id(), text: error.get_message().as_str(), soft })
    }

    /// Whether it is the broker's own trouble, of a moment, and says nothing about what was asked. RabbitMQ answers
    /// with an internal error when several processes declare a new quorum queue at once, and forces connections
    /// to close when it stops.
    pub(crate) fn passes(&self) -> bool {
        const CONNECTION_FORCED: u16 = 320;
        const RESOURCE_ERROR: u16 = 506;
        const INTERNAL_ERROR: u16 = 541;
        let passing = [CONNECTION_FORCED, RESOURCE_ERROR, INTERNAL_ERROR];
        self.complaint().is_some_and(|complaint| passing.contains(&complaint.code))
    }

    /// In the words of the seam, where nothing more is known about the operation than that it failed.
    pub(crate) fn into_broker_error(self) -> BrokerError {
        match self.complaint().filter(|_| !self.passes()) {
            Some(ServerError { text, .. }) => {
                BrokerError::Refused { reason: format!("{}: {text}", self.what) }
            }
            None => BrokerError::Unavailable(Box::new(self)),
        }
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            AmqpErrorCause::Silence(Duration::ZERO) => write!(f, "{}: no answer", self.what),
            AmqpErrorCause::Silence(waited) => write!(f, "{}: no answer within {waited:?}", self.what),
            AmqpErrorCause::Lapin(_) => write!(f, "{} failed", self.what),
            AmqpErrorCause::Closed => write!(f, "{}", self.what),
        }
    }
}

impl Error for AmqpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            AmqpErrorCause::Lapin(error) => Some(error),
            AmqpErrorCause::Silence(_) | AmqpErrorCause::Closed => None,
        }
    }
}

/// Waits for the broker's answer, but not for ever.
///
/// # Cancel safety
/// As the future's: what was sent may have been done.
pub(crate) async fn rpc<T>(
    what: &str,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, AmqpError> {
    within(RPC_TIMEOUT, what, answer).await
}

/// As [`rpc`], with another patience.
pub(crate) async fn within<T>(
    patience: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, AmqpError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(AmqpError::lapin(what, error)),
        Err(_) => Err(AmqpError::silence(what, patience)),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};

    use super::*;

    #[test]
    fn the_brokers_own_trouble_is_no_refusal() {
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
