//! What operators see: why a task or a queue stands still, events, metrics.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Folder, WAIT_TIMEOUT, eventually};

const TASKS: &str = "[tasks.fails]\ncommand = [\"sh\", \"-c\", \"echo boom >&2; exit 3\"]\n\
                     [tasks.slow]\ncommand = [\"sleep\", \"{0}\"]\n";

/// Returns the answer about a task, once its reason is this one.
fn why(folder: &Folder, id: &str, reason: &str) -> Value {
    eventually(reason, || {
        let why = folder.run(&["why", id, "--json"]).json();
        (why["reason"] == reason && why["id"] == id).then_some(why)
    })
}

#[test]
fn why_follows_a_task_through_its_life() {
    let folder = Folder::with(TASKS);
    let task = folder.send(&["slow", "0"]);
    assert_eq!(why(&folder, &task, "no-consumer")["class"], "act");
    let late = folder.send(&["slow", "0", "--countdown", "1h"]);
    assert_eq!(why(&folder, &late, "delayed")["also"], json!(["no-consumer"]));
    let queue = folder.run(&["why", "--queue", "default", "--json"]).ended(0).json();
    assert_eq!((&queue["reason"], &queue["queue"]), (&json!("no-consumer"), &json!("default")));
    let meant = folder.run(&["why", "--queue", "defualt"]).ended(3).stdout;
    assert!(meant.starts_with("unknown-id (act): there is no queue defualt"), "{meant}");
    assert!(meant.contains("did you mean default?"), "{meant}");

    let _worker = folder.worker(&["--concurrency", "1", "--name", "one"]);
    let ended = why(&folder, &task, "ended");
    assert!(ended["sentence"].as_str().unwrap().contains("its run took"), "{ended}");
    let strange = folder.send(&["slwo", "0"]);
    let unknown = why(&folder, &strange, "unknown-task");
    assert!(unknown["sentence"].as_str().unwrap().contains("did you mean slow?"), "{unknown}");
    let long = folder.send(&["slow", "60"]);
    assert!(why(&folder, &long, "running")["sentence"].as_str().unwrap().contains("worker one runs"));
    let waits = folder.send(&["slow", "0"]);
    assert_eq!(why(&folder, &waits, "busy")["class"], "wait");
    folder.run(&["revoke", &long]).ended(0);
    why(&folder, &waits, "ended");
    folder.run(&["why"]).ended(64);
    folder.run(&["why", &task, "--queue", "default"]).ended(64);
}

#[test]
fn a_server_that_is_away_is_the_answer() {
    let folder = Folder::new();
    let servers = ["--broker", "amqp://127.0.0.1:1", "--backend", "redis://127.0.0.1:1", "--allow-unsigned"];
    let away = folder.run(&[&["why", "some-task", "--json"], &servers[..]].concat()).ended(69).json();
    assert_eq!((&away["reason"], &away["class"]), (&json!("broker-away"), &json!("broken")));
    assert!(away["sentence"].as_str().unwrap().contains("127.0.0.1:1"), "{away}");
}

#[test]
fn events_of_other_processes_come_as_lines() {
    let folder = Folder::with(TASKS);
    let reader = folder.start(&["events", "--json", "--task", "fails", "--state", "failure", "--limit", "1"]);
    let _worker = folder.worker(&["--name", "one"]);
    // A reader sees what is published after it has begun.
    let ended = eventually("an event", || {
        folder.outcome(&["fails"]);
        let late = folder.run(&["events", "--json", "--since", "1m", "--limit", "1", "--task", "fails"]);
        Some(late.ended(0).json())
    });
    assert_eq!(
        (&ended["event"], &ended["state"], &ended["worker"]),
        (&json!("ended"), &json!("FAILURE"), &json!("one"))
    );
    let live = reader.end().ended(0).json();
    assert_eq!((&live["task"], &live["kind"]), (&json!("fails"), &json!("error")));
    folder.run(&["events", "--limit", "0"]).ended(64);
}

