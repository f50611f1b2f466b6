//! Every example says in its header how to run it.

use super::{Finding, files::TextFile};

pub(super) fn check(file: &TextFile) -> Option<Finding> {
    let name = example_name(&file.path)?;
    let header = file.text.lines().take_while(|line| line.starts_with("//!"));
    let told = header.into_iter().any(|line| line.contains("cargo run") && line.contains(name));
    (!told).then(|| Finding {
        path: file.path.clone(),
        line: 1,
        what: "the header does not say how to run this example".to_owned(),
        remedy: "add a line `//! cargo run -p machinist-examples --example NAME` (or --bin) with its name",
    })
}

/// The name of the program whose main file this is.
fn example_name(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("examples/")?;
    let rest = rest.strip_prefix("examples/").or_else(|| rest.strip_prefix("src/bin/"))?;
    match rest.split_once('/') {
        None => rest.strip_suffix(".rs"),
        Some((name, "main.rs")) => Some(name),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_found(path: &str, text: &str) -> bool {
        check(&TextFile { path: path.to_owned(), text: text.to_owned() }).is_some()
    }

    #[test]
    fn an_example_needs_the_command_that_runs_it() {
        let text = "//! Adds.\n//!\n//! `cargo run -p machinist-examples --example add`\n\nfn main() {}\n";
        assert!(!is_found("examples/examples/add.rs", text));
        assert!(is_found("examples/examples/sub.rs", text));
        assert!(is_found("examples/src/bin/sub/main.rs", "//! Subtracts.\nfn main() {}\n"));
    }

    #[test]
    fn modules_and_other_crates_do_not() {
        for path in ["examples/src/lib.rs", "examples/src/bin/add/shared.rs", "machinist/src/lib.rs"] {
            assert!(!is_found(path, "//! Shared.\n"), "{path}");
        }
    }
}
