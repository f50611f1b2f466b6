//! Workflows whose worker dies at every arrow of the protocol, one arrow after the other: another worker takes over, and the
//! workflow ends as it does without a fault. Under paused time, over the adapters in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use machinist_conformance::{
    arrows::{ArrowStep, Side, Witness, Witnessed, WitnessedRuns},
    within,
};
use machinist_core::{
    App, Arg, Rest, Signature, State, TaskContext, TaskDef, TaskError, Worker,
    backend::Backend,
    broker::Broker,
    id::{QueueName, TaskId},
    record::{FailureKind, TaskState},
    workflow::{Policy, Sendable, StepPlan, Workflow, chain, chord},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use self::{ArrowStep::*, Side::*};

/// Longer than any lease and guard of these tests.
const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(15);
/// Longer than any guard stays away in a workflow that ends within minutes.
const GUARDS_ARE_BACK: Duration = Duration::from_secs(300);
const ROOT: &str = "flow";

const INC: TaskDef<i64, i64> = TaskDef::new("inc");
const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
const NOTE: TaskDef<i64, ()> = TaskDef::new("note");

/// The arguments of each run, by the id of its task.
type Runs = Arc<Mutex<BTreeMap<String, Vec<Vec<Value>>>>>;

fn noted(runs: &Runs, cx: &TaskContext, args: Vec<Value>) {
    runs.lock().unwrap().entry(cx.task_id().to_string()).or_default().push(args);
}

async fn inc(cx: TaskContext, State(runs): State<Runs>, n: i64) -> Result<i64, TaskError> {
    noted(&runs, &cx, vec![n.into()]);
    Ok(n + 1)
}

async fn sum(cx: TaskContext, State(runs): State<Runs>, all: Vec<i64>) -> Result<i64, TaskError> {
    noted(&runs, &cx, all.iter().map(|n| (*n).into()).collect());
    Ok(all.iter().sum())
}

async fn note(cx: TaskContext, State(runs): State<Runs>, Rest(args): Rest<Value>) -> Result<(), TaskError> {
    noted(&runs, &cx, args);
    Ok(())
}

async fn fail(cx: TaskContext, State(runs): State<Runs>, Rest(args): Rest<Value>) -> Result<i64, TaskError> {
    noted(&runs, &cx, args);
    Err(TaskError::permanent("broken"))
}

async fn spawn(cx: TaskContext, State(runs): State<Runs>, n: i64) -> Result<i64, TaskError> {
    noted(&runs, &cx, vec![n.into()]);
    cx.spawn(NOTE.call(n))?;
    cx.spawn(chain(INC.call(n)).then(NOTE.with(())))?;
    Ok(n)
}

/// Is replaced by two members and a callback.
async fn replaced(
    cx: TaskContext,
    State(runs): State<Runs>,
    n: i64,
) -> Result<machinist_core::Continue<i64>, TaskError> {
    noted(&runs, &cx, vec![n.into()]);
    Ok(cx.continue_with(chord([INC.call(n), INC.call(n)], SUM.with(())))?)
}

/// Sees what a process does, and ends it at one of the arrows.
#[derive(Debug, Default)]
struct Fate {
    /// Number of the arrow, counted from 0.
    end: Option<usize>,
    ended: CancellationToken,
    seen: Mutex<Vec<(ArrowStep, Side)>>,
}

#[async_trait]
impl Witness for Fate {
    async fn at(&self, step: ArrowStep, side: Side) {
        if !self.ended.is_cancelled() {
            let mut seen = self.seen.lock().unwrap();
            let number = seen.len();
            seen.push((step, side));
            if self.end == Some(number) {
                self.ended.cancel();
            }
        }
        if self.ended.is_cancelled() {
            std::future::pending().await
        }
    }
}

/// What a workflow comes to.
#[derive(Debug, Clone, PartialEq)]
struct Story {
    ends: BTreeMap<String, (TaskState, Option<FailureKind>)>,
    /// The arguments of each run.
    runs: BTreeMap<String, Vec<Vec<Value>>>,
    /// The dead letters, each once.
    dead: BTreeSet<String>,
}

/// The servers, and what the handlers have done.
#[derive(Default)]
struct House {
    broker: MemoryBroker,
    backend: MemoryBackend,
    runs: Runs,
}

impl House {
    async fn app(&self) -> App {
        App::builder(Arc::new(self.broker.connect()), Arc::new(self.backend.clone())).build().await.unwrap()
    }

    /// Starts a worker in a process of its own that runs one task at a time.
    async fn start(
        &self,
        end: Option<usize>,
    ) -> (Arc<Fate>, CancellationToken, tokio::task::JoinHandle<bool>) {
        let fate = Arc::new(Fate { end, ..Fate::default() });
        let witness: Arc<dyn Witness> = Arc::clone(&fate) as _;
        let broker: Arc<dyn Broker> = Arc::new(self.broker.connect());
        let backend: Arc<dyn Backend> = Arc::new(self.backend.clone());
        let broker = Witnessed::new(Arc::clone(&witness), broker);
        let backend = Witnessed::new(Arc::clone(&witness), backend);
        let app = App::builder(Arc::new(broker), Arc::new(backend)).build().await.unwrap();
        let worker = Worker::builder(&app)
            .concurrency(1)
            .session_lease(LEASE)
            .middleware(WitnessedRuns(witness))
            .state(self.runs.clone())
            .task(INC, inc)
            .task(SUM, sum)
            .task(TaskDef::<Rest<Value>, ()>::new("note"), note)
            .task(TaskDef::<Rest<Value>, i64>::new("fail"), fail)
            .task(TaskDef::<i64, i64>::new("spawn"), spawn)
            .task(TaskDef::<i64, i64>::new("replaced"), replaced)
            .build()
            .unwrap();
        let stop = CancellationToken::new();
        let until = stop.clone().cancelled_owned();
        let running = tokio::spawn(async move { worker.run_until(until).await.unwrap().is_clean() });
        (fate, stop, running)
    }

    /// Lets a worker do what is left, and tells what came of these tasks.
    async fn story(&self, app: &App, ids: &[String]) -> (Story, Vec<(ArrowStep, Side)>) {
        let (fate, stop, running) = self.start(None).await;
        let mut ends = BTreeMap::new();
        for id in ids {
            let task: TaskId = id.parse().unwrap();
            let ended = async {
                loop {
                    if let Ok(record) = app.result(task.clone()).record().await
                        && matches!(record.state, TaskState::Success | TaskState::Failure)
                    {
                        return (record.state, record.kind);
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            ends.insert(id.clone(), within(HOUR, &format!("{id} to end"), ended).await);
        }
        // Every copy that still waits comes back, and finds nothing to do.
        tokio::time::sleep(GUARDS_ARE_BACK).await;
        stop.cancel();
        assert!(within(HOUR, "a worker to stop", running).await.unwrap(), "it left something behind");
        let queue = QueueName::parse("default").unwrap();
        let left = self.broker.depth(std::slice::from_ref(&queue)).await.unwrap()[0].ready;
        assert_eq!(left, Some(0), "nothing is left to do, and a message is left");
        let dead = self.broker.dead_letters(&queue).into_iter().filter_map(|letter| letter.id).collect();
        let seen = fate.seen.lock().unwrap().clone();
        (Story { ends, runs: self.runs.lock().unwrap().clone(), dead }, seen)
    }
}

/// Runs a workflow without a fault, then once for each arrow that its worker passed. Returns the story and the arrows.
async fn sweep<W: Sendable + Clone>(workflow: W, ids: &[&str]) -> (Story, Vec<(ArrowStep, Side)>) {
    let ids: Vec<String> = ids.iter().map(|id| format!("{ROOT}{id}")).collect();
    let house = House::default();
    let app = house.app().await;
    app.client().send(workflow.clone()).await.unwrap();
    let (calm, arrows) = house.story(&app, &ids).await;
    assert!(calm.runs.values().all(|runs| runs.len() == 1), "without a fault a task ran twice: {calm:?}");
    let mut repeated = 0;
    for (number, arrow) in arrows.iter().enumerate() {
        let house = House::default();
        let app = house.app().await;
        app.client().send(workflow.clone()).await.unwrap();
        let (fate, _stop, first) = house.start(Some(number)).await;
        within(HOUR, "the process to come to its end", fate.ended.cancelled()).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let seen = fate.seen.lock().unwrap().clone();
        // One task runs at a time. `None` is less than any position.
        let last = |wanted| seen.iter().rposition(|arrow| *arrow == wanted);
        let unrecorded = usize::from(last((Run, After)) > last((Record, After)));
        let (mut story, _) = house.story(&app, &ids).await;
        let runs = story.runs.values().map(Vec::len).sum::<usize>();
        let again = runs - story.runs.len();
        assert!(again <= unrecorded, "ended at {number}, {arrow:?}: {unrecorded} explained, {story:?}");
        repeated += again;
        for args in story.runs.values_mut() {
            args.dedup();
        }
        assert_eq!(story, calm, "ended at {number}, {arrow:?}");
    }
    assert!(repeated > 0, "no run was repeated: the ends had no effect");
    (calm, arrows)
}

/// How often the worker passed a step.
fn passed(arrows: &[(ArrowStep, Side)], step: ArrowStep) -> usize {
    assert_eq!(
        arrows.iter().filter(|arrow| **arrow == (step, Before)).count(),
        arrows.iter().filter(|arrow| **arrow == (step, After)).count()
    );
    arrows.iter().filter(|arrow| **arrow == (step, After)).count()
}

fn call(task: &str, args: impl IntoIterator<Item = i64>) -> Signature {
    args.into_iter().fold(Signature::new(task), |signature, arg| signature.arg(arg))
}

fn each(args: impl IntoIterator<Item = i64>) -> Vec<Vec<Arg>> {
    args.into_iter().map(|arg| vec![Arg::from_value(arg)]).collect()
}

fn of_steps(steps: Vec<StepPlan>) -> Workflow {
    Workflow::of_steps(steps).unwrap().with_id(ROOT.parse().unwrap())
}

const SUCCESS: (TaskState, Option<FailureKind>) = (TaskState::Success, None);
const UPSTREAM: (TaskState, Option<FailureKind>) = (TaskState::Failure, Some(FailureKind::Upstream));

#[tokio::test(start_paused = true)]
async fn a_chain_goes_on_wherever_its_worker_dies() {
    let workflow = of_steps(vec![
        StepPlan::new("a", call("inc", [1])),
        StepPlan::new("b", call("inc", [])).after(["a"]),
        StepPlan::new("c", call("note", [])).after(["b"]),
    ]);
    let (calm, arrows) = sweep(workflow, &["", ".a", ".b", ".c"]).await;
    assert!(calm.ends.values().all(|end| *end == SUCCESS), "{calm:?}");
    assert_eq!(calm.runs["flow.c"], [[Value::from(3)]]);
    assert_eq!((passed(&arrows, Continue), passed(&arrows, Join), passed(&arrows, Never)), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_chord_calls_back_wherever_its_worker_dies() {
    let workflow = of_steps(vec![
        StepPlan::new("many", call("inc", [])).each(each([1, 2, 3])),
        StepPlan::new("total", call("sum", [])).after(["many"]),
        StepPlan::new("end", call("note", [])).after(["total"]),
    ]);
    let ids = ["", ".many.0", ".many.1", ".many.2", ".total", ".end"];
    let (calm, arrows) = sweep(workflow, &ids).await;
    assert!(calm.ends.values().all(|end| *end == SUCCESS), "{calm:?}");
    assert_eq!(calm.runs["flow.end"], [[Value::from(9)]]);
    // Between two messages of the group, and between a join and the acknowledgement of its member.
    assert_eq!((passed(&arrows, Continue), passed(&arrows, Join)), (5, 3));
    // The callback published and not noted.
    assert!(passed(&arrows, PublishGuard) > 0 && passed(&arrows, StoreGuard) > 0, "{arrows:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_ends_all_that_follows_it_wherever_its_worker_dies() {
    let workflow = of_steps(vec![
        StepPlan::new("good", call("inc", [1])),
        StepPlan::new("bad", call("fail", [2])).on_error(["tell"]),
        StepPlan::new("after", call("inc", [])).after(["bad"]),
        StepPlan::new("group", call("inc", [])).each(each([1, 2])).after(["after"]),
        StepPlan::new("last", call("note", [])).after(["group", "good"]),
        StepPlan::new("tell", call("note", [9])),
    ]);
    let never = [".after", ".group.0", ".group.1", ".last"];
    let ids: Vec<&str> = ["", ".good", ".bad", ".tell"].into_iter().chain(never).collect();
    let (calm, arrows) = sweep(workflow, &ids).await;
    for id in never {
        assert_eq!(calm.ends[&format!("{ROOT}{id}")], UPSTREAM, "{id}");
    }
    assert_eq!(calm.runs["flow.tell"], [[Value::from("broken"), 9.into()]]);
    assert_eq!(calm.dead.len(), 1);
    // Between two ends of tasks that never run, as well.
    assert!(passed(&arrows, Never) >= 3, "{arrows:?}");
}

#[tokio::test(start_paused = true)]
async fn a_group_collects_failures_wherever_its_worker_dies() {
    for (policy, success) in
        [(Policy::Collect, true), (Policy::Tolerate(1), true), (Policy::Tolerate(0), false)]
    {
        let workflow = of_steps(vec![
            StepPlan::new("good", call("inc", [])).each(each([1, 2])).on_failure(policy),
            StepPlan::new("bad", call("fail", [])).each(each([1])).on_failure(policy),
            StepPlan::new("end", call("note", [])).after(["good", "bad"]),
        ]);
        let (calm, _) = sweep(workflow, &["", ".good.0", ".good.1", ".bad.0", ".end"]).await;
        assert_eq!(calm.ends["flow.end"], if success { SUCCESS } else { UPSTREAM }, "{policy:?}");
        assert_eq!(calm.runs.contains_key("flow.end"), success, "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn chains_in_a_group_join_wherever_their_worker_dies() {
    let members = [1, 10].map(|n| chain(INC.call(n)).then(INC.with(())));
    let workflow = chord(members, SUM.with(())).then(NOTE.with(())).with_id(ROOT.parse().unwrap());
    let ids = ["", ".s0.0", ".s0.1", ".s1", ".s2"];
    let (calm, arrows) = sweep(workflow, &ids).await;
    assert!(calm.ends.values().all(|end| *end == SUCCESS), "{calm:?}");
    assert_eq!(calm.runs["flow.s2"], [[Value::from(15)]]);
    assert_eq!(passed(&arrows, Join), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_spawns_is_sent_wherever_its_worker_dies() {
    let workflow = of_steps(vec![
        StepPlan::new("a", call("spawn", [1])),
        StepPlan::new("b", call("note", [])).after(["a"]),
    ]);
    let ids = ["", ".a", ".b", ".a+1", ".a+2", ".a+2.s0", ".a+2.s1"];
    let (calm, arrows) = sweep(workflow, &ids).await;
    assert!(calm.ends.values().all(|end| *end == SUCCESS), "{calm:?}");
    assert_eq!(calm.runs["flow.a+2.s1"], [[Value::from(2)]]);
    // The spawn is recorded before the first of these, and all are between two arrows.
    assert_eq!(passed(&arrows, Continue), 6);
}

#[tokio::test(start_paused = true)]
async fn what_replaces_a_member_joins_wherever_its_worker_dies() {
    let workflow = of_steps(vec![
        StepPlan::new("many", call("replaced", [])).each(each([1, 2])),
        StepPlan::new("total", call("sum", [])).after(["many"]),
        StepPlan::new("end", call("note", [])).after(["total"]),
    ]);
    let ids = ["", ".many.0", ".many.0+1.s0.1", ".many.0+1.s1", ".many.1", ".many.1+1.s1", ".total", ".end"];
    let (calm, arrows) = sweep(workflow, &ids).await;
    assert!(calm.ends.values().all(|end| *end == SUCCESS), "{calm:?}");
    assert_eq!(calm.runs["flow.end"], [[Value::from(4 + 6)]]);
    // Two members of each of the two workflows, and what ends in the place of the two members.
    assert_eq!(passed(&arrows, Join), 6);
}
