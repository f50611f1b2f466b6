//! The fleet: workers are listed, paused, resumed and drained by name, and a disabled task waits.

use serde_json::{Value, json};

use crate::{
    servers::servers,
    support::{Folder, eventually},
};

const TASKS: &str = "[tasks.mark]\ncommand = [\"touch\", \"ran\"]\n";

fn workers(folder: &Folder) -> Vec<Value> {
    folder.run(&["workers", "--json"]).ended(0).json().as_array().unwrap().clone()
}

fn states(folder: &Folder) -> Vec<(String, String)> {
    let text = |worker: &Value, field: &str| worker[field].as_str().unwrap().to_owned();
    workers(folder).iter().map(|worker| (text(worker, "name"), text(worker, "state"))).collect()
}

fn listed(folder: &Folder, wanted: &[(&str, &str)]) {
    let wanted: Vec<_> =
        wanted.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect();
    eventually("the workers are in these states", || (states(folder) == wanted).then_some(()));
}

#[test]
fn a_paused_fleet_starts_nothing_until_it_is_resumed_also_after_a_restart() {
    let folder = Folder::with(TASKS);
    let one = folder.worker(&["--name", "one", "--tag", "gpu"]);
    let _two = folder.worker(&["--name", "two"]);
    listed(&folder, &[("one", "awake"), ("two", "awake")]);
    let gpu = folder.run(&["workers", "--tag", "gpu", "--json"]).json();
    assert_eq!(
        (&gpu[0]["name"], &gpu[0]["queues"], &gpu[1]),
        (&json!("one"), &json!(["default"]), &json!(null))
    );
    assert_eq!(gpu[0]["tasks"], json!(["mark"]));
    let roles = folder.run(&["fleet", "--json"]).ended(0).json();
    assert_eq!(roles, json!({ "leaders": [], "shards": [] }), "command tasks have no roles");

    let paused = folder.run(&["workers", "pause", "--all", "--json"]).ended(0).json();
    assert!(paused["results"].as_array().unwrap().iter().all(|result| result["done"] == true), "{paused}");
    assert_eq!(states(&folder), [("one".into(), "asleep".into()), ("two".into(), "asleep".into())]);
    let id = folder.send(&["mark"]);
    one.stop().ended(0);
    let _one = folder.worker(&["--name", "one"]);
    listed(&folder, &[("one", "asleep"), ("two", "asleep")]);
    folder.run(&["workers", "ping", "--all"]).ended(0);
    assert_eq!(
        (&folder.status(&id)["state"], &folder.status(&id)["started_at"]),
        (&json!("PENDING"), &json!(null))
    );
    assert!(!folder.path().join("ran").exists());
    assert_eq!(folder.run(&["why", &id, "--json"]).json()["reason"], "paused");

    folder.run(&["workers", "resume", "two"]).ended(0);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    assert_eq!((&folder.status(&id)["attempt"], &folder.status(&id)["worker"]), (&json!(1), &json!("two")));
    listed(&folder, &[("one", "asleep"), ("two", "awake")]);
    eventually("the work is counted", || {
        let two = workers(&folder).pop()?;
        let counts = [&two["processed"], &two["failed"], &two["retried"]];
        (counts == [&json!(1), &json!(0), &json!(0)] && two["memory"].as_u64()? > 0).then_some(())
    });
}

fn the_second_live_process_is_drained_alone(folder: &Folder) {
    folder.write("machinist.toml", TASKS);
    let _first = folder.worker(&["--name", "same"]);
    let second = folder.worker(&["--name", "same"]);
    listed(folder, &[("same", "awake"), ("same#2", "awake")]);
    folder.run(&["workers", "pause", "same"]).ended(0);
    let id = folder.send(&["mark"]);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    assert_eq!(folder.status(&id)["worker"], "same#2");
    folder.run(&["workers", "resume", "same"]).ended(0);
    folder.run(&["workers", "drain", "same#2"]).ended(0);
    second.end().ended(0).reports(&["worker same#2 is ready", "worker=same#2"]);
    listed(folder, &[("same", "awake")]);
    folder.run(&["workers", "pause", "other"]).ended(3).reports(&["other", "live workers: same"]);
    folder.run(&["workers", "pause", "sme"]).ended(3).reports(&["did you mean same?"]);
    folder.run(&["workers", "pause"]).ended(64);
    folder
        .run(&["registered", "disable", "mrak"])
        .ended(0)
        .reports(&["no live worker knows", "did you mean mark?"]);
}

