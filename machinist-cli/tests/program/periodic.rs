//! `machinist periodic`, on the embedded file and on RabbitMQ and Redis.

use std::time::Instant;

use machinist::{
    backend::Commit,
    id::{RecordId, RecordKind},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    servers::servers,
    support::{Folder, WAIT_TIMEOUT, eventually},
};

const TASKS: &str = r#"
[tasks.tick]
command = ["true"]
[periodic.daily]
task = "tick"
cron = "0 3 * * *"
time_zone = "Europe/Berlin"
"#;

/// Returns a periodic task of the list; `Null` if it is not listed.
fn listed(folder: &Folder, name: &str) -> Value {
    let all = folder.run(&["periodic", "list", "--json"]).ended(0).json();
    let found = all.as_array().unwrap().iter().find(|task| task["name"] == name);
    found.cloned().unwrap_or_default()
}

/// Waits until this holds.
#[track_caller]
fn until(mut holds: impl FnMut() -> bool) {
    eventually("it holds", || holds().then_some(()));
}

/// Returns the page of a periodic task.
fn page(folder: &Folder, name: &str) -> Value {
    folder.run(&["periodic", "show", name, "--json"]).ended(0).json()
}

fn two_workers_tick_pause_and_go_on(folder: &Folder) {
    folder.write("machinist.toml", TASKS);
    let one = folder.worker(&["--name", "one"]);
    let two = folder.worker(&["--name", "two"]);
    let added = folder.run(&["periodic", "add", "beat", "--every", "1s", "tick", "--json"]).ended(0).json();
    assert_eq!((&added["every"], &added["source"]), (&json!("1s"), &json!("live")));
    assert!(added["next"].is_string() && added["last"].is_null(), "{added}");
    until(|| page(folder, "beat")["ticks"].as_array().unwrap().len() >= 5);
    until(|| listed(folder, "beat")["last"]["state"] == "SUCCESS");

    // Each tick is one task, and none is left out.
    let ticks = page(folder, "beat")["ticks"].as_array().unwrap().clone();
    let instants: Vec<jiff::Timestamp> =
        ticks.iter().rev().map(|tick| tick["tick"].as_str().unwrap().parse().unwrap()).collect();
    for pair in instants.windows(2) {
        assert_eq!((pair[1] - pair[0]).get_seconds(), 1, "{ticks:?}");
    }
    let last = &ticks[ticks.len() - 1];
    assert!(last["id"].as_str().unwrap().starts_with("tick.beat.20"), "{last}");

    // A pause holds for new workers.
    folder.run(&["periodic", "pause", "beat"]).ended(0);
    let paused = page(folder, "beat");
    assert_eq!((&paused["paused"], &paused["next"]), (&json!(true), &Value::Null));
    one.stop().ended(0);
    let three = folder.worker(&["--name", "three"]);
    // A tick that was on its way when the pause was written may still come.
    let before = page(folder, "beat")["last"]["tick"].clone();
    let triggered = folder.run(&["periodic", "trigger", "beat", "--json"]).ended(0).json();
    let after = page(folder, "beat");
    assert_eq!(after["last"]["tick"], triggered["tick"]);
    assert_eq!(after["ticks"][1]["tick"], before, "no tick came in the pause");
    let id = triggered["id"].as_str().unwrap();
    until(|| folder.run(&["status", id, "--json"]).json()["state"] == "SUCCESS");
    folder.run(&["periodic", "resume", "beat"]).ended(0);
    until(|| page(folder, "beat")["last"]["tick"] != triggered["tick"]);

    // The definition of the file is listed as such.
    until(|| listed(folder, "daily")["source"] == "file");
    let daily = listed(folder, "daily");
    assert_eq!((&daily["cron"], &daily["time_zone"]), (&json!("0 3 * * *"), &json!("Europe/Berlin")));
    folder.run(&["periodic", "remove", "daily"]).ended(64).reports(&["machinist.toml", "change it there"]);
    folder.run(&["periodic", "add", "daily", "--every", "1s", "tick"]).ended(64).reports(&["machinist.toml"]);
    let next = folder.run(&["periodic", "next", "daily", "--count", "3", "--json"]).ended(0).json();
    assert_eq!(next.as_array().unwrap().len(), 3);

    folder.run(&["periodic", "remove", "beat"]).ended(0);
    assert_eq!(listed(folder, "beat"), Value::Null);
    folder.run(&["periodic", "show", "baet"]).ended(3).reports(&["no periodic task \"baet\""]);
    two.stop().ended(0);
    three.stop().ended(0);
}

