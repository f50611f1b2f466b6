//! SQL of messages, and their form in a row.

use std::time::Duration;

use bytes::Bytes;
use machinist_adapter::{
    broker::{HeaderValue, Message, Publish, QueueDepth, Target},
    clock::Timestamp,
    header,
    id::QueueName,
};
use tokio_postgres::{
    Row,
    types::{FromSql, ToSql},
};

use crate::{
    error::PostgresError,
    link::Link,
    text::{escape, unescape},
};
use machinist_adapter::columns::{decode_headers, encode_headers};

/// Statement that adds the messages of [`MessageColumns`]. The last value is the identity of the schema: in another database
/// it adds nothing.
pub(crate) const INSERT: &str = "INSERT INTO {s}.messages (queue, dead, delayed, rank, due, task, kind, content_type, app_id, \
     sent, priority, headers, body) \
     SELECT g.queue, g.dead, g.delay > 0, g.rank, {s}.now_micros() + g.delay, g.task, g.kind, g.content_type, g.app_id, \
     g.sent, g.priority, g.headers, g.body \
     FROM unnest($1::text[], $2::boolean[], $3::smallint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], \
     $9::bigint[], $10::smallint[], $11::bytea[], $12::bytea[]) WITH ORDINALITY \
     AS g (queue, dead, rank, delay, task, kind, content_type, app_id, sent, priority, headers, body, place), {s}.meta m \
     WHERE $13::text IS NULL OR m.identity = $13 ORDER BY g.place";

/// Messages as the columns of a statement.
#[derive(Debug, Default)]
pub(crate) struct MessageColumns {
    queue: Vec<String>,
    dead: Vec<bool>,
    rank: Vec<i16>,
    delay: Vec<i64>,
    task: Vec<Option<String>>,
    kind: Vec<Option<String>>,
    content_type: Vec<Option<String>>,
    app_id: Vec<Option<String>>,
    sent: Vec<Option<i64>>,
    priority: Vec<Option<i16>>,
    headers: Vec<Option<Vec<u8>>>,
    body: Vec<Bytes>,
    identity: Option<String>,
}

impl MessageColumns {
    pub(crate) fn new(messages: &[Publish]) -> Self {
        let mut columns = Self::default();
        messages.iter().for_each(|publish| columns.push(publish));
        columns
    }

    /// Adds the messages only to the schema of this identity.
    pub(crate) fn only_in(self, identity: String) -> Self {
        Self { identity: Some(identity), ..self }
    }

    fn push(&mut self, publish: &Publish) {
        let Publish { target, message, delay } = publish;
        let text = |text: &Option<String>| text.as_deref().map(|text| escape(text).into_owned());
        self.queue.push(escape(target.queue().as_str()).into_owned());
        self.dead.push(is_dead(target));
        self.rank.push(-i16::from(message.priority.unwrap_or(0).min(9)));
        self.delay.push(micros(*delay));
        self.task.push(text(&message.id));
        self.kind.push(text(&message.kind));
        self.content_type.push(text(&message.content_type));
        self.app_id.push(text(&message.app_id));
        self.sent.push(message.timestamp.map(Timestamp::as_micros));
        self.priority.push(message.priority.map(i16::from));
        self.headers.push(encode_headers(message));
        self.body.push(message.body.clone());
    }

    /// Returns the bodies, for [`params`](Self::params).
    pub(crate) fn bodies(&self) -> Vec<&[u8]> {
        self.body.iter().map(|body| &body[..]).collect()
    }

    /// Returns the values of [`INSERT`].
    pub(crate) fn params<'a>(&'a self, bodies: &'a (dyn ToSql + Sync)) -> [&'a (dyn ToSql + Sync); 13] {
        [
            &self.queue,
            &self.dead,
            &self.rank,
            &self.delay,
            &self.task,
            &self.kind,
            &self.content_type,
            &self.app_id,
            &self.sent,
            &self.priority,
            &self.headers,
            bodies,
            &self.identity,
        ]
    }
}

