//! SQL of messages. Functions that change the file run inside a transaction of the writer.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use machinist_adapter::{
    broker::{HeaderValue, Message, Publish, Settle, Target},
    clock::Timestamp,
    header,
    id::QueueName,
};
use rusqlite::{
    Connection, OptionalExtension, Row, params,
    types::{FromSql, ValueRef},
};

use machinist_adapter::columns::{decode_headers, encode_headers};

/// Holder of a message that any owner may claim.
const HOLDER_READY: i64 = 0;
/// Holder of a delayed message, which no owner may claim before its due time.
const HOLDER_DELAYED: i64 = -1;

/// Message that was claimed for a subscription.
#[derive(Debug)]
pub(crate) struct ClaimedMessage {
    pub(crate) id: i64,
    pub(crate) queue: QueueName,
    pub(crate) redelivered: bool,
    pub(crate) message: Message,
}

/// Position of a message in its queue: by priority, then by due time, then in the order of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct DeliveryOrder {
    rank: i64,
    due: i64,
    id: i64,
}

/// Cache of the ids of queues, which never change. It is cleared when a transaction is rolled back, because that
/// transaction may have created them.
#[derive(Debug, Default)]
pub(crate) struct QueueIds(HashMap<Target, i64>);

impl QueueIds {
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }

    /// Returns the id of a queue, and creates the queue if it does not exist.
    pub(crate) fn declare(
        &mut self,
        db: &Connection,
        namespace: i64,
        target: &Target,
    ) -> rusqlite::Result<i64> {
        if let Some(&id) = self.0.get(target) {
            return Ok(id);
        }
        let found = find_queue(db, namespace, target)?;
        let id = match found {
            Some(id) => id,
            None => db
                .prepare_cached("INSERT INTO queues (namespace, name, dead) VALUES (?1, ?2, ?3)")?
                .insert(params![namespace, target.queue().as_str(), is_dead(target)])?,
        };
        self.0.insert(target.clone(), id);
        Ok(id)
    }
}

/// Returns the id of a queue if it exists.
pub(crate) fn find_queue(db: &Connection, namespace: i64, target: &Target) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM queues WHERE namespace = ?1 AND name = ?2 AND dead = ?3")?
        .query_row(params![namespace, target.queue().as_str(), is_dead(target)], |row| row.get(0))
        .optional()
}

fn is_dead(target: &Target) -> bool {
    matches!(target, Target::DeadLetters(_))
}

/// Adds a message to a queue.
pub(crate) fn publish(
    db: &Connection,
    queue: i64,
    now: Timestamp,
    publish: &Publish,
) -> rusqlite::Result<()> {
    let Publish { message, delay, .. } = publish;
    let holder = if *delay == Duration::ZERO { HOLDER_READY } else { HOLDER_DELAYED };
    db.prepare_cached(
        "INSERT INTO messages (queue, rank, due, holder, redelivered, task, kind, content_type, timestamp, \
         priority, app_id, headers, body) VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        queue,
        -i64::from(message.priority.unwrap_or(0).min(9)),
        now.plus(*delay).as_micros(),
        holder,
        message.id,
        message.kind,
        message.content_type,
        message.timestamp.map(Timestamp::as_micros),
        message.priority,
        message.app_id,
        encode_headers(message),
        &message.body[..],
    ])?;
    Ok(())
}

/// Makes at most `limit` delayed messages ready that are due. Returns `true` if there were any.
pub(crate) fn promote(db: &Connection, now: Timestamp, limit: u32) -> rusqlite::Result<bool> {
    let promoted = db
        .prepare_cached(
            // A time that is not a number would never come: SQLite sorts all text after all numbers.
            "UPDATE messages SET holder = 0 WHERE id IN \
             (SELECT id FROM messages WHERE holder = -1 AND (due <= ?1 OR due >= '') ORDER BY due LIMIT ?2)",
        )?
        .execute(params![now.as_micros(), limit])?;
    Ok(promoted > 0)
}

/// Returns the due time of the next delayed message. A time that cannot be read has come.
pub(crate) fn next_due(db: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let due = db
        .prepare_cached("SELECT due FROM messages WHERE holder = -1 ORDER BY due LIMIT 1")?
        .query_row([], |row| Ok(row.get_ref(0)?.as_i64().unwrap_or(i64::MIN)))
        .optional()?;
    Ok(due.map(Timestamp::from_micros))
}

/// Returns `true` if the queue holds a ready message.
pub(crate) fn any_ready(db: &Connection, queue: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM messages WHERE queue = ?1 AND holder = 0 LIMIT 1")?.exists([queue])
}

/// Claims up to `limit` messages of a queue for an owner. Returns them in the order of delivery.
pub(crate) fn claim(
    db: &Connection,
    owner: i64,
    queue: i64,
    name: &QueueName,
    limit: u32,
) -> rusqlite::Result<Vec<ClaimedMessage>> {
    let mut statement = db.prepare_cached(
        "UPDATE messages SET holder = ?1 WHERE id IN \
         (SELECT id FROM messages WHERE queue = ?2 AND holder = 0 ORDER BY rank, due, id LIMIT ?3) \
         RETURNING id, rank, due, redelivered, task, kind, content_type, timestamp, priority, app_id, headers, body",
    )?;
    let rows = statement.query_map(params![owner, queue, limit], |row| {
        let id = row.get(0)?;
        let order =
            DeliveryOrder { rank: row.get(1).unwrap_or_default(), due: row.get(2).unwrap_or_default(), id };
        let redelivered = row.get(3).unwrap_or(true);
        Ok((order, ClaimedMessage { id, queue: name.clone(), redelivered, message: message(id, row)? }))
    })?;
    let mut claimed = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    // RETURNING guarantees no order.
    claimed.sort_unstable_by_key(|(order, _)| *order);
    Ok(claimed.into_iter().map(|(_, claimed)| claimed).collect())
}

