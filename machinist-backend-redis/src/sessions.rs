//! Sessions: a key that expires, and an index to find them by.
//!
//! The key is all that counts: a session is alive while it is there. The index is for people; it is written beside
//! the key, and a listing removes the dead sessions that it finds.

use std::time::Duration;

use bytes::Bytes;
use machinist_adapter::{
    backend::{BackendError, Renewed, SessionEntry},
    clock::{Timestamp, wall},
    id::{SessionId, TaskId},
};
use redis::{Cmd, Value};

use crate::{
    command::{command, instant, put, read, remove},
    commit::{bytes, facts},
    error::{backend_error, unexpected},
    keys::RedisKeys,
    link::{MAX_COMMANDS_PER_BATCH, RedisLinks},
};

/// Age after which an entry that was not renewed is removed from the index when a session opens, in case
/// sessions are never listed.
const ENTRY_TTL: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn open(
    links: &RedisLinks,
    keys: &RedisKeys,
    session: &SessionId,
    lease: Duration,
    info: &Bytes,
) -> Result<Timestamp, BackendError> {
    let mut forgotten = command("ZREMRANGEBYSCORE", &keys.sessions());
    forgotten.arg("-inf").arg(wall().minus(ENTRY_TTL).as_micros());
    let cmds = vec![
        hold(keys, session, lease, info),
        redis::cmd("TIME"),
        put(&keys.sessions(), wall(), session.as_str()),
        forgotten,
    ];
    let mut answers = links.all(cmds).await?.into_iter().skip(1);
    instant(answers.next().unwrap_or(Value::Nil))
}

pub(crate) async fn renew(
    links: &RedisLinks,
    keys: &RedisKeys,
    session: &SessionId,
    lease: Duration,
    info: &Bytes,
    running: &[TaskId],
) -> Result<Renewed, BackendError> {
    let mut hold = hold(keys, session, lease, info);
    // Only where it is still there: an expired session never comes back.
    hold.arg("XX");
    let mut cmds = vec![hold, redis::cmd("TIME"), put(&keys.sessions(), wall(), session.as_str())];
    cmds.extend(running.iter().map(|id| read(keys, id)));
    let mut answers = links.all(cmds).await?.into_iter();
    let alive = match answers.next() {
        Some(Value::Okay) => true,
        Some(Value::Nil) => false,
        other => return Err(unexpected("OK or nothing", &other.unwrap_or(Value::Nil))),
    };
    let now = instant(answers.next().unwrap_or(Value::Nil))?;
    let records = answers.skip(1).map(facts).collect::<Result<_, _>>()?;
    Ok(Renewed { alive, now, records })
}

pub(crate) async fn close(
    links: &RedisLinks,
    keys: &RedisKeys,
    session: &SessionId,
) -> Result<(), BackendError> {
    let cmds = vec![command("DEL", &keys.session(session)), remove(&keys.sessions(), session.as_str())];
    links.all(cmds).await.map(drop)
}

pub(crate) async fn alive(
    links: &RedisLinks,
    keys: &RedisKeys,
    sessions: &[SessionId],
) -> Result<Vec<bool>, BackendError> {
    let mut alive = Vec::with_capacity(sessions.len());
    for chunk in sessions.chunks(MAX_COMMANDS_PER_BATCH) {
        let cmds = chunk.iter().map(|session| command("EXISTS", &keys.session(session))).collect();
        for answer in links.all(cmds).await? {
            match answer {
                Value::Int(count) => alive.push(count > 0),
                other => return Err(unexpected("a number", &other)),
            }
        }
    }
    Ok(alive)
}

pub(crate) async fn list(links: &RedisLinks, keys: &RedisKeys) -> Result<Vec<SessionEntry>, BackendError> {
    let mut all = command("ZRANGE", &keys.sessions());
    all.arg(0).arg(-1);
    let names: Vec<String> =
        redis::from_redis_value(links.one(all).await?).map_err(|e| backend_error(&e.into()))?;
    let mut entries = Vec::with_capacity(names.len());
    let mut dead = Vec::new();
    for chunk in names.chunks(MAX_COMMANDS_PER_BATCH) {
        let ids: Vec<SessionId> = chunk.iter().map(|name| SessionId::from(name.as_str())).collect();
        let cmds = ids.iter().map(|id| command("GET", &keys.session(id))).collect();
        for (id, info) in ids.into_iter().zip(links.all(cmds).await?) {
            match info {
                Value::Nil => dead.push(remove(&keys.sessions(), id.as_str())),
                info => entries.push(SessionEntry { id, info: bytes(info)? }),
            }
        }
    }
    for chunk in dead.chunks(MAX_COMMANDS_PER_BATCH) {
        links.all(chunk.to_vec()).await?;
    }
    Ok(entries)
}

/// Writes the session's key with its lease, in one command: a key without expiry would never be deleted.
fn hold(keys: &RedisKeys, session: &SessionId, lease: Duration, info: &Bytes) -> Cmd {
    let mut cmd = command("SET", &keys.session(session));
    cmd.arg(&info[..]).arg("PX").arg(u64::try_from(lease.as_millis().clamp(1, 1 << 50)).unwrap_or(u64::MAX));
    cmd
}
