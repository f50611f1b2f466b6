//! Search over workflows: small graphs, two workers, every interleaving of their steps and faults.
//!
//! The decisions are the production functions: what follows an end, the joins, the decision about a task that waits, starts
//! and outcomes. The steps are in the order of `worker/continuation.rs` and `worker/callback.rs`. What one task's delivery
//! does beyond that (renewals, hand-backs, replies that are lost) is searched in `record/model`. Small scenes are searched
//! exhaustively; larger ones by random walks, whose seeds are printed.
//!
//! `MACHINIST_MODEL=large cargo test -p machinist-core --lib workflow::model -- --nocapture` searches further.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::Hash,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Policy, Sendable, StepPlan, Workflow};
use crate::{
    args::{Arg, Results},
    backend::Commit,
    clock::Timestamp,
    id::{RecordId, TaskId},
    record::{
        Child, Claim, CommitRefusal, EncodedResults, EndVerdict, EndedMember, ErrorText, FactName, Facts,
        Failure, FailureKind, FollowUp, JoinDecision, Joining, Member, ParkDecision, StartDecision,
        StartRequest, Verdict, after_failure, after_success, decide_join, decide_parking, decide_start,
        ended_members, explain_refusal, failure_of, failure_without_run, gathered_fact, join, join_record,
        joinings, json, may_be_decided, name, never_after, outcome_commit, recorded_follow_up,
        upstream_error, waiting_callback,
    },
    signature::Signature,
    wire::{Flow, Place, Step},
};

const NOW: Timestamp = Timestamp::from_micros(1_000_000);
const TTL: Duration = Duration::from_secs(3600);
/// Generation from which on a copy of a task that waits comes only when its join can be decided.
const LAST_GUARD: u8 = 2;

/// Fault, which occurs as often as a scene lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A worker dies. Its delivery goes back to the queue, and its session is known to be gone.
    Crash,
    /// A worker's broker connection is lost: its delivery goes back, and the worker goes on with it.
    Drop,
    /// The session of a living worker expires: others take its task over.
    Expire,
    /// A message arrives twice.
    Duplicate,
    /// The backend loses the record of a join.
    LoseJoin,
    /// The backend loses the record of a task that has been followed up.
    LoseRecord,
    /// A handler fails for good.
    Fail,
}

const FAULTS: usize = 7;

/// Rule that is broken on purpose: the search must find what the rule prevents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    /// A member joins with what its handler returned, before that is recorded.
    JoinBeforeRecord,
    /// A delivery is acknowledged before the workflow has gone on.
    AckBeforeFollow,
    /// A task that waits is acknowledged without a further copy.
    NoGuard,
    /// A copy of a task that waits is noted before it is published.
    GuardStoredFirst,
    /// What follows gets what the handler returned, and not what is recorded.
    ArgsFromMemory,
    /// Tasks that never run are not ended.
    UpstreamLeftOut,
    /// A task that waits starts without a look at its join.
    StartUndecided,
    /// A start does not check that it has the arguments of the start before it.
    ArgumentsUnchecked,
    /// The look at a join does not look at the records of missing members.
    MembersNotAsked,
    /// A join counts each commit, and the number decides.
    CountDecides,
}

