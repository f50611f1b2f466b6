//! Joins: what a record of ended members says to the step that waits for them.
//!
//! A join is a record of write-once facts: one about the join, and one for each member that has ended. The number of facts
//! tells a member whether it was the last, so joining costs the same for ten members and for ten thousand.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    continuation::Joining,
    facts::{End, EndVerdict, FactName, Facts, json as fact, name},
    fold::Attempts,
    retention::UNFINISHED_TTL,
};
use crate::{
    args::Arg,
    backend::{Commit, Committed, Expiry},
    flow::{JoinPart, Policy},
    id::TaskId,
};

/// Fact about the join itself.
const ABOUT: &str = "j";
/// Prefix of the facts about members.
const MEMBER: &str = "m:";

/// `m:I`: a member that has ended. It is signed for its join and its index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinedMember {
    /// The task that ended: the member, or a task that repeats it.
    pub(crate) id: TaskId,
    /// Its end, as its record holds it.
    pub(crate) end: String,
}

/// A member whose signature was verified and whose end was decrypted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EndedMember {
    pub(crate) id: TaskId,
    pub(crate) verdict: EndVerdict,
    /// Trace context of its run.
    pub(crate) trace: Option<String>,
}

/// Decision about a step that waits for a join.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum JoinDecision {
    /// Members are missing; their indexes.
    Undecided(Vec<u32>),
    /// The step runs, with these arguments after its own.
    Run(Vec<Arg>),
    /// The step never runs; the text names the task that failed.
    Upstream(String),
}

/// Returns the name of the fact about a member.
pub(crate) fn member_fact(index: u32) -> FactName {
    format!("{MEMBER}{index}").into()
}

/// Returns the index of the member that a fact is about.
pub(crate) fn member_index(fact: &str) -> Option<u32> {
    fact.strip_prefix(MEMBER)?.parse().ok()
}

/// Creates the commit by which an ended task joins.
pub(crate) fn join(joining: &Joining, member: Bytes) -> Commit {
    let mut commit = Commit::new(joining.record());
    commit.facts =
        vec![(ABOUT.into(), fact(&json!({ "size": joining.size }))), (member_fact(joining.index), member)];
    commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
    commit.count = true;
    commit
}

/// Creates the commit that keeps a join for as long as somebody waits for it.
pub(crate) fn extend_join(record: crate::id::RecordId) -> Commit {
    let mut commit = Commit::new(record);
    commit.expiry = Expiry::After(UNFINISHED_TTL);
    commit
}

/// Creates the commit that lets a join be forgotten with the results, because the task that has waited for it has ended. A
/// member that joins later leaves the expiry as it is.
pub(crate) fn forget_join(record: crate::id::RecordId, kept_for: Duration) -> Commit {
    let mut commit = Commit::new(record);
    commit.expiry = Expiry::After(kept_for);
    commit
}

/// Returns `true` if the step that waits can be decided after this member has joined: all have ended, or the first failure
/// decides.
pub(crate) fn may_be_decided(joining: &Joining, failed: bool, answer: &Committed) -> bool {
    match answer {
        Committed::Done { count: Some(count) } => {
            count.saturating_sub(1) >= u64::from(joining.size) || (failed && joining.policy.fails_at_once())
        }
        // A commit that refuses nothing is never refused; a join that cannot be counted is looked at.
        Committed::Done { count: None } | Committed::Refused(_) => true,
    }
}

/// Decides about the step that waits for these parts; `members` are those that have ended, by index.
pub(crate) fn decide_join(parts: &[JoinPart], members: &BTreeMap<u32, EndedMember>) -> JoinDecision {
    let mut args = Vec::new();
    let mut missing = Vec::new();
    let mut first = 0u32;
    for part in parts {
        let count = part.count();
        let indexes = first..first.saturating_add(count);
        first = indexes.end;
        let failures: Vec<&EndedMember> =
            members.range(indexes.clone()).map(|(_, member)| member).filter(|m| m.failed()).collect();
        if let Some(failure) = failures.first()
            && part.policy.fails_at_once()
        {
            return JoinDecision::Upstream(failure.as_upstream());
        }
        let absent = indexes.clone().filter(|index| !members.contains_key(index));
        let before = missing.len();
        missing.extend(absent);
        if missing.len() > before {
            continue;
        }
        if let Some(failure) = failures.first()
            && part.policy.tolerated(count).is_some_and(|bound| failures.len() as u64 > u64::from(bound))
        {
            let (failed, cause) = (failures.len(), failure.as_upstream());
            return JoinDecision::Upstream(format!("{failed} of {count} tasks failed, the first: {cause}"));
        }
        args.extend(part_args(part, members.range(indexes).map(|(_, member)| member)));
    }
    if missing.is_empty() { JoinDecision::Run(args) } else { JoinDecision::Undecided(missing) }
}

