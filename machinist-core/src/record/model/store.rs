//! Records and claims by number. Names of runs and sessions are used again once nothing refers to them, so that few
//! states differ in names only.

use std::{cell::RefCell, collections::HashMap, hash::Hash, ops::BitOrAssign, rc::Rc};

use super::{
    super::{
        claim::Claim,
        facts::{Facts, NumberedFact, Start, name},
        follow_up::FollowUp,
    },
    state::{HandlerStage, ModelRenewal, ModelState},
};
use crate::{
    backend::Commit,
    id::{RunId, SessionId},
};

/// Values that states refer to by number.
#[derive(Debug)]
struct NumberedValues<T> {
    values: RefCell<Vec<Rc<T>>>,
    numbers: RefCell<HashMap<Rc<T>, u32>>,
}

impl<T: Clone + Eq + Hash> NumberedValues<T> {
    fn new() -> Self {
        Self { values: RefCell::default(), numbers: RefCell::default() }
    }

    /// Returns the number of a value, which is a new one if the value is new.
    fn number(&self, value: T) -> u32 {
        let mut values = self.values.borrow_mut();
        let mut numbers = self.numbers.borrow_mut();
        if let Some(number) = numbers.get(&value) {
            return *number;
        }
        let number = u32::try_from(values.len()).expect("fewer than 2^32 values");
        let value = Rc::new(value);
        values.push(Rc::clone(&value));
        numbers.insert(value, number);
        number
    }

    fn get(&self, number: u32) -> Rc<T> {
        Rc::clone(&self.values.borrow()[number as usize])
    }
}

macro_rules! number_types {
    ($($name:ident)*) => {$(
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(super) struct $name(pub(super) u32);
    )*};
}

number_types!(FactsId ClaimId PendingId FollowUpId);

/// Runs and sessions, each as the bits of their numbers.
#[derive(Debug, Clone, Copy, Default)]
struct IdBits {
    runs: u32,
    sessions: u32,
}

impl IdBits {
    fn add_run(&mut self, run: u8) {
        self.runs |= 1 << run;
    }

    fn add_session(&mut self, session: u8) {
        self.sessions |= 1 << session;
    }
}

impl BitOrAssign for IdBits {
    fn bitor_assign(&mut self, other: Self) {
        self.runs |= other.runs;
        self.sessions |= other.sessions;
    }
}

#[derive(Debug)]
pub(super) struct FactStore {
    facts: NumberedValues<Facts>,
    claims: NumberedValues<Claim>,
    pending: NumberedValues<(Commit, Claim)>,
    follow_ups: NumberedValues<FollowUp>,
    /// Runs and sessions that each record names.
    ids_of_records: RefCell<HashMap<FactsId, IdBits>>,
}

impl FactStore {
    pub(super) fn new() -> Self {
        let store = Self {
            facts: NumberedValues::new(),
            claims: NumberedValues::new(),
            pending: NumberedValues::new(),
            follow_ups: NumberedValues::new(),
            ids_of_records: RefCell::default(),
        };
        store.facts(Facts::new());
        store
    }

    pub(super) fn facts(&self, facts: Facts) -> FactsId {
        FactsId(self.facts.number(facts))
    }
    pub(super) fn facts_of(&self, id: FactsId) -> Rc<Facts> {
        self.facts.get(id.0)
    }
    pub(super) fn claim(&self, claim: Claim) -> ClaimId {
        ClaimId(self.claims.number(claim))
    }
    pub(super) fn claim_of(&self, id: ClaimId) -> Rc<Claim> {
        self.claims.get(id.0)
    }
    pub(super) fn pending(&self, pending: (Commit, Claim)) -> PendingId {
        PendingId(self.pending.number(pending))
    }
    pub(super) fn pending_of(&self, id: PendingId) -> Rc<(Commit, Claim)> {
        self.pending.get(id.0)
    }
    pub(super) fn follow_up(&self, follow_up: FollowUp) -> FollowUpId {
        FollowUpId(self.follow_ups.number(follow_up))
    }
    pub(super) fn follow_up_of(&self, id: FollowUpId) -> Rc<FollowUp> {
        self.follow_ups.get(id.0)
    }

    /// Returns a run that nothing refers to.
    pub(super) fn unused_run(&self, state: &ModelState) -> u8 {
        first_unused(self.used_ids(state).runs)
    }

    /// Returns a session that nothing refers to.
    pub(super) fn unused_session(&self, state: &ModelState) -> u8 {
        first_unused(self.used_ids(state).sessions)
    }

