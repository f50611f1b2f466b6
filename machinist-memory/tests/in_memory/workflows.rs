//! Workflows over the in-memory adapters: what follows what, with which arguments, and what a failure means.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, Arg, Revoked, Signature, State, TaskContext, TaskDef, TaskError, TaskId, Unique, Worker,
    backend::Commit,
    id::{RecordId, RecordKind},
    record::{FailureKind, TaskState},
    workflow::{Outcome, Policy, StepPlan, Workflow, chain, chord, graph, group},
    workflow_status::WorkflowStatus,
};
use machinist_memory::{MemoryBackend, MemoryBroker};

use crate::support::{Running, until};

const INC: TaskDef<i64, i64> = TaskDef::new("inc");
const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const FAIL: TaskDef<machinist_core::Rest<serde_json::Value>, i64> = TaskDef::new("fail");
const NOTE: TaskDef<machinist_core::Rest<serde_json::Value>, ()> = TaskDef::new("note");
const FLAKY: TaskDef<i64, i64> = TaskDef::new("flaky");
/// The same task, as a caller may know it.
const NOTE_ONE: TaskDef<i64, ()> = TaskDef::new("note");
/// Fails for 0 when all others run, and else waits until it is cancelled.
const WAITS: TaskDef<i64, i64> = TaskDef::new("waits");
const SPAWN: TaskDef<i64, i64> = TaskDef::new("spawn");
/// Notes its argument, and returns it.
const SEEN: TaskDef<i64, i64> = TaskDef::new("seen");
/// Marks its workflow as revoked, as a revocation does that finds no other task of it. It returns 0; for 1, it waits until it
/// is cancelled; else it is to run again in this number of seconds.
const MARKS: TaskDef<i64, i64> = TaskDef::new("marks");
const WAIT: Duration = Duration::from_secs(120);

type Notes = Arc<Mutex<Vec<(String, Vec<serde_json::Value>)>>>;

async fn inc(n: i64) -> Result<i64, TaskError> {
    Ok(n + 1)
}

async fn sum(all: Vec<i64>) -> Result<i64, TaskError> {
    Ok(all.iter().sum())
}

async fn fail(_: machinist_core::Rest<serde_json::Value>) -> Result<i64, TaskError> {
    Err(TaskError::permanent("broken"))
}

/// Spawns a note and a chain, and fails in its first attempt.
async fn spawn(n: i64, cx: TaskContext) -> Result<i64, TaskError> {
    cx.spawn(NOTE.call(vec![n.into()]))?;
    cx.spawn(chain(INC.call(n)).then(NOTE_ONE.with(())))?;
    if cx.attempt() == 1 { Err(TaskError::retry_in(Duration::from_millis(1))) } else { Ok(n) }
}

async fn waits(n: i64, cx: TaskContext) -> Result<i64, TaskError> {
    if n == 0 {
        // Paused time goes on when nothing else has to be done.
        tokio::time::sleep(Duration::from_secs(1)).await;
        return Err(TaskError::permanent("zero"));
    }
    cx.cancellation().cancelled().await;
    Err(TaskError::permanent("cancelled"))
}

async fn marks(cx: TaskContext, State(app): State<App>, n: i64) -> Result<i64, TaskError> {
    let root = cx.task_id().as_str().split('.').next().unwrap();
    let mut mark = Commit::new(RecordId::new(RecordKind::Revocation, root));
    mark.facts = vec![("rv".into(), "{}".into())];
    app.backend().commit(vec![mark.into()]).await.pop().unwrap().unwrap();
    match u64::try_from(n).unwrap() {
        0 => return Ok(0),
        1 => {}
        seconds => return Err(TaskError::retry_in(Duration::from_secs(seconds))),
    }
    cx.cancellation().cancelled().await;
    Err(TaskError::permanent("cancelled"))
}

/// Fails until the switch is on.
async fn flaky(State(on): State<Arc<AtomicBool>>, n: i64) -> Result<i64, TaskError> {
    if on.load(Ordering::Relaxed) { Ok(n * 10) } else { Err(TaskError::permanent("off")) }
}

async fn note(
    cx: TaskContext,
    State(notes): State<Notes>,
    machinist_core::Rest(args): machinist_core::Rest<serde_json::Value>,
) -> Result<(), TaskError> {
    notes.lock().unwrap().push((cx.task_id().to_string(), args));
    Ok(())
}

