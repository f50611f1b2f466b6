//! The record of a periodic task: the order of a person, the cursor, and announcements of workers. Pure.
//!
//! | fact | says | written by |
//! |---|---|---|
//! | `order` | definition of a live task, pause, removal, trigger; signed, with a generation that only rises | a person |
//! | `cursor` | the last tick that was sent or left out, and the newest ticks | the worker that ticks |
//! | `own` | definition from a file or from code, for display | a worker that has it |
//! | `restored` | the time at which a worker wrote the order back after it was lost | that worker |
//!
//! Each is replaced by a compare-and-swap. A tick is published and confirmed before the cursor passes it, so a worker that
//! dies between the two leaves a tick that the next worker publishes again under the same id.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    due::MISSED_AFTER,
    policy::{Policies, Source},
    schedule::StoredSchedule,
};
use crate::{
    args::Arg,
    backend::{Commit, Expiry},
    clock::Timestamp,
    flow::{Flow, Outline},
    id::{QueueName, RecordId, RecordKind, TaskId, TaskName},
    record::{FactName, Facts, json},
    retry::RetryPolicy,
    sign::KeyId,
    signature::{SignatureParts, When},
};

/// Names of the facts.
pub(crate) mod name {
    pub(crate) const ORDER: &str = "order";
    pub(crate) const CURSOR: &str = "cursor";
    pub(crate) const OWN: &str = "own";
    pub(crate) const RESTORED: &str = "restored";
}

/// Time for which a record is kept after it was last written: longer than any schedule pauses.
const KEPT: Duration = Duration::from_secs(3653 * 24 * 3600);
/// Time for which the mark of a removal is kept. A worker that has not read the backend for longer writes the definition
/// back.
const REMOVAL_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Number of ticks that a cursor names.
const MAX_TICKS: usize = 10;
/// Time without a word from a worker after which a definition from a file or from code counts as gone.
const UNATTENDED_AFTER: Duration = Duration::from_secs(180);

/// Returns the record of a periodic task.
pub(crate) fn periodic_record(name: &str) -> RecordId {
    RecordId::new(RecordKind::Cursor, name)
}

/// Returns the record that workers watch, to learn of orders at once.
pub(crate) fn wake_record() -> RecordId {
    RecordId::new(RecordKind::Control, "periodic")
}

/// Call of a task, as far as its sender decides it before a tick.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TickCall {
    #[serde(default)]
    args: Vec<Arg>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<RetryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    soft_timeout: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit_cost: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fair_key: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// Steps of the workflow, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flow: Option<Box<Flow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outline: Option<Outline>,
}

impl TickCall {
    /// Returns what the ticks of a signature have in common.
    pub(crate) fn of(parts: &SignatureParts, outline: Option<&Outline>) -> Self {
        let expires = match parts.expires {
            Some(When::In(duration)) => Some(duration),
            Some(When::At(_)) | None => None,
        };
        Self {
            args: parts.args.clone(),
            retry: parts.retry.clone(),
            timeout: parts.timeout,
            soft_timeout: parts.soft_timeout,
            expires,
            priority: parts.priority,
            limit_key: parts.key_of_limits(),
            limit_cost: parts.limit_cost,
            fair_key: parts.fair_key.clone(),
            headers: parts.headers.clone(),
            labels: parts.labels.clone(),
            flow: parts.flow.clone(),
            outline: outline.cloned(),
        }
    }

    /// Returns the signature of each tick, and the outline of its workflow.
    pub(crate) fn into_parts(self, task: &TaskName, queue: &QueueName) -> (SignatureParts, Option<Outline>) {
        let parts = SignatureParts {
            id: TaskId::fresh(),
            name: task.to_string(),
            args: self.args,
            queue: Some(queue.to_string()),
            when: When::In(Duration::ZERO),
            expires: self.expires.map(When::In),
            retry: self.retry,
            defined_retry: None,
            timeout: self.timeout,
            soft_timeout: self.soft_timeout,
            priority: self.priority,
            headers: self.headers,
            labels: self.labels,
            flow: self.flow,
            limit_key: self.limit_key,
            limit_template: None,
            limit_cost: self.limit_cost,
            fair_key: self.fair_key,
            unique: None,
            require_worker: false,
            requires: Default::default(),
            unsendable: None,
        };
        (parts, self.outline)
    }
}

