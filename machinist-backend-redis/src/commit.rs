//! The scripts, their arguments and their answer: pure, so that every case of it is tested without a server.
//!
//! What can be decided here is decided here, because each argument and each `redis.call` inside a script costs
//! the one thread that all tasks share: a fact whose name is guarded anyway is not asked for twice, and a name
//! that is dropped and written again is simply written. `commit.lua` can do all that a commit asks for; the two
//! commits that every task needs, its start and its end, have scripts that can do only that.

use std::{sync::LazyLock, time::Duration};

use bytes::Bytes;
use machinist_core::{
    backend::{BackendError, Commit, Committed, Expiry},
    record::{FactName, Facts},
};
use redis::{Cmd, Script, Value};

use crate::error::unexpected;

/// Any commit.
static COMMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("commit.lua")));
/// One fact, unless it or others are there, of a record that should be there.
static GUARD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("guard.lua")));
/// One fact, unless it is there, which ends a wait.
static ONCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("once.lua")));

/// The scripts as they are loaded.
pub(crate) fn scripts() -> [&'static Script; 3] {
    [&*COMMIT, &*GUARD, &*ONCE]
}

/// A fact that is written together with the expiry of its record, if that had none: a record that holds it has one.
const WITH_EXPIRY: &str = "sent";

/// The call that makes one commit of the record under `key`.
pub(crate) fn call(key: &str, commit: &Commit) -> Cmd {
    let plan = Plan::of(commit);
    if let [(name, value)] = plan.facts[..]
        && plan.unless.contains(&name)
        && plan.drop.is_empty()
    {
        match (commit.expiry, commit.wake) {
            (Expiry::After(after), true) if plan.unless.len() == 1 => {
                let mut cmd = evalsha(&ONCE, key, 3, name.len() + value.len());
                cmd.arg(name.as_bytes()).arg(&value[..]).arg(milliseconds(after));
                return cmd;
            }
            (Expiry::AfterUnlessSet(after), false) => {
                let mut cmd = evalsha(&GUARD, key, plan.unless.len() + 3, length(&plan.unless) + value.len());
                cmd.arg(milliseconds(after)).arg(&value[..]).arg(name.as_bytes());
                for other in plan.unless.iter().filter(|other| **other != name) {
                    cmd.arg(other.as_bytes());
                }
                cmd.arg(WITH_EXPIRY);
                return cmd;
            }
            _ => {}
        }
    }
    let written = &plan.facts[..plan.equal + plan.absent];
    let values: usize = plan.facts.iter().map(|(name, value)| name.len() + value.len()).sum();
    let names = plan.unless.len() + plan.drop.len();
    let mut cmd = evalsha(
        &COMMIT,
        key,
        6 + names + written.len() + 2 * plan.facts.len(),
        length(&plan.unless) + length(&plan.drop) + 2 * values,
    );
    cmd.arg(plan.unless.len()).arg(plan.equal).arg(plan.absent).arg(plan.drop.len());
    // Never zero, which means *keep*.
    cmd.arg(match commit.expiry {
        Expiry::After(after) => milliseconds(after),
        Expiry::AfterUnlessSet(after) => -milliseconds(after),
        Expiry::Keep => 0,
    });
    cmd.arg(if commit.wake { "1" } else { "0" });
    for name in plan.unless.iter().copied().chain(written.iter().map(|(name, _)| *name)).chain(plan.drop) {
        cmd.arg(name.as_bytes());
    }
    for (name, value) in &plan.facts {
        cmd.arg(name.as_bytes()).arg(&value[..]);
    }
    cmd
}

/// A call of a script with room for so many arguments and about so many bytes in them.
fn evalsha(script: &Script, key: &str, args: usize, bytes: usize) -> Cmd {
    const NAME: &str = "EVALSHA";
    /// Numbers among the arguments.
    const NUMBERS: usize = 32;
    let hash = script.get_hash();
    let mut cmd = Cmd::with_capacity(4 + args, NAME.len() + hash.len() + key.len() + NUMBERS + bytes);
    cmd.arg(NAME).arg(hash).arg(1).arg(key);
    cmd
}

fn length(names: &[&str]) -> usize {
    names.iter().map(|name| name.len()).sum()
}

