//! Properties that hold for any bytes: the bodies of the fuzz targets, and bounded tests of them.
//!
//! One copy, which the targets in `fuzz/` (nightly, for hours) and the tests below (stable, for seconds) share. A body
//! panics where what it is about does not hold. None of this is in a program: it is compiled for tests and fuzzers.

use std::{sync::OnceLock, time::Duration};

use serde_json::{Map, Value, json};

use crate::{
    broker::{HeaderValue, Headers, Message},
    clock::Timestamp,
    id::{QueueName, RunId, SessionId, TaskId},
    record::{
        Counters, EncodedResults, Facts, Failure, FailureKind, RevokeDecision, RevokeMode, StartDecision,
        StartRequest, Suspicion, Verdict, decide_revoke, decide_start, failure_without_run, fold,
        json as fact, name, recorded_follow_up, suspicion, wake_session,
    },
    security::{Acceptance, QueueRules, Trust, accept, encryption},
    sign::{Algorithm, Key, KeyId, KeyState, Keyring, SigningScope, input::SigningInput},
    wire::{
        Codec, DeadMark, Envelope, FirstSigner, ForeignTask, MaxSizes, NestedTasks, Pairs, Profile,
        ProfileError, TaskMessage, attempt_of, dead_letter, message_from_fact, read_foreign, write_foreign,
    },
};

const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_764_547_200_000_000);

/// An envelope with something in every place.
pub(crate) fn full_envelope() -> Envelope {
    Envelope {
        id: "t-1".try_into().expect("an id"),
        name: "add".try_into().expect("a name"),
        queue: "math".try_into().expect("a name"),
        attempt: 2,
        generation: 3,
        eta: Some(NOW),
        expires: Some(NOW),
        issued: NOW,
        counters: Counters { retries: 1, postponements: 2 },
        token: 9,
        unknown_since: Some(NOW),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        tracestate: Some("vendor=1".to_owned()),
        priority: Some(3),
        pairs: Pairs::default(),
        content_type: "application/json".to_owned(),
        body: (&br#"{"args":[]}"#[..]).into(),
        first: FirstSigner::Key(KeyId::parse("web").expect("an id")),
        source: None,
    }
}

/// The same envelope with pairs, one of them unknown to this version: its message is of version 2.
pub(crate) fn full_envelope_with_pairs() -> Envelope {
    let pairs = Pairs::parse("group=1:7,label.team=6:search").expect("pairs");
    Envelope { pairs, ..full_envelope() }
}

/// A format with a place for names and a priority alone.
#[derive(Debug)]
pub(crate) struct Bare;

impl Profile for Bare {
    fn name(&self) -> &str {
        "bare"
    }

    fn read(&self, message: &Message) -> Result<TaskMessage, ProfileError> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let wrong = |error: crate::id::InvalidName| ProfileError::Malformed(error.to_string());
        let id = text(&message.id).try_into().map_err(wrong)?;
        let mut task = TaskMessage::new(id, text(&message.kind).try_into().map_err(wrong)?);
        task.priority = message.priority;
        Ok(task)
    }

    fn write(&self, task: &TaskMessage, source: Option<&Message>) -> Result<Message, ProfileError> {
        let mut message = source.cloned().unwrap_or_default();
        message.id = Some(task.id.to_string());
        message.kind = Some(task.name.to_string());
        message.priority = task.priority;
        Ok(message)
    }
}

/// A message in another format: what is read is written so that it is read again, with its attempt and all counters.
fn foreign(message: &Message) {
    let sizes = MaxSizes::default();
    let queue = QueueName::parse("q").expect("a name");
    let Ok(ForeignTask { envelope, .. }) = read_foreign(&Bare, &queue, &sizes, message, NOW) else { return };
    let written = write_foreign(&Bare, &envelope, NestedTasks::default(), &sizes)
        .expect("it has a place for all of it");
    let again = read_foreign(&Bare, &queue, &sizes, &written, NOW).expect("what was written can be read");
    assert_eq!(Envelope { source: None, ..again.envelope }, Envelope { source: None, ..envelope });
    assert_eq!(written.body, message.body);
}