/// Returns a delay that can be added to every instant of this millennium. A part of a microsecond is a whole one.
fn micros(delay: Duration) -> i64 {
    const LONGEST: u128 = i64::MAX as u128 / 2;
    let micros = delay.as_nanos().div_ceil(1_000).min(LONGEST);
    i64::try_from(micros).unwrap_or(i64::MAX / 2)
}

pub(crate) fn is_dead(target: &Target) -> bool {
    matches!(target, Target::DeadLetters(_))
}

/// Creates queues that do not exist.
pub(crate) async fn declare(link: &Link, targets: &[Target]) -> Result<(), PostgresError> {
    let names: Vec<String> =
        targets.iter().map(|target| escape(target.queue().as_str()).into_owned()).collect();
    let dead: Vec<bool> = targets.iter().map(is_dead).collect();
    let sql = "INSERT INTO {s}.queues (name, dead) SELECT * FROM unnest($1::text[], $2::boolean[]) ON CONFLICT DO NOTHING";
    link.query_again(sql, &[&names, &dead]).await.map(drop)
}

/// Message that was claimed for a subscription.
#[derive(Debug)]
pub(crate) struct ClaimedRow {
    pub(crate) id: i64,
    pub(crate) target: Target,
    /// Number of deliveries with this one.
    pub(crate) deliveries: i32,
    pub(crate) message: Message,
}

/// Claims up to `limit` messages of a queue for a holder. Returns them in the order of delivery.
pub(crate) async fn claim(
    link: &Link,
    holder: i64,
    target: &Target,
    limit: usize,
) -> Result<Vec<ClaimedRow>, PostgresError> {
    let limit = i32::try_from(limit).unwrap_or(i32::MAX);
    let sql = "SELECT id, rank, due, deliveries, task, kind, content_type, app_id, sent, priority, headers, body \
               FROM {s}.claim($1, $2, $3, $4)";
    let queue = escape(target.queue().as_str());
    let rows = link.query(sql, &[&holder, &queue, &is_dead(target), &limit]).await?;
    let explained = |error| PostgresError::of(&error);
    let mut claimed = Vec::with_capacity(rows.len());
    for row in &rows {
        let id: i64 = row.try_get(0).map_err(explained)?;
        let rank: i16 = row.try_get(1).map_err(explained)?;
        let due: i64 = row.try_get(2).map_err(explained)?;
        let deliveries = row.try_get(3).map_err(explained)?;
        let message = message(id, row);
        claimed.push(((rank, due, id), ClaimedRow { id, target: target.clone(), deliveries, message }));
    }
    // An update guarantees no order.
    claimed.sort_unstable_by_key(|(order, _)| *order);
    Ok(claimed.into_iter().map(|(_, claimed)| claimed).collect())
}

/// Reads the message of a row. A row that another program wrote or changed must not stop its queue: it becomes a message
/// that says what cannot be read, and that no worker runs.
fn message(id: i64, row: &Row) -> Message {
    let mut columns = RowReader { row, unreadable: Vec::new() };
    let mut message = Message {
        id: columns.text(4, "task"),
        kind: columns.text(5, "kind"),
        content_type: columns.text(6, "content_type"),
        app_id: columns.text(7, "app_id"),
        timestamp: columns.value::<i64>(8, "sent").map(Timestamp::from_micros),
        priority: columns.value::<i16>(9, "priority").and_then(|priority| u8::try_from(priority).ok()),
        ..Message::default()
    };
    let headers: Option<&[u8]> = columns.value(10, "headers");
    if headers.is_some_and(|encoded| decode_headers(encoded, &mut message).is_err()) {
        columns.unreadable.push("headers");
    }
    message.body = columns.value::<&[u8]>(11, "body").map(Bytes::copy_from_slice).unwrap_or_default();
    let unreadable = columns.unreadable.join(", ");
    if !unreadable.is_empty() {
        let found = format!(
            "row {id} of the table `messages` was not written by machinist: cannot read {unreadable}"
        );
        tracing::error!(message = id, task = message.id, "{found}; it becomes a dead letter");
        message.headers.clear();
        message.headers.insert(header::DAMAGED.into(), found.into());
        let raw = headers.map(Bytes::copy_from_slice).unwrap_or_default();
        message.headers.insert(header::DAMAGED_HEADERS.into(), HeaderValue::Bytes(raw));
    }
    message
}