/// Call in a definition: readable, or encrypted where the application encrypts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoredCall {
    Call(Box<TickCall>),
    Sealed {
        key: KeyId,
        /// Encrypted call, in base64.
        text: String,
    },
}

/// Definition of a periodic task without its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeriodicOutline {
    pub(crate) task: TaskName,
    pub(crate) queue: QueueName,
    pub(crate) schedule: StoredSchedule,
    pub(crate) policies: Policies,
}

/// Definition of a live periodic task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeriodicDefinition {
    #[serde(flatten)]
    pub(crate) outline: PeriodicOutline,
    #[serde(flatten)]
    pub(crate) call: StoredCall,
}

/// `order`: the will of a person about a periodic task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeriodicOrder {
    /// Rises with every order, also after the record was lost.
    pub(crate) generation: u64,
    /// Time at which it was signed.
    pub(crate) at: Timestamp,
    /// Definition; `None` for the pause of a task that a file or code defines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) definition: Option<PeriodicDefinition>,
    /// Time since when it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paused: Option<Timestamp>,
    /// `true` if the definition is removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) removed: bool,
    /// Instant of an extra tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trigger: Option<Timestamp>,
}

impl PeriodicOrder {
    /// Creates the order that follows another; it says the same until it is changed.
    pub(crate) fn after(before: Option<Self>, now: Timestamp) -> Self {
        // Counted by time, so that an order is newer than one that was lost with the record.
        let by_time = u64::try_from(now.as_micros()).unwrap_or(0);
        let generation =
            before.as_ref().map_or(by_time, |before| by_time.max(before.generation.saturating_add(1)));
        let Self { definition, paused, removed, .. } = before.unwrap_or(Self {
            generation,
            at: now,
            definition: None,
            paused: None,
            removed: false,
            trigger: None,
        });
        Self { generation, at: now, definition, paused, removed, trigger: None }
    }

    /// Returns the instant of an extra tick that is still to be sent.
    pub(crate) fn pending_trigger(&self, cursor: &Cursor, now: Timestamp) -> Option<Timestamp> {
        self.trigger.filter(|tick| cursor.triggered < Some(*tick) && now.since(*tick) <= MISSED_AFTER)
    }

    /// Returns the definition that is in force.
    pub(crate) fn live(&self) -> Option<&PeriodicDefinition> {
        self.definition.as_ref().filter(|_| !self.removed)
    }
}

/// `cursor`: the progress of a periodic task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Last tick that was sent or left out. No tick up to it is sent.
    pub(crate) at: Timestamp,
    /// Newest ticks that were sent, the newest first.
    #[serde(default)]
    pub(crate) ticks: Vec<Timestamp>,
    /// Last extra tick that was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) triggered: Option<Timestamp>,
}

impl Cursor {
    /// Creates the cursor of a task that has not ticked yet.
    pub(crate) fn starting(at: Timestamp) -> Self {
        Self { at, ticks: Vec::new(), triggered: None }
    }

    /// Returns the cursor after an extra tick was sent.
    pub(crate) fn triggered(&self, tick: Timestamp) -> Self {
        Self { triggered: Some(tick), ..self.passed(self.at, &[tick]) }
    }

    /// Returns the cursor after these ticks were sent, and all up to `at` were sent or left out.
    pub(crate) fn passed(&self, at: Timestamp, sent: &[Timestamp]) -> Self {
        let sent = sent.iter().rev().filter(|tick| !self.ticks.contains(tick));
        let ticks = sent.chain(&self.ticks).copied().take(MAX_TICKS).collect();
        Self { at: at.max(self.at), ticks, triggered: self.triggered }
    }

    /// Returns the later of two cursors.
    pub(crate) fn later(self, other: Option<&Self>) -> Self {
        match other {
            Some(other) if (other.at, other.triggered) > (self.at, self.triggered) => other.clone(),
            _ => self,
        }
    }
}

/// `own`: a definition from a file or from code, as a worker that has it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Own {
    pub(crate) source: Source,
    pub(crate) worker: String,
    pub(crate) at: Timestamp,
    #[serde(flatten)]
    pub(crate) outline: PeriodicOutline,
}

impl Own {
    /// Returns `true` if a worker has confirmed it lately.
    pub(crate) fn is_attended(&self, now: Timestamp) -> bool {
        now.since(self.at) < UNATTENDED_AFTER
    }
}

