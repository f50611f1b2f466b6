//! The envelope: a signature on the wire, as headers and a body.
//!
//! Everything that changes between attempts (attempt, generation, due time, budgets) is in the headers; the body is
//! written once by the sender and always forwarded as the same bytes. So a retry costs no encoding, and fields
//! that this version does not know are kept.

use std::{sync::Arc, time::Duration};

use base64::{Engine, display::Base64Display, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use machinist_adapter::header;

use super::{Body, Codec, MaxSizes, Oversize, Pairs};
use crate::{
    broker::{HeaderValue, Message},
    clock::Timestamp,
    error::BoxError,
    flow::StepPlace,
    id::{QueueName, TaskId, TaskName},
    record::Counters,
    sign::{Key, KeyId, SigningScope, input::SigningInput},
    trace::TraceContext,
};

/// The version of a message without pairs.
const PLAIN_VERSION: i64 = 1;
/// The version of a message with pairs.
const PAIRS_VERSION: i64 = 2;
/// The version of a message that belongs to a workflow: a worker that does not know workflows must not run it.
const WORKFLOW_VERSION: i64 = 3;
/// The newest version that is read.
const NEWEST_VERSION: i64 = WORKFLOW_VERSION;

/// One task's message: the headers read, the body not yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) id: TaskId,
    pub(crate) name: TaskName,
    /// The queue it was sent to.
    pub(crate) queue: QueueName,
    /// Attempt that this message is for, from 1.
    pub(crate) attempt: u32,
    /// Generation of the guard; 0 is the message itself.
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
    pub(crate) pairs: Pairs,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
    pub(crate) first: FirstSigner,
    /// The message in another format that it was read from. Its next attempts keep what an envelope has no place for.
    pub(crate) source: Option<Arc<Message>>,
}

/// First signer of a task. Retries and guards are signed by the worker that publishes
/// them; the first signer's key keeps a revoked key's tasks revoked when they come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FirstSigner {
    /// The key that signs this message.
    Publisher,
    /// This key.
    Key(KeyId),
    /// None: the task came unsigned, and a worker that allowed it must not make it look trusted.
    Nobody,
}

/// The signature on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MessageSignature {
    pub(crate) key: KeyId,
    pub(crate) signed_at: Timestamp,
    pub(crate) signature: Vec<u8>,
}

impl MessageSignature {
    /// Formats it for its header: the key's id, the time in microseconds and the signature as base64, separated by spaces.
    fn to_text(&self) -> String {
        let signature = Base64Display::new(&self.signature, &BASE64);
        format!("{} {} {signature}", self.key, self.signed_at.as_micros())
    }

    fn parse(text: &str) -> Result<Self, BoxError> {
        let mut parts = text.splitn(3, ' ');
        let mut part = |what: &str| parts.next().ok_or_else(|| format!("it has no {what}"));
        let key = KeyId::parse(part("key")?)?;
        let signed_at = part("time")?.parse().map_err(|_| "the time is no whole number")?;
        let signed_at = Timestamp::from_micros(signed_at);
        // Not base64: a signature that no key makes.
        let signature = BASE64.decode(part("signature")?).unwrap_or_default();
        Ok(Self { key, signed_at, signature })
    }
}

/// Error of a message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("{0}")]
    Header(String),
    /// A newer program may understand it.
    #[error("the wire version {found} is newer than {newest}, the newest that this program reads")]
    Version { found: i64, newest: i64 },
    /// The same, in another format.
    #[error("{0}")]
    Newer(String),
    /// A message in another format that has no id.
    #[error("it has no id")]
    Unidentified,
}

impl Envelope {
    /// Reads properties and headers. The body is not touched.
    pub(crate) fn read(message: &Message) -> Result<Self, Unreadable> {
        Self::read_up_to(message, NEWEST_VERSION)
    }

