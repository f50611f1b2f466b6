//! Breadth-first search: the shortest trace to what is wrong, and the states from which no way leads to an end.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use super::{
    Model, ModelStep, StepKind,
    world::{MessageFate, ModelState},
};

/// What a search came to.
#[derive(Debug)]
pub(super) struct SearchReport {
    pub(super) states: usize,
    /// What is wrong, and the shortest way there.
    pub(super) wrong: Option<String>,
}

/// A step without a fault, backwards: from where, and who received something by it.
type PathBack = (u32, Option<usize>);

struct Search<'a> {
    model: &'a Model,
    numbers: HashMap<Rc<ModelState>, u32>,
    worlds: Vec<Rc<ModelState>>,
    came_from: Vec<u32>,
    back: Vec<Vec<PathBack>>,
}

pub(super) fn search(model: &Model) -> SearchReport {
    let mut search = Search {
        model,
        numbers: HashMap::new(),
        worlds: Vec::new(),
        came_from: Vec::new(),
        back: Vec::new(),
    };
    search.number(model.begin(), 0);
    let mut at = 0;
    while at < search.worlds.len() {
        let from = u32::try_from(at).expect("fewer than that");
        let world = Rc::clone(&search.worlds[at]);
        for step in model.steps(&world) {
            if let Some(why) = model.wrong(&world, &step) {
                return search.wrong(from, Some(&step), &why);
            }
            if step.world == *world {
                continue;
            }
            let kind = step.kind;
            let to = search.number(step.world, from);
            match kind {
                StepKind::ModelFault => {}
                StepKind::Normal => search.back[to as usize].push((from, None)),
                StepKind::Receives(worker) => search.back[to as usize].push((from, Some(worker))),
            }
        }
        at += 1;
    }
    for alone in [None, Some(0), Some(1)] {
        if let Some(stuck) = search.stuck(alone) {
            let why = match alone {
                None => "stuck: no way without faults leads to an end".to_owned(),
                Some(worker) => format!("stuck while only worker {worker} receives"),
            };
            return search.wrong(stuck, None, &why);
        }
    }
    SearchReport { states: search.worlds.len(), wrong: None }
}

impl Search<'_> {
    fn number(&mut self, world: ModelState, from: u32) -> u32 {
        if let Some(number) = self.numbers.get(&world) {
            return *number;
        }
        let number = u32::try_from(self.worlds.len()).expect("fewer than that");
        let world = Rc::new(world);
        self.numbers.insert(Rc::clone(&world), number);
        self.worlds.push(world);
        self.came_from.push(from);
        self.back.push(Vec::new());
        number
    }

    /// A state from which no way without faults leads to an end, while only this worker receives.
    fn stuck(&self, alone: Option<usize>) -> Option<u32> {
        let mut ends = vec![false; self.worlds.len()];
        let mut todo = VecDeque::new();
        for (number, world) in (0..).zip(&self.worlds) {
            if world.fate == MessageFate::Done {
                ends[number as usize] = true;
                todo.push_back(number);
            }
        }
        while let Some(number) = todo.pop_front() {
            for (from, receives) in &self.back[number as usize] {
                let allowed = receives.is_none() || alone.is_none() || *receives == alone;
                if allowed && !std::mem::replace(&mut ends[*from as usize], true) {
                    todo.push_back(*from);
                }
            }
        }
        ends.iter().position(|ends| !ends).map(|at| u32::try_from(at).expect("fewer than that"))
    }

    /// SearchReport to be wrong: the way there, in words.
    fn wrong(&self, mut at: u32, last: Option<&ModelStep>, why: &str) -> SearchReport {
        let mut way = Vec::new();
        let mut end = self.worlds[at as usize].as_ref();
        if let Some(step) = last {
            way.push(words(step));
            end = &step.world;
        }
        while at != 0 {
            let from = self.came_from[at as usize];
            let steps = self.model.steps(&self.worlds[from as usize]);
            let step = steps.iter().find(|step| step.world == *self.worlds[at as usize]);
            way.push(words(step.expect("it came from there")));
            at = from;
        }
        way.reverse();
        let facts = self.model.store.facts_of(end.facts);
        let text =
            |(name, value): (&str, &bytes::Bytes)| format!("{name} = {}", String::from_utf8_lossy(value));
        let facts: Vec<_> = facts.iter().map(text).collect();
        let wrong = format!("{why}\n  {}\nat {end:#?}\nrecord {facts:#?}", way.join("\n  "));
        SearchReport { states: self.worlds.len(), wrong: Some(wrong) }
    }
}

fn words(step: &ModelStep) -> String {
    let who = step.worker.map_or_else(String::new, |worker| format!("worker {worker} "));
    let msg = step
        .msg
        .map_or_else(String::new, |msg| format!(" (attempt {}, guard {})", msg.attempt, msg.generation));
    format!("{who}{}{msg}", step.what)
}