/// A body, of either codec: it is read or explain_refusal, and what is read can be written and read again.
pub fn body(data: &[u8]) {
    for codec in [Codec::MessagePack, Codec::Json] {
        let content_type = codec.content_type().to_owned();
        let envelope = Envelope { content_type, body: data.to_vec().into(), ..full_envelope() };
        let sizes = MaxSizes::default();
        let Ok(read) = envelope.decode(&sizes) else { continue };
        let written = codec.encode(&read).expect("what was read can be written");
        let again = Envelope { body: written, ..envelope }.decode(&sizes);
        assert!(again.is_ok(), "{again:?}");
    }
}

/// Headers and properties: they are read or explain_refusal, and what is read is what is written.
pub fn headers(data: &[u8]) {
    let message = Bytes(data).message();
    foreign(&message);
    let _ = (Envelope::still_unread(&message, NOW), attempt_of(&message), DeadMark::read(&message));
    let Ok(mut envelope) = Envelope::read(&message) else { return };
    let again = Envelope::read(&envelope.message());
    assert!(again.as_ref().is_ok_and(|again| *again == envelope), "{again:?} is not {envelope:?}");
    if let Some(mark) = DeadMark::read(&message) {
        let letter = dead_letter(&message, &mark);
        assert_eq!(DeadMark::read(&letter), Some(mark));
        assert_eq!(letter.body, message.body);
    }
    drop(envelope.read_signature(&message));
}

/// A signed message, changed in any way: nothing is believed but what was signed.
pub fn verify(data: &[u8]) {
    static SIGNED: OnceLock<Vec<(Trust, Message, Envelope)>> = OnceLock::new();
    let signed = SIGNED.get_or_init(|| {
        let sealed = |(algorithm, envelope): (Algorithm, Envelope)| {
            let own = Key::with_secret(algorithm, "own", &[7; 32]).expect("32 bytes");
            let web = Key::with_secret(algorithm, "web", &[8; 32]).expect("32 bytes");
            let ring = Keyring::new([own, web.with_state(KeyState::Verify)]).expect("a ring");
            let trust = Trust::new(Some(ring), false, None);
            let message = trust.signed_message(&envelope, NOW);
            (trust, message, envelope)
        };
        let both = |algorithm| [(algorithm, full_envelope()), (algorithm, full_envelope_with_pairs())];
        [Algorithm::HmacSha256, Algorithm::Ed25519].into_iter().flat_map(both).map(sealed).collect()
    });
    let mut bytes = Bytes(data);
    let (trust, message, envelope) = &signed[usize::from(bytes.byte().unwrap_or_default() % 4)];
    let message = bytes.change(message.clone());
    let queue = QueueName::parse("math").expect("a name");
    match accept(trust, &QueueRules::default(), &MaxSizes::default(), &queue, &message, NOW) {
        Acceptance::Accepted(opened, _)
        | Acceptance::Rejected(opened, ..)
        | Acceptance::Undecryptable(opened, _) => {
            assert_eq!(opened, *envelope, "believed, and nobody signed it: {message:?}");
        }
        Acceptance::Deferred(..)
        | Acceptance::Refused(..)
        | Acceptance::NotOurs(..)
        | Acceptance::Unidentified => {}
    }
}

/// Signing input: the bytes determine the fields, so that no two lists of fields make the same bytes; and of two
/// messages only those make the same bytes that say the same.
pub fn signing_input(data: &[u8]) {
    let fields = Bytes(data).fields();
    let written = fields.iter().fold(SigningInput::new("test", 0), |input, field| match field {
        Some(bytes) => input.bytes(bytes),
        None => input.absent(),
    });
    let expected: Vec<_> = std::iter::once(Some(b"test".to_vec())).chain(fields).collect();
    assert_eq!(read_back(&written.finish()), expected);

    let (one, other) = data.split_at(data.len() / 2);
    if let (Ok(one), Ok(other)) =
        (Envelope::read(&Bytes(one).message()), Envelope::read(&Bytes(other).message()))
    {
        signed_alike_only_if_equal(&one, &other);
    }
}

