//! One window of publishes: sent together, confirmed together, and each told its own fate.
//!
//! lapin hands a returned message to whichever confirm comes next, so under concurrency it calls unroutable
//! messages routed and the other way round. The set of returned messages is right, though. So a window is a
//! barrier: its confirms are collected, the returned messages matched by an id of ours, and only then is
//! anybody told anything.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm, message::BasicReturnMessage,
    options::BasicPublishOptions, types::ShortString,
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    convert,
    error::{AmqpError, CLOSE_TIMEOUT, within},
    supervisor::LiveConnection,
    topology::MessageRoute,
};

/// How long lapin has to give up what it holds once its channel or connection is gone.
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

/// What became of one message of a window.
#[derive(Debug)]
pub(crate) enum PublishOutcome {
    /// In a queue.
    Routed,
    /// In no queue: nothing is bound where it went.
    Returned,
    /// In no queue: the broker would not have it.
    Refused,
    /// Never left this process, and never will by this attempt.
    Unsent(AmqpError),
    /// Nobody knows.
    Lost(AmqpError),
}

/// Sends a window and waits for its confirms, until `until` at the latest. Afterwards nothing of it is still
/// under way.
pub(crate) async fn transmit(
    live: &LiveConnection,
    channel: &Channel,
    items: Vec<OutgoingMessage<'_>>,
    until: Instant,
) -> Vec<PublishOutcome> {
    let ids: Vec<i64> = items.iter().map(|item| item.id).collect();
    let written = write(live, channel, items, until).await;
    let replies = confirm(live, channel, written, until).await;
    attribute(&ids, replies)
}

/// Hands the messages to lapin and waits until it has written each to its socket.
async fn write(
    live: &LiveConnection,
    channel: &Channel,
    items: Vec<OutgoingMessage<'_>>,
    until: Instant,
) -> Vec<Result<PublisherConfirm, ConfirmReply>> {
    let count = items.len();
    let mut all = Box::pin(join_all(items.into_iter().map(|item| publish(channel, item))));
    if let Ok(written) = timeout_at(until, &mut all).await {
        return written;
    }
    // The socket takes no more: the broker blocks us, or is gone. What lapin still holds must never be sent
    // once we have said that it was not.
    live.kill();
    timeout(WRITE_ABORT_TIMEOUT, &mut all).await.unwrap_or_else(|_| {
        // It should not come to this; and nobody can say now what was written.
        (0..count)
            .map(|_| Err(ConfirmReply::Lost(AmqpError::silence("publishing", WRITE_ABORT_TIMEOUT))))
            .collect()
    })
}

async fn publish(channel: &Channel, item: OutgoingMessage<'_>) -> Result<PublisherConfirm, ConfirmReply> {
    let (exchange, key) = (short(&item.route.exchange), short(&item.route.key));
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let written = channel.basic_publish(exchange, key, options, item.body, item.properties).await;
    written.map_err(|error| ConfirmReply::Unsent(AmqpError::lapin("publishing", error)))
}

async fn confirm(
    live: &LiveConnection,
    channel: &Channel,
    written: Vec<Result<PublisherConfirm, ConfirmReply>>,
    until: Instant,
) -> Vec<ConfirmReply> {
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
        let lost = |error| ConfirmReply::Lost(AmqpError::lapin("waiting for a confirm", error));
        replies[at] = Some(confirmed.map_or_else(lost, ConfirmReply::from));
    }
    // A confirm that is dropped unresolved stays in lapin as long as its channel. On a blocked connection that
    // lasts until the broker reads again; a new connection would only be blocked by our next message.
    if !waiting.is_empty() && live.blocked().is_none() {
        let close = channel.close(200, "no confirms".into());
        if within(CLOSE_TIMEOUT, "closing a channel", close).await.is_err() {
            live.kill();
        }
    }
    let silence = || ConfirmReply::Lost(AmqpError::silence("waiting for a confirm", Duration::ZERO));
    replies.into_iter().map(|reply| reply.unwrap_or_else(silence)).collect()
}

/// What lapin said about one publish.
#[derive(Debug)]
enum ConfirmReply {
    /// The broker has dealt with it. With it came the id of a returned message, perhaps of another publish.
    Ack(Option<i64>),
    /// The broker would not have it; the rest as above.
    Nack(Option<i64>),
    Unsent(AmqpError),
    Lost(AmqpError),
}

