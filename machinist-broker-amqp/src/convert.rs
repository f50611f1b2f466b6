//! Conversion of messages to AMQP and back.
//!
//! Lists and tables in headers of other clients are read to a bounded depth: to descend is recursion, and one message with
//! two thousand nested tables would end the process.

use std::collections::BTreeMap;

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, ShortString},
};
use machinist_adapter::{
    broker::{HeaderValue, Headers, MAX_HEADER_DEPTH, Message, header_name},
    clock::Timestamp,
};

/// Delivery mode of messages that survive a restart of the broker.
const PERSISTENT_DELIVERY_MODE: u8 = 2;

/// Properties of a message to publish, and their approximate size on the wire, in bytes.
///
/// The number of the publish matches a returned message with its sender. It is in the property that AMQP 0-9 calls
/// `cluster-id` and 0-9-1 reserves, because all others belong to the users: RabbitMQ carries it, and no client shows it. A
/// header could do the same, but each header costs the broker a microsecond.
///
/// # Errors
/// The reason that the message cannot be written in AMQP.
pub(crate) fn properties(message: &Message, publish_id: i64) -> Result<(BasicProperties, usize), String> {
    let mut size = 64;
    let mut short = |what: &str, text: &str| {
        size += text.len();
        ShortString::try_new(text)
            .map_err(|_| format!("{what} {:.40}… is longer than 255 bytes; shorten it", text))
    };
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT_DELIVERY_MODE);
    if let Some(id) = &message.id {
        properties = properties.with_message_id(short("the message id", id)?);
    }
    if let Some(kind) = &message.kind {
        properties = properties.with_type(short("the message kind", kind)?);
    }
    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(short("the content type", content_type)?);
    }
    if let Some(app_id) = &message.app_id {
        properties = properties.with_app_id(short("the app id", app_id)?);
    }
    if let Some(correlation_id) = &message.correlation_id {
        properties = properties.with_correlation_id(short("the correlation id", correlation_id)?);
    }
    if let Some(reply_to) = &message.reply_to {
        properties = properties.with_reply_to(short("reply-to", reply_to)?);
    }
    if let Some(encoding) = &message.content_encoding {
        properties = properties.with_content_encoding(short("the content encoding", encoding)?);
    }
    if let Some(priority) = message.priority {
        properties = properties.with_priority(priority);
    }
    if let Some(seconds) =
        message.timestamp.and_then(|at| u64::try_from(at.as_micros().div_euclid(1_000_000)).ok())
    {
        properties = properties.with_timestamp(seconds);
    }
    let mut headers = BTreeMap::new();
    for (name, value) in message.headers.iter().filter(|(name, _)| !is_routing_header(name)) {
        headers.insert(short("the header name", name)?, header_out(value)?);
    }
    size += message.size() - message.body.len();
    properties = properties.with_cluster_id(publish_id.to_string().into());
    Ok((properties.with_headers(FieldTable::from(headers)), size))
}

/// Id that [`properties`] gave a publish.
pub(crate) fn publish_id(properties: &BasicProperties) -> Option<i64> {
    properties.cluster_id().as_ref()?.as_str().parse().ok()
}

/// Message from the properties and the body of a delivery.
pub(crate) fn message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    Message {
        id: text(properties.message_id()),
        kind: text(properties.kind()),
        content_type: text(properties.content_type()),
        timestamp: properties.timestamp().as_ref().and_then(instant),
        priority: *properties.priority(),
        app_id: text(properties.app_id()),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        content_encoding: text(properties.content_encoding()),
        headers: properties.headers().as_ref().map(headers_in).unwrap_or_default(),
        body: Bytes::from(body),
    }
}

