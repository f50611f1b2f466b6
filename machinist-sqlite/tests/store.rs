//! Guarantees of this adapter that the conformance suites do not cover: namespaces, order, group commit, closing,
//! diagnosis.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use machinist_conformance::within;
use machinist_core::{
    backend::{Backend, Commit, Committed, Index, IndexUpdate},
    broker::{Broker, Consume, Consumer, Publish, PublishError, Settle},
    clock::Timestamp,
    diagnose::{Diagnose, Level},
    id::TaskId,
};
use machinist_sqlite::{SqliteOptions, SqliteStore};
use rusqlite::Connection;
use support::{message, open, queue};

/// Time limit for every wait.
const TIMEOUT: Duration = Duration::from_secs(60);

async fn open_as(path: &Path, namespace: &str) -> SqliteStore {
    let options = SqliteOptions { namespace: namespace.to_owned(), ..SqliteOptions::default() };
    SqliteStore::open(path, options).await.unwrap()
}

fn with_priority(body: &str, priority: u8) -> Publish {
    let mut publish = message(body);
    publish.message.priority = Some(priority);
    publish
}

async fn publish(broker: &dyn Broker, batch: Vec<Publish>) {
    for answer in broker.publish(batch).await {
        answer.unwrap();
    }
}

async fn consume(broker: &dyn Broker, prefetch: u16) -> Box<dyn Consumer> {
    broker.consume(Consume { queues: vec![queue()], prefetch }).await.unwrap()
}

/// Receives and acknowledges the next messages. Returns their bodies.
async fn bodies(consumer: &mut dyn Consumer, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let delivery = within(TIMEOUT, "a delivery", consumer.next()).await.unwrap();
        bodies.push(String::from_utf8(delivery.message.body.to_vec()).unwrap());
        delivery.receipt.settle(Settle::Ack).await;
    }
    bodies
}

#[tokio::test]
async fn namespaces_share_only_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let one = open_as(&path, "one").await;
    let two = open_as(&path, "two").await;
    publish(&one.broker(), vec![message("for one")]).await;
    publish(&two.broker(), vec![message("for two")]).await;
    let mut consumer = consume(&two.broker(), 10).await;
    assert_eq!(bodies(&mut *consumer, 1).await, ["for two"]);
    assert_eq!(one.broker().depth(&[queue()]).await.unwrap()[0].ready, Some(1));

    let here = one.backend();
    let there = two.backend();
    let id = TaskId::fresh();
    let commit = Commit { facts: vec![("name".into(), Bytes::new())], ..Commit::new(id.clone()) };
    assert_eq!(here.commit(vec![commit.into()]).await.remove(0).unwrap(), Committed::Done { count: None });
    let update =
        IndexUpdate::Put { index: Index::Queues, at: Timestamp::from_micros(1), member: "work".into() };
    here.update_indexes(vec![update]).await.unwrap();
    assert!(there.read(&[id.into()]).await.unwrap()[0].is_empty());
    assert_eq!(there.list(&Index::Queues, None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_queue_is_in_order_and_higher_priorities_come_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("m.db")).await;
    let batch = vec![message("c"), with_priority("a", 9), message("d"), with_priority("b", 1), message("e")];
    publish(&store.broker(), batch).await;
    let mut consumer = consume(&store.broker(), 10).await;
    assert_eq!(bodies(&mut *consumer, 5).await, ["a", "b", "c", "d", "e"]);
}

