//! Docs open with a noun or a verb: "Key that signs", "Publishes a message".
//!
//! Indexes and hovers show the first line alone. A clause that opens with "what" or "whether" is half a sentence there.

use super::{Finding, files::TextFile, product, prose::Prose};

/// Words that open a clause.
const CLAUSES: [&str; 21] = [
    "What",
    "Who",
    "Whom",
    "Whose",
    "Whoever",
    "Whatever",
    "Whether",
    "Where",
    "When",
    "While",
    "Why",
    "How",
    "Which",
    "That",
    "As",
    "If",
    "Of",
    "To",
    "It is",
    "There is",
    "There are",
];

/// Finds docs that open with a clause.
pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for module in product::modules(files) {
        for passage in Prose::new(&module.file.text).docs {
            if let Some(clause) = passage.lines.first().and_then(|first| clause(first)) {
                findings.push(Finding {
                    path: module.file.path.clone(),
                    line: passage.line,
                    what: format!("the docs open with `{clause}`"),
                    remedy: "open with the noun that it is, or with what it does: `Number of`, `Returns`, `true` if",
                });
            }
        }
    }
    findings
}

fn clause(line: &str) -> Option<&'static str> {
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-');
    CLAUSES.into_iter().find(|clause| line.strip_prefix(clause).is_some_and(|rest| !goes_on(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<usize> {
        let file = TextFile { path: path.to_owned(), text: text.to_owned() };
        check(&[file]).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn clauses_are_found_in_first_lines_only() {
        let text =
            "//! What it is.\n\n/// Key of it.\n///\n/// Where it is.\n#[a]\n/// If it is.\nstruct A;\n";
        assert_eq!(found("machinist/src/a.rs", text), [1, 7]);
        assert_eq!(found("xtask/src/a.rs", text), [0; 0]);
    }

    #[test]
    fn nouns_and_verbs_are_no_clauses() {
        for line in
            ["Wherever", "Ifs of it", "Tokens.", "As-is copy of it.", "It isolates", "There", "`If`", ""]
        {
            assert_eq!(clause(line), None, "{line}");
        }
        for line in ["If it", "What's", "There are two", "As: a"] {
            assert!(clause(line).is_some(), "{line}");
        }
    }
}
