//! Test of the example of periodic tasks, from outside.

use std::process::Command;

#[test]
fn the_example_ticks_and_sends_an_extra_tick() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_periodic")).current_dir(folder.path()).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8_lossy(&output.stdout);
    assert!(lines.contains("tick.beat.") && lines.contains("report of the second"), "{lines}");
    assert!(lines.contains("report of the night"), "{lines}");
    assert!(lines.contains("nightly (code): 0 3 * * * (Europe/Berlin), 1 ticks so far"), "{lines}");
}
