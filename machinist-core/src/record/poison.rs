//! Which tasks may be the reason why processes die.
//!
//! A process that dies takes the starts of its innocent neighbours with it, so starts that came to nothing prove
//! nothing. They make a task a suspect. A suspect runs alone in its process; if processes die even so, it is
//! the one.

use std::collections::BTreeMap;

use super::{
    facts::{Facts, Start, name},
    fold::starts,
};
use crate::id::RunId;

/// After so many runs that came to nothing a task runs alone.
const SUSPECT_AFTER: usize = 2;
/// After so many of them alone it is not run any more.
const LOST_AFTER: usize = 3;

/// What the runs that came to nothing say about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspicion {
    None,
    /// It may be the reason.
    Suspect,
    /// It is.
    Lost,
}

/// Weighs the starts of an attempt that nobody runs any more. An adopted run counts once, and one that was handed
/// back not at all.
pub(crate) fn suspicion(facts: &Facts, attempt: u32) -> Suspicion {
    let mut runs: BTreeMap<RunId, (bool, bool)> = BTreeMap::new();
    let starts = starts(facts, attempt);
    if starts.contains_key(&u32::MAX) {
        // Not counted, but written by somebody: no start can come after it.
        return Suspicion::Lost;
    }
    for (start, (_, fact)) in starts {
        let Ok(fact) = serde_json::from_slice::<Start>(&fact) else { continue };
        let (alone, returned) = runs.entry(fact.run).or_default();
        *alone |= fact.alone;
        *returned |= facts.has(&name::returned(attempt, start));
    }
    let died: Vec<bool> =
        runs.into_values().filter(|(_, returned)| !returned).map(|(alone, _)| alone).collect();
    if died.iter().filter(|alone| **alone).count() >= LOST_AFTER {
        Suspicion::Lost
    } else if died.len() >= SUSPECT_AFTER {
        Suspicion::Suspect
    } else {
        Suspicion::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Timestamp, record::json};

    fn started(facts: &mut Facts, start: u32, run: &str, alone: bool) {
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
    fn neighbours_of_a_crash_are_suspects_and_never_lost() {
        let mut facts = Facts::new();
        assert_eq!(suspicion(&facts, 1), Suspicion::None);
        started(&mut facts, 1, "a", false);
        assert_eq!(suspicion(&facts, 1), Suspicion::None);
        for start in 2..20 {
            started(&mut facts, start, &format!("b{start}"), false);
            assert_eq!(suspicion(&facts, 1), Suspicion::Suspect);
        }
        assert_eq!(suspicion(&facts, 2), Suspicion::None, "the next attempt begins anew");
    }

    #[test]
    fn three_crashes_alone_are_a_proof() {
        let mut facts = Facts::new();
        for (start, alone) in [(1, false), (2, false), (3, true), (4, true)] {
            started(&mut facts, start, &format!("r{start}"), alone);
        }
        assert_eq!(suspicion(&facts, 1), Suspicion::Suspect);
        started(&mut facts, 5, "r5", true);
        assert_eq!(suspicion(&facts, 1), Suspicion::Lost);
    }

    #[test]
    fn adoption_and_hand_back_are_no_crashes() {
        let mut facts = Facts::new();
        for start in 1..5 {
            started(&mut facts, start, "adopted", false);
        }
        started(&mut facts, 5, "returned", true);
        facts.put(name::returned(1, 5), "returned");
        assert_eq!(suspicion(&facts, 1), Suspicion::None);
    }
}