/// One search.
#[derive(Debug, Clone)]
struct Scene {
    name: &'static str,
    steps: fn() -> Vec<StepPlan>,
    workers: usize,
    faults: &'static [Fault],
    mutation: Option<Mutation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Message {
    child: u16,
    generation: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// Records by number, each with the number of its facts.
    records: BTreeMap<u16, u32>,
    queue: Vec<Message>,
    workers: Vec<WorkerState>,
    /// Sessions that are alive.
    alive: u16,
    next_session: u8,
    faults_left: [u8; FAULTS],
    /// Data was lost, so that what was promised about arguments may end in FAILURE/lost.
    lost: bool,
    /// The record of a task was lost, so that nobody knows of its end.
    lost_record: bool,
    /// Arguments with which each task that waits was started.
    started: BTreeMap<u16, u32>,
    /// Number of commits that a join has seen; for one mutation.
    joined: BTreeMap<u16, u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct WorkerState {
    session: u8,
    delivery: Option<Delivery>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Delivery {
    message: Message,
    settled: bool,
    stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    Open,
    /// Looks at its join; `true` after it has looked at the members' records.
    Look(bool),
    /// Lets members join that have ended.
    Rejoin(Vec<(u8, u16)>),
    Wait,
    PublishGuard,
    StoreGuard,
    /// Ends without a run.
    End(FailureKind),
    /// Requests a start, with these gathered arguments.
    Start(Option<u32>),
    Run(u32, Option<u32>),
    Record(u32, bool, Option<u32>),
    /// Does the act at this position of this list; these records wake.
    Follow(u32, u8, Vec<u16>),
    /// Notes the copy that it has published for the record at the front.
    NoteCopy(u8, Vec<u16>),
    Mark,
    Ack,
}

/// What is done after an end, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Act {
    Publish(u16),
    EndChild(u16, String),
    JoinChild(u16),
    /// The task itself joins, with this end.
    JoinOwn(Bytes),
}

/// Values that states refer to by number.
#[derive(Debug)]
struct Numbered<T> {
    values: RefCell<Vec<Rc<T>>>,
    numbers: RefCell<HashMap<Rc<T>, u32>>,
}

impl<T: Eq + Hash> Numbered<T> {
    fn new() -> Self {
        Self { values: RefCell::default(), numbers: RefCell::default() }
    }

    fn number(&self, value: T) -> u32 {
        if let Some(number) = self.numbers.borrow().get(&value) {
            return *number;
        }
        let value = Rc::new(value);
        let mut values = self.values.borrow_mut();
        let number = u32::try_from(values.len()).expect("fewer than 2^32 values");
        values.push(Rc::clone(&value));
        self.numbers.borrow_mut().insert(value, number);
        number
    }

    fn get(&self, number: u32) -> Rc<T> {
        Rc::clone(&self.values.borrow()[number as usize])
    }
}

struct Model {
    scene: Scene,
    root: Message,
    /// Children by number. Two that differ are two numbers, even at one place.
    children: RefCell<Vec<Rc<Child>>>,
    record_names: Numbered<RecordId>,
    facts: Numbered<Facts>,
    claims: RefCell<Vec<Claim>>,
    args: RefCell<Vec<Vec<Arg>>>,
    acts: Numbered<Vec<Act>>,
    /// Records of the tasks that must end.
    expected: Vec<u16>,
    violation: RefCell<Option<String>>,
}

struct Transition {
    action: String,
    is_fault: bool,
    state: State,
    violation: Option<String>,
}

impl Model {
    fn new(scene: Scene) -> Self {
        let workflow = Workflow::of_steps((scene.steps)()).expect("a workflow").with_id(task("R"));
        let parts = workflow.into_parts().parts;
        let flow = *parts.flow.expect("a flow");
        let place = Place::root(task("R"));
        let step = Step { name: "root".to_owned(), task: parts.name, flow, ..Step::default() };
        let root = Child { place, step, outline: None };
        let mut model = Self {
            scene,
            root: Message { child: 0, generation: 0 },
            children: RefCell::default(),
            record_names: Numbered::new(),
            facts: Numbered::new(),
            claims: RefCell::default(),
            args: RefCell::default(),
            acts: Numbered::new(),
            expected: Vec::new(),
            violation: RefCell::default(),
        };
        model.facts.number(Facts::new());
        let all = never_after(&root.place, &root.step.flow);
        model.root.child = model.child(root.clone());
        model.expected =
            all.iter().chain([&root]).map(|child| model.record_no(&RecordId::from(&child.id()))).collect();
        model
    }

    fn initial(&self) -> State {
        let mut faults_left = [0; FAULTS];
        for fault in self.scene.faults {
            faults_left[*fault as usize] += 1;
        }
        let worker = |session| WorkerState { session, delivery: None };
        let workers = u8::try_from(self.scene.workers).expect("few workers");
        State {
            records: BTreeMap::new(),
            queue: vec![self.root],
            workers: (0..workers).map(worker).collect(),
            alive: (1 << workers) - 1,
            next_session: workers,
            faults_left,
            lost: false,
            lost_record: false,
            started: BTreeMap::new(),
            joined: BTreeMap::new(),
        }
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.scene.mutation == Some(mutation)
    }

    fn child(&self, child: Child) -> u16 {
        let mut children = self.children.borrow_mut();
        let known = children.iter().position(|known| **known == child);
        let number = known.unwrap_or_else(|| {
            children.push(Rc::new(child));
            children.len() - 1
        });
        u16::try_from(number).expect("few children")
    }

    fn child_of(&self, number: u16) -> Rc<Child> {
        Rc::clone(&self.children.borrow()[usize::from(number)])
    }

    fn record_no(&self, record: &RecordId) -> u16 {
        u16::try_from(self.record_names.number(record.clone())).expect("few records")
    }

    fn task_record(&self, child: &Child) -> u16 {
        self.record_no(&RecordId::from(&child.id()))
    }

    fn facts_of(&self, state: &State, record: u16) -> Rc<Facts> {
        self.facts.get(state.records.get(&record).copied().unwrap_or(0))
    }

    fn args_no(&self, args: Vec<Arg>) -> u32 {
        let mut all = self.args.borrow_mut();
        let known = all.iter().position(|known| *known == args);
        let number = known.unwrap_or_else(|| {
            all.push(args);
            all.len() - 1
        });
        u32::try_from(number).expect("few arguments")
    }

    fn say(&self, violation: String) {
        self.violation.borrow_mut().get_or_insert(violation);
    }

    /// Commits as a backend does. Returns the record if it is refused.
    fn commit(&self, state: &mut State, commit: &Commit) -> Result<Rc<Facts>, Rc<Facts>> {
        let record = self.record_no(&commit.id);
        let before = self.facts_of(state, record);
        let mut after = Facts::clone(&before);
        if !commit.apply(&mut after) {
            return Err(before);
        }
        if before.has(name::END) && before.get(name::END) != after.get(name::END) {
            self.say("an end was rewritten".to_owned());
        }
        let after_no = self.facts.number(after);
        state.records.insert(record, after_no);
        Ok(self.facts.get(after_no))
    }

    fn put(state: &mut State, message: Message) {
        let at = state.queue.partition_point(|other| *other <= message);
        state.queue.insert(at, message);
    }

    fn members(&self, state: &State, place: &Place) -> BTreeMap<u32, EndedMember> {
        let facts = self.facts_of(state, self.record_no(&join_record(place)));
        ended_members(&facts, |_, fact| {
            let member: Member = serde_json::from_slice(fact).ok()?;
            EndedMember::of(member.id, member.end.as_bytes())
        })
    }

    /// Returns the places of the members of the join that a task waits for, by index.
    fn member_ids(child: &Child) -> Vec<(u32, TaskId)> {
        let scope = child.place.scope();
        let mut ids = Vec::new();
        for part in &child.step.flow.awaits {
            let place = scope.step(&part.step);
            for member in 0..part.count() {
                let place = if part.members.is_some() { place.member(member) } else { place.clone() };
                ids.push((u32::try_from(ids.len()).expect("few members"), place.id()));
            }
        }
        ids
    }

    /// Returns `true` if the join of a task that waits can be decided from what is recorded, or never will be.
    fn can_be_decided(&self, state: &State, child: &Child) -> bool {
        let members = self.members(state, &child.place);
        let undecided = |index: &u32, id: &TaskId| -> bool {
            !members.contains_key(index)
                && !self.facts_of(state, self.record_no(&RecordId::from(id))).has(name::END)
        };
        let all_ended = Self::member_ids(child).iter().all(|(index, id)| !undecided(index, id));
        all_ended
            || state.lost
            || !matches!(decide_join(&child.step.flow.awaits, &members), JoinDecision::Undecided(_))
    }

    fn is_done(&self, state: &State) -> bool {
        let ended = |record: &u16| self.facts_of(state, *record).has(name::END);
        self.expected.iter().all(ended)
    }

    /// Returns all steps that are possible in a state.
    fn steps(&self, state: &State) -> Vec<Transition> {
        let mut steps = Vec::new();
        for worker in 0..state.workers.len() {
            match &state.workers[worker].delivery {
                Some(delivery) => self.delivery_steps(state, worker, delivery, &mut steps),
                None => self.receive_steps(state, worker, &mut steps),
            }
        }
        self.fault_steps(state, &mut steps);
        steps
    }

    fn push(&self, steps: &mut Vec<Transition>, action: impl Into<String>, is_fault: bool, state: State) {
        let violation = self.violation.borrow_mut().take();
        steps.push(Transition { action: action.into(), is_fault, state, violation });
    }

    fn receive_steps(&self, state: &State, worker: usize, steps: &mut Vec<Transition>) {
        // Workers without a delivery are alike.
        if state.workers[..worker].iter().any(|other| other.delivery.is_none()) {
            return;
        }
        let distinct: BTreeSet<Message> = state.queue.iter().copied().collect();
        for message in distinct {
            let child = self.child_of(message.child);
            let waits = !child.step.flow.awaits.is_empty();
            if waits && message.generation >= LAST_GUARD && !self.can_be_decided(state, &child) {
                continue;
            }
            let mut next = state.clone();
            let at = next.queue.iter().position(|other| *other == message).expect("a message");
            next.queue.remove(at);
            next.workers[worker].delivery = Some(Delivery { message, settled: false, stage: Stage::Open });
            self.push(
                steps,
                format!("worker {worker} receives {} ({})", child.id(), message.generation),
                false,
                next,
            );
        }
    }

    fn delivery_steps(&self, state: &State, worker: usize, delivery: &Delivery, steps: &mut Vec<Transition>) {
        let child = self.child_of(delivery.message.child);
        let record = self.task_record(&child);
        let mut next = state.clone();
        let says = |what: &str| format!("worker {worker}, {}: {what}", child.id());
        let set = |next: &mut State, stage: Stage| {
            next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        };
        match &delivery.stage {
            Stage::Open => {
                let waits = !child.step.flow.awaits.is_empty() && !self.mutated(Mutation::StartUndecided);
                set(&mut next, if waits { Stage::Look(false) } else { Stage::Start(None) });
                self.push(steps, says("opens"), false, next);
            }
            Stage::Look(looked) => {
                let members = self.members(state, &child.place);
                let mut decision = decide_join(&child.step.flow.awaits, &members);
                let joined =
                    state.joined.get(&self.record_no(&join_record(&child.place))).copied().unwrap_or(0);
                if self.mutated(Mutation::CountDecides)
                    && usize::from(joined) >= Self::member_ids(&child).len()
                    && matches!(decision, JoinDecision::Undecided(_))
                {
                    decision = JoinDecision::Run(Vec::new());
                }
                let stage = match decision {
                    JoinDecision::Run(args) => Stage::Start(Some(self.args_no(args))),
                    JoinDecision::Upstream(_) => Stage::End(FailureKind::Upstream),
                    JoinDecision::Undecided(_) if *looked || self.mutated(Mutation::MembersNotAsked) => {
                        Stage::Wait
                    }
                    JoinDecision::Undecided(missing) => {
                        let ended = |(index, id): &(u32, TaskId)| {
                            let record = self.record_no(&RecordId::from(id));
                            let ended = self.facts_of(state, record).has(name::END);
                            (missing.contains(index) && ended)
                                .then(|| (u8::try_from(*index).expect("few members"), record))
                        };
                        let found: Vec<_> = Self::member_ids(&child).iter().filter_map(ended).collect();
                        if found.is_empty() { Stage::Wait } else { Stage::Rejoin(found) }
                    }
                };
                set(&mut next, stage);
                self.push(steps, says("looks at its join"), false, next);
            }
            Stage::Rejoin(found) => {
                let (index, member) = found[0];
                let facts = self.facts_of(state, member);
                if let (Some(end), Some(id)) =
                    (facts.get(name::END), self.record_names.get(u32::from(member)).task())
                {
                    let joining = self.joining_of(&child, u32::from(index));
                    let fact = json(&Member { id, end: String::from_utf8_lossy(end).into_owned() });
                    drop(self.commit(&mut next, &join(&joining, fact)));
                }
                let rest = found[1..].to_vec();
                set(&mut next, if rest.is_empty() { Stage::Look(true) } else { Stage::Rejoin(rest) });
                self.push(steps, says("lets a member join"), false, next);
            }
            Stage::Wait => {
                let facts = self.facts_of(state, record);
                let stage = match decide_parking(&facts, 1, u32::from(delivery.message.generation), false) {
                    ParkDecision::Over(follow_up) => self.follow_stage(state, &child, &follow_up, None),
                    ParkDecision::NewerGuard => Stage::Ack,
                    ParkDecision::Proceed => Stage::End(FailureKind::Revoked),
                    ParkDecision::Park(_) if self.mutated(Mutation::NoGuard) => Stage::Ack,
                    ParkDecision::Park(_) if self.mutated(Mutation::GuardStoredFirst) => Stage::StoreGuard,
                    ParkDecision::Park(_) => Stage::PublishGuard,
                };
                let parks = stage == Stage::PublishGuard;
                set(&mut next, stage);
                self.push(steps, says("reads its record"), false, next);
                if parks && self.has_lost_members(state, &child) {
                    let mut next = state.clone();
                    set(&mut next, Stage::End(FailureKind::Lost));
                    self.push(steps, says("has waited long enough for lost members"), false, next);
                }
            }
            Stage::PublishGuard => {
                Self::put(&mut next, guard_after(delivery.message));
                let stored_first = self.mutated(Mutation::GuardStoredFirst);
                set(&mut next, if stored_first { Stage::Ack } else { Stage::StoreGuard });
                self.push(steps, says("publishes a copy"), false, next);
            }
            Stage::StoreGuard => {
                self.store_guard(&mut next, &child, guard_after(delivery.message).generation);
                let stored_first = self.mutated(Mutation::GuardStoredFirst);
                set(&mut next, if stored_first { Stage::PublishGuard } else { Stage::Ack });
                self.push(steps, says("notes the copy"), false, next);
            }
            Stage::End(kind) => {
                let facts = self.facts_of(state, record);
                let stage = match recorded_follow_up(&facts, 1) {
                    Some(follow_up) => self.follow_stage(state, &child, &follow_up, None),
                    None => {
                        let failure = Failure::new(*kind, "no");
                        let commit = failure_without_run(&child.id(), &facts, 1, failure, NOW, TTL);
                        match self.commit(&mut next, &commit) {
                            Ok(facts) => {
                                let follow_up = recorded_follow_up(&facts, 1).expect("an end");
                                self.follow_stage(&next, &child, &follow_up, None)
                            }
                            Err(_) => Stage::Open,
                        }
                    }
                };
                set(&mut next, stage);
                self.push(steps, says("ends without a run"), false, next);
            }
            Stage::Start(gathered) => self.start_steps(state, worker, delivery, *gathered, steps),
            Stage::Run(claim, gathered) => {
                set(&mut next, Stage::Record(*claim, true, *gathered));
                self.push(steps, says("returns"), false, next);
                let fails = state.faults_left[Fault::Fail as usize] > 0 && !child.place.is_root();
                if fails {
                    let mut next = state.clone();
                    next.faults_left[Fault::Fail as usize] -= 1;
                    set(&mut next, Stage::Record(*claim, false, *gathered));
                    self.push(steps, says("fails"), true, next);
                }
            }
            Stage::Record(claim, success, _) => {
                let claim = self.claims.borrow()[*claim as usize].clone();
                let verdict = self.verdict(&child, &claim, *success);
                if self.mutated(Mutation::JoinBeforeRecord) {
                    let end = outcome_commit(&claim, &verdict, String::new(), NOW, TTL)
                        .facts
                        .pop()
                        .expect("an end")
                        .1;
                    for joining in joinings(&child.place, &child.step.flow) {
                        let fact =
                            json(&Member { id: child.id(), end: String::from_utf8_lossy(&end).into_owned() });
                        drop(self.commit(&mut next, &join(&joining, fact)));
                    }
                }
                let commit = outcome_commit(&claim, &verdict, String::new(), NOW, TTL);
                let memory =
                    commit.facts.iter().find(|(fact, _)| fact == name::END).map(|(_, end)| end.clone());
                let memory = memory.filter(|_| self.mutated(Mutation::ArgsFromMemory));
                let stage = match self.commit(&mut next, &commit) {
                    Ok(facts) => {
                        let follow_up = recorded_follow_up(&facts, 1).expect("an end");
                        self.follow_stage(&next, &child, &follow_up, memory)
                    }
                    Err(facts) => match explain_refusal(&facts, &claim, &verdict) {
                        CommitRefusal::Recorded => {
                            let follow_up = recorded_follow_up(&facts, 1).expect("an end");
                            self.follow_stage(&next, &child, &follow_up, memory)
                        }
                        CommitRefusal::Over(follow_up) => {
                            self.follow_stage(&next, &child, &follow_up, memory)
                        }
                        _ => Stage::Open,
                    },
                };
                if self.mutated(Mutation::JoinBeforeRecord) {
                    // A process may die between the two.
                    let mut between = next.clone();
                    between.records.insert(record, state.records.get(&record).copied().unwrap_or(0));
                    set(&mut between, delivery.stage.clone());
                    if between != *state {
                        self.push(steps, says("joins"), false, between);
                        return;
                    }
                }
                set(&mut next, stage);
                self.push(steps, says("records its outcome"), false, next);
            }
            Stage::Follow(acts, at, woken) => {
                self.act(state, worker, delivery, (*acts, *at), woken, steps);
            }
            Stage::NoteCopy(generation, woken) => {
                let waiting = self.record_names.get(u32::from(woken[0])).task().expect("a task");
                let mut mark = Commit::new(waiting);
                mark.unless = vec![name::END.into()];
                mark.facts = vec![(name::guard(1, u32::from(*generation)), "1".into())];
                drop(self.commit(&mut next, &mark));
                let rest = woken[1..].to_vec();
                set(&mut next, self.release_stage(&rest));
                self.push(steps, says("notes the copy of a task that waited"), false, next);
            }
            Stage::Mark => {
                let done = FollowUp::Ended { spawns: false }.done(&child.id(), 1).expect("a mark");
                drop(self.commit(&mut next, &done));
                set(&mut next, Stage::Ack);
                self.push(steps, says("marks its follow-up as done"), false, next);
            }
            Stage::Ack => {
                next.workers[worker].delivery = None;
                self.push(steps, says("acknowledges"), false, next);
            }
        }
    }

    fn start_steps(
        &self,
        state: &State,
        worker: usize,
        delivery: &Delivery,
        gathered: Option<u32>,
        steps: &mut Vec<Transition>,
    ) {
        let child = self.child_of(delivery.message.child);
        let record = self.task_record(&child);
        let facts = self.facts_of(state, record);
        let session = state.workers[worker].session;
        if state.alive & (1 << session) == 0 {
            // It opens another session first.
            let mut next = state.clone();
            next.workers[worker].session = next.next_session;
            next.alive |= 1 << next.next_session;
            next.next_session += 1;
            return self.push(steps, format!("worker {worker} opens a session"), false, next);
        }
        let starts = facts.iter().filter(|(fact, _)| fact.starts_with("s:")).count();
        let gathered_fact = gathered.map(|args| gathered_fact(&self.args.borrow()[args as usize]));
        let request = StartRequest {
            id: child.id(),
            attempt: 1,
            generation: u32::from(delivery.message.generation),
            run: format!("{session}-{starts}").as_str().into(),
            session: session.to_string().as_str().into(),
            worker: "w".into(),
            received_at: NOW,
            token: 0,
            alone: false,
            gathered: gathered_fact.filter(|_| !self.mutated(Mutation::ArgumentsUnchecked)),
        };
        let mut next = state.clone();
        let (mut commit, mut claim) = request.first(NOW);
        let own = session.to_string();
        let gone = |of: &crate::id::SessionId, _: &crate::id::RunId| {
            let number: u16 = of.as_str().parse().expect("a number");
            // A process knows what it runs itself.
            state.alive & (1 << number) == 0 || of.as_str() == own
        };
        let stage = loop {
            match self.commit(&mut next, &commit) {
                Ok(_) => break None,
                Err(facts) => match decide_start(&facts, &request, gone, NOW) {
                    StartDecision::AlreadyStarted(_) => break Some(Stage::Ack),
                    StartDecision::Over(follow_up) => {
                        break Some(self.follow_stage(state, &child, &follow_up, None));
                    }
                    StartDecision::NewerGuard => break Some(Stage::Ack),
                    StartDecision::OtherArguments => break Some(Stage::End(FailureKind::Lost)),
                    StartDecision::Revoked => break Some(Stage::End(FailureKind::Revoked)),
                    // It waits; what it waits for is another step.
                    StartDecision::Busy(_) => return,
                    StartDecision::TakeOver(take_over) => (commit, claim) = *take_over,
                },
            }
        };
        let granted = stage.is_none();
        let stage = stage.unwrap_or_else(|| {
            let mut claims = self.claims.borrow_mut();
            let known = claims.iter().position(|known| *known == claim);
            let number = known.unwrap_or_else(|| {
                claims.push(claim);
                claims.len() - 1
            });
            Stage::Run(u32::try_from(number).expect("few claims"), gathered)
        });
        if granted {
            self.check_start(&mut next, &child, record, gathered);
        }
        next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        self.push(steps, format!("worker {worker} requests a start of {}", child.id()), false, next);
    }

    /// Checks what must hold when a task starts.
    fn check_start(&self, state: &mut State, child: &Child, record: u16, gathered: Option<u32>) {
        let awaits = &child.step.flow.awaits;
        if awaits.is_empty() || state.lost {
            if let (Some(gathered), true) = (gathered, state.lost) {
                let before = state.started.insert(record, gathered);
                let known = self.facts_of(state, record).has(name::GATHERED);
                if before.is_some_and(|before| before != gathered) && known {
                    self.say("started with other arguments than before".to_owned());
                }
            }
            return;
        }
        let truth: BTreeMap<u32, EndedMember> = Self::member_ids(child)
            .into_iter()
            .filter_map(|(index, id)| {
                let facts = self.facts_of(state, self.record_no(&RecordId::from(&id)));
                Some((index, EndedMember::of(id, facts.get(name::END)?)?))
            })
            .collect();
        match (decide_join(awaits, &truth), gathered) {
            (JoinDecision::Run(args), Some(gathered)) => {
                if args != self.args.borrow()[gathered as usize] {
                    self.say("started with arguments that are not recorded".to_owned());
                }
                if state.started.insert(record, gathered).is_some_and(|before| before != gathered) {
                    self.say("started with other arguments than before".to_owned());
                }
            }
            _ => self.say("started before its join was decided".to_owned()),
        }
    }

    fn joining_of(&self, child: &Child, index: u32) -> Joining {
        let size = u32::try_from(Self::member_ids(child).len()).expect("few members");
        Joining { waiting: child.place.clone(), index, size, policy: Policy::Collect }
    }

    fn has_lost_members(&self, state: &State, child: &Child) -> bool {
        let members = self.members(state, &child.place);
        let root = self.facts_of(state, self.record_no(&RecordId::from(&task("R"))));
        let lost = |(index, id): &(u32, TaskId)| {
            !members.contains_key(index)
                && self.facts_of(state, self.record_no(&RecordId::from(id))).is_empty()
        };
        let published = root.is_empty() || (root.has(name::END) && root.has(name::FOLLOWED));
        published && Self::member_ids(child).iter().any(lost)
    }

    fn verdict(&self, child: &Child, claim: &Claim, success: bool) -> Verdict {
        if !success {
            return Verdict::Failure { kind: FailureKind::Error, error: ErrorText::from("broken") };
        }
        // Each run returns something else.
        let value = format!("{} by {}", child.step.name, claim.run.as_str());
        let arg = Arg { name: String::new(), kind: "string".to_owned(), value: value.into() };
        Verdict::Success(EncodedResults::of(&Results(vec![arg])))
    }

    /// Returns the stage after an end: the list of what has to be done.
    fn follow_stage(
        &self,
        state: &State,
        child: &Child,
        follow_up: &FollowUp,
        memory: Option<Bytes>,
    ) -> Stage {
        if *follow_up == FollowUp::Nothing {
            return Stage::Ack;
        }
        let facts = self.facts_of(state, self.task_record(child));
        let Some(end) = memory.or_else(|| facts.get(name::END).cloned()) else { return Stage::Open };
        let flow = &child.step.flow;
        let verdict = EndedMember::of(child.id(), &end).expect("an end").verdict;
        let mut acts = Vec::new();
        let publish = |children: Vec<Child>, acts: &mut Vec<Act>| {
            let (waiting, others): (Vec<_>, Vec<_>) =
                children.into_iter().partition(|child| !child.step.flow.awaits.is_empty());
            acts.extend(waiting.into_iter().chain(others).map(|child| Act::Publish(self.child(child))));
        };
        match verdict {
            EndVerdict::Success { results } => {
                publish(after_success(&child.place, flow, &results.0), &mut acts)
            }
            EndVerdict::Failure(failure) => {
                if !matches!(failure.kind, FailureKind::Revoked | FailureKind::Upstream) {
                    publish(after_failure(&child.place, flow, failure.error.message()), &mut acts);
                }
                let error = upstream_error(&child.id(), &failure);
                for never in never_after(&child.place, flow) {
                    let never = self.child(never);
                    if !self.mutated(Mutation::UpstreamLeftOut) {
                        acts.extend([Act::EndChild(never, error.clone()), Act::JoinChild(never)]);
                    }
                }
            }
        }
        if !self.mutated(Mutation::JoinBeforeRecord) {
            acts.push(Act::JoinOwn(end));
        }
        Stage::Follow(self.acts.number(acts), 0, Vec::new())
    }

    fn act(
        &self,
        state: &State,
        worker: usize,
        delivery: &Delivery,
        (acts, at): (u32, u8),
        woken: &[u16],
        steps: &mut Vec<Transition>,
    ) {
        let child = self.child_of(delivery.message.child);
        let mut next = state.clone();
        let mut woken: BTreeSet<u16> = woken.iter().copied().collect();
        if at == 0 && self.mutated(Mutation::AckBeforeFollow) && !delivery.settled {
            next.workers[worker].delivery.as_mut().expect("a delivery").settled = true;
            return self.push(steps, "acknowledges too early", false, next);
        }
        let list = self.acts.get(acts);
        let Some(act) = list.get(usize::from(at)) else {
            return self.release(state, worker, woken.into_iter().collect(), steps);
        };
        let what = match act {
            Act::Publish(number) => {
                let published = self.child_of(*number);
                self.check_publish(state, &child, &published);
                Self::put(&mut next, Message { child: *number, generation: 0 });
                let mut sent = Commit::new(published.id());
                sent.facts = vec![(name::SENT.into(), json(&NOW))];
                if !published.step.flow.awaits.is_empty() {
                    // The number of the child stands for its message.
                    sent.facts.push((name::MESSAGE.into(), number.to_string().into()));
                }
                drop(self.commit(&mut next, &sent));
                format!("publishes {}", published.id())
            }
            Act::EndChild(number, error) => {
                let ended = self.child_of(*number);
                let failure = Failure::new(FailureKind::Upstream, error.as_str());
                let commit = failure_without_run(&ended.id(), &Facts::new(), 1, failure, NOW, TTL);
                drop(self.commit(&mut next, &commit));
                format!("ends {}", ended.id())
            }
            Act::JoinChild(number) => {
                let ended = self.child_of(*number);
                let facts = self.facts_of(state, self.task_record(&ended));
                if let Some(end) = facts.get(name::END).cloned() {
                    self.join_all(&mut next, &ended, &end, &mut woken);
                }
                format!("lets {} join", ended.id())
            }
            Act::JoinOwn(end) => {
                self.join_all(&mut next, &child, end, &mut woken);
                "joins".to_owned()
            }
        };
        let stage = Stage::Follow(acts, at + 1, woken.into_iter().collect());
        next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        self.push(steps, format!("worker {worker}, {}: {what}", child.id()), false, next);
    }

    fn join_all(&self, state: &mut State, ended: &Child, end: &Bytes, woken: &mut BTreeSet<u16>) {
        let verdict = EndedMember::of(ended.id(), end).expect("an end");
        for joining in joinings(&ended.place, &ended.step.flow) {
            let fact = json(&Member { id: ended.id(), end: String::from_utf8_lossy(end).into_owned() });
            let commit = join(&joining, fact);
            if self.mutated(Mutation::CountDecides) {
                *state.joined.entry(self.record_no(&commit.id)).or_default() += 1;
            }
            if let Ok(facts) = self.commit(state, &commit)
                && may_be_decided(&joining, verdict.failed(), &commit.done(&facts))
            {
                woken.insert(self.record_no(&RecordId::from(&joining.waiting.id())));
            }
        }
    }

    fn release_stage(&self, woken: &[u16]) -> Stage {
        if woken.is_empty() {
            Stage::Mark
        } else {
            Stage::Follow(self.acts.number(Vec::new()), 1, woken.to_vec())
        }
    }

    /// Publishes a copy of the task that waits at the front of the list, if it still waits.
    fn release(&self, state: &State, worker: usize, woken: Vec<u16>, steps: &mut Vec<Transition>) {
        let mut next = state.clone();
        let Some(first) = woken.first() else {
            next.workers[worker].delivery.as_mut().expect("a delivery").stage = Stage::Mark;
            return self.push(steps, "has nobody to wake", false, next);
        };
        let facts = self.facts_of(state, *first);
        let waiting = waiting_callback(&facts).zip(facts.text(name::MESSAGE));
        let stage = match waiting {
            Some((generation, child)) => {
                let generation = u8::try_from(generation + 1).expect("few generations");
                let child = child.parse().expect("a number");
                Self::put(&mut next, Message { child, generation });
                Stage::NoteCopy(generation, woken)
            }
            None => self.release_stage(&woken[1..]),
        };
        next.workers[worker].delivery.as_mut().expect("a delivery").stage = stage;
        self.push(steps, format!("worker {worker} wakes a task that waits"), false, next);
    }

    fn store_guard(&self, state: &mut State, child: &Child, generation: u8) {
        let mut mark = Commit::new(child.id());
        mark.unless = vec![name::END.into()];
        mark.facts = vec![(name::guard(1, u32::from(generation)), "1".into())];
        drop(self.commit(state, &mark));
    }

    /// Checks what must hold when a task is published.
    fn check_publish(&self, state: &State, parent: &Child, published: &Child) {
        if state.lost {
            return;
        }
        if !self.facts_of(state, self.task_record(parent)).has(name::END) {
            self.say(format!(
                "{} is published before the end of {} is recorded",
                published.id(),
                parent.id()
            ));
        }
        let children = self.children.borrow();
        let in_broker = |message: &Message| {
            let other = &children[usize::from(message.child)];
            other.place == published.place && **other != *published
        };
        let held =
            state.workers.iter().filter_map(|worker| worker.delivery.as_ref()).map(|held| &held.message);
        if state.queue.iter().chain(held).any(in_broker) {
            self.say(format!("{} is published with other arguments", published.id()));
        }
        let facts = self.facts_of(state, self.task_record(parent));
        let recorded = facts.get(name::END).and_then(|end| EndedMember::of(parent.id(), end));
        if let Some(EndedMember { verdict: EndVerdict::Success { results }, .. }) = recorded {
            let right = after_success(&parent.place, &parent.step.flow, &results.0);
            if !right.contains(published) {
                self.say(format!("{} is published with arguments that are not recorded", published.id()));
            }
        }
    }

    fn fault_steps(&self, state: &State, steps: &mut Vec<Transition>) {
        let with = |fault: Fault| {
            let mut next = state.clone();
            let left = &mut next.faults_left[fault as usize];
            *left = left.checked_sub(1)?;
            Some(next)
        };
        for worker in 0..state.workers.len() {
            let Some(delivery) = &state.workers[worker].delivery else { continue };
            if let Some(mut next) = with(Fault::Crash) {
                next.alive &= !(1 << next.workers[worker].session);
                next.workers[worker] = WorkerState { session: next.next_session, delivery: None };
                next.alive |= 1 << next.next_session;
                next.next_session += 1;
                if !delivery.settled {
                    Self::put(&mut next, delivery.message);
                }
                self.push(steps, format!("worker {worker} dies"), true, next);
            }
            if !delivery.settled
                && let Some(mut next) = with(Fault::Drop)
            {
                next.workers[worker].delivery.as_mut().expect("a delivery").settled = true;
                Self::put(&mut next, delivery.message);
                self.push(steps, format!("worker {worker} loses its connection"), true, next);
            }
            if state.alive & (1 << state.workers[worker].session) != 0
                && let Some(mut next) = with(Fault::Expire)
            {
                next.alive &= !(1 << next.workers[worker].session);
                self.push(steps, format!("the session of worker {worker} expires"), true, next);
            }
        }
        if let Some(next) = with(Fault::Duplicate) {
            for message in state.queue.iter().collect::<BTreeSet<_>>() {
                let mut next = next.clone();
                Self::put(&mut next, *message);
                self.push(steps, "a message arrives twice", true, next);
            }
        }
        for (record, facts) in &state.records {
            let is_join = self.record_names.get(u32::from(*record)).task().is_none();
            let fault = if is_join { Fault::LoseJoin } else { Fault::LoseRecord };
            if *facts == 0 || (!is_join && !self.facts.get(*facts).has(name::FOLLOWED)) {
                continue;
            }
            if let Some(mut next) = with(fault) {
                next.records.insert(*record, 0);
                next.lost = true;
                next.lost_record |= !is_join;
                self.push(steps, "a record is lost", true, next);
            }
        }
    }

    /// Returns the invariant that a state violates, if any.
    fn violation(&self, state: &State) -> Option<String> {
        let held =
            state.workers.iter().any(|worker| worker.delivery.as_ref().is_some_and(|held| !held.settled));
        if state.queue.is_empty() && !held && !self.is_done(state) && !state.lost_record {
            let busy = state.workers.iter().any(|worker| worker.delivery.is_some());
            return (!busy).then(|| "lost: no message, and the workflow has not ended".to_owned());
        }
        None
    }
}

fn guard_after(message: Message) -> Message {
    Message { generation: message.generation.saturating_add(1).min(LAST_GUARD), ..message }
}

fn task(id: &str) -> TaskId {
    id.try_into().expect("an id")
}

/// Result of a search.
struct Report {
    states: usize,
    violation: Option<String>,
}

/// Searches all states breadth first. Reports a violation with the shortest trace to it, and states from which no path
/// without faults leads to an end.
fn search(model: &Model) -> Report {
    let initial = Rc::new(model.initial());
    let mut numbers: HashMap<Rc<State>, u32> = [(Rc::clone(&initial), 0)].into();
    let mut states = vec![initial];
    let mut from: Vec<(u32, String)> = vec![(0, String::new())];
    let mut back: Vec<Vec<u32>> = vec![Vec::new()];
    let mut at = 0;
    while at < states.len() {
        let state = Rc::clone(&states[at]);
        let number = u32::try_from(at).expect("fewer than 2^32 states");
        for Transition { action, is_fault, state: next, violation } in model.steps(&state) {
            let violation = violation.or_else(|| model.violation(&next));
            if let Some(violation) = violation {
                let trace = trace(&from, number);
                let violation = format!("{violation}\n  {trace}\n  {action}");
                return Report { states: states.len(), violation: Some(violation) };
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
    let stuck = ends.iter().zip(&states).position(|(ends, state)| !ends && !state.lost_record);
    let violation = stuck.map(|at| {
        let trace = trace(&from, u32::try_from(at).expect("a state"));
        format!("stuck: no path without faults leads to an end\n  {trace}")
    });
    Report { states: states.len(), violation }
}

fn trace(from: &[(u32, String)], mut at: u32) -> String {
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
fn walk(model: &Model, seed: u64, at_least: usize) -> Result<usize, String> {
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
            let Transition { action, state: next, violation, .. } =
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
        if !model.is_done(&state) && !state.lost_record {
            return Err(format!("not ended after {} steps\n  {}", actions.len(), actions.join("\n  ")));
        }
        all += actions.len();
    }
    Ok(all)
}

fn inc() -> Signature {
    Signature::new("inc")
}

/// Two members, and a task that waits for them.
fn chord() -> Vec<StepPlan> {
    vec![StepPlan::new("m", inc()).each(vec![vec![], vec![]]), StepPlan::new("cb", inc()).after(["m"])]
}

/// Two members, a task that waits for them, its successor, and an error callback.
fn chord_with_successor() -> Vec<StepPlan> {
    vec![
        StepPlan::new("m", inc()).each(vec![vec![], vec![]]).on_error(["e"]),
        StepPlan::new("cb", inc()).after(["m"]).on_error(["e"]),
        StepPlan::new("s", inc()).after(["cb"]),
        StepPlan::new("e", inc()),
    ]
}

fn chain() -> Vec<StepPlan> {
    vec![
        StepPlan::new("a", inc()).on_error(["e"]),
        StepPlan::new("b", inc()).after(["a"]),
        StepPlan::new("e", inc()),
    ]
}

/// A diamond with a group behind it, and a task that waits for the group.
fn graph() -> Vec<StepPlan> {
    vec![
        StepPlan::new("a", inc()),
        StepPlan::new("b", inc()).after(["a"]),
        StepPlan::new("c", inc()).after(["a"]),
        StepPlan::new("d", inc()).after(["b", "c"]),
        StepPlan::new("m", inc()).each(vec![vec![], vec![]]).after(["d"]),
        StepPlan::new("cb", inc()).after(["m", "a"]),
        StepPlan::new("s", inc()).after(["cb"]),
    ]
}

use Fault::{Crash, Drop, Duplicate, Expire, Fail, LoseJoin, LoseRecord};

const SCENES: [Scene; 9] = [
    scene("chain: crash, expiry", chain, 2, &[Crash, Expire]),
    scene("chain: failure, crash, duplicate", chain, 2, &[Fail, Crash, Duplicate]),
    scene("chord, one worker: crash, duplicate", chord, 1, &[Crash, Duplicate]),
    scene("chord, one worker: lost join, crash", chord, 1, &[LoseJoin, Crash]),
    scene("chord, one worker: lost join, lost record", chord, 1, &[LoseJoin, LoseRecord]),
    scene("chord, one worker: failure, crash", chord_with_successor, 1, &[Fail, Crash]),
    scene("chord, one worker: two failures, drop", chord_with_successor, 1, &[Fail, Fail, Drop]),
    scene("chord: expiry", chord, 2, &[Expire]),
    scene("chord, one worker: lost, again, crash", chord, 1, &[LoseJoin, LoseRecord, Duplicate, Crash]),
];

/// Scenes that are too large for all states.
const WALKS: [Scene; 4] = [
    scene("walk: chord", chord_with_successor, 2, &[Crash, Crash, Drop, Expire, Duplicate]),
    scene("walk: chord, failures", chord_with_successor, 2, &[Fail, Fail, Crash, Drop, Expire, Duplicate]),
    scene("walk: graph", graph, 2, &[Crash, Crash, Drop, Expire, Duplicate, Fail]),
    scene("walk: graph, lost data", graph, 2, &[Crash, LoseJoin, Drop, Expire]),
];

const fn scene(
    name: &'static str,
    steps: fn() -> Vec<StepPlan>,
    workers: usize,
    faults: &'static [Fault],
) -> Scene {
    Scene { name, steps, workers, faults, mutation: None }
}

fn large() -> bool {
    std::env::var("MACHINIST_MODEL").is_ok_and(|size| size == "large")
}

#[test]
fn every_workflow_ends_and_nothing_starts_undecided() {
    for scene in SCENES {
        let (name, started) = (scene.name, std::time::Instant::now());
        let report = search(&Model::new(scene));
        println!("{name}: {} states, {:.1?}", report.states, started.elapsed());
        assert!(report.violation.is_none(), "{name}: {}", report.violation.unwrap_or_default());
    }
}

#[test]
fn random_walks_find_nothing_either() {
    let steps = if large() { 10_000_000 } else { 250_000 };
    for scene in WALKS {
        let (name, seed) = (scene.name, rand::random());
        let walked = walk(&Model::new(scene), seed, steps)
            .unwrap_or_else(|found| panic!("{name}, seed {seed}: {found}"));
        println!("{name}: seed {seed}, {walked} steps");
    }
}

#[test]
fn every_broken_rule_of_workflows_is_found() {
    use Mutation::*;
    let mutations = [
        (JoinBeforeRecord, "chord: expiry", "started"),
        (AckBeforeFollow, "chord, one worker: crash, duplicate", "lost"),
        (NoGuard, "chord, one worker: lost join, crash", "lost"),
        (GuardStoredFirst, "chord, one worker: lost join, crash", "lost"),
        (ArgsFromMemory, "chain: crash, expiry", "R."),
        (UpstreamLeftOut, "chain: failure, crash, duplicate", "lost"),
        (StartUndecided, "chord: expiry", "started before"),
        (ArgumentsUnchecked, "chord, one worker: lost, again, crash", "started with other"),
        (MembersNotAsked, "chord, one worker: lost join, crash", "stuck"),
        (CountDecides, "chord, one worker: crash, duplicate", "started before"),
    ];
    for (mutation, name, expected) in mutations {
        let scene = SCENES.into_iter().find(|scene| scene.name == name).expect("a scene");
        let report = search(&Model::new(Scene { mutation: Some(mutation), ..scene }));
        let violation = report.violation.unwrap_or_default();
        let found = violation.lines().next().unwrap_or("nothing");
        println!("{mutation:?}: {found} ({} states)", report.states);
        assert!(found.starts_with(expected), "{mutation:?} in {name}: {found}");
    }
}

/// Facts that a task which waits is started with.
#[test]
fn a_digest_is_that_of_its_arguments() {
    let arg = |value: i64| Arg { name: String::new(), kind: "int64".to_owned(), value: value.into() };
    let (one, other): ((FactName, Bytes), _) = (gathered_fact(&[arg(1)]), gathered_fact(&[arg(2)]));
    assert!(one.0 == other.0 && one.1 != other.1 && one == gathered_fact(&[arg(1)]));
    assert!(failure_of(&Facts::new()).is_none() && Flow::default().is_empty());
}
