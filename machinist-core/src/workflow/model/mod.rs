//! Search over workflows: small graphs, two workers, every interleaving of their steps and faults.
//!
//! The decisions are the production functions: what follows an end, the joins, the decision about a task that waits, starts
//! and outcomes. The steps are in the order of `worker/continuation.rs` and `worker/callback.rs`. Steps that nobody else can
//! see are part of the step before them: a death between the two is a death after either. What one task's delivery does beyond
//! that (renewals, hand-backs, lost replies to the request of a start) is searched in `record/model`. Small scenes are
//! searched exhaustively; larger ones up to a number of states, or by random walks, whose seeds are printed.
//!
//! `MACHINIST_MODEL=large cargo model -- --nocapture` searches further.

mod deliveries;
mod search;
mod state;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;

use self::{
    search::{FlowReport, search, walk},
    state::{FlowAct, FlowDelivery, FlowMessage, FlowStage, FlowState, FlowWorker, Interned},
};
use super::{Sendable, StepPlan, Workflow};
use crate::{
    args::Arg,
    backend::Commit,
    clock::Timestamp,
    flow::{JoinPart, Step, StepPlace, spawned_root},
    id::{RecordId, RecordKind, TaskId},
    record::{
        Child, Claim, End, EndedMember, FactName, Facts, FailureKind, JoinDecision, JoinedMember, MemberSlot,
        RevokeDecision, RevokeMode, continued_by_record, decide_join, decide_revoke, ended_members,
        failure_of, gathered_fact, is_replacement_under_way, join_record, member_slots, name, never_after,
        revoke_root, revoked_root,
    },
    signature::Signature,
};

const NOW: Timestamp = Timestamp::from_micros(1_000_000);
/// Task that is replaced by a chain.
const SWAP: &str = "swap";
const TTL: Duration = Duration::from_secs(3600);
/// Generation from which on a copy of a task that waits comes only when its join can be decided.
const LAST_GUARD: u8 = 2;

/// FlowFault, which occurs as often as a scene lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowFault {
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
    /// Somebody revokes the workflow: first its mark, then task after task. That may stop at any time.
    Revoke,
    /// A server does what a continuation asks for, and the answer is lost: the worker asks again.
    Reply,
}

const FAULTS: usize = 9;
/// Maximum number of states of a scene that is searched exhaustively.
const MOST: usize = 1_000_000;

/// Rule that is broken on purpose: the search must find what the rule prevents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowMutation {
    /// A member joins with what its handler returned, before that is recorded.
    JoinBeforeRecord,
    /// A delivery is acknowledged before the workflow has gone on.
    AckBeforeFollow,
    /// A task that waits is acknowledged without a further copy.
    NoGuard,
    /// A copy of a task that waits is noted before it is published.
    GuardStoredFirst,
    /// Tasks that follow get what the handler returned, and not what is recorded.
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
    /// Members count as published once the root is followed up.
    RootPublishesAll,
    /// Error callbacks are not sent.
    CallbackLeftOut,
    /// A task that must not start is ended although another worker runs it.
    EndOverRun,
}

/// One search.
#[derive(Debug, Clone)]
struct FlowScene {
    name: &'static str,
    steps: fn() -> Vec<StepPlan>,
    workers: usize,
    faults: &'static [FlowFault],
    mutation: Option<FlowMutation>,
    /// Number of states after which the search stops.
    most: usize,
}

impl FlowScene {
    /// Stops after this number of states: the scene has more, or nobody has counted them.
    const fn bounded(self, most: usize) -> Self {
        Self { most, ..self }
    }

    fn search(self) -> FlowReport {
        let most = if large() { usize::MAX } else { self.most };
        search(&FlowModel::new(self), most)
    }
}