impl From<Confirmation> for ConfirmReply {
    fn from(confirmation: Confirmation) -> Self {
        let id = |returned: Option<BasicReturnMessage>| {
            returned.and_then(|m| convert::publish_id(&m.delivery.properties))
        };
        match confirmation {
            Confirmation::Ack(returned) => Self::Ack(id(returned)),
            Confirmation::Nack(returned) => Self::Nack(id(returned)),
            Confirmation::NotRequested => {
                // Confirms were asked for on this channel; a message that was not confirmed is not known to be queued.
                Self::Lost(AmqpError::silence("waiting for a confirm that was not requested", Duration::ZERO))
            }
        }
    }
}

/// Says whose message was returned.
///
/// The broker returns a message before it acknowledges it, and lapin hands out returned messages in that order,
/// one per confirm, to whichever confirm comes. So when a confirm comes with no message, none is waiting, and
/// the return of *that* publish, had there been one, is among those that we have. A confirm that comes with
/// somebody else's message proves nothing about its own publish until every confirm of the window is in.
fn attribute(ids: &[i64], replies: Vec<ConfirmReply>) -> Vec<PublishOutcome> {
    let returned: HashSet<i64> = replies
        .iter()
        .filter_map(|reply| match reply {
            ConfirmReply::Ack(id) | ConfirmReply::Nack(id) => *id,
            ConfirmReply::Unsent(_) | ConfirmReply::Lost(_) => None,
        })
        .collect();
    let whole = !replies.iter().any(|reply| matches!(reply, ConfirmReply::Lost(_)));
    let fate = |(id, reply)| match reply {
        ConfirmReply::Unsent(trouble) => PublishOutcome::Unsent(trouble),
        ConfirmReply::Lost(trouble) => PublishOutcome::Lost(trouble),
        ConfirmReply::Nack(_) => PublishOutcome::Refused,
        ConfirmReply::Ack(_) if returned.contains(id) => PublishOutcome::Returned,
        ConfirmReply::Ack(Some(_)) if !whole => PublishOutcome::Lost(AmqpError::silence(
            "waiting for the confirms of a window",
            WRITE_ABORT_TIMEOUT,
        )),
        ConfirmReply::Ack(_) => PublishOutcome::Routed,
    };
    ids.iter().zip(replies).map(fate).collect()
}

/// Names of the plan fit; nothing else comes here.
fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// lapin's crediting: returned messages queue up, each confirm takes the first. The broker returns and
    /// acknowledges in any order, but each message's return before its acknowledgement; `known` is how many
    /// confirms arrive before the connection is cut.
    fn credit(unroutable: &[bool], order: &[usize], known: usize) -> Vec<ConfirmReply> {
        let mut waiting = VecDeque::new();
        let mut replies: Vec<ConfirmReply> = unroutable
            .iter()
            .map(|_| ConfirmReply::Lost(AmqpError::silence("test", Duration::ZERO)))
            .collect();
        // All returns first is the worst case of "some time before its acknowledgement".
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
        fn each_message_learns_its_own_fate(
            unroutable in proptest::collection::vec(any::<bool>(), 24),
            order in Just((0..24).collect::<Vec<_>>()).prop_shuffle(),
            known in 0usize..=24,
        ) {
            let ids: Vec<_> = (0..24).map(id).collect();
            let fates = attribute(&ids, credit(&unroutable, &order, known));
            for (at, fate) in fates.iter().enumerate() {
                match fate {
                    PublishOutcome::Routed => prop_assert!(!unroutable[at], "an unroutable message was called routed"),
                    PublishOutcome::Returned => prop_assert!(unroutable[at], "a routed message was called unroutable"),
                    PublishOutcome::Lost(_) => prop_assert!(known < 24, "a whole window leaves nobody in doubt"),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_negative_confirm_is_the_publishes_own() {
        let fates = attribute(&[1, 2], vec![ConfirmReply::Nack(None), ConfirmReply::Ack(None)]);
        assert!(matches!(fates[..], [PublishOutcome::Refused, PublishOutcome::Routed]), "{fates:?}");
    }
}
