//! ETA, retries, timeouts and cancellation on the command line, on SQLite, the default.

use serde_json::json;

use crate::support::{Folder, contents, eventually, gone};

fn state(folder: &Folder, id: &str, state: &str) {
    eventually(state, || (folder.status(id)["state"] == state).then_some(()));
}

#[test]
fn what_waits_is_listed_revoked_or_run_at_once() {
    let folder = Folder::new();
    let early = folder.send(&["add", "1", "1", "--countdown", "2h"]);
    let late = folder.send(&["add", "2", "2", "--countdown", "10000h"]);
    let unwanted = folder.send(&["add", "3", "3", "--countdown", "3h"]);
    let listed = folder.run(&["scheduled", "--json"]).ended(0).json();
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [early.as_str(), &unwanted, &late]);
    assert_eq!((&listed[0]["name"], &listed[0]["queue"]), (&json!("add"), &json!("default")));
    assert!(listed[0]["due"].as_str().unwrap().ends_with('Z'));
    let table = folder.run(&["scheduled", "--limit", "1"]).ended(0).stdout;
    assert!(table.contains(&early) && table.contains("1h 59m") && !table.contains(&late), "{table}");

    let revoked = folder.run(&["revoke", &unwanted, "--json"]).ended(0).json();
    assert_eq!(revoked, json!({"id": unwanted, "revoked": "ended", "state": "FAILURE"}));
    let status = folder.run(&["status", &unwanted, "--json"]).ended(1).json();
    assert_eq!((&status["kind"], &status["code"]), (&json!("revoked"), &json!(-1)));

    let _worker = folder.worker(&["--demo"]);
    folder.run(&["scheduled", "--now", &late]).ended(0);
    folder.run(&["status", &late, "--watch"]).ended(0);
    folder.run(&["scheduled", "--now", &late]).ended(64).reports(&["is SUCCESS", "machinist status"]);
    let left = folder.run(&["scheduled", "--json"]).ended(0).json();
    assert_eq!((left.as_array().unwrap().len(), &left[0]["id"]), (1, &json!(early)));
    folder.run(&["revoke", "nobody"]).ended(3);
    folder.run(&["scheduled", "--now", "nobody"]).ended(3);
}

#[test]
fn a_command_that_runs_is_revoked_with_all_its_processes() {
    let folder = Folder::with("[tasks.wait]\ncommand = [\"sh\", \"-c\", \"echo $$ > leader; sleep 1000\"]\n");
    let _worker = folder.worker(&[]);
    let id = folder.send(&["wait", "--retries", "5"]);
    let leader = contents(&folder.path().join("leader"));
    let said = folder.run(&["revoke", &id]).ended(0).stdout;
    assert_eq!(said, "it runs, and was asked to end\n");
    let ended = folder.run(&["status", &id, "--watch"]).ended(1).stdout;
    assert!(ended.contains("FAILURE (revoked, -1)"), "{ended}");
    gone(&leader);
    assert_eq!(folder.run(&["revoke", &id, "--json"]).ended(0).json()["revoked"], "ended");
}

#[test]
fn a_command_that_is_terminated_ends_with_all_its_processes() {
    // The leader ignores the request to end, and would run forever.
    let folder = Folder::with(
        "[tasks.wait]\ncommand = [\"sh\", \"-c\", \"trap '' TERM; echo $$ > leader; while :; do sleep 1; done\"]\n",
    );
    let _worker = folder.worker(&[]);
    let id = folder.send(&["wait", "--retries", "5"]);
    let leader = contents(&folder.path().join("leader"));
    let said = folder.run(&["revoke", &id, "--terminate"]).ended(0).stdout;
    assert_eq!(said, "it runs, and is cut off\n");
    let ended = folder.run(&["status", &id, "--watch"]).ended(1).stdout;
    assert!(ended.contains("FAILURE (revoked, -1)"), "{ended}");
    gone(&leader);
}

