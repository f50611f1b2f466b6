//! Rust source as tokens, without the parts that only tests compile.
//!
//! The rules about names and imports describe the product. A test may name and import whatever it needs.

use std::ops::RangeInclusive;

use super::rust::code_of;

/// Conditions under which no user compiles an item, written without spaces.
const TEST_CONDITIONS: [&str; 5] =
    ["cfg(test)", "cfg(doctest)", "cfg(fuzzing)", "cfg(any(test,fuzzing))", "cfg(all(test,"];

/// Words that begin an item which ends at its braces, where it has some.
const BRACED_ITEMS: [&str; 12] = [
    "mod",
    "fn",
    "async",
    "const",
    "struct",
    "enum",
    "trait",
    "union",
    "type",
    "impl",
    "unsafe",
    "macro_rules",
];

/// One word, `::`, or one character of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// Line in the file, from 1.
    pub(super) line: usize,
}

impl Token<'_> {
    pub(super) fn is_word(&self) -> bool {
        self.text.starts_with(is_word_character)
    }
}

/// One file, divided into what users compile and what tests compile.
#[derive(Debug, Default)]
pub(super) struct Source<'a> {
    /// Tokens of the product, in order.
    pub(super) tokens: Vec<Token<'a>>,
    /// Lines of items that only tests compile.
    pub(super) test_lines: Vec<RangeInclusive<usize>>,
    /// Names of the files' modules that only tests compile: `tests` of `#[cfg(test)] mod tests;`.
    pub(super) test_modules: Vec<&'a str>,
}

impl<'a> Source<'a> {
    /// Divides code that [`code_of`] has cleared of comments and literals.
    pub(super) fn new(code: &'a str) -> Self {
        let tokens = tokens(code);
        let mut source = Self::default();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let Some(end) = attribute_end(&tokens[at..]).map(|length| at + length) else {
                source.tokens.push(*token);
                at += 1;
                continue;
            };
            if is_test_condition(&tokens[at..end]) {
                let item = &tokens[end..];
                let length = item_length(item);
                let last = end + length - 1;
                source.test_lines.push(token.line..=tokens[last].line);
                let words: Vec<&str> = item[..length].iter().map(|token| token.text).collect();
                if let [.., "mod", name, ";"] = words[..] {
                    source.test_modules.push(name);
                }
                at = last + 1;
            } else {
                at = end;
            }
        }
        source
    }
}

/// Clears a file of comments and literals, so that [`Source::new`] can divide it.
pub(super) fn clear(text: &str) -> String {
    code_of(text)
}

fn is_word_character(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (index, mut rest) in code.lines().enumerate() {
        loop {
            rest = rest.trim_start();
            let Some(first) = rest.chars().next() else { break };
            let length = if is_word_character(first) {
                rest.find(|c| !is_word_character(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (text, after) = rest.split_at(length);
            tokens.push(Token { text, line: index + 1 });
            rest = after;
        }
    }
    tokens
}

/// Number of tokens of the attribute that opens `tokens`, if one does.
fn attribute_end(tokens: &[Token<'_>]) -> Option<usize> {
    let open = match tokens {
        [hash, open, ..] if hash.text == "#" && open.text == "[" => 1,
        [hash, inner, open, ..] if hash.text == "#" && inner.text == "!" && open.text == "[" => 2,
        _ => return None,
    };
    Some(open + group_length(&tokens[open..]))
}

fn is_test_condition(attribute: &[Token<'_>]) -> bool {
    let condition: String = attribute.iter().skip(2).map(|token| token.text).collect();
    TEST_CONDITIONS.iter().any(|test| condition.starts_with(test))
}

/// Number of tokens up to the bracket that closes the first one.
fn group_length(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Number of tokens of the item, field or match arm that opens `tokens`, its further attributes included.
fn item_length(tokens: &[Token<'_>]) -> usize {
    let mut at = 0;
    while let Some(length) = attribute_end(&tokens[at..]) {
        at += length;
    }
    let end = item_end(&tokens[at..]);
    while let Some(token) = tokens.get(at) {
        match token.text {
            ";" => return at + 1,
            "," if end == ItemEnd::Comma => return at + 1,
            // The bracket that holds a last field without a comma.
            ")" | "]" | "}" => return at,
            "{" => {
                at += group_length(&tokens[at..]);
                let goes_on = tokens.get(at).is_some_and(|next| [",", ";", ".", "?"].contains(&next.text));
                if end == ItemEnd::Brace || end == ItemEnd::Comma && !goes_on {
                    return at;
                }
            }
            "(" | "[" => at += group_length(&tokens[at..]),
            _ => at += 1,
        }
    }
    tokens.len()
}

/// Token that ends an item, besides a semicolon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ItemEnd {
    Brace,
    Semicolon,
    Comma,
}

fn item_end(tokens: &[Token<'_>]) -> ItemEnd {
    let mut words = tokens;
    if let [first, rest @ ..] = words
        && first.text == "pub"
    {
        words = rest;
        if words.first().is_some_and(|open| open.text == "(") {
            words = &words[group_length(words)..];
        }
    }
    let word = |at: usize| words.get(at).map_or("", |token| token.text);
    match word(0) {
        "use" | "let" | "static" => ItemEnd::Semicolon,
        "const" if !["fn", "async", "unsafe", "extern"].contains(&word(1)) => ItemEnd::Semicolon,
        first if BRACED_ITEMS.contains(&first) => ItemEnd::Brace,
        _ => ItemEnd::Comma,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(text: &str) -> String {
        let code = clear(text);
        let source = Source::new(&code);
        source.tokens.iter().map(|token| token.text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_tests_compile_is_left_out() {
        for item in [
            "mod tests { fn a() { b(); } }",
            "mod model;",
            "use a::{b, c};",
            "pub(crate) use a::{b, c};",
            "fn a<A, B>(x: [u8; 2]) -> C where A: B { use x; }",
            "const A: B = B { c: 1 };",
            "const fn a() {}",
            "#[derive(Debug)] struct A { b: C, }",
            "impl A for B { fn c() {} }",
            "let a = B { c };",
            "a: Vec<B>,",
            "A => { b() }",
            "a(B { c }, d);",
        ] {
            let text = format!("#[a] before; #[cfg(test)] {item} after");
            assert_eq!(product(&text), "before ; after", "{item}");
        }
        assert_eq!(product("A { a, #[cfg(test)] b } c"), "A { a , } c");
    }

    #[test]
    fn other_conditions_are_of_the_product() {
        for condition in ["feature = \"tls\"", "not(test)", "any(test, feature = \"x\")"] {
            assert_eq!(product(&format!("#[cfg({condition})] mod a;")), "mod a ;", "{condition}");
        }
        assert_eq!(product("#[cfg(any(test, fuzzing))] #[doc(hidden)] pub mod fuzz; a"), "a");
    }

    #[test]
    fn modules_and_lines_of_tests_are_told() {
        let code = clear("mod a;\n#[cfg(test)]\nmod model;\n\n#[cfg(test)]\nmod tests {\n}\n");
        let source = Source::new(&code);
        assert_eq!(source.test_modules, ["model"]);
        assert_eq!(source.test_lines, [2..=3, 5..=7]);
    }

    #[test]
    fn tokens_know_their_lines() {
        let code = clear("use a::b; // c\n  \"d\" e");
        let tokens: Vec<_> = Source::new(&code).tokens.iter().map(|token| (token.text, token.line)).collect();
        assert_eq!(tokens, [("use", 1), ("a", 1), ("::", 1), ("b", 1), (";", 1), ("e", 2)]);
    }
}
