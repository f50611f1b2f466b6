//! A producer in another language, as far as a test needs one: what it signs is written from `docs/signing.md` and
//! not from the library, so that docs and library are held against each other.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use machinist_core::{
    broker::{HeaderValue, Message},
    sign::Key,
};

/// The bytes that this key signs at this time (microseconds since the Unix epoch), for a message that has the names
/// that it needs, in this namespace and vhost.
///
/// # Panics
/// If a field is longer than 4 GiB.
pub fn signing_input(message: &Message, namespace: &str, vhost: &str, key: &Key, signed_at: i64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut field = |bytes: Option<&[u8]>| match bytes {
        None => out.extend_from_slice(&[0xff; 4]),
        Some(bytes) => {
            out.extend_from_slice(&u32::try_from(bytes.len()).expect("a short field").to_be_bytes());
            out.extend_from_slice(bytes);
        }
    };
    let int = |name: &str| message.headers.get(name).and_then(HeaderValue::as_int);
    let text = |name: &str| message.headers.get(name).and_then(HeaderValue::as_text);
    let be = |number: i64| number.to_be_bytes();
    field(Some(b"machinist.task"));
    field(Some(&be(int("machinist-version").unwrap_or(1))));
    field(Some(key.algorithm().as_str().as_bytes()));
    field(Some(key.id().as_str().as_bytes()));
    field(Some(text("machinist-first-key").unwrap_or_else(|| key.id().as_str()).as_bytes()));
    field(Some(&be(signed_at)));
    field(message.content_type.as_deref().map(str::as_bytes));
    field(message.id.as_deref().map(str::as_bytes));
    field(message.kind.as_deref().map(str::as_bytes));
    field(text("machinist-queue").map(str::as_bytes));
    field(Some(&be(int("machinist-attempt").unwrap_or(1))));
    field(Some(&be(int("machinist-generation").unwrap_or(0))));
    field(int("machinist-eta").map(be).as_ref().map(|b| &b[..]));
    field(int("machinist-expires").map(be).as_ref().map(|b| &b[..]));
    field(Some(&be(int("machinist-issued").unwrap_or(0))));
    field(Some(&be(int("machinist-retries").unwrap_or(0))));
    field(Some(&be(int("machinist-postponements").unwrap_or(0))));
    field(Some(&be(int("machinist-token").unwrap_or(0))));
    field(int("machinist-unknown-since").map(be).as_ref().map(|b| &b[..]));
    field(message.priority.map(|p| be(p.into())).as_ref().map(|b| &b[..]));
    field(text("traceparent").map(str::as_bytes));
    field(text("tracestate").map(str::as_bytes));
    field(Some(namespace.as_bytes()));
    field(Some(vhost.as_bytes()));
    field(text("machinist-pairs").map(str::as_bytes));
    field(Some(&message.body));
    out
}

/// Signs a message with this key, as at the first microsecond of 1970, without a namespace or vhost.
///
/// # Panics
/// If the key has no secret.
pub fn sign(mut message: Message, key: &Key) -> Message {
    let signature = key.sign(&signing_input(&message, "", "", key, 1)).expect("a key that signs");
    let seal = format!("{} 1 {}", key.id(), BASE64.encode(signature));
    message.headers.insert("machinist-signature".into(), seal.into());
    message
}
