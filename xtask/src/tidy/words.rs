//! Docs and messages use the words that other projects use.
//!
//! The list holds turns that are wrong or long out of use, so that it has no exceptions.

use super::{
    Finding,
    files::TextFile,
    product,
    prose::{Passage, Prose},
};

/// Turns that are refused, with what to write instead.
const REFUSED: [(&str, &str); 19] = [
    ("whoever", "name who it is: the caller, the worker, a user"),
    ("whomever", "name who it is: the caller, the worker, a user"),
    ("whatsoever", "leave it out"),
    ("anew", "write `again`"),
    ("for ever", "write `forever`, or give the bound"),
    ("ere", "write `before`"),
    ("hither", "write `here`"),
    ("thereof", "write `of it`"),
    ("wherein", "write `in which`"),
    ("is to be", "write `must be` or `will be`"),
    ("are to be", "write `must be` or `will be`"),
    ("of its own", "write `its own` or `separate`"),
    ("of their own", "write `their own` or `separate`"),
    ("becomes of", "write `happens to`"),
    ("become of", "write `happen to`"),
    ("nobody knows", "say that it is unknown, and why"),
    ("nobody else knows", "say that it is unknown to others, and why"),
    ("too seldom", "write `not often enough`"),
    ("shall", "write `must` or `will`"),
];

/// Finds refused turns in docs and string literals.
pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for module in product::modules(files) {
        let Prose { docs, literals } = Prose::new(&module.file.text);
        for (line, turn, remedy) in docs.iter().chain(&literals).flat_map(refused) {
            findings.push(Finding {
                path: module.file.path.clone(),
                line,
                what: format!("`{turn}`"),
                remedy,
            });
        }
    }
    findings
}

/// Refused turns with their lines. A turn may go on in the next line.
fn refused(passage: &Passage<'_>) -> Vec<(usize, &'static str, &'static str)> {
    let mut words = Vec::new();
    for (index, line) in passage.lines.iter().enumerate() {
        let of_line = line.split(|c: char| !(c.is_alphanumeric() || "'’_-".contains(c)));
        words.extend(of_line.filter(|word| !word.is_empty()).map(|word| (index, word.to_lowercase())));
    }
    let mut found = Vec::new();
    for (at, (index, _)) in words.iter().enumerate() {
        for (turn, remedy) in REFUSED {
            let mut rest = words[at..].iter().map(|(_, word)| word);
            if turn.split(' ').all(|word| rest.next().is_some_and(|next| next == word)) {
                found.push((passage.line + index, turn, remedy));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let file = TextFile { path: "machinist/src/a.rs".to_owned(), text: text.to_owned() };
        check(&[file]).into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn turns_are_found_in_docs_and_in_literals() {
        assert_eq!(found("//! Key.\n//! Whoever has it.\n"), ["2: `whoever`"]);
        assert_eq!(found("\nfn a() { b(\"the queue is to be declared\") }\n"), ["2: `is to be`"]);
    }

    #[test]
    fn turns_may_go_on_in_the_next_line() {
        assert_eq!(
            found("/// A loop of its\n/// own, (anew).\nfn a() {}\n"),
            ["1: `of its own`", "2: `anew`"]
        );
        assert_eq!(found("fn a() { b(\"waits for \\\n    ever\") }\n"), ["1: `for ever`"]);
    }

    #[test]
    fn parts_of_words_plain_comments_and_tests_are_left_out() {
        for text in [
            "/// There, forever, marshall, its own, wherein_x.\nfn a() {}",
            "/// Is it to be? Of it, its own.\nfn a() {}",
            "// Whoever has it.",
            "fn whoever() {}",
            "#[cfg(test)]\nmod tests { /// Whoever.\n}",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }
}