struct FlowModel {
    scene: FlowScene,
    root: FlowMessage,
    /// Children by number. Two that differ are two numbers, even at one place.
    children: RefCell<Vec<Rc<Child>>>,
    record_names: Interned<RecordId>,
    facts: Interned<Facts>,
    claims: RefCell<Vec<Claim>>,
    args: RefCell<Vec<Vec<Arg>>>,
    acts: Interned<Vec<FlowAct>>,
    /// Records of the tasks that must end; the root's is the last.
    expected: Vec<u16>,
    /// Error callbacks, which must end once they are owed.
    callbacks: Vec<ErrorCallback>,
    /// Steps before each step, those before them, and so on.
    before: BTreeMap<String, BTreeSet<String>>,
    /// Kinds of the failures that records say, by the number of their facts.
    failures: RefCell<HashMap<u32, Option<FailureKind>>>,
    violation: RefCell<Option<String>>,
}

/// A task that is sent when one of these steps has failed.
struct ErrorCallback {
    record: u16,
    catches: BTreeSet<String>,
}

struct FlowStep {
    action: String,
    is_fault: bool,
    state: FlowState,
    violation: Option<String>,
}

impl FlowModel {
    fn new(scene: FlowScene) -> Self {
        let plan = (scene.steps)();
        let before = steps_before(&plan);
        let caught = plan.iter().flat_map(|step| step.on_error.iter().map(move |callback| (callback, step)));
        let mut catches: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (callback, step) in caught {
            catches.entry(callback.clone()).or_default().insert(step.name.clone());
        }
        let workflow = Workflow::of_steps(plan).expect("a workflow").with_id(task("R"));
        let parts = workflow.into_parts().parts;
        let flow = *parts.flow.expect("a flow");
        let place = StepPlace::root(task("R"));
        let step = Step { name: "root".to_owned(), task: parts.name, flow, ..Step::default() };
        let root = Child { place, step, outline: None };
        let mut model = Self {
            scene,
            root: FlowMessage { child: 0, generation: 0 },
            children: RefCell::default(),
            record_names: Interned::new(),
            facts: Interned::new(),
            claims: RefCell::default(),
            args: RefCell::default(),
            acts: Interned::new(),
            expected: Vec::new(),
            callbacks: Vec::new(),
            before,
            failures: RefCell::default(),
            violation: RefCell::default(),
        };
        model.facts.number(Facts::new());
        let all = never_after(&root.place, &root.step.flow);
        model.root.child = model.child(root.clone());
        model.expected =
            all.iter().chain([&root]).map(|child| model.record_no(&RecordId::from(&child.id()))).collect();
        let callback = |(name, catches): (String, BTreeSet<String>)| {
            let id = root.place.step(&name).id();
            ErrorCallback { record: model.record_no(&RecordId::from(&id)), catches }
        };
        model.callbacks = catches.into_iter().map(callback).collect();
        model
    }

    fn initial(&self) -> FlowState {
        let mut faults_left = [0; FAULTS];
        for fault in self.scene.faults {
            faults_left[*fault as usize] += 1;
        }
        let worker = |session| FlowWorker { session, delivery: None };
        let workers = u8::try_from(self.scene.workers).expect("few workers");
        FlowState {
            records: BTreeMap::new(),
            queue: vec![self.root],
            workers: (0..workers).map(worker).collect(),
            alive: (1 << workers) - 1,
            next_session: workers,
            faults_left,
            lost: false,
            lost_records: BTreeSet::new(),
            started: BTreeMap::new(),
            revoking: None,
            joined: BTreeMap::new(),
        }
    }

