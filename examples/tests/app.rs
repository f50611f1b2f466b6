//! Test of the example that embeds the commands, from outside.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

fn app(folder: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
    command.args(arguments).current_dir(folder.path()).env_clear();
    command
}

#[test]
fn an_application_has_the_commands_with_its_own_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = app(&folder, &["worker"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let ready = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("is ready")));
    let sent: Vec<Output> =
        [&["send", "shout", "hello", "--wait=30s"][..], &["send", "count", "two words", "--wait=30s"]]
            .map(|arguments| app(&folder, arguments).output().unwrap())
            .into();
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert!(ready.is_some(), "the worker is ready");
    let results = sent.iter().map(|output| String::from_utf8_lossy(&output.stdout)).collect::<Vec<_>>();
    assert!(results[0].ends_with("\nHELLO!\n"), "{sent:?}");
    assert!(results[1].ends_with("\n2\n9\n"), "{sent:?}");
}
