//! Records and starts by number, and names for runs and sessions that are used again when nobody remembers them:
//! so that worlds which differ in names only are few.

use std::{cell::RefCell, collections::HashMap, hash::Hash, rc::Rc};

use super::{
    super::{
        facts::{Facts, NumberedFact, Start, name},
        start::Claim,
        verdict::FollowUp,
    },
    world::{HandlerStage, ModelRenewal, ModelState},
};
use crate::{
    backend::Commit,
    id::{RunId, SessionId},
};

/// Values that worlds name by number.
#[derive(Debug)]
struct Interned<T> {
    values: RefCell<Vec<Rc<T>>>,
    numbers: RefCell<HashMap<Rc<T>, u32>>,
}

impl<T: Clone + Eq + Hash> Interned<T> {
    fn new() -> Self {
        Self { values: RefCell::default(), numbers: RefCell::default() }
    }

    fn number(&self, value: T) -> u32 {
        let (mut values, mut numbers) = (self.values.borrow_mut(), self.numbers.borrow_mut());
        if let Some(number) = numbers.get(&value) {
            return *number;
        }
        let (number, value) = (u32::try_from(values.len()).expect("few"), Rc::new(value));
        values.push(Rc::clone(&value));
        numbers.insert(value, number);
        number
    }

    fn get(&self, number: u32) -> Rc<T> {
        Rc::clone(&self.values.borrow()[number as usize])
    }
}

macro_rules! numbers {
    ($($name:ident)*) => {$(
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(super) struct $name(pub(super) u32);
    )*};
}

numbers!(FactsNo ClaimNo PendingNo FollowUpNo);

#[derive(Debug)]
pub(super) struct FactStore {
    facts: Interned<Facts>,
    claim: Interned<Claim>,
    pending: Interned<(Commit, Claim)>,
    follow_ups: Interned<FollowUp>,
    /// The runs and sessions that a record names, as bits.
    named: RefCell<HashMap<u32, (u32, u32)>>,
}

impl FactStore {
    pub(super) fn new() -> Self {
        let store = Self {
            facts: Interned::new(),
            claim: Interned::new(),
            pending: Interned::new(),
            follow_ups: Interned::new(),
            named: RefCell::default(),
        };
        store.facts(Facts::new());
        store
    }

    pub(super) fn facts(&self, facts: Facts) -> FactsNo {
        FactsNo(self.facts.number(facts))
    }
    pub(super) fn facts_of(&self, no: FactsNo) -> Rc<Facts> {
        self.facts.get(no.0)
    }
    pub(super) fn claim(&self, claim: Claim) -> ClaimNo {
        ClaimNo(self.claim.number(claim))
    }
    pub(super) fn claim_of(&self, no: ClaimNo) -> Rc<Claim> {
        self.claim.get(no.0)
    }
    pub(super) fn pending(&self, pending: (Commit, Claim)) -> PendingNo {
        PendingNo(self.pending.number(pending))
    }
    pub(super) fn pending_of(&self, no: PendingNo) -> Rc<(Commit, Claim)> {
        self.pending.get(no.0)
    }
    pub(super) fn follow_up(&self, follow_up: FollowUp) -> FollowUpNo {
        FollowUpNo(self.follow_ups.number(follow_up))
    }
    pub(super) fn follow_up_of(&self, no: FollowUpNo) -> Rc<FollowUp> {
        self.follow_ups.get(no.0)
    }

    /// A run and a session that nobody has heard of, or that nobody remembers.
    pub(super) fn fresh(&self, world: &ModelState) -> (u8, u8) {
        let (mut runs, mut sessions) = self.named(world.facts);
        sessions |= world.alive;
        if let Some(read) = world.revoker {
            let (r, s) = self.named(read);
            (runs, sessions) = (runs | r, sessions | s);
        }
        let mut claim = |claim: &Claim| {
            let (r, s) = of_starts(claim.starts.iter().map(|(_, value)| value.as_ref()));
            runs |= r | bit(claim.run.as_str());
            sessions |= s | bit(claim.session.as_str());
        };
        let mut more = (0, 0);
        for worker in world.workers.iter().filter(|worker| worker.up) {
            more.1 |= 1 << worker.session;
            match &worker.renewal {
                ModelRenewal::Idle => {}
                ModelRenewal::Opening(read) => {
                    for (run, facts) in read {
                        let (r, s) = self.named(*facts);
                        more = (more.0 | r | 1 << run, more.1 | s);
                    }
                }
                ModelRenewal::Keeping(todo) => {
                    for (run, pending) in todo {
                        more.0 |= 1 << run;
                        claim(&self.pending_of(*pending).1);
                    }
                }
            }
            for handler in &worker.handlers {
                more.0 |= handler.run.map_or(0, |run| 1 << run);
                if let Some(no) = handler.claim {
                    claim(&self.claim_of(no));
                }
                match handler.at {
                    HandlerStage::Ask(pending, session) => {
                        more.1 |= 1 << session;
                        claim(&self.pending_of(pending).1);
                    }
                    HandlerStage::Record(_, no) => claim(&self.claim_of(no)),
                    HandlerStage::End(_, facts) => {
                        let (r, s) = self.named(facts);
                        more = (more.0 | r, more.1 | s);
                    }
                    _ => {}
                }
            }
        }
        let free = |used: u32| u8::try_from((!used).trailing_zeros()).expect("32 bits");
        (free(runs | more.0), free(sessions | more.1))
    }

    fn named(&self, facts: FactsNo) -> (u32, u32) {
        *self.named.borrow_mut().entry(facts.0).or_insert_with(|| {
            let facts = self.facts_of(facts);
            let start =
                |(name, _): &(&str, _)| matches!(NumberedFact::parse(name), Some(NumberedFact::Start { .. }));
            let (mut runs, sessions) = of_starts(facts.iter().filter(start).map(|(_, value)| value.as_ref()));
            for (name, value) in facts.iter() {
                match NumberedFact::parse(name) {
                    Some(NumberedFact::Returned { .. }) => {
                        runs |= bit(std::str::from_utf8(value).expect("a run"));
                    }
                    Some(NumberedFact::Retried { .. }) => runs |= of_origin(value),
                    None if name == name::END => runs |= of_origin(value),
                    _ => {}
                }
            }
            (runs, sessions)
        })
    }
}

fn of_starts<'a>(values: impl Iterator<Item = &'a [u8]>) -> (u32, u32) {
    let starts = values.map(|value| serde_json::from_slice::<Start>(value).expect("a start"));
    starts.fold((0, 0), |(runs, sessions), start| {
        (runs | bit(start.run.as_str()), sessions | bit(start.session.as_str()))
    })
}

fn of_origin(outcome: &[u8]) -> u32 {
    let outcome: serde_json::Value = serde_json::from_slice(outcome).expect("an outcome");
    outcome.get("run").and_then(serde_json::Value::as_str).map_or(0, bit)
}

pub(super) fn number(name: &str) -> u8 {
    name[1..].parse().expect("a letter and a number")
}
fn bit(name: &str) -> u32 {
    1 << number(name)
}
pub(super) fn run_id(number: u8) -> RunId {
    format!("r{number}").as_str().into()
}
pub(super) fn session_id(number: u8) -> SessionId {
    format!("s{number}").as_str().into()
}