async fn seen(cx: TaskContext, State(notes): State<Notes>, n: i64) -> Result<i64, TaskError> {
    notes.lock().unwrap().push((cx.task_id().to_string(), vec![n.into()]));
    Ok(n)
}

struct Setting {
    app: App,
    notes: Notes,
    /// Lets `flaky` succeed.
    on: Arc<AtomicBool>,
    worker: Running,
}

impl Setting {
    async fn new() -> Self {
        Self::keeping_results_for(Duration::from_secs(86_400)).await
    }

    async fn keeping_results_for(ttl: Duration) -> Self {
        let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()))
            .results_ttl(ttl)
            .build()
            .await
            .unwrap();
        let notes = Notes::default();
        let on = Arc::<AtomicBool>::default();
        let builder = Worker::builder(&app)
            .task(INC, inc)
            .task(SUM, sum)
            .task(ADD, async |a: i64, b: i64| Ok::<_, TaskError>(a + b))
            .task(FAIL, fail)
            .task(NOTE, note)
            .task(FLAKY, flaky)
            .task(SPAWN, spawn)
            .task(WAITS, waits)
            .task(MARKS, marks)
            .task(SEEN, seen)
            .state(app.clone())
            .state(on.clone())
            .state(notes.clone());
        Self { worker: Running::start(builder), app, notes, on }
    }

    /// Sends a workflow, and waits for its end.
    async fn ended(&self, workflow: Workflow) -> WorkflowStatus {
        let root = workflow.id().clone();
        let result = self.app.client().send(workflow).await.unwrap();
        result.wait_record(WAIT).await.unwrap();
        until(async || self.status(&root).await.state.is_final()).await;
        self.status(&root).await
    }

    async fn status(&self, root: &TaskId) -> WorkflowStatus {
        self.app.client().workflow(root).await.unwrap().expect("a workflow")
    }
}

fn call(task: &str, args: impl IntoIterator<Item = i64>) -> Signature {
    args.into_iter().fold(Signature::new(task), |signature, arg| signature.arg(arg))
}

fn each(args: impl IntoIterator<Item = i64>) -> Vec<Vec<Arg>> {
    args.into_iter().map(|arg| vec![Arg::from_value(arg)]).collect()
}

fn step<'a>(status: &'a WorkflowStatus, name: &str) -> &'a machinist_core::workflow_status::StepStatus {
    status.steps.iter().find(|step| step.name == name).unwrap()
}

fn value(status: &WorkflowStatus, name: &str) -> serde_json::Value {
    step(status, name).results.as_ref().unwrap().0[0].value.clone()
}

