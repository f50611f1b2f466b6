//! A search through the orders in which processes take, keep, hand back and lose the slots of a set, with lost replies,
//! stale records, sessions that expire, processes that die or leave, and a clock that stands still. Only for tests.
//!
//! The search visits the states that some order of the steps reaches, the shortest histories first and at most a fixed number.
//! It checks in each of them that no slot has two holders in live sessions, that epochs only rise, and that the processes
//! that live come to hold all slots in equal parts once nothing else happens. Records and commits are numbered, so that a
//! state is a few numbers.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::{Candidate, Layout, RoleKind, RoleName, SlotDecision, SlotStep, decide, leave, view};
use crate::{
    backend::Commit,
    clock::Timestamp,
    id::{RecordId, SessionId},
    numbered::Numbered,
    record::Facts,
};

/// Maximum number of processes.
const PROCESSES: usize = 3;
/// Maximum number of slots.
const SLOTS: usize = 3;
/// Sessions of each process: the first may expire, and the process then opens the second.
const SESSIONS: [[&str; 2]; PROCESSES] = [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]];

/// Next step of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ProcessStage {
    /// It decides from a record as it was once.
    Deciding(u16),
    /// Its commit is on its way.
    Committing(u16),
}

/// A process, by the numbers of what it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    stage: ProcessStage,
    /// Epoch of what runs for each slot; 0 if nothing runs.
    runs: [u64; SLOTS],
    /// Epochs with which slots were handed back, or perhaps were.
    given_up: [u64; SLOTS],
    greatest_epoch: u64,
    dead: bool,
    /// The first session has expired.
    expired: bool,
    /// The second session is open.
    reopened: bool,
    /// It stops taking part.
    leaving: bool,
    /// A commit whose reply was lost, and that may still arrive.
    late: Option<u16>,
}

/// A process that has read the empty record.
const NEW: Process = Process {
    stage: ProcessStage::Deciding(0),
    runs: [0; SLOTS],
    given_up: [0; SLOTS],
    greatest_epoch: 0,
    dead: false,
    expired: false,
    reopened: false,
    leaving: false,
    late: None,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SlotScene {
    record: u16,
    processes: [Process; PROCESSES],
    /// Greatest epoch with which each slot has run.
    last: [u64; SLOTS],
}

impl SlotScene {
    fn session(&self, process: usize) -> &'static str {
        SESSIONS[process][usize::from(self.processes[process].reopened)]
    }

    fn is_alive(&self, session: &str) -> bool {
        let of = SESSIONS.iter().position(|sessions| sessions.contains(&session)).unwrap();
        let Process { dead, expired, reopened, .. } = self.processes[of];
        !dead && if session == SESSIONS[of][0] { !expired } else { reopened }
    }

    fn with(mut self, process: usize, stage: ProcessStage) -> Self {
        self.processes[process].stage = stage;
        self
    }
}