    fn mutated(&self, mutation: FlowMutation) -> bool {
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

    fn facts_of(&self, state: &FlowState, record: u16) -> Rc<Facts> {
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
    fn commit(&self, state: &mut FlowState, commit: &Commit) -> Result<Rc<Facts>, Rc<Facts>> {
        let record = self.record_no(&commit.id);
        let before = self.facts_of(state, record);
        let mut after = Facts::clone(&before);
        if !commit.apply(&mut after) {
            return Err(before);
        }
        if before.has(name::END) && before.get(name::END) != after.get(name::END) {
            self.say("an end was rewritten".to_owned());
        }
        let ends = !before.has(name::END) && after.has(name::END);
        let without_run = ends && after.read::<End>(name::END).is_some_and(|end| end.origin.is_none());
        let after_no = self.facts.number(after);
        state.records.insert(record, after_no);
        if ends
            && state.lost_records.is_empty()
            && let Some(id) = commit.id.task()
        {
            self.check_end(state, &id, self.failure_kind(after_no));
            if without_run && Self::live_runs(state).into_iter().any(|run| self.record_of(run) == record) {
                self.say(format!("decided over a live run: {id} is ended by somebody else"));
            }
        }
        Ok(self.facts.get(after_no))
    }

    /// Checks an end that was just recorded: a task succeeds or fails by itself only if all that it depends on has succeeded,
    /// fails only if its handler does, and ends in upstream only because of a failure.
    fn check_end(&self, state: &FlowState, id: &TaskId, failure: Option<FailureKind>) {
        let behind_failure = self.is_behind_failure(state, id);
        let is_right = match failure {
            None => !behind_failure,
            Some(FailureKind::Error) => !behind_failure && self.used(state, FlowFault::Fail),
            Some(FailureKind::Upstream) => behind_failure,
            Some(FailureKind::Revoked) => self.used(state, FlowFault::Revoke),
            Some(_) => false,
        };
        if !is_right {
            let how = failure.map_or("SUCCESS", |kind| kind.as_str());
            let failed = if behind_failure { "has failed" } else { "has not failed" };
            self.say(format!("ended wrongly: {id} in {how}, and something before it {failed}"));
        }
    }

    /// Returns `true` if a task has failed on which this one depends.
    fn is_behind_failure(&self, state: &FlowState, id: &TaskId) -> bool {
        let (step, member, rest) = place_of(id);
        let no_steps = BTreeSet::new();
        let before = self.before.get(step).unwrap_or(&no_steps);
        state.records.iter().any(|(record, facts)| {
            let Some(other) = self.record_names.get(u32::from(*record)).task() else { return false };
            let (other_step, other_member, other_rest) = place_of(&other);
            let comes_first = other_member == member && other_rest < rest;
            (before.contains(other_step) || comes_first) && self.failure_kind(*facts).is_some()
        })
    }

    /// Returns the kind of the failure that these facts say.
    fn failure_kind(&self, facts: u32) -> Option<FailureKind> {
        if let Some(known) = self.failures.borrow().get(&facts) {
            return *known;
        }
        let kind = failure_of(&self.facts.get(facts)).map(|failure| failure.kind);
        self.failures.borrow_mut().insert(facts, kind);
        kind
    }

    /// Returns `true` if a fault has occurred.
    fn used(&self, state: &FlowState, fault: FlowFault) -> bool {
        let all = self.scene.faults.iter().filter(|own| **own == fault).count();
        usize::from(state.faults_left[fault as usize]) < all
    }

    fn put(state: &mut FlowState, message: FlowMessage) {
        let at = state.queue.partition_point(|other| *other <= message);
        state.queue.insert(at, message);
    }

    fn members(&self, state: &FlowState, place: &StepPlace) -> BTreeMap<u32, EndedMember> {
        let facts = self.facts_of(state, self.record_no(&join_record(place)));
        ended_members(&facts, |_, fact| {
            let member: JoinedMember = serde_json::from_slice(fact).ok()?;
            EndedMember::of(member.id, member.end.as_bytes())
        })
    }

    /// Returns the members of the join that a task waits for.
    fn slots_of(child: &Child) -> Vec<MemberSlot<'_>> {
        let parts = &child.step.flow.awaits;
        member_slots(&child.place, parts, 0..parts.iter().map(JoinPart::count).sum())
    }

    /// Returns `true` if the join of a task that waits can be decided from what is recorded, or never will be.
    fn can_be_decided(&self, state: &FlowState, child: &Child) -> bool {
        let members = self.members(state, &child.place);
        let ended = |slot: &MemberSlot<'_>| {
            members.contains_key(&slot.index) || self.counting_end(state, &slot.id).is_some()
        };
        let all_ended = Self::slots_of(child).iter().all(ended);
        all_ended
            || state.lost
            || self.is_revoked(state)
            || !matches!(decide_join(&child.step.flow.awaits, &members), JoinDecision::Undecided(_))
    }

