//! Commands that several parts of the backend send, and the answers that they read.

use machinist_adapter::{backend::BackendError, clock::Timestamp, id::RecordId};
use redis::{Cmd, Value};

use crate::{
    commit::bytes,
    error::{backend_error, unexpected},
    keys::RedisKeys,
};

/// Reads a record.
pub(crate) fn read(keys: &RedisKeys, id: &RecordId) -> Cmd {
    command("HGETALL", &keys.record(id))
}

pub(crate) fn put(index: &str, at: Timestamp, member: &str) -> Cmd {
    let mut cmd = command("ZADD", index);
    cmd.arg(score(at)).arg(member);
    cmd
}

pub(crate) fn remove(index: &str, member: &str) -> Cmd {
    let mut cmd = command("ZREM", index);
    cmd.arg(member);
    cmd
}

pub(crate) fn command(name: &'static str, key: &str) -> Cmd {
    let mut cmd = redis::cmd(name);
    cmd.arg(key);
    cmd
}

/// Scores are doubles, exact up to 2^53: microseconds until the year 2255. What lies beyond is the end of time.
pub(crate) fn score(at: Timestamp) -> i64 {
    const EXACT: i64 = 1 << 53;
    at.as_micros().clamp(-EXACT, EXACT)
}

/// Members with their scores, as RESP3 answers them.
pub(crate) fn scored(value: Value) -> Result<Vec<(Timestamp, String)>, BackendError> {
    let Value::Array(entries) = value else { return Err(unexpected("a list of members", &value)) };
    entries
        .into_iter()
        .map(|entry| match entry {
            Value::Array(pair) => match <[Value; 2]>::try_from(pair) {
                Ok([member, Value::Double(score)]) => {
                    let member = String::from_utf8_lossy(&bytes(member)?).into_owned();
                    Ok((Timestamp::from_micros(score as i64), member))
                }
                _ => Err(unexpected("a member with its score", &Value::Nil)),
            },
            other => Err(unexpected("a member with its score", &other)),
        })
        .collect()
}

/// Reads the answer to TIME: seconds and microseconds.
pub(crate) fn instant(value: Value) -> Result<Timestamp, BackendError> {
    let (seconds, micros): (i64, i64) =
        redis::from_redis_value(value).map_err(|e| backend_error(&e.into()))?;
    Ok(Timestamp::from_micros(seconds.saturating_mul(1_000_000).saturating_add(micros)))
}
