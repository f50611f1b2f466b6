//! Arguments of a call, as the fields of a form have them, by the types that the workers have told. Pure.

use machinist::{args::ArgInfo, spelling};
use serde_json::Value;

/// Returns what a field of a form is called.
pub(crate) fn label(index: usize, arg: &ArgInfo) -> String {
    arg.name.clone().unwrap_or_else(|| format!("argument {}", index + 1))
}

/// Returns the type of each of any number of arguments, which one field of several lines has.
pub(crate) fn repeated(arg: &ArgInfo) -> Option<&str> {
    arg.kind.as_deref()?.strip_prefix("...")
}

/// Reads the arguments of a task from one field for each that is known; from the lines of one field if any are taken.
///
/// An empty field is an empty text where text is taken. Another one is left out at the end, and `null` before others.
///
/// # Errors
/// A sentence that names the field and its problem.
pub(crate) fn read(known: Option<&[ArgInfo]>, fields: &[String]) -> Result<Vec<Value>, String> {
    let Some(known) = known else {
        return fields.iter().flat_map(|field| lines(field)).map(spelling::argument).collect();
    };
    if known.len() != fields.len() {
        let (taken, given) = (known.len(), fields.len());
        return Err(format!(
            "the task takes {taken} arguments, and the form has {given}; open the form again"
        ));
    }
    let mut args: Vec<Option<Value>> = Vec::new();
    for (index, (arg, field)) in known.iter().zip(fields).enumerate() {
        let wrong = |problem: String| format!("{}: {problem}", label(index, arg));
        match repeated(arg) {
            Some(kind) => {
                let read: Result<Vec<_>, _> = lines(field).map(|line| value(Some(kind), line)).collect();
                args.extend(read.map_err(wrong)?);
            }
            None => args.push(value(arg.kind.as_deref(), field).map_err(wrong)?),
        }
    }
    while args.last().is_some_and(Option::is_none) {
        args.pop();
    }
    Ok(args.into_iter().map(Option::unwrap_or_default).collect())
}

fn lines(field: &str) -> impl Iterator<Item = &str> {
    field.lines().filter(|line| !line.trim().is_empty())
}

/// Reads a field; `None` if it is empty and its type is not text.
fn value(kind: Option<&str>, field: &str) -> Result<Option<Value>, String> {
    let bare = field.trim();
    match kind {
        None => spelling::argument(field).map(Some),
        Some("string") => Ok(Some(Value::from(field))),
        Some(_) if bare.is_empty() => Ok(None),
        Some("bool") => match bare {
            "true" => Ok(Some(Value::from(true))),
            "false" => Ok(Some(Value::from(false))),
            _ => Err(format!("{bare:?} is neither true nor false")),
        },
        Some(kind) if kind.starts_with("int") || kind.starts_with("uint") => integer(kind, bare).map(Some),
        Some(kind) if kind.starts_with("float") => {
            let number: Result<serde_json::Number, _> = serde_json::from_str(bare);
            number.map(|number| Some(Value::Number(number))).map_err(|_| format!("{bare:?} is no number"))
        }
        Some(_) => spelling::json(bare).map(Some),
    }
}

/// Reads an integer that has room in its type, such as `int8`.
fn integer(kind: &str, text: &str) -> Result<Value, String> {
    let bits: u32 = kind.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(64);
    let bits = bits.clamp(1, 64);
    let (least, most) = match kind.starts_with('u') {
        true => (0, (1_i128 << bits) - 1),
        false => (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1),
    };
    let number: Option<i128> = text.parse().ok().filter(|number| (least..=most).contains(number));
    let number =
        number.ok_or_else(|| format!("{text:?} is no {kind}: a whole number of {least} to {most}"))?;
    // INVARIANT: it has room in one of the two.
    Ok(i64::try_from(number).map_or_else(|_| Value::from(number as u64), Value::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(types: &[&str]) -> Vec<ArgInfo> {
        let types: Vec<Value> = types.iter().map(|kind| json!({ "name": null, "type": kind })).collect();
        serde_json::from_value(Value::Array(types)).unwrap()
    }

    fn read_as(types: &[&str], fields: &[&str]) -> Result<Value, String> {
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        read(Some(&args(types)), &fields).map(Value::Array)
    }

    #[test]
    fn fields_are_read_by_their_types() {
        for (kind, field, expected) in [
            ("string", " 12 ", json!(" 12 ")),
            ("string", "", json!("")),
            ("int64", " -12 ", json!(-12)),
            ("uint64", "18446744073709551615", json!(u64::MAX)),
            ("float64", "1.10", json!(1.1)),
            ("bool", "true", json!(true)),
            ("[]int64", "[1, 2]", json!([1, 2])),
            ("json", "{\"a\": null}", json!({ "a": null })),
        ] {
            assert_eq!(read_as(&[kind], &[field]), Ok(json!([expected])), "{kind} {field:?}");
        }
        for (kind, field, problem) in [
            ("int64", "1.5", "argument 1: \"1.5\" is no int64"),
            ("int8", "128", "-128 to 127"),
            ("uint8", "-1", "0 to 255"),
            ("float64", "NaN", "is no number"),
            ("bool", "yes", "neither true nor false"),
            ("json", "{", "it is no JSON"),
            ("json", "12345678901234567890123", "would arrive with another value"),
        ] {
            let error = read_as(&[kind], &[field]).unwrap_err();
            assert!(error.contains(problem), "{kind} {field:?}: {error}");
        }
    }

    #[test]
    fn an_empty_field_is_left_out_at_the_end_and_null_before_others() {
        assert_eq!(read_as(&["int64", "int64"], &["1", ""]), Ok(json!([1])));
        assert_eq!(read_as(&["int64", "int64"], &["", "1"]), Ok(json!([null, 1])));
        assert_eq!(read_as(&["string", "bool"], &["", " "]), Ok(json!([""])));
        assert_eq!(read_as(&[], &[]), Ok(json!([])));
    }

    #[test]
    fn lines_are_the_arguments_of_which_there_may_be_any_number() {
        assert_eq!(read_as(&["string", "...int64"], &["a", "1\r\n\r\n2"]), Ok(json!(["a", 1, 2])));
        assert_eq!(read_as(&["string", "...int64"], &["a", ""]), Ok(json!(["a"])));
        assert!(read_as(&["...int64"], &["1\nx"]).unwrap_err().contains("\"x\" is no int64"));
        let any = ["cat.png\r\n640\r\n{\"a\": 1}".to_owned()];
        assert_eq!(read(None, &any), Ok(vec![json!("cat.png"), json!(640), json!({ "a": 1 })]));
        assert_eq!(read(None, &[]), Ok(Vec::new()));
    }

    #[test]
    fn a_form_of_another_version_of_the_task_is_refused() {
        let error = read_as(&["int64"], &["1", "2"]).unwrap_err();
        assert!(error.contains("takes 1 arguments, and the form has 2"), "{error}");
    }
}
