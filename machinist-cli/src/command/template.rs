//! Templates of a command's arguments, and the task's arguments that fill them. Pure.
//!
//! Each template becomes exactly one argument, and no shell reads it, so no value can become a second argument or
//! another command. Nor can it become an option: a value at the beginning of an argument must not begin with a dash,
//! unless the argument stands after `--` or the task allows it. Before the first operand that holds for numbers too: -9 is a
//! signal of `kill`, and a count of `head`.

use std::collections::BTreeMap;

use machinist::Arg;
use serde_json::Value;

/// One argument of a command line, with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
    dashes: Dashes,
}

/// Values with which an argument may begin although they begin with a dash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dashes {
    None,
    /// Negative numbers: an operand stands before the argument, and programs take short options of digits only before
    /// their operands.
    Numbers,
    All,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Argument(usize),
}

/// Reads the templates of a command's arguments. `dash_values` allows values that begin with a dash everywhere.
pub(crate) fn arguments(
    texts: &[String],
    names: Option<&[String]>,
    dash_values: bool,
) -> Result<Vec<Template>, String> {
    let mut dashes = if dash_values { Dashes::All } else { Dashes::None };
    let mut templates = Vec::with_capacity(texts.len());
    for text in texts {
        let template = Template { dashes, ..Template::parse(text, names)? };
        if text == "--" {
            dashes = Dashes::All;
        } else if dashes == Dashes::None && template.is_constant() && !text.starts_with('-') {
            dashes = Dashes::Numbers;
        }
        templates.push(template);
    }
    Ok(templates)
}

impl Template {
    /// Reads a template: `{name}`, `{0}`, and `{{` and `}}` for braces. `names` are the task's argument names, if it has
    /// any.
    pub(crate) fn parse(text: &str, names: Option<&[String]>) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
            } else if brace == "}" {
                literal.push('}');
            } else {
                let Some((word, after)) = rest.split_once('}') else {
                    return Err(format!(
                        "{text:?} opens a brace and does not close it; write {{{{ for a brace itself"
                    ));
                };
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::Argument(position(word, names)?));
                rest = after;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { parts, dashes: Dashes::None })
    }

    /// Returns `true` if the template has no placeholder.
    pub(crate) fn is_constant(&self) -> bool {
        !self.parts.iter().any(|part| matches!(part, Part::Argument(_)))
    }

    /// Returns the text with the arguments filled in.
    pub(crate) fn fill(&self, arguments: &Arguments) -> Result<String, String> {
        let mut filled = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Argument(at) => match arguments.values.get(*at) {
                    Some(value) => filled.push_str(&plain(value)),
                    None => {
                        return Err(format!(
                            "argument {at} is missing: only {} were sent",
                            arguments.values.len()
                        ));
                    }
                },
            }
        }
        if filled.contains('\0') {
            return Err("an argument holds a NUL character, which no command line can carry".to_owned());
        }
        let is_allowed = match self.dashes {
            Dashes::None => false,
            Dashes::Numbers => is_number(&filled),
            Dashes::All => true,
        };
        if filled.starts_with('-') && !matches!(self.parts.first(), Some(Part::Text(_))) && !is_allowed {
            return Err("a value that begins with a dash would be an option of the program; the worker's \
                        machinist.toml allows it by \"--\" before the placeholder or by dash_values = true"
                .to_owned());
        }
        Ok(filled)
    }
}

fn is_number(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || b"-+.eE".contains(&byte);
    text.bytes().all(is_digit) && text.parse::<f64>().is_ok()
}

fn position(word: &str, names: Option<&[String]>) -> Result<usize, String> {
    if let Some(at) = names.unwrap_or_default().iter().position(|name| name == word) {
        return Ok(at);
    }
    if let Ok(at) = word.parse::<usize>() {
        return match names {
            Some(names) if at >= names.len() => {
                Err(format!("{{{at}}} is out of range: args names {} arguments, counted from 0", names.len()))
            }
            _ => Ok(at),
        };
    }
    let known = match names {
        Some(names) => format!("args names {}", names.join(", ")),
        None => "there is no args list".to_owned(),
    };
    Err(format!("unknown placeholder {{{word}}}: {known}; write {{{{ for a brace itself"))
}

/// Returns a value as it is written on a command line: text without quotes, everything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A task's arguments, by position and by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Arguments {
    /// All arguments, in order.
    pub(crate) values: Vec<Value>,
    /// Arguments with a name, by name.
    pub(crate) named: BTreeMap<String, Value>,
}

