//! A signature as it travels: what is in the headers, what is in the body.
//!
//! Everything that changes between attempts (attempt, generation, due time, budgets) is in the headers; the body is
//! written once by the sender and forwarded as the same bytes for ever. So a retry costs no encoding, and fields
//! that this version does not know are kept.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    args::Arg,
    broker::{HeaderValue, Message},
    clock::Timestamp,
    codec::Codec,
    error::BoxError,
    id::{QueueName, TaskId, TaskName},
    record::{Counters, ErrorText, FailureKind},
    retry::RetryPolicy,
};

/// The version of the wire that is written, and the newest that is read.
const WIRE_VERSION: i64 = 1;

/// The names of our headers.
mod header {
    pub(super) const VERSION: &str = "machinist-version";
    pub(super) const QUEUE: &str = "machinist-queue";
    pub(super) const ATTEMPT: &str = "machinist-attempt";
    pub(super) const GENERATION: &str = "machinist-generation";
    pub(super) const ETA: &str = "machinist-eta";
    pub(super) const EXPIRES: &str = "machinist-expires";
    pub(super) const ISSUED: &str = "machinist-issued";
    pub(super) const RETRIES: &str = "machinist-retries";
    pub(super) const POSTPONEMENTS: &str = "machinist-postponements";
    pub(super) const TOKEN: &str = "machinist-token";
    pub(super) const UNKNOWN_SINCE: &str = "machinist-unknown-since";
    pub(super) const TRACEPARENT: &str = "traceparent";
    pub(super) const TRACESTATE: &str = "tracestate";
    pub(super) const DEAD_ID: &str = "machinist-dead-id";
    pub(super) const DEAD_REASON: &str = "machinist-dead-reason";
    pub(super) const DEAD_ERROR: &str = "machinist-dead-error";
    pub(super) const DEAD_AT: &str = "machinist-dead-at";
}

/// The part of a signature that its sender writes once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Body {
    #[serde(default)]
    pub(crate) args: Vec<Arg>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<RetryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
}

impl Body {
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }
}

/// One task's message: the headers read, the body not yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) id: TaskId,
    pub(crate) name: TaskName,
    /// The queue it was sent to.
    pub(crate) queue: QueueName,
    /// Which counted run this message is for; the first is 1.
    pub(crate) attempt: u32,
    /// Which guard of that attempt; 0 is the message itself.
    pub(crate) generation: u32,
    pub(crate) eta: Option<Timestamp>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) issued: Timestamp,
    pub(crate) counters: Counters,
    /// The greatest fencing token of earlier attempts.
    pub(crate) token: u64,
    /// Since when workers have not known the task.
    pub(crate) unknown_since: Option<Timestamp>,
    pub(crate) traceparent: Option<String>,
    pub(crate) tracestate: Option<String>,
    pub(crate) priority: Option<u8>,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
}

/// Why a message is not one of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("{0}")]
    Header(String),
    /// A newer program may understand it.
    #[error("the wire version {0} is newer than {WIRE_VERSION}, the newest that this program reads")]
    Version(i64),
}

