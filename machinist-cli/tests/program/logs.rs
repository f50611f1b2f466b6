//! The log of a worker: nothing that is in order is an error, and nobody fills it.

use crate::{
    servers::servers,
    support::{Folder, eventually},
};

#[test]
fn an_ordinary_stop_logs_no_error() {
    let Some(mut folder) = servers("an_ordinary_stop_logs_no_error") else { return };
    // With the lines of the AMQP library, which the program hides by default.
    folder.set("RUST_LOG", "info");
    let worker = folder.worker(&["--demo"]);
    folder.run(&["send", "add", "1", "2", "--count", "30", "--wait=10m"]).ended(0);
    let ran = worker.stop().ended(0).reports(&["stopped"]);
    let stopping = ran.stderr.split_once("stopping").unwrap().1;
    for level in ["ERROR", "WARN"] {
        assert!(!stopping.contains(level), "{stopping}");
    }
}

#[test]
fn each_run_is_one_line_with_its_worker_task_and_outcome() {
    let folder = Folder::with("[tasks.fine]\ncommand = [\"true\"]\n[tasks.bad]\ncommand = [\"false\"]\n");
    let worker = folder.worker(&["--log", "json", "--name", "one"]);
    let fine = folder.outcome(&["fine"]);
    let bad = folder.outcome(&["bad"]);
    let ran = worker.stop().ended(0);
    let lines: Vec<serde_json::Value> =
        ran.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for (task, name, outcome) in [(&fine, "fine", "SUCCESS"), (&bad, "bad", "FAILURE")] {
        let of_task: Vec<_> = lines
            .iter()
            .filter(|line| line["span"]["id"] == task["id"] && !line["outcome"].is_null())
            .collect();
        assert_eq!(of_task.len(), 1, "{ran:?}");
        let (line, span) = (of_task[0], &of_task[0]["span"]);
        assert_eq!((&line["outcome"], &span["task"]), (&outcome.into(), &name.into()), "{line}");
        assert_eq!((&span["queue"], &span["worker"]), (&"default".into(), &"one".into()), "{line}");
        assert_eq!((&span["id"], &span["trace_id"]), (&task["id"], &task["trace_id"]), "{line}");
        assert!(span["trace_id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
        assert!(span["attempt"] == 1 && line["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line}");
    }
    let stopped = lines.iter().find(|line| line["message"] == "stopped").unwrap();
    assert_eq!(stopped["worker"], "one");
}

#[test]
fn many_tasks_that_nobody_knows_are_one_line_for_each_name() {
    let folder = Folder::with("[tasks.known]\ncommand = [\"true\"]\n");
    let worker = folder.worker(&[]);
    for name in ["nobody-a", "nobody-b"] {
        folder.run(&["send", name, "--count", "50"]).ended(0);
    }
    eventually("all wait", || {
        folder.run(&["queues"]).ended(0).stderr.contains("offered again for an hour: 100").then_some(())
    });
    let ran = worker.stop().ended(0);
    for name in ["nobody-a", "nobody-b"] {
        let lines = ran.stderr.lines().filter(|line| line.contains("offered again") && line.contains(name));
        assert_eq!(lines.count(), 1, "{ran:?}");
    }
}
