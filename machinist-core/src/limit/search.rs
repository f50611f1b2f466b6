//! A search through everything that can happen to the places of a limit: lost replies, sessions that expire, processes that
//! die, takeovers. Only for tests.
//!
//! Three runs of two workers want one or two places. The search visits every state that some order of their steps reaches,
//! and checks that no more runs than places run in sessions that live.

use std::collections::HashSet;

use super::places::{Holder, PlaceDecision, RunPlace, decide_place};
use crate::{
    backend::Commit,
    id::{RecordId, RecordKind},
    record::Facts,
};

/// Sessions of the two workers: each may expire once, and its worker then opens the next.
const SESSIONS: [[&str; 2]; 2] = [["a1", "a2"], ["b1", "b2"]];
/// WorkerLife of each run.
const WORKERS: [usize; 3] = [0, 0, 1];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// Decides from the record as it knows it.
    Deciding(Facts),
    /// Its commit is on its way, or its reply was lost and it is sent again.
    Taking(Commit, RunPlace),
    Running(RunPlace),
    /// The commit that frees its place is sent, perhaps more than once.
    Freeing(RunPlace),
    /// It waits for a place, has ended, or was superseded.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct WorkerLife {
    dead: bool,
    /// The first session has expired.
    expired: bool,
    /// The second session is open.
    reopened: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scene {
    max: u32,
    record: Facts,
    runs: [Phase; 3],
    workers: [WorkerLife; 2],
}

impl Scene {
    fn new(max: u32) -> Self {
        let run = Phase::Deciding(Facts::new());
        Self { max, record: Facts::new(), runs: [run.clone(), run.clone(), run], workers: Default::default() }
    }

    fn session(&self, worker: usize) -> &'static str {
        SESSIONS[worker][usize::from(self.workers[worker].reopened)]
    }

    fn is_alive(&self, session: &str) -> bool {
        let of = usize::from(session.starts_with('b'));
        let WorkerLife { dead, expired, .. } = self.workers[of];
        if session == SESSIONS[of][0] { !dead && !expired } else { !dead }
    }

    /// Checks that the runs in live sessions have no more places than there are.
    fn check(&self) {
        let live = self.runs.iter().filter(
            |run| matches!(run, Phase::Running(place) if self.is_alive(place.holder.session.as_str())),
        );
        assert!(live.count() <= self.max as usize, "{self:#?}");
    }

    fn with(&self, run: usize, phase: Phase) -> Self {
        let mut next = self.clone();
        next.runs[run] = phase;
        next
    }

    /// Returns every state that follows this one.
    fn next(&self) -> Vec<Self> {
        let mut next: Vec<_> =
            (0..3).filter(|run| !self.workers[WORKERS[*run]].dead).flat_map(|run| self.step(run)).collect();
        for (worker, state) in self.workers.iter().enumerate() {
            let mut change = |change: fn(&mut WorkerLife)| {
                let mut scene = self.clone();
                change(&mut scene.workers[worker]);
                next.push(scene);
            };
            if !state.dead {
                change(|worker| worker.dead = true);
            }
            if !state.expired {
                change(|worker| worker.expired = true);
            } else if !state.reopened && !state.dead {
                change(|worker| worker.reopened = true);
            }
        }
        next
    }

    fn step(&self, run: usize) -> Vec<Self> {
        let worker = WORKERS[run];
        let session = self.session(worker);
        match &self.runs[run] {
            Phase::Deciding(known) => {
                let holder = Holder {
                    session: session.into(),
                    run: format!("r{run}").as_str().into(),
                    task: format!("t{run}").as_str().try_into().unwrap(),
                    attempt: 1,
                };
                let record = RecordId::new(RecordKind::Limit, "run/task:t");
                // A worker learns at some time that a session is gone: from then on, and never before.
                let gone = |session: &_, _: &_| !self.is_alive(&format!("{session}"));
                [true, false]
                    .map(|knows| {
                        let gone = |session: &_, run: &_| knows && gone(session, run);
                        match decide_place(known, &record, self.max, &holder, gone, 0) {
                            PlaceDecision::Take(commit, place) => {
                                self.with(run, Phase::Taking(*commit, place))
                            }
                            PlaceDecision::Held(place) => self.with(run, Phase::Running(place)),
                            // It asks again, with the record as it is then.
                            PlaceDecision::Full(_) | PlaceDecision::SameTask => {
                                self.with(run, Phase::Deciding(self.record.clone()))
                            }
                        }
                    })
                    .into()
            }
            Phase::Taking(commit, place) => {
                let mut lost = self.clone();
                let applied = commit.apply(&mut lost.record);
                let answered = match applied {
                    true => lost.with(run, Phase::Running(place.clone())),
                    false => self.with(run, Phase::Deciding(self.record.clone())),
                };
                // The reply may be lost: then it sends the same again.
                vec![answered, lost]
            }
            Phase::Running(place) => {
                let mut next = vec![self.with(run, Phase::Freeing(place.clone()))];
                if place.holder.session.as_str() != session {
                    next.extend(self.adoptions(run, place, session));
                }
                next
            }
            Phase::Freeing(place) => {
                let mut freed = self.clone();
                place.free().apply(&mut freed.record);
                vec![freed.with(run, Phase::Over), freed]
            }
            Phase::Over => Vec::new(),
        }
    }

    /// The run moves its place into the new session of its worker; the reply may be lost.
    fn adoptions(&self, run: usize, place: &RunPlace, session: &str) -> Vec<Self> {
        let (commit, adopted) = place.adopt(&session.into());
        let mut scene = self.clone();
        if commit.apply(&mut scene.record) || adopted.is_of_run(&self.record) {
            return vec![scene.with(run, Phase::Running(adopted)), scene];
        }
        if place.is_lost(&self.record) && adopted.restore().apply(&mut scene.record) {
            return vec![scene.with(run, Phase::Running(adopted)), scene];
        }
        vec![self.with(run, Phase::Over)]
    }
}

#[test]
fn no_more_runs_than_places_run_in_live_sessions() {
    for max in [1, 2] {
        let mut seen = HashSet::from([Scene::new(max)]);
        let mut open = vec![Scene::new(max)];
        let mut full = 0;
        while let Some(scene) = open.pop() {
            scene.check();
            full += usize::from(
                scene.runs.iter().filter(|run| matches!(run, Phase::Running(_))).count() >= max as usize,
            );
            for next in scene.next() {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        assert!(full > 100 && seen.len() > 1000, "{} states", seen.len());
    }
}
