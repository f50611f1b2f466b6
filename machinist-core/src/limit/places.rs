//! The places of a limit: what runs at once, as facts of one record. Pure.
//!
//! Each place is a fact with a number below the limit, and its value names the run that holds it. To take a place is to
//! write its fact if it is absent, so that no two runs hold one place. A place of a session that is gone is replaced, just
//! as a task of that session is taken over.

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Commit, Expiry},
    id::{RecordId, RunId, SessionId, TaskId},
    record::{Facts, UNFINISHED_TTL, json},
};

/// Start of the names of places.
const PLACE: &str = "p";

/// Value of a place: the run that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) session: SessionId,
    pub(crate) run: RunId,
    pub(crate) task: TaskId,
    pub(crate) attempt: u32,
}

/// A place that a run holds, or perhaps holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RunPlace {
    pub(crate) record: RecordId,
    pub(crate) number: u32,
    pub(crate) holder: Holder,
}

/// Decision about a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PlaceDecision {
    /// The run holds this place already; only the reply was lost.
    Held(RunPlace),
    /// Commit this: then the run holds the place.
    Take(Box<Commit>, RunPlace),
    /// Another run of the same attempt holds a place, in this session, and may run: the record of the task decides.
    SameTask(SessionId),
    /// Every place is held. These sessions hold them.
    Full(Vec<SessionId>),
}

/// Decides which place a run takes, given the record of the limit. `max` is the number of places, `gone` returns `true` for
/// a run that is known not to run any more, and `chance` chooses among the places.
pub(crate) fn decide_place(
    facts: &Facts,
    record: &RecordId,
    max: u32,
    holder: &Holder,
    gone: impl Fn(&SessionId, &RunId) -> bool,
    chance: u32,
) -> PlaceDecision {
    let place = |number| RunPlace { record: record.clone(), number, holder: holder.clone() };
    let held: Vec<(u32, Option<Holder>)> = places(facts).collect();
    let of_run = |held: &Option<Holder>| held.as_ref().is_some_and(|held| held.run == holder.run);
    if let Some((number, held)) = held.iter().find(|(_, held)| of_run(held)) {
        // Taken under a session that this worker has lost: others may take it, until it is moved.
        let moves = held.as_ref().is_some_and(|held| held.session != holder.session);
        return if moves { replace(facts, place(*number)) } else { PlaceDecision::Held(place(*number)) };
    }
    let is_free = |held: &Option<Holder>| held.as_ref().is_none_or(|held| gone(&held.session, &held.run));
    // A place of this task is taken over if its run has certainly ended: the attempt has, or its session.
    if let Some((number, held)) =
        held.iter().find(|(_, held)| held.as_ref().is_some_and(|h| h.task == holder.task))
    {
        return match held {
            Some(other) if other.attempt >= holder.attempt && !is_free(held) => {
                PlaceDecision::SameTask(other.session.clone())
            }
            _ => replace(facts, place(*number)),
        };
    }
    // After the limit was lowered, the places beyond it count until their runs end.
    let beyond = held.iter().filter(|(number, held)| *number >= max && !is_free(held)).count();
    let usable = max.saturating_sub(u32::try_from(beyond).unwrap_or(u32::MAX));
    let live = |number: u32| held.iter().any(|(other, held)| *other == number && !is_free(held));
    let next = (0..usable).map(|n| (n + chance % usable.max(1)) % usable).find(|number| !live(*number));
    match next {
        Some(number) => replace(facts, place(number)),
        None => {
            let mut sessions: Vec<_> = held.into_iter().filter_map(|(_, held)| Some(held?.session)).collect();
            sessions.sort_unstable();
            sessions.dedup();
            PlaceDecision::Full(sessions)
        }
    }
}

/// Places that nobody uses while tasks wait for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct UnusedPlaces {
    /// Places of runs that are known not to run any more. The worker that frees one wakes a task that waits.
    pub(crate) abandoned: Vec<RunPlace>,
    /// Number of places that nobody holds. Each of them has woken a task when it was freed, unless the process died just
    /// then.
    pub(crate) free: u32,
}

/// Returns the places of a limit that nobody uses, given its record. `max` is the number of places, and `gone` returns `true`
/// for a run that is known not to run any more.
pub(crate) fn unused_places(
    facts: &Facts,
    record: &RecordId,
    max: u32,
    gone: impl Fn(&SessionId, &RunId) -> bool,
) -> UnusedPlaces {
    let mut abandoned = Vec::new();
    let mut live = 0_u32;
    for (number, holder) in places(facts) {
        let Some(holder) = holder else { continue };
        if gone(&holder.session, &holder.run) {
            abandoned.push(RunPlace { record: record.clone(), number, holder });
        } else {
            live += 1;
        }
    }
    let held = live.saturating_add(u32::try_from(abandoned.len()).unwrap_or(u32::MAX));
    UnusedPlaces { abandoned, free: max.saturating_sub(held) }
}

