//! Several processes on one file: they share the work, they are killed, they are stopped.
//!
//! The second process is this test binary, started again for one test with a role in its environment.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod support;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use machinist_conformance::{eventually, within};
use machinist_core::{
    backend::{Backend, Commit, Committed, Expiry},
    broker::{Broker, Consume, Consumer, Delivery, Settle},
    id::{SessionId, TaskId},
};
use machinist_sqlite::SqliteStore;
use support::{message, open, queue};

/// Time limit for every wait.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Number of messages that each process sends.
const MESSAGES_PER_PROCESS: usize = 300;
/// Session of the second process.
const SESSION: &str = "second";
const ROLE_VARIABLE: &str = "MACHINIST_SQLITE_TEST_ROLE";
const FILE_VARIABLE: &str = "MACHINIST_SQLITE_TEST_FILE";

/// Not a test: runs the role of the second process.
#[test]
fn second_process() {
    let Ok(role) = std::env::var(ROLE_VARIABLE) else { return };
    let path = PathBuf::from(std::env::var_os(FILE_VARIABLE).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(&path).await;
        match role.as_str() {
            "hold" => hold(&store).await,
            "send" => send_forever(&store).await,
            name => send_and_record(&store, name).await,
        }
    });
}

/// Takes messages, reports it, and holds them.
async fn hold(store: &SqliteStore) {
    // Before it consumes, as workers do.
    let session = SessionId::from(SESSION);
    let facts = vec![("lease".into(), Bytes::from_static(b"1"))];
    let open = Commit { facts, expiry: Expiry::After(100 * TIMEOUT), ..Commit::new(&session) };
    store.backend().commit(vec![open.into()]).await.remove(0).unwrap();
    let mut consumer = consume(store, 10).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(consumer.next().await.unwrap());
    }
    println!("\nholding");
    tokio::time::sleep(TIMEOUT * 2).await;
}

/// Sends without end, and prints the messages that were confirmed.
async fn send_forever(store: &SqliteStore) {
    for number in 0.. {
        store.broker().publish(vec![message(&number.to_string())]).await.remove(0).unwrap();
        println!("\nconfirmed {number}");
    }
}

