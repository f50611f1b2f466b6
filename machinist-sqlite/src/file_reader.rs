//! The thread that reads the file. Every query sees a snapshot, so it waits for no writer.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
};

use machinist_adapter::{
    backend::Index,
    broker::{HeldCounts, Message, QueueDepth, Target},
    clock::Timestamp,
    diagnose::Finding,
    facts::Facts,
    id::{QueueName, RecordId},
};
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use crate::{clock::HostClock, diagnose, error::StoreError, indexes, messages, records};

type QueryReply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Query about the file, with the channel for its answer.
#[derive(Debug)]
pub(crate) enum Query {
    Now(QueryReply<Timestamp>),
    Records(Vec<RecordId>, QueryReply<Vec<Facts>>),
    Depth(Vec<QueueName>, QueryReply<Vec<QueueDepth>>),
    Held(Vec<QueueName>, QueryReply<Vec<HeldCounts>>),
    /// The first messages of a queue that wait.
    Ready(QueueName, u16, QueryReply<Vec<Message>>),
    List {
        index: Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
        reply: QueryReply<Vec<(Timestamp, String)>>,
    },
    Diagnose(QueryReply<Vec<Finding>>),
    /// Ends the thread.
    Stop,
}

/// State of the reading thread.
#[derive(Debug)]
pub(crate) struct FileReader {
    pub(crate) db: Connection,
    pub(crate) path: PathBuf,
    pub(crate) namespace: i64,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) queries: Receiver<Query>,
    /// Dropped after the connection, which tells the writer that this is closed.
    pub(crate) _open: Sender<Infallible>,
}

impl FileReader {
    /// Answers queries until the store is closed or dropped.
    pub(crate) fn run(self) {
        while let Ok(query) = self.queries.recv() {
            match query {
                Query::Now(reply) => self.answer(reply, |_, now| Ok(now)),
                Query::Records(ids, reply) => self.answer(reply, |db, now| {
                    ids.iter().map(|id| records::read(db, self.namespace, now, id)).collect()
                }),
                Query::Depth(queues, reply) => self
                    .answer(reply, |db, now| queues.iter().map(|queue| self.depth(db, queue, now)).collect()),
                Query::Held(queues, reply) => self
                    .answer(reply, |db, now| queues.iter().map(|queue| self.held(db, queue, now)).collect()),
                Query::Ready(queue, limit, reply) => {
                    self.answer(reply, |db, now| {
                        match messages::find_queue(db, self.namespace, &Target::Queue(queue))? {
                            Some(id) => messages::first_ready(db, id, now, limit),
                            None => Ok(Vec::new()),
                        }
                    })
                }
                Query::List { index, after, limit, reply } => {
                    self.answer(reply, |db, _| {
                        indexes::list(db, self.namespace, &index, after.as_ref(), limit)
                    });
                }
                Query::Diagnose(reply) => {
                    self.answer(reply, |db, _| diagnose::examine(db, &self.path, self.clock.deviation()))
                }
                Query::Stop => return,
            }
        }
    }

    fn answer<T>(
        &self,
        reply: QueryReply<T>,
        ask: impl FnOnce(&Connection, Timestamp) -> rusqlite::Result<T>,
    ) {
        // One snapshot for one query.
        let answer = self
            .db
            .unchecked_transaction()
            .and_then(|snapshot| ask(&snapshot, self.clock.read(&snapshot)?))
            .map_err(|error| StoreError::of(&self.path, &error));
        // The caller may have gone.
        let _ = reply.send(answer);
    }

    fn held(&self, db: &Connection, queue: &QueueName, now: Timestamp) -> rusqlite::Result<HeldCounts> {
        match messages::find_queue(db, self.namespace, &Target::Queue(queue.clone()))? {
            Some(id) => held_counts(db, id, now),
            None => Ok(HeldCounts { delayed: Some(0), unacked: Some(0) }),
        }
    }

    fn depth(&self, db: &Connection, queue: &QueueName, now: Timestamp) -> rusqlite::Result<QueueDepth> {
        let mut depth = QueueDepth { queue: queue.clone(), ready: None, consumers: None, dead: None };
        if let Some(id) = messages::find_queue(db, self.namespace, &Target::Queue(queue.clone()))? {
            let subscribed =
                "SELECT coalesce(sum(CAST(count AS INTEGER)), 0) FROM subscriptions WHERE queue = ?1";
            depth.ready = Some(count_ready(db, id)? + count_due(db, id, now)?);
            depth.consumers = Some(
                db.prepare_cached(subscribed)?.query_row([id], |row| row.get::<_, i64>(0))?.unsigned_abs(),
            );
        }
        if let Some(id) = messages::find_queue(db, self.namespace, &Target::DeadLetters(queue.clone()))? {
            depth.dead = Some(count_ready(db, id)?);
        }
        Ok(depth)
    }
}

/// Counts the messages of a queue that are not due, or that an owner holds.
fn held_counts(db: &Connection, queue: i64, now: Timestamp) -> rusqlite::Result<HeldCounts> {
    let number = |sql: &str, later: i64| -> rusqlite::Result<Option<u64>> {
        let count: i64 = db.prepare_cached(sql)?.query_row(params![queue, later], |row| row.get(0))?;
        Ok(Some(count.unsigned_abs()))
    };
    Ok(HeldCounts {
        delayed: number(
            "SELECT count(*) FROM messages WHERE holder = -1 AND due > ?2 AND queue = ?1",
            now.as_micros(),
        )?,
        unacked: number("SELECT count(*) FROM messages WHERE holder > ?2 AND holder > 0 AND queue = ?1", 0)?,
    })
}

fn count_ready(db: &Connection, queue: i64) -> rusqlite::Result<u64> {
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM messages WHERE queue = ?1 AND holder = 0")?
        .query_row([queue], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Counts delayed messages that are due but not marked ready: only a process that consumes marks them.
fn count_due(db: &Connection, queue: i64, now: Timestamp) -> rusqlite::Result<u64> {
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM messages WHERE holder = -1 AND due <= ?2 AND queue = ?1")?
        .query_row(params![queue, now.as_micros()], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}