    /// Returns the runs and sessions that a fact or a process refers to.
    fn used_ids(&self, state: &ModelState) -> IdBits {
        let mut used = self.ids_of_record(state.facts);
        used.sessions |= state.live_sessions;
        if let Some(facts) = state.revoker {
            used |= self.ids_of_record(facts);
        }
        for worker in state.workers.iter().filter(|worker| worker.up) {
            used.add_session(worker.session);
            used |= self.ids_of_renewal(&worker.renewal);
            for claim in &worker.hand_backs {
                used |= ids_of_claim(&self.claim_of(*claim));
            }
            for handler in &worker.handlers {
                if let Some(run) = handler.run {
                    used.add_run(run);
                }
                if let Some(claim) = handler.claim {
                    used |= ids_of_claim(&self.claim_of(claim));
                }
                used |= self.ids_of_stage(&handler.stage);
            }
        }
        used
    }

    fn ids_of_renewal(&self, renewal: &ModelRenewal) -> IdBits {
        let mut ids = IdBits::default();
        match renewal {
            ModelRenewal::Idle => {}
            ModelRenewal::Opening(records) => {
                for (run, facts) in records {
                    ids.add_run(*run);
                    ids |= self.ids_of_record(*facts);
                }
            }
            ModelRenewal::Committing(due) => {
                for (run, pending) in due {
                    ids.add_run(*run);
                    ids |= ids_of_claim(&self.pending_of(*pending).1);
                }
            }
        }
        ids
    }

    fn ids_of_stage(&self, stage: &HandlerStage) -> IdBits {
        match *stage {
            HandlerStage::StartRequested(pending, session) => {
                let mut ids = ids_of_claim(&self.pending_of(pending).1);
                ids.add_session(session);
                ids
            }
            HandlerStage::Record(_, claim) => ids_of_claim(&self.claim_of(claim)),
            HandlerStage::EndWithoutRun(_, facts) => self.ids_of_record(facts),
            _ => IdBits::default(),
        }
    }

    fn ids_of_record(&self, facts: FactsId) -> IdBits {
        *self.ids_of_records.borrow_mut().entry(facts).or_insert_with(|| {
            let facts = self.facts_of(facts);
            let is_start =
                |(name, _): &(&str, _)| matches!(NumberedFact::parse(name), Some(NumberedFact::Start { .. }));
            let mut ids = ids_of_starts(facts.iter().filter(is_start).map(|(_, value)| value.as_ref()));
            for (name, value) in facts.iter() {
                match NumberedFact::parse(name) {
                    Some(NumberedFact::Returned { .. }) => {
                        ids.add_run(number_of(std::str::from_utf8(value).expect("a run")));
                    }
                    Some(NumberedFact::Retried { .. }) => ids.runs |= run_of_outcome(value),
                    None if name == name::END => ids.runs |= run_of_outcome(value),
                    _ => {}
                }
            }
            ids
        })
    }
}

fn first_unused(used: u32) -> u8 {
    u8::try_from((!used).trailing_zeros()).expect("32 bits")
}

fn ids_of_claim(claim: &Claim) -> IdBits {
    let mut ids = ids_of_starts(claim.starts.iter().map(|(_, value)| value.as_ref()));
    ids.add_run(number_of(claim.run.as_str()));
    ids.add_session(number_of(claim.session.as_str()));
    ids
}

fn ids_of_starts<'a>(values: impl Iterator<Item = &'a [u8]>) -> IdBits {
    let mut ids = IdBits::default();
    for value in values {
        let start: Start = serde_json::from_slice(value).expect("a start");
        ids.add_run(number_of(start.run.as_str()));
        ids.add_session(number_of(start.session.as_str()));
    }
    ids
}

/// Returns the bit of the run that an outcome comes from; 0 if the task ended without a run.
fn run_of_outcome(outcome: &[u8]) -> u32 {
    let outcome: serde_json::Value = serde_json::from_slice(outcome).expect("an outcome");
    outcome.get("run").and_then(serde_json::Value::as_str).map_or(0, |run| 1 << number_of(run))
}

/// Returns the number in the id of a run or session.
pub(super) fn number_of(id: &str) -> u8 {
    id[1..].parse().expect("a letter and a number")
}
pub(super) fn run_id(number: u8) -> RunId {
    format!("r{number}").as_str().into()
}
pub(super) fn session_id(number: u8) -> SessionId {
    format!("s{number}").as_str().into()
}