#[test]
fn two_workers_tick_on_the_embedded_file() {
    two_workers_tick_pause_and_go_on(&Folder::new());
}

#[test]
fn two_workers_tick_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("two_workers_tick_on_rabbitmq_and_redis") {
        two_workers_tick_pause_and_go_on(&folder);
    }
}

fn a_killed_worker_is_followed_and_no_tick_is_lost(folder: &Folder) {
    folder.write("machinist.toml", "[tasks.tick]\ncommand = [\"sh\", \"-c\", \"echo {0} >> ticks\"]\n");
    let mut workers = vec![folder.worker(&["--name", "w0"]), folder.worker(&["--name", "w1"])];
    let args = ["periodic", "add", "beat", "--every", "1s", "tick", "x"];
    folder.run(&args).ended(0);
    let first = page(folder, "beat")["next"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    for number in 2..5 {
        let before = page(folder, "beat")["last"]["tick"].clone();
        until(|| page(folder, "beat")["last"]["tick"] != before);
        let killed = workers.remove(0);
        killed.signal(Signal::SIGKILL);
        drop(killed);
        workers.push(folder.worker(&["--name", &format!("w{number}")]));
    }
    let before = page(folder, "beat")["last"]["tick"].clone();
    until(|| page(folder, "beat")["last"]["tick"] != before);
    folder.run(&["periodic", "pause", "beat"]).ended(0);
    let begun = Instant::now();
    let last = page(folder, "beat")["last"]["tick"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    // Every instant from the first to the last has its task, and each succeeds.
    let mut instant = first;
    while instant <= last {
        let id = format!("tick.beat.{instant}");
        until(|| folder.run(&["status", &id, "--json"]).json()["state"] == "SUCCESS");
        instant += jiff::SignedDuration::from_secs(1);
        assert!(begun.elapsed() < WAIT_TIMEOUT * 4, "the ticks take too long");
    }
    for worker in workers {
        worker.stop().ended(0);
    }
}

#[test]
fn a_killed_worker_is_followed_on_the_embedded_file() {
    a_killed_worker_is_followed_and_no_tick_is_lost(&Folder::new());
}

#[test]
fn a_killed_worker_is_followed_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("a_killed_worker_is_followed_on_rabbitmq_and_redis") {
        a_killed_worker_is_followed_and_no_tick_is_lost(&folder);
    }
}

const FLOW: &str = r#"
name = "night"
[steps.first]
task = "tick"
[steps.last]
task = "tick"
after = ["first"]
immutable = true
"#;

fn a_workflow_ticks(folder: &Folder) {
    folder.write("flow.toml", FLOW);
    folder.write(
        "machinist.toml",
        "[tasks.tick]\ncommand = [\"true\"]\n[periodic.nightly]\nflow = \"flow.toml\"\ncron = \"0 3 * * *\"\n",
    );
    let worker = folder.worker(&[]);
    let add = ["periodic", "add", "beat", "--every", "1s", "--overlap", "skip", "--flow", "flow.toml"];
    let added = folder.run(&add).ended(0);
    assert!(!added.stderr.contains("no worker"), "{}", added.stderr);
    until(|| {
        let ticks = page(folder, "beat")["ticks"].as_array().unwrap().clone();
        ticks.iter().filter(|tick| tick["state"] == "SUCCESS").count() >= 2
    });
    let ticks = page(folder, "beat")["ticks"].as_array().unwrap().clone();
    let ended = ticks.iter().find(|tick| tick["state"] == "SUCCESS").unwrap();
    let whole = folder.run(&["status", ended["id"].as_str().unwrap(), "--json"]).ended(0).json();
    assert_eq!((&whole["state"], &whole["workflow_name"]), (&json!("SUCCESS"), &json!("night")), "{whole}");
    assert_eq!(whole["steps"].as_array().unwrap().len(), 2, "{whole}");
    until(|| listed(folder, "nightly")["source"] == "file");
    folder.run(&["periodic", "trigger", "nightly"]).ended(0);
    until(|| listed(folder, "nightly")["last"]["state"] == "SUCCESS");
    worker.stop().ended(0);
}

#[test]
fn a_workflow_ticks_on_the_embedded_file() {
    a_workflow_ticks(&Folder::new());
}

#[test]
fn a_workflow_ticks_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("a_workflow_ticks_on_rabbitmq_and_redis") {
        a_workflow_ticks(&folder);
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_a_remedy() {
    let folder = Folder::new();
    let add = |args: &[&str]| {
        let line: Vec<_> = ["periodic", "add", "never"].into_iter().chain(args.iter().copied()).collect();
        folder.run(&line).ended(64)
    };
    add(&["--cron", "0 0 31 2 *", "tick"]).reports(&["never comes"]);
    add(&["--cron", "0 3 * *", "tick"]).reports(&["cannot be read", "0 3 * * *"]);
    add(&["--cron", "0 3 * * *", "--time-zone", "Mars/Base", "tick"])
        .reports(&["Mars/Base", "Europe/Berlin"]);
    add(&["--every", "10ms", "tick"]).reports(&["the shortest is 1s"]);
    add(&["--every", "1s", "--jitter", "2d", "tick"]).reports(&["the longest is 1d"]);
    add(&["--every", "1s", "--expires", "2026-11-20T23:37:14Z", "tick"]).reports(&["--expires", "10m"]);
    for option in
        [&["--wait"][..], &["--count", "2"], &["--id", "x"], &["--eta", "x"], &["--countdown", "1s"]]
    {
        let args: Vec<_> = ["--every", "1s", "tick"].into_iter().chain(option.iter().copied()).collect();
        add(&args).reports(&[option[0], "cannot be given for a periodic task"]);
    }
    add(&["tick"]).reports(&["--cron"]);
    folder.write("flow.toml", FLOW);
    let every = ["--every", "1s", "--flow"];
    add(&[&every[..], &["flow.toml", "tick"]].concat()).reports(&["does not go with --flow"]);
    add(&[&every[..], &["flow.toml", "--retries", "3"]].concat()).reports(&["--retries", "[steps.NAME]"]);
    add(&[&every[..], &["gone.toml"]].concat()).reports(&["gone.toml cannot be read"]);
    folder.write("flow.toml", &FLOW.replace("first\"]", "frist\"]"));
    add(&[&every[..], &["flow.toml"]].concat()).reports(&["flow.toml:7:10", "did you mean \"first\"?"]);
    folder.run(&["periodic", "add", "a/b", "--every", "1s", "tick"]).ended(64).reports(&["letters, digits"]);
    let unknown = "no worker consumes queue default";
    folder.run(&["periodic", "add", "nightly", "--cron", "@daily", "tick"]).ended(0).reports(&[unknown]);
    folder.run(&["periodic", "show", "nightly"]).ended(0).reports(&[unknown]);
    folder.run(&["periodic", "pause", "nigthly"]).ended(3).reports(&["did you mean \"nightly\"?"]);
    folder.run(&["periodic", "show", "nigthly"]).ended(3).reports(&["did you mean \"nightly\"?"]);
    let shown = folder.run(&["periodic", "show", "nightly"]).ended(0).stdout;
    assert!(shown.contains("schedule  @daily (UTC)"), "{shown}");
}

#[test]
fn a_periodic_task_that_was_written_back_is_reported_until_somebody_has_looked() {
    let folder = Folder::new();
    folder.run(&["periodic", "add", "beat", "--cron", "@daily", "tick"]).ended(0);
    let mut commit = Commit::new(RecordId::new(RecordKind::Cursor, "beat"));
    commit.facts = vec![("restored".into(), json!(1_795_921_200_000_000_i64).to_string().into())];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let app = folder.app().await;
        app.backend().commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    });
    let reported = |command: &[&str], text: &str| folder.run(command).ended(0).stdout.contains(text);
    assert!(reported(&["periodic", "list"], "live, written back"));
    let report = "the backend had lost it; a worker wrote it back at 2026-11-29T03:00:00";
    assert!(reported(&["doctor"], report));
    folder.run(&["periodic", "resume", "beat"]).ended(0);
    assert!(!reported(&["periodic", "list"], "written back") && !reported(&["doctor"], report));
}
