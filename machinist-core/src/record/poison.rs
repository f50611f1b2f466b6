//! Suspicion against tasks that may cause processes to die.
//!
//! A process that dies also ends the starts of innocent tasks beside it, so one start without an outcome proves
//! nothing. Several of them make a task a suspect. A suspect runs alone in its process; if processes still die, the
//! task is the cause.

use std::collections::BTreeMap;

use super::{
    facts::{Facts, Start, name},
    fold::starts,
};
use crate::id::RunId;

/// Number of runs without an outcome after which a task runs alone.
const CRASHES_OF_A_SUSPECT: usize = 2;
/// Number of such runs alone after which a task no longer runs.
const CRASHES_ALONE_OF_A_LOST_TASK: usize = 3;

/// Conclusion about a task from its runs without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspicion {
    None,
    /// The task may be the cause.
    Suspect,
    /// The task is the cause.
    Lost,
}

/// Starts of one run, summarized.
#[derive(Default)]
struct RunSummary {
    alone: bool,
    /// `true` if the run was handed back.
    returned: bool,
}

/// Evaluates the starts of an attempt that nobody runs any more. An adopted run counts once, and a run that was handed
/// back does not count.
pub(crate) fn suspicion(facts: &Facts, attempt: u32) -> Suspicion {
    let mut runs: BTreeMap<RunId, RunSummary> = BTreeMap::new();
    let starts = starts(facts, attempt);
    if starts.contains_key(&u32::MAX) {
        // It is not counted, but somebody wrote it: no start can follow it.
        return Suspicion::Lost;
    }
    for (start, (_, fact)) in starts {
        let Ok(fact) = serde_json::from_slice::<Start>(&fact) else { continue };
        let run = runs.entry(fact.run).or_default();
        run.alone |= fact.alone;
        run.returned |= facts.has(&name::returned(attempt, start));
    }
    let crashed: Vec<RunSummary> = runs.into_values().filter(|run| !run.returned).collect();
    if crashed.iter().filter(|run| run.alone).count() >= CRASHES_ALONE_OF_A_LOST_TASK {
        Suspicion::Lost
    } else if crashed.len() >= CRASHES_OF_A_SUSPECT {
        Suspicion::Suspect
    } else {
        Suspicion::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Timestamp, record::json};

    fn put_start(facts: &mut Facts, start: u32, run: &str, alone: bool) {
        let fact = Start {
            run: run.into(),
            session: "s".into(),
            worker: "w".into(),
            token: u64::from(start),
            received_at: Timestamp::from_micros(1),
            started_at: Timestamp::from_micros(1),
            alone,
        };
        facts.put(name::start(1, start), json(&fact));
    }

    #[test]
    fn tasks_beside_a_crash_are_suspects_and_never_lost() {
        let mut facts = Facts::new();
        assert_eq!(suspicion(&facts, 1), Suspicion::None);
        put_start(&mut facts, 1, "a", false);
        assert_eq!(suspicion(&facts, 1), Suspicion::None);
        for start in 2..20 {
            put_start(&mut facts, start, &format!("b{start}"), false);
            assert_eq!(suspicion(&facts, 1), Suspicion::Suspect);
        }
        assert_eq!(suspicion(&facts, 2), Suspicion::None, "the next attempt begins from zero");
    }

    #[test]
    fn three_crashes_alone_make_a_task_lost() {
        let mut facts = Facts::new();
        for (start, alone) in [(1, false), (2, false), (3, true), (4, true)] {
            put_start(&mut facts, start, &format!("r{start}"), alone);
        }
        assert_eq!(suspicion(&facts, 1), Suspicion::Suspect);
        put_start(&mut facts, 5, "r5", true);
        assert_eq!(suspicion(&facts, 1), Suspicion::Lost);
    }

    #[test]
    fn adoption_and_hand_back_are_not_crashes() {
        let mut facts = Facts::new();
        for start in 1..5 {
            put_start(&mut facts, start, "adopted", false);
        }
        put_start(&mut facts, 5, "returned", true);
        facts.put(name::returned(1, 5), "returned");
        assert_eq!(suspicion(&facts, 1), Suspicion::None);
    }
}