/// Returns the first messages of a queue that wait for a consumer, in the order of delivery, and claims none.
///
/// Delayed messages that are due and not marked ready come after the others: only a process that consumes marks them.
pub(crate) fn first_ready(
    db: &Connection,
    queue: i64,
    now: Timestamp,
    limit: u16,
) -> rusqlite::Result<Vec<Message>> {
    const COLUMNS: &str = "id, rank, due, redelivered, task, kind, content_type, timestamp, priority, app_id, headers, \
                           body";
    let mut all = Vec::new();
    for which in ["holder = 0 AND ?2 = ?2", "holder = -1 AND due <= ?2"] {
        let mut statement = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM messages WHERE queue = ?1 AND {which} ORDER BY rank, due, id LIMIT ?3"
        ))?;
        let left = usize::from(limit).saturating_sub(all.len());
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        let rows =
            statement.query_map(params![queue, now.as_micros(), left], |row| message(row.get(0)?, row))?;
        for row in rows {
            all.push(row?);
        }
    }
    Ok(all)
}

/// Reads the message of a row. A row that another program wrote or changed must not stop its queue: it becomes a message
/// that says what cannot be read, and that no worker runs.
fn message(id: i64, row: &Row<'_>) -> rusqlite::Result<Message> {
    let mut reader = ColumnReader { row, unreadable: Vec::new() };
    let mut message = Message {
        id: reader.value(4, "task"),
        kind: reader.value(5, "kind"),
        content_type: reader.value(6, "content_type"),
        timestamp: reader.value::<i64>(7, "timestamp").map(Timestamp::from_micros),
        priority: reader.value(8, "priority"),
        app_id: reader.value(9, "app_id"),
        ..Message::default()
    };
    let headers = row.get_ref(10)?;
    match headers {
        ValueRef::Null => {}
        ValueRef::Blob(encoded) if decode_headers(encoded, &mut message).is_ok() => {}
        _ => reader.unreadable.push("headers"),
    }
    let body = row.get_ref(11)?;
    if !matches!(body, ValueRef::Blob(_)) {
        reader.unreadable.push("body");
    }
    message.body = raw_bytes(body);
    let unreadable = reader.unreadable.join(", ");
    if !unreadable.is_empty() {
        let found = format!(
            "row {id} of the table `messages` was not written by machinist: cannot read {unreadable}"
        );
        tracing::error!(message = id, task = message.id, "{found}; it becomes a dead letter");
        message.headers.clear();
        message.headers.insert(header::DAMAGED.into(), found.into());
        message.headers.insert(header::DAMAGED_HEADERS.into(), HeaderValue::Bytes(raw_bytes(headers)));
    }
    Ok(message)
}

/// Reads the optional columns of a row, and notes those of another type.
struct ColumnReader<'a> {
    row: &'a Row<'a>,
    unreadable: Vec<&'static str>,
}

impl ColumnReader<'_> {
    fn value<T: FromSql>(&mut self, column: usize, name: &'static str) -> Option<T> {
        self.row.get(column).unwrap_or_else(|_| {
            self.unreadable.push(name);
            None
        })
    }
}

fn raw_bytes(value: ValueRef<'_>) -> Bytes {
    match value {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Bytes::copy_from_slice(bytes),
        ValueRef::Null => Bytes::new(),
        ValueRef::Integer(number) => number.to_string().into(),
        ValueRef::Real(number) => number.to_string().into(),
    }
}

/// Settles a message if that owner still holds it. Otherwise another owner has it, and it stays unchanged. Returns
/// `true` if the owner held it.
pub(crate) fn settle(db: &Connection, id: i64, owner: i64, how: Settle) -> rusqlite::Result<bool> {
    let sql = match how {
        Settle::Ack => "DELETE FROM messages WHERE id = ?1 AND holder = ?2",
        Settle::Requeue => "UPDATE messages SET holder = 0, redelivered = 1 WHERE id = ?1 AND holder = ?2",
    };
    Ok(db.prepare_cached(sql)?.execute([id, owner])? > 0)
}

/// Hands back all messages that an owner holds. Returns `true` if it held any.
pub(crate) fn release(db: &Connection, owner: i64) -> rusqlite::Result<bool> {
    let released = db
        .prepare_cached("UPDATE messages SET holder = 0, redelivered = 1 WHERE holder = ?1 AND holder > 0")?
        .execute([owner])?;
    Ok(released > 0)
}

/// Hands back the messages whose holder is no registered owner: nobody else would. Returns `true` if there were any.
pub(crate) fn release_orphans(db: &Connection) -> rusqlite::Result<bool> {
    let released = db
        .prepare_cached(
            "UPDATE messages SET holder = 0, redelivered = 1 WHERE holder > 0 AND holder NOT IN (SELECT id FROM owners)",
        )?
        .execute([])?;
    Ok(released > 0)
}
