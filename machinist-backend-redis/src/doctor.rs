//! Findings about this server: its fitness to store records, and what it would lose.
//!
//! Nothing here decides anything. A setting that the user may not read is reported as unknown. A command that the user may not run is
//! tried on separate keys and reported as an error. In a cluster one node is examined: the
//! one whose clock counts.

use std::{collections::HashMap, iter};

use bytes::Bytes;
use machinist_adapter::{
    backend::{BackendError, Commit, Expiry, Index},
    clock::{Timestamp, wall},
    diagnose::Finding,
    facts::FactName,
    id::{SessionId, TaskId},
};
use redis::{Cmd, RedisResult, Value};
use tokio::time::Instant;

use crate::{
    channel_watches::ChannelWatches,
    command::{command, instant, put, remove},
    commit::{KeyedCommit, bytes, call},
    error::backend_error,
    keys::RedisKeys,
    link::RedisLinks,
};

/// Clock difference, in microseconds, above which logs of two hosts are hard to compare. Tasks are not affected.
const CONFUSING_MICROS: i64 = 1_000_000;

pub(crate) async fn examine(links: &RedisLinks, watches: &ChannelWatches, keys: &RedisKeys) -> Vec<Finding> {
    let asked = Instant::now();
    let host = wall();
    let answered = match links.one(redis::cmd("TIME")).await.and_then(instant) {
        Ok(answered) => answered,
        Err(error) => return vec![unreachable(&error)],
    };
    let middle = host.plus(asked.elapsed() / 2);
    let questions = vec![
        redis::cmd("INFO"),
        config("maxmemory-policy"),
        config("save"),
        config("appendonly"),
        config("appendfsync"),
    ];
    let mut answers = match links.try_all(questions).await {
        Ok(answers) => answers.into_iter(),
        Err(error) => return vec![unreachable(&backend_error(&error))],
    };
    let info = answers.next().and_then(Result::ok).map(fields).unwrap_or_default();
    let [policy, save, appendonly, appendfsync] = std::array::from_fn(|_| answers.next().and_then(setting));

    let mut findings =
        vec![Finding::good("connection", format!("answers; keys begin with {}:", keys.prefix()))];
    findings.push(version(&info));
    findings.push(role(&info));
    findings.extend(links.replica_wait().map(|wait| replicas(&info, wait.replicas)));
    findings.push(eviction(policy.as_deref().or_else(|| info.get("maxmemory_policy").map(String::as_str))));
    findings.push(persistence(appendonly.as_deref(), appendfsync.as_deref(), save.as_deref(), &info));
    findings.push(permissions(links, watches, keys).await);
    findings.push(clock(answered, middle));
    findings
}

fn unreachable(error: &BackendError) -> Finding {
    let mut found = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        found = format!("{found}: {error}");
        source = error.source();
    }
    Finding::error("connection", found, "check the backend URL, and that the server runs and can be reached")
}

fn version(info: &HashMap<String, String>) -> Finding {
    let (name, least, version) = match (info.get("valkey_version"), info.get("redis_version")) {
        (Some(valkey), _) => ("Valkey", (7, 2), valkey),
        (None, Some(redis)) => ("Redis", (7, 0), redis),
        (None, None) => return unknown("version", "INFO"),
    };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let major = numbers.next().unwrap_or(0);
    let minor = numbers.next().unwrap_or(0);
    let found = format!("{name} {version}");
    if (major, minor) >= least {
        return Finding::good("version", found);
    }
    Finding::error("version", found, format!("upgrade to {name} {}.{} or later", least.0, least.1))
}

fn role(info: &HashMap<String, String>) -> Finding {
    match info.get("role").map(String::as_str) {
        Some("master") => Finding::good("role", "master"),
        Some(role) => Finding::error(
            "role",
            format!("this server is a {role} and takes no writes"),
            "let the backend URL lead to the master, or use redis+sentinel://, which finds it",
        ),
        None => unknown("role", "INFO"),
    }
}

