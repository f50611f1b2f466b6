//! Orders to workers and switches for all of them: restart, set, paused queues, and who may give them.

use serde_json::{Value, json};

use crate::support::{Folder, eventually};

const TASKS: &str = "[tasks.mark]\ncommand = [\"touch\", \"ran\"]\n";

fn worker(folder: &Folder, name: &str) -> Option<Value> {
    let workers = folder.run(&["workers", "--json"]).ended(0).json();
    workers.as_array().unwrap().iter().find(|worker| worker["name"] == name).cloned()
}

fn is(folder: &Folder, name: &str, field: &str, value: &Value) {
    eventually("the worker is listed like this", || (worker(folder, name)?[field] == *value).then_some(()));
}

#[test]
fn a_worker_restarts_only_where_an_exit_code_is_configured() {
    let folder = Folder::with(TASKS);
    let plain = folder.worker(&["--name", "plain"]);
    let refused = folder.run(&["workers", "restart", "plain", "--json"]).ended(1).json();
    let result = &refused["results"][0];
    assert!(result["done"] == false && result["reason"].as_str().unwrap().contains("restart_exit_code"));
    plain.stop().ended(0);
    let folder = Folder::with(&format!("{TASKS}[worker]\nrestart_exit_code = 42\n"));
    let again = folder.worker(&["--name", "again"]);
    let done = folder.run(&["workers", "restart", "again", "--json"]).ended(0).json();
    again.end().ended(42);
    let id = done["id"].as_str().unwrap();
    let order = folder.run(&["workers", "order", id, "--json"]).ended(0).json();
    assert_eq!((&order["action"], &order["results"][0]["done"]), (&json!("restart"), &json!(true)));
    assert!(order["by"].is_string() && order["results"][0]["at"].is_string(), "{order}");
    folder.run(&["workers", "order", "none"]).ended(3);
}

#[test]
fn a_worker_that_has_done_enough_ends_to_be_started_again() {
    let folder = Folder::with(&format!("{TASKS}[worker]\nmax_tasks = 1\n"));
    folder.run(&["worker"]).ended(78).reports(&["max_tasks", "restart_exit_code"]);
    let folder = Folder::with(&format!("{TASKS}[worker]\nmax_tasks = 1\nrestart_exit_code = 42\n"));
    let worker = folder.worker(&["--name", "one"]);
    let id = folder.send(&["mark"]);
    worker.end().ended(42);
    assert_eq!(folder.status(&id)["state"], "SUCCESS");
}

#[test]
fn options_of_a_running_worker_are_changed_until_it_ends() {
    let folder = Folder::with(TASKS);
    let _worker = folder.worker(&["--name", "one", "--concurrency", "2"]);
    is(&folder, "one", "state", &json!("awake"));
    let set = ["workers", "set", "one", "--concurrency", "5", "--add-queue", "more", "--log-level", "debug"];
    folder.run(&set).ended(0);
    is(&folder, "one", "concurrency", &json!(5));
    is(&folder, "one", "queues", &json!(["default", "more"]));
    let id = folder.send(&["mark", "--queue", "more"]);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    folder.run(&["workers", "set", "one", "--drop-queue", "default"]).ended(0);
    is(&folder, "one", "queues", &json!(["more"]));
    let last = folder.run(&["workers", "set", "one", "--drop-queue", "more", "--json"]).ended(1).json();
    assert!(last["results"][0]["reason"].as_str().unwrap().contains("pause it instead"), "{last}");
    let level = folder.run(&["workers", "set", "one", "--log-level", "loud", "--json"]).ended(1).json();
    assert!(level["results"][0]["reason"].as_str().unwrap().contains("not a log level"), "{level}");
    folder.run(&["workers", "set", "one"]).ended(64);
}

#[test]
fn nothing_of_a_paused_queue_starts_until_it_is_resumed_also_after_a_restart() {
    let folder = Folder::with(TASKS);
    let args = ["--name", "one", "--queue", "default", "--queue", "other"];
    let one = folder.worker(&args);
    is(&folder, "one", "state", &json!("awake"));
    let paused = folder.run(&["queues", "pause", "default", "--json"]).ended(0).json();
    assert_eq!(
        (&paused["results"][0]["worker"], &paused["results"][0]["done"]),
        (&json!("one"), &json!(true))
    );
    let queues = folder.run(&["queues", "--json"]).json();
    let of =
        |name: &str| queues.as_array().unwrap().iter().find(|queue| queue["queue"] == name).unwrap().clone();
    assert_eq!((&of("default")["paused"], &of("other")["paused"]), (&json!(true), &json!(false)));
    let id = folder.send(&["mark"]);
    let other = folder.send(&["mark", "--queue", "other"]);
    eventually("the other queue goes on", || (folder.status(&other)["state"] == "SUCCESS").then_some(()));
    one.stop().ended(0);
    let _one = folder.worker(&args);
    let other = folder.send(&["mark", "--queue", "other"]);
    eventually("the other queue goes on", || (folder.status(&other)["state"] == "SUCCESS").then_some(()));
    assert_eq!(folder.status(&id)["state"], "PENDING");
    let why = folder.run(&["why", &id, "--json"]).json();
    assert!(
        why["reason"] == "paused" && why["sentence"].as_str().unwrap().contains("queue default"),
        "{why}"
    );
    folder.run(&["queues", "resume", "default"]).ended(0);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    assert_eq!(folder.status(&id)["attempt"], 1);
    folder.run(&["queues", "pause", "nowhere"]).ended(0).reports(&["no live worker"]);
}

#[test]
fn a_key_without_control_commands_nobody() {
    let folder = Folder::with(TASKS);
    let key = folder.key("machinist.db.key", "limited");
    let _worker = folder.worker(&["--name", "one"]);
    is(&folder, "one", "state", &json!("awake"));
    folder.write("machinist.toml", &format!("{TASKS}[[keys]]\nfile = \"{key}\"\ncontrol = false\n"));
    for command in [
        &["workers", "pause", "one"][..],
        &["queues", "pause", "default"],
        &["registered", "disable", "mark"],
    ] {
        folder.run(command).ended(77).reports(&["control = false", "may not command"]);
    }
    assert_eq!(worker(&folder, "one").unwrap()["state"], "awake");
    folder.run(&["send", "mark", "--wait=60s"]).ended(0);
}