/// Returns `true` if a header describes the route of a message and is not part of the message.
///
/// If the death headers stayed in a message that is published again, the broker would mistake a second way down the
/// ladder for a cycle and silently drop the message. CC and BCC would send unwanted copies.
fn is_routing_header(name: &str) -> bool {
    matches!(name, "x-death" | "x-delivery-count" | "x-acquired-count" | "CC" | "BCC")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

fn headers_in(table: &FieldTable) -> Headers {
    let wanted = table.inner().iter().filter(|(name, _)| !is_routing_header(name.as_str()));
    wanted
        .filter_map(|(name, value)| Some((header_name(name.as_str()), header_in(value, MAX_HEADER_DEPTH)?)))
        .collect()
}

fn header_out(value: &HeaderValue) -> Result<AMQPValue, String> {
    Ok(match value {
        HeaderValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
        HeaderValue::Int(number) => AMQPValue::LongLongInt(*number),
        HeaderValue::Bool(truth) => AMQPValue::Boolean(*truth),
        HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(bytes.as_ref().into()),
        HeaderValue::Float(number) => AMQPValue::Double(*number),
        HeaderValue::Null => AMQPValue::Void,
        HeaderValue::List(all) => {
            let all: Vec<AMQPValue> = all.iter().map(header_out).collect::<Result<_, _>>()?;
            AMQPValue::FieldArray(FieldArray::from(all))
        }
        HeaderValue::Table(all) => {
            let pair = |(name, value): (&String, &HeaderValue)| {
                let short = ShortString::try_new(name.as_str());
                let name = short.map_err(|_| {
                    format!("the name {name:.40}… in a header is longer than 255 bytes; shorten it")
                })?;
                Ok((name, header_out(value)?))
            };
            let all: BTreeMap<ShortString, AMQPValue> =
                all.iter().map(pair).collect::<Result<_, String>>()?;
            AMQPValue::FieldTable(FieldTable::from(all))
        }
    })
}

/// Converts a header of a delivery; `None` for a value that the broker seam does not have (decimals, instants), for a list
/// or table that holds one, and for more levels of lists and tables than `levels`.
fn header_in(value: &AMQPValue, levels: usize) -> Option<HeaderValue> {
    Some(match value {
        AMQPValue::Boolean(truth) => HeaderValue::Bool(*truth),
        AMQPValue::ShortShortInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::ShortShortUInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::ShortInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::ShortUInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::LongInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::LongUInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::LongLongInt(number) => HeaderValue::Int(*number),
        AMQPValue::ShortString(text) => HeaderValue::Text(text.as_str().to_owned()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => HeaderValue::Bytes(Bytes::copy_from_slice(text.as_bytes())),
        },
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes.as_slice())),
        AMQPValue::Float(number) => HeaderValue::Float((*number).into()),
        AMQPValue::Double(number) => HeaderValue::Float(*number),
        AMQPValue::Void => HeaderValue::Null,
        AMQPValue::FieldArray(all) => {
            let levels = levels.checked_sub(1)?;
            let all = all.as_slice().iter().map(|value| header_in(value, levels));
            HeaderValue::List(all.collect::<Option<_>>()?)
        }
        AMQPValue::FieldTable(all) => {
            let levels = levels.checked_sub(1)?;
            let all = all
                .inner()
                .iter()
                .map(|(name, value)| Some((name.as_str().to_owned(), header_in(value, levels)?)));
            HeaderValue::Table(all.collect::<Option<_>>()?)
        }
        AMQPValue::DecimalValue(_) | AMQPValue::Timestamp(_) => return None,
    })
}

