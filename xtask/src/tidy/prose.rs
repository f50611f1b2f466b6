//! Sentences of a source file that users read: its docs and its string literals, without those of tests.

use super::{
    rust::asides_of,
    source::{Source, clear},
};

/// Prose of one source file.
#[derive(Debug, Default)]
pub(super) struct Prose<'a> {
    /// Blocks of `///` or `//!`.
    pub(super) docs: Vec<Passage<'a>>,
    /// String literals with their quotes.
    pub(super) literals: Vec<Passage<'a>>,
}

/// Lines of text that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passage<'a> {
    /// Line in the file where it begins, from 1.
    pub(super) line: usize,
    pub(super) lines: Vec<&'a str>,
}

impl<'a> Prose<'a> {
    /// Collects the prose of a file.
    pub(super) fn new(text: &'a str) -> Self {
        let code = clear(text);
        let source = Source::new(&code);
        let mut prose = Self::default();
        let mut last_mark = "";
        for (line, aside) in asides_of(text) {
            if source.test_lines.iter().any(|test| test.contains(&line)) {
                continue;
            }
            if let Some(doc) = doc(aside) {
                let mark = &aside[..3];
                match prose.docs.last_mut() {
                    Some(block) if last_mark == mark && block.line + block.lines.len() == line => {
                        block.lines.push(doc);
                    }
                    _ => prose.docs.push(Passage { line, lines: vec![doc] }),
                }
                last_mark = mark;
            } else if !aside.starts_with('/') && !aside.starts_with('\'') {
                prose.literals.push(Passage { line, lines: aside.split('\n').collect() });
            }
        }
        prose
    }
}

/// Text of one line of docs.
fn doc(comment: &str) -> Option<&str> {
    // Four slashes make a plain comment.
    let is_doc = comment.starts_with("//!") || comment.starts_with("///") && !comment.starts_with("////");
    is_doc.then(|| comment[3..].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_and_literals_are_collected_with_their_lines() {
        let text = "//! A.\n//!\n//! B.\n/// C.\n#[x]\n/// D.\nfn d() { e(\"f\\\n  g\", 'h', r\"i\"); }\n// J.\n//// K.\n";
        let Prose { docs, literals } = Prose::new(text);
        let docs: Vec<_> = docs.into_iter().map(|docs| (docs.line, docs.lines)).collect();
        assert_eq!(docs, [(1, vec!["A.", "", "B."]), (4, vec!["C."]), (6, vec!["D."])]);
        let literals: Vec<_> = literals.into_iter().map(|literal| (literal.line, literal.lines)).collect();
        assert_eq!(literals, [(7, vec!["\"f\\", "  g\""]), (8, vec!["r\"i\""])]);
    }

    #[test]
    fn prose_of_tests_is_left_out() {
        let text = "#[cfg(test)]\nmod tests {\n    //! A.\n    /// B.\n    fn c() { d(\"e\") }\n}\n/// F.\nfn f() {}\n";
        let Prose { docs, literals } = Prose::new(text);
        assert_eq!(docs, [Passage { line: 7, lines: vec!["F."] }]);
        assert_eq!(literals, []);
    }
}
