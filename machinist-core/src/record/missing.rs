//! Members that are missing in a join: which records are asked about them, and when they count as lost.
//!
//! A member whose end is recorded joins again. A member that was published and has no record is lost, and the step that
//! waits for it ends when that has been so for a while. A member that is not published yet has no record either, and is not
//! lost.

use std::time::Duration;

use super::{
    facts::{Facts, name},
    follow_up::failure_of,
};
use crate::{
    clock::Timestamp,
    flow::{JoinPart, Policy, StepPlace},
    id::TaskId,
};

/// A member of a join, as the step that waits knows it.
#[derive(Debug)]
pub(crate) struct MemberSlot<'a> {
    pub(crate) index: u32,
    pub(crate) part: &'a JoinPart,
    /// Place of its first task.
    first: StepPlace,
    /// The task whose end joins.
    pub(crate) id: TaskId,
}

/// State of a member that is missing in its join, by the record that counts for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingMember {
    /// No record, or only the mark of its follow-up: the member is lost if it was published.
    NoRecord,
    /// It has not ended, or its failure is held.
    Awaited,
    /// It has ended, and joins.
    Ended { failed: bool },
}

/// Decision about a step that waits, after a look at the records of the missing members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostDecision {
    /// It waits on. If members are lost: since when.
    Wait(Option<Timestamp>),
    /// It ends: members have been lost for long enough.
    End,
}

/// Returns the members with these indexes, in ascending order, of the join that the step at this place waits for.
pub(crate) fn member_slots<'a>(
    waiting: &StepPlace,
    parts: &'a [JoinPart],
    indexes: impl IntoIterator<Item = u32>,
) -> Vec<MemberSlot<'a>> {
    let scope = waiting.scope();
    let mut slots = Vec::new();
    let mut wanted = indexes.into_iter().peekable();
    let mut start = 0u32;
    for part in parts {
        let end = start.saturating_add(part.count());
        while let Some(index) = wanted.next_if(|index| *index < end) {
            let step = scope.step(&part.step);
            let first = if part.members.is_some() { step.member(index - start) } else { step };
            let last = part.last.as_ref().filter(|_| part.members.is_some());
            let id = last.map_or_else(|| first.id(), |last| first.step(last).id());
            slots.push(MemberSlot { index, part, first, id });
        }
        start = end;
    }
    slots
}

impl MemberSlot<'_> {
    /// Returns the tasks whose ends lead to the publication of the one that joins, the nearest first. The first of them that
    /// has a record says whether it was published ([`has_published`]); if none has one, it was.
    pub(crate) fn publishers(&self, waiting: &StepPlace) -> Vec<TaskId> {
        let (scope, part) = (waiting.scope(), self.part);
        let mut publishers = Vec::new();
        if part.members.is_some() && part.last.is_some() {
            publishers.extend(part.between.iter().rev().map(|name| self.first.step(name).id()));
            publishers.push(self.first.id());
        }
        publishers.extend(part.sources.iter().map(|name| scope.step(name).id()));
        publishers.push(scope.id());
        publishers
    }
}

/// Returns whether a task has published what follows it, by its record; `None` if it has none. The mark alone says so: the
/// end before it may be lost.
pub(crate) fn has_published(facts: &Facts) -> Option<bool> {
    (!facts.is_empty()).then(|| facts.has(name::FOLLOWED))
}

/// Returns `true` if what replaces a task is under way, so that nobody can say yet how it ends. `replaced` is the record of
/// that task, `root` that of the task which begins what replaces it, and `last` that of the task which ends in its place.
pub(crate) fn is_replacement_under_way(replaced: &Facts, root: &Facts, last: &Facts) -> bool {
    last.is_empty() && !(root.is_empty() && replaced.has(name::FOLLOWED))
}

/// Returns what the record that counts for a missing member says.
pub(crate) fn missing_member(facts: &Facts, policy: Policy) -> MissingMember {
    if !facts.has(name::END) {
        // A mark that came late may stand where the record was lost before.
        let is_empty = facts.iter().all(|(fact, _)| fact == name::FOLLOWED);
        return if is_empty { MissingMember::NoRecord } else { MissingMember::Awaited };
    }
    let failed = failure_of(facts).is_some();
    if failed && policy == Policy::Hold { MissingMember::Awaited } else { MissingMember::Ended { failed } }
}

