//! Both conformance suites against a file. Every connection is a separate store, as in another process.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use machinist_conformance::{BackendHarness, BrokerHarness};
use machinist_core::{
    backend::{Backend, Index},
    broker::{Broker, Message},
    id::{QueueName, RecordId},
};
use machinist_sqlite::{SqliteOptions, SqliteStore, Synchronous};
use rusqlite::Connection;

/// A new file for each test.
struct InFile {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl InFile {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { path: directory.path().join("machinist.db"), _directory: directory }
    }

    async fn open(&self) -> SqliteStore {
        let options = SqliteOptions { synchronous: Synchronous::Normal, ..SqliteOptions::default() };
        SqliteStore::open(&self.path, options).await.unwrap()
    }
}

#[async_trait]
impl BrokerHarness for InFile {
    async fn connect(&self) -> Arc<dyn Broker> {
        Arc::new(self.open().await.broker())
    }

    /// A file has no connection to cut. The nearest equivalent is that other processes declare this one dead.
    async fn interrupt(&self) -> bool {
        let db = Connection::open(&self.path).unwrap();
        db.execute_batch(
            "BEGIN IMMEDIATE; UPDATE messages SET holder = 0, redelivered = 1 WHERE holder > 0; \
             DELETE FROM owners; DELETE FROM subscriptions; COMMIT",
        )
        .unwrap();
        true
    }

    async fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        let db = Connection::open(&self.path).unwrap();
        // This harness reads the dead letters as messages of a task queue: a change of the queue's row makes it one.
        db.execute(
            "UPDATE queues SET dead = 0, name = 'opened' WHERE name = ?1 AND dead = 1",
            [queue.as_str()],
        )
        .unwrap();
        drop(db);
        let broker = self.open().await.broker();
        let opened = QueueName::parse("opened").unwrap();
        let count = broker.depth(std::slice::from_ref(&opened)).await.unwrap()[0].ready.unwrap_or(0);
        let consume = machinist_core::broker::Consume { queues: vec![opened], prefetch: u16::MAX };
        let mut consumer = broker.consume(consume).await.unwrap();
        let mut letters = Vec::new();
        for _ in 0..count {
            letters.push(consumer.next().await.unwrap().message);
        }
        letters
    }

    async fn delete_queue(&self, _queue: &QueueName) -> bool {
        false
    }
}

#[async_trait]
impl BackendHarness for InFile {
    async fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.open().await.backend())
    }

    async fn interrupt(&self) -> bool {
        false
    }

    async fn spoil(&self, id: &RecordId) -> bool {
        let db = Connection::open(&self.path).unwrap();
        db.execute(
            "INSERT INTO records (namespace, kind, name, facts) VALUES (1, ?1, ?2, 'x') \
             ON CONFLICT DO UPDATE SET facts = 'x'",
            [id.kind().as_str(), id.id()],
        )
        .unwrap();
        true
    }

    async fn spoil_index(&self, index: &Index) -> bool {
        let db = Connection::open(&self.path).unwrap();
        let wrong = "INSERT INTO notes (namespace, list, member, at) VALUES (1, ?1, x'00', 'x')";
        db.execute(wrong, [index.name()]).unwrap();
        true
    }
}

async fn file() -> Option<InFile> {
    Some(InFile::new())
}

mod broker_suite {
    machinist_conformance::broker_suite!(super::file);
}

mod backend_suite {
    machinist_conformance::backend_suite!(super::file);
}