#[test]
fn what_waits_for_its_next_run_is_listed_with_the_reason() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    let id = folder.send(&["fail", "--retries", "1", "--backoff", "fixed:1h"]);
    state(&folder, &id, "RETRY");
    let listed = eventually("it is listed", || {
        let listed = folder.run(&["scheduled", "--json"]).ended(0).json();
        listed.get(0).cloned()
    });
    assert_eq!(
        (&listed["id"], &listed["state"], &listed["attempt"], &listed["kind"]),
        (&json!(id), &json!("RETRY"), &json!(2), &json!("error"))
    );
    assert_eq!(
        (&listed["due"], &listed["error"]),
        (&folder.status(&id)["eta"], &folder.status(&id)["error"]["message"])
    );
    let table = folder.run(&["scheduled"]).ended(0).stdout;
    assert!(table.contains("59m") && table.contains("attempt 2 after error: "), "{table}");
    // Its last retry, an hour early.
    folder.run(&["scheduled", "--now", &id]).ended(0);
    state(&folder, &id, "FAILURE");
    assert_eq!(folder.run(&["scheduled", "--json"]).ended(0).json(), json!([]));
}

#[test]
fn a_failed_task_is_sent_again() {
    let folder = Folder::with("[tasks.exists]\ncommand = [\"test\", \"-e\", \"{0}\"]\n");
    let _worker = folder.worker(&[]);
    let failed = folder.outcome(&["exists", "there"]);
    let id = failed["id"].as_str().unwrap();
    assert_eq!(failed["state"], "FAILURE");
    folder.write("there", "");
    let again = folder.run(&["retry", id, "--json"]).ended(0).json();
    assert_eq!(again["retry_of"], id);
    let new = again["id"].as_str().unwrap();
    state(&folder, new, "SUCCESS");
    assert_eq!(folder.run(&["retry", id]).ended(0).stdout.trim(), new, "once");
    assert_eq!(
        (&folder.status(id)["retried_as"], &folder.status(new)["retry_of"]),
        (&json!(new), &json!(id))
    );
    folder.run(&["retry", new]).ended(64).reports(&["only a task in FAILURE"]);
    folder.run(&["retry", "nobody"]).ended(3);
}

#[test]
fn timeouts_of_the_command_line_hold() {
    let folder = Folder::with(
        "[tasks.soft]\ncommand = [\"sleep\", \"1000\"]\nsoft_timeout = \"200ms\"\nretry_timeouts = true\n\
         retries = 1\nbackoff = \"fixed:10ms\"\n",
    );
    let _worker = folder.worker(&["--demo"]);
    let soft = folder.outcome(&["soft"]);
    assert_eq!((&soft["kind"], &soft["attempt"]), (&json!("timeout"), &json!(2)), "{soft}");
    assert!(soft["error"]["message"].as_str().unwrap().contains("soft timeout of 200ms"), "{soft}");
    let hard = folder.outcome(&["sleep", "1000", "--timeout", "200ms"]);
    assert_eq!((&hard["kind"], &hard["attempt"]), (&json!("timeout"), &json!(1)), "{hard}");
    let bounded = folder.outcome(&["fail", "--retry-for", "300ms", "--backoff", "fixed:100ms"]);
    let attempts = bounded["attempt"].as_u64().unwrap();
    assert!((1..=4).contains(&attempts), "{bounded}");
    folder
        .run(&["send", "sleep", "1", "--timeout", "1s", "--soft-timeout", "2s"])
        .ended(64)
        .reports(&["soft timeout of 2s is not below its timeout of 1s"]);
}

#[test]
fn progress_is_followed() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    let id = folder.send(&["sleep", "1.6"]);
    let followed = folder.run(&["status", &id, "--watch"]).ended(0).stdout;
    assert!(followed.contains("[######") && followed.contains("of 1600  asleep"), "{followed}");
    let progress = &folder.status(&id)["progress"];
    assert_eq!((&progress["total"], &progress["note"]), (&json!(1600), &json!("asleep")));
}

#[test]
fn a_task_whose_name_is_disabled_says_why_it_waits() {
    let folder = Folder::with("[tasks.greet]\ncommand = [\"echo\", \"hello\"]\n");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async { folder.app().await.client() });
    let greet = "greet".try_into().unwrap();
    runtime.block_on(client.disable_task(&greet)).unwrap();
    let worker = folder.worker(&[]);
    let waits = folder.send(&["greet"]);
    eventually("it is parked", || {
        let status = folder.status(&waits);
        (status["parked"]["reason"] == "disabled:greet" && status["state"] == "PENDING").then_some(())
    });
    let page = folder.run(&["status", &waits]).stdout;
    assert!(page.contains("parked    disabled:greet since "), "{page}");
    assert_eq!(runtime.block_on(client.enable_task(&greet)).unwrap(), 1);
    folder.run(&["status", &waits, "--watch"]).ended(0);
    assert!(folder.status(&waits)["parked"].is_null());
    worker.stop().ended(0);
}