    /// Reads properties and headers, as a program does that knows the wire up to this version.
    fn read_up_to(message: &Message, newest: i64) -> Result<Self, Unreadable> {
        let headers = OwnHeaders::of(message);
        let pairs = headers.pairs(newest)?;
        let bad = |e: crate::id::InvalidName| Unreadable::Header(e.to_string());
        let missing = |what: &str| Unreadable::Header(format!("the message has no {what}"));
        let id = message.id.as_deref().ok_or_else(|| missing("message id"))?;
        let name = message.kind.as_deref().ok_or_else(|| missing("task name (property `type`)"))?;
        let queue = headers.queue.text()?.ok_or_else(|| missing("header `machinist-queue`"))?;
        Ok(Self {
            id: TaskId::parse(id).map_err(bad)?,
            name: TaskName::parse(name).map_err(bad)?,
            queue: QueueName::parse(queue).map_err(bad)?,
            attempt: headers.attempt.attempt()?,
            generation: headers.generation.number()?.unwrap_or(0),
            eta: headers.eta.instant()?,
            expires: headers.expires.instant()?,
            issued: headers.issued.instant()?.unwrap_or(Timestamp::from_micros(0)),
            counters: Counters {
                retries: headers.retries.number()?.unwrap_or(0),
                postponements: headers.postponements.number()?.unwrap_or(0),
            },
            token: headers.token.number()?.unwrap_or(0),
            unknown_since: headers.unknown_since.instant()?,
            traceparent: headers.traceparent.text()?.map(str::to_owned),
            tracestate: headers.tracestate.text()?.map(str::to_owned),
            priority: message.priority,
            pairs,
            content_type: message
                .content_type
                .clone()
                .unwrap_or_else(|| Codec::default().content_type().to_owned()),
            body: message.body.clone(),
            first: FirstSigner::Nobody,
            source: None,
        })
    }

    /// A message that is not understood, to be offered again; and for how long it has not been.
    pub(crate) fn still_unread(message: &Message, now: Timestamp) -> (Message, Duration) {
        // Anybody may have written this header. What lies in the future would be offered again for ever.
        let since = match message.headers.get(header::UNREAD_SINCE).and_then(HeaderValue::as_int) {
            Some(micros) => Timestamp::from_micros(micros).min(now),
            None => now,
        };
        let mut later = message.clone();
        later.headers.insert(header::UNREAD_SINCE.into(), since.as_micros().into());
        (later, now.since(since))
    }

    /// Returns the place of the task in its workflow, if it belongs to one.
    pub(crate) fn place(&self) -> Option<StepPlace> {
        self.pairs.place()
    }

    /// Returns the instant at which the first signer issued the call.
    pub(crate) fn first_issued(&self) -> Timestamp {
        self.pairs.first_issued().unwrap_or(self.issued)
    }

    /// Returns the instant since which workers have not known the task, and for how long that is.
    pub(crate) fn unknown_for(&self, now: Timestamp) -> (Timestamp, Duration) {
        // What lies in the future would be offered again for ever, whoever signed it.
        let since = self.unknown_since.map_or(now, |since| since.min(now));
        (since, now.since(since))
    }

    /// Reads the body, if it has no more arguments and levels than these sizes say.
    pub(crate) fn decode(&self, sizes: &MaxSizes) -> Result<Body, BoxError> {
        let codec = Codec::of(&self.content_type)
            .ok_or_else(|| format!("no codec reads the content type {:?}", self.content_type))?;
        let body = codec.decode(&self.body)?;
        if let Some(flow) = &body.flow {
            flow.check()?;
        }
        match body.exceeded(sizes) {
            Some(Oversize { part, size, max }) => {
                Err(format!("it has {size} {part}, and the maximum here is {max}").into())
            }
            None => Ok(body),
        }
    }

    /// Returns the version of its message: the oldest that says everything in it, so that old workers run what they can.
    fn version(&self) -> i64 {
        match &self.pairs {
            pairs if pairs.is_empty() => PLAIN_VERSION,
            pairs if pairs.are_of_workflow() => WORKFLOW_VERSION,
            _ => PAIRS_VERSION,
        }
    }