/// Two envelopes with one signing input are one envelope.
pub(crate) fn signed_alike_only_if_equal(one: &Envelope, other: &Envelope) {
    let key = KeyId::parse("k").expect("an id");
    let scope = SigningScope::default();
    let input = |envelope: &Envelope| envelope.signing_input("hmac-sha256", &key, &key, NOW, &scope);
    assert_eq!(input(one) == input(other), one == other);
    assert_eq!(input(one), input(&one.clone()));
}

/// Encryption: changed ciphertext does not decrypt; and anything in the place of ciphertext is read, or
/// said to be locked.
pub fn encrypted(data: &[u8]) {
    static HIDDEN: OnceLock<(Keyring, Envelope)> = OnceLock::new();
    let (ring, hidden) = HIDDEN.get_or_init(|| {
        let key = Key::with_secret(Algorithm::XChaCha20Poly1305, "hide", &[7; 32]).expect("32 bytes");
        let hidden = encryption::encrypted(full_envelope(), &key);
        (Keyring::from(key), hidden)
    });
    let mut bytes = Bytes(data);
    let mut body = hidden.body.to_vec();
    while let (Some(at), Some(flipped)) = (bytes.byte(), bytes.byte()) {
        let length = body.len();
        body[usize::from(at) % length] ^= flipped;
    }
    for body in [body, data.to_vec()] {
        let changed = Envelope { body: body.into(), ..hidden.clone() };
        match encryption::decrypted(&changed, Some(ring)) {
            Ok(opened) => assert!(changed.body == hidden.body && opened == full_envelope(), "{opened:?}"),
            Err(locked) => drop(locked.to_string()),
        }
    }

    let text = String::from_utf8_lossy(data).into_owned();
    let id = TaskId::parse("t-1").expect("an id");
    let mut facts: Facts = [
        (name::PROGRESS.into(), data.to_vec().into()),
        (name::END.into(), fact(&json!({ "enc": { "key": "hide", "data": text } }))),
    ]
    .into_iter()
    .collect();
    assert!(encryption::decrypt_outcome(&id, &mut facts, Some(ring)).is_some(), "nobody encrypted {text:?}");
    let plain: Map<String, Value> = [("error".to_owned(), json!({ "chain": [text] }))].into_iter().collect();
    let mut commit = crate::backend::Commit::new(id.clone());
    commit.facts = vec![(name::END.into(), fact(&plain))];
    let mut facts: Facts = encryption::encrypt_outcome(commit, ring.encrypting_key().expect("it is active"))
        .facts
        .into_iter()
        .collect();
    assert_eq!(encryption::decrypt_outcome(&id, &mut facts, Some(ring)), None);
    assert_eq!(facts.read::<Map<String, Value>>(name::END), Some(plain));
}

