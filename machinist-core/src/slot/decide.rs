//! The decision of a process about the slots of a set, given the record of the set. Pure.
//!
//! The record names the processes that take part (`m:SESSION`), and the holder and the epoch of each slot (`s:NUMBER`). A
//! slot is taken by a compare-and-swap of its fact, only while nobody holds it or the session of its holder is gone. The
//! epoch stays with a slot that is handed back, so that epochs only rise.
//!
//! With k processes, each holds n/k slots, rounded down, and n mod k of them hold one more. One that holds less takes the lowest
//! free ones. If none is free it asks for some: its fact `w:SESSION` holds the greatest epoch that it has seen. A process that
//! holds more hands its highest slot back if somebody asks who has seen the epochs of all its slots. So slots move only to
//! processes that hold too few.
//!
//! A process that has just died counts until its session is gone, and would keep free slots that only it may take. So a slot that
//! stays free for too long is taken by any process. The dead one cannot have seen the new epoch, so it cannot ask for the slot.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Layout, SlotInfo};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{RecordId, SessionId},
    record::{FactName, Facts, UNFINISHED_TTL, fencing_token, json},
};

/// Fact that holds the layout.
const LAYOUT: &str = "layout";
/// Start of the facts of the processes that take part.
const MEMBER: &str = "m:";
/// Start of the facts of processes that ask for slots.
const WANT: &str = "w:";
/// Start of the facts of slots.
const SLOT: &str = "s:";
/// Maximum number of other sessions that one process watches. Each watches those that follow its own in the order of the
/// ids, so each session is watched by somebody who lives.
const MAX_WATCHED: usize = 8;

/// Value of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SlotState {
    /// Epoch of the last holder.
    epoch: u64,
    holder: Option<SlotHolder>,
}

/// Process that holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SlotHolder {
    session: SessionId,
    worker: String,
    since: Timestamp,
}

/// Process that takes part in a role.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) record: &'a RecordId,
    pub(crate) layout: &'a Layout,
    pub(crate) session: &'a SessionId,
    pub(crate) worker: &'a str,
    /// Slots that the process does not want for now. It hands them back.
    pub(crate) unwanted: &'a BTreeSet<u32>,
    /// Slots that the process was about to hand back, with their epochs. It never runs them with these epochs again: the
    /// commit that frees them may still arrive.
    pub(crate) given_up: &'a BTreeMap<u32, u64>,
    /// Greatest epoch that the process has seen.
    pub(crate) greatest_epoch: u64,
    /// Slots that have been free for too long. The process takes one of them also if it holds its part already.
    pub(crate) overdue: &'a BTreeSet<u32>,
}

/// Decision of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotDecision {
    /// Slots that the process holds, with their epochs.
    pub(crate) held: BTreeMap<u32, u64>,
    /// Slots that nobody holds.
    pub(crate) free: BTreeSet<u32>,
    /// Sessions to watch, because their slots are free when they are gone.
    pub(crate) watched: Vec<SessionId>,
    /// Greatest epoch in the record.
    pub(crate) greatest_epoch: u64,
    pub(crate) step: SlotStep,
}

/// Next step of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SlotStep {
    /// Commit this, and decide again.
    Commit(Box<Commit>),
    /// End what runs for this slot, commit this, and decide again.
    HandBack(u32, Box<Commit>),
    /// Nothing has to be done until the record changes or a session is gone.
    Nothing,
    /// Processes with another layout hold the slots: wait until they have gone.
    OtherLayout,
}

/// The record of a set, without the processes that are gone.
struct SetStanding<'a> {
    facts: &'a Facts,
    /// Facts of the members that are gone.
    gone: Vec<FactName>,
    members: BTreeSet<SessionId>,
    /// Greatest epoch that each process that asks for slots has seen.
    wants: BTreeMap<SessionId, u64>,
    slots: BTreeMap<u32, SlotState>,
}

impl<'a> SetStanding<'a> {
    fn read(facts: &'a Facts, gone: impl Fn(&SessionId) -> bool) -> Self {
        let mut this = Self {
            facts,
            gone: Vec::new(),
            members: BTreeSet::new(),
            wants: BTreeMap::new(),
            slots: BTreeMap::new(),
        };
        for (name, _) in facts.iter() {
            if let Some(session) = name.strip_prefix(MEMBER) {
                let session = SessionId::from(session);
                if gone(&session) {
                    this.gone.push(name.to_owned().into());
                } else {
                    this.members.insert(session);
                }
            } else if let Some(session) = name.strip_prefix(WANT) {
                let session = SessionId::from(session);
                if gone(&session) {
                    this.gone.push(name.to_owned().into());
                } else {
                    this.wants.insert(session, facts.read(name).unwrap_or(0));
                }
            } else if let Some(number) = name.strip_prefix(SLOT).and_then(|number| number.parse().ok()) {
                // A slot whose value cannot be read has no holder.
                let mut slot: SlotState = facts.read(name).unwrap_or(SlotState { epoch: 0, holder: None });
                slot.holder.take_if(|holder| gone(&holder.session));
                this.slots.insert(number, slot);
            }
        }
        this
    }