    /// Returns the signing input: every field that a worker reads, as it reads it, in the order of `docs/signing.md`.
    pub(crate) fn signing_input(
        &self,
        algorithm: &str,
        key: &KeyId,
        first: &KeyId,
        signed_at: Timestamp,
        scope: &SigningScope,
    ) -> Vec<u8> {
        let micros = |instant: Option<Timestamp>| instant.map(Timestamp::as_micros);
        SigningInput::new("machinist.task", self.body.len() + 512)
            .number(self.version())
            .text(algorithm)
            .text(key.as_str())
            .text(first.as_str())
            .number(signed_at.as_micros())
            .text(&self.content_type)
            .text(self.id.as_str())
            .text(self.name.as_str())
            .text(self.queue.as_str())
            .number(i64::from(self.attempt))
            .number(i64::from(self.generation))
            .maybe_number(micros(self.eta))
            .maybe_number(micros(self.expires))
            .number(self.issued.as_micros())
            .number(i64::from(self.counters.retries))
            .number(i64::from(self.counters.postponements))
            .number(wire(self.token))
            .maybe_number(micros(self.unknown_since))
            .maybe_number(self.priority.map(i64::from))
            .maybe_text(self.traceparent.as_deref())
            .maybe_text(self.tracestate.as_deref())
            .text(&scope.namespace)
            .text(&scope.realm)
            .maybe_text(self.pairs.to_text().as_deref())
            .bytes(&self.body)
            .finish()
    }

    /// Signs its message with this key, unless the task came unsigned.
    pub(crate) fn sign(&self, message: &mut Message, key: &Key, scope: &SigningScope, now: Timestamp) {
        let first = match &self.first {
            FirstSigner::Nobody => return,
            FirstSigner::Publisher => key.id(),
            FirstSigner::Key(first) => first,
        };
        let input = self.signing_input(key.algorithm().as_str(), key.id(), first, now, scope);
        let Some(signature) = key.sign(&input) else { return };
        let signed_message = MessageSignature { key: key.id().clone(), signed_at: now, signature };
        message.headers.insert(header::SIGNATURE.into(), signed_message.to_text().into());
        if first != key.id() {
            message.headers.insert(header::FIRST_KEY.into(), first.as_str().into());
        }
    }

    /// The message that carries it with this signature, as it was received. Foreign headers are left out.
    pub(crate) fn message_signed_as(&self, signed_message: Option<&MessageSignature>) -> Message {
        let Some(signed_message) = signed_message else {
            return self.source.as_deref().cloned().unwrap_or_else(|| self.message());
        };
        let mut message = self.message();
        message.headers.insert(header::SIGNATURE.into(), signed_message.to_text().into());
        if let FirstSigner::Key(first) = &self.first
            && *first != signed_message.key
        {
            message.headers.insert(header::FIRST_KEY.into(), first.as_str().into());
        }
        message
    }

    /// Reads the signature and the first signer of a message; `None` if it is not signed. They are trusted only
    /// once [`is_signed_by`](Self::is_signed_by) has said so.
    pub(crate) fn read_signature(
        &mut self,
        message: &Message,
    ) -> Result<Option<MessageSignature>, Unreadable> {
        let Some(text) = Header::of(message, header::SIGNATURE).text()? else {
            return Ok(None);
        };
        let signed_message = MessageSignature::parse(text).map_err(|what| {
            Unreadable::Header(format!("header `{}` is not `KEY TIME SIGNATURE`: {what}", header::SIGNATURE))
        })?;
        let first = Header::of(message, header::FIRST_KEY).text()?;
        let first = first.map(|text| KeyId::parse(text).map_err(|e| Unreadable::Header(e.to_string())));
        self.first = FirstSigner::Key(first.transpose()?.unwrap_or_else(|| signed_message.key.clone()));
        Ok(Some(signed_message))
    }

