//! What an operator sees and does: notes at the send, arguments, errors as JSON, purged and deleted queues.

use serde_json::{Value, json};

use crate::{
    servers::servers,
    support::{Folder, eventually},
};

const TOML: &str = "\
[tasks.mail]
command = [\"false\"]
queue = \"mail\"
[tasks.note]
command = [\"true\"]
queue = \"mail\"
keep_args = true
[tasks.plain]
command = [\"true\"]
queue = \"mail\"
[tasks.secret]
command = [\"false\"]
queue = \"mail\"
hide_args = true
";

fn queue(folder: &Folder, name: &str) -> Option<Value> {
    let queues = folder.run(&["queues", "--json"]).ended(0).json();
    queues.as_array().unwrap().iter().find(|queue| queue["queue"] == name).cloned()
}

#[test]
fn a_task_that_nobody_receives_is_told_at_once() {
    let folder = Folder::with(TOML);
    folder
        .run(&["send", "mail", "x", "--queue", "typo"])
        .ended(0)
        .reports(&["no worker consumes queue typo", "machinist worker --queue typo"]);
    assert_eq!(queue(&folder, "typo").unwrap()["ready"], 1);
    let worker = folder.worker(&[]);
    folder
        .run(&["send", "mial", "--queue", "mail"])
        .ended(0)
        .reports(&["no worker of queue mail knows the task mial", "did you mean mail?"]);
    folder
        .run(&["send", "note", "--queue", "mial", "--wait=10ms"])
        .ended(2)
        .reports(&["no worker consumes queue mial", "did you mean --queue mail?"]);
    let fine = folder.run(&["send", "note", "--wait=10m"]).ended(0);
    assert_eq!(fine.stderr, "");
    worker.stop().ended(0);
}

fn arguments_are_shown(folder: &Folder) {
    let worker = folder.worker(&[]);
    let failed = folder.outcome(&["mail", "anna@example.org", "2"]);
    let failed = failed["id"].as_str().unwrap();
    assert_eq!(folder.status(failed)["args"], json!(["anna@example.org", 2]));
    assert!(folder.run(&["status", failed]).stdout.contains("args      anna@example.org 2\n"));
    let delayed = folder.send(&["plain", "later", "--arg", "width=640", "--countdown", "1h"]);
    let delayed = folder.status(&delayed);
    assert_eq!((&delayed["args"], &delayed["named_args"]), (&json!(["later"]), &json!({"width": 640})));
    let kept = folder.outcome(&["note", "kept"]);
    assert_eq!(folder.status(kept["id"].as_str().unwrap())["args"], json!(["kept"]));
    let forgotten = folder.outcome(&["plain", "forgotten"]);
    let forgotten = folder.status(forgotten["id"].as_str().unwrap());
    assert_eq!(forgotten["args"], json!(null));
    assert!(forgotten["args_hidden"].as_str().unwrap().contains("keep_args is not set"), "{forgotten}");
    let hidden = folder.outcome(&["secret", "geheim"]);
    let hidden = folder.run(&["status", hidden["id"].as_str().unwrap(), "--json"]).stdout;
    assert!(hidden.contains("hide_args") && !hidden.contains("geheim"), "{hidden}");

    let letters = || {
        let listed = folder.run(&["dead", "list", "--args", "--json"]).ended(0);
        assert!(!listed.stdout.contains("geheim"), "{listed:?}");
        listed.json().as_array().unwrap().clone()
    };
    let letter = eventually("it is listed", || letters().into_iter().find(|letter| letter["name"] == "mail"));
    assert_eq!(letter["args"], json!(["anna@example.org", 2]));
    let shown = folder.run(&["dead", "show", letter["dead_id"].as_str().unwrap()]).ended(0).stdout;
    assert!(shown.contains("args      anna@example.org 2"), "{shown}");
    let table = folder.run(&["dead", "list", "--args"]).ended(0).stdout;
    assert!(table.contains("ARGS") && table.contains("anna@example.org 2"), "{table}");
    worker.stop().ended(0);
}

#[test]
fn arguments_are_shown_where_the_record_keeps_them() {
    arguments_are_shown(&Folder::with(TOML));
}

#[test]
fn arguments_on_rabbitmq_and_redis() {
    let Some(folder) = servers("arguments_on_rabbitmq_and_redis") else { return };
    folder.write("machinist.toml", TOML);
    arguments_are_shown(&folder);
}

#[test]
fn errors_are_json_where_the_output_is() {
    let folder = Folder::new();
    let error = |line: &[&str], code| -> Value {
        let ran = folder.run(line).ended(code);
        assert_eq!(ran.stdout, "", "{ran:?}");
        serde_json::from_str(&ran.stderr).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    };
    let unknown = error(&["status", "nobody", "--json"], 3);
    assert!(unknown["error"].as_str().unwrap().starts_with("task nobody is unknown"), "{unknown}");
    assert!(unknown["remedy"].as_str().unwrap().contains("machinist config"), "{unknown}");
    let usage = error(&["worker", "--json", "--concurrency", "many"], 64);
    assert!(
        usage["error"].as_str().unwrap().contains("a number from 1 to 10000; write one like 16"),
        "{usage}"
    );
    assert!(usage["remedy"].as_str().unwrap().contains("--help"), "{usage}");
    assert!(error(&["--json"], 64)["error"].as_str().unwrap().contains("requires a subcommand"));
    folder.write("machinist.toml", "brokr = 1");
    assert!(error(&["queues", "--json"], 78)["error"].as_str().unwrap().contains("did you mean"));
}

fn queues_are_purged_and_deleted(folder: &Folder) {
    let ids: Vec<String> =
        (0..3).map(|n| folder.send(&["plain", &n.to_string(), "--queue", "typo"])).collect();
    folder.run(&["queues", "purge", "nowhere", "--yes"]).ended(3).reports(&["there is no queue nowhere"]);
    folder.run(&["queues", "purge", "typo"]).ended(64).reports(&["3 messages", "--yes"]);
    folder.run(&["queues", "delete", "typo"]).ended(64).reports(&["is not empty: 3 messages", "purge"]);
    let purged = folder.run(&["queues", "purge", "typo", "--yes", "--json"]).ended(0).json();
    assert_eq!(
        (&purged["purged"], &purged["ended"], &purged["dead_lettered"]),
        (&json!(3), &json!(3), &json!(0))
    );
    for id in &ids {
        let ended = folder.status(id);
        assert_eq!((&ended["state"], &ended["kind"]), (&json!("FAILURE"), &json!("revoked")), "{ended}");
    }
    eventually("it is empty", || (queue(folder, "typo")?["ready"] == 0).then_some(()));
    let again = folder.run(&["retry", &ids[0]]).ended(0).stdout;
    assert_eq!(folder.status(again.trim())["state"], "PENDING", "nothing is lost");
    let purged = folder.run(&["queues", "purge", "typo", "--dead-letter", "--yes", "--json"]).ended(0).json();
    assert_eq!((&purged["ended"], &purged["dead_lettered"]), (&json!(1), &json!(1)));
    let letters = folder.run(&["dead", "list", "--reason", "purged", "--json"]).ended(0).json();
    assert_eq!(letters[0]["task"], again.trim());
    folder.run(&["queues", "delete", "typo"]).ended(64).reports(&["1 dead letters"]);
    let replayed = folder.run(&["dead", "replay", "--queue", "typo", "--json"]).ended(0).json();
    assert_eq!(replayed[0]["outcome"]["done"], "replayed", "{replayed}");
    folder.run(&["queues", "purge", "typo", "--yes"]).ended(0);
    eventually("it is deleted", || {
        (folder.run(&["queues", "delete", "typo", "--json"]).code == 0).then_some(())
    });
    assert_eq!(queue(folder, "typo"), None);
    // A queue that is named again is there again.
    folder.send(&["plain", "x", "--queue", "typo"]);
    assert_eq!(queue(folder, "typo").unwrap()["ready"], 1);
}

#[test]
fn a_purged_queue_ends_its_tasks_and_an_empty_one_is_deleted() {
    queues_are_purged_and_deleted(&Folder::with(TOML));
}

#[test]
fn queues_are_purged_and_deleted_on_rabbitmq_and_redis() {
    let Some(folder) = servers("queues_are_purged_and_deleted_on_rabbitmq_and_redis") else { return };
    folder.write("machinist.toml", TOML);
    queues_are_purged_and_deleted(&folder);
}

#[test]
fn a_purge_leaves_workflows_and_refuses_nothing_in_silence() {
    let folder = Folder::with(TOML);
    let flow = "[steps.one]\ntask = \"plain\"\nqueue = \"flows\"\n[steps.two]\ntask = \"plain\"\nafter = [\"one\"]\n";
    folder.write("flow.toml", flow);
    folder.run(&["send", "--flow", "flow.toml"]).ended(0);
    let sent = queue(&folder, "flows").or_else(|| queue(&folder, "default")).unwrap();
    let name = sent["queue"].as_str().unwrap();
    let ran =
        folder.run(&["queues", "purge", name, "--yes", "--json"]).ended(0).reports(&["machinist revoke"]);
    assert_eq!((&ran.json()["purged"], &ran.json()["of_workflows"]), (&json!(0), &json!(1)));
    assert_eq!(queue(&folder, name).unwrap()["ready"], 1, "it stays");
}

#[test]
fn many_tasks_are_revoked_or_sent_again() {
    let folder = Folder::with("[tasks.exists]\ncommand = [\"test\", \"-e\", \"{0}\"]\nargs = [\"file\"]\n");
    let delayed: Vec<String> =
        (0..3).map(|_| folder.send(&["exists", "x", "--queue", "later", "--countdown", "1h"])).collect();
    let other = folder.send(&["other", "--queue", "later", "--countdown", "1h"]);
    folder.run(&["revoke", "--name", "exists"]).ended(64).reports(&["revoke 3 tasks?", "--yes"]);
    folder.run(&["revoke", "--state", "failure", "--yes"]).ended(64).reports(&["--state failure", "pending"]);
    let dry = folder.run(&["revoke", "--queue", "later", "--dry-run", "--json"]).ended(0);
    assert_eq!(dry.json().as_array().unwrap().len(), 4);
    assert_eq!(
        folder.run(&["revoke", "--queue", "later", "--older-than", "1h", "--yes"]).ended(0).stdout,
        ""
    );
    let revoked = folder.run(&["revoke", "--queue", "later", "--name", "exists", "--yes", "--json"]).ended(0);
    let revoked = revoked.reports(&["3 of 3 changed", "looked at 4 tasks that wait for their time"]).json();
    assert!(revoked.as_array().unwrap().iter().all(|row| row["done"] == "revoked"), "{revoked}");
    assert!(delayed.iter().all(|id| folder.status(id)["kind"] == "revoked"));
    assert_eq!(folder.status(&other)["state"], "PENDING");

    let worker = folder.worker(&["--queue", "default", "--demo"]);
    let failed = folder.outcome(&["exists", "nowhere"]);
    folder.outcome(&["fail"]);
    eventually("both are listed", || {
        let dry = folder.run(&["retry", "--state", "failure", "--dry-run", "--json"]).ended(0).json();
        (dry.as_array().unwrap().len() == 2).then_some(())
    });
    let again = folder.run(&["retry", "--error", "exit", "--yes", "--json"]).ended(0).json();
    assert_eq!((&again[0]["id"], &again[0]["done"]), (&failed["id"], &json!("sent_again")), "{again}");
    assert_eq!(again.as_array().unwrap().len(), 1);
    let id = failed["id"].as_str().unwrap();
    assert_eq!(folder.status(id)["retried_as"], again[0]["as_task"]);

    folder.write("here", "");
    folder
        .run(&["retry", id, "--arg", "path=here"])
        .ended(64)
        .reports(&["no argument \"path\"", "1 by position"]);
    let changed = folder.run(&["retry", id, "--arg", "0=here"]).ended(0).stdout;
    folder.run(&["status", changed.trim(), "--watch"]).ended(0);

    let waits = folder.send(&["fail", "--retries", "1", "--backoff", "fixed:1h"]);
    eventually("it waits", || (folder.status(&waits)["state"] == "RETRY").then_some(()));
    let now = folder.run(&["retry", &waits]).ended(0).reports(&["runs as soon as a worker is free"]);
    assert_eq!(now.stdout.trim(), waits);
    folder.run(&["status", &waits, "--watch"]).ended(1);
    worker.stop().ended(0);
}