/// Decides about a step that waits. `since` is the time since which each look has found lost members, as the message says.
pub(crate) fn decide_lost(
    any_lost: bool,
    since: Option<Timestamp>,
    now: Timestamp,
    patience: Duration,
) -> LostDecision {
    if !any_lost {
        return LostDecision::Wait(None);
    }
    let since = since.unwrap_or(now);
    if now.since(since) >= patience { LostDecision::End } else { LostDecision::Wait(Some(since)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        args::Results,
        record::{End, EndVerdict, Failure, FailureKind, json},
    };

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn part(step: &str, members: Option<u32>, last: Option<&str>, sources: &[&str]) -> JoinPart {
        JoinPart {
            step: step.to_owned(),
            members,
            between: last.map(|_| vec!["t1".to_owned(), "t2".to_owned()]).unwrap_or_default(),
            last: last.map(str::to_owned),
            policy: Policy::Fail,
            sources: sources.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    fn facts(names: &[&'static str]) -> Facts {
        names.iter().map(|&fact| (fact.into(), "{}".into())).collect()
    }

    #[test]
    fn members_are_found_by_their_indexes_and_their_publishers_by_the_plan() {
        let waiting = StepPlace::root("R".try_into().unwrap()).step("end");
        let parts = [
            part("a", None, None, &[]),
            part("many", Some(3), None, &["d", "c"]),
            part("chains", Some(2), Some("t3"), &["d"]),
        ];
        let slots = member_slots(&waiting, &parts, [0, 2, 3, 5]);
        let named: Vec<_> = slots
            .iter()
            .map(|slot| {
                let asked: Vec<String> = slot.publishers(&waiting).iter().map(TaskId::to_string).collect();
                (slot.index, slot.id.to_string(), asked.join(" "))
            })
            .collect();
        let expected = [
            (0, "R.a", "R"),
            (2, "R.many.1", "R.d R.c R"),
            (3, "R.many.2", "R.d R.c R"),
            (5, "R.chains.1.t3", "R.chains.1.t2 R.chains.1.t1 R.chains.1 R.d R"),
        ];
        assert_eq!(named, expected.map(|(index, id, asked)| (index, id.to_owned(), asked.to_owned())));
    }

    #[test]
    fn a_task_has_published_what_follows_it_when_its_record_says_so() {
        assert_eq!(has_published(&Facts::new()), None);
        assert_eq!(has_published(&facts(&[name::SENT])), Some(false), "it has not ended");
        assert_eq!(has_published(&facts(&[name::SENT, name::END])), Some(false), "under way");
        assert_eq!(has_published(&facts(&[name::END, name::FOLLOWED])), Some(true));
        assert_eq!(has_published(&facts(&[name::FOLLOWED])), Some(true), "its end is lost");
    }

    #[test]
    fn what_replaces_a_task_is_lost_only_if_it_was_published_and_nothing_of_it_is_there() {
        let (none, there) = (Facts::new(), facts(&[name::SENT]));
        let (ended, followed) = (facts(&[name::END]), facts(&[name::END, name::FOLLOWED]));
        assert!(is_replacement_under_way(&ended, &none, &none), "not published yet");
        assert!(is_replacement_under_way(&followed, &there, &none), "its last task comes later");
        assert!(!is_replacement_under_way(&followed, &none, &none));
        assert!(!is_replacement_under_way(&ended, &none, &there));
    }

    #[test]
    fn a_member_without_a_record_is_not_one_that_is_awaited_or_has_ended() {
        let ended = |verdict| -> Facts {
            [(name::END.into(), json(&End::without_run(NOW, verdict)))].into_iter().collect()
        };
        let success = ended(EndVerdict::Success { results: Results::default() });
        let failure = ended(EndVerdict::Failure(Failure::new(FailureKind::Error, "no")));
        assert_eq!(missing_member(&Facts::new(), Policy::Fail), MissingMember::NoRecord);
        assert_eq!(missing_member(&facts(&[name::FOLLOWED]), Policy::Fail), MissingMember::NoRecord);
        let again = facts(&[name::FOLLOWED, name::SENT]);
        for under_way in [facts(&[name::SENT]), again] {
            assert_eq!(missing_member(&under_way, Policy::Fail), MissingMember::Awaited);
        }
        assert_eq!(missing_member(&success, Policy::Hold), MissingMember::Ended { failed: false });
        assert_eq!(missing_member(&failure, Policy::Fail), MissingMember::Ended { failed: true });
        assert_eq!(missing_member(&failure, Policy::Hold), MissingMember::Awaited);
    }

    #[test]
    fn lost_members_end_the_step_only_when_every_look_for_a_while_has_found_them_lost() {
        let decide = |lost, since, now| decide_lost(lost, since, now, DAY);
        assert_eq!(decide(false, None, NOW), LostDecision::Wait(None));
        assert_eq!(decide(true, None, NOW), LostDecision::Wait(Some(NOW)));
        let later = NOW.plus(DAY);
        assert_eq!(decide(true, Some(NOW), NOW.plus(DAY / 2)), LostDecision::Wait(Some(NOW)));
        assert_eq!(decide(false, Some(NOW), later), LostDecision::Wait(None), "they are there again");
        assert_eq!(decide(true, Some(NOW), later), LostDecision::End);
    }
}
