//! One window of publishes: sent together, confirmed together, and each matched with its own outcome.
//!
//! lapin hands a returned message to whichever confirm comes next, so under concurrency it reports unroutable messages as
//! routed and the other way round. The set of returned messages is right, though. So a window is a barrier: its confirms
//! are collected, the returned messages are matched by an id of ours, and only then does any caller get a result.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm, message::BasicReturnMessage,
    options::BasicPublishOptions, types::ShortString,
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    connection::AmqpConnection,
    convert,
    error::{AmqpError, CLOSE_TIMEOUT, rpc_within},
    topology::MessageRoute,
};

/// Maximum time that lapin has to give up its pending writes once its channel or connection is gone.
const WRITE_ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// One message ready to be sent.
#[derive(Debug)]
pub(crate) struct OutgoingMessage<'a> {
    pub(crate) route: &'a MessageRoute,
    pub(crate) body: &'a [u8],
    pub(crate) properties: BasicProperties,
    /// Unique on this channel.
    pub(crate) id: i64,
}

/// Outcome of one publish of a window.
#[derive(Debug)]
pub(crate) enum PublishOutcome {
    /// The message is in a queue.
    Routed,
    /// The message is in no queue: nothing is bound where it went.
    Returned,
    /// The message is in no queue: the broker refused it.
    Refused,
    /// The message has not left this process, and by this attempt never will.
    Unsent(AmqpError),
    /// The message may be in a queue or not.
    Unconfirmed(AmqpError),
}

/// Sends a window and waits for its confirms, at most until `until`. Afterwards no message of the window is still in
/// flight.
pub(crate) async fn transmit(
    connection: &AmqpConnection,
    channel: &Channel,
    messages: Vec<OutgoingMessage<'_>>,
    until: Instant,
) -> Vec<PublishOutcome> {
    let ids: Vec<i64> = messages.iter().map(|message| message.id).collect();
    let written = write(connection, channel, messages, until).await;
    let replies = confirm(connection, channel, written, until).await;
    attribute(&ids, replies)
}

/// Hands the messages to lapin and waits until it has written each to its socket.
async fn write(
    connection: &AmqpConnection,
    channel: &Channel,
    messages: Vec<OutgoingMessage<'_>>,
    until: Instant,
) -> Vec<Result<PublisherConfirm, ConfirmReply>> {
    let count = messages.len();
    let mut all = Box::pin(join_all(messages.into_iter().map(|message| publish(channel, message))));
    if let Ok(written) = timeout_at(until, &mut all).await {
        return written;
    }
    // The socket takes no more: the broker blocks us, or is gone. Messages that lapin still holds must never be sent
    // once they were reported as not sent.
    connection.abort();
    timeout(WRITE_ABORT_TIMEOUT, &mut all).await.unwrap_or_else(|_| {
        // This should not happen; the written messages are unknown now.
        let unknown = || AmqpError::timeout("publishing", WRITE_ABORT_TIMEOUT);
        (0..count).map(|_| Err(ConfirmReply::Unconfirmed(unknown()))).collect()
    })
}

async fn publish(channel: &Channel, message: OutgoingMessage<'_>) -> Result<PublisherConfirm, ConfirmReply> {
    let exchange = short_string(&message.route.exchange);
    let key = short_string(&message.route.key);
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let written = channel.basic_publish(exchange, key, options, message.body, message.properties).await;
    written.map_err(|error| ConfirmReply::Unsent(AmqpError::lapin("publishing", error)))
}

async fn confirm(
    connection: &AmqpConnection,
    channel: &Channel,
    written: Vec<Result<PublisherConfirm, ConfirmReply>>,
    until: Instant,
) -> Vec<ConfirmReply> {
    const OPERATION: &str = "waiting for a confirm";
    let mut replies: Vec<Option<ConfirmReply>> = Vec::with_capacity(written.len());
    let mut waiting = FuturesUnordered::new();
    for (at, written) in written.into_iter().enumerate() {
        match written {
            Err(reply) => replies.push(Some(reply)),
            Ok(confirm) => {
                replies.push(None);
                waiting.push(async move { (at, confirm.await) });
            }
        }
    }
    while let Ok(Some((at, confirmed))) = timeout_at(until, waiting.next()).await {
        let lost = |error| ConfirmReply::Unconfirmed(AmqpError::lapin(OPERATION, error));
        replies[at] = Some(confirmed.map_or_else(lost, ConfirmReply::from));
    }
    // A confirm that is dropped unresolved stays in lapin as long as its channel. On a blocked connection that lasts
    // until the broker reads again; the next message would only block a new connection too.
    if !waiting.is_empty() && connection.blocked().is_none() {
        let close = channel.close(200, "no confirms".into());
        if rpc_within(CLOSE_TIMEOUT, "closing a channel", close).await.is_err() {
            connection.abort();
        }
    }
    let no_answer = || ConfirmReply::Unconfirmed(AmqpError::no_answer(OPERATION));
    replies.into_iter().map(|reply| reply.unwrap_or_else(no_answer)).collect()
}

