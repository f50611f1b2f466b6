//! Unsigned tasks are not run, and workers and senders over a network need a key.

use serde_json::json;

use crate::{
    keys::{hides, mode, secrets},
    servers::{servers, servers_without_key},
    support::{Folder, eventually},
};

/// Settings of a task that creates a file when it runs.
const TRACE: &str = "[tasks.trace]\ncommand = [\"touch\", \"it-ran\"]\n";

fn dead(folder: &Folder) -> u64 {
    folder.run(&["queues", "--json"]).ended(0).json()[0]["dead"].as_u64().unwrap_or(0)
}

#[test]
fn a_shared_broker_asks_for_a_key() {
    let Some(mut folder) = servers_without_key("a_shared_broker_asks_for_a_key") else { return };
    let words = ["no key to sign and verify tasks", "`machinist keygen`", "--key-file", "--allow-unsigned"];
    folder.run(&["worker", "--demo"]).ended(78).reports(&words);
    folder.run(&["send", "add", "1"]).ended(78).reports(&words);

    // A command that only reads needs none.
    folder.run(&["queues"]).ended(0);
    folder.run(&["status", "nobody"]).ended(3);
    folder.run(&["config"]).ended(0);
    let doctor = folder.run(&["doctor"]).ended(0).stdout;
    assert!(
        doctor.contains("no worker and no sender starts") && doctor.contains("machinist keygen"),
        "{doctor}"
    );

    // Unsigned tasks have to be allowed explicitly, and the worker warns of it.
    let mut worker = folder.start(&["worker", "--demo", "--allow-unsigned"]);
    worker.stderr.until("unsigned tasks are allowed");
    worker.stderr.until("is ready");
    let sent = folder.run(&["send", "add", "2", "3", "--wait=10m", "--allow-unsigned"]).ended(0);
    assert!(sent.stdout.ends_with("\n5\n"), "{sent:?}");
    let id = sent.stdout.lines().next().unwrap().to_owned();
    folder.run(&["status", &id]).ended(0);
    folder.set("MACHINIST_LOG", "debug,lapin=off");
    folder.run(&["status", &id]).ended(0).reports(&["it is not checked who wrote the results"]);
    worker.stop().ended(0);
}

#[test]
fn a_sender_with_another_key_is_seen_everywhere_at_once() {
    let folder = Folder::with(TRACE);
    let (own, other) = (folder.key("own.key", "own"), folder.key("other.key", "other"));
    let mut worker = folder.worker(&["--key-file", &own]);
    let id = folder.send(&["trace", "--key-file", &other]);
    let line = worker.stderr.until("no worker here accepts a message");
    assert!(line.contains("no key other") && line.contains("verify"), "{line}");
    let words = ["unknown-key", "no key other"];
    eventually("it is counted", || folder.run(&["queues"]).stderr.contains(words[0]).then_some(()));
    for command in [&["queues"][..], &["dead", "list"]] {
        folder.run(command).ended(0).reports(&words);
    }
    folder.run(&["status", &id]).ended(2).reports(&words);
    let doctor = folder.run(&["doctor"]).stdout;
    assert!(words.iter().all(|word| doctor.contains(word)), "{doctor}");
    worker.stop().ended(0);
}

/// Starts a worker with one key, and sends with another one.
fn never_runs(folder: &Folder, sender: &[&str], reason: &str) {
    folder.write("machinist.toml", TRACE);
    let mut worker = folder.worker(&[]);
    let id = folder.send(&[&["trace"], sender].concat());
    let line = worker.stderr.until("was refused");
    assert!(line.contains(reason), "{line}");
    eventually("it is a dead letter", || (dead(folder) == 1).then_some(()));
    assert!(!folder.path().join("it-ran").exists());
    let status = folder.run(&["status", &id, "--json"]).ended(2).json();
    assert_eq!(status["state"], "PENDING");
    let good = folder.outcome(&["trace"]);
    assert_eq!(good["state"], "SUCCESS");
    let ended = worker.stop().ended(0);
    hides(&secrets(folder), &ended);
}

#[test]
fn what_another_secret_signed_never_runs_on_the_embedded_file() {
    let mut folder = Folder::new();
    folder.set("MACHINIST_KEY_FILE", &folder.key("own.key", "same"));
    let other = folder.key("other.key", "same");
    never_runs(&folder, &["--key-file", &other], "bad-signature");
}

