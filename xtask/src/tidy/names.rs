//! A type name is defined once in the product crates.
//!
//! Two types of one name make every sentence about either ambiguous, and every import a guess.

use std::collections::BTreeMap;

use super::{
    Finding,
    files::TextFile,
    product,
    source::{Source, Token, clear},
};

/// Names that more than one file may define, each with the reason.
const ALLOWED: [(&str, &str); 0] = [];

const TYPE_WORDS: [&str; 5] = ["struct", "enum", "trait", "union", "type"];

/// Finds names that more than one file defines.
pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut places: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
    for module in product::modules(files) {
        let code = clear(&module.file.text);
        for (name, line) in types(&Source::new(&code).tokens) {
            let places = places.entry(name.to_owned()).or_default();
            // One file may define a type once for each feature.
            if !places.iter().any(|(path, _)| *path == module.file.path) {
                places.push((module.file.path.clone(), line));
            }
        }
    }
    places.retain(|name, places| places.len() > 1 && !ALLOWED.iter().any(|(allowed, _)| allowed == name));
    places.iter().map(|(name, places)| finding(name, places)).collect()
}

fn finding(name: &str, places: &[(String, usize)]) -> Finding {
    let (path, line) = places[0].clone();
    let others: Vec<_> = places[1..].iter().map(|(path, line)| format!("{path}:{line}")).collect();
    Finding {
        path,
        line,
        what: format!("the type name `{name}` is also defined in {}", others.join(", ")),
        remedy: "say in each name what tells it from the other",
    }
}

/// Types that are defined at the level of a module, with their lines.
fn types<'a>(tokens: &[Token<'a>]) -> Vec<(&'a str, usize)> {
    let mut types = Vec::new();
    // For each open brace, if it is a module's.
    let mut braces = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "{" => braces.push(at >= 2 && tokens[at - 2].text == "mod"),
            "}" => {
                braces.pop();
            }
            word if TYPE_WORDS.contains(&word) && braces.iter().all(|is_module| *is_module) => {
                let name = tokens.get(at + 1).filter(|name| name.text.starts_with(char::is_uppercase));
                types.extend(name.map(|name| (name.text, name.line)));
            }
            _ => {}
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| TextFile { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        check(&files)
            .iter()
            .map(|finding| format!("{}:{}: {}", finding.path, finding.line, finding.what))
            .collect()
    }

    #[test]
    fn a_name_of_two_files_is_found_once_with_all_its_places() {
        let files = [
            ("machinist-x/src/a.rs", "\npub struct A;\nstruct B;"),
            ("machinist-x/src/b.rs", "pub(crate) enum A {}"),
            ("machinist/src/c.rs", "type A = B<C>;"),
        ];
        assert_eq!(
            found(&files),
            [
                "machinist-x/src/a.rs:2: the type name `A` is also defined in machinist-x/src/b.rs:1, machinist/src/c.rs:1"
            ]
        );
    }

    #[test]
    fn a_name_of_one_file_is_defined_once() {
        let text = "#[cfg(a)]\nstruct A;\n#[cfg(not(a))]\nstruct A;\nmod b { struct A; }";
        assert_eq!(found(&[("machinist/src/a.rs", text)]), [""; 0]);
    }

    #[test]
    fn types_of_modules_are_read() {
        let text =
            "struct A(B); enum C { D } pub trait E<F> { type G; } union H {} type I = J; unsafe trait K {}";
        let code = clear(text);
        let names =
            |tokens: &[Token<'_>]| types(tokens).iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&Source::new(&code).tokens), ["A", "C", "E", "H", "I", "K"]);
        let code = clear("mod a { mod b { struct A; } fn c() { struct B; } } impl D for E { type F = G; }");
        assert_eq!(names(&Source::new(&code).tokens), ["A"]);
    }

    #[test]
    fn types_of_tests_and_of_other_crates_are_left_out() {
        let defined = ("machinist/src/a.rs", "struct A;");
        for other in [
            ("machinist/src/b.rs", "#[cfg(test)]\nmod tests { struct A; }"),
            ("machinist/tests/b.rs", "struct A;"),
            ("xtask/src/b.rs", "struct A;"),
            ("machinist/src/b.rs", "// struct A;\nfn a() { struct A; }"),
        ] {
            assert_eq!(found(&[defined, other]), [""; 0], "{other:?}");
        }
    }
}
