//! The mark that turns a message into a dead letter: its reason, its error, and the time.

use machinist_adapter::header;

use crate::{
    broker::{HeaderValue, Message},
    clock::Timestamp,
    id::TaskId,
    record::ErrorText,
};

/// Returns the id of the dead letter of a task. An attempt has one, however often it is published.
pub(crate) fn dead_id(id: &TaskId, attempt: u32) -> String {
    format!("{id}!{attempt}")
}

/// The mark of a dead letter, in addition to its message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeadMark {
    pub(crate) dead_id: String,
    /// A word of [`DeadReason`], if a program of this version wrote it.
    pub(crate) reason: String,
    pub(crate) error: ErrorText,
    pub(crate) at: Timestamp,
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
        })
    }
}

/// Returns a message as a dead letter: everything it had, and its mark.
pub(crate) fn dead_letter(message: &Message, mark: &DeadMark) -> Message {
    let DeadMark { dead_id, reason, error, at } = mark;
    let mut dead = message.clone();
    dead.headers.insert(header::DEAD_ID.into(), dead_id.as_str().into());
    dead.headers.insert(header::DEAD_REASON.into(), reason.as_str().into());
    dead.headers.insert(header::DEAD_ERROR.into(), error.chain.join(": ").into());
    dead.headers.insert(header::DEAD_AT.into(), at.as_micros().into());
    dead
}
