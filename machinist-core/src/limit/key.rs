//! The key of a limit: one bucket for each value of an argument or a header.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{args::Arg, security::Trust};

/// Length of a key up to which it is stored as it is, in bytes. A longer one is stored as its hash.
const MAX_PLAIN_KEY: usize = 64;
/// Kind of the hashes of keys of encrypted tasks.
pub(crate) const KEY_HASH: &str = "machinist.limit";
/// Length of a template, in bytes.
const MAX_TEMPLATE: usize = 256;

/// Template of a key, such as `{0}`: the tasks with one value of the template share one limit.
///
/// `{0}` stands for the first argument, `{name}` for a named one, and `{header:NAME}` for a header. A task without that
/// argument or header has the empty text there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LimitKey {
    text: String,
    parts: Vec<KeyPart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyPart {
    Text(String),
    Position(usize),
    Named(String),
    Header(String),
}

impl LimitKey {
    /// Reads a template.
    ///
    /// # Errors
    /// The text is no template with a placeholder, in words for people.
    pub fn template(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            Err(format!(
                "the key {text:?} {why}; write {{0}} for the first argument, {{name}} or {{header:NAME}}"
            ))
        };
        if text.len() > MAX_TEMPLATE {
            return Err(format!("a key has {} bytes, and the maximum is {MAX_TEMPLATE}", text.len()));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(open);
            let Some(close) = from.find('}').filter(|close| *close > 1 && from.starts_with('{')) else {
                return wrong("has a brace without a placeholder");
            };
            if !before.is_empty() {
                parts.push(KeyPart::Text(before.to_owned()));
            }
            let name = &from[1..close];
            parts.push(match (name.strip_prefix("header:"), name.parse()) {
                (Some(header), _) => KeyPart::Header(header.to_owned()),
                (None, Ok(position)) => KeyPart::Position(position),
                (None, Err(_)) => KeyPart::Named(name.to_owned()),
            });
            rest = &from[close + 1..];
        }
        if parts.is_empty() {
            return wrong("has no placeholder, so that all tasks have one key");
        }
        if !rest.is_empty() {
            parts.push(KeyPart::Text(rest.to_owned()));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// Returns the key of a task with these arguments and headers.
    pub(crate) fn of(&self, args: &[Arg], headers: &BTreeMap<String, String>) -> String {
        let value = |arg: Option<&Arg>| match arg.map(|arg| &arg.value) {
            None | Some(serde_json::Value::Null) => String::new(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let part = |part: &KeyPart| match part {
            KeyPart::Text(text) => text.clone(),
            KeyPart::Position(position) => value(args.get(*position)),
            KeyPart::Named(name) => value(args.iter().find(|arg| arg.name == *name)),
            KeyPart::Header(name) => headers.get(name).cloned().unwrap_or_default(),
        };
        self.parts.iter().map(part).collect()
    }
}

/// Returns a key as it is stored: as it is if it is short and printable, otherwise as its hash.
pub(crate) fn stored_key(key: &str) -> String {
    let plain = key.len() <= MAX_PLAIN_KEY && key.bytes().all(|byte| byte.is_ascii_graphic());
    // A plain key that looks like a hash could collide with one.
    if plain && !key.starts_with('#') { key.to_owned() } else { hashed_key(&Sha256::digest(key.as_bytes())) }
}

/// Returns the name of a task or a queue as it stands before a key in the name of a record: with its colons escaped. Otherwise the
/// key `b:c` of the task `a` would be the key `c` of the task `a:b`.
pub(crate) fn before_key(name: &str) -> Cow<'_, str> {
    if !name.contains([':', '%']) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.replace('%', "%25").replace(':', "%3A"))
}

/// Returns a key of encrypted tasks as it is stored: as a hash that only holders of the signing key can compute, so that nobody
/// else finds keys by trying. Without a signing key it is stored as any other.
pub(crate) fn hidden_key(trust: &Trust, kind: &'static str, key: &str) -> String {
    trust.keyed_hash(kind, key).map_or_else(|| stored_key(key), |hash| hashed_key(&hash))
}

/// Returns the stored form of a hash or a signature of a key.
fn hashed_key(hash: &[u8]) -> String {
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("#{hex}")
}

impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for LimitKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::template(&text)
    }
}

impl From<LimitKey> for String {
    fn from(key: LimitKey) -> Self {
        key.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_is_made_of_arguments_and_headers() {
        let named = Arg { name: "to".into(), ..Arg::from_value(json!("eve")) };
        let args = [Arg::from_value(json!("a b")), Arg::from_value(json!(7)), named];
        let headers = BTreeMap::from([("tenant".to_owned(), "t1".to_owned())]);
        let key = |template| LimitKey::template(template).unwrap().of(&args, &headers);
        assert_eq!(key("{0}"), "a b");
        assert_eq!(key("x-{1}-{to}/{header:tenant}!"), "x-7-eve/t1!");
        assert_eq!(key("{9}{none}{header:none}"), "");
        for wrong in ["", "all", "{", "}", "{}", "a}b{0}", "{0", &"{0}".repeat(100)] {
            assert!(LimitKey::template(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_with_colons_is_no_other_name_with_a_key() {
        assert_eq!(["call", "a:b", "a%3Ab"].map(before_key), ["call", "a%3Ab", "a%253Ab"]);
    }

    #[test]
    fn long_and_strange_keys_are_stored_as_hashes() {
        assert_eq!(stored_key("customer-7"), "customer-7");
        for key in ["a b", "#x", "ä", "\n", &"x".repeat(10_000)] {
            let stored = stored_key(key);
            assert!(stored.starts_with('#') && stored.len() == 33, "{stored}");
        }
        assert_ne!(stored_key("a b"), stored_key("a c"));
    }
}