    /// Returns `true` if this key made this signature of exactly this envelope.
    pub(crate) fn is_signed_by(
        &self,
        key: &Key,
        signed_message: &MessageSignature,
        scope: &SigningScope,
    ) -> bool {
        let FirstSigner::Key(first) = &self.first else { return false };
        let input =
            self.signing_input(key.algorithm().as_str(), key.id(), first, signed_message.signed_at, scope);
        key.verify(&input, &signed_message.signature)
    }

    /// The message that carries it, without a signature.
    pub(crate) fn message(&self) -> Message {
        let mut message = Message::new(&self.id, &self.name, &self.content_type, self.body.clone());
        message.timestamp = Some(self.issued);
        message.priority = self.priority;
        message.app_id = Some("machinist".to_owned());
        let mut put = |name: &'static str, value: HeaderValue| {
            message.headers.insert(name.into(), value);
        };
        put(header::QUEUE, self.queue.as_str().into());
        if self.attempt > 1 {
            put(header::ATTEMPT, i64::from(self.attempt).into());
        }
        put(header::ISSUED, self.issued.as_micros().into());
        for (name, count) in [
            (header::GENERATION, u64::from(self.generation)),
            (header::RETRIES, u64::from(self.counters.retries)),
            (header::POSTPONEMENTS, u64::from(self.counters.postponements)),
            (header::TOKEN, self.token),
        ] {
            if count > 0 {
                put(name, wire(count).into());
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
        if let Some(pairs) = self.pairs.to_text() {
            put(header::VERSION, self.version().into());
            put(header::PAIRS, pairs.into());
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

    /// The same attempt, to be run at once. The copy that still waits for its time finds it started.
    pub(crate) fn at_once(self) -> Self {
        Self { eta: None, ..self }
    }

    /// Returns the same call as a new task. The first signer stays: who sends a task again does not vouch for it, so what
    /// its first key may not send does not run under another one.
    pub(crate) fn into_new_task(self, id: TaskId, issued: Timestamp, trace: TraceContext) -> Self {
        // The first signer's key must have been valid then, and need not be valid now.
        let pairs = match &self.first {
            FirstSigner::Key(_) => self.pairs.with_first_issued(self.issued),
            FirstSigner::Publisher | FirstSigner::Nobody => self.pairs,
        };
        // The root of a workflow becomes another root. Any other task keeps its place: it can stand in for the one that
        // failed.
        let pairs = match pairs.place() {
            Some(place) if place.is_root() => pairs.with_place(&StepPlace::root(id.clone())),
            _ => pairs,
        };
        Self {
            pairs,
            id,
            attempt: 1,
            generation: 0,
            eta: None,
            expires: None,
            issued,
            counters: Counters::default(),
            token: 0,
            unknown_since: None,
            traceparent: Some(trace.parent),
            tracestate: trace.state,
            ..self
        }
    }

    /// Returns the next guard of this attempt: a copy that comes back later, independently of this delivery.
    pub(crate) fn next_guard(&self, due: Timestamp) -> Self {
        Self { generation: self.generation.saturating_add(1), eta: Some(due), ..self.clone() }
    }
}

/// A count as it travels.
fn wire(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns the attempt that a message states.
pub(crate) fn attempt_of(message: &Message) -> Option<u32> {
    Header::of(message, header::ATTEMPT).attempt().ok()
}

/// The headers of a message that are ours. They are found in one pass: to look up each of them costs more than the rest of
/// reading a message.
#[derive(Default)]
struct OwnHeaders<'a> {
    version: Header<'a>,
    pairs: Header<'a>,
    queue: Header<'a>,
    attempt: Header<'a>,
    generation: Header<'a>,
    eta: Header<'a>,
    expires: Header<'a>,
    issued: Header<'a>,
    retries: Header<'a>,
    postponements: Header<'a>,
    token: Header<'a>,
    unknown_since: Header<'a>,
    traceparent: Header<'a>,
    tracestate: Header<'a>,
}

impl<'a> OwnHeaders<'a> {
    fn of(message: &'a Message) -> Self {
        let mut own = Self::default();
        for (name, value) in &message.headers {
            let place = match &**name {
                header::VERSION => &mut own.version,
                header::PAIRS => &mut own.pairs,
                header::QUEUE => &mut own.queue,
                header::ATTEMPT => &mut own.attempt,
                header::GENERATION => &mut own.generation,
                header::ETA => &mut own.eta,
                header::EXPIRES => &mut own.expires,
                header::ISSUED => &mut own.issued,
                header::RETRIES => &mut own.retries,
                header::POSTPONEMENTS => &mut own.postponements,
                header::TOKEN => &mut own.token,
                header::UNKNOWN_SINCE => &mut own.unknown_since,
                header::TRACEPARENT => &mut own.traceparent,
                header::TRACESTATE => &mut own.tracestate,
                _ => continue,
            };
            *place = Header(Some((name, value)));
        }
        own
    }

    /// Checks the version and reads the pairs. A message has both or neither: what is signed says one of the two.
    fn pairs(&self, newest: i64) -> Result<Pairs, Unreadable> {
        let version = self.version.int()?.unwrap_or(PLAIN_VERSION);
        if version > newest {
            return Err(Unreadable::Version { found: version, newest });
        }
        let refused = |what: String| Err(Unreadable::Header(what));
        match (version, self.pairs.text()?) {
            (PLAIN_VERSION, None) => Ok(Pairs::default()),
            (PAIRS_VERSION | WORKFLOW_VERSION, Some(text)) => match Pairs::parse(text) {
                Ok(pairs) if pairs.are_of_workflow() && pairs.place().is_none() => {
                    refused("its place in its workflow cannot be read".to_owned())
                }
                Ok(pairs) if pairs.are_of_workflow() == (version == WORKFLOW_VERSION) => Ok(pairs),
                Ok(_) => refused(format!(
                    "a message of a workflow is of version {WORKFLOW_VERSION}, and no other is: this one says {version}"
                )),
                Err(what) => refused(format!("header `{}` cannot be read: {what}", header::PAIRS)),
            },
            (PLAIN_VERSION, Some(_)) => {
                refused(format!("a message with header `{}` is of version {PAIRS_VERSION}", header::PAIRS))
            }
            (PAIRS_VERSION | WORKFLOW_VERSION, None) => refused(format!(
                "a message of version {version} has the header `{}`, and this one has not",
                header::PAIRS
            )),
            _ => refused(format!("header `{}` is out of range: {version}", header::VERSION)),
        }
    }
}

/// A header with its name, read by its type. The errors name it.
#[derive(Clone, Copy, Default)]
struct Header<'a>(Option<(&'a str, &'a HeaderValue)>);

impl<'a> Header<'a> {
    fn of(message: &'a Message, name: &str) -> Self {
        Self(message.headers.get_key_value(name).map(|(name, value)| (&**name, value)))
    }

    fn text(self) -> Result<Option<&'a str>, Unreadable> {
        match self.0 {
            None => Ok(None),
            Some((_, HeaderValue::Text(text))) => Ok(Some(text)),
            Some((name, _)) => Err(Unreadable::Header(format!("header `{name}` is not text"))),
        }
    }

    fn int(self) -> Result<Option<i64>, Unreadable> {
        match self.0 {
            None => Ok(None),
            Some((_, HeaderValue::Int(number))) => Ok(Some(*number)),
            Some((name, _)) => Err(Unreadable::Header(format!("header `{name}` is not a whole number"))),
        }
    }

    fn number<N: TryFrom<i64>>(self) -> Result<Option<N>, Unreadable> {
        let Some(number) = self.int()? else { return Ok(None) };
        N::try_from(number).map(Some).map_err(|_| self.out_of_range(number))
    }

    fn out_of_range(self, number: i64) -> Unreadable {
        let name = self.0.map_or("", |(name, _)| name);
        Unreadable::Header(format!("header `{name}` is out of range: {number}"))
    }

    fn instant(self) -> Result<Option<Timestamp>, Unreadable> {
        Ok(self.int()?.map(Timestamp::from_micros))
    }

    /// Counted from 1. A 0 is no other way to say 1: what is signed is what is read.
    fn attempt(self) -> Result<u32, Unreadable> {
        match self.number()?.unwrap_or(1) {
            0 => Err(self.out_of_range(0)),
            attempt => Ok(attempt),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        args::Arg,
        flow::{Catch, Flow, JoinPart, Membership, Policy, Replaced, Step, StepPlace},
        retry::RetryPolicy,
    };

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
            pairs: Pairs::default(),
            content_type: Codec::MessagePack.content_type().to_owned(),
            body: Codec::MessagePack.encode(&body).unwrap(),
            first: FirstSigner::Nobody,
            source: None,
        }
    }

    #[test]
    fn the_least_message_reads_back() {
        let sent = envelope();
        assert_eq!(Envelope::read(&sent.message()).unwrap(), sent);
        assert_eq!(sent.message().headers.len(), 2, "what is as if it were absent does not travel");
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
            read(&|m| drop(m.headers.insert("machinist-attempt".into(), "x".into()))),
            "header `machinist-attempt` is not a whole number"
        );
        assert_eq!(
            read(&|m| drop(m.headers.insert("machinist-attempt".into(), (-1).into()))),
            "header `machinist-attempt` is out of range: -1"
        );
        assert!(
            read(&|m| drop(m.headers.insert("machinist-version".into(), 4.into()))).contains("newer than 3")
        );
    }