/// Compares the connected replicas with the number that must confirm every commit.
fn replicas(info: &HashMap<String, String>, wanted: u32) -> Finding {
    let Some(connected) = info.get("connected_slaves").and_then(|count| count.parse::<u32>().ok()) else {
        return unknown("replicas", "INFO");
    };
    let found = format!("{connected} connected, and wait_replicas is {wanted}");
    if connected > wanted {
        Finding::good("replicas", found)
    } else if connected == wanted {
        Finding::warning("replicas", found, "add one: without a spare, nothing is recorded while one is away")
    } else {
        Finding::error(
            "replicas",
            found,
            "nothing is recorded: connect more replicas, or lower wait_replicas in the URL",
        )
    }
}

fn eviction(policy: Option<&str>) -> Finding {
    match policy {
        Some("noeviction") => Finding::good("eviction policy", "noeviction"),
        Some(policy) => Finding::warning(
            "eviction policy",
            format!("{policy}: when memory is full, Redis throws records of tasks and live sessions away"),
            "set maxmemory-policy to noeviction",
        ),
        None => unknown("eviction policy", "CONFIG GET"),
    }
}

fn persistence(
    appendonly: Option<&str>,
    appendfsync: Option<&str>,
    save: Option<&str>,
    info: &HashMap<String, String>,
) -> Finding {
    let subject = "persistence";
    let aof = appendonly.map(|on| on == "yes").or_else(|| info.get("aof_enabled").map(|on| on == "1"));
    match (aof, save) {
        (Some(true), _) => match appendfsync {
            Some("no") => Finding::warning(
                subject,
                "append-only file, written when the system likes: a power cut loses up to half a minute",
                "set appendfsync to everysec",
            ),
            Some("always") => Finding::good(subject, "append-only file, synced before each answer"),
            Some(fsync) => Finding::good(subject, format!("append-only file, appendfsync {fsync}")),
            None => Finding::good(subject, "append-only file"),
        },
        (Some(false), Some("")) => Finding::warning(
            subject,
            "none: a restart forgets every record; tasks whose messages wait in the broker run again",
            "set appendonly yes with appendfsync everysec",
        ),
        (Some(false), Some(save)) => Finding::warning(
            subject,
            format!("snapshots only (save {save}): a crash forgets everything since the last one"),
            "set appendonly yes with appendfsync everysec",
        ),
        _ => unknown(subject, "CONFIG GET"),
    }
}

/// Tries what the backend does on keys that belong to nobody and expire by themselves.
async fn permissions(links: &RedisLinks, watches: &ChannelWatches, keys: &RedisKeys) -> Finding {
    let unique = SessionId::fresh();
    let record = keys.scratch(unique.as_str());
    let index = keys.index(&Index::Sessions);
    let mut denied = Vec::new();
    if let Err(error) = try_commit(links, &record).await {
        denied.push(format!("commit script ({error})"));
    }
    let with = |mut cmd: Cmd, args: &[&str]| {
        cmd.arg(args);
        cmd
    };
    let tries = vec![
        ("HGETALL", command("HGETALL", &record)),
        ("ZADD", put(&index, wall(), unique.as_str())),
        ("ZREM", remove(&index, unique.as_str())),
        ("ZRANGEBYSCORE", with(command("ZRANGEBYSCORE", &index), &["0", "0"])),
        ("SPUBLISH", with(command("SPUBLISH", &record), &[""])),
    ];
    let (names, cmds): (Vec<_>, Vec<_>) = tries.into_iter().unzip();
    match links.try_all(cmds).await {
        Ok(answers) => {
            let failed =
                names.into_iter().zip(answers).filter_map(|(name, answer)| Some((name, answer.err()?)));
            denied.extend(failed.map(|(name, error)| format!("{name} ({error})")));
        }
        Err(error) => denied.push(error.to_string()),
    }
    if let Err(error) = watches.watch(record).await {
        denied.push(format!("SSUBSCRIBE ({error})"));
    }
    if denied.is_empty() {
        return Finding::good("permissions", "this user may do all that is needed");
    }
    let prefix = keys.prefix();
    Finding::error(
        "permissions",
        format!("this user may not: {}", denied.join("; ")),
        format!("ACL SETUSER … ~{prefix}:* &{prefix}:* and the denied commands"),
    )
}

