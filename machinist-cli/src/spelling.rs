//! Values and their spelling: text that is read as JSON must not change its meaning. Pure.
//!
//! A JSON number becomes an integer of 64 bits or a float, which is written in one way only: 1.10 would become 1.1, and
//! an integer of 20 digits would lose some. A number alone whose spelling would change stays text. Inside of an array or an
//! object the spelling may change, if the number is the same: text in place of the whole would change more.

use serde_json::Value;

/// Reads JSON that keeps its meaning, else text. A number alone keeps its spelling as well. Deep nesting is text too:
/// the parser refuses it before it uses up the stack.
pub(crate) fn json_or_text(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(Value::Number(number)) if number.to_string() != text.trim() => Value::from(text.trim()),
        Ok(Value::Number(number)) => Value::Number(number),
        Ok(value) if first_changed_number(text).is_none() => value,
        _ => Value::from(text),
    }
}

/// Returns a value as it would be written as an argument: text without quotes, unless it would be read as something else.
pub(crate) fn as_argument(value: &Value) -> String {
    match value {
        Value::String(text) if json_or_text(text).is_string() => text.clone(),
        other => other.to_string(),
    }
}

/// Returns the first number of a JSON text that would have another value after it is read.
pub(crate) fn first_changed_number(json: &str) -> Option<&str> {
    numbers(json).find(|number| match serde_json::from_str::<Value>(number) {
        Ok(Value::Number(read)) => digits(&read.to_string()) != digits(number),
        _ => true,
    })
}

/// Returns the numbers of a JSON text, as they are written.
fn numbers(json: &str) -> impl Iterator<Item = &str> {
    let mut rest = json;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            rest = &rest[at..];
            if let Some(text) = rest.strip_prefix('"') {
                rest = after_string(text);
                continue;
            }
            let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(rest.len());
            let (number, after) = rest.split_at(end);
            rest = after;
            return Some(number);
        }
    })
}

/// Returns what follows a string whose first quote was read.
fn after_string(text: &str) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

/// Returns sign, digits and exponent of a number, without zeros at either end: equal for equal numbers.
fn digits(number: &str) -> (bool, String, i64) {
    let (number, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent: i64 = exponent.trim_start_matches('+').parse().unwrap_or(i64::MIN);
    let negative = number.starts_with('-');
    let number = number.trim_start_matches('-');
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all = format!("{whole}{fraction}");
    let significant = all.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return (negative, String::new(), 0);
    }
    let zeros = all.len() - all.trim_end_matches('0').len();
    let fraction = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let zeros = i64::try_from(zeros).unwrap_or(i64::MAX);
    (negative, significant.to_owned(), exponent.saturating_sub(fraction).saturating_add(zeros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_that_would_be_spelled_anew_stays_text() {
        for number in ["1.10", "1e10", "-0", "12345678901234567890123", "18446744073709551616", "1E2", "0.10"]
        {
            assert_eq!(json_or_text(number), json!(number));
        }
        for number in ["1", "-1", "1.5", "0", "18446744073709551615", "-9223372036854775808", "1e300"] {
            let read = json_or_text(number);
            assert_eq!(read.to_string().trim_matches('"'), number);
        }
        assert_eq!(json_or_text(" 5\n"), json!(5));
        assert_eq!(json_or_text("1.10\n"), json!("1.10"));
    }

    #[test]
    fn json_that_would_change_stays_text() {
        for same in
            [r#"{"price": 1.10, "n": -2e3}"#, r#"["12345678901234567890123", "\"1.10", 0.0, -0.0]"#, "[1e2]"]
        {
            assert!(!json_or_text(same).is_string(), "{same}");
            assert_eq!(first_changed_number(same), None);
        }
        let lost = r#"{"id": 12345678901234567890123}"#;
        assert_eq!(json_or_text(lost), json!(lost));
        assert_eq!(first_changed_number(lost), Some("12345678901234567890123"));
        assert_eq!(first_changed_number("[0.1, 0.12345678901234567890]"), Some("0.12345678901234567890"));
    }

    #[test]
    fn equal_numbers_have_equal_digits() {
        for (one, other) in
            [("1.10", "1.1"), ("1e2", "100"), ("0.001", "1e-3"), ("0", "0.0"), ("10.0", "1E+1")]
        {
            assert_eq!(digits(one), digits(other), "{one} {other}");
        }
        for (one, other) in [("1", "-1"), ("-0", "0"), ("1e2", "1e3"), ("12", "1.2"), ("101", "11")] {
            assert_ne!(digits(one), digits(other), "{one} {other}");
        }
    }

    #[test]
    fn deep_nesting_is_text() {
        let deep = "[".repeat(200_000);
        assert!(json_or_text(&deep).is_string());
    }
}
