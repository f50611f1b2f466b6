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
    error::{FAREWELL, Trouble, within},
    supervisor::Live,
    topology::Route,
};

/// How long lapin has to give up what it holds once its channel or connection is gone.
const AFTERMATH: Duration = Duration::from_secs(5);

/// One message ready to be sent.
#[derive(Debug)]
pub(crate) struct Item<'a> {
    pub(crate) route: &'a Route,
    pub(crate) body: &'a [u8],
    pub(crate) properties: BasicProperties,
    /// Unique on this channel.
    pub(crate) id: i64,
}

/// What became of one message of a window.
#[derive(Debug)]
pub(crate) enum Fate {
    /// In a queue.
    Routed,
    /// In no queue: nothing is bound where it went.
    Returned,
    /// In no queue: the broker would not have it.
    Refused,
    /// Never left this process, and never will by this attempt.
    Unsent(Trouble),
    /// Nobody knows.
    Lost(Trouble),
}

/// Sends a window and waits for its confirms, until `until` at the latest. Afterwards nothing of it is still
/// under way.
pub(crate) async fn transmit(
    live: &Live,
    channel: &Channel,
    items: Vec<Item<'_>>,
    until: Instant,
) -> Vec<Fate> {
    let ids: Vec<i64> = items.iter().map(|item| item.id).collect();
    let written = write(live, channel, items, until).await;
    let replies = confirm(live, channel, written, until).await;
    attribute(&ids, replies)
}

/// Hands the messages to lapin and waits until it has written each to its socket.
async fn write(
    live: &Live,
    channel: &Channel,
    items: Vec<Item<'_>>,
    until: Instant,
) -> Vec<Result<PublisherConfirm, Reply>> {
    let count = items.len();
    let mut all = Box::pin(join_all(items.into_iter().map(|item| publish(channel, item))));
    if let Ok(written) = timeout_at(until, &mut all).await {
        return written;
    }
    // The socket takes no more: the broker blocks us, or is gone. What lapin still holds must never be sent
    // once we have said that it was not.
    live.kill();
    timeout(AFTERMATH, &mut all).await.unwrap_or_else(|_| {
        // It should not come to this; and nobody can say now what was written.
        (0..count).map(|_| Err(Reply::Lost(Trouble::silence("publishing", AFTERMATH)))).collect()
    })
}

async fn publish(channel: &Channel, item: Item<'_>) -> Result<PublisherConfirm, Reply> {
    let (exchange, key) = (short(&item.route.exchange), short(&item.route.key));
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let written = channel.basic_publish(exchange, key, options, item.body, item.properties).await;
    written.map_err(|error| Reply::Unsent(Trouble::lapin("publishing", error)))
}

async fn confirm(
    live: &Live,
    channel: &Channel,
    written: Vec<Result<PublisherConfirm, Reply>>,
    until: Instant,
) -> Vec<Reply> {
    let mut replies: Vec<Option<Reply>> = Vec::with_capacity(written.len());
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
        let lost = |error| Reply::Lost(Trouble::lapin("waiting for a confirm", error));
        replies[at] = Some(confirmed.map_or_else(lost, Reply::from));
    }
    // A confirm that is dropped unresolved stays in lapin as long as its channel. On a blocked connection that
    // lasts until the broker reads again; a new connection would only be blocked by our next message.
    if !waiting.is_empty() && live.blocked().is_none() {
        let close = channel.close(200, "no confirms".into());
        if within(FAREWELL, "closing a channel", close).await.is_err() {
            live.kill();
        }
    }
    let silence = || Reply::Lost(Trouble::silence("waiting for a confirm", Duration::ZERO));
    replies.into_iter().map(|reply| reply.unwrap_or_else(silence)).collect()
}

/// What lapin said about one publish.
#[derive(Debug)]
enum Reply {
    /// The broker has dealt with it. With it came the id of a returned message, perhaps of another publish.
    Ack(Option<i64>),
    /// The broker would not have it; the rest as above.
    Nack(Option<i64>),
    Unsent(Trouble),
    Lost(Trouble),
}

impl From<Confirmation> for Reply {
    fn from(confirmation: Confirmation) -> Self {
        let id = |returned: Option<BasicReturnMessage>| {
            returned.and_then(|m| convert::publish_id(&m.delivery.properties))
        };
        match confirmation {
            Confirmation::Ack(returned) => Self::Ack(id(returned)),
            Confirmation::Nack(returned) => Self::Nack(id(returned)),
            Confirmation::NotRequested => {
                // Confirms were asked for on this channel; a message that was not confirmed is not known to be queued.
                Self::Lost(Trouble::silence("waiting for a confirm that was not requested", Duration::ZERO))
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
fn attribute(ids: &[i64], replies: Vec<Reply>) -> Vec<Fate> {
    let returned: HashSet<i64> = replies
        .iter()
        .filter_map(|reply| match reply {
            Reply::Ack(id) | Reply::Nack(id) => *id,
            Reply::Unsent(_) | Reply::Lost(_) => None,
        })
        .collect();
    let whole = !replies.iter().any(|reply| matches!(reply, Reply::Lost(_)));
    let fate = |(id, reply)| match reply {
        Reply::Unsent(trouble) => Fate::Unsent(trouble),
        Reply::Lost(trouble) => Fate::Lost(trouble),
        Reply::Nack(_) => Fate::Refused,
        Reply::Ack(_) if returned.contains(id) => Fate::Returned,
        Reply::Ack(Some(_)) if !whole => {
            Fate::Lost(Trouble::silence("waiting for the confirms of a window", AFTERMATH))
        }
        Reply::Ack(_) => Fate::Routed,
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
    fn credit(unroutable: &[bool], order: &[usize], known: usize) -> Vec<Reply> {
        let mut waiting = VecDeque::new();
        let mut replies: Vec<Reply> =
            unroutable.iter().map(|_| Reply::Lost(Trouble::silence("test", Duration::ZERO))).collect();
        // All returns first is the worst case of "some time before its acknowledgement".
        for chunk in order[..known].chunks(3) {
            waiting.extend(chunk.iter().filter(|&&at| unroutable[at]).map(|&at| id(at)));
            for &at in chunk.iter().rev() {
                replies[at] = Reply::Ack(waiting.pop_front());
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
                    Fate::Routed => prop_assert!(!unroutable[at], "an unroutable message was called routed"),
                    Fate::Returned => prop_assert!(unroutable[at], "a routed message was called unroutable"),
                    Fate::Lost(_) => prop_assert!(known < 24, "a whole window leaves nobody in doubt"),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_negative_confirm_is_the_publishes_own() {
        let fates = attribute(&[1, 2], vec![Reply::Nack(None), Reply::Ack(None)]);
        assert!(matches!(fates[..], [Fate::Refused, Fate::Routed]), "{fates:?}");
    }
}
