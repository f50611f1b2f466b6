//! The mark of a retry of ours in the headers of a body.
//!
//! A worker of Go that gets our retry and fails publishes the next one itself, from the body alone: the headers of AMQP
//! in which machinist counts attempts are gone. Without a mark, that message would look like an attempt whose outcome is
//! recorded, and would be acknowledged without a run. The mark is text: a worker of Go publishes headers of the body as
//! headers of AMQP again, and cannot do so with numbers.

use std::fmt;

use machinist_core::clock::Timestamp;

use crate::json::RawFields;

/// Name of the header.
pub(crate) const MARK: &str = "machinist";

/// Counts of machinist at the time at which it wrote the body: `ATTEMPT RETRIES RETRYCOUNT ETA`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryMark {
    attempt: u32,
    /// Retries that earlier attempts have spent.
    spent: u32,
    /// Retries that were left.
    left: i64,
    /// Earliest time of the attempt, in microseconds; 0 for none.
    eta: i64,
}

impl RetryMark {
    pub(crate) fn new(attempt: u32, spent: u32, left: i64, eta: Option<Timestamp>) -> Self {
        Self { attempt, spent, left, eta: eta.map_or(0, Timestamp::as_micros) }
    }

    /// Reads the mark of a body, if it has one.
    pub(crate) fn of(headers: &RawFields) -> Option<Self> {
        let text: String = serde_json::from_str(headers.get(MARK)?.get()).ok()?;
        let mut parts = text.split(' ');
        let mark = Self {
            attempt: parts.next()?.parse().ok()?,
            spent: parts.next()?.parse().ok()?,
            left: parts.next()?.parse().ok()?,
            eta: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(mark)
    }

    /// Returns the attempt of a body with this mark, and the retries that earlier attempts have spent. A worker of Go that
    /// had the task in between has changed the number of retries or the time: its attempt counts as one.
    pub(crate) fn counts(&self, left: i64, eta: Option<Timestamp>) -> (u32, u32) {
        if left == self.left && eta.map_or(0, Timestamp::as_micros) == self.eta {
            return (self.attempt, self.spent);
        }
        let spent = u32::try_from(self.left.saturating_sub(left)).unwrap_or(0);
        (self.attempt.saturating_add(1), self.spent.saturating_add(spent))
    }
}

impl fmt::Display for RetryMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.attempt, self.spent, self.left, self.eta)
    }
}
