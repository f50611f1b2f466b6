//! The program on one PostgreSQL, named by one URL.

use serde_json::json;

use crate::support::{Folder, eventually};

/// Returns a folder whose settings name the test server, a new namespace and a key. Returns `None` if there is no test
/// server, and fails if it is required.
fn postgres(test: &str) -> Option<Folder> {
    let url = machinist_conformance::service_url("MACHINIST_TEST_POSTGRES_URL").or_else(|| {
        eprintln!("SKIPPED: {test}");
        None
    })?;
    let mut folder = Folder::new();
    folder.set("MACHINIST_BROKER", &url);
    folder.set("MACHINIST_BACKEND", &url);
    folder.set("MACHINIST_NAMESPACE", &format!("t-{}", machinist::TaskId::fresh()));
    folder.set("MACHINIST_KEY_FILE", &folder.key("test.key", "test"));
    Some(folder)
}

/// The main job: sends before the first worker, results, states, delays, revokes, dead letters, counts, a diagnosis.
#[test]
fn the_main_job_on_one_postgresql() {
    let Some(folder) = postgres("the_main_job_on_one_postgresql") else { return };
    folder.run(&["init"]).ended(0);
    let early = folder.send(&["add", "2", "3"]);
    let worker = folder.worker(&["--demo"]);
    let sent = folder.run(&["send", "greet", "World", "--wait"]).ended(0).stdout;
    assert!(sent.ends_with("\nHello, World!\n"), "{sent}");
    let watched = folder.run(&["status", &early, "--watch"]).ended(0).stdout;
    assert!(watched.contains("results   5"), "{watched}");
    let all =
        folder.run(&["send", "add", "2", "3", "--count", "600", "--wait=10m", "--json"]).ended(0).json();
    assert!(all.as_array().unwrap().iter().all(|task| task["results"] == json!([5])));

    let unwanted = folder.send(&["add", "3", "3", "--countdown", "1h"]);
    let listed = folder.run(&["scheduled", "--json"]).ended(0).json();
    assert_eq!(listed[0]["id"], json!(unwanted));
    assert_eq!(folder.run(&["revoke", &unwanted, "--json"]).ended(0).json()["revoked"], "ended");
    let running = folder.send(&["sleep", "1000"]);
    eventually("it runs", || (folder.status(&running)["state"] == "STARTED").then_some(()));
    folder.run(&["revoke", &running]).ended(0);
    folder.run(&["status", &running, "--watch"]).ended(1);

    let failed = folder.outcome(&["fail"]);
    let letters = folder.run(&["dead", "list", "--json"]).ended(0).json();
    assert!(letters.as_array().unwrap().iter().any(|letter| letter["task"] == failed["id"]), "{letters}");
    let queues = folder.run(&["queues", "--json"]).ended(0).json();
    let default = queues.as_array().unwrap().iter().find(|queue| queue["queue"] == "default").unwrap();
    assert_eq!(
        (&default["ready"], &default["dead"], &default["consumers"]),
        (&json!(0), &json!(1), &json!(1))
    );
    let doctor = folder.run(&["doctor"]).ended(0).stdout;
    assert!(doctor.contains("oldest transaction") && doctor.contains("synchronous_commit"), "{doctor}");
    worker.stop().ended(0);
}

/// A schema is checked, printed and made by hand, and a worker that may not make it says so.
#[test]
fn a_schema_is_migrated_by_hand() {
    let Some(mut folder) = postgres("a_schema_is_migrated_by_hand") else { return };
    let missing = folder.run(&["migrate", "--check", "--json"]).ended(2).json();
    assert_eq!((&missing["version"], &missing["needed"]), (&json!(0), &json!(1)));
    let script = folder.run(&["migrate", "--print"]).ended(0).stdout;
    assert!(script.contains("CREATE TABLE") && script.contains("GRANT USAGE ON SCHEMA"), "{script}");
    folder.set("MACHINIST_TOPOLOGY", "verify");
    folder.run(&["send", "add", "1", "2"]).ended(77).reports(&["machinist migrate"]);
    folder.run(&["migrate", "--to", "9"]).ended(78).reports(&["no version 9"]);
    assert_eq!(folder.run(&["migrate", "--json"]).ended(0).json()["made"], json!([1]));
    assert!(folder.run(&["migrate"]).ended(0).stdout.contains("nothing to do"));
    folder.run(&["migrate", "--check"]).ended(0);
    folder.run(&["send", "add", "1", "2"]).ended(0);
}

/// What is wrong with a URL is told before anything is connected, without the password.
#[test]
fn a_wrong_url_is_told_with_the_remedy() {
    let folder = Folder::new();
    let refused = |url: &str, words: &[&str]| {
        let ran =
            folder.run(&["send", "add", "1", "2", "--broker", url, "--backend", url, "--allow-unsigned"]);
        let ran = ran.ended(78).reports(words);
        assert!(!ran.stderr.contains("geheim"), "{}", ran.stderr);
    };
    refused("postgres://app:geheim@db/app?timeout=3", &["option \"timeout\"", "sslmode"]);
    refused("postgres://app:geheim@db/app?sslmode=prefer", &["sslmode=verify-full"]);
    refused("postgres://app:geheim@db/app?sslmode=disable", &["plain text", "sslmode=verify-full"]);
    folder.run(&["migrate"]).ended(78).reports(&["are no PostgreSQL", "postgres://"]);
}