    /// Returns `true` if the mark says that the workflow was revoked.
    fn is_revoked(&self, state: &FlowState) -> bool {
        let mark = || self.facts_of(state, self.record_no(&revoked_root(&task("R"))));
        state.revoking.is_some() && mark().has(name::REVOKED)
    }

    fn task_facts(&self, state: &FlowState, id: &TaskId) -> Rc<Facts> {
        self.facts_of(state, self.record_no(&RecordId::from(id)))
    }

    /// Returns the task whose end counts for a member, and its record; `None` while what replaces it is under way.
    fn counting_record(&self, state: &FlowState, id: &TaskId) -> Option<(TaskId, Rc<Facts>)> {
        let (mut id, mut facts) = (id.clone(), self.task_facts(state, id));
        while let Some(next) = continued_by_record(&facts) {
            let root = self.task_facts(state, &spawned_root(&next));
            let last = self.task_facts(state, &next);
            if is_replacement_under_way(&facts, &root, &last) {
                return None;
            }
            (id, facts) = (next, last);
        }
        Some((id, facts))
    }

    /// Returns the task whose end counts for a task, and that end.
    fn counting_end(&self, state: &FlowState, id: &TaskId) -> Option<(TaskId, Bytes)> {
        let (id, facts) = self.counting_record(state, id)?;
        Some((id, facts.get(name::END)?.clone()))
    }

    fn is_done(&self, state: &FlowState) -> bool {
        // Only records of tasks that have ended are lost.
        let ended = |record: &u16| {
            self.facts_of(state, *record).has(name::END) || state.lost_records.contains(record)
        };
        self.expected.iter().all(ended)
            && self.callbacks.iter().all(|callback| ended(&callback.record) || !self.is_owed(state, callback))
    }

    /// Returns `true` if an error callback is published, or must be.
    fn is_owed(&self, state: &FlowState, callback: &ErrorCallback) -> bool {
        let has_failed = |(record, facts): (&u16, &u32)| {
            let Some(id) = self.record_names.get(u32::from(*record)).task() else { return false };
            let failure = self.failure_kind(*facts);
            callback.catches.contains(place_of(&id).0)
                && failure.is_some_and(|kind| !matches!(kind, FailureKind::Upstream | FailureKind::Revoked))
        };
        !self.facts_of(state, callback.record).is_empty() || state.records.iter().any(has_failed)
    }

    /// Returns the tasks that live sessions run.
    fn live_runs(state: &FlowState) -> Vec<u16> {
        let running = |worker: &FlowWorker| {
            let delivery = worker.delivery.as_ref()?;
            let is_run = matches!(delivery.stage, FlowStage::Record(..));
            (is_run && state.alive & (1 << worker.session) != 0).then_some(delivery.message.child)
        };
        state.workers.iter().filter_map(running).collect()
    }

    fn record_of(&self, child: u16) -> u16 {
        self.task_record(&self.child_of(child))
    }

