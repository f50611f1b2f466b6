//! Tests of the recipes of `docs/delivery.md` against double effects: each example really aborts.

use std::{collections::HashSet, os::unix::process::ExitStatusExt, process::Command};

const SIGABRT: i32 = 6;

const DOC: &str = include_str!("../../docs/delivery.md");
const DEDUP: &str = include_str!("../src/bin/dedup.rs");
const OUTBOX: &str = include_str!("../src/bin/outbox.rs");

/// Runs a program; returns its lines, and the signal that ended it.
fn run(program: &str, folder: &tempfile::TempDir, arguments: &[&str]) -> (Vec<String>, Option<i32>) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .output()
        .expect("it starts");
    let signal = output.status.signal();
    assert!(signal.is_some() || output.status.success(), "{output:?}");
    (String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect(), signal)
}

fn dedup(folder: &tempfile::TempDir, arguments: &[&str]) -> (Vec<String>, Option<i32>) {
    run(env!("CARGO_BIN_EXE_dedup"), folder, arguments)
}

fn outbox(folder: &tempfile::TempDir, arguments: &[&str]) -> (Vec<String>, Option<i32>) {
    run(env!("CARGO_BIN_EXE_outbox"), folder, arguments)
}

/// Reads id, attempt, token and effect of each run: `run of ID, attempt 1, token 7: deposited`.
fn runs(lines: &[String]) -> Vec<(&str, u32, u64, &str)> {
    let runs = lines.iter().filter(|line| line.starts_with("run of "));
    runs.map(|line| read_run(line).unwrap_or_else(|| panic!("no run: {line}"))).collect()
}

fn read_run(line: &str) -> Option<(&str, u32, u64, &str)> {
    let (id, rest) = line.strip_prefix("run of ")?.split_once(", attempt ")?;
    let (attempt, rest) = rest.split_once(", token ")?;
    let (token, did) = rest.split_once(": ")?;
    Some((id, attempt.parse().ok()?, token.parse().ok()?, did))
}

#[test]
fn a_task_that_is_retried_after_its_effect_has_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, _) = dedup(&folder, &[]);
    let runs = runs(&lines);
    let [(first, 1, token, "deposited"), (second, 2, higher, "was done before")] = runs[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(first, second);
    assert!(higher > token);
    assert_eq!(lines.last().unwrap(), "ada has 100 cents");
}

#[test]
fn a_task_whose_process_dies_after_its_effect_has_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let (before, signal) = dedup(&folder, &["crash"]);
    assert_eq!(signal, Some(SIGABRT));
    let (after, _) = dedup(&folder, &[]);
    let ([(first, 1, token, "deposited")], [(second, 1, higher, "was done before")]) =
        (&runs(&before)[..], &runs(&after)[..])
    else {
        panic!("{before:?}, then {after:?}")
    };
    assert_eq!(first, second);
    assert!(higher > token);
    assert_eq!(after.last().unwrap(), "ada has 100 cents");
}

#[test]
fn what_a_relay_sends_again_keeps_its_id_and_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let (before, signal) = outbox(&folder, &["lamp", "crash"]);
    assert_eq!(signal, Some(SIGABRT));
    let (after, _) = outbox(&folder, &["chair"]);
    let (later, _) = outbox(&folder, &["table"]);
    let all: Vec<&str> = before.iter().chain(&after).chain(&later).map(String::as_str).collect();
    let after_words =
        |words: &str| -> Vec<&str> { all.iter().filter_map(|line| line.strip_prefix(words)).collect() };
    let ids = ["lamp", "chair", "table"].map(|item| after_words(&format!("ordered {item}: "))[0]);
    let [lamp, chair, table] = ids;
    assert_eq!(after_words("sent "), [lamp, lamp, chair, table]);
    let mut runs = after_words("run of ");
    runs.sort_unstable();
    let expected = [(lamp, "lamp"), (chair, "chair"), (table, "table")];
    assert_eq!(runs, expected.map(|(id, item)| format!("{id}: shipped {item}")));
}

#[test]
fn the_page_shows_the_code_that_is_run() {
    let blocks: Vec<&str> =
        DOC.split("```rust\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect();
    let shown: HashSet<&str> = blocks
        .iter()
        .map(|block| {
            let source =
                [("dedup", DEDUP), ("outbox", OUTBOX)].into_iter().find(|(_, text)| text.contains(block));
            source.unwrap_or_else(|| panic!("no example has this part of docs/delivery.md:\n{block}")).0
        })
        .collect();
    assert_eq!(shown.len(), 2, "each recipe is shown");
}
