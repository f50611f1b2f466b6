//! The script, its arguments and its answer: pure, so that every case of it is tested without a server.
//!
//! What can be decided here is decided here, because each argument and each `redis.call` inside a script costs
//! the one thread that all tasks share: a fact whose name is guarded anyway is not asked for twice, a name that is
//! dropped and written again is simply written, and commits that do the same to different records are one call, which
//! says once what it does.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use machinist_adapter::{
    backend::{BackendError, Commit, Committed, Expiry},
    facts::{FactName, Facts},
    id::RecordKind,
};
use redis::{Cmd, Script, Value};

use crate::error::unexpected;

/// Makes any commit.
pub(crate) static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("commit.lua")));

/// Makes a commit of a session or of a worker's name, also on a server whose memory is full. Both are small, and there is one
/// for each worker: without them a worker that can still read would have to give up what it runs.
pub(crate) static SESSION_SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!("#!lua flags=allow-oom\n", include_str!("commit.lua"))));

/// Returns the script that makes this commit.
fn script(commit: &Commit) -> &'static Script {
    match commit.id.kind() {
        RecordKind::Session | RecordKind::Worker => &SESSION_SCRIPT,
        _ => &SCRIPT,
    }
}

/// A fact that is written together with the expiry of its record, if that had none: a record that holds it has one.
const EXPIRY_FIELD: &str = "sent";

/// A commit, and the key of its record.
#[derive(Debug)]
pub(crate) struct KeyedCommit {
    pub(crate) key: String,
    pub(crate) commit: Arc<Commit>,
}