/// Returns the decision to write a place, in the place of what the record holds there.
fn replace(facts: &Facts, place: RunPlace) -> PlaceDecision {
    let name = fact_of(place.number);
    let mut commit = Commit::new(place.record.clone());
    match facts.get(&name) {
        Some(value) => {
            commit.require = vec![(name.clone().into(), value.clone())];
            commit.drop = vec![name.clone().into()];
        }
        None => commit.unless = vec![name.clone().into()],
    }
    commit.facts = vec![(name.into(), json(&place.holder))];
    commit.expiry = Expiry::After(UNFINISHED_TTL);
    PlaceDecision::Take(Box::new(commit), place)
}

impl RunPlace {
    /// Creates the commit that frees the place, and wakes those who wait for it. It is refused if another run holds the
    /// place.
    pub(crate) fn free(&self) -> Commit {
        let name = fact_of(self.number);
        let mut commit = Commit::new(self.record.clone());
        commit.require = vec![(name.clone().into(), json(&self.holder))];
        commit.drop = vec![name.into()];
        commit.wake = true;
        commit
    }

    /// Creates the commit by which a run whose session was lost moves its place into a new session.
    pub(crate) fn adopt(&self, session: &SessionId) -> (Commit, Self) {
        let name = fact_of(self.number);
        let adopted =
            Self { holder: Holder { session: session.clone(), ..self.holder.clone() }, ..self.clone() };
        let mut commit = Commit::new(self.record.clone());
        commit.require = vec![(name.clone().into(), json(&self.holder))];
        commit.drop = vec![name.clone().into()];
        commit.facts = vec![(name.into(), json(&adopted.holder))];
        commit.expiry = Expiry::After(UNFINISHED_TTL);
        (commit, adopted)
    }

    /// Creates the commit that writes a place again that the record has lost.
    pub(crate) fn restore(&self) -> Commit {
        let name = fact_of(self.number);
        let mut commit = Commit::new(self.record.clone());
        commit.equal_or_absent = vec![(name.into(), json(&self.holder))];
        commit.expiry = Expiry::After(UNFINISHED_TTL);
        commit
    }

    /// Returns `true` if the record holds nothing in this place.
    pub(crate) fn is_lost(&self, facts: &Facts) -> bool {
        !facts.has(&fact_of(self.number))
    }

    /// Returns `true` if the record names this run in this place, under any session.
    pub(crate) fn is_of_run(&self, facts: &Facts) -> bool {
        facts.read::<Holder>(&fact_of(self.number)).is_some_and(|held| held.run == self.holder.run)
    }
}

/// Returns the runs that hold places. A place whose value cannot be read has no holder.
pub(crate) fn places(facts: &Facts) -> impl Iterator<Item = (u32, Option<Holder>)> {
    facts.iter().filter_map(|(name, value)| {
        let number = name.strip_prefix(PLACE)?.parse().ok()?;
        Some((number, serde_json::from_slice(value).ok()))
    })
}