/// Reads the columns of a row, and notes those that hold something else.
struct RowReader<'a> {
    row: &'a Row,
    unreadable: Vec<&'static str>,
}

impl<'a> RowReader<'a> {
    fn value<T: FromSql<'a>>(&mut self, column: usize, name: &'static str) -> Option<T> {
        self.row.try_get(column).unwrap_or_else(|_| {
            self.unreadable.push(name);
            None
        })
    }

    fn text(&mut self, column: usize, name: &'static str) -> Option<String> {
        let text: String = self.value(column, name)?;
        let plain = unescape(text);
        if plain.is_none() {
            self.unreadable.push(name);
        }
        plain
    }
}

/// Settles messages of a holder: `done` are deleted, `back` can be claimed again.
pub(crate) async fn settle(
    link: &Link,
    holder: i64,
    done: &[i64],
    back: &[i64],
) -> Result<(), PostgresError> {
    link.query("SELECT {s}.settle($1, $2, $3)", &[&holder, &done, &back]).await.map(drop)
}

/// Makes messages ready whose time has come. Returns their queues.
pub(crate) async fn promote(link: &Link, limit: i32) -> Result<Vec<Target>, PostgresError> {
    let rows = link.query("SELECT queue, dead FROM {s}.promote($1)", &[&limit]).await?;
    targets(&rows)
}

/// Reads the columns `queue` and `dead`. A name that is no name of a queue has no consumer.
pub(crate) fn targets(rows: &[Row]) -> Result<Vec<Target>, PostgresError> {
    let explained = |error| PostgresError::of(&error);
    let mut targets = Vec::with_capacity(rows.len());
    for row in rows {
        let (queue, dead): (String, bool) =
            (row.try_get(0).map_err(explained)?, row.try_get(1).map_err(explained)?);
        let Some(Ok(queue)) = unescape(queue).map(|queue| QueueName::parse(&queue)) else { continue };
        targets.push(if dead { Target::DeadLetters(queue) } else { Target::Queue(queue) });
    }
    Ok(targets)
}

/// Returns the time until the next delayed message is due; `None` if there is none.
pub(crate) async fn next_due(link: &Link) -> Result<Option<Duration>, PostgresError> {
    let rows = link.query_again("SELECT {s}.next_due()", &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let micros: Option<i64> = row.try_get(0).map_err(|error| PostgresError::of(&error))?;
    let Some(micros) = micros else { return Ok(None) };
    Ok(Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
}

/// Returns the depth of queues, in their order.
pub(crate) async fn depth(link: &Link, queues: &[QueueName]) -> Result<Vec<QueueDepth>, PostgresError> {
    let names: Vec<String> = queues.iter().map(|queue| escape(queue.as_str()).into_owned()).collect();
    let sql = "SELECT ready, dead_letters, consumers FROM {s}.depth($1)";
    let rows = link.query_again(sql, &[&names]).await?;
    let explained = |error| PostgresError::of(&error);
    let count = |row: &Row, column| -> Result<Option<u64>, PostgresError> {
        let count: Option<i64> = row.try_get(column).map_err(explained)?;
        Ok(count.map(|count| u64::try_from(count).unwrap_or(0)))
    };
    queues
        .iter()
        .zip(&rows)
        .map(|(queue, row)| {
            let (ready, dead, consumers) = (count(row, 0)?, count(row, 1)?, count(row, 2)?);
            Ok(QueueDepth { queue: queue.clone(), ready, consumers, dead })
        })
        .collect()
}
