//! Values of Go's types: the check of what came, and the text of what goes.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use machinist_core::Arg;
use serde_json::{Number, Value, value::RawValue};

use crate::json::{raw, write_f32, write_f64, write_text};

/// Reads a value of this type.
///
/// # Errors
/// A sentence: the type is none of Go machinery's, or the value does not fit it.
pub(crate) fn read(kind: &str, value: &RawValue) -> Result<Value, String> {
    let text = value.get();
    if let "[]byte" | "[]uint8" = kind {
        return read_bytes(text).ok_or_else(|| unfit(kind, text));
    }
    if let Some(item) = kind.strip_prefix("[]") {
        if !is_scalar(item) {
            return Err(unknown(kind));
        }
        let Some(items) = serde_json::from_str::<Option<Vec<Box<RawValue>>>>(text).ok() else {
            return Err(unfit(kind, text));
        };
        // Go writes a slice without items as `null` too.
        let Some(items) = items else { return Ok(Value::Null) };
        let items = items.iter().map(|value| read_scalar(item, value.get()));
        return items.collect::<Option<Vec<_>>>().map(Value::Array).ok_or_else(|| unfit(kind, text));
    }
    if !is_scalar(kind) {
        return Err(unknown(kind));
    }
    read_scalar(kind, text).ok_or_else(|| unfit(kind, text))
}

/// Writes a value of this type as Go does.
///
/// # Errors
/// A sentence: Go machinery has no such type, or the value does not fit it.
pub(crate) fn write(kind: &str, value: &Value) -> Result<Box<RawValue>, String> {
    let mut out = String::new();
    write_plain(kind.strip_prefix("[]").unwrap_or(kind), value, &mut out);
    let written = raw(out);
    read(kind, &written)?;
    Ok(written)
}

/// Reads an argument or a result of a message of Go.
///
/// # Errors
/// A sentence: see [`read`].
pub(crate) fn read_arg(name: String, kind: String, value: &RawValue) -> Result<Arg, String> {
    let mut arg = Arg::from_value(read(&kind, value)?);
    (arg.name, arg.kind) = (name, kind);
    Ok(arg)
}

fn is_scalar(kind: &str) -> bool {
    matches!(kind, "bool" | "string" | "float32" | "float64") || bounds(kind).is_some()
}

/// Returns the smallest and the largest number of an integer type.
fn bounds(kind: &str) -> Option<(i128, i128)> {
    Some(match kind {
        "int8" => (i8::MIN.into(), i8::MAX.into()),
        "int16" => (i16::MIN.into(), i16::MAX.into()),
        "int32" => (i32::MIN.into(), i32::MAX.into()),
        "int" | "int64" => (i64::MIN.into(), i64::MAX.into()),
        "uint8" => (0, u8::MAX.into()),
        "uint16" => (0, u16::MAX.into()),
        "uint32" => (0, u32::MAX.into()),
        "uint" | "uint64" => (0, u64::MAX.into()),
        _ => return None,
    })
}

fn read_scalar(kind: &str, text: &str) -> Option<Value> {
    if let Some((min, max)) = bounds(kind) {
        let number: i128 = text.parse().ok().filter(|number| (min..=max).contains(number))?;
        return Number::from_i128(number).map(Value::Number);
    }
    match kind {
        "bool" => serde_json::from_str(text).ok().map(Value::Bool),
        "string" => serde_json::from_str(text).ok().map(Value::String),
        "float32" => {
            let float: f64 = serde_json::from_str(text).ok()?;
            (float as f32).is_finite().then(|| Number::from_f64(float).map(Value::Number))?
        }
        "float64" => Number::from_f64(serde_json::from_str(text).ok()?).map(Value::Number),
        _ => None,
    }
}

fn read_bytes(text: &str) -> Option<Value> {
    let base64 = serde_json::from_str::<Option<String>>(text).ok()?;
    let Some(base64) = base64 else { return Some(Value::Null) };
    BASE64.decode(&base64).ok().map(|_| Value::String(base64))
}