/// Sends messages and commits records, in eight tasks at once.
async fn send_and_record(store: &SqliteStore, name: &str) {
    let senders = (0..8).map(|sender| {
        let broker = store.broker();
        let backend = store.backend();
        let name = name.to_owned();
        tokio::spawn(async move {
            for number in (sender..MESSAGES_PER_PROCESS).step_by(8) {
                let text = format!("{name}-{number}");
                broker.publish(vec![message(&text)]).await.remove(0).unwrap();
                let commit = Commit {
                    facts: vec![("by".into(), Bytes::from(text.clone()))],
                    expiry: Expiry::After(TIMEOUT),
                    ..Commit::new(TaskId::parse(&text).unwrap())
                };
                assert_eq!(
                    backend.commit(vec![commit.into()]).await.remove(0).unwrap(),
                    Committed::Done { count: None }
                );
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
    store.close().await;
}

/// Second process, which is killed at the end of the test.
struct OtherProcess(Child);

impl OtherProcess {
    fn start(role: &str, path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "second_process", "--nocapture"])
            .env(ROLE_VARIABLE, role)
            .env(FILE_VARIABLE, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn wait_for(&mut self, line: &str) {
        let output = BufReader::new(self.0.stdout.take().unwrap());
        assert!(output.lines().any(|read| read.unwrap() == line), "the other process never printed {line:?}");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn consume(store: &SqliteStore, prefetch: u16) -> Box<dyn Consumer> {
    store.broker().consume(Consume { queues: vec![queue()], prefetch }).await.unwrap()
}

async fn next(consumer: &mut dyn Consumer) -> (Delivery, String) {
    let delivery = within(TIMEOUT, "a delivery", consumer.next()).await.unwrap();
    let body = String::from_utf8(delivery.message.body.to_vec()).unwrap();
    (delivery, body)
}

/// Starts another process that takes all of five messages.
async fn held_by_another(store: &SqliteStore) -> OtherProcess {
    let mut other = OtherProcess::start("hold", store.path());
    let batch = ["0", "1", "2", "3", "4"].map(message);
    for answer in store.broker().publish(batch.into()).await {
        answer.unwrap();
    }
    other.wait_for("holding");
    other
}

/// Receives and acknowledges all five messages, which are redelivered.
async fn all_five_come_back(consumer: &mut dyn Consumer) {
    let mut received = BTreeSet::new();
    while received.len() < 5 {
        let (delivery, body) = next(consumer).await;
        assert!(delivery.redelivered, "{body} was handed out before");
        delivery.receipt.settle(Settle::Ack).await;
        received.insert(body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_held_by_a_killed_process_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("m.db")).await;
    let mut other = held_by_another(&store).await;
    let mut consumer = consume(&store, 10).await;
    other.0.kill().unwrap();
    other.0.wait().unwrap();
    all_five_come_back(&mut *consumer).await;
    let ended = eventually(TIMEOUT, async || !session_is_there(&store).await).await;
    assert!(ended, "the session outlives its process until its lease expires");
}

async fn session_is_there(store: &SqliteStore) -> bool {
    !store.backend().read(&[SessionId::from(SESSION).into()]).await.unwrap()[0].is_empty()
}

/// A sender that is killed in the middle of a write leaves every message that was confirmed to it.
#[tokio::test(flavor = "multi_thread")]
async fn messages_confirmed_to_a_killed_process_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("m.db")).await;
    let mut consumer = consume(&store, 100).await;
    let mut received = BTreeSet::new();
    for round in 1..=5 {
        let mut other = OtherProcess::start("send", store.path());
        let mut lines = BufReader::new(other.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let first: Vec<_> = lines.by_ref().filter(|line| line.starts_with("confirmed ")).take(20).collect();
        other.0.kill().unwrap();
        let rest = lines.filter(|line| line.starts_with("confirmed "));
        let confirmed = first.into_iter().chain(rest).count();
        assert!(confirmed >= 20);
        // Each sender counts from zero, so every message before an unconfirmed one was confirmed.
        for number in 0..confirmed {
            while !received.contains(&(round, number)) {
                let (delivery, body) = next(&mut *consumer).await;
                delivery.receipt.settle(Settle::Ack).await;
                received.insert((round, body.parse().unwrap()));
            }
        }
        // One more message may have been written without a confirmation.
        let left = store.broker().depth(&[queue()]).await.unwrap()[0].ready;
        assert!(left <= Some(1), "{left:?} messages are left that were not sent");
        if !received.contains(&(round, confirmed)) && left == Some(1) {
            let (delivery, _) = next(&mut *consumer).await;
            delivery.receipt.settle(Settle::Ack).await;
        }
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn messages_held_by_a_stopped_process_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("m.db")).await;
    let other = held_by_another(&store).await;
    let stopped_between_writes = eventually(TIMEOUT, async || {
        other.signal("-STOP");
        // Stopped in the middle of a write, the process would hold the lock of SQLite and block all others.
        let db = rusqlite::Connection::open(store.path()).unwrap();
        let free = db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok();
        if !free {
            other.signal("-CONT");
        }
        free
    });
    assert!(stopped_between_writes.await);
    let mut consumer = consume(&store, 10).await;
    all_five_come_back(&mut *consumer).await;
    assert!(session_is_there(&store).await, "a stopped process may go on");
    other.signal("-CONT");
}

/// Four processes write as fast as they can while two stores of this process share the queue: each message is delivered
/// once, each record is there, and no operation fails because the file is locked.
#[tokio::test(flavor = "multi_thread")]
async fn processes_take_turns() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.db");
    let names = ["a", "b", "c", "d"];
    let one = open(&path).await;
    let two = open(&path).await;
    let mut others = names.map(|name| OtherProcess::start(name, &path));
    let mut expected: BTreeSet<_> = names
        .iter()
        .flat_map(|name| (0..MESSAGES_PER_PROCESS).map(move |number| format!("{name}-{number}")))
        .collect();
    let mut first = consume(&one, 20).await;
    let mut second = consume(&two, 20).await;
    while !expected.is_empty() {
        let delivery = within(TIMEOUT, "a delivery", async {
            tokio::select! {
                delivery = first.next() => delivery,
                delivery = second.next() => delivery,
            }
        });
        let delivery = delivery.await.unwrap();
        let body = String::from_utf8(delivery.message.body.to_vec()).unwrap();
        assert!(expected.remove(&body) && !delivery.redelivered, "{body} came twice");
        delivery.receipt.settle(Settle::Ack).await;
    }
    for other in &mut others {
        assert!(other.0.wait().unwrap().success());
    }
    let ids: Vec<_> = names
        .iter()
        .flat_map(|name| {
            (0..MESSAGES_PER_PROCESS).map(move |number| TaskId::parse(&format!("{name}-{number}")).unwrap())
        })
        .collect();
    let records = two.backend().read(&ids.iter().map(Into::into).collect::<Vec<_>>()).await.unwrap();
    for (id, record) in ids.iter().zip(records) {
        assert_eq!(record.get("by").map(|by| &by[..]), Some(id.as_str().as_bytes()));
    }
}
