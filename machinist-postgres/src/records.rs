//! SQL of records and indexes.

use std::collections::BTreeMap;

use machinist_adapter::{
    backend::{Index, IndexUpdate},
    clock::Timestamp,
    facts::Facts,
    id::RecordId,
};
use tokio_postgres::Row;

use crate::{
    error::{ErrorKind, PostgresError},
    link::Link,
    text::{escape, unescape},
};
use machinist_adapter::columns::decode_facts;

/// Maximum number of times that a read deletes what has expired and looks again.
const MAX_READS: u32 = 5;

/// A record as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    /// Version of the row; `None` if there is none.
    pub(crate) version: Option<i64>,
    pub(crate) facts: Facts,
    pub(crate) expires: Option<Timestamp>,
    /// The row is there, and its time is over: it counts as absent once it is deleted or written again.
    pub(crate) has_expired: bool,
}

/// Records as they were read at one time, each with its own error.
#[derive(Debug)]
pub(crate) struct ReadRecords {
    pub(crate) now: Timestamp,
    pub(crate) records: Vec<Result<StoredRecord, PostgresError>>,
}

/// A row to write: `None` as facts deletes it.
#[derive(Debug)]
pub(crate) struct RecordWrite<'a> {
    pub(crate) id: &'a RecordId,
    pub(crate) version: Option<i64>,
    pub(crate) facts: Option<Vec<u8>>,
    pub(crate) expires: Option<Timestamp>,
}

/// Reads records, in the order of the ids. There is at least one id.
pub(crate) async fn read_stored(link: &Link, ids: &[RecordId]) -> Result<ReadRecords, PostgresError> {
    let (kinds, names) = columns(ids.iter());
    let rows = link
        .query_again("SELECT version, expires, facts, now FROM {s}.read($1, $2)", &[&kinds, &names])
        .await?;
    let explained = |error| PostgresError::of(&error);
    let mut now = Timestamp::from_micros(i64::MIN);
    let mut records = Vec::with_capacity(ids.len());
    for (id, row) in ids.iter().zip(&rows) {
        now = now.max(Timestamp::from_micros(row.try_get(3).map_err(explained)?));
        records.push(stored(id, row, now));
    }
    if records.len() != ids.len() {
        return Err(PostgresError::lost("the server has answered for other records"));
    }
    Ok(ReadRecords { now, records })
}

fn stored(id: &RecordId, row: &Row, now: Timestamp) -> Result<StoredRecord, PostgresError> {
    let explained = |error| PostgresError::of(&error);
    let Some(version) = row.try_get::<_, Option<i64>>(0).map_err(explained)? else {
        return Ok(StoredRecord::default());
    };
    let expires: Option<i64> = row.try_get(1).map_err(explained)?;
    let expires = expires.map(Timestamp::from_micros);
    if expires.is_some_and(|expires| expires <= now) {
        return Ok(StoredRecord { version: Some(version), has_expired: true, ..StoredRecord::default() });
    }
    let encoded: &[u8] = row.try_get(2).map_err(explained)?;
    let facts = decode_facts(encoded).map_err(|error| {
        let text =
            format!("the row of {id} in the table `records`: {error}; delete the row, or write it as it was");
        PostgresError::new(ErrorKind::Record, text)
    })?;
    Ok(StoredRecord { version: Some(version), facts, expires, has_expired: false })
}

/// Reads the facts of records. One whose time is over is deleted before it counts as absent: a renewal that is under way then
/// either comes first, and the record is there, or fails.
pub(crate) async fn read(
    link: &Link,
    ids: &[RecordId],
) -> Result<Vec<Result<Facts, PostgresError>>, PostgresError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    for _ in 0..MAX_READS {
        let read = read_stored(link, ids).await?;
        let expired: Vec<&RecordId> = ids
            .iter()
            .zip(&read.records)
            .filter(|(_, record)| record.as_ref().is_ok_and(|record| record.has_expired))
            .map(|(id, _)| id)
            .collect();
        if expired.is_empty() {
            return Ok(read.records.into_iter().map(|record| record.map(|record| record.facts)).collect());
        }
        let (kinds, names) = columns(expired.into_iter());
        link.query_again(
            "DELETE FROM {s}.records r USING unnest($1::text[], $2::text[]) AS g (kind, name) \
             WHERE r.kind = g.kind AND r.name = g.name AND r.expires <= {s}.now_micros()",
            &[&kinds, &names],
        )
        .await?;
    }
    Err(PostgresError::new(ErrorKind::Busy, "records expire and come back faster than they can be read"))
}