#[test]
fn the_log_of_a_task_is_read_while_it_runs_and_shows_no_control_characters() {
    let folder = Folder::with(
        "[tasks.say]\ncommand = [\"./say.sh\"]\nretries = 1\nbackoff = \"fixed:10ms\"\n\
         [tasks.flood]\ncommand = [\"sh\", \"-c\", \"yes | head -c 4000000 >&2; echo end >&2; echo 7\"]\n",
    );
    folder.script(
        "say.sh",
        "printf 'one\\n\\033[31mred\\377\\n' >&2; head -c 1048576 /dev/zero | tr '\\0' x >&2; echo >&2
         [ \"$MACHINIST_ATTEMPT\" = 1 ] && exit 3
         while [ ! -e go ]; do sleep 0.1; done; echo last >&2",
    );
    let _worker = folder.worker(&["--name", "one"]);
    let id = folder.send(&["say"]);
    let lines = |log: &Value| log["lines"].as_array().unwrap().len();
    let running = eventually("lines of two attempts", || {
        let log = folder.run(&["log", &id, "--json"]);
        (log.code == 0).then(|| log.json()).filter(|log| lines(log) == 6)
    });
    let (first, red, long) = (&running["lines"][0], &running["lines"][1], &running["lines"][2]);
    assert_eq!(
        (&first["text"], &first["level"], &first["attempt"]),
        (&json!("one"), &json!("info"), &json!(1))
    );
    assert_eq!(red["text"], "\u{1b}[31mred\u{fffd}");
    assert!(long["text"].as_str().unwrap().len() <= 4096, "{long}");
    let follower = folder.start(&["log", &id, "-f", "--attempt", "2"]);
    folder.write("go", "");
    let followed = follower.end().ended(0).stdout;
    assert!(followed.starts_with("attempt 2:\n") && followed.ends_with("  INFO   last\n"), "{followed}");
    assert!(followed.contains("\\u{1b}[31mred") && !followed.contains('\u{1b}'), "{followed}");
    assert_eq!(followed.lines().count(), 5, "{followed}");
    assert_eq!(folder.run(&["log", &id, "--level", "warn"]).ended(0).stdout, "");
    folder.run(&["log", "nobody-knows-it"]).ended(3);
    folder.run(&["log", &id, "--level", "loud"]).ended(64).reports(&["\"loud\" is no level; write error"]);

    let flood = folder.outcome(&["flood"]);
    assert_eq!(flood["results"], json!([7]));
    let log = folder.run(&["log", flood["id"].as_str().unwrap(), "--json"]).ended(0).json();
    assert_eq!(log["missing"].as_u64().unwrap() + lines(&log) as u64, 2_000_001);
    assert_eq!(log["lines"].as_array().unwrap().last().unwrap()["text"], "end");
}

#[test]
fn tasks_are_searched_and_the_search_says_how_far_it_has_looked() {
    let folder = Folder::with(TASKS);
    let late = folder.send(&["slow", "0", "--countdown", "1h"]);
    let pending = folder.run(&["tasks", "--state", "pending", "--json"]).ended(0);
    assert_eq!(pending.json()[0]["id"], json!(late));
    pending.reports(&["0 tasks wait in queues, and are only counted"]);
    let worker = folder.worker(&["--name", "one"]);
    let failed = folder.outcome(&["fails", "--label", "tenant=acme"]);
    let long = folder.send(&["slow", "60"]);
    let search = ["tasks", "--state", "failure", "--error", "exit code 3", "--json"];
    let found = eventually("the failure is listed", || {
        let found = folder.run(&search).ended(0);
        (found.json()[0]["id"] == failed["id"]).then_some(found)
    });
    let (json, rest) = (found.json(), &found.stderr);
    assert_eq!((json.as_array().unwrap().len(), &json[0]["name"]), (1, &json!("fails")));
    assert_eq!((&json[0]["error"], &json[0]["verified"]), (&failed["error"], &json!(true)));
    assert!(rest.contains("looked at 1 of 1 listed tasks"), "{rest}");
    let count =
        |more: &[&str]| folder.run(&[&search[..], more].concat()).ended(0).json().as_array().unwrap().len();
    assert_eq!((count(&["--label", "tenant=acme"]), count(&["--label", "tenant=other"])), (1, 0));
    assert_eq!((count(&["--worker", "one", "--since", "1h"]), count(&["--name", "slow"])), (1, 0));
    let running = eventually("a worker names what it runs", || {
        let table = folder.run(&["tasks"]).ended(0);
        table.stdout.contains(&long).then_some(table)
    });
    assert!(running.stdout.lines().nth(1).unwrap().contains("STARTED"), "{running:?}");
    running.reports(&[
        "tasks that succeed are listed by workers with events = \"all\"; here it is \"failures\"",
    ]);
    let groups = folder.run(&["failures", "--since", "1h", "--json"]).ended(0).json();
    assert_eq!((&groups[0]["task"], &groups[0]["count"]), (&json!("fails"), &json!(1)), "{groups}");
    assert_eq!(
        (&groups[0]["error"], &groups[0]["kind"]),
        (&json!("sh failed with exit code #"), &json!("error"))
    );
    assert_eq!(groups[0]["example"], failed["id"]);
    folder.run(&["tasks", "--state", "gone"]).ended(64).reports(&["\"gone\" is no state"]);
    folder.run(&["tasks", "--after", "yesterday"]).ended(64);
    folder.run(&["revoke", &long, "--terminate"]).ended(0);
    worker.stop().ended(0);
}

fn get(address: &str, authorization: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: worker\r\n{authorization}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn metrics_are_served_to_those_who_have_the_token() {
    let folder = Folder::with(&format!("{TASKS}[worker]\nmetrics_token_file = \"token\"\n"));
    folder.run(&["worker", "--health", "127.0.0.1:0"]).ended(78).reports(&["worker.metrics_token_file"]);
    folder.write_with_mode("token", "s3cret\n", 0o666);
    let refused = folder.run(&["worker", "--health", "127.0.0.1:0"]).ended(78);
    refused.reports(&["worker.metrics_token_file", "chmod 600"]);
    folder.write_with_mode("token", "s3cret\n", 0o444);
    let mut worker = folder.start(&["worker", "--health", "127.0.0.1:0"]);
    let line = worker.stderr.until("/metrics");
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    worker.stderr.until("is ready");
    folder.outcome(&["fails"]);
    folder.send(&["nobody-knows-it"]);
    assert_eq!(get(&address, "").0, 401);
    assert_eq!(get(&address, "Authorization: Bearer wrong\r\n").0, 401);
    let text = eventually("the end is counted", || {
        let (code, text) = get(&address, "Authorization: Bearer s3cret\r\n");
        assert_eq!(code, 200);
        let ended =
            "machinist_task_ended_total{kind=\"error\",queue=\"default\",state=\"FAILURE\",task=\"fails\"} 1";
        (text.contains(ended) && text.contains("machinist_queue_messages{")).then_some(text)
    });
    assert!(!text.contains("nobody-knows-it"), "{text}");
    worker.stop().ended(0);
}

#[test]
fn queues_tell_what_waits_and_a_look_leaves_it() {
    let folder = Folder::with(TASKS);
    let first = folder.send(&["slow", "0"]);
    let second = folder.send(&["fails", "--label", "tenant=acme"]);
    folder.send(&["slow", "0", "--countdown", "1h"]);
    let listed = folder.run(&["queues", "--json"]).ended(0).json();
    let row = &listed[0];
    assert_eq!((&row["queue"], &row["ready"], &row["delayed"]), (&json!("default"), &json!(2), &json!(1)));
    assert_eq!((&row["unacked"], &row["consumers"], &row["paused"]), (&json!(0), &json!(0), &json!(false)));
    for name in ["dead", "in_rate", "out_rate", "oldest_age", "empty_in"] {
        assert!(row.as_object().unwrap().contains_key(name), "{name} in {row}");
    }
    for _ in 0..3 {
        let peeked = folder.run(&["queues", "peek", "default", "--json"]).ended(0).json();
        let ids: Vec<&Value> = peeked.as_array().unwrap().iter().map(|task| &task["id"]).collect();
        assert_eq!(ids, [&json!(first), &json!(second)]);
        assert_eq!((&peeked[0]["name"], &peeked[0]["state"]), (&json!("slow"), &json!("PENDING")));
        assert!(peeked[0]["sent_at"].is_string(), "{peeked}");
    }
    let one = folder.run(&["queues", "peek", "default", "--limit", "1"]).ended(0).stdout;
    assert!(one.contains(&first) && !one.contains(&second), "{one}");
    folder.run(&["queues", "peek", "default", "--limit", "101"]).ended(64);
    folder.run(&["queues", "peek", "defualt"]).ended(3).reports(&["did you mean default?"]);
    assert_eq!(folder.run(&["queues", "--json"]).ended(0).json()[0]["ready"], json!(2));
    let mut watching = folder.start(&["queues", "--watch"]);
    watching.stdout.until("default");
    watching.signal(Signal::SIGINT);
    watching.end().ended(0);
}

#[test]
fn status_prints_the_link_to_a_trace() {
    let links = "[links]\ntrace = \"https://traces.example/{trace_id}?task={task}\"\n";
    let folder = Folder::with(&format!("{TASKS}{links}"));
    let id = folder.send(&["a/task", "0"]);
    let status = folder.status(&id);
    let trace = status["trace_id"].as_str().unwrap();
    assert_eq!(status["trace_link"], json!(format!("https://traces.example/{trace}?task=a%2Ftask")));
    assert!(folder.run(&["status", &id]).ended(2).stdout.contains("link      https://traces.example/"));
    folder.write("bad.toml", "[links]\ntrace = \"javascript:{trace_id}\"\n");
    folder.run(&["status", &id, "--config", "bad.toml"]).ended(78).reports(&["bad.toml:2:", "http or https"]);
}

#[test]
fn a_group_of_failures_is_retried_purged_and_silenced() {
    let folder = Folder::with(TASKS);
    let _worker = folder.worker(&["--name", "one"]);
    let failed = folder.outcome(&["fails"]);
    let group = eventually("a group", || folder.run(&["failures", "--json"]).json().get(0).cloned());
    let print = group["fingerprint"].as_str().unwrap();
    assert_eq!((&group["last_week"], &group["silenced_until"]), (&json!(1), &Value::Null));
    assert_eq!(group["versions"], json!([env!("CARGO_PKG_VERSION")]));

    let dry = folder.run(&["failures", "retry", print, "--dry-run", "--json"]).ended(0).json();
    assert_eq!((&dry[0]["id"], &dry[0]["done"]), (&failed["id"], &json!("selected")));
    folder.run(&["failures", "retry", print]).ended(64).reports(&["nobody can be asked", "add --yes"]);
    let again = folder.run(&["failures", "retry", print, "--yes", "--json"]).ended(0).json();
    assert_eq!(again[0]["done"], json!("sent_again"));
    assert!(again[0]["as_task"].is_string(), "{again}");

    let dead = || folder.run(&["dead", "list", "--json"]).ended(0).json().as_array().unwrap().len();
    eventually("the dead letter of the new task", || (dead() >= 1).then_some(()));
    let dry = folder.run(&["failures", "purge", print, "--dry-run", "--json"]).ended(0).json();
    assert_eq!(dry[0]["done"], json!("selected"));
    eventually("no dead letter of the group", || {
        folder.run(&["failures", "purge", print, "--yes"]).ended(0);
        (dead() == 0).then_some(())
    });

    folder.run(&["failures", "silence", print]).ended(0);
    let listed = folder.run(&["failures", "--json"]).ended(0).reports(&["1 groups are silenced"]);
    assert_eq!(listed.json(), json!([]));
    let all = folder.run(&["failures", "--all", "--json"]).ended(0).json();
    assert!(all[0]["silenced_until"].is_string(), "{all}");
    folder.run(&["failures", "silence", print, "--off"]).ended(0);
    assert_eq!(folder.run(&["failures", "--json"]).ended(0).json().as_array().unwrap().len(), 1);
    folder.run(&["failures", "retry", "000000000000", "--yes"]).ended(3).reports(&["has the fingerprint"]);
}

#[test]
fn the_history_has_what_happened_and_the_marks() {
    let folder = Folder::with(TASKS);
    folder.run(&["mark", "shop 1.2"]).ended(0);
    folder.run(&["mark", ""]).ended(64).reports(&["is empty"]);
    let _worker = folder.worker(&["--name", "one"]);
    folder.outcome(&["fails"]);
    folder.outcome(&["slow", "0"]);
    let count = |history: &Value, what: &str| -> u64 {
        let points = history["points"].as_array().unwrap().iter();
        let tasks = points.flat_map(|point| point["tasks"].as_array().unwrap());
        tasks.map(|task| task[what]["count"].as_u64().unwrap()).sum()
    };
    let history = eventually("the history", || {
        let history = folder.run(&["history", "--json"]).ended(0).json();
        (count(&history, "failure") + count(&history, "success") == 2).then_some(history)
    });
    assert_eq!((count(&history, "received"), count(&history, "failure")), (2, 1));
    assert_eq!(history["step"], json!(10));
    let marks: Vec<&str> =
        history["marks"].as_array().unwrap().iter().map(|mark| mark["text"].as_str().unwrap()).collect();
    assert!(marks.contains(&"shop 1.2") && marks.iter().any(|text| text.contains("version")), "{marks:?}");
    let fails = folder.run(&["history", "--task", "fails", "--since", "10m", "--json"]).ended(0).json();
    assert_eq!((count(&fails, "received"), count(&fails, "success")), (1, 0));
    assert!(folder.run(&["history"]).ended(0).stdout.contains("shop 1.2"));
}