impl Arguments {
    /// Assigns the sent arguments to the positions of `names`: arguments without a name fill them from the left, the
    /// others go to the position of their name, and each position is filled exactly once. Without `names` any arguments
    /// are accepted in the order in which they were sent.
    pub(crate) fn bind(sent: Vec<Arg>, names: Option<&[String]>) -> Result<Self, String> {
        let Some(names) = names else {
            let named = sent.iter().filter(|a| !a.name.is_empty()).map(|a| (a.name.clone(), a.value.clone()));
            return Ok(Self { named: named.collect(), values: sent.into_iter().map(|a| a.value).collect() });
        };
        let expects = || format!("the task takes {} ({})", names.len(), names.join(", "));
        let mut places: Vec<Option<Value>> = vec![None; names.len()];
        let mut next = 0;
        let count = sent.len();
        for argument in sent {
            let at = if argument.name.is_empty() {
                next += 1;
                next - 1
            } else {
                let at = names.iter().position(|name| *name == argument.name);
                at.ok_or_else(|| format!("there is no argument named {:?}; {}", argument.name, expects()))?
            };
            match places.get_mut(at) {
                None => return Err(format!("{count} arguments were sent, and {}", expects())),
                Some(Some(_)) => return Err(format!("argument {:?} was sent twice", names[at])),
                Some(place) => *place = Some(argument.value),
            }
        }
        if let Some(missing) = places.iter().position(Option::is_none) {
            return Err(format!("argument {:?} is missing; {}", names[missing], expects()));
        }
        let values: Vec<Value> = places.into_iter().flatten().collect();
        Ok(Self { named: names.iter().cloned().zip(values.iter().cloned()).collect(), values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn sent(list: &[(&str, Value)]) -> Vec<Arg> {
        list.iter()
            .map(|(name, value)| Arg { name: (*name).to_owned(), kind: String::new(), value: value.clone() })
            .collect()
    }

    #[test]
    fn templates_are_filled_by_name_and_by_place() {
        let names = names(&["src", "width"]);
        let arguments =
            Arguments::bind(sent(&[("", json!("a b; rm -rf /")), ("", json!(640))]), Some(&names)).unwrap();
        for (template, filled) in [
            ("{src}", "a b; rm -rf /"),
            ("{1}x{width}", "640x640"),
            ("--to={0}.png", "--to=a b; rm -rf /.png"),
            ("{{src}}", "{src}"),
            ("{{{width}}}", "{640}"),
            ("a}b", "a}b"),
            ("", ""),
        ] {
            assert_eq!(Template::parse(template, Some(&names)).unwrap().fill(&arguments).unwrap(), filled);
        }
    }

    #[test]
    fn what_cannot_be_filled_is_told_at_the_start() {
        let error = |text, names: Option<&[String]>| Template::parse(text, names).unwrap_err();
        let two = names(&["src", "width"]);
        assert_eq!(
            error("{height}", Some(&two)),
            "unknown placeholder {height}: args names src, width; write {{ for a brace itself"
        );
        assert!(error("{print $1}", None).contains("there is no args list"));
        assert!(error("{2}", Some(&two)).contains("out of range"));
        assert!(error("{src", Some(&two)).contains("does not close it"));
        assert!(Template::parse("{7}", None).is_ok(), "without an args list any place may exist");
    }

    #[test]
    fn arguments_find_their_places() {
        let two = names(&["src", "width"]);
        let bound = Arguments::bind(sent(&[("width", json!(1)), ("", json!("x"))]), Some(&two)).unwrap();
        assert_eq!(bound.values, [json!("x"), json!(1)]);
        assert_eq!(bound.named["width"], json!(1));
        let free = Arguments::bind(sent(&[("", json!(1)), ("b", json!(2))]), None).unwrap();
        assert_eq!((free.values.len(), free.named.len()), (2, 1));
    }

    #[test]
    fn arguments_that_do_not_fit_are_reported() {
        let two = names(&["src", "width"]);
        let error = |list: &[(&str, Value)]| Arguments::bind(sent(list), Some(&two)).unwrap_err();
        assert_eq!(error(&[("", json!(1))]), "argument \"width\" is missing; the task takes 2 (src, width)");
        assert_eq!(
            error(&[("", json!(1)), ("", json!(2)), ("", json!(3))]),
            "3 arguments were sent, and the task takes 2 (src, width)"
        );
        assert!(error(&[("heigth", json!(1))]).contains("no argument named \"heigth\""));
        assert!(error(&[("", json!(1)), ("src", json!(2))]).contains("sent twice"));
        let arguments = Arguments::bind(Vec::new(), None).unwrap();
        let missing = Template::parse("{0}", None).unwrap().fill(&arguments).unwrap_err();
        assert_eq!(missing, "argument 0 is missing: only 0 were sent");
    }

    #[test]
    fn a_value_becomes_no_option() {
        let fill = |texts: &[&str], dash_values, value: Value| {
            let templates = arguments(&names(texts), None, dash_values).unwrap();
            let values = Arguments { values: vec![value], named: BTreeMap::new() };
            templates.iter().map(|template| template.fill(&values)).collect::<Result<Vec<_>, _>>()
        };
        let evil = || json!("--output=/etc/passwd");
        let refused = fill(&["{0}"], false, evil()).unwrap_err();
        assert!(refused.contains("would be an option") && refused.contains("dash_values"), "{refused}");
        assert!(fill(&["{0}.png"], false, evil()).is_err());
        assert!(fill(&["{0}", "--"], false, evil()).is_err(), "only what stands after the -- is safe");
        assert!(fill(&["-n", "--", "{0}"], false, evil()).is_ok());
        assert!(fill(&["--to={0}", "./{0}"], false, evil()).is_ok());
        assert!(fill(&["{0}"], true, evil()).is_ok());
        for number in [json!(-5), json!(-1.5), json!("-1.10"), json!("-0")] {
            assert!(fill(&["{0}"], false, number.clone()).is_err(), "kill -9: {number}");
            assert!(fill(&["--", "{0}"], false, number.clone()).is_ok(), "{number}");
            assert!(fill(&["{0}"], true, number.clone()).is_ok(), "{number}");
            assert!(fill(&["--by={0}"], false, number.clone()).is_ok(), "{number}");
            assert!(fill(&["-s", "{0}"], false, number.clone()).is_err(), "kill -s -9: {number}");
            assert!(fill(&["%s", "{0}"], false, number.clone()).is_ok(), "printf %s -9: {number}");
        }
        for text in ["-", "-1x", "-e", "-5 ", "-inf", "-nan", "-e5", "--1"] {
            assert!(fill(&["{0}"], false, json!(text)).is_err(), "{text}");
            assert!(fill(&["%s", "{0}"], false, json!(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_nul_is_refused() {
        let arguments = Arguments { values: vec![json!("a\0b")], named: BTreeMap::new() };
        assert!(Template::parse("{0}", None).unwrap().fill(&arguments).unwrap_err().contains("NUL"));
    }
}
