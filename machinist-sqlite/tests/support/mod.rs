//! A store, its queue and its messages, shared by the tests of the file.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use machinist_core::{
    broker::{Message, Publish, Target},
    id::QueueName,
};
use machinist_sqlite::{SqliteOptions, SqliteStore};

pub(crate) async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, SqliteOptions::default()).await.unwrap()
}

pub(crate) fn queue() -> QueueName {
    QueueName::parse("work").unwrap()
}

pub(crate) fn message(body: &str) -> Publish {
    let message = Message { body: Bytes::copy_from_slice(body.as_bytes()), ..Message::default() };
    Publish { target: Target::Queue(queue()), message, delay: Duration::ZERO }
}
