//! Set of the facts that a record holds.
//!
//! A record is a growing set of named facts, each written once; the first writer wins. Values are JSON text, so that a
//! person with `redis-cli` or `sqlite3` can read them. Adapters store facts and compare them byte by byte; only
//! `machinist-core` knows their meaning.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use serde::de::DeserializeOwned;

/// Name of one fact, for example `s:1:2` (attempt 1 was started for the second time). Most names are known beforehand,
/// and every task needs a dozen of them.
pub type FactName = Cow<'static, str>;

/// Set of facts: one task's record, whole or in part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Facts(BTreeMap<FactName, Bytes>);

impl Facts {
    /// Creates an empty set: the record of a task whose record was lost or never written.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the value of a fact, if it was written.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.get(name)
    }

    /// Returns `true` if a fact was written.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Puts a fact into this set and replaces any old value.
    pub fn put(&mut self, name: impl Into<FactName>, value: impl Into<Bytes>) {
        self.0.insert(name.into(), value.into());
    }

    /// Removes a fact from this set.
    pub fn remove(&mut self, name: &str) -> Option<Bytes> {
        self.0.remove(name)
    }

    /// Returns all facts, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// Returns the number of facts.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if there are no facts.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads a fact that is plain text.
    pub fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.get(name)?.to_vec()).ok()
    }

    /// Reads the JSON value of a fact; `None` if the fact was not written or has another shape.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(self.get(name)?).ok()
    }
}

impl FromIterator<(FactName, Bytes)> for Facts {
    fn from_iter<I: IntoIterator<Item = (FactName, Bytes)>>(facts: I) -> Self {
        Self(facts.into_iter().collect())
    }
}

impl IntoIterator for Facts {
    type Item = (FactName, Bytes);
    type IntoIter = std::collections::btree_map::IntoIter<FactName, Bytes>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