impl Envelope {
    /// Reads properties and headers. The body is not touched.
    pub(crate) fn read(message: &Message) -> Result<Self, Unreadable> {
        let headers = Reader(message);
        let version = headers.int(header::VERSION)?.unwrap_or(WIRE_VERSION);
        if version > WIRE_VERSION {
            return Err(Unreadable::Version(version));
        }
        let bad = |e: crate::id::InvalidName| Unreadable::Header(e.to_string());
        let missing = |what: &str| Unreadable::Header(format!("the message has no {what}"));
        let id = message.id.as_deref().ok_or_else(|| missing("message id"))?;
        let name = message.kind.as_deref().ok_or_else(|| missing("task name (property `type`)"))?;
        let queue = headers.text(header::QUEUE)?.ok_or_else(|| missing("header `machinist-queue`"))?;
        Ok(Self {
            id: TaskId::parse(id).map_err(bad)?,
            name: TaskName::parse(name).map_err(bad)?,
            queue: QueueName::parse(&queue).map_err(bad)?,
            attempt: headers.number(header::ATTEMPT)?.unwrap_or(1).max(1),
            generation: headers.number(header::GENERATION)?.unwrap_or(0),
            eta: headers.instant(header::ETA)?,
            expires: headers.instant(header::EXPIRES)?,
            issued: headers.instant(header::ISSUED)?.unwrap_or(Timestamp::from_micros(0)),
            counters: Counters {
                retries: headers.number(header::RETRIES)?.unwrap_or(0),
                postponements: headers.number(header::POSTPONEMENTS)?.unwrap_or(0),
            },
            token: headers.number(header::TOKEN)?.unwrap_or(0),
            unknown_since: headers.instant(header::UNKNOWN_SINCE)?,
            traceparent: headers.text(header::TRACEPARENT)?,
            tracestate: headers.text(header::TRACESTATE)?,
            priority: message.priority,
            content_type: message
                .content_type
                .clone()
                .unwrap_or_else(|| Codec::default().content_type().to_owned()),
            body: message.body.clone(),
        })
    }

    /// A message that is not understood, to be offered again; and for how long it has not been.
    pub(crate) fn still_unknown(message: &Message, now: Timestamp) -> (Message, Duration) {
        let since = match message.headers.get(header::UNKNOWN_SINCE).and_then(HeaderValue::as_int) {
            Some(micros) => Timestamp::from_micros(micros),
            None => now,
        };
        let mut later = message.clone();
        later.headers.insert(header::UNKNOWN_SINCE.to_owned(), since.as_micros().into());
        (later, now.since(since))
    }

    /// Reads the body.
    pub(crate) fn decode(&self) -> Result<Body, BoxError> {
        let codec = Codec::of(&self.content_type)
            .ok_or_else(|| format!("no codec reads the content type {:?}", self.content_type))?;
        codec.decode(&self.body)
    }

    /// The message that carries it.
    pub(crate) fn message(&self) -> Message {
        let mut message = Message::new(&self.id, &self.name, &self.content_type, self.body.clone());
        message.timestamp = Some(self.issued);
        message.priority = self.priority;
        message.app_id = Some("machinist".to_owned());
        let mut put = |name: &str, value: HeaderValue| {
            message.headers.insert(name.to_owned(), value);
        };
        let number = |n: u64| HeaderValue::Int(i64::try_from(n).unwrap_or(i64::MAX));
        put(header::VERSION, WIRE_VERSION.into());
        put(header::QUEUE, self.queue.as_str().into());
        put(header::ATTEMPT, i64::from(self.attempt).into());
        put(header::ISSUED, self.issued.as_micros().into());
        for (name, count) in [
            (header::GENERATION, u64::from(self.generation)),
            (header::RETRIES, u64::from(self.counters.retries)),
            (header::POSTPONEMENTS, u64::from(self.counters.postponements)),
            (header::TOKEN, self.token),
        ] {
            if count > 0 {
                put(name, number(count));
            }
        }
        for (name, instant) in [
            (header::ETA, self.eta),
            (header::EXPIRES, self.expires),
            (header::UNKNOWN_SINCE, self.unknown_since),
        ] {
            if let Some(instant) = instant {
                put(name, instant.as_micros().into());
            }
        }
        for (name, text) in [(header::TRACEPARENT, &self.traceparent), (header::TRACESTATE, &self.tracestate)]
        {
            if let Some(text) = text {
                put(name, text.as_str().into());
            }
        }
        message
    }

    /// The message of the attempt after this one. Everything about it is fixed by the recorded outcome, so
    /// publishing it twice publishes the same.
    pub(crate) fn next_attempt(&self, due: Timestamp, counters: Counters, token: u64) -> Self {
        Self {
            attempt: self.attempt.saturating_add(1),
            generation: 0,
            eta: Some(due),
            // An attempt that ran was in time; expiry is about the first start.
            expires: None,
            counters,
            token,
            unknown_since: None,
            ..self.clone()
        }
    }

