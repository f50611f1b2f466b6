//! Messages as somebody would change them who has the broker.

use machinist_core::broker::{HeaderValue, Message};

/// The message with this header, in place of one of the same name.
pub fn header(mut message: Message, name: &str, value: impl Into<HeaderValue>) -> Message {
    message.headers.insert(name.to_owned().into(), value.into());
    message
}

/// The message without this header.
///
/// # Panics
/// If it has none of that name: the test would change nothing.
pub fn without(mut message: Message, name: &str) -> Message {
    assert!(message.headers.remove(name).is_some(), "{name} was there");
    message
}