    fn holder(&self, slot: u32) -> Option<&SessionId> {
        self.slots.get(&slot)?.holder.as_ref().map(|holder| &holder.session)
    }

    fn greatest_epoch(&self) -> u64 {
        self.slots.values().map(|slot| slot.epoch).max().unwrap_or(0)
    }

    /// Returns the greatest epoch that another process has seen which asks for slots.
    fn asked_of(&self, own: &SessionId) -> Option<u64> {
        let others =
            self.wants.iter().filter(|(session, _)| *session != own && self.members.contains(session));
        others.map(|(_, seen)| *seen).max()
    }

    /// Returns the sessions to watch.
    fn watched(&self, own: &SessionId) -> Vec<SessionId> {
        let holders = self.slots.values().filter_map(|slot| Some(&slot.holder.as_ref()?.session));
        let all: BTreeSet<&SessionId> =
            self.members.iter().chain(holders).filter(|one| *one != own).collect();
        let (before, after): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| *one < own);
        after.into_iter().chain(before).take(MAX_WATCHED).cloned().collect()
    }

    /// Starts a commit, which forgets the members that are gone.
    fn commit(&self, record: &RecordId) -> Commit {
        let mut commit = Commit::new(record.clone());
        commit.drop.clone_from(&self.gone);
        commit.expiry = Expiry::After(UNFINISHED_TTL);
        commit.wake = true;
        commit
    }

    /// Lets a commit replace the value of a slot, as it was read.
    fn replace(&self, commit: &mut Commit, number: u32, slot: &SlotState) {
        let name = FactName::from(format!("{SLOT}{number}"));
        self.guard(commit, number);
        if self.facts.has(&name) {
            commit.drop.push(name.clone());
        }
        commit.facts.push((name, json(slot)));
    }

    /// Lets a commit be refused if a slot has changed.
    fn guard(&self, commit: &mut Commit, number: u32) {
        let name = FactName::from(format!("{SLOT}{number}"));
        match self.facts.get(&name) {
            Some(value) => commit.require.push((name, value.clone())),
            None => commit.unless.push(name),
        }
    }
}

/// Decides what a process does. `gone` returns `true` for a session that is known to be gone.
pub(crate) fn decide(
    facts: &Facts,
    candidate: &Candidate<'_>,
    gone: impl Fn(&SessionId) -> bool,
    now: Timestamp,
) -> SlotDecision {
    let standing = SetStanding::read(facts, gone);
    let mut decision = SlotDecision {
        held: BTreeMap::new(),
        free: (0..candidate.layout.slots).filter(|number| standing.holder(*number).is_none()).collect(),
        watched: standing.watched(candidate.session),
        greatest_epoch: standing.greatest_epoch(),
        step: SlotStep::Nothing,
    };
    let layout = json(candidate.layout);
    if facts.get(LAYOUT) != Some(&layout) {
        decision.step = with_layout(&standing, candidate, layout);
        return decision;
    }
    let own =
        |slot: &SlotState| slot.holder.as_ref().is_some_and(|holder| holder.session == *candidate.session);
    let held = standing.slots.iter().filter(|(_, slot)| own(slot));
    decision.held = held.map(|(number, slot)| (*number, slot.epoch)).collect();
    decision.step = step(&standing, candidate, layout, &decision.held, now);
    decision
}

/// Decides about a record with another layout, or none.
fn with_layout(standing: &SetStanding<'_>, candidate: &Candidate<'_>, layout: Bytes) -> SlotStep {
    let takes_part = standing.members.contains(candidate.session);
    if takes_part && let Some(commit) = leave(standing.facts, candidate.record, candidate.session) {
        return SlotStep::Commit(Box::new(commit));
    }
    let others = standing.members.iter().any(|session| session != candidate.session);
    if others || standing.slots.values().any(|slot| slot.holder.is_some()) {
        return SlotStep::OtherLayout;
    }
    let mut commit = standing.commit(candidate.record);
    match standing.facts.get(LAYOUT) {
        Some(old) => {
            // Nobody may have taken a slot meanwhile.
            let slots = serde_json::from_slice(old).map_or(0, |old: Layout| old.slots);
            for number in (0..slots).chain(standing.slots.keys().copied().filter(|number| *number >= slots)) {
                standing.guard(&mut commit, number);
            }
            commit.require.push((LAYOUT.into(), old.clone()));
            commit.drop.push(LAYOUT.into());
        }
        None => commit.unless.push(LAYOUT.into()),
    }
    commit.facts = vec![(LAYOUT.into(), layout), member(candidate)];
    SlotStep::Commit(Box::new(commit))
}

