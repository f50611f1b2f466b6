//! Errors name the option, the value and the remedy, and the exit code names the kind of error.

use crate::support::Folder;

#[test]
fn unknown_schemes() {
    let folder = Folder::new();
    folder.run(&["send", "add", "--broker", "kafka://shop:geheim@mq"]).ended(78).reports(&[
        "--broker: \"kafka://shop:***@mq\" has an unknown scheme",
        "amqp://, amqps://, postgres://, postgresql://, sqlite://, memory://",
    ]);
    folder
        .run(&["status", "x", "--backend", "amqp://mq"])
        .ended(78)
        .reports(&["--backend: \"amqp://mq\" is a broker, not a backend", "redis://"]);
    folder
        .run(&["send", "add", "--broker", "memory://"])
        .ended(78)
        .reports(&["--broker", "gone when this one ends"]);
}

#[test]
fn passwords_that_everybody_on_the_way_could_read() {
    let mut folder = Folder::new();
    folder.set("MACHINIST_KEY_FILE", &folder.key("test.key", "test"));
    folder.set("MACHINIST_BROKER", "amqp://shop:geheim@mq/%2f");
    for command in [&["send", "add"][..], &["worker", "--demo"], &["queues"]] {
        let ran = folder.run(command).ended(78).reports(&[
            "MACHINIST_BROKER: amqp://shop:***@mq/%2f would send its password to mq",
            "amqps://",
            "--insecure-plaintext",
        ]);
        assert!(!ran.stderr.contains("geheim"), "{ran:?}");
    }
    let doctor = folder.run(&["doctor"]).ended(78).stdout;
    assert!(doctor.contains("in plain text") && !doctor.contains("geheim"), "{doctor}");
}

#[test]
fn files_of_settings() {
    let reports = |toml: &str, words: &[&str]| {
        Folder::with(toml).run(&["queues"]).ended(78).reports(words);
    };
    reports("brokr = \"x\"", &["machinist.toml:1:1: unknown key \"brokr\"; did you mean \"broker\"?"]);
    reports(
        "[worker]\n  concurrency = \"many\"",
        &["machinist.toml:2:17: worker.concurrency: expected a number"],
    );
    reports("broker = \"amqp://u:geheim@h", &["machinist.toml:1:"]);
    reports("[tasks.x]", &["machinist.toml:1:", "[tasks.x] is empty; write command ="]);
    reports("[worker]\ntags = [\"GPU\"]", &["machinist.toml:2:8: worker.tags: tag \"GPU\"", "zone:eu"]);
    let mut folder = Folder::new();
    folder
        .run(&["queues", "--config", "nowhere.toml"])
        .ended(78)
        .reports(&["--config: cannot read nowhere.toml"]);
    folder.set("MACHINIST_GRACE", "soon");
    folder.run(&["queues"]).ended(78).reports(&["MACHINIST_GRACE: \"soon\" is not a duration", "20s"]);
}