#[test]
fn what_another_secret_signed_never_runs_on_rabbitmq() {
    let Some(folder) = servers("what_another_secret_signed_never_runs_on_rabbitmq") else { return };
    let other = folder.key("other.key", "test");
    never_runs(&folder, &["--key-file", &other], "bad-signature");
}

#[test]
fn what_nobody_signed_never_runs() {
    let Some(folder) = servers_without_key("what_nobody_signed_never_runs") else { return };
    folder.write("machinist.toml", TRACE);
    let key = folder.key("own.key", "own");
    let mut worker = folder.worker(&["--key-file", &key]);
    folder.send(&["trace", "--allow-unsigned"]);
    let line = worker.stderr.until("was refused");
    assert!(line.contains("unsigned"), "{line}");
    eventually("it is a dead letter", || (dead(&folder) == 1).then_some(()));
    assert!(!folder.path().join("it-ran").exists());
    worker.stop().ended(0);
}

#[test]
fn a_result_that_no_known_key_signed_is_refused() {
    let folder = Folder::new();
    let worker = folder.worker(&["--demo"]);
    let done = folder.outcome(&["add", "1"]);
    let id = done["id"].as_str().unwrap();
    let other = folder.key("other.key", "other");
    folder
        .run(&["status", id, "--key-file", &other])
        .ended(78)
        .reports(&["is not to be believed", "keys list"]);
    folder.run(&["status", id]).ended(0);
    worker.stop().ended(0);
}

#[test]
fn the_embedded_file_makes_one_key_whoever_starts_first() {
    for _ in 0..5 {
        let folder = Folder::new();
        let workers = [folder.start(&["worker", "--demo"]), folder.start(&["worker", "--demo"])];
        let senders: Vec<_> =
            (0..4).map(|n| folder.start(&["send", "add", "1", &n.to_string(), "--wait=10m"])).collect();
        for (n, sender) in senders.into_iter().enumerate() {
            let sent = sender.end().ended(0).stdout;
            assert!(sent.ends_with(&format!("\n{}\n", n + 1)), "{sent}");
        }
        for mut worker in workers {
            worker.stderr.until("is ready");
            worker.stop().ended(0);
        }
        assert_eq!(dead(&folder), 0);
        let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let keys: Vec<_> = names.filter(|name| name.to_string_lossy().contains("key")).collect();
        assert_eq!(keys, ["machinist.db.key"]);
        assert_eq!(mode(&folder, "machinist.db.key"), 0o600);
    }
}

#[test]
fn who_only_looks_makes_no_key() {
    let folder = Folder::new();
    folder.run(&["queues"]).ended(0);
    folder.run(&["status", "nobody"]).ended(3);
    folder.run(&["doctor"]).ended(0);
    assert!(!folder.path().join("machinist.db.key").exists());
    let rows = folder.run(&["config", "--json"]).ended(0).json();
    let row = rows.as_array().unwrap().iter().find(|row| row["key"] == "key_file").unwrap().clone();
    assert_eq!(row, json!({"key": "key_file", "value": "machinist.db.key", "origin": "default"}));
}

#[test]
fn no_output_and_no_log_holds_a_secret() {
    let mut folder = Folder::new();
    folder.set("MACHINIST_LOG", "trace");
    folder.run(&["init"]).ended(0);
    let secrets = secrets(&folder);
    let worker = folder.worker(&["--demo"]);
    for line in [
        &["send", "add", "1", "--wait=10m"][..],
        &["send", "fail", "--wait=10m", "--json"],
        &["queues"],
        &["doctor"],
        &["doctor", "--json"],
        &["config"],
        &["config", "--json"],
        &["keys", "list"],
        &["keys", "check", "--json"],
        &["keys", "list", "machinist.toml"],
        &["send", "add", "--key-file", "machinist.toml"],
    ] {
        hides(&secrets, &folder.run(line));
    }
    hides(&secrets, &worker.stop().ended(0));
    // Nor does the error of a broken key file, wherever it is broken.
    let text = std::fs::read_to_string(folder.path().join("machinist.key")).unwrap();
    let broken = folder.path().join("broken.toml");
    for end in (0..text.len()).step_by(3) {
        std::fs::write(&broken, &text[..end]).unwrap();
        std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        hides(&secrets, &folder.run(&["keys", "check", "broken.toml"]));
    }
}