    #[test]
    fn nobody_extends_the_wait_for_a_worker_that_knows_the_task() {
        let now = Timestamp::from_micros(1_000_000);
        let since = |since: Option<i64>| {
            Envelope { unknown_since: since.map(Timestamp::from_micros), ..envelope() }.unknown_for(now)
        };
        assert_eq!(since(None), (now, Duration::ZERO));
        assert_eq!(since(Some(0)), (Timestamp::from_micros(0), Duration::from_secs(1)));
        assert_eq!(since(Some(i64::MAX)), (now, Duration::ZERO));
    }

    fn with_pairs() -> Envelope {
        Envelope { pairs: Pairs::parse("future=1:x,label.team=6:search").unwrap(), ..envelope() }
    }

    #[test]
    fn a_message_without_pairs_says_what_it_said_before_there_were_pairs() {
        let headers = |envelope: Envelope| {
            let headers = envelope.message().headers.into_iter();
            headers.map(|(name, value)| format!("{name}={value:?}")).collect::<Vec<_>>()
        };
        assert_eq!(headers(envelope()), ["machinist-issued=Int(7)", "machinist-queue=Text(\"math\")"]);
        assert_eq!(
            headers(Envelope { pairs: Pairs::default(), ..crate::fuzz::full_envelope() }),
            [
                "machinist-attempt=Int(2)",
                "machinist-eta=Int(1764547200000000)",
                "machinist-expires=Int(1764547200000000)",
                "machinist-generation=Int(3)",
                "machinist-issued=Int(1764547200000000)",
                "machinist-postponements=Int(2)",
                "machinist-queue=Text(\"math\")",
                "machinist-retries=Int(1)",
                "machinist-token=Int(9)",
                "machinist-unknown-since=Int(1764547200000000)",
                "traceparent=Text(\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\")",
                "tracestate=Text(\"vendor=1\")",
            ]
        );
        assert_eq!(
            headers(with_pairs()),
            [
                "machinist-issued=Int(7)",
                "machinist-pairs=Text(\"future=1:x,label.team=6:search\")",
                "machinist-queue=Text(\"math\")",
                "machinist-version=Int(2)",
            ]
        );
    }

