//! Search over all states of a scene, and random walks through larger ones.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{FlowModel, FlowStep, state::FlowState};

/// Result of a search.
pub(super) struct FlowReport {
    pub(super) states: usize,
    pub(super) violation: Option<String>,
    /// `false` if there are more states than were wanted.
    pub(super) is_complete: bool,
}

/// Searches all states breadth first. Reports a violation with the shortest trace to it, and states from which no path
/// without faults leads to an end. If there are more than `most` states, it stops there, and reports only what is violated in
/// those that were found.
pub(super) fn search(model: &FlowModel, most: usize) -> FlowReport {
    let initial = Rc::new(model.initial());
    let mut numbers: HashMap<Rc<FlowState>, u32> = [(Rc::clone(&initial), 0)].into();
    let mut states = vec![initial];
    let mut from: Vec<(u32, String)> = vec![(0, String::new())];
    let mut back: Vec<Vec<u32>> = vec![Vec::new()];
    let mut at = 0;
    while at < states.len() {
        if states.len() > most {
            return FlowReport { states: states.len(), violation: None, is_complete: false };
        }
        let state = Rc::clone(&states[at]);
        let number = u32::try_from(at).expect("fewer than 2^32 states");
        for FlowStep { action, is_fault, state: next, violation } in model.steps(&state) {
            let violation = violation.or_else(|| model.violation(&next));
            if let Some(violation) = violation {
                let trace = trace(&from, number);
                let violation = format!("{violation}\n  {trace}\n  {action}");
                let violation = Some(violation);
                return FlowReport { states: states.len(), violation, is_complete: true };
            }
            let to = numbers.get(&next).copied().unwrap_or_else(|| {
                let to = u32::try_from(states.len()).expect("fewer than 2^32 states");
                let next = Rc::new(next);
                numbers.insert(Rc::clone(&next), to);
                states.push(next);
                from.push((number, action));
                back.push(Vec::new());
                to
            });
            if !is_fault {
                back[to as usize].push(number);
            }
        }
        at += 1;
    }
    let mut ends: Vec<bool> = states.iter().map(|state| model.is_done(state)).collect();
    let done = ends.iter().enumerate().filter(|(_, ends)| **ends);
    let mut todo: VecDeque<u32> = done.map(|(at, _)| u32::try_from(at).expect("a state")).collect();
    while let Some(number) = todo.pop_front() {
        for before in &back[number as usize] {
            if !std::mem::replace(&mut ends[*before as usize], true) {
                todo.push_back(*before);
            }
        }
    }
    let stuck = ends.iter().position(|ends| !ends);
    let violation = stuck.map(|at| {
        let trace = trace(&from, u32::try_from(at).expect("a state"));
        format!("stuck: no path without faults leads to an end\n  {trace}")
    });
    FlowReport { states: states.len(), violation, is_complete: true }
}

pub(super) fn trace(from: &[(u32, String)], mut at: u32) -> String {
    let mut actions = Vec::new();
    while at != 0 {
        let (before, action) = &from[at as usize];
        actions.push(action.clone());
        at = *before;
    }
    actions.reverse();
    actions.join("\n  ")
}

/// Walks at random: faults are rare, and each walk goes on until the workflow has ended. Returns the number of steps.
pub(super) fn walk(model: &FlowModel, seed: u64, at_least: usize) -> Result<usize, String> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = 0;
    while all < at_least {
        let mut state = model.initial();
        let mut actions = Vec::new();
        loop {
            let mut steps = model.steps(&state);
            if random.random_range(0..100) >= 5 && steps.iter().any(|step| !step.is_fault) {
                steps.retain(|step| !step.is_fault);
            }
            if steps.is_empty() || actions.len() > 5_000 {
                break;
            }
            let FlowStep { action, state: next, violation, .. } =
                steps.swap_remove(random.random_range(0..steps.len()));
            actions.push(action);
            if let Some(violation) = violation.or_else(|| model.violation(&next)) {
                return Err(format!("{violation}\n  {}", actions.join("\n  ")));
            }
            state = next;
            if model.is_done(&state) && state.queue.is_empty() {
                break;
            }
        }
        if !model.is_done(&state) {
            return Err(format!("not ended after {} steps\n  {}", actions.len(), actions.join("\n  ")));
        }
        all += actions.len();
    }
    Ok(all)
}
