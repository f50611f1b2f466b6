//! Orders to workers and switches for all of them: restart, set, paused queues, and who may give them.

use serde_json::{Value, json};

use crate::{
    servers::servers,
    support::{Folder, eventually},
};

const TASKS: &str = "[tasks.mark]\ncommand = [\"touch\", \"ran\"]\n";

fn worker(folder: &Folder, name: &str) -> Option<Value> {
    let workers = folder.run(&["workers", "--json"]).ended(0).json();
    workers.as_array().unwrap().iter().find(|worker| worker["name"] == name).cloned()
}

fn is(folder: &Folder, name: &str, field: &str, value: &Value) {
    eventually("the worker is listed like this", || (worker(folder, name)?[field] == *value).then_some(()));
}

fn a_worker_restarts(folder: &Folder) {
    folder.write("machinist.toml", TASKS);
    let plain = folder.worker(&["--name", "plain"]);
    let refused = folder.run(&["workers", "restart", "plain", "--json"]).ended(1).json();
    let result = &refused["results"][0];
    assert!(result["done"] == false && result["reason"].as_str().unwrap().contains("restart_exit_code"));
    plain.stop().ended(0);
    folder.write("machinist.toml", &format!("{TASKS}[worker]\nrestart_exit_code = 42\n"));
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
fn a_worker_that_is_to_end_now_hands_back_what_runs() {
    let wait = "[tasks.wait]\ncommand = [\"sleep\", \"1000\"]\n";
    let folder = Folder::with(&format!("{wait}[worker]\nrestart_exit_code = 42\n"));
    let id = folder.send(&["wait"]);
    let ends = |order: &str, code: i32| {
        let worker = folder.worker(&["--name", "one"]);
        eventually("it runs", || (folder.status(&id)["state"] == "STARTED").then_some(()));
        folder.run(&["workers", order, "one", "--now"]).ended(0);
        worker.end().ended(code);
        let status = folder.status(&id);
        assert_eq!((&status["state"], &status["attempt"]), (&json!("PENDING"), &json!(1)), "{status}");
    };
    ends("drain", 75);
    ends("restart", 42);
}

#[test]
fn a_worker_restarts_only_where_an_exit_code_is_configured() {
    a_worker_restarts(&Folder::new());
}

#[test]
fn a_worker_restarts_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("a_worker_restarts_on_rabbitmq_and_redis") {
        a_worker_restarts(&folder);
    }
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
    folder.write("machinist.toml", "[worker]\nmax_memory = \"1MiB\"\nrestart_exit_code = 42\n");
    folder.start(&["worker", "--demo"]).end().ended(42).reports(&["max_memory is 1048576"]);
}

fn options_are_changed(folder: &Folder) {
    folder.write("machinist.toml", TASKS);
    let _worker = folder.worker(&["--name", "one", "--concurrency", "2"]);
    is(folder, "one", "state", &json!("awake"));
    let set = ["workers", "set", "one", "--concurrency", "5", "--add-queue", "more", "--log-level", "debug"];
    // A broker on a busy machine may take longer to declare a queue than the worker waits. Nothing has changed then.
    eventually("the options are set", || (folder.run(&set).code == 0).then_some(()));
    is(folder, "one", "concurrency", &json!(5));
    is(folder, "one", "queues", &json!(["default", "more"]));
    let id = folder.send(&["mark", "--queue", "more"]);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    folder.run(&["workers", "set", "one", "--drop-queue", "default"]).ended(0);
    is(folder, "one", "queues", &json!(["more"]));
    let last = folder.run(&["workers", "set", "one", "--drop-queue", "more", "--json"]).ended(1).json();
    assert!(last["results"][0]["reason"].as_str().unwrap().contains("pause it instead"), "{last}");
    let level = folder.run(&["workers", "set", "one", "--log-level", "loud", "--json"]).ended(1).json();
    assert!(level["results"][0]["reason"].as_str().unwrap().contains("not a log level"), "{level}");
    folder.run(&["workers", "set", "one"]).ended(64);
}

#[test]
fn options_of_a_running_worker_are_changed_until_it_ends() {
    options_are_changed(&Folder::new());
}

#[test]
fn options_are_changed_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("options_are_changed_on_rabbitmq_and_redis") {
        options_are_changed(&folder);
    }
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
    folder.run(&["send", "mark", "--wait=10m"]).ended(0);
}