    /// Returns all steps that are possible in a state.
    fn steps(&self, state: &FlowState) -> Vec<FlowStep> {
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

    fn push(&self, steps: &mut Vec<FlowStep>, action: impl Into<String>, is_fault: bool, state: FlowState) {
        let violation = self.violation.borrow_mut().take();
        steps.push(FlowStep { action: action.into(), is_fault, state, violation });
    }

    fn receive_steps(&self, state: &FlowState, worker: usize, steps: &mut Vec<FlowStep>) {
        // Workers without a delivery are alike.
        if state.workers[..worker].iter().any(|other| other.delivery.is_none()) {
            return;
        }
        let distinct: BTreeSet<FlowMessage> = state.queue.iter().copied().collect();
        for message in distinct {
            let child = self.child_of(message.child);
            let waits = !child.step.flow.awaits.is_empty();
            if waits && message.generation >= LAST_GUARD && !self.can_be_decided(state, &child) {
                continue;
            }
            let mut next = state.clone();
            let at = next.queue.iter().position(|other| *other == message).expect("a message");
            next.queue.remove(at);
            let stage = self.opened(state, &child);
            next.workers[worker].delivery = Some(FlowDelivery { message, settled: false, stage });
            self.push(
                steps,
                format!("worker {worker} receives {} ({})", child.id(), message.generation),
                false,
                next,
            );
        }
    }

    fn fault_steps(&self, state: &FlowState, steps: &mut Vec<FlowStep>) {
        let with = |fault: FlowFault| {
            let mut next = state.clone();
            let left = &mut next.faults_left[fault as usize];
            *left = left.checked_sub(1)?;
            Some(next)
        };
        for worker in 0..state.workers.len() {
            let Some(delivery) = &state.workers[worker].delivery else { continue };
            if let Some(mut next) = with(FlowFault::Crash) {
                next.alive &= !(1 << next.workers[worker].session);
                next.workers[worker] = FlowWorker { session: next.next_session, delivery: None };
                next.alive |= 1 << next.next_session;
                next.next_session += 1;
                if !delivery.settled {
                    Self::put(&mut next, delivery.message);
                }
                self.push(steps, format!("worker {worker} dies"), true, next);
            }
            if !delivery.settled
                && let Some(mut next) = with(FlowFault::Drop)
            {
                next.workers[worker].delivery.as_mut().expect("a delivery").settled = true;
                Self::put(&mut next, delivery.message);
                self.push(steps, format!("worker {worker} loses its connection"), true, next);
            }
            if state.alive & (1 << state.workers[worker].session) != 0
                && let Some(mut next) = with(FlowFault::Expire)
            {
                next.alive &= !(1 << next.workers[worker].session);
                self.push(steps, format!("the session of worker {worker} expires"), true, next);
            }
        }
        if let Some(next) = with(FlowFault::Duplicate) {
            for message in state.queue.iter().collect::<BTreeSet<_>>() {
                let mut next = next.clone();
                Self::put(&mut next, *message);
                self.push(steps, "a message arrives twice", true, next);
            }
        }
        if state.revoking.is_none()
            && let Some(mut next) = with(FlowFault::Revoke)
        {
            drop(self.commit(&mut next, &revoke_root(&task("R"), NOW, TTL)));
            next.revoking = Some(0);
            self.push(steps, "somebody revokes the workflow", true, next);
        }
        if let Some(at) = state.revoking
            && let Some(record) = self.revocable(at)
        {
            // A fault too: nothing may depend on whether that goes on.
            let mut next = state.clone();
            next.revoking = Some(at + 1);
            let id = self.record_names.get(u32::from(record)).task().expect("a task");
            let facts = self.facts_of(state, record);
            if !facts.is_empty() {
                match decide_revoke(&id, &facts, RevokeMode::Cancel, NOW, TTL) {
                    RevokeDecision::Ended(_) => {}
                    RevokeDecision::EndNow(commit) | RevokeDecision::AskRun(commit, _) => {
                        drop(self.commit(&mut next, &commit));
                    }
                }
            }
            self.push(steps, format!("{id} is revoked"), true, next);
        }
        for (record, facts) in &state.records {
            let kind = self.record_names.get(u32::from(*record)).kind();
            let is_join = kind == RecordKind::Join;
            if !is_join && kind != RecordKind::Task {
                continue;
            }
            let fault = if is_join { FlowFault::LoseJoin } else { FlowFault::LoseRecord };
            if *facts == 0 || (!is_join && !self.facts.get(*facts).has(name::FOLLOWED)) {
                continue;
            }
            if let Some(mut next) = with(fault) {
                next.records.insert(*record, 0);
                next.lost = true;
                if !is_join {
                    next.lost_records.insert(*record);
                }
                self.push(steps, "a record is lost", true, next);
            }
        }
    }

    /// Returns the task that is revoked at this position: the root, then the others, then the error callbacks.
    fn revocable(&self, at: u8) -> Option<u16> {
        let (root, others) = self.expected.split_last()?;
        let callbacks = self.callbacks.iter().map(|callback| &callback.record);
        [root].into_iter().chain(others).chain(callbacks).nth(usize::from(at)).copied()
    }

    /// Returns the invariant that a state violates, if any.
    fn violation(&self, state: &FlowState) -> Option<String> {
        if let [one, other] = Self::live_runs(state)[..]
            && state.lost_records.is_empty()
            && self.record_of(one) == self.record_of(other)
        {
            return Some("two runs: two live sessions run the same task".to_owned());
        }
        let held =
            state.workers.iter().any(|worker| worker.delivery.as_ref().is_some_and(|held| !held.settled));
        if state.queue.is_empty() && !held && !self.is_done(state) {
            let busy = state.workers.iter().any(|worker| worker.delivery.is_some());
            return (!busy).then(|| "lost: no message, and the workflow has not ended".to_owned());
        }
        None
    }
}

fn task(id: &str) -> TaskId {
    id.try_into().expect("an id")
}

/// Returns the names of the steps before each step, those before them, and so on. The root, whose name is empty, comes before
/// all of them.
fn steps_before(plan: &[StepPlan]) -> BTreeMap<String, BTreeSet<String>> {
    let mut before: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // Each pass goes one step further back.
    for _ in plan {
        for step in plan {
            let mut all: BTreeSet<String> = step.after.iter().cloned().chain([String::new()]).collect();
            all.extend(step.after.iter().filter_map(|name| before.get(name)).flatten().cloned());
            before.insert(step.name.clone(), all);
        }
    }
    before
}

/// Returns the step of a task, its member of that step, and the rest of its id. The tasks of a member run in the order of the
/// rests: they are its steps, or what replaces it.
fn place_of(id: &TaskId) -> (&str, &str, &str) {
    let id = id.as_str();
    let mut parts = id.split('+').next().unwrap_or_default().split('.').skip(1);
    let step = parts.next().unwrap_or_default();
    let index = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    let part = |text: &str| if text.is_empty() { 0 } else { 1 + text.len() };
    let end = "R".len() + part(step) + part(index.unwrap_or_default());
    (step, &id[..end], &id[end..])
}

fn inc() -> Signature {
    Signature::new("inc")
}

/// One member, and a task that waits for it.
fn chord_of_one() -> Vec<StepPlan> {
    vec![StepPlan::new("m", inc()).each(vec![vec![]]), StepPlan::new("cb", inc()).after(["m"])]
}

/// Two members, and a task that waits for them.
fn chord() -> Vec<StepPlan> {
    vec![StepPlan::new("m", inc()).each(vec![vec![], vec![]]), StepPlan::new("cb", inc()).after(["m"])]
}

/// Two members of two steps each, and a task that waits for them.
fn chord_of_chains() -> Vec<StepPlan> {
    let mut members = StepPlan::new("m", inc()).each(vec![vec![], vec![]]);
    members.inner = vec![StepPlan::new("t", inc())];
    vec![members, StepPlan::new("cb", inc()).after(["m"])]
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

/// One member that is replaced by a chain of two, and a task that waits for it.
fn replaced_member() -> Vec<StepPlan> {
    vec![
        StepPlan::new("m", Signature::new(SWAP)).each(vec![vec![]]).on_error(["e"]),
        StepPlan::new("cb", inc()).after(["m"]),
        StepPlan::new("e", inc()),
    ]
}

/// A task that is replaced by a chain of two, and its successor.
fn replaced_step() -> Vec<StepPlan> {
    vec![StepPlan::new("a", Signature::new(SWAP)), StepPlan::new("b", inc()).after(["a"])]
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

use FlowFault::{Crash, Drop, Duplicate, Expire, Fail, LoseJoin, LoseRecord, Reply, Revoke};

const SCENES: [FlowScene; 18] = [
    scene("chain: crash, expiry", chain, 2, &[Crash, Expire]),
    scene("chain: failure, crash, duplicate", chain, 2, &[Fail, Crash, Duplicate]),
    scene("chord, one worker: crash, duplicate", chord, 1, &[Crash, Duplicate]),
    scene("chord, one worker: lost join, crash", chord, 1, &[LoseJoin, Crash]),
    scene("chord, one worker: lost join, lost record", chord, 1, &[LoseJoin, LoseRecord]),
    scene("chord, one worker: failure, crash", chord_with_successor, 1, &[Fail, Crash]),
    scene("chord, one worker: two failures, drop", chord_with_successor, 1, &[Fail, Fail, Drop]),
    scene("chord: expiry", chord, 2, &[Expire]),
    scene("replaced step: crash", replaced_step, 1, &[Crash]),
    scene("replaced member: duplicate", replaced_member, 1, &[Duplicate]),
    scene("replaced member: lost join", replaced_member, 1, &[LoseJoin]),
    scene("replaced member: failure", replaced_member, 1, &[Fail]),
    scene("one member: lost, again, crash", chord_of_one, 1, &[LoseJoin, LoseRecord, Duplicate, Crash]),
    // Together they have no more states than the steps saved that nobody can see.
    scene("chord with a successor: crash", chord_with_successor, 2, &[Crash]).bounded(120_000),
    scene("chord, one worker: revoked, crash", chord_with_successor, 1, &[Revoke, Crash]).bounded(50_000),
    scene("chord: revoked, lost connection", chord, 2, &[Revoke, Drop]).bounded(60_000),
    scene("chord, one worker: lost join, lost replies", chord, 1, &[LoseJoin, Reply, Reply]),
    scene("chains, one worker: lost join, crash", chord_of_chains, 1, &[LoseJoin, Crash]).bounded(30_000),
];

/// Scenes that are too large for all states.
const WALKS: [FlowScene; 6] = [
    scene("walk: chord", chord_with_successor, 2, &[Crash, Crash, Drop, Expire, Duplicate, Reply]),
    scene("walk: chord, failures", chord_with_successor, 2, &[Fail, Fail, Crash, Drop, Expire, Duplicate]),
    scene("walk: graph", graph, 2, &[Crash, Crash, Drop, Expire, Duplicate, Fail]),
    scene("walk: replaced member", replaced_member, 2, &[Crash, Drop, Expire, Duplicate, LoseJoin, Fail]),
    scene("walk: graph, lost data", graph, 2, &[Crash, LoseJoin, LoseRecord, Drop, Expire, Reply]),
    scene("walk: chord, revoked", chord_with_successor, 2, &[Revoke, Fail, Crash, Drop, Expire, Duplicate]),
];

const fn scene(
    name: &'static str,
    steps: fn() -> Vec<StepPlan>,
    workers: usize,
    faults: &'static [FlowFault],
) -> FlowScene {
    FlowScene { name, steps, workers, faults, mutation: None, most: MOST }
}

fn large() -> bool {
    std::env::var("MACHINIST_MODEL").is_ok_and(|size| size == "large")
}

#[test]
fn every_workflow_ends_and_nothing_starts_undecided() {
    for scene in SCENES {
        let (name, most, started) = (scene.name, scene.most, std::time::Instant::now());
        let report = scene.search();
        let stopped = if report.is_complete { "" } else { ", and more" };
        println!("{name}: {} states{stopped}, {:.1?}", report.states, started.elapsed());
        assert!(report.violation.is_none(), "{name}: {}", report.violation.unwrap_or_default());
        assert!(
            report.is_complete || most < MOST,
            "{name}: it has too many states: bound it, and say so in the docs"
        );
    }
}

/// Seeds of the walks. They are the same in each run, so that a failure is about the change that it meets; the large walks
/// go elsewhere each time.
const SEEDS: [u64; WALKS.len()] = [
    13_028_404_768_555_587_754,
    1_092_630_507_738_766_943,
    12_023_405_029_754_235_772,
    7_464_698_919_476_731_560,
    6_388_741_938_810_857_880,
    4_181_558_422_530_753_800,
];

#[test]
fn random_walks_find_nothing_either() {
    let steps = if large() { 10_000_000 } else { 200_000 };
    for (scene, seed) in WALKS.into_iter().zip(SEEDS) {
        let (name, seed) = (scene.name, if large() { rand::random() } else { seed });
        let walked = walk(&FlowModel::new(scene), seed, steps)
            .unwrap_or_else(|found| panic!("{name}, seed {seed}: {found}"));
        println!("{name}: seed {seed}, {walked} steps");
    }
}

#[test]
fn every_broken_rule_of_workflows_is_found() {
    use FlowMutation::*;
    let mutations = [
        (JoinBeforeRecord, "chord: expiry", "started"),
        (AckBeforeFollow, "chord, one worker: crash, duplicate", "lost"),
        (NoGuard, "chord, one worker: lost join, crash", "lost"),
        (GuardStoredFirst, "chord, one worker: lost join, crash", "lost"),
        (ArgsFromMemory, "chain: crash, expiry", "R."),
        (UpstreamLeftOut, "chain: failure, crash, duplicate", "lost"),
        (StartUndecided, "chord: expiry", "started before"),
        (ArgumentsUnchecked, "one member: lost, again, crash", "started with other"),
        (MembersNotAsked, "chord, one worker: lost join, crash", "stuck"),
        (CountDecides, "chord, one worker: crash, duplicate", "started before"),
        (RootPublishesAll, "chains, one worker: lost join, crash", "ended wrongly: R.cb in lost"),
        (CallbackLeftOut, "chain: failure, crash, duplicate", "lost"),
        (EndOverRun, "chord: revoked, lost connection", "decided over a live run"),
    ];
    for (mutation, name, expected) in mutations {
        let scene = SCENES.into_iter().find(|scene| scene.name == name).expect("a scene");
        let report = FlowScene { mutation: Some(mutation), ..scene }.search();
        let violation = report.violation.unwrap_or_default();
        let found = violation.lines().next().unwrap_or("nothing");
        println!("{mutation:?}: {found} ({} states)", report.states);
        assert!(found.starts_with(expected), "{mutation:?} in {name}: {found}");
    }
}

#[test]
fn tasks_have_their_places_in_the_order_in_which_they_run() {
    let place = |id: &str| {
        let id = task(id);
        let (step, member, rest) = place_of(&id);
        [step, member, rest].map(str::to_owned)
    };
    assert_eq!(place("R"), ["", "R", ""]);
    assert_eq!(place("R.a"), ["a", "R.a", ""]);
    assert_eq!(place("R.m.0"), ["m", "R.m.0", ""]);
    assert_eq!(place("R.m.0.t"), ["m", "R.m.0", ".t"]);
    assert_eq!(place("R.a+1.x"), ["a", "R.a", "+1.x"]);
    assert_eq!(place("R.m.1+1.y"), ["m", "R.m.1", "+1.y"]);
    let before = steps_before(&graph());
    assert_eq!(before["d"], BTreeSet::from(["", "a", "b", "c"].map(str::to_owned)));
    assert_eq!(before["s"], BTreeSet::from(["", "a", "b", "c", "cb", "d", "m"].map(str::to_owned)));
}

/// Facts that a task which waits is started with.
#[test]
fn a_digest_is_that_of_its_arguments() {
    let arg = |value: i64| Arg { name: String::new(), kind: "int64".to_owned(), value: value.into() };
    let (one, other): ((FactName, Bytes), _) = (gathered_fact(&[arg(1)]), gathered_fact(&[arg(2)]));
    assert!(one.0 == other.0 && one.1 != other.1 && one == gathered_fact(&[arg(1)]));
}
