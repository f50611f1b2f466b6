//! Wake-ups, and their form in a notification.

use std::{collections::BTreeSet, fmt::Write as _};

use machinist_adapter::broker::Target;

use crate::text::hash;

/// Maximum size of a notification, in bytes. PostgreSQL accepts up to 7999.
const MAX_PAYLOAD: usize = 7_800;
/// Payload that says that anything may have happened.
const EVERYTHING: &str = "*";

/// Changes that those who wait should look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreWakeUp {
    /// Numbers of queues in which messages may be ready.
    pub(crate) queues: BTreeSet<u64>,
    /// Numbers of records that may have changed.
    pub(crate) records: BTreeSet<u64>,
    /// A delayed message was published, which may be due before all that were known.
    pub(crate) delays: bool,
    /// Anything may have happened.
    pub(crate) everything: bool,
}

impl StoreWakeUp {
    pub(crate) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// Returns the payload that [`parse`](Self::parse) reads.
    pub(crate) fn payload(&self) -> String {
        let mut text = String::new();
        // Writing to a text does not fail.
        if self.delays {
            text.push_str("d ");
        }
        for queue in &self.queues {
            let _ = write!(text, "q{queue:x} ");
        }
        for record in &self.records {
            let _ = write!(text, "r{record:x} ");
        }
        if self.everything || text.len() > MAX_PAYLOAD { EVERYTHING.to_owned() } else { text }
    }

    /// Reads a payload. What machinist does not write means nothing: anybody may notify.
    pub(crate) fn parse(payload: &str) -> Self {
        let mut wake_up = Self::default();
        let number = |word: &str| u64::from_str_radix(word, 16).ok();
        for word in payload.split_ascii_whitespace() {
            match (word, word.get(..1), word.get(1..)) {
                (EVERYTHING, ..) => wake_up.everything = true,
                ("d", ..) => wake_up.delays = true,
                (_, Some("q"), Some(rest)) => wake_up.queues.extend(number(rest)),
                (_, Some("r"), Some(rest)) => wake_up.records.extend(number(rest)),
                _ => {}
            }
        }
        wake_up
    }
}

/// Returns the number by which notifications name a queue.
pub(crate) fn queue_number(target: &Target) -> u64 {
    match target {
        Target::Queue(queue) => hash(&["queue", queue.as_str()]),
        Target::DeadLetters(queue) => hash(&["dead", queue.as_str()]),
    }
}

/// Name of the channel of a schema.
pub(crate) fn channel(schema: &str) -> String {
    format!("machinist:{schema}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_what_has_happened() {
        let wake_up = StoreWakeUp {
            queues: [1, u64::MAX].into(),
            records: [2].into(),
            delays: true,
            everything: false,
        };
        assert_eq!(StoreWakeUp::parse(&wake_up.payload()), wake_up);
        let many =
            StoreWakeUp { records: (0..1_000).map(|n| u64::MAX - n).collect(), ..StoreWakeUp::default() };
        assert_eq!(StoreWakeUp::parse(&many.payload()), StoreWakeUp::everything());
    }

    #[test]
    fn strangers_are_not_understood() {
        for payload in ["", "hello", "qxyz r", "\u{fc}q1", "q1ffffffffffffffffffff"] {
            assert!(StoreWakeUp::parse(payload).is_empty(), "{payload}");
        }
    }
}