/// Reply of lapin to one publish.
#[derive(Debug)]
enum ConfirmReply {
    /// The broker has accepted the message. The id is that of a returned message that came with the confirm, perhaps of
    /// another publish.
    Ack(Option<i64>),
    /// The broker has refused the message. The id is as above.
    Nack(Option<i64>),
    Unsent(AmqpError),
    Unconfirmed(AmqpError),
}

impl From<Confirmation> for ConfirmReply {
    fn from(confirmation: Confirmation) -> Self {
        let id = |returned: Option<BasicReturnMessage>| {
            returned.and_then(|message| convert::publish_id(&message.delivery.properties))
        };
        match confirmation {
            Confirmation::Ack(returned) => Self::Ack(id(returned)),
            Confirmation::Nack(returned) => Self::Nack(id(returned)),
            // The channel is in confirm mode; a message that was not confirmed is not known to be queued.
            Confirmation::NotRequested => {
                Self::Unconfirmed(AmqpError::no_answer("waiting for a confirm that was not requested"))
            }
        }
    }
}

/// Matches the returned messages with their publishes.
///
/// The broker returns a message before it acknowledges it, and lapin hands out returned messages in that order, one per
/// confirm, to whichever confirm comes. So when a confirm comes with no message, none is waiting, and the return of
/// *that* publish, if there was one, is among those that have come. A confirm that comes with the message of another
/// publish proves nothing about its own until every confirm of the window is in.
fn attribute(ids: &[i64], replies: Vec<ConfirmReply>) -> Vec<PublishOutcome> {
    let returned: HashSet<i64> = replies
        .iter()
        .filter_map(|reply| match reply {
            ConfirmReply::Ack(id) | ConfirmReply::Nack(id) => *id,
            ConfirmReply::Unsent(_) | ConfirmReply::Unconfirmed(_) => None,
        })
        .collect();
    let is_complete = !replies.iter().any(|reply| matches!(reply, ConfirmReply::Unconfirmed(_)));
    let outcome = |(id, reply)| match reply {
        ConfirmReply::Unsent(error) => PublishOutcome::Unsent(error),
        ConfirmReply::Unconfirmed(error) => PublishOutcome::Unconfirmed(error),
        ConfirmReply::Nack(_) => PublishOutcome::Refused,
        ConfirmReply::Ack(_) if returned.contains(id) => PublishOutcome::Returned,
        ConfirmReply::Ack(Some(_)) if !is_complete => PublishOutcome::Unconfirmed(AmqpError::timeout(
            "waiting for the confirms of a window",
            WRITE_ABORT_TIMEOUT,
        )),
        ConfirmReply::Ack(_) => PublishOutcome::Routed,
    };
    ids.iter().zip(replies).map(outcome).collect()
}

/// Converts a name of the topology, none of which is longer than a short string.
fn short_string(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// Model of lapin: returned messages queue up, and each confirm takes the first. The broker returns and acknowledges
    /// in any order, but returns each message before it acknowledges it; `known` is the number of confirms that arrive
    /// before the connection is cut.
    fn credit(unroutable: &[bool], order: &[usize], known: usize) -> Vec<ConfirmReply> {
        let mut waiting = VecDeque::new();
        let mut replies: Vec<ConfirmReply> =
            unroutable.iter().map(|_| ConfirmReply::Unconfirmed(AmqpError::no_answer("test"))).collect();
        // All returns of a chunk first is the worst case of "some time before its acknowledgement".
        for chunk in order[..known].chunks(3) {
            waiting.extend(chunk.iter().filter(|&&at| unroutable[at]).map(|&at| id(at)));
            for &at in chunk.iter().rev() {
                replies[at] = ConfirmReply::Ack(waiting.pop_front());
            }
        }
        replies
    }

    fn id(at: usize) -> i64 {
        i64::try_from(at).unwrap() + 1000
    }

    proptest! {
        #[test]
        fn each_message_gets_its_own_outcome(
            unroutable in proptest::collection::vec(any::<bool>(), 24),
            order in Just((0..24).collect::<Vec<_>>()).prop_shuffle(),
            known in 0usize..=24,
        ) {
            let ids: Vec<_> = (0..24).map(id).collect();
            let outcomes = attribute(&ids, credit(&unroutable, &order, known));
            for (at, outcome) in outcomes.iter().enumerate() {
                match outcome {
                    PublishOutcome::Routed => prop_assert!(!unroutable[at], "an unroutable message was called routed"),
                    PublishOutcome::Returned => prop_assert!(unroutable[at], "a routed message was called unroutable"),
                    PublishOutcome::Unconfirmed(_) => prop_assert!(known < 24, "a whole window leaves nobody in doubt"),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_negative_confirm_is_the_publishes_own() {
        let outcomes = attribute(&[1, 2], vec![ConfirmReply::Nack(None), ConfirmReply::Ack(None)]);
        assert!(matches!(outcomes[..], [PublishOutcome::Refused, PublishOutcome::Routed]), "{outcomes:?}");
    }
}
