//! Values of a file with their positions, from TOML or JSON, so that every error can name a line and a column. Pure.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};
use toml::de::{DeTable, DeValue};

use crate::spelling;

/// Maximum depth of values inside each other.
const MAX_DEPTH: usize = 100;

/// A problem of a file, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Offset in bytes.
    pub(super) at: usize,
    pub(super) why: String,
}

impl Problem {
    pub(super) fn new(at: usize, why: impl Into<String>) -> Self {
        Self { at, why: why.into() }
    }
}

/// A value and its position.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) tree: Tree,
}

#[derive(Debug)]
pub(super) enum Tree {
    /// Text, a number, a truth value or null.
    Single(Value),
    List(Vec<Node>),
    Table(Vec<TreeEntry>),
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct TreeEntry {
    pub(super) key: String,
    pub(super) at: usize,
    pub(super) node: Node,
}

impl Node {
    /// Returns the value without positions.
    pub(super) fn value(&self) -> Value {
        match &self.tree {
            Tree::Single(value) => value.clone(),
            Tree::List(list) => list.iter().map(Self::value).collect(),
            Tree::Table(table) => Value::Object(
                table.iter().map(|entry| (entry.key.clone(), entry.node.value())).collect::<Map<_, _>>(),
            ),
        }
    }

    /// Returns the kind of the value, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match &self.tree {
            Tree::Single(Value::String(_)) => "text",
            Tree::Single(Value::Number(_)) => "a number",
            Tree::Single(Value::Bool(_)) => "true or false",
            Tree::Single(_) => "null",
            Tree::List(_) => "a list",
            Tree::Table(_) => "a table",
        }
    }
}

/// Reads a document in TOML. The keys of a table are in the order of the file.
///
/// # Errors
/// The text is no TOML, or has a number that cannot be sent.
pub(super) fn toml(text: &str) -> Result<Node, Problem> {
    let document = DeTable::parse(text).map_err(|error| {
        Problem::new(error.span().map_or(0, |span| span.start), error.message().trim_end())
    })?;
    Ok(Node { at: 0, tree: toml_table(document.get_ref(), 0)? })
}

fn toml_table(table: &DeTable<'_>, depth: usize) -> Result<Tree, Problem> {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        Ok(TreeEntry { key: name.to_string(), at: key.span().start, node: toml_node(value, depth + 1)? })
    };
    let mut entries = table.iter().map(entry).collect::<Result<Vec<_>, Problem>>()?;
    entries.sort_by_key(|entry| entry.at);
    Ok(Tree::Table(entries))
}

