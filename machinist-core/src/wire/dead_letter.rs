//! The mark that turns a message into a dead letter: its reason, its error, and the time.

use machinist_adapter::header;

use crate::{
    broker::{HeaderValue, Message},
    clock::Timestamp,
    record::{ErrorText, FailureKind},
};

/// Why a message lies among the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadReason {
    Unsigned,
    UnknownKey,
    BadSignature,
    RevokedKey,
    Stale,
    NotAllowed,
    TooLarge,
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
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown-key",
            Self::BadSignature => "bad-signature",
            Self::RevokedKey => "revoked-key",
            Self::Stale => "stale",
            Self::NotAllowed => "not-allowed",
            Self::TooLarge => "too-large",
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

    /// The reason under which a task that ended so is buried. A rejected one's error begins with it.
    pub(crate) fn of(kind: FailureKind, error: &ErrorText) -> Self {
        match kind {
            FailureKind::Rejected => [Self::Stale, Self::UnknownKey, Self::RevokedKey, Self::Undecodable]
                .into_iter()
                .find(|reason| reason.as_str() == error.message())
                .unwrap_or(Self::NotAllowed),
            FailureKind::Expired => Self::Expired,
            FailureKind::Lost => Self::Lost,
            FailureKind::Malformed => Self::Malformed,
            FailureKind::Unregistered => Self::Unregistered,
            FailureKind::Unroutable => Self::Unroutable,
            _ => Self::Failed,
        }
    }
}

/// What a dead letter says beside what its message says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeadMark {
    pub(crate) dead_id: String,
    /// A word of [`DeadReason`], where a program of this version wrote it.
    pub(crate) reason: String,
    pub(crate) error: ErrorText,
    pub(crate) at: Timestamp,
}

impl DeadMark {
    /// Reads it; `None` where we did not put the message there.
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

/// A message as a dead letter: everything it had, and why it is here.
pub(crate) fn dead_letter(message: &Message, mark: &DeadMark) -> Message {
    let DeadMark { dead_id, reason, error, at } = mark;
    let mut dead = message.clone();
    dead.headers.insert(header::DEAD_ID.into(), dead_id.as_str().into());
    dead.headers.insert(header::DEAD_REASON.into(), reason.as_str().into());
    dead.headers.insert(header::DEAD_ERROR.into(), error.chain.join(": ").into());
    dead.headers.insert(header::DEAD_AT.into(), at.as_micros().into());
    dead
}