/// What a script answered.
///
/// # Errors
/// [`BackendError::Unavailable`] for an answer that is not ours.
pub(crate) fn answer(value: Value) -> Result<Committed, BackendError> {
    match value {
        Value::Int(1) => Ok(Committed::Done),
        record => facts(record).map(Committed::Refused),
    }
}

/// A record as `HGETALL` answers it: a map, or from inside a script a flat list.
///
/// # Errors
/// [`BackendError::Unavailable`] for an answer that is not a record.
pub(crate) fn facts(value: Value) -> Result<Facts, BackendError> {
    match value {
        Value::Map(fields) => {
            fields.into_iter().map(|(name, value)| Ok((text(name)?, bytes(value)?))).collect()
        }
        Value::Array(flat) => {
            let mut flat = flat.into_iter();
            let mut fields = Vec::with_capacity(flat.len() / 2);
            while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
                fields.push((text(name)?, bytes(value)?));
            }
            Ok(fields.into_iter().collect())
        }
        other => Err(unexpected("a record", &other)),
    }
}

fn text(value: Value) -> Result<FactName, BackendError> {
    // Names are ours; what somebody else put into the hash is shown as well as it can be.
    Ok(match String::from_utf8(bytes(value)?.into()) {
        Ok(name) => name,
        Err(other) => String::from_utf8_lossy(other.as_bytes()).into_owned(),
    })
}

/// A text of any bytes.
///
/// # Errors
/// [`BackendError::Unavailable`] for an answer that is not text.
pub(crate) fn bytes(value: Value) -> Result<Bytes, BackendError> {
    match value {
        Value::BulkString(bytes) => Ok(Bytes::from(bytes)),
        Value::SimpleString(text) => Ok(Bytes::from(text)),
        other => Err(unexpected("a text", &other)),
    }
}

/// What a script is asked to do, every name in it once.
#[derive(Debug, PartialEq, Eq)]
struct Plan<'a> {
    unless: Vec<&'a str>,
    drop: Vec<&'a str>,
    /// What is written: `equal` facts that may be there with the same value, `absent` facts that are only written
    /// where they are missing, and then the rest.
    facts: Vec<(&'a str, &'a Bytes)>,
    equal: usize,
    absent: usize,
}

impl<'a> Plan<'a> {
    fn of(commit: &'a Commit) -> Self {
        let mut unless: Vec<&str> = commit.unless.iter().map(String::as_str).collect();
        let mut facts: Vec<(&str, &Bytes)> = Vec::with_capacity(commit.facts.len());
        for (name, value) in &commit.equal_or_absent {
            match facts.iter().find(|(earlier, _)| earlier == name) {
                // No record can hold two values: one that holds any is refused.
                Some((_, other)) if *other != value => unless.push(name),
                Some(_) => {}
                None => facts.push((name, value)),
            }
        }
        let equal = facts.len();
        let mut known = Vec::new();
        for (name, value) in &commit.facts {
            let written = facts.iter().chain(&known).any(|(earlier, _)| earlier == name);
            if written {
                continue;
            }
            // Whoever names a fact in `unless` or `drop` knows that it is absent when it is written.
            if unless.contains(&name.as_str()) || commit.drop.contains(name) {
                known.push((name.as_str(), value));
            } else {
                facts.push((name, value));
            }
        }
        let absent = facts.len() - equal;
        facts.append(&mut known);
        let kept = |name: &&str| facts.iter().any(|(written, _)| written == name);
        let drop = commit.drop.iter().map(String::as_str).filter(|name| !kept(name)).collect();
        Self { unless, drop, facts, equal, absent }
    }
}

