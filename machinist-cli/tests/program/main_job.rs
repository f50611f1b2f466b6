//! The main job: a task is sent, a worker runs it, its state is shown. On SQLite, the default, without a server.

use serde_json::json;

use crate::support::Folder;

#[test]
fn the_file_of_init_works_as_it_says() {
    let folder = Folder::new();
    let said = folder.run(&["init"]).ended(0).stdout;
    assert!(
        said.contains("machinist worker") && said.contains("machinist send greet World --wait"),
        "{said}"
    );
    let worker = folder.worker(&[]);
    let sent = folder.run(&["send", "greet", "World", "--wait"]).ended(0).stdout;
    let [id, result] = sent.lines().collect::<Vec<_>>()[..] else { panic!("{sent}") };
    assert_eq!(result, "Hello, World!");

    let page = folder.run(&["status", id]).ended(0).stdout;
    for line in [
        "name      greet",
        "queue     default",
        "state     SUCCESS",
        "attempt   1",
        "results   Hello, World!",
    ] {
        assert!(page.contains(line), "{line:?} is missing: {page}");
    }
    for label in ["worker", "sent", "received", "started", "ended", "duration", "trace"] {
        let line =
            page.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("{label}: {page}"));
        assert!(!line.ends_with('-'), "{line}");
    }
    worker.stop().ended(0);
    folder.run(&["init"]).ended(78).reports(&["machinist.toml is there already", "--force"]);
    folder.run(&["init", "--force"]).ended(0);
}

#[test]
fn numbers_are_numbers_and_json_is_as_agreed() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    let task = folder.outcome(&["add", "2", "-1"]);
    assert_eq!(task["state"], "SUCCESS");
    assert_eq!(task["code"], 0);
    assert_eq!(task["results"], json!([1]));
    assert_eq!(task["kind"], json!(null));
    assert_eq!(task["trace_id"].as_str().unwrap().len(), 32);
    for instant in ["sent_at", "received_at", "started_at", "ended_at"] {
        assert!(task[instant].as_str().unwrap().ends_with('Z'), "{instant}: {task}");
    }
    let mut shown = folder.status(task["id"].as_str().unwrap());
    // Who sends a task knows its arguments: `send --wait` does not read them again.
    assert!(shown["args_hidden"].as_str().is_some_and(|why| why.contains("keep_args")), "{shown}");
    shown["args_hidden"] = json!(null);
    assert_eq!(shown, task);

    let echoed = folder.outcome(&["echo", "cat.png", "\"2\"", "{\"a\": [1]}", "--", "-x"]);
    assert_eq!(echoed["results"], json!(["cat.png", "2", {"a": [1]}, "-x"]));

    let failed = folder.run(&["send", "fail", "no luck", "--wait"]).ended(1).stdout;
    assert!(failed.ends_with("FAILURE (error, -3): no luck\n"), "{failed}");
}

#[test]
fn a_task_waits_for_its_worker() {
    let folder = Folder::new();
    let waited = folder.run(&["send", "add", "1", "2", "--wait=50ms", "--json"]).ended(2).json();
    assert_eq!(waited["state"], "PENDING");
    let id = waited["id"].as_str().unwrap();
    folder.run(&["status", id]).ended(2);
    assert_eq!(folder.run(&["queues", "--json"]).ended(0).json()[0]["ready"], 1);

    let mut watching = folder.start(&["status", id, "--watch"]);
    watching.stdout.until("PENDING");
    let _worker = folder.worker(&["--demo"]);
    watching.stdout.until("SUCCESS");
    assert!(watching.end().ended(0).stdout.contains("results   3"));
}

#[test]
fn retries_are_told_by_watching_and_in_the_history() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    let task = folder.outcome(&["fail", "again", "--retries", "2", "--backoff", "fixed:10ms"]);
    assert_eq!((&task["state"], &task["attempt"]), (&json!("FAILURE"), &json!(3)));
    assert_eq!(task["history"].as_array().unwrap().len(), 2);
    assert_eq!(task["history"][0]["error"]["message"], "again");
    assert_eq!(task["log"], "failing, attempt 3\n");
}

#[test]
fn many_are_sent_and_worked_by_two_workers() {
    let folder = Folder::new();
    let _workers = [folder.worker(&["--demo", "--name", "one"]), folder.worker(&["--demo", "--name", "two"])];
    let all =
        folder.run(&["send", "add", "2", "3", "--count", "300", "--wait=10m", "--json"]).ended(0).json();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 300);
    assert!(all.iter().all(|task| task["results"] == json!([5])));
    let ids = folder.run(&["send", "echo", "--count", "7"]).ended(0).stdout;
    assert_eq!(ids.lines().collect::<std::collections::BTreeSet<_>>().len(), 7);
}

