//! What a package on crates.io needs, read from the manifests: packing and compiling all of them takes minutes, and is
//! `cargo xtask package`.

use std::path::Path;

use super::{Finding, files::TextFile};

/// What the manifest of a published crate has, each as the start of a line, with an example.
const NEEDED: [(&str, &str); 8] = [
    ("description = \"", "add `description = \"…\"`, one sentence: what it is"),
    ("rust-version.workspace = true", "add `rust-version.workspace = true`"),
    ("license.workspace = true", "add `license.workspace = true`"),
    ("include.workspace = true", "add `include.workspace = true`, so that tests stay in the repository"),
    ("readme = \"", "add `readme = \"README.md\"`"),
    ("keywords = [\"", "add `keywords = [\"task-queue\", …]`, five at most"),
    ("categories = [\"", "add `categories = [\"asynchronous\", …]`, as crates.io knows them"),
    ("[package.metadata.docs.rs]", "add the section with `all-features = true`"),
];

/// Files beside the manifest of a published crate. The licences are links to those of the workspace.
const FILES: [&str; 2] = ["LICENSE-MIT", "LICENSE-APACHE"];

pub(super) fn check(root: &Path, files: &[TextFile]) -> Vec<Finding> {
    let exists = |path: &str| root.join(path).is_file();
    files.iter().flat_map(|file| check_manifest(file, &exists)).collect()
}

fn check_manifest(file: &TextFile, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let Some(folder) = file.path.strip_suffix("Cargo.toml") else { return Vec::new() };
    let has = |start: &str| file.text.lines().any(|line| line.starts_with(start));
    if !has("[package]") || has("publish = false") {
        return Vec::new();
    }
    let finding = |line, what, remedy| Finding { path: file.path.clone(), line, what, remedy };
    let missing = NEEDED.iter().filter(|(start, _)| !has(start));
    let mut findings: Vec<_> = missing
        .map(|(start, remedy)| finding(1, format!("a published crate without a line `{start}`"), *remedy))
        .collect();
    for name in FILES.iter().filter(|name| !exists(&format!("{folder}{name}"))) {
        let remedy = "link it to that of the workspace: ln -s ../NAME";
        findings.push(finding(1, format!("a published crate without the file {name}"), remedy));
    }
    for line in readme_that_is_missing(file, folder, exists).into_iter().chain(circles(&file.text)) {
        findings.push(finding(line.0, line.1, line.2));
    }
    findings
}

/// Where, what, and the remedy.
type Found = (usize, String, &'static str);

fn readme_that_is_missing(file: &TextFile, folder: &str, exists: &dyn Fn(&str) -> bool) -> Option<Found> {
    let (index, line) = file.text.lines().enumerate().find(|(_, line)| line.starts_with("readme = \""))?;
    let name = line.split('"').nth(1)?;
    (!exists(&format!("{folder}{name}")))
        .then(|| (index + 1, format!("the readme {name} does not exist"), "write it, or correct its path"))
}

/// Development dependencies on neighbours that have a version: crates.io would have to know them first.
fn circles(manifest: &str) -> Vec<Found> {
    let section =
        manifest.lines().enumerate().skip_while(|(_, line)| line.trim() != "[dev-dependencies]").skip(1);
    let neighbours = section
        .take_while(|(_, line)| !line.starts_with('['))
        .filter(|(_, line)| line.starts_with("machinist") && !line.contains("{ path = "));
    neighbours
        .map(|(index, line)| {
            let name = line.split(['.', ' ']).next().unwrap_or_default();
            let what = format!("the development dependency on {name} has a version");
            (index + 1, what, "name its path alone: `{ path = \"../NAME\" }`")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: &str = "[package]\nname = \"x\"\ndescription = \"X.\"\nrust-version.workspace = true\n\
                            license.workspace = true\ninclude.workspace = true\nreadme = \"README.md\"\n\
                            keywords = [\"a\"]\ncategories = [\"b\"]\n\n[package.metadata.docs.rs]\n";

    fn found(text: &str, present: &[&str]) -> Vec<String> {
        let file = TextFile { path: "x/Cargo.toml".to_owned(), text: text.to_owned() };
        let findings = check_manifest(&file, &|path| present.contains(&path));
        findings.into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn a_published_crate_needs_all_of_it() {
        let all = ["x/LICENSE-MIT", "x/LICENSE-APACHE", "x/README.md"];
        assert_eq!(found(COMPLETE, &all), [""; 0]);
        assert_eq!(found(COMPLETE, &all[..2]), ["7: the readme README.md does not exist"]);
        assert_eq!(found(COMPLETE, &all[1..]), ["1: a published crate without the file LICENSE-MIT"]);
        let without = COMPLETE.replace("description", "title");
        assert_eq!(found(&without, &all), ["1: a published crate without a line `description = \"`"]);
        assert_eq!(found("[package]\npublish = false\n", &[]), [""; 0]);
        assert_eq!(found("[workspace]\n", &[]), [""; 0]);
    }

    #[test]
    fn a_development_dependency_on_a_neighbour_has_no_version() {
        let dev = "\n[dev-dependencies]\nmachinist-test.workspace = true\n\
                   machinist-memory = { path = \"../machinist-memory\" }\ntokio.workspace = true\n\n\
                   [features]\nmachinist = []\n";
        let all = ["x/LICENSE-MIT", "x/LICENSE-APACHE", "x/README.md"];
        let expected = ["14: the development dependency on machinist-test has a version"];
        assert_eq!(found(&format!("{COMPLETE}{dev}"), &all), expected);
    }
}
