//! Dead letters on the command line: on SQLite, the default, and on RabbitMQ and Redis.

use std::sync::Arc;

use machinist::{
    App, Signature,
    sqlite::{SqliteOptions, SqliteStore},
};
use serde_json::{Value, json};

use crate::{
    servers::servers,
    support::{Folder, eventually},
};

const TOML: &str = "[tasks.exists]\ncommand = [\"test\", \"-e\", \"{0}\"]\n";

fn list(folder: &Folder, more: &[&str]) -> Vec<Value> {
    let listed = folder.run(&[&["dead", "list", "--json"], more].concat()).ended(0).json();
    listed.as_array().unwrap().clone()
}

/// Returns the number of dead letters of the queue `default`.
fn lying(folder: &Folder) -> Value {
    folder.run(&["queues", "--json"]).ended(0).json()[0]["dead"].clone()
}

fn the_life_of_dead_letters(folder: &Folder) {
    let _worker = folder.worker(&["--demo"]);
    let failed: Vec<String> = ["there", "nowhere", "elsewhere"]
        .into_iter()
        .map(|name| folder.outcome(&["exists", name])["id"].as_str().unwrap().to_owned())
        .collect();
    folder.outcome(&["fail"]);
    eventually("all are listed", || (list(folder, &[]).len() == 4).then_some(()));

    let letters = list(folder, &["--task", "exists"]);
    assert_eq!(letters.len(), 3);
    let first = &letters[0];
    assert_eq!(
        (&first["task"], &first["reason"], &first["queue"], &first["attempt"], &first["name"]),
        (&json!(failed[0]), &json!("failed"), &json!("default"), &json!(1), &json!("exists"))
    );
    let dead_id = first["dead_id"].as_str().unwrap();
    assert!(first["error"][0].as_str().unwrap().contains("exit"), "{first}");
    assert_eq!(list(folder, &["--older-than", "1h"]), [Value::Null; 0]);
    assert_eq!(list(folder, &["--newer-than", "1h", "--reason", "failed", "--queue", "default"]).len(), 4);
    assert_eq!(list(folder, &["--limit", "1"]), letters[..1]);
    let table = folder.run(&["dead", "list"]).ended(0).stdout;
    assert!(table.starts_with("ID ") && table.contains(dead_id) && table.contains("failed"), "{table}");
    let shown = folder.run(&["dead", "show", dead_id]).ended(0).stdout;
    assert!(shown.contains(&format!("task      {}", failed[0])), "{shown}");
    let with_args = &list(folder, &["--task", "exists", "--args"])[0];
    assert_eq!(folder.run(&["dead", "show", dead_id, "--json"]).ended(0).json(), *with_args);
    assert_eq!((&with_args["args"], &with_args["error"]), (&json!(["there"]), &first["error"]));
    folder.run(&["dead", "show", "nobody"]).ended(3);

    folder.run(&["dead", "replay"]).ended(64).reports(&["every dead letter", "--all"]);
    folder.run(&["dead", "replay", "nobody"]).ended(3);
    let dry = folder.run(&["dead", "replay", "--all", "--count", "2", "--dry-run"]).ended(0).stdout;
    assert_eq!(dry.matches("would be replayed").count(), 2, "{dry}");
    assert_eq!(lying(folder), json!(4), "looking takes nothing away");

    folder.write("there", "");
    let replayed = folder.run(&["dead", "replay", dead_id, "--json"]).ended(0).json();
    assert_eq!(replayed[0]["outcome"]["done"], "replayed");
    let again = replayed[0]["outcome"]["as_task"].as_str().unwrap();
    let ended = folder.run(&["status", again, "--watch", "--json"]).ended(0).stdout;
    assert!(ended.contains(&failed[0]), "it names what it repeats: {ended}");
    assert_eq!(folder.status(&failed[0])["retried_as"], again);
    assert_eq!(folder.run(&["retry", &failed[0]]).ended(0).stdout.trim(), again, "once");
    folder.run(&["dead", "show", dead_id]).ended(3);

    // A task that fails again is a dead letter again.
    let replayed =
        folder.run(&["dead", "replay", "--task", "exists", "--rate", "100", "--json"]).ended(0).json();
    assert_eq!(replayed.as_array().unwrap().len(), 2);
    for letter in replayed.as_array().unwrap() {
        folder.run(&["status", letter["outcome"]["as_task"].as_str().unwrap(), "--watch"]).ended(1);
    }
    eventually("they are listed", || (list(folder, &["--task", "exists"]).len() == 2).then_some(()));
    let purged = folder.run(&["dead", "purge", "--task", "exists"]).ended(0).stdout;
    assert_eq!(purged.matches("purged").count(), 2, "{purged}");
    assert_eq!(list(folder, &[]).len(), 1);
    eventually("one is left", || (lying(folder) == json!(1)).then_some(()));
    folder.run(&["dead", "purge", "--all", "--json"]).ended(0);
    eventually("none is left", || (lying(folder) == json!(0)).then_some(()));
    let none = folder.run(&["dead", "purge", "--all"]).ended(0).reports(&["no dead letter matches"]);
    assert_eq!(none.stdout, "");
}

#[test]
fn dead_letters_are_listed_replayed_and_purged() {
    the_life_of_dead_letters(&Folder::with(TOML));
}

#[test]
fn dead_letters_on_rabbitmq_and_redis() {
    let Some(folder) = servers("dead_letters_on_rabbitmq_and_redis") else { return };
    folder.write("machinist.toml", TOML);
    the_life_of_dead_letters(&folder);
}

#[test]
fn what_nobody_signed_is_refused_and_can_be_purged() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store =
            SqliteStore::open(folder.path().join("machinist.db"), SqliteOptions::default()).await.unwrap();
        let stranger = App::builder(Arc::new(store.broker()), Arc::new(store.backend())).allow_unsigned();
        stranger.build().await.unwrap().client().send(Signature::new("add")).await.unwrap();
    });
    let letter = eventually("it is listed", || list(&folder, &[]).into_iter().next());
    assert_eq!((&letter["reason"], &letter["name"]), (&json!("unsigned"), &json!("add")));
    let refused = folder.run(&["dead", "replay", "--all"]).ended(1).stdout;
    assert!(refused.contains("refused: unsigned: it carries no signature"), "{refused}");
    assert_eq!(list(&folder, &[]).len(), 1);
    folder.run(&["dead", "purge", "--reason", "unsigned"]).ended(0);
    assert_eq!(list(&folder, &[]), [Value::Null; 0]);
}