/// A change that the file refuses is rolled back without the others, in one batch and among many callers.
#[tokio::test(flavor = "multi_thread")]
async fn one_failure_in_a_batch_is_one_failure() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let store = open(&path).await;
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE TRIGGER poison BEFORE INSERT ON messages WHEN NEW.body = CAST('bad' AS BLOB) \
         BEGIN SELECT RAISE(ABORT, 'poisoned'); END",
    )
    .unwrap();
    let broker = store.broker();
    let answers = broker.publish(vec![message("1"), message("bad"), message("2")]).await;
    assert!(matches!(answers.as_slice(), [Ok(()), Err(PublishError::Unknown(_)), Ok(())]), "{answers:?}");

    let senders: Vec<_> = (0..60)
        .map(|number| {
            let broker = broker.clone();
            tokio::spawn(async move {
                let body = if number % 3 == 0 { "bad" } else { "good" };
                assert_eq!(broker.publish(vec![message(body)]).await[0].is_ok(), body == "good");
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    assert_eq!(broker.depth(&[queue()]).await.unwrap()[0].ready, Some(42));
}

/// A settlement that fails is retried. Otherwise this process would hold its message forever.
#[tokio::test]
async fn a_failed_settlement_is_retried() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let store = open(&path).await;
    let broker = store.broker();
    publish(&broker, vec![message("1")]).await;
    let mut consumer = consume(&broker, 1).await;
    let delivery = within(TIMEOUT, "a delivery", consumer.next()).await.unwrap();
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE TRIGGER poison BEFORE DELETE ON messages BEGIN SELECT RAISE(ABORT, 'not now'); END",
    )
    .unwrap();
    delivery.receipt.settle(Settle::Ack).await;
    publish(&broker, vec![message("2")]).await;
    assert_eq!(messages(&db), 2, "the ack came before the second message and failed");
    db.execute_batch("DROP TRIGGER poison").unwrap();
    let settled = machinist_conformance::eventually(TIMEOUT, async || messages(&db) == 1);
    assert!(settled.await, "the ack was not retried");
}

fn messages(db: &Connection) -> i64 {
    db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_closed_store_answers_and_its_file_is_intact() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let store = open(&path).await;
    let broker = store.broker();
    let backend = store.backend();
    publish(&broker, vec![message("1"), message("2")]).await;
    let mut consumer = consume(&broker, 10).await;
    let held = within(TIMEOUT, "a delivery", consumer.next()).await.unwrap();
    within(TIMEOUT, "close", store.close()).await;
    within(TIMEOUT, "a second close", store.close()).await;
    assert!(within(TIMEOUT, "the end", consumer.next()).await.is_none());
    assert!(matches!(broker.publish(vec![message("3")]).await[0], Err(PublishError::Unavailable(_))));
    assert!(broker.depth(&[queue()]).await.is_err());
    assert!(backend.commit(vec![Commit::new(TaskId::fresh()).into()]).await[0].is_err());
    assert!(backend.read(&[TaskId::fresh().into()]).await.is_err());
    assert_eq!(held.receipt.settle(Settle::Ack).await, machinist_core::broker::Settled::Lost);

    let again = open(&path).await;
    let mut consumer = consume(&again.broker(), 10).await;
    assert_eq!(bodies(&mut *consumer, 2).await, ["1", "2"]);
}

#[tokio::test]
async fn dropping_everything_ends_the_threads_and_removes_the_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let store = open(&path).await;
    let consumer = consume(&store.broker(), 10).await;
    drop((store, consumer));
    let gone = machinist_conformance::eventually(TIMEOUT, async || {
        let db = Connection::open(&path).unwrap();
        let owners: i64 = db.query_row("SELECT count(*) FROM owners", [], |row| row.get(0)).unwrap();
        owners == 0 && std::fs::read_dir(directory.path().join("m.db-owners")).unwrap().next().is_none()
    });
    assert!(gone.await, "the owner is still there");
}

#[tokio::test]
async fn a_diagnosis_reports_the_state_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let store: Arc<dyn Diagnose + Send + Sync> = Arc::new(open(&path).await.broker());
    assert_eq!(store.location(), path.display().to_string());
    let findings = store.diagnose().await;
    for subject in ["file", "SQLite", "size", "journal mode", "synchronous", "rights", "integrity", "writing"]
    {
        let found = findings.iter().find(|finding| finding.subject == subject);
        assert_eq!(found.map(|finding| finding.level), Some(Level::Good), "{subject}: {findings:?}");
    }
}