fn toml_node(spanned: &toml::Spanned<DeValue<'_>>, depth: usize) -> Result<Node, Problem> {
    let at = spanned.span().start;
    if depth > MAX_DEPTH {
        return Err(too_deep(at));
    }
    let number = |number: Option<serde_json::Number>, text: &str| {
        let why = || format!("the number {text} cannot be sent; write it in quotes");
        number.map(|number| Tree::Single(number.into())).ok_or_else(|| Problem::new(at, why()))
    };
    let tree = match spanned.get_ref() {
        DeValue::String(text) => Tree::Single(Value::from(text.as_ref())),
        DeValue::Boolean(truth) => Tree::Single(Value::from(*truth)),
        DeValue::Datetime(instant) => Tree::Single(Value::from(instant.to_string())),
        DeValue::Integer(integer) => {
            let read = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
            number(read.map(Into::into), integer.as_str())?
        }
        DeValue::Float(float) => {
            let read: Option<f64> = float.as_str().parse().ok();
            number(read.and_then(serde_json::Number::from_f64), float.as_str())?
        }
        DeValue::Array(list) => {
            Tree::List(list.iter().map(|item| toml_node(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => toml_table(table, depth)?,
    };
    Ok(Node { at, tree })
}

/// Reads a document in JSON. The keys of a table are in the order of the file.
///
/// # Errors
/// The text is no JSON, has a key twice, or a number that would arrive with another value.
pub(super) fn json(text: &str) -> Result<Node, Problem> {
    let raw: &RawValue =
        serde_json::from_str(text).map_err(|error| Problem::new(offset(text, &error), said(&error)))?;
    json_node(text, raw, 0)
}

fn json_node(text: &str, raw: &RawValue, depth: usize) -> Result<Node, Problem> {
    let json = raw.get();
    let at = json.as_ptr().addr() - text.as_ptr().addr();
    if depth > MAX_DEPTH {
        return Err(too_deep(at));
    }
    let wrong = |error: serde_json::Error| Problem::new(at + offset(json, &error), said(&error));
    let tree = match json.as_bytes().first() {
        Some(b'[') => {
            let list: Vec<&RawValue> = serde_json::from_str(json).map_err(wrong)?;
            let node = |raw: &RawValue| json_node(text, raw, depth + 1);
            Tree::List(list.into_iter().map(node).collect::<Result<_, _>>()?)
        }
        Some(b'{') => {
            let OrderedEntries(pairs) = serde_json::from_str(json).map_err(wrong)?;
            let mut entries: Vec<TreeEntry> = Vec::with_capacity(pairs.len());
            let mut seen = std::collections::BTreeSet::new();
            for (key, raw) in pairs {
                let node = json_node(text, raw, depth + 1)?;
                let at = key_position(text, node.at);
                if !seen.insert(key.clone()) {
                    return Err(Problem::new(at, format!("the key {key:?} is given twice")));
                }
                entries.push(TreeEntry { key, at, node });
            }
            Tree::Table(entries)
        }
        _ => {
            if let Some(number) = spelling::first_changed_number(json) {
                let why = format!("the number {number} would arrive with another value; write it in quotes");
                return Err(Problem::new(at, why));
            }
            Tree::Single(serde_json::from_str(json).map_err(wrong)?)
        }
    };
    Ok(Node { at, tree })
}

/// Returns the position of the key whose value is at `value`.
fn key_position(text: &str, value: usize) -> usize {
    let before = text[..value].trim_end().trim_end_matches(':').trim_end();
    let inner = before.strip_suffix('"').unwrap_or(before);
    let escaped = |quote: usize| {
        let slashes = inner[..quote].bytes().rev().take_while(|byte| *byte == b'\\').count();
        slashes % 2 == 1
    };
    let mut quotes = inner.rmatch_indices('"').map(|(quote, _)| quote);
    quotes.find(|quote| !escaped(*quote)).unwrap_or(value)
}

/// Returns the offset of an error in the text that was read.
fn offset(text: &str, error: &serde_json::Error) -> usize {
    let line_start =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    (line_start + error.column().saturating_sub(1)).min(text.len())
}

/// Returns what an error says, without its position.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(said, _)| said).to_owned()
}

fn too_deep(at: usize) -> Problem {
    Problem::new(at, format!("more than {MAX_DEPTH} values are inside each other"))
}

/// The pairs of a JSON object, in their order.
struct OrderedEntries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for OrderedEntries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = OrderedEntries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OrderedEntries<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(OrderedEntries(pairs))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keys(node: &Node) -> Vec<(&str, usize)> {
        let Tree::Table(entries) = &node.tree else { panic!("{node:?}") };
        entries.iter().map(|entry| (entry.key.as_str(), entry.at)).collect()
    }

    #[test]
    fn keys_keep_their_order_and_their_position() {
        let node = toml("z = 1\n[t.b]\nx = [1, 2.5, \"é\"]\n[t.a]\n").unwrap();
        assert_eq!(keys(&node), [("z", 0), ("t", 7)]);
        assert_eq!(node.value(), json!({"z": 1, "t": {"b": {"x": [1, 2.5, "é"]}, "a": {}}}));
        let text = "{\"z\": 1,\n \"\\\"q\" : {\"b\": [1, null], \"a\": true}}";
        let node = json(text).unwrap();
        assert_eq!(keys(&node), [("z", 1), ("\"q", 10)]);
        let Tree::Table(entries) = &node.tree else { panic!("{node:?}") };
        assert_eq!(keys(&entries[1].node), [("b", 19), ("a", 35)]);
        assert_eq!(entries[1].node.value(), json!({"b": [1, null], "a": true}));
    }

    #[test]
    fn problems_have_their_position() {
        let problem = |read: fn(&str) -> Result<Node, Problem>, text: &str| read(text).unwrap_err();
        assert_eq!(problem(json, "{\"a\": 1, \"a\": 2}").at, 9);
        assert_eq!(problem(json, "{\"n\": 12345678901234567890123}").at, 6);
        assert_eq!(problem(json, "{\"a\":\n x}").at, 7);
        assert_eq!(problem(toml, "a = 99999999999999999999").at, 4);
        assert_eq!(problem(toml, "a = inf").at, 4);
        assert_eq!(problem(toml, "a = ").at, 4);
    }

    #[test]
    fn a_deep_document_harms_nobody() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(json(&deep).is_err());
        assert!(toml(&format!("a = {deep}")).is_err());
    }
}
