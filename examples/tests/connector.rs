//! Test of the example that adds a connector: its scheme works in the file of settings and in all commands.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output, Stdio};

fn program(folder: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_connector"));
    command.args(arguments).current_dir(folder).env_clear().stdin(Stdio::null());
    command
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn a_scheme_of_another_crate_works_in_settings_and_commands() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| -> Output { program(&folder, arguments).output().unwrap() };
    let toml = "broker = \"notebook://jobs.db\"\nbackend = \"notebook://jobs.db\"\n";
    std::fs::write(folder.path().join("machinist.toml"), toml).unwrap();
    let mut worker = program(&folder, &["worker"]).stderr(Stdio::null()).spawn().unwrap();
    let sent = run(&["send", "shout", "hello", "--wait=60s"]);
    let doctor = run(&["doctor"]);
    let config = run(&["config"]);
    let unknown = run(&["queues", "--broker", "notes://jobs.db"]);
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert!(text(&sent.stdout).ends_with("\nHELLO\n"), "{sent:?}");
    assert!(text(&doctor.stdout).starts_with("broker and backend  "), "{doctor:?}");
    assert!(text(&config.stdout).contains("notebook://jobs.db"), "{config:?}");
    // The protection of an embedded file holds for it as well: its key is next to it.
    assert!(folder.path().join("jobs.db.key").exists());
    assert_eq!(unknown.status.code(), Some(78));
    assert!(text(&unknown.stderr).contains("memory://, notebook://"), "{unknown:?}");
}