    /// The next guard of this attempt: a copy that comes back later, whatever becomes of this delivery.
    pub(crate) fn next_guard(&self, due: Timestamp) -> Self {
        Self { generation: self.generation.saturating_add(1), eta: Some(due), ..self.clone() }
    }
}

/// Why a message lies among the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadReason {
    Undecodable,
    WrongQueue,
    Unregistered,
    Malformed,
    Failed,
    Lost,
    Expired,
    Unroutable,
}

impl DeadReason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::WrongQueue => "wrong-queue",
            Self::Unregistered => "unregistered",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Expired => "expired",
            Self::Unroutable => "unroutable",
        }
    }

    /// The reason under which a task that ended so is buried.
    pub(crate) const fn of(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Expired => Self::Expired,
            FailureKind::Lost => Self::Lost,
            FailureKind::Malformed => Self::Malformed,
            FailureKind::Unregistered => Self::Unregistered,
            FailureKind::Unroutable => Self::Unroutable,
            _ => Self::Failed,
        }
    }
}

/// A message as a dead letter: everything it had, and why it is here.
pub(crate) fn dead_letter(
    message: &Message,
    dead_id: &str,
    reason: DeadReason,
    error: &ErrorText,
    at: Timestamp,
) -> Message {
    let mut dead = message.clone();
    dead.headers.insert(header::DEAD_ID.to_owned(), dead_id.into());
    dead.headers.insert(header::DEAD_REASON.to_owned(), reason.as_str().into());
    dead.headers.insert(header::DEAD_ERROR.to_owned(), error.chain.join(": ").into());
    dead.headers.insert(header::DEAD_AT.to_owned(), at.as_micros().into());
    dead
}

/// Headers by type, with errors that name them.
struct Reader<'a>(&'a Message);

