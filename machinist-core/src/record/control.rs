//! The control record: switches that people set for all workers at once, and the notes of their orders.
//!
//! A switch stays in the record when it is set back, because its number tells workers which setting is the later one.

use std::time::Duration;

use bytes::Bytes;

use super::{
    facts::{FactName, Facts, name},
    worker_name::replace,
};
use crate::{
    backend::{Commit, Expiry},
    id::{QueueName, RecordId, RecordKind, SessionId, TaskName},
};

/// Time for which the note of an order is kept.
const NOTE_TTL: Duration = Duration::from_secs(24 * 3600);
/// Time for which a list of runs is kept for those who have asked for it.
const LISTED_RUNS_TTL: Duration = Duration::from_secs(60);

/// Subject of a switch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Switch {
    /// A task name, which can be disabled.
    Task(TaskName),
    /// A queue, which can be paused.
    Queue(QueueName),
}

impl Switch {
    /// Returns the name of the fact.
    pub(crate) fn fact(&self) -> FactName {
        match self {
            Self::Task(task) => format!("{}{task}", name::DISABLED).into(),
            Self::Queue(queue) => format!("{}{queue}", name::PAUSED).into(),
        }
    }

    fn of_fact(fact: &str) -> Option<Self> {
        let task = fact.strip_prefix(name::DISABLED).map(|task| TaskName::parse(task).ok().map(Self::Task));
        let queue =
            || fact.strip_prefix(name::PAUSED).map(|queue| QueueName::parse(queue).ok().map(Self::Queue));
        task.or_else(queue)?
    }
}

/// Returns the record that all workers read with each renewal, and watch.
pub(crate) fn control_record() -> RecordId {
    RecordId::new(RecordKind::Control, "tasks")
}

/// Returns the switches in the control record, as they are stored.
pub(crate) fn switches(control: &Facts) -> impl Iterator<Item = (Switch, &Bytes)> {
    control.iter().filter_map(|(fact, stored)| Some((Switch::of_fact(fact)?, stored)))
}

/// Creates the commit that sets a switch. It is refused if the stored setting is another than `before`.
pub(crate) fn set_switch(switch: &Switch, setting: &Bytes, before: Option<&Bytes>) -> Commit {
    let mut commit = Commit::new(control_record());
    replace(&mut commit, switch.fact(), setting, before);
    commit.wake = true;
    commit
}

/// Comparison of a statement that was read with the one that a worker knows. Their numbers decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Newest {
    /// The one that was read.
    Read,
    /// Both are the same, or there is none.
    Same,
    /// The one that the worker knows: the store has lost it, or holds an earlier one.
    Known,
}

/// Decides which of two statements about one thing counts.
pub(crate) fn newest(known: Option<i64>, read: Option<i64>) -> Newest {
    match (known, read) {
        (None, Some(_)) => Newest::Read,
        (Some(known), Some(read)) if read > known => Newest::Read,
        (Some(known), read) if read != Some(known) => Newest::Known,
        _ => Newest::Same,
    }
}

/// Returns the record of the note of an order.
pub(crate) fn note_record(order: &str) -> RecordId {
    RecordId::new(RecordKind::Control, &format!("order.{order}"))
}

/// Creates the commit that keeps the note of an order.
pub(crate) fn keep_note(order: &str, note: &Bytes) -> Commit {
    let mut commit = Commit::new(note_record(order));
    commit.facts = vec![(name::ABOUT.into(), note.clone())];
    commit.expiry = Expiry::After(NOTE_TTL);
    commit
}

/// Returns the record of the list of runs that a session has written because an order asked for it.
pub(crate) fn listed_runs_record(order: &str, session: &SessionId) -> RecordId {
    RecordId::new(RecordKind::Control, &format!("runs.{order}.{session}"))
}

/// Creates the commit that keeps such a list until it was read.
pub(crate) fn keep_listed_runs(order: &str, session: &SessionId, ids: Bytes) -> Commit {
    let mut commit = Commit::new(listed_runs_record(order, session));
    // Asked again, because a reply was lost, the worker writes what runs then.
    commit.drop = vec![name::RUN_IDS.into()];
    commit.facts = vec![(name::RUN_IDS.into(), ids)];
    commit.expiry = Expiry::After(LISTED_RUNS_TTL);
    commit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_statement_never_replaces_a_later_one() {
        assert_eq!(newest(None, None), Newest::Same);
        assert_eq!(newest(None, Some(1)), Newest::Read);
        assert_eq!(newest(Some(1), Some(2)), Newest::Read);
        assert_eq!(newest(Some(2), Some(2)), Newest::Same);
        assert_eq!(newest(Some(2), Some(1)), Newest::Known);
        assert_eq!(newest(Some(2), None), Newest::Known);
    }

    #[test]
    fn a_switch_is_set_only_by_those_who_have_seen_its_last_setting() {
        let switch = Switch::Queue(QueueName::parse("mail").unwrap());
        let [off, on] = [Bytes::from_static(b"off"), Bytes::from_static(b"on")];
        let mut facts = Facts::new();
        assert!(set_switch(&switch, &off, None).apply(&mut facts));
        assert!(!set_switch(&switch, &on, None).apply(&mut facts));
        assert!(set_switch(&switch, &on, Some(&off)).apply(&mut facts));
        assert_eq!(switches(&facts).collect::<Vec<_>>(), [(switch, &on)]);
        let task = Switch::Task(TaskName::parse("mail").unwrap());
        assert!(set_switch(&task, &off, None).apply(&mut facts), "a task of the same name is another switch");
        assert_eq!(switches(&facts).count(), 2);
    }
}
