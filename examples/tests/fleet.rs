//! Tests of the examples of leaders and shards, from outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

fn lines_of(program: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program).current_dir(folder.path()).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_second_candidate_follows_the_first_leader() {
    let lines = lines_of(env!("CARGO_BIN_EXE_leader"));
    let place = |text: &str| lines.find(text).unwrap_or_else(|| panic!("{text} is missing: {lines}"));
    assert!(place("one leads with epoch") < place("one leads no longer"));
    assert!(place("one leads no longer") < place("two leads with epoch"));
}

#[test]
fn each_region_is_polled() {
    let lines = lines_of(env!("CARGO_BIN_EXE_poller"));
    for region in ["eu", "us", "asia", "africa"] {
        assert!(lines.contains(&format!("fetched what is new in {region}")), "{lines}");
        assert!(lines.contains(&format!("{region} is polled by ")), "{lines}");
    }
    assert!(lines.contains("one sees that it holds 4 of 4"), "{lines}");
}