fn member(candidate: &Candidate<'_>) -> (FactName, Bytes) {
    (format!("{MEMBER}{}", candidate.session).into(), json(&candidate.worker))
}

/// Decides about a record with the layout of the process.
fn step(
    standing: &SetStanding<'_>,
    candidate: &Candidate<'_>,
    layout: Bytes,
    held: &BTreeMap<u32, u64>,
    now: Timestamp,
) -> SlotStep {
    let mut commit = standing.commit(candidate.record);
    commit.require.push((LAYOUT.into(), layout));
    let own = member(candidate);
    if !standing.facts.has(&own.0) {
        commit.facts.push(own);
        return SlotStep::Commit(Box::new(commit));
    }
    commit.require.push(own);
    let (count, share) = (held.len(), share(standing, candidate));
    let is_unwanted = |(number, epoch): &(&u32, &u64)| {
        candidate.unwanted.contains(number) || candidate.given_up.get(number) == Some(epoch)
    };
    let unwanted = held.iter().rev().find(is_unwanted).map(|(number, _)| number);
    let is_asked = standing.asked_of(candidate.session) >= held.values().max().copied();
    let excess = held.keys().next_back().filter(|_| count > share && is_asked);
    if let Some(number) = unwanted.or(excess).copied() {
        let free = SlotState { epoch: held.get(&number).copied().unwrap_or(0), holder: None };
        standing.replace(&mut commit, number, &free);
        return SlotStep::HandBack(number, Box::new(commit));
    }
    let greatest = candidate.greatest_epoch.max(standing.greatest_epoch());
    let holder =
        SlotHolder { session: candidate.session.clone(), worker: candidate.worker.to_owned(), since: now };
    let taken = SlotState { epoch: fencing_token(greatest, now), holder: Some(holder) };
    let free = (0..candidate.layout.slots).filter(|number| standing.holder(*number).is_none());
    let wanted: Vec<u32> = free.filter(|number| !candidate.unwanted.contains(number)).collect();
    let overdue = wanted.iter().filter(|number| candidate.overdue.contains(number)).take(1);
    let missing = share.saturating_sub(count);
    let taken_now: Vec<u32> = match missing {
        0 => overdue.copied().collect(),
        missing => wanted.iter().take(missing).copied().collect(),
    };
    for number in &taken_now {
        standing.replace(&mut commit, *number, &taken);
    }
    // Whoever takes a slot now looks again after that.
    if taken_now.is_empty() {
        ask(standing, &mut commit, candidate.session, missing > 0);
    }
    if commit.facts.is_empty() && commit.drop.is_empty() {
        return SlotStep::Nothing;
    }
    SlotStep::Commit(Box::new(commit))
}

/// Adds to a commit that a process asks for slots, or does not ask any more, unless the record says so.
fn ask(standing: &SetStanding<'_>, commit: &mut Commit, own: &SessionId, asks: bool) {
    let (asked, seen) = (standing.wants.get(own).copied(), standing.greatest_epoch());
    if asked == asks.then_some(seen) {
        return;
    }
    let name = FactName::from(format!("{WANT}{own}"));
    if asked.is_some() {
        commit.drop.push(name.clone());
    }
    if asks {
        commit.facts.push((name, json(&seen)));
    }
}

/// Returns the number of slots that a member may hold now.
fn share(standing: &SetStanding<'_>, candidate: &Candidate<'_>) -> usize {
    let slots = candidate.layout.slots as usize;
    let members = standing.members.len().max(1);
    let (fair, extra) = (slots / members, slots % members);
    let count = |member: &SessionId| {
        let held = standing.slots.values().filter_map(|slot| slot.holder.as_ref());
        held.filter(|holder| holder.session == *member).count()
    };
    // Those that hold more than the fair number, in the order of their ids: only the first of them keep one more.
    let own = candidate.session;
    let others_above =
        |others: &mut dyn Iterator<Item = &SessionId>| others.filter(|one| count(one) > fair).count();
    let before = if count(own) > fair {
        others_above(&mut standing.members.iter().take_while(|one| *one != own))
    } else {
        others_above(&mut standing.members.iter().filter(|one| *one != own))
    };
    fair + usize::from(before < extra)
}

