//! Encoding of all facts, and of all headers, in one column each.
//!
//! Facts are encoded as text that people can read, exact for any bytes: a line per fact,
//! `NAME-LENGTH.VALUE-LENGTH NAME=VALUE`. Headers are encoded for the program only: a tag, two lengths, name, value.

use bytes::Bytes;
use machinist_adapter::{
    broker::{HeaderValue, Headers, header_name},
    facts::Facts,
};

/// Error of a stored value that this module did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored value is not in the format that machinist writes")]
pub(crate) struct MalformedValue;

pub(crate) fn encode_facts(facts: &Facts) -> Vec<u8> {
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

pub(crate) fn decode_facts(mut rest: &[u8]) -> Result<Facts, MalformedValue> {
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

/// Returns `None` if there are no headers: most of the cost of a column is that it has a value.
pub(crate) fn encode_headers(headers: &Headers) -> Option<Vec<u8>> {
    if headers.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(headers.len() * 64);
    for (name, value) in headers {
        match value {
            HeaderValue::Text(text) => header(&mut out, b't', name, text.as_bytes()),
            HeaderValue::Int(number) => header(&mut out, b'i', name, &number.to_be_bytes()),
            HeaderValue::Bool(truth) => header(&mut out, b'b', name, &[u8::from(*truth)]),
            HeaderValue::Bytes(bytes) => header(&mut out, b'x', name, bytes),
        }
    }
    Some(out)
}

pub(crate) fn decode_headers(mut rest: &[u8]) -> Result<Headers, MalformedValue> {
    let mut headers = Headers::new();
    while let Some((&tag, tail)) = rest.split_first() {
        rest = tail;
        let name_len = read_length(&mut rest)?;
        let value_len = read_length(&mut rest)?;
        let name = header_name(text(take(&mut rest, name_len)?)?);
        let raw = take(&mut rest, value_len)?;
        let value = match tag {
            b't' => HeaderValue::Text(text(raw)?.to_owned()),
            b'i' => HeaderValue::Int(i64::from_be_bytes(raw.try_into().map_err(|_| MalformedValue)?)),
            b'b' => HeaderValue::Bool(raw == [1]),
            b'x' => HeaderValue::Bytes(Bytes::copy_from_slice(raw)),
            _ => return Err(MalformedValue),
        };
        headers.insert(name, value);
    }
    Ok(headers)
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
        let mut headers = Headers::new();
        headers.insert("text".into(), "ä".into());
        headers.insert("long".into(), "x".repeat(70_000).into());
        headers.insert("number".into(), i64::MIN.into());
        headers.insert("yes".into(), true.into());
        headers.insert("no".into(), false.into());
        headers.insert("".into(), HeaderValue::Bytes(Bytes::from_static(b"\0\xff")));
        let encoded = encode_headers(&headers).unwrap();
        assert_eq!(decode_headers(&encoded), Ok(headers));
        assert_eq!(encode_headers(&Headers::new()), None);
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
            assert_eq!(decode_headers(bad), Err(MalformedValue));
        }
    }
}
