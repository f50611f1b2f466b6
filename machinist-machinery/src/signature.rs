//! The signature of Go machinery: the body of its messages, and of the callbacks inside them.

use std::borrow::Cow;

use jiff::fmt::temporal::DateTimeParser;
use machinist_core::{Arg, clock::Timestamp};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{
    json::{RawFields, raw, write_text},
    value,
};

/// The fields of a signature in Go's order, with the values that a new one has.
const FIELDS: [(&str, &str); 19] = [
    ("UUID", "\"\""),
    ("Name", "\"\""),
    ("RoutingKey", "\"\""),
    ("ETA", "null"),
    ("GroupUUID", "\"\""),
    ("GroupTaskCount", "0"),
    ("Args", "null"),
    ("Headers", "{}"),
    ("Priority", "0"),
    ("Immutable", "false"),
    ("RetryCount", "0"),
    ("RetryTimeout", "0"),
    ("OnSuccess", "null"),
    ("OnError", "null"),
    ("ChordCallback", "null"),
    ("BrokerMessageGroupId", "\"\""),
    ("SQSReceiptHandle", "\"\""),
    ("StopTaskDeletionOnError", "false"),
    ("IgnoreWhenTaskNotRegistered", "false"),
];

/// A signature of Go machinery. Fields that are not known here are kept.
#[derive(Debug, Clone)]
pub(crate) struct GoSignature(RawFields);

impl GoSignature {
    /// Creates a signature with the fields of Go, empty.
    pub(crate) fn new() -> Self {
        let mut fields = RawFields::default();
        for (name, value) in fields_of_go() {
            fields.put(name, raw(value.to_owned()));
        }
        Self(fields)
    }