#[tokio::test(start_paused = true)]
async fn a_chain_passes_results_on() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("a", call("inc", [1])),
        StepPlan::new("b", call("inc", [])).after(["a"]),
        StepPlan::new("c", call("inc", [])).after(["b"]),
    ]);
    let workflow = workflow.unwrap();
    let root = workflow.id().clone();
    let four: i64 =
        setting.app.client().send(workflow.typed::<i64>()).await.unwrap().wait(WAIT).await.unwrap();
    assert_eq!(four, 4);
    let status = setting.status(&root).await;
    assert_eq!((status.state, status.progress.done, status.progress.total), (TaskState::Success, 3, 3));
    assert_eq!(step(&status, "b").id.as_str(), format!("{root}.b"));
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_chord_gets_all_results_in_order() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("inc", [])).each(each(1..=10)),
        StepPlan::new("total", call("sum", [])).after(["many"]),
        StepPlan::new("list", call("note", [])).after(["many"]),
    ]);
    let status = setting.ended(workflow.unwrap()).await;
    assert_eq!(status.state, TaskState::Success);
    assert_eq!(value(&status, "total"), 65);
    let many = step(&status, "many").members.unwrap();
    assert_eq!((many.total, many.done, many.failed), (10, 10, 0));
    assert_eq!(setting.notes.lock().unwrap()[0].1, [serde_json::json!([2, 3, 4, 5, 6, 7, 8, 9, 10, 11])]);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_graph_joins_in_the_order_of_its_steps() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("end", call("note", [0])).after(["b", "many", "a"]),
        StepPlan::new("a", call("inc", [1])),
        StepPlan::new("b", call("inc", [])).after(["a"]),
        StepPlan::new("many", call("inc", [])).each(each([7, 8])),
        StepPlan::new("again", call("inc", [])).each(each([1, 2])).after(["end"]),
        StepPlan::new("more", call("note", [])).each(each([5, 6])).after(["again"]),
    ]);
    let status = setting.ended(workflow.unwrap()).await;
    assert_eq!(status.state, TaskState::Success, "{status:?}");
    let notes = setting.notes.lock().unwrap().clone();
    assert_eq!(notes[0].1, [serde_json::json!(0), 3.into(), serde_json::json!([8, 9]), 2.into()]);
    let mut more: Vec<_> =
        notes[1..].iter().map(|(id, args)| (id.rsplit('.').next().unwrap(), args.clone())).collect();
    more.sort_by_key(|(id, _)| *id);
    assert_eq!(
        more,
        [("0", vec![5.into(), serde_json::json!([2, 3])]), ("1", vec![6.into(), serde_json::json!([2, 3])])]
    );
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_ends_what_follows_it_and_calls_back_once() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("inc", [])).each(each([1, 2])),
        StepPlan::new("bad", call("fail", [])).after(["many"]).immutable().on_error(["tell"]),
        StepPlan::new("never", call("inc", [1])).after(["bad"]),
        StepPlan::new("group", call("inc", [])).each(each([1, 2])).after(["never"]),
        StepPlan::new("last", call("sum", [])).after(["group"]),
        StepPlan::new("tell", call("note", [9])),
    ]);
    let status = setting.ended(workflow.unwrap()).await;
    assert_eq!(status.state, TaskState::Failure);
    assert_eq!(step(&status, "bad").kind, Some(FailureKind::Error));
    for name in ["never", "group", "last"] {
        assert_eq!((name, step(&status, name).kind), (name, Some(FailureKind::Upstream)));
        let error = step(&status, name).error.clone().unwrap();
        assert!(error.contains(&format!("{}.bad", status.root)) && error.contains("broken"), "{error}");
    }
    assert_eq!((status.progress.done, status.progress.total), (7, 7));
    // The callback has ended too, once.
    let tell = setting.app.client().result(step(&status, "tell").id.clone());
    tell.wait_record(WAIT).await.unwrap();
    assert_eq!(
        setting.notes.lock().unwrap()[..],
        [(format!("{}.tell", status.root), vec!["broken".into(), 9.into()])]
    );
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_workflow_has_failed_when_nothing_of_it_goes_on() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("waits", [])).each(each([1, 0])),
        StepPlan::new("sum", call("sum", [])).after(["many"]),
    ]);
    let workflow = workflow.unwrap();
    let root = workflow.id().clone();
    client.send(workflow).await.unwrap().wait_record(WAIT).await.unwrap();
    let status = setting.status(&root).await;
    assert_eq!((step(&status, "sum").state, status.state), (TaskState::Failure, TaskState::Started));
    assert!(client.retry_workflow(&root).await.is_err(), "its other member would run twice");
    client.revoke(&format!("{root}.many.0").try_into().unwrap()).await.unwrap();
    until(async || setting.status(&root).await.state == TaskState::Failure).await;
    client.retry_workflow(&root).await.unwrap();

    // Of a member of several steps, any of them may go on.
    let members = [0, 1].map(|n| chain(WAITS.call(n)).then(INC.with(())));
    let workflow = group(members).then(SUM.with(()));
    let root = workflow.id().clone();
    client.send(workflow).await.unwrap().wait_record(WAIT).await.unwrap();
    assert_eq!(setting.status(&root).await.state, TaskState::Started);
    client.revoke(&format!("{root}.s0.1").try_into().unwrap()).await.unwrap();
    until(async || setting.status(&root).await.state == TaskState::Failure).await;
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn policies_say_what_a_failed_member_means() {
    let setting = Setting::new().await;
    let members = |policy| {
        vec![
            StepPlan::new("good", call("inc", [])).each(each([1, 2])).on_failure(policy),
            StepPlan::new("bad", call("fail", [])).each(each([1, 2])).on_failure(policy),
            StepPlan::new("end", call("note", [])).after(["good", "bad"]),
        ]
    };
    let state = async |policy| {
        let status = setting.ended(Workflow::of_steps(members(policy)).unwrap()).await;
        (status.state, setting.notes.lock().unwrap().pop().map(|(_, args)| args))
    };
    assert_eq!(state(Policy::Fail).await, (TaskState::Failure, None));
    assert_eq!(state(Policy::CancelRest).await, (TaskState::Failure, None));
    assert_eq!(state(Policy::Tolerate(1)).await, (TaskState::Failure, None));
    let both = Some(vec![serde_json::json!([2, 3]), serde_json::json!([])]);
    assert_eq!(state(Policy::Tolerate(2)).await, (TaskState::Success, both.clone()));
    assert_eq!(state(Policy::ToleratePercent(100)).await, (TaskState::Success, both));
    let (success, outcomes) = state(Policy::Collect).await;
    let outcomes = outcomes.unwrap();
    assert_eq!(success, TaskState::Success);
    assert_eq!(outcomes[0][1]["results"], serde_json::json!([3]));
    assert_eq!((&outcomes[1][0]["kind"], &outcomes[1][0]["error"]), (&"error".into(), &"broken".into()));
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_group_gives_an_empty_list() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("none", call("inc", [])).each(Vec::new()),
        StepPlan::new("total", call("sum", [])).after(["none"]),
    ]);
    let status = setting.ended(workflow.unwrap()).await;
    assert_eq!((status.state, value(&status, "total")), (TaskState::Success, 0.into()));
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_same_workflow_sent_twice_runs_once() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("note", [])).each(each([1, 2])),
        StepPlan::new("end", call("note", [3])).after(["many"]).immutable(),
    ]);
    let workflow = workflow.unwrap();
    setting.app.client().send(workflow.clone()).await.unwrap();
    assert_eq!(setting.ended(workflow.clone()).await.state, TaskState::Success);
    assert_eq!(setting.ended(workflow).await.state, TaskState::Success);
    assert_eq!(setting.notes.lock().unwrap().len(), 3);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_workflow_is_sent_again_and_runs_only_what_failed() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("first", call("inc", [1])),
        StepPlan::new("seen", call("note", [])).after(["first"]),
        StepPlan::new("good", call("inc", [])).each(each([3, 4])).on_failure(Policy::Collect),
        StepPlan::new("bad", call("flaky", [])).after(["first"]),
        StepPlan::new("end", call("note", [])).after(["bad", "first"]),
        StepPlan::new("all", call("note", [])).after(["good"]),
    ]);
    let status = setting.ended(workflow.unwrap()).await;
    assert_eq!(status.state, TaskState::Failure);
    setting.on.store(true, Ordering::Relaxed);
    let client = setting.app.client();
    let result = client.retry_workflow(&status.root).await.unwrap();
    let again = result.workflow_id().unwrap().clone();
    assert_eq!(client.retry_workflow(&status.root).await.unwrap().workflow_id(), Some(&again), "once");
    result.wait_record(WAIT).await.unwrap();
    let failed = status.root;
    let status = setting.status(&again).await;
    assert_eq!((status.state, status.record.retry_of), (TaskState::Success, Some(failed)));
    let notes = setting.notes.lock().unwrap().clone();
    let ran = |step: &str| notes.iter().filter(|(id, _)| id.ends_with(step)).count();
    assert_eq!((ran(".seen"), ran(".all"), ran(".end")), (1, 1, 1), "what succeeded is not run again");
    assert_eq!(notes.iter().find(|(id, _)| id.ends_with(".end")).unwrap().1, [20, 2]);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_has_succeeded_is_not_run_again_however_often_a_workflow_fails() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let workflow = graph(|graph| {
        let many = graph.group([1, 2].map(|n| chain(INC.call(n)).then(SEEN.with(()))));
        let sum = graph.task(SUM.after(&many));
        let flaky = graph.task(FLAKY.call(3));
        graph.task(ADD.after((&sum, &flaky)))
    });
    let mut root = workflow.id().clone();
    client.send(workflow).await.unwrap();
    for _ in 0..2 {
        until(async || setting.status(&root).await.state == TaskState::Failure).await;
        root = client.retry_workflow(&root).await.unwrap().workflow_id().unwrap().clone();
    }
    until(async || setting.status(&root).await.state == TaskState::Failure).await;
    setting.on.store(true, Ordering::Relaxed);
    let last = client.retry_workflow(&root).await.unwrap();
    assert_eq!(last.wait_record(WAIT).await.unwrap().results.unwrap().0[0].value, 2 + 3 + 30);
    assert_eq!(setting.notes.lock().unwrap().len(), 2, "once for each member");
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_is_sent_again_goes_on_after_what_succeeded() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("first", call("inc", [1])),
        StepPlan::new("bad", call("flaky", [])).after(["first"]),
        StepPlan::new("end", call("note", [])).after(["bad"]),
    ]);
    let failed = setting.ended(workflow.unwrap()).await;
    assert_eq!(failed.state, TaskState::Failure);
    setting.on.store(true, Ordering::Relaxed);
    let result = setting.app.client().retry_workflow(&failed.root).await.unwrap();
    result.wait_record(WAIT).await.unwrap();
    assert_eq!(setting.notes.lock().unwrap()[0].1, [20]);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_failure_waits_for_its_retry() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("flaky", [])).each(each([1, 2])).on_failure(Policy::Hold),
        StepPlan::new("end", call("note", [])).after(["many"]),
    ]);
    let workflow = workflow.unwrap();
    let root = workflow.id().clone();
    let client = setting.app.client();
    let result = client.send(workflow).await.unwrap();
    for index in 0..2 {
        let member: TaskId = format!("{root}.many.{index}").try_into().unwrap();
        // The member is known once its message is published.
        until(async || client.result(member.clone()).wait_record(WAIT).await.is_ok()).await;
    }
    assert_eq!(setting.status(&root).await.state, TaskState::Started);
    setting.on.store(true, Ordering::Relaxed);
    for index in 0..2 {
        let member: TaskId = format!("{root}.many.{index}").try_into().unwrap();
        client.retry(&member).await.unwrap().wait_record(WAIT).await.unwrap();
    }
    result.wait_record(WAIT).await.unwrap();
    assert_eq!(setting.notes.lock().unwrap()[0].1, [serde_json::json!([10, 20])]);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_workflow_starts_nothing_more() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("first", call("inc", [1])),
        StepPlan::new("later", call("note", []).countdown(Duration::from_secs(3600))).after(["first"]),
        StepPlan::new("end", call("note", [])).after(["later"]),
    ]);
    let workflow = workflow.unwrap();
    let root = workflow.id().clone();
    let client = setting.app.client();
    let result = client.send(workflow).await.unwrap();
    until(async || setting.status(&root).await.steps[0].state == TaskState::Success).await;
    client.revoke_workflow(&root).await.unwrap();
    let last = result.wait_record(WAIT).await.unwrap();
    assert_eq!(last.kind, Some(FailureKind::Upstream), "long before the revoked step was due");
    assert_eq!(setting.status(&root).await.steps[1].kind, Some(FailureKind::Revoked));
    assert_eq!(setting.notes.lock().unwrap().len(), 0);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_workflow_that_is_revoked_before_its_time_ends_at_once() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let delayed = chord([1, 2].map(|n| INC.call(n)), SUM.with(())).countdown(7 * Duration::from_secs(86_400));
    let root = delayed.id().clone();
    let total = client.send(delayed).await.unwrap();
    client.revoke_workflow(&root).await.unwrap();
    // Asked again, it changes nothing.
    client.revoke_workflow(&root).await.unwrap();
    assert_eq!(total.wait_record(WAIT).await.unwrap().kind, Some(FailureKind::Upstream));
    let status = setting.status(&root).await;
    assert_eq!((status.state, status.record.kind), (TaskState::Failure, Some(FailureKind::Revoked)));
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_revoked_callback_does_not_wait_for_its_guard() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let chord = chord([1, 2].map(|n| WAITS.call(n)), SUM.with(())).then(INC.with(()));
    let root = chord.id().clone();
    let last = client.send(chord).await.unwrap();
    let callback: TaskId = format!("{root}.s1").try_into().unwrap();
    // By then its copies come back in intervals of minutes.
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(client.revoke(&callback).await.unwrap(), Revoked::Ended);
    assert_eq!(last.wait_record(WAIT).await.unwrap().kind, Some(FailureKind::Upstream));
    client.revoke_workflow(&root).await.unwrap();
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_a_revocation_has_not_found_is_told_at_a_renewal() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let result = client.send(chain(MARKS.call(1)).then(INC.with(()))).await.unwrap();
    let root = result.workflow_id().unwrap().clone();
    assert_eq!(result.wait_record(WAIT).await.unwrap().kind, Some(FailureKind::Upstream));
    assert_eq!(step(&setting.status(&root).await, "s0").kind, Some(FailureKind::Revoked));
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_that_a_revocation_has_not_found_ends_at_once() {
    let setting = Setting::new().await;
    let later = INC.with(()).options(|later| later.countdown(Duration::from_secs(3600)));
    let workflow = chain(MARKS.call(0)).then(later).then(INC.with(()));
    let root = workflow.id().clone();
    let result = setting.app.client().send(workflow).await.unwrap();
    assert_eq!(result.wait_record(WAIT).await.unwrap().kind, Some(FailureKind::Upstream));
    let status = setting.status(&root).await;
    assert_eq!(step(&status, "s0").state, TaskState::Success);
    assert_eq!(step(&status, "s1").kind, Some(FailureKind::Revoked));

    let workflow = chain(MARKS.call(3600)).then(INC.with(()));
    let root = workflow.id().clone();
    let result = setting.app.client().send(workflow).await.unwrap();
    assert_eq!(result.wait_record(WAIT).await.unwrap().kind, Some(FailureKind::Upstream));
    assert_eq!(step(&setting.status(&root).await, "s0").kind, Some(FailureKind::Revoked), "not run again");
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_plain_task_spawns_too() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let parent = client.send(SPAWN.call(7)).await.unwrap();
    parent.wait(WAIT).await.unwrap();
    until(async || setting.notes.lock().unwrap().len() >= 2).await;
    let ids: Vec<String> = setting.notes.lock().unwrap().iter().map(|(id, _)| id.clone()).collect();
    assert!(
        ids.contains(&format!("{}+1", parent.id())) && ids.contains(&format!("{}+2.s1", parent.id())),
        "{ids:?}"
    );
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn typed_workflows_return_what_their_last_tasks_return() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let chained = chain(ADD.call((1, 2))).then(ADD.with((10,))).then(INC.with(()));
    assert_eq!(client.send(chained).await.unwrap().wait(WAIT).await.unwrap(), 14);
    let total = chord([1, 2, 3].map(|n| INC.call(n)), SUM.with(()));
    assert_eq!(client.send(total).await.unwrap().wait(WAIT).await.unwrap(), 9);
    let listed = group((0..3).map(|n| INC.call(n)).collect::<Vec<_>>());
    assert_eq!(client.send(listed).await.unwrap().wait(WAIT).await.unwrap(), [1, 2, 3]);
    let both = group((ADD.call((1, 2)), chain(INC.call(1)).then(INC.with(()))));
    assert_eq!(client.send(both).await.unwrap().wait(WAIT).await.unwrap(), (3, 3));
    let chains = group([1, 2].map(|n| chain(INC.call(n)).then(ADD.with((100,))))).then(SUM.with(()));
    assert_eq!(client.send(chains).await.unwrap().wait(WAIT).await.unwrap(), 205);
    let diamond = graph(|graph| {
        let a = graph.task(INC.call(1));
        let b = graph.task(INC.after(&a));
        let c = graph.named("c", ADD.with((5,)).after(&a));
        let many = graph.group([1, 2].map(|n| INC.call(n)));
        let sum = graph.task(SUM.after(&many));
        let both = graph.task(ADD.after((&b, &c)));
        graph.task(ADD.after((&both, &sum)))
    });
    assert_eq!(client.send(diamond).await.unwrap().wait(WAIT).await.unwrap(), 3 + 7 + 5);
    let outcomes = group([FAIL.call(vec![]), FAIL.call(vec![])]).collect();
    let outcomes = client.send(outcomes).await.unwrap().wait(WAIT).await.unwrap();
    assert!(
        matches!(&outcomes[..], [Outcome::Failure { kind: FailureKind::Error, error, .. }, _] if error == "broken")
    );
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn callbacks_follow_success_and_failure() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let good = INC.call(1).on_success(NOTE.call(vec!["good".into()]).immutable());
    assert_eq!(client.send(good).await.unwrap().wait(WAIT).await.unwrap(), 2);
    let bad = FAIL.call(vec![]).on_error(NOTE.call(vec!["told".into()]));
    client.send(bad).await.unwrap().wait(WAIT).await.unwrap_err();
    until(async || setting.notes.lock().unwrap().len() == 2).await;
    let mut notes: Vec<_> = setting.notes.lock().unwrap().iter().map(|(_, args)| args.clone()).collect();
    notes.sort_by_key(Vec::len);
    assert_eq!(notes, [vec!["good".into()], vec!["broken".into(), serde_json::Value::from("told")]]);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_of_a_graph_has_its_own_error_callback() {
    let setting = Setting::new().await;
    let said = |text: &str| Signature::new("note").arg(text);
    let workflow = graph(|graph| {
        let good = graph.task(INC.call(1));
        let bad = graph.task(FAIL.call(vec![]));
        let many = graph.group([FLAKY.call(1), FLAKY.call(2)]);
        graph.on_error(&good, said("good"));
        graph.on_error(&bad, said("bad"));
        graph.on_error(&many, said("many"));
        let sum = graph.task(SUM.after(&many));
        graph.on_error((&good, &sum), said("sum"));
        let both = graph.task(ADD.after((&good, &bad)));
        graph.task(ADD.after((&both, &sum)))
    });
    let root = workflow.id().clone();
    setting.app.client().send(workflow).await.unwrap().wait_record(WAIT).await.unwrap();
    until(async || setting.status(&root).await.state == TaskState::Failure).await;
    until(async || setting.notes.lock().unwrap().len() == 2).await;
    let mut notes: Vec<_> = setting.notes.lock().unwrap().iter().map(|(_, args)| args.clone()).collect();
    notes.sort_by_key(|args| args[1].to_string());
    let told = |error: &str, whom: &str| vec![serde_json::Value::from(error), whom.into()];
    assert_eq!(notes, [told("broken", "bad"), told("off", "many")], "once each, and only what failed itself");
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_fails_in_its_group_as_a_member_does() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let chains = [1, 2].map(|n| chain(INC.call(n)).then(FAIL.call(vec![]).immutable()).then(INC.with(())));
    let outcomes = group(chains).collect();
    let outcomes = client.send(outcomes).await.unwrap().wait(WAIT).await.unwrap();
    for outcome in outcomes {
        assert!(
            matches!(outcome, Outcome::Failure { kind: FailureKind::Upstream, error, .. } if error.contains("broken"))
        );
    }
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_workflow_is_refused_with_the_step_and_the_remedy() {
    let inc = || call("inc", [1]);
    let refused = |steps| Workflow::of_steps(steps).unwrap_err().to_string();
    for (steps, says) in [
        (vec![], "at least one step"),
        (vec![StepPlan::new("A", inc())], "small letters"),
        (vec![StepPlan::new("a", inc()), StepPlan::new("a", inc())], "two steps have this name"),
        (
            vec![StepPlan::new("fetch", inc()), StepPlan::new("b", inc()).after(["fetsh"])],
            "did you mean \"fetch\"?",
        ),
        (vec![StepPlan::new("a", inc()).after(["b"]), StepPlan::new("b", inc()).after(["a"])], "cycle"),
        (vec![StepPlan::new("a", inc()).each(vec![vec![]; 10_001])], "at most 10000 members"),
        (vec![StepPlan::new("a", inc()).on_failure(Policy::Hold)], "only a group has a policy"),
        (
            vec![StepPlan::new("a", inc().eta(machinist_core::clock::Timestamp::from_micros(1)))],
            "give a duration",
        ),
        (vec![StepPlan::new("a", inc()).on_error(["a"])], "without `on_error`"),
        (vec![StepPlan::new("a", inc().unique(Unique::new()))], "its task is unique"),
        (vec![StepPlan::new("a", inc().require_worker())], "requires a live worker"),
    ] {
        assert!(refused(steps).contains(says), "{says}");
    }
    let app =
        App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build().await.unwrap();
    let mixed = group([INC.call(1), INC.call(2).retries(3)]);
    let error = app.client().send(mixed).await.unwrap_err().to_string();
    assert!(error.contains("same task with the same options"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_spawns_is_sent_once_if_it_succeeds() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    for workflow in [chain(SPAWN.call(7)), chain(SPAWN.call(7))] {
        let root = workflow.id().clone();
        client.send(workflow).await.unwrap().wait(WAIT).await.unwrap();
        let spawned = |n: u32| TaskId::try_from(format!("{root}.s0+{n}")).unwrap();
        until(async || setting.notes.lock().unwrap().len() >= 2).await;
        assert_eq!(client.result(spawned(1)).state().await.unwrap(), TaskState::Success);
        let status = setting.status(&spawned(2)).await;
        assert_eq!(status.steps.len(), 2);
        let mut notes = std::mem::take(&mut *setting.notes.lock().unwrap());
        notes.sort_by_key(|(id, _)| id.clone());
        let values: Vec<_> = notes.iter().map(|(_, args)| args[0].clone()).collect();
        assert_eq!(values, [7, 8]);
    }
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_other_members_are_revoked_where_the_policy_says_so() {
    let setting = Setting::new().await;
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("waits", [])).each(each([1, 0, 2])).on_failure(Policy::CancelRest),
        StepPlan::new("end", call("note", [])).after(["many"]),
    ]);
    let status = setting.ended(workflow.unwrap()).await;
    assert_eq!(step(&status, "end").kind, Some(FailureKind::Upstream));
    let client = setting.app.client();
    for member in [0, 2] {
        let id: TaskId = format!("{}.many.{member}", status.root).try_into().unwrap();
        let record = client.result(id).wait_record(WAIT).await.unwrap();
        assert_eq!(record.kind, Some(FailureKind::Revoked));
    }
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_in_the_middle_of_a_member_is_revoked_too() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let member = |n| chain(INC.call(n)).then(WAITS.with(())).then(INC.with(()));
    let kind = async |id: &str| {
        let record = client.result(id.try_into().unwrap()).record().await;
        record.ok().and_then(|record| record.kind)
    };

    let cancelled = group([-1, 1, 2].map(member)).cancel_rest().then(SUM.with(()));
    let root = cancelled.id().clone();
    let last = client.send(cancelled).await.unwrap().wait_record(WAIT).await.unwrap();
    assert_eq!(last.kind, Some(FailureKind::Upstream));
    for index in [1, 2] {
        let (middle, end) = (format!("{root}.s0.{index}.s1"), format!("{root}.s0.{index}.s2"));
        until(async || kind(&middle).await == Some(FailureKind::Revoked)).await;
        until(async || kind(&end).await == Some(FailureKind::Upstream)).await;
    }

    let revoked = group([1, 2].map(member)).then(SUM.with(()));
    let root = revoked.id().clone();
    let last = client.send(revoked).await.unwrap();
    let running = async |index: u32| {
        let middle = TaskId::try_from(format!("{root}.s0.{index}.s1")).unwrap();
        client.result(middle).state().await.is_ok_and(|state| state == TaskState::Started)
    };
    until(async || running(0).await && running(1).await).await;
    let (_, asked) = client.revoke_workflow(&root).await.unwrap();
    assert_eq!(asked, 2, "the steps that run are asked to end");
    last.wait_record(WAIT).await.unwrap();
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_join_is_forgotten_with_the_results() {
    let kept_for = Duration::from_secs(3600);
    let setting = Setting::keeping_results_for(kept_for).await;
    let client = setting.app.client();
    let succeeds = chord([1, 2].map(|n| INC.call(n)), SUM.with(()));
    let leads_on = chord([1, 2].map(|n| INC.call(n)), SUM.with(())).then(INC.with(()));
    let fails = chord([1, 2].map(|n| FLAKY.call(n)), SUM.with(()));
    let never_begins = chord([1, 2].map(|n| INC.call(n)), SUM.with(())).countdown(kept_for);
    for (workflow, revoked) in [(succeeds, false), (leads_on, false), (fails, false), (never_begins, true)] {
        let root = workflow.id().clone();
        let join = [RecordId::new(RecordKind::Join, &format!("{root}.s1"))];
        let result = client.send(workflow).await.unwrap();
        if revoked {
            client.revoke_workflow(&root).await.unwrap();
        }
        result.wait_record(WAIT).await.unwrap();
        let members = async || setting.app.backend().read(&join).await.unwrap()[0].iter().count();
        until(async || members().await == 3).await;
        // Until the follow-up of the callback is done.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(members().await, 3, "kept as long as the results");
        tokio::time::sleep(kept_for).await;
        assert_eq!(members().await, 0);
    }
    setting.worker.stop().await;
}
