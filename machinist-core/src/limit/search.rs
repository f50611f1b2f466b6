//! A search through the orders in which runs take, move and free the places of a limit, with lost replies, sessions that
//! expire, processes that die, takeovers, and workers that free the places of the dead. Only for tests.
//!
//! The search visits every state that some order of the steps of three runs of two workers reaches, and checks that no more
//! runs than places run in sessions that live. Records, commits and places are numbered, so that a state is a few numbers.

use std::collections::{HashMap, HashSet};

use super::places::{Holder, PlaceDecision, RunPlace, decide_place, unused_places};
use crate::{
    backend::Commit,
    id::{RecordId, RecordKind, SessionId},
    numbered::Numbered,
    record::Facts,
};

/// Number of runs.
const RUNS: usize = 3;
/// Sessions of the two workers: each may expire once, and its worker then opens the next.
const SESSIONS: [[&str; 2]; 2] = [["a1", "a2"], ["b1", "b2"]];
/// Worker of each run.
const WORKERS: [usize; RUNS] = [0, 0, 1];

/// A run, by the numbers of what it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Decides from a record as it was once.
    Deciding(u16),
    /// Its commit for a place is on its way, or the reply was lost and the commit is sent again.
    Taking {
        commit: u16,
        place: u16,
    },
    Running(u16),
    /// The commit that frees its place is sent, perhaps more than once.
    Freeing(u16),
    /// It has ended or was superseded.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Scene {
    record: u16,
    runs: [Phase; RUNS],
    workers: [WorkerLife; 2],
}

impl Scene {
    fn session(&self, worker: usize) -> &'static str {
        SESSIONS[worker][usize::from(self.workers[worker].reopened)]
    }

    fn is_alive(&self, session: &str) -> bool {
        let of = usize::from(session.starts_with('b'));
        let WorkerLife { dead, expired, .. } = self.workers[of];
        !dead && (session != SESSIONS[of][0] || !expired)
    }

    fn with(mut self, run: usize, phase: Phase) -> Self {
        self.runs[run] = phase;
        self
    }

    /// Adds the states after a process dies, or a session of the first `expiring` workers expires or is replaced.
    fn faults(self, expiring: usize, next: &mut Vec<Self>) {
        for (worker, life) in self.workers.into_iter().enumerate() {
            let mut change = |change: fn(&mut WorkerLife)| {
                let mut scene = self;
                change(&mut scene.workers[worker]);
                next.push(scene);
            };
            if !life.dead {
                change(|life| life.dead = true);
            }
            if worker >= expiring {
                continue;
            }
            if !life.expired && !life.dead {
                change(|life| life.expired = true);
            } else if !life.reopened && !life.dead {
                change(|life| life.reopened = true);
            }
        }
    }
}

/// Decision of a run that asks for a place, by numbers.
#[derive(Debug, Clone, Copy)]
enum PlaceAnswer {
    Take { commit: u16, place: u16 },
    Held(u16),
    AskAgain,
}

struct PlaceSearch {
    max: u32,
    /// Number of workers whose sessions may expire.
    expiring: usize,
    records: Numbered<Facts>,
    commits: Numbered<Commit>,
    places: Numbered<RunPlace>,
    /// Results of commits, by record and commit.
    applied: HashMap<(u16, u16), (bool, u16)>,
    /// Decisions, by record, run, session, and sessions that are known to be gone.
    answers: HashMap<(u16, usize, &'static str, [bool; 4]), PlaceAnswer>,
}

impl PlaceSearch {
    fn new(max: u32, expiring: usize) -> Self {
        Self {
            max,
            expiring,
            records: Numbered::new(),
            commits: Numbered::new(),
            places: Numbered::new(),
            applied: HashMap::new(),
            answers: HashMap::new(),
        }
    }

    fn apply(&mut self, record: u16, commit: u16) -> (bool, u16) {
        if let Some(result) = self.applied.get(&(record, commit)) {
            return *result;
        }
        let mut facts = self.records.get(record).clone();
        let done = self.commits.get(commit).apply(&mut facts);
        let result = (done, self.records.number(&facts));
        self.applied.insert((record, commit), result);
        result
    }

    fn answer(&mut self, known: u16, run: usize, session: &'static str, gone: [bool; 4]) -> PlaceAnswer {
        let question = (known, run, session, gone);
        if let Some(answer) = self.answers.get(&question) {
            return *answer;
        }
        let holder = Holder {
            session: session.into(),
            run: format!("r{run}").as_str().into(),
            task: format!("t{run}").as_str().try_into().unwrap(),
            attempt: 1,
        };
        let record = RecordId::new(RecordKind::Limit, "run/task:t");
        let is_gone = |session: &SessionId, _: &_| {
            let of = SESSIONS.as_flattened().iter().position(|known| *known == session.as_str());
            gone[of.unwrap()]
        };
        let answer = match decide_place(self.records.get(known), &record, self.max, &holder, is_gone, 0) {
            PlaceDecision::Take(commit, place) => {
                PlaceAnswer::Take { commit: self.commits.number(&commit), place: self.places.number(&place) }
            }
            PlaceDecision::Held(place) => PlaceAnswer::Held(self.places.number(&place)),
            PlaceDecision::Full(_) | PlaceDecision::SameTask(_) => PlaceAnswer::AskAgain,
        };
        self.answers.insert(question, answer);
        answer
    }