/// Writes a value whose items have this type. What does not fit is found when the text is read.
fn write_plain(kind: &str, value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_plain(kind, item, out);
            }
            out.push(']');
        }
        Value::Number(number) => match (kind, number.as_f64()) {
            ("float32", Some(float)) => write_f32(out, float as f32),
            ("float64", Some(float)) => write_f64(out, float),
            // A program in another language may know only floats.
            (_, Some(float)) if number.is_f64() && float.fract() == 0.0 => write_f64(out, float),
            _ => out.push_str(&number.to_string()),
        },
        Value::String(text) => write_text(out, text),
        Value::Null | Value::Bool(_) | Value::Object(_) => out.push_str(&value.to_string()),
    }
}

/// The sentence that Go's worker records.
fn unknown(kind: &str) -> String {
    format!("Reflect task args error: {kind} is not one of supported types")
}

fn unfit(kind: &str, text: &str) -> String {
    let shown: String = text.chars().take(80).collect();
    format!("the value {shown} is no {kind}: it has another type, or lies outside of the range of the type")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn reads(kind: &str, text: &str) -> Result<Value, String> {
        read(kind, &raw(text.to_owned()))
    }

    #[test]
    fn what_does_not_fit_its_type_is_named() {
        for (kind, text) in [
            ("int8", "128"),
            ("int8", "-129"),
            ("uint8", "-1"),
            ("uint64", "18446744073709551616"),
            ("int64", "9223372036854775808"),
            ("int64", "1.0"),
            ("int64", "1e3"),
            ("int64", "\"1\""),
            ("int64", "null"),
            ("bool", "1"),
            ("string", "1"),
            ("float32", "1e39"),
            ("float64", "1e400"),
            ("float64", "\"NaN\""),
            ("[]int8", "[1,128]"),
            ("[]byte", "\"%\""),
            ("[]string", "\"a\""),
        ] {
            let error = reads(kind, text).unwrap_err();
            assert!(
                error.contains(&format!("is no {kind}:")) && error.contains(text),
                "{kind} {text}: {error}"
            );
        }
        for kind in ["decimal", "json", "[][]int64", "[]json", ""] {
            let error = reads(kind, "1").unwrap_err();
            assert_eq!(error, format!("Reflect task args error: {kind} is not one of supported types"));
        }
    }

    #[test]
    fn numbers_never_pass_through_a_float() {
        for (kind, text) in [
            ("int64", "-9223372036854775808"),
            ("uint64", "18446744073709551615"),
            ("int", "9007199254740993"),
        ] {
            assert_eq!(reads(kind, text).unwrap().to_string(), text);
            assert_eq!(write(kind, &reads(kind, text).unwrap()).unwrap().get(), text);
        }
        assert_eq!(reads("int64", "-0").unwrap(), json!(0));
        assert_eq!(write("float64", &json!(-0.0)).unwrap().get(), "-0");
        assert_eq!(write("int64", &json!(3.0)).unwrap().get(), "3");
        assert!(write("int64", &json!(3.5)).is_err());
        assert_eq!(write("[]byte", &json!("AQL/")).unwrap().get(), "\"AQL/\"");
        assert_eq!(reads("[]int64", "null").unwrap(), Value::Null);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            a: i64, b: u64, c: f64, d: f32, e: String, f: Vec<u8>, g: Vec<i32>, h: Vec<String>, i: bool,
        ) {
            for (kind, value) in [
                ("int64", json!(a)), ("uint64", json!(b)), ("string", json!(e)), ("[]uint8", json!(BASE64.encode(&f))),
                ("[]int32", json!(g)), ("[]string", json!(h)), ("bool", json!(i)),
            ] {
                let written = write(kind, &value).unwrap();
                prop_assert_eq!(read(kind, &written).unwrap(), value);
            }
            for kind in ["int8", "int16", "int32", "uint8", "uint16", "uint32"] {
                let (min, max) = bounds(kind).unwrap();
                prop_assert_eq!(write(kind, &json!(a)).is_ok(), (min..=max).contains(&i128::from(a)));
            }
            if c.is_finite() {
                let read = read("float64", &write("float64", &json!(c)).unwrap()).unwrap();
                prop_assert_eq!(read.as_f64().unwrap().to_bits(), c.to_bits());
            }
            if d.is_finite() {
                let read = read("float32", &write("float32", &json!(d)).unwrap()).unwrap();
                prop_assert_eq!((read.as_f64().unwrap() as f32).to_bits(), d.to_bits());
            }
        }
    }
}
