//! A message as a fact of its record, so that it can be sent again: a delayed one at once, or a failed
//! one as a new task.
//!
//! It is JSON like every other fact, with the body in base64, and bounded: a record is no message store.

use std::collections::BTreeMap;

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
}

/// The message as a fact; `None` if its size in bytes is too large to be kept.
pub(crate) fn message_to_fact(message: &Message, size: usize) -> Option<Bytes> {
    if size > MAX_STORED_BYTES {
        return None;
    }
    let value = |value: &HeaderValue| match value {
        HeaderValue::Text(text) => StoredValue::Text(text.clone()),
        HeaderValue::Int(number) => StoredValue::Int(*number),
        HeaderValue::Bool(truth) => StoredValue::Bool(*truth),
        HeaderValue::Bytes(bytes) => StoredValue::Bytes(STANDARD.encode(bytes)),
    };
    Some(crate::record::json(&StoredMessage {
        id: message.id.clone(),
        kind: message.kind.clone(),
        content_type: message.content_type.clone(),
        timestamp: message.timestamp,
        priority: message.priority,
        app_id: message.app_id.clone(),
        headers: message.headers.iter().map(|(name, header)| (name.to_string(), value(header))).collect(),
        body: STANDARD.encode(&message.body),
    }))
}

/// The message of a fact; `None` if it is none.
pub(crate) fn message_from_fact(fact: &[u8]) -> Option<Message> {
    let stored: StoredMessage = serde_json::from_slice(fact).ok()?;
    let bytes = |text: &str| STANDARD.decode(text).map(Bytes::from).ok();
    let value = |value: StoredValue| {
        Some(match value {
            StoredValue::Text(text) => HeaderValue::Text(text),
            StoredValue::Int(number) => HeaderValue::Int(number),
            StoredValue::Bool(truth) => HeaderValue::Bool(truth),
            StoredValue::Bytes(text) => HeaderValue::Bytes(bytes(&text)?),
        })
    };
    let headers = stored.headers.into_iter().map(|(name, header)| Some((header_name(&name), value(header)?)));
    Some(Message {
        id: stored.id,
        kind: stored.kind,
        content_type: stored.content_type,
        timestamp: stored.timestamp,
        priority: stored.priority,
        app_id: stored.app_id,
        headers: headers.collect::<Option<_>>()?,
        body: bytes(&stored.body)?,
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
            ]
            .into(),
            body: Bytes::from_static(b"\xff\0body"),
            ..Message::default()
        };
        assert_eq!(message_from_fact(&message_to_fact(&message, message.size()).unwrap()).unwrap(), message);
        assert!(message_from_fact(b"{}").is_none());
    }

    #[test]
    fn a_large_message_is_not_kept() {
        let body = Bytes::from(vec![0; MAX_STORED_BYTES + 1]);
        let message = Message { body, ..Message::default() };
        assert!(message_to_fact(&message, message.size()).is_none());
    }
}
