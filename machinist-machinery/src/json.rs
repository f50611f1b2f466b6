//! JSON as Go writes it, and objects that keep every field.
//!
//! Values stay as text until somebody needs them. A number that passes through is therefore never a float in between,
//! and what is not known here goes on as it came.

use std::{borrow::Cow, fmt::Write as _, sync::LazyLock};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Names of fields that Go writes. Those of a signature come first, and no two of all differ by case alone.
const NAMES: [&str; 32] = [
    "UUID",
    "Name",
    "RoutingKey",
    "ETA",
    "GroupUUID",
    "GroupTaskCount",
    "Args",
    "Headers",
    "Priority",
    "Immutable",
    "RetryCount",
    "RetryTimeout",
    "OnSuccess",
    "OnError",
    "ChordCallback",
    "BrokerMessageGroupId",
    "SQSReceiptHandle",
    "StopTaskDeletionOnError",
    "IgnoreWhenTaskNotRegistered",
    "Type",
    "Value",
    "TaskUUID",
    "TaskName",
    "State",
    "Results",
    "Error",
    "CreatedAt",
    "TTL",
    "TaskUUIDs",
    "ChordTriggered",
    "Lock",
    "TriggeredBy",
];

/// Values that most fields of a message have, besides those that serde_json knows.
static USUAL_VALUES: LazyLock<[Box<RawValue>; 4]> =
    LazyLock::new(|| ["\"\"", "0", "{}", "[]"].map(|text| raw(text.to_owned())));

/// Fields of an object, in their order, each with the text of its value.
///
/// A message of Go has nineteen of them, and most have a value that is known here: neither those nor their names are copied.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawFields {
    fields: Vec<(Cow<'static, str>, Cow<'static, RawValue>)>,
    /// `true` if Go writes all of these names as they were read, and each is there once.
    plain: bool,
}

impl RawFields {
    /// Spells these names of Go as they are written here. Names of Go differ by more than case, and Go reads any case; the
    /// last of several fields counts.
    pub(crate) fn with_spelling(mut self, names: impl Iterator<Item = &'static str>) -> Self {
        if self.plain {
            return self;
        }
        for name in names {
            let mut last = None;
            for (at, (field, _)) in self.fields.iter().enumerate() {
                if field.eq_ignore_ascii_case(name) {
                    last = Some(at);
                }
            }
            let Some(last) = last else { continue };
            self.fields[last].0 = Cow::Borrowed(name);
            let mut at = 0;
            self.fields.retain(|(field, _)| {
                at += 1;
                at == last + 1 || !field.eq_ignore_ascii_case(name)
            });
        }
        self
    }

    /// Removes a field.
    pub(crate) fn remove(&mut self, name: &str) {
        self.fields.retain(|(field, _)| field != name);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.fields.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Sets a field, in its place if there is one.
    pub(crate) fn put(&mut self, name: &str, value: Box<RawValue>) {
        let value = Cow::Owned(value);
        match self.fields.iter_mut().find(|(field, _)| field == name) {
            Some((_, found)) => *found = value,
            None => {
                self.plain = false;
                self.fields.push((name.to_owned().into(), value));
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&RawValue> {
        self.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// Writes the fields in braces.
    pub(crate) fn write(&self, out: &mut String) {
        out.push('{');
        for (at, (name, value)) in self.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            write_text(out, name);
            out.push(':');
            out.push_str(value.get());
        }
        out.push('}');
    }
}

impl<'de> Deserialize<'de> for RawFields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;

        #[rustfmt::skip]
        impl<'de> Visitor<'de> for Fields { type Value = RawFields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawFields, A::Error> {
                let mut fields = Vec::with_capacity(MANY_FIELDS);
                let (mut seen, mut plain) = (0_u64, true);
                while let Some((FieldName(place, name), value)) = map.next_entry()? {
                    let bit = place.map_or(0, |place| 1_u64 << place);
                    plain &= bit > 0 && seen & bit == 0;
                    seen |= bit;
                    fields.push((name, usual(value)));
                }
                Ok(RawFields { fields, plain })
            }
        }

        from.deserialize_map(Fields)
    }
}

/// Number of fields for which there is room at first.
const MANY_FIELDS: usize = 20;

/// Name of a field, and its place among the names of Go.
struct FieldName(Option<usize>, Cow<'static, str>);

impl<'de> Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Name;

        #[rustfmt::skip]
        impl Visitor<'_> for Name { type Value = FieldName;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<FieldName, E> {
                let place = NAMES.iter().position(|known| *known == name);
                Ok(FieldName(place, place.map_or_else(|| name.to_owned().into(), |place| NAMES[place].into())))
            }
        }

