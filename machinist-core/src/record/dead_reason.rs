//! Reasons of dead letters: one word for each, for headers, records and people.

use serde::{Deserialize, Serialize};

use super::FailureKind;

/// Reason that a message is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    Purged,
}

impl DeadReason {
    /// Every reason.
    pub(crate) const ALL: [Self; 16] = [
        Self::Unsigned,
        Self::UnknownKey,
        Self::BadSignature,
        Self::RevokedKey,
        Self::Stale,
        Self::NotAllowed,
        Self::TooLarge,
        Self::Undecodable,
        Self::WrongQueue,
        Self::Unregistered,
        Self::Malformed,
        Self::Failed,
        Self::Lost,
        Self::Expired,
        Self::Unroutable,
        Self::Purged,
    ];

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
            Self::Purged => "purged",
        }
    }

    /// Returns the reason of a task with this failure. A rejected task has a more specific one in its record.
    pub(crate) const fn of(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Rejected => Self::NotAllowed,
            FailureKind::Expired => Self::Expired,
            FailureKind::Lost => Self::Lost,
            FailureKind::Malformed => Self::Malformed,
            FailureKind::Unregistered => Self::Unregistered,
            FailureKind::Unroutable => Self::Unroutable,
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_stored_as_their_words() {
        for reason in DeadReason::ALL {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{}\"", reason.as_str()));
        }
    }
}