#[test]
fn command_lines() {
    let folder = Folder::new();
    for (line, words) in [
        (&["send"][..], &["<NAME>"][..]),
        (&["send", "add", "@nowhere"], &["\"@nowhere\" names a file that cannot be read"]),
        (&["send", "add", "--arg", "width"], &["--arg \"width\" has no name", "name=value"]),
        (&["send", "add", "--wait=soon"], &["--wait", "\"soon\" is not a duration"]),
        (&["send", "add", "--countdown", "5"], &["--countdown", "\"5\" has no unit; write 5s or 5ms"]),
        (&["send", "add", "--eta", "tomorrow"], &["--eta", "2026-11-20T23:37:14Z"]),
        (&["send", "add", "--backoff", "linear"], &["--backoff", "fixed:200ms"]),
        (&["send", "add", "--expires", "1s", "--countdown", "5s"], &["expires at", "before it may start"]),
        (&["send", "add", "--priority", "11"], &["--priority", "11"]),
        (&["send", ""], &["task name \"\" is empty"]),
        (&["send", "send mail"], &["\"send mail\" contains ' '", "letters, digits and"]),
        (&["send", "add", "--queue", "a,b"], &["queue name \"a,b\" contains ','"]),
        (&["worker", "--queue", "a.dead"], &["--queue", "ends with `.dead`"]),
        (&["worker", "--concurrency", "0"], &["--concurrency", "\"0\" is not a number from 1 to 10000"]),
        (&["worker", "--concurrency", "many"], &["--concurrency", "\"many\"", "write one like 16"]),
        (&["worker", "--health", "8080"], &["--health", "write 127.0.0.1:8080"]),
        (&["workers", "--state", "aslep"], &["--state", "aslep", "asleep"]),
        (&["dead", "list", "--reason", "faild"], &["--reason", "\"faild\"", "did you mean failed?"]),
        (&["dead", "list", "--reason", "wrong"], &["--reason", "\"wrong\"", "write one of unsigned, "]),
        (&["status"], &["<ID>"]),
        (&["status", "x", "amqp://u:geheim@h"], &["unexpected argument", "amqp://u:***@h"]),
        (&["frobnicate"], &["frobnicate"]),
        (&[], &["Usage"]),
    ] {
        let ran = folder.run(line).ended(64).reports(words);
        assert!(ran.stdout.is_empty() && !ran.stderr.contains("geheim"), "{ran:?}");
    }
    folder.run(&["--help"]).ended(0);
    folder.run(&["--version"]).ended(0);
}

#[test]
fn unknown_ids() {
    let folder = Folder::new();
    folder.run(&["status", "nobody"]).ended(3).reports(&["task nobody is unknown", "config"]);
    folder.run(&["status", "nobody", "--watch"]).ended(3);
}

#[test]
fn files_that_are_no_databases() {
    let folder = Folder::new();
    folder.write("bad.db", &"not a database ".repeat(100));
    std::fs::create_dir(folder.path().join("dir")).unwrap();
    for (file, word) in [("bad.db", "is not an SQLite database"), ("dir", "is not a file")] {
        let url = format!("sqlite://{file}");
        let flags = ["--broker", &url, "--backend", &url];
        folder.run(&[&["send", "add"], &flags[..]].concat()).ended(78).reports(&[&url, word, "name"]);
        let doctor = folder.run(&[&["doctor"], &flags[..]].concat()).ended(78);
        assert!(doctor.stdout.contains("error") && doctor.stdout.contains(word), "{doctor:?}");
    }
}

#[test]
fn servers_that_are_not_there() {
    let mut folder = Folder::new();
    folder.set("MACHINIST_KEY_FILE", &folder.key("test.key", "test"));
    let closed = "127.0.0.1:1";
    let broker = format!("amqp://shop:geheim@{closed}/%2f");
    let ran = folder.run(&["send", "add", "--broker", &broker]).ended(69);
    let ran = ran.reports(&[
        "broker amqp://shop:***@127.0.0.1:1",
        "cannot be reached",
        "--broker",
        "MACHINIST_BROKER",
        "doctor",
    ]);
    assert!(!ran.stderr.contains("geheim"), "{ran:?}");
    let backend = format!("redis://:geheim@{closed}/0");
    let ran = folder.run(&["send", "add", "--backend", &backend]).ended(69);
    ran.reports(&["backend redis://:***@127.0.0.1:1", "the backend is unavailable", "MACHINIST_BACKEND"]);
    let ran = folder.run(&["doctor", "--backend", &backend, "--json"]).ended(69);
    assert!(!ran.stdout.contains("geheim"));
    let rows = ran.json();
    let error = rows.as_array().unwrap().iter().find(|row| row["level"] == "error").unwrap().clone();
    assert_eq!(error["server"], "backend");
    assert!(error["remedy"].as_str().unwrap().contains("--backend"), "{error}");
}
