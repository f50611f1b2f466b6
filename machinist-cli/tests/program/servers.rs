//! The main job on RabbitMQ and Redis.

use serde_json::json;

use crate::support::{Folder, eventually};

/// Returns a folder whose settings name the test servers, a new namespace and a key. Returns `None` if there are no test
/// servers, and fails if they are required.
pub(crate) fn servers(test: &str) -> Option<Folder> {
    let mut folder = servers_without_key(test)?;
    folder.set("MACHINIST_KEY_FILE", &folder.key("test.key", "test"));
    Some(folder)
}

/// Returns the same folder without a key.
pub(crate) fn servers_without_key(test: &str) -> Option<Folder> {
    let url = |name: &str| std::env::var(name).ok().filter(|url| !url.is_empty());
    match (url("MACHINIST_TEST_AMQP_URL"), url("MACHINIST_TEST_REDIS_URL")) {
        (Some(broker), Some(backend)) => {
            let mut folder = Folder::new();
            folder.set("MACHINIST_BROKER", &broker);
            folder.set("MACHINIST_BACKEND", &backend);
            let namespace = format!("t-{}", machinist::TaskId::fresh());
            folder.set("MACHINIST_NAMESPACE", &namespace);
            folder.shared = Some((broker, namespace));
            Some(folder)
        }
        _ if std::env::var("MACHINIST_REQUIRE_SERVICES").is_ok_and(|value| value == "1") => {
            panic!("{test}: MACHINIST_TEST_AMQP_URL and MACHINIST_TEST_REDIS_URL are not set")
        }
        _ => {
            eprintln!("SKIPPED: {test}: MACHINIST_TEST_AMQP_URL and MACHINIST_TEST_REDIS_URL are not set");
            None
        }
    }
}

#[test]
fn the_main_job_on_rabbitmq_and_redis() {
    let Some(folder) = servers("the_main_job_on_rabbitmq_and_redis") else { return };
    folder.run(&["init"]).ended(0);
    let early = folder.send(&["add", "2", "3"]);
    let worker = folder.worker(&["--demo"]);
    let sent = folder.run(&["send", "greet", "World", "--wait"]).ended(0).stdout;
    assert!(sent.ends_with("\nHello, World!\n"), "{sent}");
    let watched = folder.run(&["status", &early, "--watch"]).ended(0).stdout;
    assert!(watched.contains("results   5"), "{watched}");
    let failed = folder.outcome(&["fail", "--retries", "1", "--backoff", "fixed:10ms"]);
    assert_eq!((&failed["kind"], &failed["attempt"]), (&json!("error"), &json!(2)));
    let all =
        folder.run(&["send", "add", "2", "3", "--count", "600", "--wait=10m", "--json"]).ended(0).json();
    assert!(all.as_array().unwrap().iter().all(|task| task["results"] == json!([5])));
    let queues = folder.run(&["queues", "--json"]).ended(0).json();
    assert_eq!((&queues[0]["queue"], &queues[0]["ready"]), (&json!("default"), &json!(0)));
    folder.run(&["status", "nobody"]).ended(3);
    let doctor = folder.run(&["doctor"]).ended(0).stdout;
    assert!(doctor.contains("RabbitMQ") && doctor.contains("Redis"), "{doctor}");
    worker.stop().ended(0);
}

#[test]
fn time_on_rabbitmq_and_redis() {
    let Some(folder) = servers("time_on_rabbitmq_and_redis") else { return };
    let _worker = folder.worker(&["--demo"]);
    let early = folder.send(&["add", "1", "2", "--countdown", "3h"]);
    let unwanted = folder.send(&["add", "3", "3", "--countdown", "1m"]);
    let listed = folder.run(&["scheduled", "--json"]).ended(0).json();
    assert_eq!((&listed[0]["id"], &listed[1]["id"]), (&json!(unwanted), &json!(early)));
    assert_eq!(folder.run(&["revoke", &unwanted, "--json"]).ended(0).json()["revoked"], "ended");
    folder.run(&["scheduled", "--now", &early]).ended(0);
    assert!(folder.run(&["status", &early, "--watch"]).ended(0).stdout.contains("results   3"));
    let running = folder.send(&["sleep", "1000"]);
    eventually("it runs", || (folder.status(&running)["state"] == "STARTED").then_some(()));
    assert_eq!(folder.run(&["revoke", &running, "--json"]).ended(0).json()["revoked"], "asked");
    folder.run(&["status", &running, "--watch"]).ended(1);
    assert_eq!(folder.status(&running)["kind"], "revoked");
    let delayed = folder.outcome(&["add", "2", "2", "--countdown", "3s"]);
    let instant = |name: &str| delayed[name].as_str().unwrap().to_owned();
    assert!(instant("started_at") >= instant("eta"), "{delayed}");
    assert_eq!(folder.status(&unwanted)["started_at"], json!(null), "a revoked task does not start");
    let failed = folder.outcome(&["fail"]);
    let again = folder.run(&["retry", failed["id"].as_str().unwrap()]).ended(0).stdout;
    assert_ne!(again.trim(), failed["id"].as_str().unwrap());
    folder.run(&["status", again.trim(), "--watch"]).ended(1);
}

#[test]
fn a_wrong_password_is_reported() {
    let Some(folder) = servers("a_wrong_password_is_reported") else { return };
    let broker = std::env::var("MACHINIST_TEST_AMQP_URL").unwrap();
    let (scheme, rest) = broker.split_once("://").unwrap();
    let server = rest.rsplit('@').next().unwrap();
    let wrong = format!("{scheme}://guest:falsch@{server}");
    let ran =
        folder.run(&["send", "add", "--broker", &wrong]).ended(77).reports(&["guest", "password", "broker"]);
    assert!(!ran.stderr.contains("falsch"), "{ran:?}");
}
