//! A message as a fact of its record, so that it can be sent again: a delayed one at once, or a failed
//! one as a new task.
//!
//! It is JSON like every other fact, with the body in base64, and bounded: a record is no message store.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    broker::{HeaderValue, Message, header_name},
    clock::Timestamp,
};

/// A larger message is not kept, in bytes of headers and body.
pub(crate) const MAX_STORED_BYTES: usize = 256 * 1024;

#[derive(Serialize, Deserialize)]
struct StoredMessage {
    id: Option<String>,
    kind: Option<String>,
    content_type: Option<String>,
    timestamp: Option<Timestamp>,
    priority: Option<u8>,
    app_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    headers: BTreeMap<String, StoredValue>,
    body: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredValue {
    Text(String),
    Int(i64),
    Bool(bool),
    Bytes(String),
    /// The bits: JSON has no infinity, and several forms of one number.
    Float(u64),
    Null,
    List(Vec<Self>),
    Table(BTreeMap<String, Self>),
}

impl StoredValue {
    fn of(value: &HeaderValue) -> Self {
        match value {
            HeaderValue::Text(text) => Self::Text(text.clone()),
            HeaderValue::Int(number) => Self::Int(*number),
            HeaderValue::Bool(truth) => Self::Bool(*truth),
            HeaderValue::Bytes(bytes) => Self::Bytes(STANDARD.encode(bytes)),
            HeaderValue::Float(number) => Self::Float(number.to_bits()),
            HeaderValue::Null => Self::Null,
            HeaderValue::List(all) => Self::List(all.iter().map(Self::of).collect()),
            HeaderValue::Table(all) => {
                Self::Table(all.iter().map(|(name, value)| (name.clone(), Self::of(value))).collect())
            }
        }
    }

    fn into_value(self) -> Option<HeaderValue> {
        Some(match self {
            Self::Text(text) => HeaderValue::Text(text),
            Self::Int(number) => HeaderValue::Int(number),
            Self::Bool(truth) => HeaderValue::Bool(truth),
            Self::Bytes(text) => HeaderValue::Bytes(decoded(&text)?),
            Self::Float(bits) => HeaderValue::Float(f64::from_bits(bits)),
            Self::Null => HeaderValue::Null,
            Self::List(all) => {
                HeaderValue::List(all.into_iter().map(Self::into_value).collect::<Option<_>>()?)
            }
            Self::Table(all) => {
                let pair = |(name, value): (String, Self)| Some((name, value.into_value()?));
                HeaderValue::Table(all.into_iter().map(pair).collect::<Option<_>>()?)
            }
        })
    }
}

/// The value of a header as a fact: the same bytes for the same value.
pub(crate) fn value_to_fact(value: &HeaderValue) -> Bytes {
    crate::record::json(&StoredValue::of(value))
}

fn decoded(text: &str) -> Option<Bytes> {
    STANDARD.decode(text).map(Bytes::from).ok()
}

/// The message as a fact; `None` if its size in bytes is too large to be kept.
pub(crate) fn message_to_fact(message: &Message, size: usize) -> Option<Bytes> {
    if size > MAX_STORED_BYTES {
        return None;
    }
    let header = |(name, value): (&Cow<'_, str>, &HeaderValue)| (name.to_string(), StoredValue::of(value));
    Some(crate::record::json(&StoredMessage {
        id: message.id.clone(),
        kind: message.kind.clone(),
        content_type: message.content_type.clone(),
        timestamp: message.timestamp,
        priority: message.priority,
        app_id: message.app_id.clone(),
        correlation_id: message.correlation_id.clone(),
        reply_to: message.reply_to.clone(),
        content_encoding: message.content_encoding.clone(),
        headers: message.headers.iter().map(header).collect(),
        body: STANDARD.encode(&message.body),
    }))
}

/// The message of a fact; `None` if it is none.
pub(crate) fn message_from_fact(fact: &[u8]) -> Option<Message> {
    let stored: StoredMessage = serde_json::from_slice(fact).ok()?;
    let header = |(name, value): (String, StoredValue)| Some((header_name(&name), value.into_value()?));
    Some(Message {
        id: stored.id,
        kind: stored.kind,
        content_type: stored.content_type,
        timestamp: stored.timestamp,
        priority: stored.priority,
        app_id: stored.app_id,
        correlation_id: stored.correlation_id,
        reply_to: stored.reply_to,
        content_encoding: stored.content_encoding,
        headers: stored.headers.into_iter().map(header).collect::<Option<_>>()?,
        body: decoded(&stored.body)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let message = Message {
            id: Some("t".to_owned()),
            priority: Some(3),
            timestamp: Some(Timestamp::from_micros(7)),
            headers: [
                ("text".into(), "ä".into()),
                ("number".into(), i64::MIN.into()),
                ("truth".into(), true.into()),
                ("bytes".into(), HeaderValue::Bytes(Bytes::from_static(b"\xff\0"))),
                ("fraction".into(), HeaderValue::Float(f64::INFINITY)),
                (
                    "list".into(),
                    HeaderValue::List(vec![
                        HeaderValue::Null,
                        HeaderValue::Table([("x".to_owned(), HeaderValue::Bytes(Bytes::new()))].into()),
                    ]),
                ),
            ]
            .into(),
            correlation_id: Some("c".to_owned()),
            reply_to: Some("r".to_owned()),
            content_encoding: Some("gzip".to_owned()),
            body: Bytes::from_static(b"\xff\0body"),
            ..Message::default()
        };
        assert_eq!(message_from_fact(&message_to_fact(&message, message.size()).unwrap()).unwrap(), message);
        assert!(message_from_fact(b"{}").is_none());
    }

    #[test]
    fn a_message_that_was_stored_by_an_earlier_version_is_read() {
        let stored = br#"{"id":"t","kind":null,"content_type":null,"timestamp":7,"priority":3,"app_id":null,
            "headers":{"n":{"int":1},"t":{"text":"x"}},"body":"eA=="}"#;
        let message = message_from_fact(stored).unwrap();
        assert_eq!((message.headers["n"].as_int(), &message.body[..]), (Some(1), &b"x"[..]));
    }

    #[test]
    fn a_large_message_is_not_kept() {
        let body = Bytes::from(vec![0; MAX_STORED_BYTES + 1]);
        let message = Message { body, ..Message::default() };
        assert!(message_to_fact(&message, message.size()).is_none());
    }
}