/// Reads a fact; `None` for one that is absent or that this program cannot read.
pub(crate) fn fact<T: DeserializeOwned>(facts: &Facts, name: &str) -> Option<T> {
    serde_json::from_slice(facts.get(name)?).ok()
}

/// A change of the record that is refused if another has changed the same facts meanwhile.
pub(crate) struct Swap(Commit);

impl Swap {
    /// Begins a change of the record of this periodic task.
    pub(crate) fn new(name: &str) -> Self {
        let mut commit = Commit::new(periodic_record(name));
        commit.expiry = Expiry::After(KEPT);
        Self(commit)
    }

    /// Replaces a fact that has this value; `None` for an absent one.
    pub(crate) fn replace(mut self, name: &'static str, before: Option<&Bytes>, after: Bytes) -> Self {
        self = self.expect(name, before);
        if before.is_some() {
            self.0.drop.push(name.into());
        }
        self.0.facts.push((name.into(), after));
        self
    }

    /// Replaces the cursor.
    pub(crate) fn cursor(self, before: Option<&Bytes>, after: &Cursor) -> Self {
        self.replace(name::CURSOR, before, json(after))
    }

    /// Refuses the change unless a fact has this value; `None` for an absent one.
    pub(crate) fn expect(mut self, name: &'static str, before: Option<&Bytes>) -> Self {
        let name: FactName = name.into();
        match before {
            Some(before) => self.0.require.push((name, before.clone())),
            None => self.0.unless.push(name),
        }
        self
    }

    /// Writes a fact that only people read, whatever its value was.
    pub(crate) fn say(mut self, name: &'static str, value: Option<Bytes>) -> Self {
        self.0.drop.push(name.into());
        self.0.facts.extend(value.map(|value| (name.into(), value)));
        self
    }

    /// Keeps the record for as long as the mark of a removal is needed.
    pub(crate) fn removed(mut self) -> Self {
        self.0.expiry = Expiry::After(REMOVAL_KEPT);
        self
    }

    /// Returns the commit.
    pub(crate) fn commit(self) -> Commit {
        self.0
    }
}

/// Creates the commit that wakes the workers, so that they read the orders at once. Nothing depends on it.
pub(crate) fn wake() -> Commit {
    Commit { wake: true, ..Commit::new(wake_record()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_cursor_never_goes_back_and_names_the_newest_ticks() {
        let cursor = Cursor::starting(at(10)).passed(at(12), &[at(11), at(12)]);
        assert_eq!(cursor, Cursor { at: at(12), ticks: vec![at(12), at(11)], triggered: None });
        assert_eq!(cursor.passed(at(5), &[at(12)]), cursor);
        let many: Vec<_> = (13..40).map(at).collect();
        let later = cursor.passed(at(39), &many);
        assert_eq!((later.ticks.len(), later.ticks[0], later.ticks[9]), (10, at(39), at(30)));
        assert_eq!(cursor.clone().later(Some(&later)), later);
        assert_eq!(later.clone().later(Some(&cursor)), later);
        let triggered = later.triggered(at(50));
        assert_eq!((triggered.at, triggered.ticks[0], triggered.ticks[1]), (at(39), at(50), at(39)));
        assert_eq!(later.later(Some(&triggered)), triggered);
    }

    #[test]
    fn of_two_workers_that_pass_a_cursor_one_succeeds() {
        let mut facts = Facts::new();
        let first = Cursor::starting(at(10));
        assert!(Swap::new("p").cursor(None, &first).commit().apply(&mut facts));
        let seen = facts.get(name::CURSOR).cloned();
        let pass = || Swap::new("p").cursor(seen.as_ref(), &first.passed(at(11), &[at(11)])).commit();
        assert!(pass().apply(&mut facts));
        assert!(!pass().apply(&mut facts));
        assert!(!Swap::new("p").cursor(None, &first).commit().apply(&mut facts));
        assert_eq!(fact::<Cursor>(&facts, name::CURSOR).unwrap().at, at(11));
    }

    #[test]
    fn the_generation_rises_although_the_record_was_lost() {
        let first = PeriodicOrder::after(None, at(10));
        let second = PeriodicOrder::after(Some(first.clone()), at(9));
        assert!(second.generation > first.generation, "also when the clock goes back");
        assert!(PeriodicOrder::after(None, at(11)).generation > second.generation);
    }
}
