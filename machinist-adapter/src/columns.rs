//! Encoding of all facts, and of all headers, in one column each, for adapters that keep them in the rows of a database.
//!
//! Facts are encoded as text that people can read, exact for any bytes: a line per fact,
//! `NAME-LENGTH.VALUE-LENGTH NAME=VALUE`. Headers are encoded for the program only: a tag, two lengths, name, value. A list or
//! table is a value that holds headers. The properties that few messages have are headers with separate tags: a column
//! for each would cost every message.

use crate::{
    broker::{HeaderValue, MAX_HEADER_DEPTH, Message, header_name},
    facts::Facts,
};
use bytes::Bytes;

/// Error of a stored value that this module did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored value is not in the format that machinist writes")]
pub struct MalformedValue;

/// Encodes the facts of a record.
pub fn encode_facts(facts: &Facts) -> Vec<u8> {
    let size = facts.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
    let mut out = Vec::with_capacity(size);
    for (name, value) in facts.iter() {
        decimal(&mut out, name.len());
        out.push(b'.');
        decimal(&mut out, value.len());
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

/// Decodes the facts of a record.
///
/// # Errors
/// [`MalformedValue`] if [`encode_facts`] did not write the value.
pub fn decode_facts(mut rest: &[u8]) -> Result<Facts, MalformedValue> {
    let mut facts = Facts::new();
    while !rest.is_empty() {
        let name_len = read_decimal(&mut rest, b'.')?;
        let value_len = read_decimal(&mut rest, b' ')?;
        let name = text(take(&mut rest, name_len)?)?;
        expect(&mut rest, b'=')?;
        facts.put(name.to_owned(), Bytes::copy_from_slice(take(&mut rest, value_len)?));
        expect(&mut rest, b'\n')?;
    }
    Ok(facts)
}

/// Tags of properties.
const CORRELATION_ID: u8 = b'C';
const REPLY_TO: u8 = b'R';
const CONTENT_ENCODING: u8 = b'E';

/// Encodes the headers and the rare properties of a message. Returns `None` if it has none: most of the cost of a column is
/// that it has a value.
pub fn encode_headers(message: &Message) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(message.headers.len() * 64);
    for (tag, property) in [
        (CORRELATION_ID, &message.correlation_id),
        (REPLY_TO, &message.reply_to),
        (CONTENT_ENCODING, &message.content_encoding),
    ] {
        if let Some(property) = property {
            header(&mut out, tag, "", property.as_bytes());
        }
    }
    for (name, value) in &message.headers {
        encode_header(&mut out, name, value);
    }
    (!out.is_empty()).then_some(out)
}

fn encode_header(out: &mut Vec<u8>, name: &str, value: &HeaderValue) {
    match value {
        HeaderValue::Text(text) => header(out, b't', name, text.as_bytes()),
        HeaderValue::Int(number) => header(out, b'i', name, &number.to_be_bytes()),
        HeaderValue::Bool(truth) => header(out, b'b', name, &[u8::from(*truth)]),
        HeaderValue::Bytes(bytes) => header(out, b'x', name, bytes),
        HeaderValue::Float(number) => header(out, b'f', name, &number.to_be_bytes()),
        HeaderValue::Null => header(out, b'n', name, &[]),
        HeaderValue::List(all) => {
            let mut inner = Vec::new();
            all.iter().for_each(|value| encode_header(&mut inner, "", value));
            header(out, b'l', name, &inner);
        }
        HeaderValue::Table(all) => {
            let mut inner = Vec::new();
            all.iter().for_each(|(name, value)| encode_header(&mut inner, name, value));
            header(out, b'm', name, &inner);
        }
    }
}

/// Decodes headers and rare properties into a message.
///
/// # Errors
/// [`MalformedValue`] if [`encode_headers`] did not write the value.
pub fn decode_headers(mut rest: &[u8], message: &mut Message) -> Result<(), MalformedValue> {
    while !rest.is_empty() {
        let (tag, name, raw) = read_header(&mut rest)?;
        let property = match tag {
            CORRELATION_ID => &mut message.correlation_id,
            REPLY_TO => &mut message.reply_to,
            CONTENT_ENCODING => &mut message.content_encoding,
            _ => {
                message.headers.insert(header_name(name), decode_value(tag, raw, MAX_HEADER_DEPTH)?);
                continue;
            }
        };
        *property = Some(text(raw)?.to_owned());
    }
    Ok(())
}

/// Decodes a value of at most `levels` lists and tables inside each other. More were never written.
fn decode_value(tag: u8, mut raw: &[u8], levels: usize) -> Result<HeaderValue, MalformedValue> {
    Ok(match tag {
        b't' => HeaderValue::Text(text(raw)?.to_owned()),
        b'i' => HeaderValue::Int(i64::from_be_bytes(raw.try_into().map_err(|_| MalformedValue)?)),
        b'b' => HeaderValue::Bool(raw == [1]),
        b'x' => HeaderValue::Bytes(Bytes::copy_from_slice(raw)),
        b'f' => HeaderValue::Float(f64::from_be_bytes(raw.try_into().map_err(|_| MalformedValue)?)),
        b'n' => HeaderValue::Null,
        b'l' | b'm' => {
            let levels = levels.checked_sub(1).ok_or(MalformedValue)?;
            let mut inner = Vec::new();
            while !raw.is_empty() {
                let (tag, name, value) = read_header(&mut raw)?;
                inner.push((name.to_owned(), decode_value(tag, value, levels)?));
            }
            if tag == b'l' {
                HeaderValue::List(inner.into_iter().map(|(_, value)| value).collect())
            } else {
                HeaderValue::Table(inner.into_iter().collect())
            }
        }
        _ => return Err(MalformedValue),
    })
}

/// Reads one header: its tag, its name and its value.
fn read_header<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a str, &'a [u8]), MalformedValue> {
    let (&tag, tail) = rest.split_first().ok_or(MalformedValue)?;
    *rest = tail;
    let name_len = read_length(rest)?;
    let value_len = read_length(rest)?;
    Ok((tag, text(take(rest, name_len)?)?, take(rest, value_len)?))
}