    #[test]
    fn yesterdays_program_takes_pairs_for_a_newer_version_and_reads_the_rest() {
        let Err(Unreadable::Version { found: 2, newest: 1 }) =
            Envelope::read_up_to(&with_pairs().message(), 1)
        else {
            panic!("it is left to newer programs")
        };
        assert_eq!(Envelope::read_up_to(&envelope().message(), 1).unwrap(), envelope());
        assert_eq!(Envelope::read(&with_pairs().message()).unwrap(), with_pairs());
    }

    #[test]
    fn a_message_has_pairs_and_version_2_or_neither() {
        let read = |change: &dyn Fn(&mut Message)| {
            let mut message = with_pairs().message();
            change(&mut message);
            match Envelope::read(&message) {
                Err(Unreadable::Header(error)) => error,
                other => panic!("{other:?}"),
            }
        };
        assert!(read(&|m| drop(m.headers.remove("machinist-version"))).contains("is of version 2"));
        assert!(
            read(&|m| drop(m.headers.insert("machinist-version".into(), 1.into())))
                .contains("is of version 2")
        );
        assert!(read(&|m| drop(m.headers.remove("machinist-pairs"))).contains("and this one has not"));
        assert!(
            read(&|m| drop(m.headers.insert("machinist-pairs".into(), 1.into()))).contains("is not text")
        );
        for (text, says) in [("", "at byte 0"), ("b=0:,a=0:", "sorted"), ("a=0:,a=0:", "once")] {
            let error = read(&|m| drop(m.headers.insert("machinist-pairs".into(), text.into())));
            assert!(error.starts_with("header `machinist-pairs` cannot be read: "), "{error}");
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn retries_guards_and_tasks_that_are_sent_again_keep_pairs_that_nobody_here_knows() {
        let due = Timestamp::from_micros(99);
        let sent = with_pairs();
        let trace = TraceContext { parent: String::new(), state: None };
        for next in [
            sent.next_attempt(due, Counters::default(), 5),
            sent.next_guard(due),
            sent.clone().into_new_task("t-2".try_into().unwrap(), due, trace),
        ] {
            assert_eq!(Envelope::read(&next.message()).unwrap().pairs, sent.pairs);
        }
    }

    #[test]
    fn nesting_bombs_are_errors() {
        let mut bomb = envelope();
        // {"args":[[[[…
        bomb.body = [&b"\x81\xa4args"[..], &[0x91; 100_000], b"\x01"].concat().into();
        assert!(bomb.decode(&MaxSizes::default()).is_err());
        bomb.content_type = Codec::Json.content_type().to_owned();
        bomb.body = ["{\"args\":", &"[".repeat(100_000)].concat().into();
        assert!(bomb.decode(&MaxSizes::default()).is_err());
        bomb.content_type = "text/html".to_owned();
        assert_eq!(
            bomb.decode(&MaxSizes::default()).unwrap_err().to_string(),
            "no codec reads the content type \"text/html\""
        );
    }

    /// A flow with something in every field.
    fn full_flow() -> Flow {
        let arg = || Arg { name: "n".to_owned(), kind: "int64".to_owned(), value: 1.into() };
        let part = JoinPart {
            step: "many".to_owned(),
            members: Some(2),
            between: vec!["s1".to_owned()],
            last: Some("s2".to_owned()),
            policy: Policy::Tolerate(1),
            sources: vec!["a".to_owned()],
        };
        let membership =
            Membership { to: "total".to_owned(), up: 1, first: 3, size: 9, policy: Policy::Collect };
        let step = |name: &str| Step {
            name: name.to_owned(),
            task: "add".to_owned(),
            queue: "math".to_owned(),
            args: vec![arg()],
            retry: Some(RetryPolicy::new(3)),
            timeout_ms: Some(5),
            soft_timeout_ms: Some(4),
            countdown_ms: Some(3),
            expires_ms: Some(2),
            priority: Some(9),
            limit_key: Some("key".to_owned()),
            limit_cost: Some(2),
            fair_key: Some("key".to_owned()),
            headers: [("k".to_owned(), "v".to_owned())].into(),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            immutable: true,
            each: Some(vec![vec![arg()], vec![]]),
            done: [(1, vec![arg()])].into(),
            flow: Flow::default(),
        };
        let mut flow = Flow {
            then: vec!["many".to_owned()],
            catch: vec![Catch { up: 1, step: step("tell") }],
            joins: vec![membership],
            awaits: vec![part],
            ignores_results: true,
            steps: vec![step("many")],
            replaces: None,
        };
        flow.steps[0].flow = flow.clone();
        let replaced = StepPlace::parse("R".try_into().unwrap(), "many.3").unwrap();
        flow.replaces = Some(Box::new(Replaced::new(&replaced, flow.clone())));
        flow
    }

    #[test]
    fn both_codecs_read_what_they_write_and_skip_what_they_do_not_know() {
        let body = Body {
            args: vec![Arg { name: String::new(), kind: "int64".to_owned(), value: i64::MIN.into() }],
            retry: Some(RetryPolicy::new(3)),
            timeout_ms: Some(5),
            soft_timeout_ms: Some(4),
            first_eta: Some(Timestamp::from_micros(9)),
            headers: [("k".to_owned(), "v".to_owned())].into(),
            flow: Some(Box::new(full_flow())),
            limit_key: Some("key".to_owned()),
            limit_cost: Some(2),
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
        fn envelopes_round_trip(
            attempt in 1u32.., generation: u32, eta: Option<i64>, expires: Option<i64>, issued: i64,
            retries: u32, postponements: u32, token in 0u64..1 << 62, since: Option<i64>,
            pairs in any_pairs(),
        ) {
            let sent = Envelope {
                attempt, generation, token, pairs,
                eta: eta.map(Timestamp::from_micros),
                expires: expires.map(Timestamp::from_micros),
                issued: Timestamp::from_micros(issued),
                counters: Counters { retries, postponements },
                unknown_since: since.map(Timestamp::from_micros),
                ..envelope()
            };
            prop_assert_eq!(Envelope::read(&sent.message()).unwrap(), sent);
        }

        /// Two envelopes with one signing input are one envelope.
        #[test]
        fn the_signing_input_is_injective(a in any_fields(), b in any_fields()) {
            crate::fuzz::signed_alike_only_if_equal(&a, &b);
        }
    }

    fn any_pairs() -> impl Strategy<Value = Pairs> {
        proptest::sample::select(vec!["", "a=0:", "a=1:b", "a=5:b,c=0", "a=1:b,c=1:0", "b=1:b"])
            .prop_map(|text| Pairs::parse(text).unwrap_or_default())
    }

    /// Envelopes of few and similar values, so that two of them are often nearly the same.
    fn any_fields() -> impl Strategy<Value = Envelope> {
        let text = || "[ab]{1,2}";
        let instant = || proptest::option::of((0i64..2).prop_map(Timestamp::from_micros));
        let numbers = (1u32..3, 0u32..2, 0u32..2, 0u32..2, 0u64..2, proptest::option::of(0u8..2));
        let texts = (
            any_pairs(),
            text(),
            text(),
            text(),
            text(),
            proptest::option::of(text()),
            proptest::option::of(text()),
        );
        let instants = (instant(), instant(), instant(), proptest::collection::vec(97u8..99, 0..3));
        (numbers, texts, instants).prop_map(|(numbers, texts, (eta, expires, unknown_since, body))| {
            let (attempt, generation, retries, postponements, token, priority) = numbers;
            let (pairs, id, name, queue, content_type, traceparent, tracestate) = texts;
            Envelope {
                id: id.try_into().unwrap(),
                name: name.try_into().unwrap(),
                queue: queue.try_into().unwrap(),
                counters: Counters { retries, postponements },
                body: body.into(),
                ..Envelope {
                    attempt,
                    generation,
                    token,
                    priority,
                    pairs,
                    content_type,
                    traceparent,
                    tracestate,
                    eta,
                    expires,
                    unknown_since,
                    ..envelope()
                }
            }
        })
    }
}
