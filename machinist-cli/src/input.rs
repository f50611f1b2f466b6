//! Arguments of a task on the command line. Pure, except that `@FILE` reads a file.

use serde_json::Value;

use crate::spelling;

/// Reads an argument without a name: JSON if it parses as JSON, else text; `@FILE` is the contents of a file, `@@` an
/// `@` itself. A number that would arrive with another spelling is text.
///
/// # Errors
/// A sentence that names the file that could not be read, or the number in a JSON text that would arrive with another
/// value.
pub(crate) fn value(text: &str) -> Result<Value, String> {
    match text.strip_prefix('@') {
        Some(rest) if rest.starts_with('@') => spelling::argument(rest),
        Some("") => Err("the argument \"@\" names no file; write @FILE, or @@ for an @ itself".to_owned()),
        Some(file) => match std::fs::read_to_string(file) {
            Ok(contents) => spelling::argument(&contents),
            Err(error) => Err(format!(
                "the argument \"@{file}\" names a file that cannot be read: {error}; write @@ for an @ itself"
            )),
        },
        None => spelling::argument(text),
    }
}

/// Reads an argument with a name, `name=value`.
///
/// # Errors
/// A sentence that names the problem.
pub(crate) fn named(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, rest)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value(rest)?)),
        _ => Err(format!("--arg {text:?} has no name; write --arg name=value")),
    }
}

/// Splits `key=value` of `--label`. The value is text as it stands.
pub(crate) fn label(text: &str) -> Result<(&str, &str), String> {
    text.split_once('=').ok_or_else(|| format!("--label {text:?} has no value; write --label key=value"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_json_and_the_rest_is_text() {
        for (text, expected) in [
            ("2", json!(2)),
            ("-1", json!(-1)),
            ("1.5", json!(1.5)),
            ("true", json!(true)),
            ("null", json!(null)),
            ("\"2\"", json!("2")),
            ("[1, 2]", json!([1, 2])),
            ("cat.png", json!("cat.png")),
            ("{not json", json!("{not json")),
            ("02", json!("02")),
            ("", json!("")),
            ("@@home", json!("@home")),
        ] {
            assert_eq!(value(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn numbers_arrive_as_they_are_written_or_are_refused() {
        assert_eq!(value("1.10").unwrap(), json!("1.10"));
        assert_eq!(value("[1.10, 2]").unwrap(), json!([1.1, 2]));
        let error = value("{\"id\": 12345678901234567890123}").unwrap_err();
        assert_eq!(
            error,
            "the number 12345678901234567890123 would arrive with another value; write it in quotes"
        );
    }

    #[test]
    fn a_file_stands_for_its_contents() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let argument = format!("@{}", file.path().display());
        std::fs::write(&file, "{\"a\": 1}\n").unwrap();
        assert_eq!(value(&argument).unwrap(), json!({"a": 1}));
        std::fs::write(&file, "two\nlines\n").unwrap();
        assert_eq!(value(&argument).unwrap(), json!("two\nlines\n"));
    }

    #[test]
    fn wrong_arguments_are_reported() {
        assert!(value("@/nowhere").unwrap_err().contains("\"@/nowhere\" names a file that cannot be read"));
        assert!(value("@").unwrap_err().contains("names no file"));
        assert_eq!(named("a=1=2").unwrap(), ("a".to_owned(), json!("1=2")));
        assert_eq!(named("width").unwrap_err(), "--arg \"width\" has no name; write --arg name=value");
        assert_eq!(label("team=a=1"), Ok(("team", "a=1")));
        assert_eq!(label("team").unwrap_err(), "--label \"team\" has no value; write --label key=value");
        assert!(named("=1").is_err());
    }

    #[test]
    fn a_deep_argument_harms_nobody() {
        let deep = "[".repeat(200_000);
        assert!(value(&deep).unwrap().is_string());
    }
}