/// Question of a process: the record that it knows, its number, its session, the sessions that it knows to be gone, its
/// greatest epoch, the slots that it has given up, and whether free slots are overdue.
type Question = (u16, usize, &'static str, [bool; 2 * PROCESSES], u64, [u64; SLOTS], bool);

struct SlotSearch {
    processes: usize,
    layout: Layout,
    record: RecordId,
    /// Number of processes whose sessions may expire.
    expiring: usize,
    /// Number of processes that may leave.
    leaving: usize,
    /// `true` if commits may arrive after their process has given up waiting for the reply.
    late: bool,
    records: Numbered<Facts>,
    commits: Numbered<Commit>,
    applied: HashMap<(u16, u16), (bool, u16)>,
    decisions: HashMap<Question, SlotDecision>,
    settled: HashSet<(u16, Vec<&'static str>)>,
}

impl SlotSearch {
    fn new(processes: usize, slots: usize, expiring: usize, leaving: usize, late: bool) -> Self {
        Self {
            processes,
            layout: Layout::checked(u32::try_from(slots).unwrap(), vec![]).unwrap(),
            record: RoleName::checked(RoleKind::Shards, "s".to_owned()).unwrap().record(),
            expiring,
            leaving,
            late,
            records: Numbered::new(),
            commits: Numbered::new(),
            applied: HashMap::new(),
            decisions: HashMap::new(),
            settled: HashSet::new(),
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

    fn decide(&mut self, question: Question) -> SlotDecision {
        if let Some(decision) = self.decisions.get(&question) {
            return decision.clone();
        }
        let (known, _, session, gone, greatest_epoch, given_up, overdue) = question;
        let overdue = if overdue { (0..self.layout.slots).collect() } else { BTreeSet::new() };
        let own = SessionId::from(session);
        let unwanted = BTreeSet::new();
        let given_up = (0..).zip(given_up).filter(|(_, epoch)| *epoch != 0).collect();
        let candidate = Candidate {
            record: &self.record,
            layout: &self.layout,
            session: &own,
            worker: "w",
            unwanted: &unwanted,
            given_up: &given_up,
            greatest_epoch,
            overdue: &overdue,
        };
        let is_gone = |session: &SessionId| {
            gone[SESSIONS.as_flattened().iter().position(|one| *one == session.as_str()).unwrap()]
        };
        // The clock stands still: epochs rise all the same.
        let decision = decide(self.records.get(known), &candidate, is_gone, Timestamp::from_micros(5));
        self.decisions.insert(question, decision.clone());
        decision
    }

    /// Adds every state that follows one.
    fn next(&mut self, scene: SlotScene, next: &mut Vec<SlotScene>) {
        for process in 0..self.processes {
            let Process { dead, expired, reopened, leaving, late, .. } = scene.processes[process];
            if let Some(commit) = late {
                let mut after = SlotScene { record: self.apply(scene.record, commit).1, ..scene };
                after.processes[process].late = None;
                next.push(after);
            }
            if dead {
                continue;
            }
            self.step(scene, process, next);
            let mut died = scene;
            let late = match scene.processes[process].stage {
                ProcessStage::Committing(commit) if self.late => Some(commit),
                _ => late,
            };
            // Nothing else of a dead process matters.
            died.processes[process] = Process { dead: true, late, expired, reopened, ..NEW };
            next.push(died);
            let mut change = |change: fn(&mut Process)| {
                let mut scene = scene;
                change(&mut scene.processes[process]);
                next.push(scene);
            };
            if process < self.expiring && !expired {
                // A process ends what it runs before its session can have expired.
                change(|one| {
                    one.expired = true;
                    one.runs = [0; SLOTS];
                });
            } else if expired && !reopened {
                change(|one| one.reopened = true);
            }
            if process < self.leaving && !leaving {
                // Runs end before the slots are freed.
                change(|one| {
                    one.leaving = true;
                    one.runs = [0; SLOTS];
                });
            }
        }
    }

    fn step(&mut self, scene: SlotScene, process: usize, next: &mut Vec<SlotScene>) {
        let one = scene.processes[process];
        let session = scene.session(process);
        match one.stage {
            ProcessStage::Committing(commit) => {
                let record = self.apply(scene.record, commit).1;
                let after = SlotScene { record, ..scene };
                // Answered, or the reply was lost: it reads the record again.
                next.push(after.with(process, ProcessStage::Deciding(after.record)));
                if self.late && one.late.is_none() {
                    let mut waits_no_longer = scene.with(process, ProcessStage::Deciding(scene.record));
                    waits_no_longer.processes[process].late = Some(commit);
                    next.push(waits_no_longer);
                }
            }
            ProcessStage::Deciding(_) if one.expired && !one.reopened => {}
            ProcessStage::Deciding(known) if one.leaving => {
                let left = leave(self.records.get(known), &self.record, &session.into());
                match left {
                    Some(commit) => {
                        let commit = self.commits.number(&commit);
                        next.push(scene.with(process, ProcessStage::Committing(commit)));
                    }
                    // It reads the record again before it has left.
                    None if known != scene.record => {
                        next.push(scene.with(process, ProcessStage::Deciding(scene.record)));
                    }
                    None => {}
                }
            }
            ProcessStage::Deciding(known) => {
                // A process learns at some time that a session is gone: from then on, and never before.
                let sessions = SESSIONS.as_flattened();
                let gone = std::array::from_fn(|of| {
                    let opened = of % 2 == 0 || scene.processes[of / 2].reopened;
                    opened && !scene.is_alive(sessions[of])
                });
                for knows in [gone, [false; 2 * PROCESSES]] {
                    for overdue in [false, true] {
                        let question =
                            (known, process, session, knows, one.greatest_epoch, one.given_up, overdue);
                        self.act(scene, process, question, next);
                    }
                }
            }
        }
    }

    fn act(&mut self, scene: SlotScene, process: usize, question: Question, next: &mut Vec<SlotScene>) {
        let decision = self.decide(question);
        let mut after = scene;
        let one = &mut after.processes[process];
        one.greatest_epoch = one.greatest_epoch.max(decision.greatest_epoch);
        for slot in 0..SLOTS {
            let epoch = decision.held.get(&u32::try_from(slot).unwrap()).copied().unwrap_or(0);
            let epoch = if one.given_up[slot] == epoch { 0 } else { epoch };
            if epoch != 0 && one.runs[slot] != epoch {
                assert!(epoch >= after.last[slot], "an epoch falls: {scene:?}");
                after.last[slot] = epoch;
            }
            one.runs[slot] = epoch;
        }
        match decision.step {
            SlotStep::Commit(commit) => {
                let commit = self.commits.number(&commit);
                next.push(after.with(process, ProcessStage::Committing(commit)));
            }
            SlotStep::HandBack(slot, commit) => {
                let one = &mut after.processes[process];
                one.runs[slot as usize] = 0;
                one.given_up[slot as usize] = decision.held.get(&slot).copied().unwrap_or(0);
                let commit = self.commits.number(&commit);
                next.push(after.with(process, ProcessStage::Committing(commit)));
            }
            SlotStep::Nothing | SlotStep::OtherLayout => {
                next.push(after.with(process, ProcessStage::Deciding(scene.record)));
            }
        }
    }

    /// Checks that no slot has two holders.
    fn check_holders(scene: &SlotScene) {
        for slot in 0..SLOTS {
            let running: Vec<u64> =
                scene.processes.iter().map(|one| one.runs[slot]).filter(|epoch| *epoch != 0).collect();
            assert!(running.len() <= 1, "slot {slot} has two holders: {scene:?}");
        }
    }

    /// Lets a process act on a record. Returns the record after that.
    fn act_on(
        &mut self,
        scene: &SlotScene,
        record: u16,
        process: usize,
        gone: [bool; 2 * PROCESSES],
        overdue: bool,
    ) -> u16 {
        let question = (record, process, scene.session(process), gone, 0, [0; SLOTS], overdue);
        match self.decide(question).step {
            SlotStep::Commit(commit) | SlotStep::HandBack(_, commit) => {
                let commit = self.commits.number(&commit);
                self.apply(record, commit).1
            }
            SlotStep::Nothing | SlotStep::OtherLayout => record,
        }
    }

    /// Lets the processes that live act in turn until nobody has anything to do. Returns the record.
    fn settle(
        &mut self,
        scene: &SlotScene,
        mut record: u16,
        live: &[usize],
        gone: [bool; 2 * PROCESSES],
    ) -> u16 {
        for _ in 0..40 {
            let before = record;
            for process in live {
                record = self.act_on(scene, record, *process, gone, false);
            }
            if record == before {
                return record;
            }
        }
        panic!("there is always something to do: {scene:?}");
    }

    /// Checks that the processes that live come to hold every slot, in equal parts, once nothing else happens; and that no slot
    /// stays free while they do not know who has died.
    fn check_end(&mut self, scene: &SlotScene) {
        let takes_part = |process: &usize| {
            let Process { dead, expired, reopened, leaving, .. } = scene.processes[*process];
            !dead && !leaving && (!expired || reopened)
        };
        let live: Vec<usize> = (0..self.processes).filter(takes_part).collect();
        let sessions: Vec<_> = live.iter().map(|process| scene.session(*process)).collect();
        if live.is_empty() || !self.settled.insert((scene.record, sessions.clone())) {
            return;
        }
        let gone = std::array::from_fn(|of| !sessions.contains(&SESSIONS.as_flattened()[of]));
        let nobody = [false; 2 * PROCESSES];
        let mut record = self.settle(scene, scene.record, &live, nobody);
        for _ in 0..SLOTS {
            record = self.act_on(scene, record, live[0], nobody, true);
            record = self.settle(scene, record, &live, nobody);
        }
        let held = view(self.records.get(record));
        assert!(held.iter().all(|slot| slot.incarnation.is_some()), "a slot stays free: {scene:?}");
        let record = self.settle(scene, scene.record, &live, gone);
        let held = view(self.records.get(record));
        let of =
            |session: &str| held.iter().filter(|slot| slot.incarnation.as_deref() == Some(session)).count();
        let counts: Vec<_> = sessions.iter().map(|session| of(session)).collect();
        assert_eq!(counts.iter().sum::<usize>(), self.layout.slots as usize, "a slot stays free: {scene:?}");
        let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
        assert!(most - least <= 1, "unequal parts {counts:?}: {scene:?}");
    }
}

/// Maximum number of states that a search of a build visits, those with the shortest histories first.
const MAX_STATES: usize = 30_000;

/// Visits the states, and returns their number.
fn search(processes: usize, slots: usize, expiring: usize, leaving: usize, late: bool) -> usize {
    let mut search = SlotSearch::new(processes, slots, expiring, leaving, late);
    let record = search.records.number(&Facts::new());
    assert_eq!(ProcessStage::Deciding(record), NEW.stage);
    let start = SlotScene { record, processes: [NEW; PROCESSES], last: [0; SLOTS] };
    let mut seen = HashSet::from([start]);
    let (mut open, mut next) = (VecDeque::from([start]), Vec::new());
    while let Some(scene) = open.pop_front() {
        SlotSearch::check_holders(&scene);
        search.check_end(&scene);
        search.next(scene, &mut next);
        for scene in next.drain(..) {
            if seen.len() < MAX_STATES && seen.insert(scene) {
                open.push_back(scene);
            }
        }
    }
    seen.len()
}

#[test]
fn a_slot_has_one_holder_in_live_sessions_and_all_come_to_be_held() {
    for (processes, slots, expiring, leaving, late) in [
        (2, 1, 2, 0, false),
        (2, 1, 1, 1, true),
        (2, 2, 1, 0, false),
        (2, 3, 0, 0, true),
        (3, 1, 1, 0, false),
        (3, 2, 0, 0, false),
    ] {
        let seen = search(processes, slots, expiring, leaving, late);
        assert!(seen > 1000, "{processes} processes, {slots} slots: {seen} states");
    }
}
