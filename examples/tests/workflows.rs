//! Tests of the examples of workflows, from outside.

use std::process::Command;

/// Runs an example to its end in a folder, and returns the lines that it prints.
fn run(program: &str, folder: &tempfile::TempDir, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn the_words_of_all_files_are_added_up() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), "one two").unwrap();
    std::fs::write(folder.path().join("b.txt"), "three").unwrap();
    let program = env!("CARGO_BIN_EXE_files");
    assert_eq!(run(program, &folder, &["a.txt", "b.txt"]), ["3 words in 2 files"]);
    assert_eq!(run(program, &folder, &[]), ["0 words in 0 files"]);
}

#[test]
fn a_retry_runs_only_what_did_not_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let lines = run(env!("CARGO_BIN_EXE_deploy"), &folder, &[]);
    let count = |line: &str| lines.iter().filter(|printed| *printed == line).count();
    for (line, times) in [
        ("build 7", 1),
        ("check app-7.tar", 1),
        ("upload app-7.tar", 2),
        ("switch to /srv/app-7.tar", 1),
        ("page: no space left on the server", 1),
        ("  upload  FAILURE (error)", 1),
        ("  switch  FAILURE (upstream)", 1),
    ] {
        assert_eq!(count(line), times, "{line}: {lines:?}");
    }
    assert_eq!(lines.last().unwrap(), "deployed to /srv/app-7.tar");
}

#[test]
fn every_page_that_is_found_is_reported_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = run(env!("CARGO_BIN_EXE_crawl"), &folder, &[]);
    lines.sort_unstable();
    let pages = ["site", "site/a", "site/a/a", "site/a/b", "site/b", "site/b/a", "site/b/b"];
    // Two names of 8 and 13 bytes with their slashes, behind the path twice.
    let mut expected = pages.map(|page| format!("{page}: {} bytes of pictures", 2 * page.len() + 21));
    expected.sort_unstable();
    assert_eq!(lines, expected);
}
