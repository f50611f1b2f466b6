//! Rules for Rust source: every module says why it exists, tests run or are not there, nothing is left to do, and
//! the clock is read in one place.

use super::{Finding, files::TextFile};

/// What must not stand in code, outside of comments and strings.
const FORBIDDEN: [(&str, &str); 6] = [
    ("#[ignore", "a test runs or it is deleted; one that needs a server asks for its URL"),
    ("#[should_panic", "assert on the error instead; a panic anywhere in the test would satisfy this"),
    ("todo!", "finish it, or leave it out"),
    ("unimplemented!", "finish it, or leave it out"),
    ("dbg!", "use a tracing event, or delete it"),
    ("SystemTime::now", "instants are arguments; the one reading is machinist_core::clock::wall"),
];

const CLOCK: &str = "machinist-core/src/clock.rs";

pub(super) fn check(file: &TextFile) -> Vec<Finding> {
    let finding = |line: usize, what: String, remedy| Finding { path: file.path.clone(), line, what, remedy };
    let mut findings = Vec::new();
    let opening = file.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !opening.starts_with("//!") {
        let what = "the module does not open with `//!`".to_owned();
        findings.push(finding(1, what, "say in its first line what it is, and below why it exists"));
    }
    for (index, line) in code_of(&file.text).lines().enumerate() {
        for (pattern, remedy) in FORBIDDEN {
            let clock = pattern == "SystemTime::now" && file.path == CLOCK;
            if !clock && contains_word(line, pattern) {
                findings.push(finding(index + 1, format!("`{pattern}`"), remedy));
            }
        }
    }
    findings
}

/// Whether a pattern stands there by itself: `my_todo!` holds no `todo!`, `redis::X` is in no `deadpool_redis::X`.
pub(super) fn contains_word(line: &str, pattern: &str) -> bool {
    line.match_indices(pattern).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

/// The source with comments and the contents of literals blanked out, line by line as long as before.
pub(super) fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    for piece in pieces(source) {
        match piece {
            Piece::Code(c) => code.push(c),
            Piece::Aside(aside) => code.extend(aside.chars().map(|c| if c == '\n' { '\n' } else { ' ' })),
        }
    }
    code
}

/// Comments and literals with their marks and quotes, and the lines where they begin.
pub(super) fn asides_of(source: &str) -> Vec<(usize, &str)> {
    let mut line = 1;
    let mut asides = Vec::new();
    for piece in pieces(source) {
        match piece {
            Piece::Code(c) => line += usize::from(c == '\n'),
            Piece::Aside(aside) => {
                asides.push((line, aside));
                line += aside.matches('\n').count();
            }
        }
    }
    asides
}

enum Piece<'a> {
    Code(char),
    /// One comment or literal.
    Aside(&'a str),
}

fn pieces(source: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = source;
    let mut before = None;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        if let Some(length) = literal_length(rest, before) {
            let (aside, after) = rest.split_at(length);
            rest = after;
            before = None;
            return Some(Piece::Aside(aside));
        }
        rest = &rest[first.len_utf8()..];
        before = Some(first);
        Some(Piece::Code(first))
    })
}

/// How many bytes of comment, string or character literal `text` begins with.
fn literal_length(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|before| before.is_alphanumeric() || before == '_');
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(block_comment_length(text));
    }
    if text.starts_with('"') {
        return Some(string_length(text));
    }
    if text.starts_with('\'') {
        return character_length(text);
    }
    if !in_word && (text.starts_with('r') || text.starts_with("br")) {
        let hashes_at = text.find('r')? + 1;
        let hashes = text[hashes_at..].chars().take_while(|c| *c == '#').count();
        let body = hashes_at + hashes;
        if text[body..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            return Some(text[body + 1..].find(&end).map_or(text.len(), |at| body + 1 + at + end.len()));
        }
    }
    None
}

fn block_comment_length(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `None` for a lifetime.
fn character_length(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        // The character after the backslash may be a quote.
        chars.next()?;
        return chars.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    chars.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        let file = TextFile { path: path.to_owned(), text: text.to_owned() };
        check(&file).into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn every_forbidden_thing_is_found_where_it_stands() {
        let text = "//! Why.\n#[ignore = \"slow\"]\nfn a() {\n    todo!()\n}\nlet t = SystemTime::now();\n";
        assert_eq!(whats("a/src/b.rs", text), ["2: `#[ignore`", "4: `todo!`", "6: `SystemTime::now`"]);
    }

    #[test]
    fn the_clock_may_read_the_clock() {
        assert!(whats(CLOCK, "//! Why.\nSystemTime::now()\n").is_empty());
    }

    #[test]
    fn a_module_without_a_purpose_is_found() {
        assert_eq!(whats("x.rs", "\nuse std::fmt;\n"), ["1: the module does not open with `//!`"]);
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        for text in [
            "// todo!()",
            "/* a /* todo!() */ dbg!(x) */",
            "let s = \"dbg!(\\\"x\\\") todo!\";",
            "let s = r#\"todo!() \" dbg!(x)\"#;",
            "let s = br\"todo!()\";",
            "let c = '\"'; // \" todo!()",
            "let c = '\\''; let s = \"todo!()\";",
            "my_todo!()",
        ] {
            assert_eq!(whats("x.rs", &format!("//! Why.\n{text}\n")), [""; 0], "{text}");
        }
    }

    #[test]
    fn code_after_literals_is_code_and_lines_stay() {
        for text in ["let c = 'x'; dbg!(c)", "fn f<'a>(x: &'a str) { dbg!(x) }", "let s = \"\n\"; dbg!(s)"] {
            let expected = format!("{}: `dbg!`", 2 + text.matches('\n').count());
            assert_eq!(whats("x.rs", &format!("//! Why.\n{text}\n")), [expected], "{text}");
        }
    }
}
