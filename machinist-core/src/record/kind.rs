//! Kinds of failure: one word and one number for each, for people, scripts and dashboards.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Reason that a task ended in FAILURE. The smaller the code, the more serious the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// Cancelled by a person or a caller.
    Revoked,
    /// Ran longer than its timeout.
    Timeout,
    /// The handler returned an error, and no attempt is left.
    Error,
    /// Not started before its expiry.
    Expired,
    /// Run by workers that died more often than allowed.
    Lost,
    /// Depended on a task that failed.
    Upstream,
    /// Sent with arguments that do not fit the handler.
    Malformed,
    /// Authentic, but stale or not allowed to call this task here.
    Rejected,
    /// Not sent, or not run, because another task has its unique key.
    Duplicate,
    /// Replaced by a later task with the same unique key before it started.
    Replaced,
    /// Unknown to every worker of the queue.
    Unregistered,
    /// Sent on the condition of a live worker when there was none.
    NoWorker,
    /// Due when its target queue no longer existed.
    Unroutable,
    /// The handler panicked.
    Panic,
}

impl FailureKind {
    /// Every kind, from the least serious.
    pub const ALL: [Self; 14] = [
        Self::Revoked,
        Self::Timeout,
        Self::Error,
        Self::Expired,
        Self::Lost,
        Self::Upstream,
        Self::Malformed,
        Self::Rejected,
        Self::Duplicate,
        Self::Replaced,
        Self::Unregistered,
        Self::NoWorker,
        Self::Unroutable,
        Self::Panic,
    ];

    /// Returns the kind of this word; `None` for one that this version does not know.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Returns the kind as a negative number; 0 is success.
    pub const fn code(self) -> i32 {
        match self {
            Self::Revoked => -1,
            Self::Timeout => -2,
            Self::Error => -3,
            Self::Expired => -5,
            Self::Lost => -6,
            Self::Upstream => -7,
            Self::Malformed => -8,
            Self::Rejected => -9,
            Self::Duplicate => -10,
            Self::Replaced => -11,
            Self::Unregistered => -200,
            Self::NoWorker => -201,
            Self::Unroutable => -202,
            Self::Panic => -255,
        }
    }

    /// Returns the kind as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::Upstream => "upstream",
            Self::Malformed => "malformed",
            Self::Rejected => "rejected",
            Self::Duplicate => "duplicate",
            Self::Replaced => "replaced",
            Self::Unregistered => "unregistered",
            Self::NoWorker => "no_worker",
            Self::Unroutable => "unroutable",
            Self::Panic => "panic",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_stored_as_their_words_and_codes_fall() {
        for kind in FailureKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
        assert!(FailureKind::ALL.is_sorted_by(|a, b| a.code() > b.code()));
    }
}