    /// Reads the body of a message. Bytes that are not UTF-8 become the replacement character, as in Go.
    ///
    /// # Errors
    /// A sentence: it is not a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        // Nearly all are, and then this check is the faster one.
        let text = std::str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed);
        if text.trim().is_empty() {
            return Err("the body is empty, and a task of machinery is a JSON object".to_owned());
        }
        let fields: RawFields = serde_json::from_str(&text).map_err(|error| {
            format!("the body is not a JSON object with the fields of machinery: {error}")
        })?;
        Ok(Self(fields.with_spelling(fields_of_go().map(|(name, _)| name))))
    }

    /// Returns the text of its body.
    pub(crate) fn to_text(&self) -> String {
        let mut out = String::new();
        self.0.write(&mut out);
        out
    }

    /// Reads a field. Go leaves the zero value where `null` is.
    fn get<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, String> {
        let Some(value) = self.0.get(name) else { return Ok(T::default()) };
        let read: Option<T> = serde_json::from_str(value.get()).map_err(|error| {
            let shown: String = value.get().chars().take(80).collect();
            format!("{name} cannot be {shown}: {error}")
        })?;
        Ok(read.unwrap_or_default())
    }

    pub(crate) fn text(&self, name: &str) -> Result<String, String> {
        self.get(name)
    }

    pub(crate) fn number(&self, name: &str) -> Result<i64, String> {
        self.get(name)
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, String> {
        self.get(name)
    }

    pub(crate) fn headers(&self) -> Result<RawFields, String> {
        self.get("Headers")
    }

    /// Returns the earliest time of its run.
    pub(crate) fn eta(&self) -> Result<Option<Timestamp>, String> {
        let text = self.text("ETA")?;
        if text.is_empty() {
            return match self.0.get("ETA") {
                Some(value) if value.get() == "\"\"" => Err("ETA is an empty text".to_owned()),
                _ => Ok(None),
            };
        }
        let instant = DateTimeParser::new().parse_timestamp(&text).or_else(|error| {
            beyond_time(&text).ok_or_else(|| {
                format!(
                    "ETA {text:?} is no instant: take a date, a time and a time zone, as in RFC 3339 ({error})"
                )
            })
        })?;
        Ok(Some(Timestamp::from_micros(instant.as_microsecond())))
    }

    /// Returns its arguments, checked.
    pub(crate) fn args(&self) -> Result<Vec<Arg>, String> {
        let args: Vec<RawFields> = self.get("Args")?;
        let args = args.into_iter().enumerate().map(|(at, arg)| {
            let arg = Self(arg.with_spelling(["Name", "Type", "Value"].into_iter()));
            let value = arg.0.get("Value").ok_or_else(|| format!("argument {}: it has no Value", at + 1))?;
            value::read_arg(arg.text("Name")?, arg.text("Type")?, value)
        });
        args.collect()
    }

    /// Returns callbacks: `OnSuccess` or `OnError`.
    pub(crate) fn callbacks(&self, name: &str) -> Result<Vec<Self>, String> {
        let callbacks: Vec<Option<RawFields>> = self.get(name)?;
        let spelled = |fields: RawFields| Self(fields.with_spelling(fields_of_go().map(|(name, _)| name)));
        Ok(callbacks.into_iter().flatten().map(spelled).collect())
    }

    /// Returns the callback of a chord.
    pub(crate) fn chord_callback(&self) -> Result<Option<Self>, String> {
        let callback: Option<RawFields> = self.get("ChordCallback")?;
        Ok(callback.map(|fields| Self(fields.with_spelling(fields_of_go().map(|(name, _)| name)))))
    }

    /// Checks the fields that no getter has read.
    pub(crate) fn check(&self) -> Result<(), String> {
        for callback in self.callbacks("OnSuccess")?.iter().chain(&self.callbacks("OnError")?) {
            callback.text("Name")?;
            callback.check()?;
        }
        if let Some(callback) = self.chord_callback()? {
            callback.text("Name")?;
            callback.check()?;
        }
        for name in ["UUID", "RoutingKey", "GroupUUID", "BrokerMessageGroupId", "SQSReceiptHandle"] {
            self.text(name)?;
        }
        for name in ["GroupTaskCount", "RetryCount", "RetryTimeout"] {
            self.number(name)?;
        }
        for name in ["Immutable", "StopTaskDeletionOnError", "IgnoreWhenTaskNotRegistered"] {
            self.flag(name)?;
        }
        self.headers().map(drop)
    }

    /// Returns its arguments as they are written.
    pub(crate) fn raw_args(&self) -> Result<Vec<Box<RawValue>>, String> {
        self.get("Args")
    }

    /// Sets a field to this JSON.
    pub(crate) fn put_raw(&mut self, name: &str, value: Box<RawValue>) {
        self.0.put(name, value);
    }

    pub(crate) fn put_text(&mut self, name: &str, text: &str) {
        let mut out = String::new();
        write_text(&mut out, text);
        self.0.put(name, raw(out));
    }

    pub(crate) fn put_number(&mut self, name: &str, number: i64) {
        self.0.put(name, raw(number.to_string()));
    }

    pub(crate) fn put_headers(&mut self, headers: &RawFields) {
        let mut out = String::new();
        headers.write(&mut out);
        self.0.put("Headers", raw(out));
    }

    /// Sets the earliest time of its run. A time that it states already stays as it is written.
    pub(crate) fn put_eta(&mut self, eta: Option<Timestamp>) {
        if self.eta() == Ok(eta) {
            return;
        }
        match eta.and_then(|eta| jiff::Timestamp::from_microsecond(eta.as_micros()).ok()) {
            Some(eta) => self.put_text("ETA", &eta.to_string()),
            None => self.0.put("ETA", raw("null".to_owned())),
        }
    }

    /// Replaces its arguments.
    ///
    /// # Errors
    /// A sentence: Go machinery has no such type, or the value does not fit it.
    pub(crate) fn put_args(&mut self, args: &[Arg]) -> Result<(), String> {
        let mut out = String::new();
        for arg in args {
            out.push(if out.is_empty() { '[' } else { ',' });
            write_arg(&mut out, arg)?;
        }
        out.push_str(if args.is_empty() { "null" } else { "]" });
        self.0.put("Args", raw(out));
        Ok(())
    }
}

/// Names and empty values of the fields of a signature, in Go's order.
fn fields_of_go() -> impl Iterator<Item = (&'static str, &'static str)> + Clone {
    FIELDS.into_iter()
}

/// Returns the last instant in place of one that is written correctly and lies after it, as the end of the year 9999 does.
fn beyond_time(text: &str) -> Option<jiff::Timestamp> {
    let pieces = DateTimeParser::new().parse_pieces(text).ok()?;
    let is_instant = pieces.time().is_some() && pieces.to_numeric_offset().is_some();
    (is_instant && pieces.date().year() > 0).then_some(jiff::Timestamp::MAX)
}