/// Creates the commit by which a process stops taking part and frees its slots. `None` if it does not take part.
pub(crate) fn leave(facts: &Facts, record: &RecordId, session: &SessionId) -> Option<Commit> {
    let standing = SetStanding::read(facts, |_| false);
    let mut commit = standing.commit(record);
    let name = FactName::from(format!("{MEMBER}{session}"));
    for (number, slot) in &standing.slots {
        if standing.holder(*number) == Some(session) {
            standing.replace(&mut commit, *number, &SlotState { epoch: slot.epoch, holder: None });
        }
    }
    if commit.facts.is_empty() && !facts.has(&name) {
        return None;
    }
    commit.drop.push(name);
    if standing.wants.contains_key(session) {
        commit.drop.push(format!("{WANT}{session}").into());
    }
    Some(commit)
}

/// Returns the slots of a set as the record has them, with holders that may be gone. Empty if there is no set.
pub(crate) fn view(facts: &Facts) -> Vec<SlotInfo> {
    let Some(mut layout) = facts.read::<Layout>(LAYOUT) else { return Vec::new() };
    layout.slots = layout.slots.min(super::MAX_SLOTS);
    let mut slots = SetStanding::read(facts, |_| false).slots;
    let slot = |number: u32| {
        let SlotState { epoch, holder } =
            slots.remove(&number).unwrap_or(SlotState { epoch: 0, holder: None });
        let parameter = layout.parameters.get(number as usize).cloned();
        let since = holder.as_ref().map(|holder| holder.since);
        let incarnation = holder.as_ref().map(|holder| holder.session.to_string());
        SlotInfo {
            slot: number,
            parameter,
            worker: holder.map(|holder| holder.worker),
            incarnation,
            epoch,
            since,
        }
    };
    (0..layout.slots).map(slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::{RoleKind, RoleName};

    fn record() -> RecordId {
        RoleName::checked(RoleKind::Shards, "poll".to_owned()).unwrap().record()
    }

    fn layout(slots: u32) -> Layout {
        Layout::checked(slots, vec![]).unwrap()
    }

    /// Lets a process decide and act until it has nothing to do. Returns its slots and the number that it has handed back.
    fn settle(facts: &mut Facts, session: &str, slots: u32, gone: &[&str]) -> (Vec<u32>, usize) {
        settle_overdue(facts, session, slots, gone, &[])
    }

    fn settle_overdue(
        facts: &mut Facts,
        session: &str,
        slots: u32,
        gone: &[&str],
        overdue: &[u32],
    ) -> (Vec<u32>, usize) {
        let (record, layout, session) = (record(), layout(slots), SessionId::from(session));
        let mut handed_back = 0;
        for _ in 0..100 {
            let (unwanted, given_up, overdue) =
                (BTreeSet::new(), BTreeMap::new(), overdue.iter().copied().collect());
            let candidate = Candidate {
                record: &record,
                layout: &layout,
                session: &session,
                worker: session.as_str(),
                unwanted: &unwanted,
                given_up: &given_up,
                greatest_epoch: 0,
                overdue: &overdue,
            };
            let gone = |session: &SessionId| gone.contains(&session.as_str());
            let decision = decide(facts, &candidate, gone, Timestamp::from_micros(1000));
            match decision.step {
                SlotStep::Commit(commit) => assert!(commit.apply(facts)),
                SlotStep::HandBack(_, commit) => {
                    handed_back += 1;
                    assert!(commit.apply(facts));
                }
                SlotStep::Nothing | SlotStep::OtherLayout => {
                    return (decision.held.into_keys().collect(), handed_back);
                }
            }
        }
        panic!("it never has nothing to do: {facts:?}");
    }

    #[test]
    fn slots_are_shared_with_as_few_moves_as_possible() {
        let mut facts = Facts::new();
        assert_eq!(settle(&mut facts, "a", 8, &[]), ((0..8).collect(), 0));
        assert_eq!(settle(&mut facts, "b", 8, &[]), (vec![], 0));
        assert_eq!(settle(&mut facts, "a", 8, &[]), (vec![0, 1, 2, 3], 4));
        assert_eq!(settle(&mut facts, "b", 8, &[]), (vec![4, 5, 6, 7], 0));
        assert_eq!(settle(&mut facts, "c", 8, &[]), (vec![], 0));
        assert_eq!(settle(&mut facts, "a", 8, &[]), (vec![0, 1, 2], 1));
        assert_eq!(settle(&mut facts, "b", 8, &[]), (vec![4, 5, 6], 1));
        assert_eq!(settle(&mut facts, "c", 8, &[]), (vec![3, 7], 0));
        // Nothing moves where nothing has to.
        for (session, held) in [("a", vec![0, 1, 2]), ("b", vec![4, 5, 6]), ("c", vec![3, 7])] {
            assert_eq!(settle(&mut facts, session, 8, &[]), (held, 0));
        }
        // The slots of one that is gone are taken over, and nobody hands anything back.
        assert_eq!(settle(&mut facts, "a", 8, &["b"]), (vec![0, 1, 2, 4], 0));
        assert_eq!(settle(&mut facts, "c", 8, &["b"]), (vec![3, 5, 6, 7], 0));
    }

    /// `c` is dead, nobody knows, and only `c` may take the free slots.
    #[test]
    fn what_stays_free_is_taken_by_any_process_and_kept_until_a_live_one_asks() {
        let mut facts = Facts::new();
        for session in ["a", "b", "a", "b", "c", "a", "b"] {
            settle(&mut facts, session, 6, &[]);
        }
        // `c` has asked, and dies before it takes what the others have handed back.
        assert_eq!(settle(&mut facts, "a", 6, &[]), (vec![0, 1], 0));
        assert_eq!(settle_overdue(&mut facts, "a", 6, &[], &[2, 5]), (vec![0, 1, 2, 5], 0));
        assert_eq!(settle(&mut facts, "a", 6, &[]), (vec![0, 1, 2, 5], 0), "nobody asks who has seen that");
        // A process that lives asks again, and gets its part.
        settle(&mut facts, "c", 6, &[]);
        assert_eq!(settle(&mut facts, "a", 6, &[]), (vec![0, 1], 2));
        assert_eq!(settle(&mut facts, "c", 6, &[]), (vec![2, 5], 0));
        assert!(!facts.iter().any(|(name, _)| name.starts_with(WANT)), "nobody asks any more: {facts:?}");
    }

    #[test]
    fn more_processes_than_slots_hold_one_or_none() {
        let mut facts = Facts::new();
        assert_eq!(settle(&mut facts, "b", 1, &[]).0, [0]);
        assert!(settle(&mut facts, "a", 1, &[]).0.is_empty());
        assert_eq!(settle(&mut facts, "b", 1, &[]), (vec![0], 0), "the first one stays");
        let first = view(&facts)[0].epoch;
        assert_eq!(settle(&mut facts, "a", 1, &["b"]).0, [0]);
        assert!(view(&facts)[0].epoch > first);
    }

    #[test]
    fn a_process_with_another_layout_waits_until_the_others_have_gone() {
        let mut facts = Facts::new();
        assert_eq!(settle(&mut facts, "a", 2, &[]).0, [0, 1]);
        let before = facts.clone();
        assert!(settle(&mut facts, "b", 3, &[]).0.is_empty());
        assert_eq!(facts, before);
        let epoch = view(&facts)[0].epoch;
        assert!(leave(&facts, &record(), &"a".into()).unwrap().apply(&mut facts));
        assert!(leave(&facts, &record(), &"a".into()).is_none());
        assert_eq!(settle(&mut facts, "b", 3, &[]).0, [0, 1, 2]);
        assert!(view(&facts).iter().all(|slot| slot.epoch > epoch && slot.worker.as_deref() == Some("b")));
        // One that took a slot at the same time wins.
        assert_eq!(settle(&mut facts, "a", 2, &["b"]).0, [0, 1], "b is gone");
    }

    #[test]
    fn what_another_program_wrote_is_no_holder() {
        let mut facts = Facts::new();
        facts.put("s:0", "spoiled");
        facts.put("layout", "spoiled");
        assert_eq!(settle(&mut facts, "a", 1, &[]).0, [0]);
    }

    #[test]
    fn each_session_is_watched_by_one_that_lives() {
        let mut facts = Facts::new();
        let names: Vec<String> = (10..40).map(|n| format!("s{n}")).collect();
        for name in &names {
            settle(&mut facts, name, 4, &[]);
        }
        let standing = SetStanding::read(&facts, |_| false);
        let watched: Vec<_> = standing.watched(&"s38".into()).iter().map(SessionId::to_string).collect();
        assert_eq!(watched, ["s39", "s10", "s11", "s12", "s13", "s14", "s15", "s16"]);
    }
}