#[test]
fn the_second_live_process_of_a_name_is_told_apart_and_drained_alone() {
    the_second_live_process_is_drained_alone(&Folder::new());
}

#[test]
fn the_second_live_process_is_drained_alone_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("the_second_live_process_is_drained_alone_on_rabbitmq_and_redis") {
        the_second_live_process_is_drained_alone(&folder);
    }
}

#[test]
fn a_paused_process_that_is_killed_is_asleep_under_its_name_after_its_restart_on_rabbitmq_and_redis() {
    let test =
        "a_paused_process_that_is_killed_is_asleep_under_its_name_after_its_restart_on_rabbitmq_and_redis";
    let Some(folder) = servers(test) else { return };
    folder.write("machinist.toml", TASKS);
    let _first = folder.worker(&["--name", "same"]);
    let second = folder.worker(&["--name", "same"]);
    listed(&folder, &[("same", "awake"), ("same#2", "awake")]);
    folder.run(&["workers", "pause", "same#2"]).ended(0);
    // Without a signal that it could obey: its session has not ended.
    drop(second);
    listed(&folder, &[("same", "awake"), ("same#2", "asleep")]);
    let next = folder.worker(&["--name", "same"]);
    eventually("it has the name, and sleeps", || {
        let listed = workers(&folder);
        let [_, worker] = &*listed else { return None };
        (worker["pid"] == next.id() && worker["name"] == "same#2" && worker["state"] == "asleep")
            .then_some(())
    });
    folder.run(&["workers", "resume", "same#2"]).ended(0);
    listed(&folder, &[("same", "awake"), ("same#2", "awake")]);
}

fn a_disabled_task_waits(folder: &Folder) {
    folder.write("machinist.toml", TASKS);
    let _worker = folder.worker(&["--name", "one"]);
    listed(folder, &[("one", "awake")]);
    let disabled = folder.run(&["registered", "disable", "mark", "--json"]).ended(0).json();
    assert_eq!(disabled["unconfirmed"], json!([]));
    assert_eq!(folder.run(&["registered", "--json"]).json()[0]["enabled"], false);
    let id = folder.send(&["mark"]);
    eventually("it is parked", || (!folder.status(&id)["parked"].is_null()).then_some(()));
    assert!(!folder.path().join("ran").exists());
    let why = folder.run(&["why", &id, "--json"]).ended(0).json();
    assert_eq!((&why["reason"], &why["class"]), (&json!("disabled"), &json!("act")));
    folder.run(&["why", "nobody", "--json"]).ended(3);
    folder.run(&["registered", "enable", "mark"]).ended(0);
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    assert_eq!(folder.status(&id)["attempt"], 1);
}

#[test]
fn a_disabled_task_waits_and_spends_no_attempt() {
    a_disabled_task_waits(&Folder::new());
}

#[test]
fn a_disabled_task_waits_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("a_disabled_task_waits_on_rabbitmq_and_redis") {
        a_disabled_task_waits(&folder);
    }
}

#[test]
fn a_task_that_requires_a_worker_is_sent_only_if_there_is_one() {
    let folder = Folder::with(TASKS);
    let _worker = folder.worker(&["--name", "one"]);
    listed(&folder, &[("one", "awake")]);
    let none =
        folder.run(&["send", "mark", "--queue", "nowhere", "--require-worker", "--json"]).ended(1).json();
    assert_eq!((&none["kind"], &none["code"]), (&json!("no_worker"), &json!(-201)));
    assert_eq!(folder.status(none["id"].as_str().unwrap())["state"], "FAILURE");
    let queues = folder.run(&["queues", "--json"]).json();
    assert!(queues.as_array().unwrap().iter().all(|queue| queue["queue"] != "nowhere"), "{queues}");
    let sent = folder.run(&["send", "mark", "--require-worker", "--wait"]).ended(0);
    assert!(sent.stderr.is_empty(), "{sent:?}");
    // One that is asleep counts.
    folder.run(&["workers", "pause", "--all"]).ended(0);
    let waits = folder.send(&["mark", "--require-worker"]);
    assert_eq!(folder.status(&waits)["state"], "PENDING");
}