/// A record, one fact a line (`NAME VALUE`), as somebody may have left it who can write to the backend: nothing is read
/// out of it that nobody signed, and whatever a worker or a client decides by it can be written. What is refused is
/// asked about again, so a commit that its own record refuses would be asked about forever.
pub fn record(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').filter_map(|line| {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b' ')?);
        Some((String::from_utf8_lossy(name).into_owned().into(), value[1..].to_vec().into()))
    });
    let facts: Facts = lines.collect();
    let id = TaskId::parse("t-1").expect("an id");
    let trust = Trust::new(
        Some(Key::with_secret(Algorithm::HmacSha256, "own", &[7; 32]).expect("32").into()),
        false,
        None,
    );
    assert_eq!(trust.check_end(&id, &facts).is_ok(), !facts.has(name::END), "nobody signed this");
    drop(fold(&id, &facts).map(|record| format!("{record:?}")));
    drop(facts.get(name::MESSAGE).map(|message| message_from_fact(message)));
    for attempt in [1, 2, u32::MAX] {
        started_over(&id, &facts, attempt);
    }
    let manner = if data.len().is_multiple_of(2) { RevokeMode::Cancel } else { RevokeMode::Terminate };
    match decide_revoke(&id, &facts, manner, NOW, HOUR) {
        RevokeDecision::Ended(state) => assert!(state.is_final()),
        RevokeDecision::EndNow(commit) => assert!(commit.apply(&mut facts.clone()), "{commit:?}"),
        RevokeDecision::AskRun(commit, session) => {
            assert!(commit.apply(&mut facts.clone()), "{commit:?}");
            drop(wake_session(&session));
        }
    }
}

/// Decides a start of this attempt, with the record's sessions alive and gone.
fn started_over(id: &TaskId, facts: &Facts, attempt: u32) {
    let run = RunId::from("a");
    let session = SessionId::from("s");
    let asking = StartRequest {
        id: id.clone(),
        attempt,
        generation: 0,
        run,
        session,
        worker: "w".into(),
        received_at: NOW,
        token: 0,
        alone: false,
        gathered: None,
    };
    let suspicion = suspicion(facts, attempt);
    for gone in [true, false] {
        match decide_start(facts, &asking, |_, _| gone, NOW) {
            StartDecision::TakeOver(next) if suspicion != Suspicion::Lost => {
                let (commit, claim) = *next;
                let mut facts = facts.clone();
                assert!(commit.apply(&mut facts), "{commit:?}");
                let ended = crate::record::outcome_commit(
                    &claim,
                    &Verdict::Success(EncodedResults::default()),
                    String::new(),
                    NOW,
                    HOUR,
                );
                assert!(ended.apply(&mut facts.clone()), "{ended:?}");
                drop(claim.renewal_action(&facts, &SessionId::from("s2"), NOW));
                assert!(claim.hand_back().apply(&mut facts));
            }
            StartDecision::TakeOver(_) | StartDecision::Revoked => {
                let kind = FailureKind::Lost;
                let ended = failure_without_run(id, facts, attempt, Failure::new(kind, "lost"), NOW, HOUR);
                assert!(ended.apply(&mut facts.clone()), "{ended:?}");
            }
            StartDecision::AlreadyStarted(claim) => {
                drop(claim.renewal_action(facts, &SessionId::from("s2"), NOW))
            }
            StartDecision::OtherArguments => unreachable!("it waits for no join"),
            StartDecision::Over(_) | StartDecision::NewerGuard | StartDecision::Busy(_) => {}
        }
    }
    drop(recorded_follow_up(facts, attempt));
}

/// The fields of a signing input, taken apart as `docs/signing.md` says.
fn read_back(mut input: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut fields = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<4>() {
        input = rest;
        fields.push(match u32::from_be_bytes(*length) {
            u32::MAX => None,
            length => {
                let (field, rest) = input.split_at(usize::try_from(length).expect("a small number"));
                input = rest;
                Some(field.to_vec())
            }
        });
    }
    assert!(input.is_empty(), "{input:?}");
    fields
}

/// The headers that are read, and two that are not.
const HEADERS: [&str; 23] = [
    "machinist-version",
    "machinist-queue",
    "machinist-attempt",
    "machinist-generation",
    "machinist-eta",
    "machinist-expires",
    "machinist-issued",
    "machinist-retries",
    "machinist-postponements",
    "machinist-token",
    "machinist-unknown-since",
    "machinist-unread-since",
    "machinist-signature",
    "machinist-",
    "machinist-first-key",
    "x-death",
    "traceparent",
    "tracestate",
    "machinist-dead-id",
    "machinist-dead-reason",
    "machinist-dead-error",
    "machinist-dead-at",
    "machinist-pairs",
];

