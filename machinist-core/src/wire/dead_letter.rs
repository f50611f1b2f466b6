//! The mark that turns a message into a dead letter: its reason, its error, the time, and the signature of the worker
//! that wrote it.
//!
//! Everybody who can publish can put a message among the dead letters. Only a signed mark says that a worker did, so
//! nothing else in a mark is believed, and nothing without one is sent again.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use machinist_adapter::header;

use crate::{
    broker::{HeaderValue, Message},
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
    record::ErrorText,
    sign::{Key, KeyId, SigningScope, input::SigningInput, sha256},
    wire::{attempt_of, value_to_fact},
};

/// The version of what is signed under a mark.
const MARK_VERSION: i64 = 1;
/// Prefix of the headers of a mark.
const MARK_HEADERS: &str = "machinist-dead-";

/// Returns the id of the dead letter of a task. An attempt has one, however often it is published.
pub(crate) fn dead_id(id: &TaskId, attempt: u32) -> String {
    format!("{id}!{attempt}")
}

/// The mark of a dead letter, in addition to its message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeadMark {
    pub(crate) dead_id: String,
    /// A word of [`DeadReason`](crate::record::DeadReason), if a program of this version wrote it.
    pub(crate) reason: String,
    pub(crate) error: ErrorText,
    pub(crate) at: Timestamp,
    pub(crate) signature: Option<MarkSignature>,
}

/// The signature of a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MarkSignature {
    pub(crate) key: KeyId,
    pub(crate) signature: Vec<u8>,
}

impl MarkSignature {
    /// Formats it for its header: the key's id and the signature as base64, separated by a space.
    pub(crate) fn to_text(&self) -> String {
        format!("{} {}", self.key, BASE64.encode(&self.signature))
    }

    /// Reads it; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (key, signature) = text.split_once(' ')?;
        Some(Self { key: KeyId::parse(key).ok()?, signature: BASE64.decode(signature).ok()? })
    }
}

/// The message of a mark, as far as its dead letter describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MarkedMessage {
    pub(crate) task: Option<TaskId>,
    pub(crate) name: Option<TaskName>,
    pub(crate) attempt: Option<u32>,
    pub(crate) digest: Digest,
}

/// SHA-256 of a message, without the mark and without what a broker adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    fn of(message: &Message) -> Self {
        let mut input = SigningInput::new("machinist.message", message.body.len() + 512)
            .maybe_text(message.id.as_deref())
            .maybe_text(message.kind.as_deref())
            .maybe_text(message.content_type.as_deref())
            .maybe_number(message.priority.map(i64::from));
        // A broker may add headers of its own, and workers note in one since when they could not read the message.
        let ours = |name: &str| {
            name.starts_with("machinist-") && !name.starts_with(MARK_HEADERS) && name != header::UNREAD_SINCE
        };
        for (name, value) in message.headers.iter().filter(|(name, _)| ours(name)) {
            input = input.text(name).bytes(&value_to_fact(value));
        }
        Self(sha256(&input.bytes(&message.body).finish()))
    }

    /// Returns the digest of a text in place of a message.
    pub(crate) fn of_text(text: &str) -> Self {
        Self(sha256(text.as_bytes()))
    }

    /// Formats it as base64.
    pub(crate) fn to_text(self) -> String {
        BASE64.encode(self.0)
    }

    /// Reads it; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        BASE64.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// Returns an id that differs for different messages, in hexadecimal digits.
    pub(crate) fn short_text(self) -> String {
        self.0[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl MarkedMessage {
    /// Describes a message.
    pub(crate) fn of(message: &Message) -> Self {
        Self {
            task: message.id.as_deref().and_then(|id| TaskId::parse(id).ok()),
            name: message.kind.as_deref().and_then(|name| TaskName::parse(name).ok()),
            attempt: attempt_of(message),
            digest: Digest::of(message),
        }
    }
}

impl DeadMark {
    /// Reads the mark; `None` if the broker moved the message there.
    pub(crate) fn read(message: &Message) -> Option<Self> {
        let text = |name: &str| message.headers.get(name).and_then(HeaderValue::as_text);
        let at = message.headers.get(header::DEAD_AT).and_then(HeaderValue::as_int);
        Some(Self {
            dead_id: text(header::DEAD_ID)?.to_owned(),
            reason: text(header::DEAD_REASON).unwrap_or("unknown").to_owned(),
            error: ErrorText::from(text(header::DEAD_ERROR).unwrap_or_default()),
            at: Timestamp::from_micros(at.unwrap_or_default()),
            signature: text(header::DEAD_SIGNATURE).and_then(MarkSignature::parse),
        })
    }

    /// Returns the signing input: everything that a dead letter tells, and its whole message.
    pub(crate) fn signing_input(
        &self,
        key: &Key,
        scope: &SigningScope,
        queue: &QueueName,
        message: &MarkedMessage,
    ) -> Vec<u8> {
        SigningInput::new("machinist.dead", 512)
            .number(MARK_VERSION)
            .text(key.algorithm().as_str())
            .text(key.id().as_str())
            .text(&scope.namespace)
            .text(&scope.realm)
            .text(queue.as_str())
            .text(&self.dead_id)
            .text(&self.reason)
            .text(&error_text(&self.error))
            .number(self.at.as_micros())
            .maybe_text(message.task.as_ref().map(TaskId::as_str))
            .maybe_text(message.name.as_ref().map(TaskName::as_str))
            .maybe_number(message.attempt.map(i64::from))
            .bytes(&message.digest.0)
            .finish()
    }
}

/// Returns an error as one text.
fn error_text(error: &ErrorText) -> String {
    error.chain.join(": ")
}

/// Returns a message as a dead letter: everything it had, and its mark.
pub(crate) fn dead_letter(message: &Message, mark: &DeadMark) -> Message {
    let DeadMark { dead_id, reason, error, at, signature } = mark;
    // What a message claims to be is not handed on under the signature of a mark.
    let mut dead = without_mark(message);
    dead.headers.insert(header::DEAD_ID.into(), dead_id.as_str().into());
    dead.headers.insert(header::DEAD_REASON.into(), reason.as_str().into());
    dead.headers.insert(header::DEAD_ERROR.into(), error_text(error).into());
    dead.headers.insert(header::DEAD_AT.into(), at.as_micros().into());
    if let Some(signature) = signature {
        dead.headers.insert(header::DEAD_SIGNATURE.into(), signature.to_text().into());
    }
    dead
}

/// Returns the message of a dead letter.
pub(crate) fn without_mark(letter: &Message) -> Message {
    let mut message = letter.clone();
    message.headers.retain(|name, _| !name.starts_with(MARK_HEADERS));
    message
}