#[test]
fn registered_tasks_tell_their_arguments_as_far_as_they_are_known() {
    let folder =
        Folder::with(&format!("{TASKS}[tasks.resize]\ncommand = [\"true\"]\nargs = [\"src\", \"width\"]\n"));
    let _worker = folder.worker(&["--name", "one"]);
    listed(&folder, &[("one", "awake")]);
    let known = folder.run(&["registered", "--json"]).ended(0).json();
    assert_eq!((&known[0]["name"], &known[0]["args"]), (&json!("mark"), &json!(null)));
    let args = json!([{ "name": "src", "type": null }, { "name": "width", "type": null }]);
    assert_eq!(
        (&known[1]["name"], &known[1]["args"], &known[1]["results"]),
        (&json!("resize"), &args, &json!(null))
    );
    let shown = folder.run(&["registered"]).ended(0).stdout;
    assert!(shown.contains("src, width"), "{shown}");
}

#[test]
fn a_worker_shows_what_it_runs() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--name", "one", "--demo"]);
    let id = folder.send(&["sleep", "600000"]);
    eventually("it runs", || (folder.status(&id)["state"] == "STARTED").then_some(()));
    // The worker renews its session at an order, and says what it runs.
    let runs = eventually("it is shown", || {
        folder.run(&["workers", "ping", "one"]).ended(0);
        let shown = folder.run(&["workers", "show", "one", "--json"]).ended(0).json();
        (shown["runs"] != json!([])).then(|| shown["runs"].clone())
    });
    let started = &folder.status(&id)["started_at"];
    assert_eq!(runs, json!([{ "id": id, "task": "sleep", "since": started }]));
    let shown = folder.run(&["workers", "show", "one"]).ended(0).stdout;
    assert!(shown.contains(&format!("{id} sleep since ")), "{shown}");
    let more = folder.send(&["sleep", "600000"]);
    eventually("it runs", || (folder.status(&more)["state"] == "STARTED").then_some(()));
    let all = folder.run(&["workers", "show", "one", "--all", "--json"]).ended(0).json();
    let ids: Vec<_> = all["runs"].as_array().unwrap().iter().map(|run| run["id"].clone()).collect();
    assert_eq!(ids, [json!(id), json!(more)], "it is asked, and tells what runs now");
}

#[test]
fn the_list_of_workers_is_printed_again_when_it_has_changed() {
    let folder = Folder::with(TASKS);
    let mut watching = folder.start(&["workers", "--watch", "--json"]);
    watching.stdout.until("[]");
    let _worker = folder.worker(&["--name", "one"]);
    watching.stdout.until("\"name\":\"one\"");
    watching.signal(nix::sys::signal::Signal::SIGINT);
    watching.end().ended(0);
}

#[test]
fn lists_are_paged_by_name_and_ended_workers_are_not_listed() {
    let folder = Folder::with(&format!("{TASKS}[tasks.other]\ncommand = [\"true\"]\n"));
    let _worker = folder.worker(&["--name", "one"]);
    listed(&folder, &[("one", "awake")]);
    let offline = folder.run(&["workers", "--state", "offline", "--json"]).ended(0);
    assert_eq!(offline.reports(&["workers that have ended are not listed"]).json(), json!([]));
    for name in ["a", "b"] {
        folder.run(&["periodic", "add", name, "--cron", "@daily", "mark"]).ended(0);
    }
    let names = |line: &[&str]| {
        let ran = folder.run(&[line, &["--json"]].concat()).ended(0);
        let names: Vec<_> = ran.json().as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        (names, ran.stderr.contains("go on with --after"))
    };
    assert_eq!(names(&["periodic", "list", "--limit", "1"]), (vec![json!("a")], true));
    assert_eq!(names(&["periodic", "list", "--limit", "1", "--after", "a"]), (vec![json!("b")], false));
    assert_eq!(names(&["registered", "--limit", "1"]), (vec![json!("mark")], true));
    assert_eq!(names(&["registered", "--after", "mark"]), (vec![json!("other")], false));
    assert_eq!(names(&["workers", "--limit", "1"]), (vec![json!("one")], false));
    assert_eq!(names(&["workers", "--after", "one"]), (vec![], false));
    let roles = folder.run(&["fleet", "--limit", "1", "--json"]).ended(0).json();
    assert_eq!(roles, json!({ "leaders": [], "shards": [] }));
}