fn fact_of(number: u32) -> String {
    format!("{PLACE}{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RecordKind;

    fn record() -> RecordId {
        RecordId::new(RecordKind::Limit, "run/task:t")
    }

    fn holder(task: &str, run: &str, session: &str) -> Holder {
        Holder { session: session.into(), run: run.into(), task: task.try_into().unwrap(), attempt: 1 }
    }

    fn decide(facts: &Facts, max: u32, holder: &Holder, gone: &[&str]) -> PlaceDecision {
        let gone = |session: &SessionId, _: &RunId| gone.contains(&session.as_str());
        decide_place(facts, &record(), max, holder, gone, 0)
    }

    fn take(facts: &mut Facts, max: u32, holder: &Holder, gone: &[&str]) -> Option<RunPlace> {
        match decide(facts, max, holder, gone) {
            PlaceDecision::Take(commit, place) => commit.apply(facts).then_some(place),
            _ => None,
        }
    }

    #[test]
    fn no_more_than_the_limit_hold_places() {
        let mut facts = Facts::new();
        let a = take(&mut facts, 2, &holder("a", "1", "s1"), &[]).unwrap();
        assert!(take(&mut facts, 2, &holder("b", "2", "s1"), &[]).is_some());
        let c = holder("c", "3", "s2");
        assert_eq!(decide(&facts, 2, &c, &[]), PlaceDecision::Full(vec!["s1".into()]));
        assert!(a.free().apply(&mut facts));
        assert!(take(&mut facts, 2, &c, &[]).is_some());
        assert!(!a.free().apply(&mut facts), "it belongs to another run now");
    }

    #[test]
    fn two_that_see_the_same_record_do_not_both_take_a_place() {
        let mut facts = Facts::new();
        let [one, two] = [holder("a", "1", "s1"), holder("b", "2", "s2")].map(|holder| {
            let PlaceDecision::Take(commit, _) = decide(&facts, 1, &holder, &[]) else { panic!("free") };
            commit
        });
        assert!(one.apply(&mut facts) && !two.apply(&mut facts) && !one.apply(&mut facts));
        assert!(
            matches!(decide(&facts, 1, &holder("a", "1", "s1"), &[]), PlaceDecision::Held(_)),
            "a lost reply"
        );
    }

    #[test]
    fn a_place_of_a_session_that_is_gone_is_free() {
        let mut facts = Facts::new();
        let dead = take(&mut facts, 1, &holder("a", "1", "s1"), &[]).unwrap();
        let b = holder("b", "2", "s2");
        assert!(take(&mut facts, 1, &b, &[]).is_none());
        assert!(take(&mut facts, 1, &b, &["s1"]).is_some());
        assert!(!dead.free().apply(&mut facts) && !dead.adopt(&"s3".into()).0.apply(&mut facts));
        assert!(!dead.is_lost(&facts) && !dead.is_of_run(&facts));
    }

    #[test]
    fn a_run_moves_its_place_into_a_new_session() {
        let mut facts = Facts::new();
        let place = take(&mut facts, 1, &holder("a", "1", "s1"), &[]).unwrap();
        let (commit, adopted) = place.adopt(&"s2".into());
        assert!(commit.apply(&mut facts) && adopted.is_of_run(&facts));
        assert!(take(&mut facts, 1, &holder("b", "2", "s3"), &["s1"]).is_none(), "s2 lives");
        let mut lost = Facts::new();
        assert!(adopted.is_lost(&lost) && adopted.restore().apply(&mut lost) && adopted.is_of_run(&lost));
    }

    #[test]
    fn a_place_whose_reply_was_lost_with_its_session_is_moved_before_the_run_starts() {
        let mut facts = Facts::new();
        let run = holder("a", "1", "s1");
        assert!(take(&mut facts, 1, &run, &[]).is_some());
        assert!(matches!(decide(&facts, 1, &run, &[]), PlaceDecision::Held(_)));
        let moved = take(&mut facts, 1, &holder("a", "1", "s2"), &[]).unwrap();
        assert!(take(&mut facts, 1, &holder("b", "2", "s3"), &["s1"]).is_none(), "s2 lives");
        assert!(moved.free().apply(&mut facts));
    }

    #[test]
    fn a_task_holds_one_place() {
        let mut facts = Facts::new();
        assert!(take(&mut facts, 2, &holder("a", "1", "s1"), &[]).is_some());
        let again = holder("a", "2", "s2");
        assert_eq!(decide(&facts, 2, &again, &[]), PlaceDecision::SameTask("s1".into()));
        assert!(take(&mut facts.clone(), 2, &again, &["s1"]).is_some_and(|place| place.number == 0));
        let next_attempt = Holder { attempt: 2, ..again };
        assert!(take(&mut facts, 2, &next_attempt, &[]).is_some_and(|place| place.number == 0));
    }

    #[test]
    fn after_the_limit_was_lowered_the_places_beyond_it_count() {
        let mut facts = Facts::new();
        let taken = ["a", "b", "c"].map(|task| take(&mut facts, 3, &holder(task, task, "s1"), &[]).unwrap());
        assert!(taken[0].free().apply(&mut facts) && taken[1].free().apply(&mut facts));
        assert!(take(&mut facts, 1, &holder("d", "4", "s2"), &[]).is_none(), "c runs");
        assert!(take(&mut facts, 2, &holder("d", "4", "s2"), &[]).is_some());
        assert!(take(&mut facts, 2, &holder("e", "5", "s2"), &[]).is_none());
        assert!(taken[2].free().apply(&mut facts));
        assert!(take(&mut facts, 2, &holder("e", "5", "s2"), &[]).is_some());
        assert!(take(&mut facts, 0, &holder("f", "6", "s2"), &[]).is_none());
    }

    #[test]
    fn places_that_nobody_uses_are_those_of_the_dead_and_those_that_nobody_holds() {
        let mut facts = Facts::new();
        let unused = |facts: &Facts, max, gone: &[&str]| {
            let gone = |session: &SessionId, _: &RunId| gone.contains(&session.as_str());
            unused_places(facts, &record(), max, gone)
        };
        let of_dead = take(&mut facts, 3, &holder("a", "1", "s1"), &[]).unwrap();
        take(&mut facts, 3, &holder("b", "2", "s2"), &[]).unwrap();
        assert_eq!(unused(&facts, 3, &[]), UnusedPlaces { abandoned: vec![], free: 1 });
        let dead = UnusedPlaces { abandoned: vec![of_dead.clone()], free: 1 };
        assert_eq!(unused(&facts, 3, &["s1"]), dead);
        assert!(of_dead.free().apply(&mut facts));
        assert_eq!(unused(&facts, 3, &["s1"]), UnusedPlaces { abandoned: vec![], free: 2 });
        assert_eq!(unused(&facts, 1, &["s1"]), UnusedPlaces::default(), "the limit was lowered");
        facts.put("p1", "spoiled");
        assert!(unused(&facts, 3, &[]).free >= 2, "what cannot be read has no holder");
    }

    #[test]
    fn what_another_program_wrote_is_no_holder() {
        let mut facts = Facts::new();
        facts.put("p0", "spoiled");
        assert!(take(&mut facts, 1, &holder("a", "1", "s1"), &[]).is_some());
    }
}