        from.deserialize_str(Name)
    }
}

/// Returns a value that outlives its text, without a copy if it is one of those that most fields have.
fn usual(value: &RawValue) -> Cow<'static, RawValue> {
    let known = match value.get() {
        "null" => RawValue::NULL,
        "false" => RawValue::FALSE,
        "true" => RawValue::TRUE,
        text => match USUAL_VALUES.iter().find(|usual| usual.get() == text) {
            Some(usual) => usual,
            None => return Cow::Owned(value.to_owned()),
        },
    };
    Cow::Borrowed(known)
}

/// Returns the raw value of a JSON text that was written here.
pub(crate) fn raw(text: String) -> Box<RawValue> {
    // A text that is no JSON is never made here; `null` is what Go writes for no value.
    RawValue::from_string(text).unwrap_or_default()
}

/// Writes a text as Go does, with `<`, `>`, `&` and the line separators of Unicode escaped.
pub(crate) fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Writes a float of 64 bits as Go does: the shortest digits, and an exponent for what is very small or very large.
pub(crate) fn write_f64(out: &mut String, float: f64) {
    let exponent = float != 0.0 && !(1e-6..1e21).contains(&float.abs());
    let text = if exponent { format!("{float:e}") } else { float.to_string() };
    out.push_str(&signed_exponent(text));
}

/// Writes a float of 32 bits as Go does.
pub(crate) fn write_f32(out: &mut String, float: f32) {
    let exponent = float != 0.0 && !(1e-6..1e21).contains(&float.abs());
    let text = if exponent { format!("{float:e}") } else { float.to_string() };
    out.push_str(&signed_exponent(text));
}

/// Go writes `1e+300`, Rust `1e300`.
fn signed_exponent(text: String) -> String {
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f64_text(float: f64) -> String {
        let mut out = String::new();
        write_f64(&mut out, float);
        out
    }

    #[test]
    fn floats_look_as_go_writes_them() {
        for (float, text) in [
            (3.0, "3"),
            (0.1, "0.1"),
            (-0.0, "-0"),
            (0.0, "0"),
            (1e300, "1e+300"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
            (1e-6, "0.000001"),
            (1.5e-7, "1.5e-7"),
            (-1e-9, "-1e-9"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
        ] {
            assert_eq!(f64_text(float), text);
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), float.to_bits());
        }
        let mut out = String::new();
        write_f32(&mut out, 0.1);
        assert_eq!(out, "0.1");
    }

    #[test]
    fn texts_are_escaped_as_go_escapes_them() {
        let mut out = String::new();
        write_text(&mut out, "ü<&>\"q\"\\ \n\r\t\u{8}\u{c}\u{1}\u{7f} \u{2028}\u{2029} 😀");
        let go = "\"ü\\u003c\\u0026\\u003e\\\"q\\\"\\\\ \\n\\r\\t\\b\\f\\u0001\u{7f} \\u2028\\u2029 😀\"";
        assert_eq!(out, go);
    }

    #[test]
    fn fields_that_are_read_twice_or_spelled_otherwise_are_not_plain() {
        for (text, plain) in [
            (r#"{"UUID":"a","Args":null,"ETA":"x"}"#, true),
            (r#"{"UUID":"a","UUID":"b"}"#, false),
            (r#"{"UUID":"a","uuid":"b"}"#, false),
            (r#"{"UUID":"a","\u0055UID":"b"}"#, false),
            (r#"{"more":1}"#, false),
        ] {
            assert_eq!(serde_json::from_str::<RawFields>(text).unwrap().plain, plain, "{text}");
        }
        let mut names = NAMES.map(str::to_ascii_lowercase).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len(), "their spelling tells them apart");
    }

    #[test]
    fn fields_are_found_in_any_case_and_the_last_counts() {
        let mut fields: RawFields =
            serde_json::from_str(r#"{"uuid":"a","x":1.0,"UUID":"b","y":[ 2 ]}"#).unwrap();
        fields = fields.with_spelling(["UUID"].into_iter());
        assert_eq!(fields.get("UUID").unwrap().get(), "\"b\"");
        fields.remove("UUID");
        fields.put("x", raw("2".to_owned()));
        let mut out = String::new();
        fields.write(&mut out);
        assert_eq!(out, r#"{"x":2,"y":[ 2 ]}"#);
    }
}