/// Writes rows whose versions are still the given ones. Returns the places of those that were written.
pub(crate) async fn write(link: &Link, writes: &[RecordWrite<'_>]) -> Result<Vec<usize>, PostgresError> {
    let (kinds, names) = columns(writes.iter().map(|write| write.id));
    let versions: Vec<Option<i64>> = writes.iter().map(|write| write.version).collect();
    let facts: Vec<Option<&[u8]>> = writes.iter().map(|write| write.facts.as_deref()).collect();
    let expires: Vec<Option<i64>> =
        writes.iter().map(|write| write.expires.map(Timestamp::as_micros)).collect();
    let rows = link
        .query(
            "SELECT place FROM {s}.write($1, $2, $3, $4, $5)",
            &[&kinds, &names, &versions, &facts, &expires],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let place: i64 = row.try_get(0).map_err(|error| PostgresError::of(&error))?;
            usize::try_from(place - 1)
                .map_err(|_| PostgresError::lost("the server has answered for another record"))
        })
        .collect()
}

/// Returns the columns `kind` and `name` of records.
fn columns<'a>(ids: impl Iterator<Item = &'a RecordId>) -> (Vec<&'static str>, Vec<String>) {
    ids.map(|id| (id.kind().as_str(), escape(id.id()).into_owned())).unzip()
}

/// Returns the current time of the server.
pub(crate) async fn now(link: &Link) -> Result<Timestamp, PostgresError> {
    let rows = link.query_again("SELECT {s}.now_micros()", &[]).await?;
    let row = rows.first().ok_or_else(|| PostgresError::lost("the server did not tell the time"))?;
    row.try_get(0).map(Timestamp::from_micros).map_err(|error| PostgresError::of(&error))
}

/// Deletes up to `limit` records whose time is over. Returns the number.
pub(crate) async fn sweep(link: &Link, limit: i64) -> Result<usize, PostgresError> {
    let rows = link
        .query_again(
            "DELETE FROM {s}.records WHERE (kind, name) IN (SELECT kind, name FROM {s}.records \
             WHERE expires <= {s}.now_micros() ORDER BY expires LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING 1",
            &[&limit],
        )
        .await?;
    Ok(rows.len())
}

/// Changes indexes.
pub(crate) async fn update_indexes(link: &Link, updates: Vec<IndexUpdate>) -> Result<(), PostgresError> {
    // The last word about a member counts, and one statement cannot write a row twice.
    let mut last: BTreeMap<(String, String), Option<i64>> = BTreeMap::new();
    for update in updates {
        let (index, member, at) = match update {
            IndexUpdate::Put { index, at, member } => (index, member, Some(at.as_micros())),
            IndexUpdate::Remove { index, member } => (index, member, None),
        };
        last.insert((escape(&index.name()).into_owned(), escape(&member).into_owned()), at);
    }
    let (mut lists, mut members, mut instants) = (Vec::new(), Vec::new(), Vec::new());
    let (mut removed_from, mut removed) = (Vec::new(), Vec::new());
    for ((list, member), at) in last {
        match at {
            Some(at) => {
                lists.push(list);
                members.push(member);
                instants.push(at);
            }
            None => {
                removed_from.push(list);
                removed.push(member);
            }
        }
    }
    if !lists.is_empty() {
        link.query_again(
            "INSERT INTO {s}.notes (list, member, at) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) \
             ON CONFLICT (list, member) DO UPDATE SET at = excluded.at",
            &[&lists, &members, &instants],
        )
        .await?;
    }
    if !removed.is_empty() {
        link.query_again(
            "DELETE FROM {s}.notes n USING unnest($1::text[], $2::text[]) AS g (list, member) \
             WHERE n.list = g.list AND n.member = g.member",
            &[&removed_from, &removed],
        )
        .await?;
    }
    Ok(())
}

/// Returns up to `limit` members of an index that follow `after`.
pub(crate) async fn list(
    link: &Link,
    index: &Index,
    after: Option<(Timestamp, String)>,
    limit: usize,
) -> Result<Vec<(Timestamp, String)>, PostgresError> {
    let (at, member) = match &after {
        Some((at, member)) => (at.as_micros(), escape(member).into_owned()),
        None => (i64::MIN, String::new()),
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = link
        .query_again(
            "SELECT at, member FROM {s}.notes WHERE list = $1 AND (at, member) > ($2, $3) ORDER BY at, member LIMIT $4",
            &[&escape(&index.name()), &at, &member, &limit],
        )
        .await?;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let at: i64 = row.try_get(0).map_err(|error| PostgresError::of(&error))?;
        let member: String = row.try_get(1).map_err(|error| PostgresError::of(&error))?;
        // What another program wrote here is no entry.
        entries.extend(unescape(member).map(|member| (Timestamp::from_micros(at), member)));
    }
    Ok(entries)
}