/// Converts seconds of another client, which may have meant milliseconds; `None` if they are out of range.
fn instant(seconds: &u64) -> Option<Timestamp> {
    i64::try_from(*seconds).ok()?.checked_mul(1_000_000).map(Timestamp::from_micros)
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = HeaderValue> {
        prop_oneof![
            ".{0,40}".prop_map(HeaderValue::Text),
            any::<i64>().prop_map(HeaderValue::Int),
            any::<bool>().prop_map(HeaderValue::Bool),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| HeaderValue::Bytes(bytes.into())),
            (-1e9..1e9f64).prop_map(HeaderValue::Float),
            Just(HeaderValue::Null),
        ]
        .prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(HeaderValue::List),
                proptest::collection::btree_map("[a-z]{0,9}", inner, 0..4).prop_map(HeaderValue::Table),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_message_survives(
            id in proptest::option::of(".{0,60}"),
            kind in proptest::option::of(".{0,60}"),
            correlation_id in proptest::option::of(".{0,60}"),
            reply_to in proptest::option::of(".{0,60}"),
            content_encoding in proptest::option::of("[a-z0-9-]{0,9}"),
            seconds in proptest::option::of(0i64..1 << 40),
            priority in proptest::option::of(0u8..10),
            headers in proptest::collection::btree_map("[a-z-]{1,20}", header(), 0..6),
            body in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let sent = Message {
                id, kind, priority, correlation_id, reply_to, content_encoding,
                headers: headers.into_iter().map(|(name, value)| (name.into(), value)).collect(),
                content_type: Some("application/json".to_owned()),
                timestamp: seconds.map(|s| Timestamp::from_micros(s * 1_000_000)),
                app_id: Some("test".to_owned()),
                body: Bytes::from(body.clone()),
            };
            let (properties, size) = properties(&sent, 7).unwrap();
            prop_assert_eq!(publish_id(&properties), Some(7));
            prop_assert!(size >= sent.size() - sent.body.len());
            prop_assert_eq!(message(&properties, body), sent);
        }
    }

    #[test]
    fn headers_that_the_broker_adds_are_left_out_both_ways() {
        let mut sent = Message::default();
        for name in
            ["x-death", "x-first-death-queue", "x-last-death-reason", "CC", "BCC", "x-delivery-count", "kept"]
        {
            sent.headers.insert(name.to_owned().into(), "value".into());
        }
        let (out, _) = properties(&sent, 1).unwrap();
        let names: Vec<_> =
            out.headers().as_ref().unwrap().inner().keys().map(|k| k.as_str().to_owned()).collect();
        assert_eq!(names, ["kept"]);

        let mut table = FieldTable::default();
        for name in ["x-death", "x-first-death-exchange", "CC", "kept"] {
            table.insert(name.into(), AMQPValue::LongString("value".into()));
        }
        let read = message(&BasicProperties::default().with_headers(table), Vec::new());
        assert_eq!(read.headers.keys().collect::<Vec<_>>(), ["kept"]);
    }

    #[test]
    fn odd_properties_are_left_out_and_never_misread() {
        let mut table = FieldTable::default();
        let nested = |levels: usize| {
            (0..levels).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(FieldArray::from(vec![inner])))
        };
        table.insert("deep".into(), nested(MAX_HEADER_DEPTH));
        table.insert("too deep".into(), nested(MAX_HEADER_DEPTH + 1));
        table.insert("fraction".into(), AMQPValue::Float(1.5));
        table.insert("when".into(), AMQPValue::Timestamp(1));
        table.insert("whens".into(), AMQPValue::FieldArray(vec![AMQPValue::Timestamp(1)].into()));
        table.insert("small".into(), AMQPValue::ShortShortUInt(200));
        table.insert("latin".into(), AMQPValue::LongString(vec![0xe9].into()));
        let properties = BasicProperties::default().with_headers(table).with_timestamp(u64::MAX);
        let read = message(&properties, b"x".to_vec());
        assert_eq!(read.timestamp, None);
        assert_eq!(read.headers.keys().collect::<Vec<_>>(), ["deep", "fraction", "latin", "small"]);
        assert_eq!(read.headers["fraction"], HeaderValue::Float(1.5));
        assert_eq!(read.headers["small"], HeaderValue::Int(200));
        assert_eq!(read.headers["latin"], HeaderValue::Bytes(Bytes::from_static(&[0xe9])));
    }

    #[test]
    fn a_message_that_amqp_cannot_write_is_an_error_before_it_costs_the_connection() {
        let long = "x".repeat(256);
        let message = Message { id: Some(long.clone()), ..Message::default() };
        assert!(properties(&message, 1).unwrap_err().contains("message id"));
        let mut message = Message::default();
        message.headers.insert(long.into(), true.into());
        assert!(properties(&message, 1).unwrap_err().contains("header name"));
    }
}
