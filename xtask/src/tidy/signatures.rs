//! The adapters keep their libraries to themselves: no type of lapin, redis or rusqlite in a public signature.
//!
//! One leaked type ties every user to a version of a library, and is never removed again. This reads text: a type
//! that hides behind a private alias escapes it.

use super::{
    Finding,
    files::TextFile,
    rust::{code_of, contains_word},
};

const LIBRARIES: [&str; 5] = ["lapin", "amq_protocol", "redis", "deadpool_redis", "rusqlite"];
const REMEDY: &str = "wrap it in a type of this crate or box it as a source, so that the library can change";
const ITEMS: [&str; 11] = [
    "pub fn ",
    "pub async fn ",
    "pub const fn ",
    "pub const ",
    "pub static ",
    "pub struct ",
    "pub enum ",
    "pub trait ",
    "pub type ",
    "pub use ",
    "impl",
];

pub(super) fn check(file: &TextFile) -> Vec<Finding> {
    if !file.path.contains("/src/") || file.path.starts_with("xtask/") {
        return Vec::new();
    }
    let code = code_of(&file.text);
    // Tests are at the bottom and have no public signatures.
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let foreign = imported_names(code);
    let lines: Vec<&str> = code.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(signature) = signature_at(code, &lines[index..]) else { continue };
        let leaked = LIBRARIES
            .iter()
            .find(|library| contains_word(&signature, &format!("{library}::")))
            .map(|library| (*library).to_owned())
            .or_else(|| foreign.iter().find(|name| words(&signature).any(|word| word == *name)).cloned());
        if let Some(leaked) = leaked {
            let head = line.trim().trim_end_matches('{').trim_end();
            let what = format!("`{leaked}` of an adapter's library in the public signature `{head}`");
            findings.push(Finding { path: file.path.clone(), line: index + 1, what, remedy: REMEDY });
        }
    }
    findings
}

/// The public signature that begins at the first of these lines, if one does.
fn signature_at(code: &str, lines: &[&str]) -> Option<String> {
    let first = lines.first()?.trim_start();
    if is_public_field(first) {
        return Some(first.to_owned());
    }
    match *ITEMS.iter().find(|item| first.starts_with(*item))? {
        "pub use " => Some(until(lines, ';')),
        "pub struct " => tuple_fields(&until(lines, ';')),
        // Variants and methods are as public as the item.
        "pub enum " | "pub trait " => Some(body(lines)),
        "impl" => public_impl(code, head(lines)),
        _ => Some(head(lines)),
    }
}

fn is_public_field(line: &str) -> bool {
    let name = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")).map(|(name, _)| name);
    name.is_some_and(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

/// The lines up to one with this character, all of it.
fn until(lines: &[&str], end: char) -> String {
    let end = lines.iter().position(|line| line.contains([end, '{'])).unwrap_or(0);
    lines[..=end].join("\n")
}

/// Up to the body or the end of the item.
fn head(lines: &[&str]) -> String {
    let text = until(lines, ';');
    text.split('{').next().unwrap_or_default().to_owned()
}

/// Up to the brace that closes the item, which rustfmt puts below its beginning.
fn body(lines: &[&str]) -> String {
    let indent = lines[0].len() - lines[0].trim_start().len();
    let close = format!("{}}}", " ".repeat(indent));
    let end = lines.iter().position(|line| line.starts_with(&close)).unwrap_or(0);
    lines[..=end].join("\n")
}

/// Of a struct only what stands in parentheses and is public; named fields are looked at line by line.
fn tuple_fields(signature: &str) -> Option<String> {
    let (_, fields) = signature.split_once('(')?;
    let public = fields.split(',').filter(|field| field.trim_start().starts_with("pub "));
    Some(public.collect::<Vec<_>>().join(","))
}

/// Of a trait, for a type that others can name; the methods of plain impls are looked at one by one.
fn public_impl(code: &str, head: String) -> Option<String> {
    let name = head.split_once(" for ").and_then(|(_, target)| words(target).next())?;
    let public = |item| words_after(code, item).any(|word| word == name);
    (public("pub struct ") || public("pub enum ")).then_some(head)
}

/// What `use lapin::…` brought into the file, by the names it goes by there.
fn imported_names(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for library in LIBRARIES {
        for (start, _) in code.match_indices(&format!("use {library}::")) {
            let Some(end) = code[start..].find(';') else { continue };
            let list = &code[start..start + end];
            for part in list.split([',', '{', '}']) {
                let name = part.rsplit(" as ").next().unwrap_or(part);
                let name = name.rsplit("::").next().unwrap_or(name).trim();
                // Modules are seen by their path; `self` and `*` name nothing of their own.
                if name.starts_with(char::is_uppercase) {
                    names.push(name.to_owned());
                }
            }
        }
    }
    names
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn words_after<'a>(code: &'a str, item: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(item).filter_map(|(at, item)| words(&code[at + item.len()..]).next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<usize> {
        let file = TextFile { path: "machinist-x/src/lib.rs".to_owned(), text: text.to_owned() };
        check(&file).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn leaks_are_found_in_every_kind_of_signature() {
        for text in [
            "pub fn open(c: lapin::Connection) -> Self {",
            "pub trait Open {\n    fn open(&self) -> lapin::Channel;\n}",
            "pub use lapin::{\n    Channel,\n};",
            "pub async fn open(\n    c: redis::Client,\n) -> Self {",
            "pub struct Broker(pub lapin::Channel);",
            "pub enum Error {\n    Amqp(lapin::Error),\n}",
            "pub type Pool = deadpool_redis::Pool;",
            "pub use rusqlite::Connection;",
            "pub struct Error;\nimpl From<lapin::Error> for Error {",
        ] {
            assert_eq!(found(text).len(), 1, "{text}");
        }
        assert_eq!(found("pub struct A {\n    pub channel: lapin::Channel,\n}"), [2]);
    }

    #[test]
    fn imported_names_are_known() {
        assert_eq!(found("use lapin::{Channel, types::FieldTable as Table};\npub fn a(t: Table) {}"), [2]);
        assert_eq!(found("use lapin::Channel;\npub fn a(c: ChannelName) {}"), [0; 0]);
    }

    #[test]
    fn what_stays_inside_is_nobodys_business() {
        for text in [
            "fn open(c: lapin::Connection) {}",
            "pub(crate) fn open(c: lapin::Connection) {}",
            "pub struct Broker {\n    channel: lapin::Channel,\n}",
            "pub struct Broker(lapin::Channel);",
            "enum Cause {}\nimpl From<lapin::Error> for Cause {",
            "pub fn a() { lapin::connect() }",
            "pub fn a() {}\n\n#[cfg(test)]\nmod tests {\n    pub fn b(c: lapin::Channel) {}\n}",
            "/// Like `lapin::Channel`.\npub fn a() {}",
        ] {
            assert_eq!(found(text), [0; 0], "{text}");
        }
    }
}
