//! Test of the example of limits: nobody calls the service more often than it allows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

#[test]
fn each_customer_keeps_to_the_rate() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_tenants")).current_dir(folder.path()).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("300 calls of 20 customers in "), "{text}");
    let most =
        text.lines().find_map(|line| line.strip_prefix("at most ")?.split(' ').next()?.parse::<u32>().ok());
    // The rate, the burst, and what a start may be late (docs/limits.md).
    assert!(most.is_some_and(|most| most <= 8), "{text}");
}