async fn try_commit(links: &RedisLinks, record: &str) -> RedisResult<()> {
    // INVARIANT: the text is a task id.
    let Ok(id) = TaskId::parse("doctor") else { return Ok(()) };
    let name = FactName::Borrowed("x");
    let write = Commit {
        facts: vec![(name.clone(), Bytes::from_static(b"x"))],
        expiry: Expiry::After(std::time::Duration::from_secs(1)),
        ..Commit::new(id.clone())
    };
    // What a worker does when it renews its session, and what a join does.
    let required = Commit {
        require: vec![(name.clone(), Bytes::from_static(b"x"))],
        count: true,
        expiry: Expiry::After(std::time::Duration::from_secs(1)),
        ..Commit::new(id.clone())
    };
    let erase = Commit { drop: vec![name.clone()], ..Commit::new(id) };
    // What a worker does at the end of each task.
    let once = Commit { unless: vec![name], wake: true, ..write.clone() };
    for commit in [write, required, erase.clone(), once, erase] {
        let keyed = KeyedCommit { key: record.to_owned(), commit: commit.into() };
        for answer in links.scripts(1, false, |_| call(iter::once(&keyed))).await? {
            answer?;
        }
    }
    Ok(())
}

fn clock(answered: Timestamp, middle: Timestamp) -> Finding {
    let offset = answered.as_micros().saturating_sub(middle.as_micros());
    let found = format!(
        "the server is {} ms {} this host",
        offset.abs() / 1000,
        if offset < 0 { "behind" } else { "ahead of" }
    );
    if offset.abs() < CONFUSING_MICROS {
        return Finding::good("clock", found);
    }
    Finding::warning("clock", found, "synchronize the clocks; tasks go by the server's, only logs disagree")
}

fn unknown(subject: &str, command: &str) -> Finding {
    Finding::warning(
        subject,
        format!("could not look: this user may not use {command}"),
        format!("allow {command} to this user, or look yourself"),
    )
}

fn config(name: &str) -> Cmd {
    let mut cmd = redis::cmd("CONFIG");
    cmd.arg("GET").arg(name);
    cmd
}

fn setting(answer: RedisResult<Value>) -> Option<String> {
    match answer.ok()? {
        Value::Map(pairs) => text(pairs.into_iter().next()?.1),
        _ => None,
    }
}

fn fields(info: Value) -> HashMap<String, String> {
    let info = text(info).unwrap_or_default();
    info.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn text(value: Value) -> Option<String> {
    let value = match value {
        Value::VerbatimString { text, .. } => return Some(text),
        other => bytes(other).ok()?,
    };
    String::from_utf8(value.into()).ok()
}

#[cfg(test)]
mod tests {
    use machinist_adapter::diagnose::Level;

    use super::*;

    fn info(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn old_servers_are_an_error_and_valkey_counts_by_its_own_version() {
        assert_eq!(version(&info(&[("redis_version", "7.0.15")])).level, Level::Good);
        assert_eq!(version(&info(&[("redis_version", "6.2.9")])).level, Level::Error);
        let valkey = info(&[("redis_version", "7.2.4"), ("valkey_version", "8.1.0")]);
        assert_eq!(version(&valkey).found, "Valkey 8.1.0");
        assert!(version(&info(&[])).found.contains("could not look"));
    }

    #[test]
    fn what_would_be_lost_is_a_warning() {
        assert_eq!(eviction(Some("allkeys-lru")).level, Level::Warning);
        assert_eq!(persistence(Some("no"), None, Some(""), &info(&[])).level, Level::Warning);
        assert_eq!(persistence(Some("yes"), Some("everysec"), Some(""), &info(&[])).level, Level::Good);
        assert_eq!(persistence(Some("yes"), Some("no"), Some(""), &info(&[])).level, Level::Warning);
        assert_eq!(role(&info(&[("role", "slave")])).level, Level::Error);
        assert_eq!(clock(Timestamp::from_micros(0), Timestamp::from_micros(5_000_000)).level, Level::Warning);
    }
}
