//! Breadth-first search for the shortest trace to a violation, and for states from which no path leads to an end.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use super::{
    Model, ModelStep, StepKind,
    state::{Completion, ModelState},
};

/// Result of a search.
#[derive(Debug)]
pub(super) struct SearchReport {
    pub(super) states: usize,
    /// Violation, with the shortest trace to it.
    pub(super) violation: Option<String>,
}

/// Step without a fault, backwards: the state that it comes from, and the worker that receives a message in it.
type BackStep = (u32, Option<usize>);

struct Search<'a> {
    model: &'a Model,
    numbers: HashMap<Rc<ModelState>, u32>,
    states: Vec<Rc<ModelState>>,
    predecessors: Vec<u32>,
    back_steps: Vec<Vec<BackStep>>,
}

pub(super) fn search(model: &Model) -> SearchReport {
    let mut search = Search {
        model,
        numbers: HashMap::new(),
        states: Vec::new(),
        predecessors: Vec::new(),
        back_steps: Vec::new(),
    };
    search.number(model.initial_state(), 0);
    let mut at = 0;
    while at < search.states.len() {
        let from = u32::try_from(at).expect("fewer than 2^32 states");
        let state = Rc::clone(&search.states[at]);
        for step in model.steps(&state) {
            if let Some(violation) = model.violation(&state, &step) {
                return search.report(from, Some(&step), &violation);
            }
            if step.state == *state {
                continue;
            }
            let kind = step.kind;
            let to = search.number(step.state, from);
            match kind {
                StepKind::Fault => {}
                StepKind::Normal => search.back_steps[to as usize].push((from, None)),
                StepKind::Receives(worker) => search.back_steps[to as usize].push((from, Some(worker))),
            }
        }
        at += 1;
    }
    for alone in [None, Some(0), Some(1)] {
        if let Some(stuck) = search.stuck(alone) {
            let violation = match alone {
                None => "stuck: no path without faults leads to an end".to_owned(),
                Some(worker) => format!("stuck while only worker {worker} receives"),
            };
            return search.report(stuck, None, &violation);
        }
    }
    SearchReport { states: search.states.len(), violation: None }
}

impl Search<'_> {
    fn number(&mut self, state: ModelState, from: u32) -> u32 {
        if let Some(number) = self.numbers.get(&state) {
            return *number;
        }
        let number = u32::try_from(self.states.len()).expect("fewer than 2^32 states");
        let state = Rc::new(state);
        self.numbers.insert(Rc::clone(&state), number);
        self.states.push(state);
        self.predecessors.push(from);
        self.back_steps.push(Vec::new());
        number
    }

    /// Finds a state from which no path without faults leads to an end, while only this worker receives.
    fn stuck(&self, alone: Option<usize>) -> Option<u32> {
        let mut ends = vec![false; self.states.len()];
        let mut todo = VecDeque::new();
        for (number, state) in (0..).zip(&self.states) {
            if state.completion == Completion::Done {
                ends[number as usize] = true;
                todo.push_back(number);
            }
        }
        while let Some(number) = todo.pop_front() {
            for (from, receives) in &self.back_steps[number as usize] {
                let allowed = receives.is_none() || alone.is_none() || *receives == alone;
                if allowed && !std::mem::replace(&mut ends[*from as usize], true) {
                    todo.push_back(*from);
                }
            }
        }
        ends.iter().position(|ends| !ends).map(|at| u32::try_from(at).expect("fewer than 2^32 states"))
    }

    /// Reports a violation, with the shortest trace to it.
    fn report(&self, mut at: u32, last: Option<&ModelStep>, violation: &str) -> SearchReport {
        let mut trace = Vec::new();
        let mut end = self.states[at as usize].as_ref();
        if let Some(step) = last {
            trace.push(describe(step));
            end = &step.state;
        }
        while at != 0 {
            let from = self.predecessors[at as usize];
            let steps = self.model.steps(&self.states[from as usize]);
            let step = steps.iter().find(|step| step.state == *self.states[at as usize]);
            trace.push(describe(step.expect("the step that led here")));
            at = from;
        }
        trace.reverse();
        let facts = self.model.store.facts_of(end.facts);
        let text =
            |(name, value): (&str, &bytes::Bytes)| format!("{name} = {}", String::from_utf8_lossy(value));
        let facts: Vec<_> = facts.iter().map(text).collect();
        let violation = format!("{violation}\n  {}\nat {end:#?}\nrecord {facts:#?}", trace.join("\n  "));
        SearchReport { states: self.states.len(), violation: Some(violation) }
    }
}

fn describe(step: &ModelStep) -> String {
    let worker = step.worker.map_or_else(String::new, |worker| format!("worker {worker} "));
    let message = step.message.map_or_else(String::new, |message| {
        format!(" (attempt {}, guard {})", message.attempt, message.generation)
    });
    format!("{worker}{}{message}", step.action)
}
