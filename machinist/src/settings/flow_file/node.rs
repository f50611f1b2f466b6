//! Values of a workflow file as the types that their keys need, with errors that name the expected type. Pure.

use machinist_core::nearest;
use serde_json::Value;

use super::tree::{Node, Problem, Tree, TreeEntry};

/// Maximum number of words that an error lists.
const MAX_LISTED: usize = 25;

pub(super) fn find<'a>(entries: &'a [TreeEntry], key: &str) -> Option<&'a TreeEntry> {
    entries.iter().find(|entry| entry.key == key)
}

pub(super) fn check_keys(entries: &[TreeEntry], known: &[&str], all: &str) -> Result<(), Problem> {
    let Some(unknown) = entries.iter().find(|entry| !known.contains(&entry.key.as_str())) else {
        return Ok(());
    };
    let all = if all.is_empty() { "the keys here are " } else { all };
    let why = format!("unknown key \"{}\"; {}", unknown.key, proposal(&unknown.key, known, all));
    Err(Problem::new(unknown.at, why))
}

/// Proposes the word that was probably meant, or lists all.
pub(super) fn proposal(word: &str, known: &[&str], all: &str) -> String {
    match nearest(word, known.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"?"),
        _ if known.len() > MAX_LISTED => format!("there are {} others", known.len()),
        _ => format!("{all}{}", known.join(", ")),
    }
}

pub(super) fn expected(node: &Node, expected: &str) -> Problem {
    Problem::new(node.at, format!("expected {expected}, and it is {}", node.kind()))
}

pub(super) fn table<'a>(node: &'a Node, what: &str) -> Result<&'a [TreeEntry], Problem> {
    match &node.tree {
        Tree::Table(entries) => Ok(entries),
        _ => Err(expected(node, what)),
    }
}

pub(super) fn list<'a>(node: &'a Node, key: &str, example: &str) -> Result<&'a [Node], Problem> {
    match &node.tree {
        Tree::List(list) => Ok(list),
        _ => Err(expected(node, &format!("a list for {key}, like {example}"))),
    }
}

pub(super) fn string<'a>(node: &'a Node, key: &str) -> Result<&'a str, Problem> {
    match &node.tree {
        Tree::Single(Value::String(text)) => Ok(text),
        _ => Err(expected(node, &format!("text in quotes for {key}"))),
    }
}

pub(super) fn truth(node: &Node, key: &str) -> Result<bool, Problem> {
    match &node.tree {
        Tree::Single(Value::Bool(truth)) => Ok(*truth),
        _ => Err(expected(node, &format!("true or false for {key}"))),
    }
}

pub(super) fn number(node: &Node, key: &str, max: u32) -> Result<u32, Problem> {
    let Tree::Single(Value::Number(number)) = &node.tree else {
        return Err(expected(node, &format!("a number for {key}")));
    };
    let fitting = number.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|n| *n <= max);
    fitting.ok_or_else(|| Problem::new(node.at, format!("{key}: {number} is not in 0 to {max}")))
}

/// Reads a text with a function whose error is a sentence.
pub(super) fn parsed<T>(
    node: &Node,
    key: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Problem> {
    read(string(node, key)?).map_err(|why| Problem::new(node.at, format!("{key}: {why}")))
}