#[test]
fn times_are_kept() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    let late = folder.outcome(&["echo", "--countdown", "300ms"]);
    assert!(late["started_at"].as_str() >= late["eta"].as_str(), "{late}");
    let slow = folder.outcome(&["sleep", "30", "--timeout", "100ms"]);
    assert_eq!((&slow["kind"], &slow["code"]), (&json!("timeout"), &json!(-2)));
}

#[test]
fn an_id_is_one_task() {
    let folder = Folder::new();
    for _ in 0..2 {
        assert_eq!(folder.send(&["add", "1", "--id", "order-7"]), "order-7");
    }
    let _worker = folder.worker(&["--demo"]);
    assert_eq!(folder.outcome(&["add", "1", "--id", "order-7"])["attempt"], 1);
}

#[test]
fn settings_are_shown_with_their_origin_and_without_passwords() {
    let mut folder = Folder::with("[worker]\nconcurrency = 3\n");
    folder.set("MACHINIST_BROKER", "amqp://shop:geheim@mq/%2f");
    folder.set("MACHINIST_BACKEND", "redis://h/0?password=geheim");
    folder.set("MACHINIST_NONSENSE", "is ignored");
    let rows = folder.run(&["config", "--json", "--namespace", "shop"]).ended(0).json();
    let row = |key: &str| rows.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap().clone();
    assert_eq!(
        row("broker"),
        json!({"key": "broker", "value": "amqp://shop:***@mq/%2f", "origin": "MACHINIST_BROKER"})
    );
    assert_eq!(row("namespace")["origin"], "flag --namespace");
    assert_eq!(row("worker.concurrency")["origin"], "machinist.toml:2");
    assert_eq!(row("worker.grace")["origin"], "default");
    assert_eq!(
        row("allow_unsigned"),
        json!({"key": "allow_unsigned", "value": "false", "origin": "default"})
    );
    let page = folder.run(&["config"]).ended(0).stdout;
    assert!(page.contains("redis://h/0?password=***") && !page.contains("geheim"), "{page}");
}

#[test]
fn doctor_is_content_with_the_default() {
    let folder = Folder::new();
    let rows = folder.run(&["doctor", "--json"]).ended(0).json();
    assert!(rows.as_array().unwrap().iter().all(|row| row["level"] != "error"), "{rows}");
    assert!(folder.run(&["doctor"]).ended(0).stdout.contains("machinist.db"));
}

#[test]
fn completions_exist_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Folder::new().run(&["completions", shell]).ended(0).stdout;
        assert!(script.contains("status") && script.contains("broker"), "{shell}");
    }
}

#[test]
fn the_file_is_one_file_and_a_backup_of_it_works_meanwhile() {
    let folder = Folder::new();
    let worker = folder.worker(&["--demo"]);
    let done = folder.outcome(&["add", "2", "3"]);
    let id = done["id"].as_str().unwrap();
    let copied = folder.run(&["backup", "copy.db", "--json"]).ended(0).json();
    assert!(copied["bytes"].as_u64().unwrap() > 0, "{copied}");
    assert_eq!(copied["file"], "copy.db");
    let of_copy = ["--broker", "sqlite://copy.db", "--backend", "sqlite://copy.db"];
    let status = folder.run(&[&["status", id, "--json"][..], &of_copy].concat()).ended(0).json();
    assert_eq!(status["results"], json!([5]));
    folder.run(&["backup", "copy.db"]).ended(64).reports(&["copy.db: exists already", "name another file"]);
    let elsewhere = ["--broker", "amqp://localhost", "--backend", "redis://localhost"];
    folder.run(&[&["backup", "other.db"][..], &elsewhere].concat()).ended(78).reports(&["sqlite://FILE"]);

    // Whoever ends last, the worker or a short command, leaves one file.
    let one_file = |when: &str| {
        let files: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let log = files.iter().any(|name| name.to_string_lossy().starts_with("machinist.db-wal"));
        assert!(!log, "{when}: {files:?}");
    };
    worker.stop().ended(0);
    one_file("after the worker");
    for _ in 0..5 {
        let sent = folder.run(&["send", "add", "1", "1"]).ended(0).stdout;
        one_file("after a short command");
        std::fs::copy(folder.path().join("machinist.db"), folder.path().join("plain.db")).unwrap();
        let of_copy = ["--broker", "sqlite://plain.db", "--backend", "sqlite://plain.db"];
        folder.run(&[&["status", sent.trim()][..], &of_copy].concat()).ended(2);
    }
}