fn header(out: &mut Vec<u8>, tag: u8, name: &str, value: &[u8]) {
    out.push(tag);
    length(out, name.len());
    length(out, value.len());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value);
}

/// Writes a length with seven bits per byte. Only the last byte has no high bit.
fn length(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_length(rest: &mut &[u8]) -> Result<usize, MalformedValue> {
    let mut number = 0usize;
    for shift in (0..35).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(MalformedValue)?;
        *rest = tail;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(MalformedValue)
}

fn decimal(out: &mut Vec<u8>, number: usize) {
    use std::io::Write;
    // INVARIANT: writing into a vector does not fail.
    let _ = write!(out, "{number}");
}

fn read_decimal(rest: &mut &[u8], end: u8) -> Result<usize, MalformedValue> {
    let digits = rest.iter().take(12).position(|&byte| byte == end).ok_or(MalformedValue)?;
    let number = text(&rest[..digits])?.parse().map_err(|_| MalformedValue)?;
    *rest = &rest[digits + 1..];
    Ok(number)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], MalformedValue> {
    let (taken, tail) = rest.split_at_checked(count).ok_or(MalformedValue)?;
    *rest = tail;
    Ok(taken)
}

fn expect(rest: &mut &[u8], byte: u8) -> Result<(), MalformedValue> {
    if take(rest, 1)? == [byte] { Ok(()) } else { Err(MalformedValue) }
}

fn text(raw: &[u8]) -> Result<&str, MalformedValue> {
    std::str::from_utf8(raw).map_err(|_| MalformedValue)
}

#[cfg(test)]
mod tests {
    use crate::broker::Headers;

    use super::*;

    #[test]
    fn facts_are_readable_and_exact() {
        let mut facts = Facts::new();
        facts.put("queue", "\"mail\"");
        facts.put("s:1:1", "{\"a\":1}");
        assert_eq!(encode_facts(&facts), b"5.6 queue=\"mail\"\n5.7 s:1:1={\"a\":1}\n");
        facts.put("", "");
        facts.put("odd = \n 3.3 x", Bytes::from_static(b"\0\xff\n=\n"));
        assert_eq!(decode_facts(&encode_facts(&facts)), Ok(facts));
        assert_eq!(decode_facts(b""), Ok(Facts::new()));
    }

    #[test]
    fn headers_survive() {
        let mut sent = Message { reply_to: Some(String::new()), ..Message::default() };
        sent.correlation_id = Some("C".to_owned());
        sent.content_encoding = Some("gzip".to_owned());
        let headers = &mut sent.headers;
        headers.insert("text".into(), "ä".into());
        headers.insert("long".into(), "x".repeat(70_000).into());
        headers.insert("number".into(), i64::MIN.into());
        headers.insert("yes".into(), true.into());
        headers.insert("no".into(), false.into());
        headers.insert("".into(), HeaderValue::Bytes(Bytes::from_static(b"\0\xff")));
        let table = [("".to_owned(), HeaderValue::List(vec![])), ("x".to_owned(), HeaderValue::Null)];
        let list = vec![HeaderValue::Float(-0.5), HeaderValue::Table(table.into()), "C".into()];
        headers.insert("list".into(), HeaderValue::List(list));
        assert_eq!(decoded(&encode_headers(&sent).unwrap()), Ok(sent));
        assert_eq!(encode_headers(&Message::default()), None);
    }

    fn decoded(encoded: &[u8]) -> Result<Message, MalformedValue> {
        let mut message = Message::default();
        decode_headers(encoded, &mut message).map(|()| message)
    }

    #[test]
    fn headers_that_were_stored_before_there_were_lists_are_read() {
        let stored = b"i\x01\x08n\0\0\0\0\0\0\0\x07b\x01\x01b\x01t\x01\x02t\xc3\xa4x\0\x01\xff";
        let headers: Headers = [
            ("n".into(), 7.into()),
            ("b".into(), true.into()),
            ("t".into(), "ä".into()),
            ("".into(), HeaderValue::Bytes(Bytes::from_static(b"\xff"))),
        ]
        .into();
        assert_eq!(decoded(stored), Ok(Message { headers, ..Message::default() }));
    }

    #[test]
    fn lists_are_read_to_a_bounded_depth() {
        let nested = |levels: usize| {
            let value = (0..levels).fold(HeaderValue::Null, |inner, _| HeaderValue::List(vec![inner]));
            let headers = [("deep".into(), value)].into();
            encode_headers(&Message { headers, ..Message::default() }).unwrap()
        };
        assert!(decoded(&nested(MAX_HEADER_DEPTH)).is_ok());
        assert_eq!(decoded(&nested(MAX_HEADER_DEPTH + 1)), Err(MalformedValue));
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        for cut in 0..24 {
            let facts = &b"5.6 queue=\"mail\"\n1.1 a=b\n"[..cut];
            assert!(decode_facts(facts).is_ok() == (cut == 0 || cut == 17), "cut at {cut}");
        }
        for bad in [&b"99999999999999 x"[..], b"5", b".", b"-1.2 a=b\n", b"1.1 a-b\n"] {
            assert_eq!(decode_facts(bad), Err(MalformedValue));
        }
        for bad in
            [&b"t"[..], b"t\xff\xff\xff\xff\xff\xff", b"i\x01\x01ab", b"?\x01\x01ab", b"t\x01\x01\xffb"]
        {
            assert_eq!(decoded(bad), Err(MalformedValue));
        }
    }
}