/// Writes an argument as Go does.
fn write_arg(out: &mut String, arg: &Arg) -> Result<(), String> {
    out.push_str("{\"Name\":");
    write_text(out, &arg.name);
    out.push_str(",\"Type\":");
    write_text(out, &arg.kind);
    out.push_str(",\"Value\":");
    out.push_str(value::write(&arg.kind, &arg.value)?.get());
    out.push('}');
    Ok(())
}

/// Returns the next number of the Fibonacci sequence, 1, 2, 3, 5, 8, …: Go waits so many seconds before the next run.
pub(crate) fn next_retry_timeout(timeout: i64) -> i64 {
    let (mut a, mut b) = (1_i64, 2_i64);
    while a <= timeout && a < i64::MAX {
        (a, b) = (b, a.saturating_add(b));
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_gos() {
        let mut timeout = 0;
        let waits: Vec<i64> = (0..8)
            .map(|_| {
                timeout = next_retry_timeout(timeout);
                timeout
            })
            .collect();
        assert_eq!(waits, [1, 2, 3, 5, 8, 13, 21, 34]);
        assert_eq!((next_retry_timeout(4), next_retry_timeout(-7)), (5, 1));
        assert_eq!(next_retry_timeout(i64::MAX), i64::MAX);
    }

    #[test]
    fn bodies_that_are_no_task_are_named() {
        for (body, says) in [
            (&b""[..], "the body is empty"),
            (b" \n", "the body is empty"),
            (b"[1]", "not a JSON object"),
            (b"{", "not a JSON object"),
            (b"task", "not a JSON object"),
            (b"{\"UUID\":\"a\"} {}", "not a JSON object"),
        ] {
            let error = GoSignature::parse(body).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let error = GoSignature::parse(br#"{"uuid":5}"#).unwrap().text("UUID").unwrap_err();
        assert!(error.starts_with("UUID cannot be 5"), "{error}");
    }

    #[test]
    fn an_eta_is_an_instant() {
        let eta = |text: &str| GoSignature::parse(format!(r#"{{"ETA":{text}}}"#).as_bytes()).unwrap().eta();
        assert_eq!(eta("null"), Ok(None));
        assert_eq!(eta("\"1970-01-01T00:00:01.5Z\""), Ok(Some(Timestamp::from_micros(1_500_000))));
        assert_eq!(
            eta("\"1970-01-01T02:00:01.000001999+02:00\""),
            Ok(Some(Timestamp::from_micros(1_000_001)))
        );
        let last = Timestamp::from_micros(jiff::Timestamp::MAX.as_microsecond());
        for late in
            ["9999-12-31T23:59:59Z", "9999-12-31T00:00:00-01:00", "9999-12-31T23:59:59.999999999+00:00"]
        {
            assert_eq!(eta(&format!("\"{late}\"")), Ok(Some(last)), "{late}");
        }
        for wrong in [
            "\"2026-11-20T23:37:33\"",
            "\"9999-12-31T23:59:59\"",
            "\"9999-12-31Z\"",
            "\"tomorrow\"",
            "\"\"",
            "7",
        ] {
            assert!(eta(wrong).unwrap_err().starts_with("ETA "), "{wrong}");
        }
        let mut kept = GoSignature::parse(br#"{"ETA":"1970-01-01T00:00:01.000001999Z"}"#).unwrap();
        kept.put_eta(Some(Timestamp::from_micros(1_000_001)));
        assert!(kept.to_text().contains("1.000001999Z"), "the nanoseconds stay");
        kept.put_eta(Some(Timestamp::from_micros(1_100_000)));
        assert_eq!(kept.to_text(), r#"{"ETA":"1970-01-01T00:00:01.1Z"}"#);
    }

    #[test]
    fn what_is_not_known_is_kept() {
        let body = r#"{"UUID":"a","New":{"deep":[1.0,18446744073709551616]},"Name":"x"}"#;
        let mut signature = GoSignature::parse(body.as_bytes()).unwrap();
        assert_eq!(signature.to_text(), body);
        signature.put_number("RetryCount", 2);
        assert!(signature.to_text().starts_with(&body[..body.len() - 1]));
        let lossy = GoSignature::parse(b"{\"UUID\":\"a\xff\"}").unwrap();
        assert_eq!(lossy.text("UUID").unwrap(), "a\u{fffd}");
    }
}