/// Returns the arguments that a part gives: the results of a single task, or one list for a group.
fn part_args<'a>(part: &JoinPart, members: impl Iterator<Item = &'a EndedMember>) -> Vec<Arg> {
    let collects = part.policy == Policy::Collect;
    if part.members.is_none() && !collects {
        return members.flat_map(|member| member.results().unwrap_or_default().to_vec()).collect();
    }
    let mut kinds: Vec<&str> = Vec::new();
    let mut values = Vec::new();
    for member in members {
        if collects {
            kinds.push("json");
            values.push(member.outcome());
        } else if let Some(results) = member.results() {
            match results {
                [one] => {
                    kinds.push(&one.kind);
                    values.push(one.value.clone());
                }
                [] => {
                    kinds.push("json");
                    values.push(Value::Null);
                }
                several => {
                    kinds.push("json");
                    values.push(several.iter().map(|arg| arg.value.clone()).collect());
                }
            }
        }
    }
    if part.members.is_none() {
        return values
            .into_iter()
            .map(|value| Arg { name: String::new(), kind: "json".to_owned(), value })
            .collect();
    }
    let kind = list_kind(&kinds);
    vec![Arg { name: String::new(), kind, value: Value::Array(values) }]
}

/// Returns the type name of a list of values with these type names.
fn list_kind(kinds: &[&str]) -> String {
    match kinds.first() {
        Some(first)
            if kinds.iter().all(|kind| kind == first) && !first.starts_with("[]") && *first != "json" =>
        {
            format!("[]{first}")
        }
        _ => "json".to_owned(),
    }
}

/// Returns a digest of the arguments that a join has given, which every start of the step must have in common.
pub(crate) fn digest(args: &[Arg]) -> Bytes {
    let hash = Sha256::digest(fact(args));
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// Returns the fact that binds the starts of a callback to these arguments.
pub(crate) fn gathered_fact(args: &[Arg]) -> (FactName, Bytes) {
    (name::GATHERED.into(), digest(args))
}

impl EndedMember {
    /// Reads an end; `None` if it cannot be read.
    pub(crate) fn of(id: TaskId, end: &[u8]) -> Option<Self> {
        let End { verdict, trace, .. } = serde_json::from_slice(end).ok()?;
        Some(Self { id, verdict, trace })
    }

    /// Returns `true` if the member has failed.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.verdict, EndVerdict::Failure(_))
    }

    /// Returns the results of a member that has succeeded.
    pub(crate) fn results(&self) -> Option<&[Arg]> {
        match &self.verdict {
            EndVerdict::Success { results } => Some(&results.0),
            EndVerdict::Failure(_) => None,
        }
    }

    /// Returns the error of what depends on the member.
    fn as_upstream(&self) -> String {
        match &self.verdict {
            EndVerdict::Failure(failure) => upstream_error(&self.id, failure),
            EndVerdict::Success { .. } => String::new(),
        }
    }

    /// Returns the outcome as an argument.
    fn outcome(&self) -> Value {
        match &self.verdict {
            EndVerdict::Success { results } => {
                let values: Vec<&Value> = results.0.iter().map(|arg| &arg.value).collect();
                json!({ "id": self.id, "state": "SUCCESS", "results": values })
            }
            EndVerdict::Failure(failure) => json!({
                "id": self.id,
                "state": "FAILURE",
                "kind": failure.kind,
                "error": failure.error.message(),
            }),
        }
    }
}

/// Returns the newest generation of the copies of a task that waits for its join; `None` if it has started or ended, so that
/// no further copy is needed.
pub(crate) fn waiting_callback(facts: &Facts) -> Option<u32> {
    let attempts = Attempts::of(facts);
    let waits = !facts.has(name::END) && attempts.newest() <= 1 && attempts.newest_start(1).is_none();
    waits.then(|| attempts.newest_guard(1))
}

/// Returns the error of a task that never runs because another one has failed: it names the first cause.
pub(crate) fn upstream_error(id: &TaskId, failure: &super::facts::Failure) -> String {
    match failure.kind {
        super::FailureKind::Upstream => failure.error.message().to_owned(),
        kind => {
            let error = failure.error.message();
            let colon = if error.is_empty() || error == kind.as_str() { "" } else { ": " };
            let error = if colon.is_empty() { "" } else { error };
            format!("task {id} ended in FAILURE/{kind}{colon}{error}")
        }
    }
}

/// Reads the facts of a join: each member that this function accepts, by index.
pub(crate) fn ended_members(
    facts: &Facts,
    accept: impl Fn(u32, &Bytes) -> Option<EndedMember>,
) -> BTreeMap<u32, EndedMember> {
    let member = |(name, value): (&str, &Bytes)| {
        let index = member_index(name)?;
        Some((index, accept(index, value)?))
    };
    facts.iter().filter_map(member).collect()
}