/// Bytes that are taken for what is needed, until there are no more.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Takes as many bytes as the first one says.
    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte().unwrap_or_default()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Few bytes make small numbers and negative ones.
    fn int(&mut self) -> i64 {
        self.bytes().iter().take(8).enumerate().fold(0, |sum, (n, byte)| sum | i64::from(*byte) << (8 * n))
    }

    fn value(&mut self) -> HeaderValue {
        match self.byte().unwrap_or_default() % 8 {
            0 => HeaderValue::Bool(true),
            1 if self.0.len().is_multiple_of(2) => HeaderValue::List(vec![HeaderValue::Int(self.int())]),
            1 => HeaderValue::Bytes(self.bytes().into()),
            2..5 => HeaderValue::Text(self.text()),
            _ => HeaderValue::Int(self.int()),
        }
    }

    fn fields(&mut self) -> Vec<Option<Vec<u8>>> {
        let mut fields = Vec::new();
        while let Some(kind) = self.byte() {
            fields.push((kind % 4 != 0).then(|| self.bytes()));
        }
        fields
    }

    /// A message that has what every message has, with any changes.
    fn message(&mut self) -> Message {
        let headers = [("machinist-queue".into(), HeaderValue::from("q"))].into_iter().collect::<Headers>();
        let id = Some("t".to_owned());
        let kind = Some("add".to_owned());
        self.change(Message { id, kind, headers, ..Message::default() })
    }

    /// The message with one change after the other.
    fn change(&mut self, mut message: Message) -> Message {
        while let Some(what) = self.byte() {
            match what % 8 {
                0 => message.id = (what < 128).then(|| self.text()),
                1 => message.kind = (what < 128).then(|| self.text()),
                2 => message.content_type = (what < 128).then(|| self.text()),
                3 => message.priority = self.byte(),
                4 => {
                    let mut body = message.body.to_vec();
                    let at = usize::from(self.byte().unwrap_or_default()) % (body.len() + 1);
                    match body.get_mut(at) {
                        Some(byte) => *byte ^= self.byte().unwrap_or_default(),
                        None => body.extend(self.bytes()),
                    }
                    message.body = body.into();
                }
                5 => drop(message.headers.remove(self.header())),
                6 => drop(message.headers.insert(self.header().to_owned().into(), self.value())),
                _ => {
                    let name = self.header();
                    let at = self.byte().unwrap_or_default();
                    let flipped = self.byte().unwrap_or_default();
                    if let Some(value) = message.headers.get_mut(name) {
                        flip(value, at, flipped);
                    }
                }
            }
        }
        message
    }

    fn header(&mut self) -> &'static str {
        HEADERS[usize::from(self.byte().unwrap_or_default()) % HEADERS.len()]
    }
}

/// Changes one byte of a header, as far as that leaves text.
fn flip(value: &mut HeaderValue, at: u8, flipped: u8) {
    match value {
        HeaderValue::Int(number) => *number ^= i64::from(flipped) << (8 * (at % 8)),
        HeaderValue::Text(text) => {
            let mut bytes = std::mem::take(text).into_bytes();
            let length = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(usize::from(at) % length) {
                *byte ^= flipped;
            }
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use machinist_conformance::any_bytes;

    use super::*;

    #[test]
    fn bodies() {
        any_bytes("body", body);
    }

    #[test]
    fn all_headers() {
        any_bytes("headers", headers);
    }

    #[test]
    fn what_was_signed_and_nothing_else_is_believed() {
        any_bytes("verify", verify);
    }

    #[test]
    fn signing_inputs() {
        any_bytes("signing_input", signing_input);
    }

    #[test]
    fn records_that_anybody_wrote() {
        any_bytes("record", record);
    }

    #[test]
    fn what_was_encrypted_and_nothing_else_opens() {
        any_bytes("encrypted", encrypted);
    }
}
