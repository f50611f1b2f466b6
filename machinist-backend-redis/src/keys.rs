//! Every key and channel that this backend uses, made in one place.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `PREFIX:KIND:{ID}` | hash | a record of this kind (`task`, `session` …): one field for each fact |
//! | `PREFIX:index:NAME` | sorted set | an index by time in microseconds |
//!
//! The braces are a hash tag: in a cluster a record lives where its id says, whatever the prefix. The channel that
//! watches those who wait for a record has the name of its key, so that a sharded publish stays in the slot of the
//! script that sends it. The kind stands before the brace, so that no id, whatever somebody chose, can name a record of
//! another kind.

use machinist_adapter::{
    backend::{BackendError, Index},
    id::RecordId,
};

/// The maker of keys under one prefix.
#[derive(Debug, Clone)]
pub(crate) struct RedisKeys {
    prefix: String,
}

impl RedisKeys {
    /// Checks the prefix. A brace in it would move the hash tag, and with it every record.
    pub(crate) fn new(prefix: &str) -> Result<Self, BackendError> {
        let wrong = |c: char| c == '{' || c == '}' || c.is_whitespace() || c.is_control();
        if prefix.is_empty() || prefix.len() > 100 || prefix.contains(wrong) {
            let shown: String = prefix.chars().take(60).collect();
            return Err(BackendError::Configuration(format!(
                "the key prefix {shown:?} must be 1 to 100 bytes without braces, spaces and control characters; \
                 choose another namespace, for example \"machinist\""
            )));
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A record, and the channel that wakes those who watch it.
    pub(crate) fn record(&self, id: &RecordId) -> String {
        self.tagged(id.kind().as_str(), id.id())
    }

    pub(crate) fn index(&self, index: &Index) -> String {
        format!("{}:index:{}", self.prefix, index.name())
    }

    /// The channel of the message that marks a place in the stream to the replicas.
    pub(crate) fn replication(&self) -> String {
        format!("{}:replication", self.prefix)
    }

    /// For trying out what this user may do.
    pub(crate) fn scratch(&self, unique: &str) -> String {
        self.tagged("doctor", unique)
    }

    fn tagged(&self, kind: &str, id: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + kind.len() + id.len() + 4);
        for part in [self.prefix.as_str(), ":", kind, ":{", id, "}"] {
            key.push_str(part);
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use machinist_adapter::id::{SessionId, TaskId};

    use super::*;

    #[test]
    fn keys_are_readable_and_tagged() {
        let keys = RedisKeys::new("machinist").unwrap();
        assert_eq!(keys.record(&TaskId::parse("a1").unwrap().into()), "machinist:task:{a1}");
        assert_eq!(keys.record(&SessionId::from("x").into()), "machinist:session:{x}");
        assert_eq!(keys.index(&Index::DeadLetters), "machinist:index:dead");
    }

    #[test]
    fn a_prefix_cannot_move_the_hash_tag() {
        for wrong in ["", "a{b", "a}b", "a b", "a\nb"] {
            let error = RedisKeys::new(wrong).unwrap_err().to_string();
            assert!(error.contains("choose another namespace"), "{error}");
        }
    }
}