/// A time to live as scripts take it: never zero, and never more than Redis can count.
fn milliseconds(after: Duration) -> i64 {
    const CENTURY: u128 = 100 * 365 * 24 * 3600 * 1000;
    i64::try_from(after.as_millis().clamp(1, CENTURY)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use machinist_core::id::TaskId;
    use redis::Arg;

    use super::*;

    fn fact(name: &str, value: &'static str) -> (FactName, Bytes) {
        (name.to_owned(), Bytes::from_static(value.as_bytes()))
    }

    fn names(names: &[&str]) -> Vec<FactName> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The arguments after script, number of keys and key.
    fn arguments(script: &Script, commit: &Commit) -> Vec<String> {
        let cmd = call("k", commit);
        let hash = cmd.args_iter().nth(1);
        assert!(matches!(hash, Some(Arg::Simple(hash)) if hash == script.get_hash().as_bytes()));
        let args = cmd.args_iter().map(|arg| match arg {
            Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        });
        args.skip(4).collect()
    }

    fn commit() -> Commit {
        Commit::new(TaskId::parse("t").unwrap())
    }

    #[test]
    fn a_guarded_fact_is_not_asked_for_twice() {
        let start = Commit {
            unless: names(&["end", "o:1", "rv", "s:1:1"]),
            facts: vec![fact("s:1:1", "x")],
            ..commit()
        };
        let expected = ["4", "0", "0", "0", "0", "0", "end", "o:1", "rv", "s:1:1", "s:1:1", "x"];
        assert_eq!(arguments(&COMMIT, &start), expected);
    }

    #[test]
    fn a_start_and_an_end_have_scripts_of_their_own() {
        let expiry = Expiry::AfterUnlessSet(Duration::from_secs(2));
        let start = Commit {
            unless: names(&["end", "rv", "s:1:1"]),
            facts: vec![fact("s:1:1", "x")],
            expiry,
            ..commit()
        };
        assert_eq!(arguments(&GUARD, &start), ["2000", "x", "s:1:1", "end", "rv", "sent"]);
        let end = Commit {
            unless: names(&["end"]),
            facts: vec![fact("end", "x")],
            expiry: Expiry::After(Duration::from_secs(2)),
            wake: true,
            ..commit()
        };
        assert_eq!(arguments(&ONCE, &end), ["end", "x", "2000"]);
        // Those scripts can do nothing else.
        let others = [
            Commit { wake: true, ..start.clone() },
            Commit { drop: names(&["o"]), ..start.clone() },
            Commit { facts: vec![fact("f", "x")], ..start.clone() },
            Commit { equal_or_absent: vec![fact("f", "x")], ..start },
            Commit { wake: false, ..end.clone() },
            Commit { expiry: Expiry::Keep, ..end.clone() },
            Commit { unless: names(&["end", "rv"]), ..end },
        ];
        for other in others {
            arguments(&COMMIT, &other);
        }
    }

    #[test]
    fn facts_of_the_sender_are_written_where_absent() {
        let sent = Commit {
            facts: vec![fact("name", "a"), fact("queue", "b"), fact("name", "c")],
            expiry: Expiry::AfterUnlessSet(Duration::from_secs(2)),
            wake: true,
            ..commit()
        };
        let expected = ["0", "0", "2", "0", "-2000", "1", "name", "queue", "name", "a", "queue", "b"];
        assert_eq!(arguments(&COMMIT, &sent), expected);
    }

    #[test]
    fn what_is_dropped_and_written_is_replaced() {
        let trimmed = Commit {
            equal_or_absent: vec![fact("s:1:1", "x")],
            drop: names(&["old", "rc:1", "s:1:1"]),
            facts: vec![fact("rc:1", "y")],
            expiry: Expiry::After(Duration::ZERO),
            ..commit()
        };
        let expected = ["0", "1", "0", "1", "1", "0", "s:1:1", "old", "s:1:1", "x", "rc:1", "y"];
        assert_eq!(arguments(&COMMIT, &trimmed), expected);
    }

    #[test]
    fn no_record_equals_two_values() {
        let torn =
            Commit { equal_or_absent: vec![fact("a", "1"), fact("a", "2"), fact("a", "1")], ..commit() };
        assert_eq!(arguments(&COMMIT, &torn), ["1", "1", "0", "0", "0", "0", "a", "a", "a", "1"]);
    }

    #[test]
    fn answers_are_records_in_both_shapes() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let flat = Value::Array(vec![bulk("end"), bulk("x")]);
        let map = Value::Map(vec![(bulk("end"), bulk("x"))]);
        assert_eq!(facts(flat).unwrap(), facts(map).unwrap());
        assert_eq!(answer(Value::Int(1)).unwrap(), Committed::Done);
        assert!(answer(Value::Int(2)).is_err());
    }
}