/// The call that makes these commits, which do the same.
pub(crate) fn call<'a>(commits: impl ExactSizeIterator<Item = &'a KeyedCommit> + Clone) -> Cmd {
    const NAME: &str = "EVALSHA";
    /// Numbers among the arguments.
    const NUMBERS: usize = 32;
    let Some(first) = commits.clone().next() else { return Cmd::new() };
    let plan = ScriptCall::of(&first.commit);
    let hash = script(&first.commit).get_hash();
    let said = plan.unless.len() + plan.facts.len() + 1 + plan.drop.len();
    let values = |one: &'a KeyedCommit| plan.facts.iter().map(|(_, from)| from.value(&one.commit));
    let bytes: usize =
        commits.clone().map(|one| one.key.len() + values(one).map(Bytes::len).sum::<usize>()).sum();
    let mut cmd = Cmd::with_capacity(
        10 + said + commits.len() * (1 + plan.facts.len()),
        NAME.len() + hash.len() + NUMBERS + plan.name_bytes() + bytes,
    );
    cmd.arg(NAME).arg(hash).arg(commits.len());
    for one in commits.clone() {
        cmd.arg(&one.key);
    }
    cmd.arg(plan.unless.len()).arg(plan.equal).arg(plan.absent).arg(plan.facts.len()).arg(plan.drop.len());
    // Never zero, which means *keep*.
    cmd.arg(match first.commit.expiry {
        Expiry::After(after) => milliseconds(after),
        Expiry::AfterUnlessSet(after) => -milliseconds(after),
        Expiry::Keep => 0,
    });
    cmd.arg(flags(&first.commit));
    let (guarded, rest) = plan.facts.split_at(plan.equal + plan.absent);
    let names = |facts: &[(&'a str, ValueSource)]| facts.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    for name in [&plan.unless[..], &names(guarded), &[EXPIRY_FIELD], &names(rest), &plan.drop].concat() {
        cmd.arg(name);
    }
    for one in commits {
        for value in values(one) {
            cmd.arg(&value[..]);
        }
    }
    let required = &first.commit.require;
    if !required.is_empty() {
        for (name, _) in required {
            cmd.arg(&**name);
        }
        for (_, value) in required {
            cmd.arg(&value[..]);
        }
        cmd.arg(required.len());
    }
    cmd
}

/// Flags of a call: everything that it does in addition to writing.
fn flags(commit: &Commit) -> u8 {
    u8::from(commit.wake) + 2 * u8::from(commit.count) + 4 * u8::from(!commit.require.is_empty())
}

/// Groups commits that differ only in values, so that one call makes each group: their positions, in the order in which each kind
/// first comes.
pub(crate) fn alike(commits: &[KeyedCommit]) -> Vec<Vec<usize>> {
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for (at, KeyedCommit { commit, .. }) in commits.iter().enumerate() {
        match kinds.iter_mut().find(|kind| does_the_same(commit, &commits[kind[0]].commit)) {
            Some(kind) => kind.push(at),
            None => kinds.push(vec![at]),
        }
    }
    kinds
}

/// Returns `true` if these differ only in the values that they write.
fn does_the_same(one: &Commit, other: &Commit) -> bool {
    fn same_names(some: &[(FactName, Bytes)], others: &[(FactName, Bytes)]) -> bool {
        some.len() == others.len() && some.iter().zip(others).all(|(a, b)| a.0 == b.0)
    }
    std::ptr::eq(script(one), script(other))
        && one.expiry == other.expiry
        && one.wake == other.wake
        && one.count == other.count
        && one.require == other.require
        && one.unless == other.unless
        && same_names(&one.facts, &other.facts)
        // With several, what is done may depend on their values.
        && one.equal_or_absent.len() < 2
        && same_names(&one.equal_or_absent, &other.equal_or_absent)
        && one.drop == other.drop
}

/// Reads the script's answer to a call of so many commits, which count or do not: an outcome for each.
///
/// # Errors
/// [`BackendError::Unavailable`] of each, for an answer that is not ours.
pub(crate) fn answers(value: &Value, commits: usize, counts: bool) -> Vec<Result<Committed, BackendError>> {
    let outcomes = if counts { counted_outcomes(value, commits) } else { outcomes(value, commits) };
    match outcomes {
        Some(outcomes) => outcomes.into_iter().map(Ok).collect(),
        None => (0..commits).map(|_| Err(unexpected("what became of each record", value))).collect(),
    }
}

fn counted_outcomes(value: &Value, commits: usize) -> Option<Vec<Committed>> {
    match value {
        Value::Array(entries) if entries.len() == commits => entries.iter().map(counted_outcome).collect(),
        _ => None,
    }
}

/// Reads an entry of the answer to a call that counts: a number of facts, or a record that was refused.
fn counted_outcome(entry: &Value) -> Option<Committed> {
    match entry {
        Value::Int(count) => Some(Committed::Done { count: Some(u64::try_from(*count).ok()?) }),
        record => Some(Committed::Refused(facts(record.clone()).ok()?)),
    }
}

fn outcomes(value: &Value, count: usize) -> Option<Vec<Committed>> {
    let mut outcomes = vec![Committed::Done { count: None }; count];
    match value {
        Value::Int(1) => {}
        Value::Array(refused) => {
            for refusal in refused.chunks(2) {
                let [Value::Int(number), record] = refusal else { return None };
                let place = usize::try_from(*number).ok()?.checked_sub(1)?;
                *outcomes.get_mut(place)? = Committed::Refused(facts(record.clone()).ok()?);
            }
        }
        _ => return None,
    }
    Some(outcomes)
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
        Ok(name) => name.into(),
        Err(other) => String::from_utf8_lossy(other.as_bytes()).into_owned().into(),
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

/// Arguments of one script call, every name once.
#[derive(Debug, PartialEq, Eq)]
struct ScriptCall<'a> {
    unless: Vec<&'a str>,
    drop: Vec<&'a str>,
    /// Written facts: `equal` facts that may be there with the same value, `absent` facts that are only written
    /// where they are missing, and then the rest.
    facts: Vec<(&'a str, ValueSource)>,
    equal: usize,
    absent: usize,
}

/// Position of a fact's value in a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueSource {
    Equal(usize),
    Facts(usize),
}

impl ValueSource {
    fn value(self, commit: &Commit) -> &Bytes {
        match self {
            Self::Equal(place) => &commit.equal_or_absent[place].1,
            Self::Facts(place) => &commit.facts[place].1,
        }
    }
}

impl<'a> ScriptCall<'a> {
    fn of(commit: &'a Commit) -> Self {
        let mut unless: Vec<&str> = commit.unless.iter().map(|name| &**name).collect();
        let mut facts: Vec<(&str, ValueSource)> =
            Vec::with_capacity(commit.equal_or_absent.len() + commit.facts.len());
        for (place, (name, value)) in commit.equal_or_absent.iter().enumerate() {
            match facts.iter().find(|(earlier, _)| earlier == name) {
                // No record can hold two values: one that holds any is refused.
                Some((_, other)) if other.value(commit) != value => unless.push(name),
                Some(_) => {}
                None => facts.push((name, ValueSource::Equal(place))),
            }
        }
        let equal = facts.len();
        let mut known = Vec::new();
        for (place, (name, _)) in commit.facts.iter().enumerate() {
            let written = facts.iter().chain(&known).any(|(earlier, _)| earlier == name);
            if written {
                continue;
            }
            // Whoever names a fact in `unless` or `drop` knows that it is absent when it is written.
            if unless.contains(&&**name) || commit.drop.contains(name) {
                known.push((&**name, ValueSource::Facts(place)));
            } else {
                facts.push((name, ValueSource::Facts(place)));
            }
        }
        let absent = facts.len() - equal;
        facts.append(&mut known);
        let kept = |name: &&str| facts.iter().any(|(written, _)| written == name);
        let drop = commit.drop.iter().map(|name| &**name).filter(|name| !kept(name)).collect();
        Self { unless, drop, facts, equal, absent }
    }

    fn name_bytes(&self) -> usize {
        let names = self.unless.iter().chain(&self.drop).chain(self.facts.iter().map(|(name, _)| name));
        names.map(|name| name.len()).sum::<usize>() + EXPIRY_FIELD.len()
    }
}

/// A time to live as scripts take it: never zero, and never more than Redis can count.
fn milliseconds(after: Duration) -> i64 {
    const CENTURY: u128 = 100 * 365 * 24 * 3600 * 1000;
    i64::try_from(after.as_millis().clamp(1, CENTURY)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use machinist_adapter::id::{SessionId, TaskId};
    use redis::Arg;

    use super::*;

    const DONE: Committed = Committed::Done { count: None };

    fn fact(name: &str, value: &'static str) -> (FactName, Bytes) {
        (name.to_owned().into(), Bytes::from_static(value.as_bytes()))
    }

    fn names(names: &[&str]) -> Vec<FactName> {
        names.iter().map(|name| (*name).to_owned().into()).collect()
    }

    fn keyed(commits: &[Commit]) -> Vec<KeyedCommit> {
        let keyed = |(at, commit): (usize, &Commit)| KeyedCommit {
            key: format!("k{at}"),
            commit: commit.clone().into(),
        };
        commits.iter().enumerate().map(keyed).collect()
    }

    /// The arguments after the script, as one text.
    fn arguments(commits: &[Commit]) -> String {
        let cmd = call(keyed(commits).iter());
        let hash = cmd.args_iter().nth(1);
        assert!(matches!(hash, Some(Arg::Simple(hash)) if hash == SCRIPT.get_hash().as_bytes()));
        let args = cmd.args_iter().map(|arg| match arg {
            Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        });
        args.skip(2).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_renewal_of_a_session_is_small() {
        // As the core renews a session: 10,000 workers send it every five seconds.
        let mut renewal = Commit::new(SessionId::from("0192f3a1-0000-7000-8000-000000000000"));
        renewal.require = vec![fact("lease", "1")];
        renewal.expiry = Expiry::After(Duration::from_secs(15));
        let key = "machinist:session:{0192f3a1-0000-7000-8000-000000000000}".to_owned();
        let cmd = call([KeyedCommit { key, commit: renewal.into() }].iter());
        let length = |arg: Arg<&[u8]>| if let Arg::Simple(bytes) = arg { bytes.len() } else { 0 };
        let held: usize = cmd.args_iter().map(length).sum();
        assert!(held <= 200, "{held} bytes");
        let sent = cmd.get_packed_command().len();
        assert!(sent <= 230, "{sent} bytes with the framing of the protocol");
    }

    fn commit() -> Commit {
        Commit::new(TaskId::parse("t").unwrap())
    }

    fn start(value: &'static str) -> Commit {
        Commit {
            unless: names(&["end", "rv", "s:1:1"]),
            facts: vec![fact("s:1:1", value)],
            expiry: Expiry::AfterUnlessSet(Duration::from_secs(2)),
            ..commit()
        }
    }

    #[test]
    fn a_guarded_fact_is_not_asked_for_twice() {
        assert_eq!(arguments(&[start("x")]), "1 k0 3 0 0 1 0 -2000 0 end rv s:1:1 sent s:1:1 x");
    }

    #[test]
    fn what_is_done_to_many_records_is_said_once() {
        let end = Commit {
            unless: names(&["end"]),
            facts: vec![fact("end", "x")],
            expiry: Expiry::After(Duration::from_secs(2)),
            wake: true,
            ..commit()
        };
        assert_eq!(arguments(&[end.clone(), end]), "2 k0 k1 1 0 0 1 0 2000 1 end sent end x x");
        let sent = Commit { facts: vec![fact("a", "1"), fact("b", "2")], ..commit() };
        let other = Commit { facts: vec![fact("a", "3"), fact("b", "4")], ..commit() };
        assert_eq!(arguments(&[sent, other]), "2 k0 k1 0 0 2 2 0 0 0 a b sent 1 2 3 4");
    }

    #[test]
    fn only_commits_that_do_the_same_are_one_call() {
        let held = |value| Commit { equal_or_absent: vec![fact("s:1:1", value)], ..start("x") };
        let twice = Commit { equal_or_absent: vec![fact("a", "1"), fact("a", "2")], ..commit() };
        let commits = [
            start("x"),
            Commit { wake: true, ..start("x") },
            start("y"),
            Commit { count: true, ..start("x") },
            Commit { require: vec![fact("a", "1")], ..start("x") },
            Commit { require: vec![fact("a", "2")], ..start("x") },
            Commit { expiry: Expiry::Keep, ..start("x") },
            Commit { id: SessionId::from("s").into(), ..start("x") },
            held("1"),
            Commit { drop: names(&["o"]), ..start("x") },
            Commit { facts: vec![fact("s:1:2", "x")], ..start("x") },
            held("2"),
            Commit { unless: names(&["end", "s:1:1"]), ..start("x") },
            twice.clone(),
            twice,
            start("z"),
        ];
        let expected: &[&[usize]] =
            &[&[0, 2, 15], &[1], &[3], &[4], &[5], &[6], &[7], &[8, 11], &[9], &[10], &[12], &[13], &[14]];
        assert_eq!(alike(&keyed(&commits)), expected);
    }

    #[test]
    fn facts_of_the_sender_are_written_where_absent() {
        let sent = Commit {
            facts: vec![fact("name", "a"), fact("queue", "b"), fact("name", "c")],
            expiry: Expiry::AfterUnlessSet(Duration::from_secs(2)),
            wake: true,
            ..commit()
        };
        assert_eq!(arguments(&[sent]), "1 k0 0 0 2 2 0 -2000 1 name queue sent a b");
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
        assert_eq!(arguments(&[trimmed]), "1 k0 0 1 0 2 1 1 0 s:1:1 sent rc:1 old x y");
    }

    #[test]
    fn what_is_required_stands_at_the_end() {
        let swap = Commit {
            require: vec![fact("cursor", "1"), fact("owner", "me")],
            drop: names(&["cursor"]),
            facts: vec![fact("cursor", "2")],
            wake: true,
            count: true,
            ..commit()
        };
        assert_eq!(arguments(&[swap]), "1 k0 0 0 0 1 0 0 7 sent cursor 2 cursor owner 1 me 2");
    }

    #[test]
    fn no_record_equals_two_values() {
        let torn =
            Commit { equal_or_absent: vec![fact("a", "1"), fact("a", "2"), fact("a", "1")], ..commit() };
        assert_eq!(arguments(&[torn]), "1 k0 1 1 0 1 0 0 0 a a sent 1");
    }

    #[test]
    fn an_answer_names_those_that_were_refused() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let flat = Value::Array(vec![bulk("end"), bulk("x")]);
        let map = Value::Map(vec![(bulk("end"), bulk("x"))]);
        let record = facts(flat.clone()).unwrap();
        assert_eq!(record, facts(map).unwrap());
        assert_eq!(outcomes(&Value::Int(1), 2).unwrap(), [DONE, DONE]);
        let refused = Value::Array(vec![Value::Int(2), flat.clone()]);
        assert_eq!(outcomes(&refused, 2).unwrap(), [DONE, Committed::Refused(record.clone())]);
        let counted = Value::Array(vec![Value::Int(3), flat.clone()]);
        let expected = [Committed::Done { count: Some(3) }, Committed::Refused(record)];
        assert_eq!(counted_outcomes(&counted, 2).unwrap(), expected);
        assert_eq!(counted_outcomes(&Value::Array(vec![Value::Int(-1)]), 1), None);
        assert_eq!(counted_outcomes(&Value::Int(1), 1), None);
        let none_of_ours = [
            // A record that was not sent.
            Value::Array(vec![Value::Int(4), flat.clone()]),
            Value::Array(vec![Value::Int(0), flat.clone()]),
            Value::Array(vec![flat]),
            Value::Array(vec![Value::Int(1), Value::Int(1)]),
            Value::Int(2),
        ];
        for other in none_of_ours {
            assert!(
                answers(&other, 3, false).iter().all(Result::is_err) && answers(&other, 3, false).len() == 3,
                "{other:?}"
            );
        }
    }
}
