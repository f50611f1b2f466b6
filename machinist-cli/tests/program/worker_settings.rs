//! Settings of a worker, and options of tasks that an application registers.

use nix::sys::signal::Signal;

use crate::support::Folder;

/// Rows of `machinist config --json`, as `key=value (origin)`.
fn rows(folder: &Folder, start: &str) -> Vec<String> {
    let json = folder.run(&["config", "--json"]).ended(0).json();
    let text = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap().to_owned();
    let rows = json.as_array().unwrap().iter().filter(|row| text(row, "key").starts_with(start));
    rows.map(|row| format!("{}={} ({})", text(row, "key"), text(row, "value"), text(row, "origin"))).collect()
}

#[test]
fn a_worker_is_named_by_flag_variable_or_file() {
    let mut folder = Folder::with("[worker]\nname = \"from-file\"\ntags = [\"gpu\"]\nlook_ahead = 0\n");
    assert!(folder.worker(&["--demo"]).stop().stderr.contains("worker from-file is ready"));
    folder.set("MACHINIST_WORKER_NAME", "from-variable");
    folder.set("MACHINIST_TAGS", "gpu, zone:eu");
    assert!(folder.worker(&["--demo"]).stop().stderr.contains("worker from-variable is ready"));
    let worker = folder.worker(&["--demo", "--name", "from-flag", "--tag", "slow", "--look-ahead", "3"]);
    worker.signal(Signal::SIGTERM);
    assert!(worker.end().stderr.contains("worker from-flag is ready"));
    let rows = rows(&folder, "worker.");
    for row in [
        "worker.name=from-variable (MACHINIST_WORKER_NAME)",
        "worker.tags=gpu, zone:eu (MACHINIST_TAGS)",
        "worker.look_ahead=0 (machinist.toml:4)",
    ] {
        assert!(rows.iter().any(|known| known == row), "{row}: {rows:?}");
    }
}

#[test]
fn options_without_a_command_are_for_another_worker() {
    let folder = Folder::with("[tasks.mine]\nretries = 3\n[tasks.ok]\ncommand = [\"true\"]\n");
    assert_eq!(rows(&folder, "tasks.mine"), ["tasks.mine.retries=3 (machinist.toml:2)"]);
    let ran = folder.worker(&[]).stop();
    assert!(ran.stderr.contains("runs ok from"), "{ran:?}");
    assert_eq!(
        ran.stderr.matches("[tasks.mine] has options for a task that this worker").count(),
        1,
        "{ran:?}"
    );
    assert!(ran.stderr.contains("machinist.toml:1"), "{ran:?}");
}

#[test]
fn a_bare_port_says_too_little() {
    Folder::new().run(&["worker", "--demo", "--health", "8080"]).ended(64).reports(&[
        "--health",
        "8080",
        "write 127.0.0.1:8080, or [::]:8080",
    ]);
}