impl Reader<'_> {
    fn text(&self, name: &str) -> Result<Option<String>, Unreadable> {
        match self.0.headers.get(name) {
            None => Ok(None),
            Some(HeaderValue::Text(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Unreadable::Header(format!("header `{name}` is not text"))),
        }
    }

    fn int(&self, name: &str) -> Result<Option<i64>, Unreadable> {
        match self.0.headers.get(name) {
            None => Ok(None),
            Some(HeaderValue::Int(number)) => Ok(Some(*number)),
            Some(_) => Err(Unreadable::Header(format!("header `{name}` is not a whole number"))),
        }
    }

    fn number<N: TryFrom<i64>>(&self, name: &str) -> Result<Option<N>, Unreadable> {
        let out_of_range = |n: i64| Unreadable::Header(format!("header `{name}` is out of range: {n}"));
        self.int(name)?.map(|n| N::try_from(n).map_err(|_| out_of_range(n))).transpose()
    }

    fn instant(&self, name: &str) -> Result<Option<Timestamp>, Unreadable> {
        Ok(self.int(name)?.map(Timestamp::from_micros))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope() -> Envelope {
        let body = Body { args: vec![], ..Body::default() };
        Envelope {
            id: "t-1".try_into().unwrap(),
            name: "add".try_into().unwrap(),
            queue: "math".try_into().unwrap(),
            attempt: 1,
            generation: 0,
            eta: None,
            expires: None,
            issued: Timestamp::from_micros(7),
            counters: Counters::default(),
            token: 0,
            unknown_since: None,
            traceparent: None,
            tracestate: None,
            priority: None,
            content_type: Codec::MessagePack.content_type().to_owned(),
            body: Codec::MessagePack.encode(&body).unwrap(),
        }
    }

    #[test]
    fn the_least_message_reads_back() {
        let sent = envelope();
        assert_eq!(Envelope::read(&sent.message()).unwrap(), sent);
        assert_eq!(sent.message().headers.len(), 4, "what is zero or absent does not travel");
    }

    #[test]
    fn retries_and_guards_forward_the_same_body() {
        let sent = envelope();
        let due = Timestamp::from_micros(99);
        let next = sent.next_attempt(due, Counters { retries: 1, postponements: 0 }, 5);
        assert_eq!((next.attempt, next.eta, next.token, next.generation), (2, Some(due), 5, 0));
        assert_eq!(next.body.as_ptr(), sent.body.as_ptr());
        let guard = next.next_guard(due);
        assert_eq!((guard.attempt, guard.generation), (2, 1));
    }

    #[test]
    fn foreign_and_future_messages_are_told_apart() {
        let read = |change: &dyn Fn(&mut Message)| {
            let mut message = envelope().message();
            change(&mut message);
            Envelope::read(&message).unwrap_err().to_string()
        };
        assert_eq!(read(&|m| m.id = None), "the message has no message id");
        assert_eq!(read(&|m| m.id = Some(String::new())), "task id \"\" is empty");
        assert_eq!(
            read(&|m| drop(m.headers.insert("machinist-attempt".to_owned(), "x".into()))),
            "header `machinist-attempt` is not a whole number"
        );
        assert_eq!(
            read(&|m| drop(m.headers.insert("machinist-attempt".to_owned(), (-1).into()))),
            "header `machinist-attempt` is out of range: -1"
        );
        assert!(
            read(&|m| drop(m.headers.insert("machinist-version".to_owned(), 2.into())))
                .contains("newer than 1")
        );
    }

    #[test]
    fn nesting_bombs_are_errors() {
        let mut bomb = envelope();
        // {"args":[[[[…
        bomb.body = [&b"\x81\xa4args"[..], &[0x91; 100_000], b"\x01"].concat().into();
        assert!(bomb.decode().is_err());
        bomb.content_type = Codec::Json.content_type().to_owned();
        bomb.body = ["{\"args\":", &"[".repeat(100_000)].concat().into();
        assert!(bomb.decode().is_err());
        bomb.content_type = "text/html".to_owned();
        assert_eq!(bomb.decode().unwrap_err().to_string(), "no codec reads the content type \"text/html\"");
    }

    #[test]
    fn both_codecs_read_what_they_write_and_skip_what_they_do_not_know() {
        let body = Body {
            args: vec![Arg { name: String::new(), kind: "int64".to_owned(), value: i64::MIN.into() }],
            retry: Some(RetryPolicy::new(3)),
            timeout_ms: Some(5),
            headers: [("k".to_owned(), "v".to_owned())].into(),
        };
        for codec in [Codec::MessagePack, Codec::Json] {
            assert_eq!(codec.decode(&codec.encode(&body).unwrap()).unwrap(), body);
            assert_eq!(Codec::of(codec.content_type()), Some(codec));
        }
        let newer = br#"{"args":[],"on_success":[{"name":"x"}]}"#;
        assert_eq!(Codec::Json.decode(newer).unwrap(), Body::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            for codec in [Codec::MessagePack, Codec::Json] {
                drop(codec.decode(&bytes));
            }
        }

        #[test]
        fn envelopes_round_trip(
            attempt in 1u32.., generation: u32, eta: Option<i64>, expires: Option<i64>, issued: i64,
            retries: u32, postponements: u32, token in 0u64..1 << 62, since: Option<i64>,
        ) {
            let sent = Envelope {
                attempt, generation, token,
                eta: eta.map(Timestamp::from_micros),
                expires: expires.map(Timestamp::from_micros),
                issued: Timestamp::from_micros(issued),
                counters: Counters { retries, postponements },
                unknown_since: since.map(Timestamp::from_micros),
                ..envelope()
            };
            prop_assert_eq!(Envelope::read(&sent.message()).unwrap(), sent);
        }
    }
}
