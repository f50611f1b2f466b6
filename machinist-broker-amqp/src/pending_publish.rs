//! One message on its way to the broker, and the decision about it after a lost confirm.

use machinist_adapter::broker::{Publish, PublishError};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    error::{AmqpError, ServerError},
    ladder::{DELAY_UNIT, DelayRoute},
};

/// One message on its way, with the caller that waits for its result.
#[derive(Debug)]
pub(crate) struct PendingPublish {
    pub(crate) publish: Publish,
    /// Time of the call. The delay counts from then on, even while the message waits to be sent.
    called_at: Instant,
    pub(crate) deadline: Instant,
    pub(crate) caller: oneshot::Sender<Result<(), PublishError>>,
    pub(crate) history: PublishHistory,
}

/// Earlier attempts to publish a message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PublishHistory {
    /// The message was in a window before.
    pub(crate) tried: bool,
    /// The message was written to a socket and not confirmed.
    pub(crate) sent: bool,
    /// The message was sent and the connection died: the broker may have queued the message or not.
    pub(crate) lost: bool,
    /// The broker closed the channel of the message's window. The message is sent alone, to find out if it is the cause.
    pub(crate) suspect: bool,
    /// The queue or exchange of the message was declared again for it.
    pub(crate) redeclared: bool,
}

impl PendingPublish {
    pub(crate) fn new(
        publish: Publish,
        deadline: Instant,
        caller: oneshot::Sender<Result<(), PublishError>>,
    ) -> Self {
        Self { publish, called_at: Instant::now(), deadline, caller, history: PublishHistory::default() }
    }

    /// Route for the rest of the delay. A delay that is over by now takes the shortest route and not none, because the
    /// ladder is what was made sure of.
    pub(crate) fn delay_route(&self) -> Option<DelayRoute> {
        let rest = self.publish.delay.saturating_sub(self.called_at.elapsed());
        DelayRoute::for_delay(rest.max(DELAY_UNIT.min(self.publish.delay)))
    }

    /// Tells the caller that this attempt queued nothing. If an earlier attempt was sent and not confirmed, the result is
    /// unknown.
    pub(crate) fn refuse(self, error: PublishError) {
        let error = if self.history.sent { PublishError::Unknown(Box::new(error)) } else { error };
        self.answer(Err(error));
    }

    /// Tells the caller that nothing is bound where the message went.
    pub(crate) fn refuse_unroutable(self) {
        let queue = self.publish.target.queue().clone();
        self.refuse(PublishError::Unroutable { queue });
    }

    /// Tells the caller the result. A caller that has stopped waiting does not get it.
    pub(crate) fn answer(self, result: Result<(), PublishError>) {
        let _ = self.caller.send(result);
    }
}

/// Decision about a message whose confirm never came.
#[derive(Debug)]
pub(crate) enum LossDecision {
    /// Send the message again, with this history.
    Resend(PublishHistory),
    /// Report the error to the caller.
    Report(PublishError),
}

/// Decides about a message whose confirm never came.
///
/// The end of a connection says nothing about the message: it is sent again. The broker closes a channel because of one
/// message of the window: each is sent again alone, and the one that closes the channel again is the cause.
pub(crate) fn after_loss(history: PublishHistory, is_alone: bool, error: &AmqpError) -> LossDecision {
    let channel_error = error.server_error().filter(|reply| reply.closes_only_channel);
    let Some(ServerError { code, text, .. }) = channel_error else {
        return LossDecision::Resend(PublishHistory { sent: true, lost: true, ..history });
    };
    // A missing exchange is declared again before the next attempt.
    if !is_alone || (code == 404 && !history.redeclared) {
        let redeclared = history.redeclared || is_alone;
        return LossDecision::Resend(PublishHistory { sent: true, suspect: true, redeclared, ..history });
    }
    LossDecision::Report(match too_large(text) {
        Some((size, limit)) => PublishError::TooLarge { size, limit },
        // An earlier attempt may have succeeded before somebody changed something.
        None if history.lost => PublishError::Unknown(Box::new(error.clone())),
        None if code == 403 => PublishError::Rejected {
            reason: format!("this user may not publish there ({text}); grant write on the exchange"),
        },
        // Its exchange is gone again, and says nothing about the message.
        None if code == 404 => PublishError::Nacked { reason: text.to_owned() },
        None => PublishError::Rejected { reason: text.to_owned() },
    })
}

/// Size and maximum size of a message in
/// `PRECONDITION_FAILED - message size 17 is larger than configured max size 16`.
fn too_large(text: &str) -> Option<(usize, usize)> {
    let (size, rest) = text.split_once("message size ")?.1.split_once(' ')?;
    let limit = rest.rsplit(' ').next()?;
    Some((size.parse().ok()?, limit.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lapin::{
        ErrorKind,
        protocol::{AMQPError, AMQPErrorKind, AMQPSoftError},
    };
    use machinist_adapter::{
        broker::{Message, Target},
        id::QueueName,
    };

    use super::*;

    #[test]
    fn the_maximum_size_is_read_from_the_brokers_error() {
        let text =
            "PRECONDITION_FAILED - message size 200000000 is larger than configured max size 134217728";
        assert_eq!(too_large(text), Some((200_000_000, 134_217_728)));
        assert_eq!(too_large("PRECONDITION_FAILED - other"), None);
    }

    #[test]
    fn a_missing_exchange_says_nothing_about_the_message() {
        let closed = |kind: AMQPSoftError| {
            let error = AMQPError::new(AMQPErrorKind::Soft(kind), "said".into());
            let error = AmqpError::lapin("publishing", ErrorKind::ProtocolError(error).into());
            let history = PublishHistory { suspect: true, redeclared: true, ..PublishHistory::default() };
            match after_loss(history, true, &error) {
                LossDecision::Report(error) => error,
                LossDecision::Resend(history) => panic!("{history:?}"),
            }
        };
        let missing = closed(AMQPSoftError::NOTFOUND);
        assert!(matches!(missing, PublishError::Nacked { .. }) && !missing.is_certain(), "{missing:?}");
        assert!(matches!(closed(AMQPSoftError::ACCESSREFUSED), PublishError::Rejected { .. }));
        assert!(matches!(closed(AMQPSoftError::PRECONDITIONFAILED), PublishError::Rejected { .. }));
    }

    #[test]
    fn the_time_that_a_delayed_message_waits_to_be_sent_is_part_of_its_delay() {
        let route_after = |delay: u64, waited: u64| {
            let publish = Publish {
                target: Target::Queue(QueueName::parse("q").unwrap()),
                message: Message::default(),
                delay: Duration::from_millis(delay),
            };
            let mut pending = PendingPublish::new(publish, Instant::now(), oneshot::channel().0);
            pending.called_at = Instant::now().checked_sub(Duration::from_millis(waited)).unwrap();
            pending.delay_route()
        };
        let route = |delay| DelayRoute::for_delay(Duration::from_millis(delay));
        assert_eq!((route_after(0, 0), route_after(0, 50)), (None, None));
        // Of 70 s, 40 are over. Level 3 begins at 65 s, level 2 at 4.
        assert_eq!(route_after(70_000, 40_000).map(DelayRoute::top_level), Some(2));
        assert_eq!((route_after(60_000, 60_000), route_after(5, 0)), (route(1), route(1)));
    }
}