#[test]
fn a_worker_reads_its_configuration_again_and_a_wrong_one_changes_nothing() {
    // Those who give orders read another file.
    let folder = Folder::new();
    let write = |text: &str| folder.write("worker.toml", text);
    write(&format!("[worker]\nconcurrency = 2\n{TASKS}"));
    let mut one = folder.worker(&["--name", "one", "--config", "worker.toml"]);
    is(&folder, "one", "state", &json!("awake"));
    let reload = |code: i32| {
        folder.run(&["workers", "reload", "one", "--json"]).ended(code).json()["results"][0].clone()
    };
    write("[worker]\nconcurrency = 3\nconcurency = 4\n");
    let refused = reload(1);
    assert!(refused["reason"].as_str().unwrap().contains("worker.toml:3:1: unknown key"), "{refused}");
    one.stderr.until("configuration and keys unchanged");
    is(&folder, "one", "concurrency", &json!(2));

    write(
        "[worker]\nconcurrency = 3\ngrace = \"21s\"\ntags = [\"gpu\"]\nqueues = [\"default\", \"more\"]\n\
         [tasks.new]\ncommand = [\"touch\", \"new\"]\nrate = \"9/s\"\n",
    );
    let done = reload(0);
    assert_eq!(
        (&done["done"], &done["reason"]),
        (&json!(true), &json!("a restart is needed for worker.grace"))
    );
    is(&folder, "one", "concurrency", &json!(3));
    is(&folder, "one", "tags", &json!(["gpu"]));
    is(&folder, "one", "queues", &json!(["default", "more"]));
    let id = folder.send(&["new", "--queue", "more"]);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    is(&folder, "one", "tasks", &json!(["new"]));
    let id = folder.send(&["new"]);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    let limits = folder.run(&["limits", "list", "--json"]).ended(0).json();
    assert_eq!((&limits[0]["target"], &limits[0]["rate"]), (&json!("task:new"), &json!("9/s")));

    write("[periodic.often]\ntask = \"add\"\nevery = \"1s\"\nargs = [1, 2]\n");
    one.signal(nix::sys::signal::Signal::SIGHUP);
    one.stderr.until("a restart is needed for worker.grace");
    is(&folder, "one", "tags", &json!([]));
    eventually("it ticks", || {
        // It is unknown for the moment between the reload and the first look of the worker.
        let shown = folder.run(&["periodic", "show", "often", "--json"]);
        (shown.code == 0 && !shown.json()["last"].is_null()).then_some(())
    });
    one.stop().ended(0);
}

#[test]
fn a_worker_sleeps_by_its_timetable_and_says_so() {
    let sleep = "[worker]\nsleep = [{ from = \"00:00\", to = \"24:00\", time_zone = \"Europe/Berlin\" }]\n";
    let folder = Folder::with(&format!("{sleep}{TASKS}"));
    let _one = folder.worker(&["--name", "one"]);
    is(&folder, "one", "state", &json!("asleep"));
    let asleep = worker(&folder, "one").unwrap()["asleep"].clone();
    assert!(asleep.as_str().unwrap().contains("its timetable"), "{asleep}");
    let id = folder.send(&["mark"]);
    let why = folder.run(&["why", &id, "--json"]).ended(0).json();
    assert_eq!((&why["reason"], &why["class"]), (&json!("asleep"), &json!("wait")));
    let folder = Folder::with(&sleep.replace("Berlin", "Berlim"));
    folder.run(&["worker", "--demo"]).ended(78).reports(&["machinist.toml:2", "Europe/Berlim", "time zone"]);
}

#[test]
fn a_worker_follows_a_pattern_and_runs_what_requires_its_tags() {
    let folder = Folder::with(&format!("{TASKS}requires = [\"gpu\"]\n"));
    let _one = folder.worker(&["--name", "one", "--queue", "tenant-*", "--queue", "default"]);
    is(&folder, "one", "state", &json!("awake"));
    let id = folder.send(&["mark", "--queue", "tenant-a"]);
    let why = folder.run(&["why", &id, "--json"]).ended(0).json();
    assert_eq!((&why["reason"], &why["class"]), (&json!("no-tag"), &json!("act")));
    assert!(why["advice"].as_str().unwrap().contains("--queue tenant-a --tag gpu"), "{why}");
    let shown = worker(&folder, "one").unwrap();
    assert_eq!((&shown["patterns"], &shown["queues"]), (&json!(["tenant-*"]), &json!(["default"])));
    let _two = folder.worker(&["--name", "two", "--queue", "tenant-*", "--tag", "gpu"]);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    assert_eq!(folder.status(&id)["worker"], "two");
    assert_eq!(folder.status(&id)["queue"], "tenant-a+gpu");
    is(&folder, "two", "queues", &json!(["tenant-a+gpu"]));
    folder.run(&["send", "mark", "--requires", "GPU"]).ended(64).reports(&["GPU"]);
}