    /// Adds every state that follows one.
    fn next(&mut self, scene: Scene, next: &mut Vec<Scene>) {
        for (run, worker) in WORKERS.into_iter().enumerate() {
            if !scene.workers[worker].dead {
                self.step(scene, run, next);
            }
        }
        self.free_abandoned(scene, next);
        scene.faults(self.expiring, next);
    }

    /// Adds the states after a live worker has freed the place of a session that is gone, for tasks that are parked.
    fn free_abandoned(&mut self, scene: Scene, next: &mut Vec<Scene>) {
        if scene.workers.iter().all(|worker| worker.dead) {
            return;
        }
        let record = RecordId::new(RecordKind::Limit, "run/task:t");
        let is_gone = |session: &SessionId, _: &_| !scene.is_alive(session.as_str());
        let unused = unused_places(self.records.get(scene.record), &record, self.max, is_gone);
        for place in unused.abandoned {
            let commit = self.commits.number(&place.free());
            let (_, record) = self.apply(scene.record, commit);
            next.push(Scene { record, ..scene });
        }
    }

    fn step(&mut self, scene: Scene, run: usize, next: &mut Vec<Scene>) {
        let session = scene.session(WORKERS[run]);
        match scene.runs[run] {
            Phase::Deciding(known) => {
                // A worker learns at some time that a session is gone: from then on, and never before.
                let gone = [0, 1, 2, 3].map(|of| !scene.is_alive(SESSIONS.as_flattened()[of]));
                for knows in [gone, [false; 4]] {
                    next.push(match self.answer(known, run, session, knows) {
                        PlaceAnswer::Take { commit, place } => {
                            scene.with(run, Phase::Taking { commit, place })
                        }
                        PlaceAnswer::Held(place) => scene.with(run, Phase::Running(place)),
                        PlaceAnswer::AskAgain => scene.with(run, Phase::Deciding(scene.record)),
                    });
                }
            }
            Phase::Taking { commit, place } => {
                let (done, record) = self.apply(scene.record, commit);
                if done {
                    let lost = Scene { record, ..scene };
                    next.extend([lost, lost.with(run, Phase::Running(place))]);
                } else {
                    next.push(scene.with(run, Phase::Deciding(scene.record)));
                }
            }
            Phase::Running(place) => {
                next.push(scene.with(run, Phase::Freeing(place)));
                if self.places.get(place).holder.session.as_str() != session {
                    self.adopt(scene, run, place, session, next);
                }
            }
            Phase::Freeing(place) => {
                let commit = self.places.get(place).free();
                let commit = self.commits.number(&commit);
                let (_, record) = self.apply(scene.record, commit);
                let lost = Scene { record, ..scene };
                next.extend([lost, lost.with(run, Phase::Over)]);
            }
            Phase::Over => {}
        }
    }

    /// Moves the place of a run into the new session of its worker; the reply may be lost.
    fn adopt(&mut self, scene: Scene, run: usize, place: u16, session: &'static str, next: &mut Vec<Scene>) {
        let (commit, adopted) = self.places.get(place).adopt(&session.into());
        let facts = self.records.get(scene.record);
        let restored = adopted.is_lost(facts).then(|| adopted.restore());
        let is_held = adopted.is_of_run(facts);
        let commit = self.commits.number(&commit);
        let adopted = self.places.number(&adopted);
        let mut commits = vec![commit];
        commits.extend(restored.map(|restore| self.commits.number(&restore)));
        for commit in commits {
            let (done, record) = self.apply(scene.record, commit);
            if done {
                let lost = Scene { record, ..scene };
                next.extend([lost, lost.with(run, Phase::Running(adopted))]);
                return;
            }
        }
        next.push(scene.with(run, if is_held { Phase::Running(adopted) } else { Phase::Over }));
    }

    /// Counts the runs in live sessions.
    fn running(&self, scene: Scene) -> usize {
        let is_live = |phase: &&Phase| match phase {
            Phase::Running(place) => scene.is_alive(self.places.get(*place).holder.session.as_str()),
            _ => false,
        };
        scene.runs.iter().filter(is_live).count()
    }
}

/// Visits every state, and returns their number and how often every place was in use.
fn search(max: u32, expiring: usize) -> (usize, usize) {
    let mut search = PlaceSearch::new(max, expiring);
    let record = search.records.number(&Facts::new());
    let start = Scene { record, runs: [Phase::Deciding(record); RUNS], workers: Default::default() };
    let mut seen = HashSet::from([start]);
    let (mut open, mut next, mut full) = (vec![start], Vec::new(), 0);
    while let Some(scene) = open.pop() {
        let running = search.running(scene);
        assert!(running <= max as usize, "{running} runs: {scene:?}");
        full += usize::from(running == max as usize);
        search.next(scene, &mut next);
        open.extend(next.drain(..).filter(|next| seen.insert(*next)));
    }
    (seen.len(), full)
}

#[test]
fn no_more_runs_than_places_run_in_live_sessions() {
    // With two places and two workers whose sessions expire, there are a million states: too many for each build.
    for (max, expiring) in [(1, 2), (2, 1)] {
        let (seen, full) = search(max, expiring);
        assert!(full > 100 && seen > 1000, "{seen} states, {full} of them full");
    }
}
