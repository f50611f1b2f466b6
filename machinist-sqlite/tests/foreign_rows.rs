//! Rows that another program wrote or changed: each harms only its own message or record.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{path::Path, sync::Arc, time::Duration};

use machinist_conformance::{eventually, within};
use machinist_core::{App, DeadFilter, TaskDef, TaskError, Worker, id::TaskId};
use machinist_sqlite::{SqliteOptions, SqliteStore};
use rusqlite::Connection;

const BOUND: Duration = Duration::from_secs(60);
const GREET: TaskDef<(String,), String> = TaskDef::new("greet");

async fn greet(name: String) -> Result<String, TaskError> {
    Ok(name)
}

async fn app(path: &Path) -> App {
    let store = SqliteStore::open(path, SqliteOptions::default()).await.unwrap();
    App::builder(Arc::new(store.broker()), Arc::new(store.backend())).allow_unsigned().build().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misshapen_message_becomes_a_dead_letter_and_its_queue_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let app = app(&path).await;
    let client = app.client();
    // What another program writes into the row of each message. Where it only delays the message, the task runs.
    let changes = [
        ("headers = x'ff00'", false),
        ("headers = 'text'", false),
        ("body = 'text'", false),
        ("body = 7", false),
        ("kind = x'00ff'", false),
        ("task = x'00ff'", false),
        ("priority = 'high'", false),
        ("priority = 9999", false),
        ("timestamp = 'now'", false),
        ("rank = 'low'", true),
        ("redelivered = 'no'", true),
        ("holder = 'nobody'", true),
        ("holder = 4711", true),
        ("holder = -1, due = 'tomorrow'", true),
        ("app_id = app_id", true),
    ];
    let mut sent = Vec::new();
    let db = Connection::open(&path).unwrap();
    for (change, runs) in changes {
        let task = client.send(GREET.call((change.to_owned(),))).await.unwrap();
        let changed =
            db.execute(&format!("UPDATE messages SET {change} WHERE task = ?1"), [task.id().as_str()]);
        assert_eq!(changed.unwrap(), 1);
        sent.push((task, change, runs));
    }
    db.execute_batch("INSERT INTO owners (beat, pid, since) VALUES ('x', 0, 0)").unwrap();
    db.execute_batch("INSERT INTO wakes (namespace, source, kind, name) VALUES (1, 0, x'ff', x'ff')")
        .unwrap();

    let worker = Worker::builder(&app).task(GREET, greet).build().unwrap();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    for (task, change, runs) in &sent {
        if *runs {
            let greeted = within(BOUND, change, task.wait(BOUND)).await;
            assert_eq!(greeted.unwrap(), *change);
        }
    }
    let broken = changes.iter().filter(|(_, runs)| !runs).count();
    let mut letters = Vec::new();
    let which = DeadFilter::default();
    let all = eventually(BOUND, async || {
        letters = client.dead_letters(&which, 100).await.unwrap();
        letters.len() >= broken
    });
    assert!(all.await, "{} dead letters of {broken}", letters.len());
    for letter in &letters {
        assert_eq!(letter.reason, "undecodable");
        let error = letter.error.message();
        assert!(error.contains("table `messages`") && error.contains("cannot read"), "{error}");
    }
    let named: Vec<&TaskId> = letters.iter().filter_map(|letter| letter.task.as_ref()).collect();
    assert_eq!(named.len(), broken - 1, "all that can be known of a message is in its letter");
    assert_eq!(letters.len(), broken);
    running.abort();
}
