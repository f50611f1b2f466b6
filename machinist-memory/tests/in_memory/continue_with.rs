//! Handlers that hand their place to a workflow: what follows them follows its end.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, Arg, Continue, Rest, Signature, State, TaskContext, TaskDef, TaskError, TaskId, Worker,
    record::{FailureKind, TaskState},
    workflow::{Policy, StepPlan, Workflow, chain, chord},
    workflow_status::WorkflowStatus,
};
use machinist_memory::{MemoryBackend, MemoryBroker};

use crate::support::{Running, until};

const INC: TaskDef<i64, i64> = TaskDef::new("inc");
const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
/// Fails while the switch is off.
const FLAKY: TaskDef<i64, i64> = TaskDef::new("flaky");
const LATER: TaskDef<i64, i64> = TaskDef::new("later");
/// Is replaced by `inc`.
const ONE: TaskDef<i64, i64> = TaskDef::new("one");
/// Is replaced by a chord of `inc` and `sum`: from n it makes 2 n + 2.
const TWICE: TaskDef<i64, i64> = TaskDef::new("twice");
/// Is replaced by `inc`, then `flaky`.
const RISKY: TaskDef<i64, i64> = TaskDef::new("risky");
/// Is replaced by itself until it is 0.
const DOWN: TaskDef<i64, i64> = TaskDef::new("down");
/// Is replaced by `inc`, then a task that is not due for an hour.
const SLOW: TaskDef<i64, i64> = TaskDef::new("slow");
/// Wants to be replaced twice.
const GREEDY: TaskDef<i64, i64> = TaskDef::new("greedy");
const NOTE: TaskDef<Rest<serde_json::Value>, ()> = TaskDef::new("note");
const WAIT: Duration = Duration::from_secs(120);
const HOUR: Duration = Duration::from_secs(3600);

type Notes = Arc<Mutex<Vec<(String, Vec<serde_json::Value>)>>>;

async fn twice(n: i64, cx: TaskContext) -> Result<Continue<i64>, TaskError> {
    Ok(cx.continue_with(chord([INC.call(n), INC.call(n)], SUM.with(())))?)
}

async fn down(n: i64, cx: TaskContext) -> Result<Continue<i64>, TaskError> {
    if n == 0 { Ok(Continue::value(42)) } else { Ok(cx.continue_with(DOWN.call(n - 1))?) }
}

async fn note(
    cx: TaskContext,
    State(notes): State<Notes>,
    Rest(args): Rest<serde_json::Value>,
) -> Result<(), TaskError> {
    notes.lock().unwrap().push((cx.task_id().to_string(), args));
    Ok(())
}

struct Setting {
    app: App,
    notes: Notes,
    on: Arc<AtomicBool>,
    worker: Running,
}

impl Setting {
    async fn new() -> Self {
        let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()))
            .build()
            .await
            .unwrap();
        let notes = Notes::default();
        let on = Arc::<AtomicBool>::default();
        let builder =
            Worker::builder(&app)
                .task(INC, async |n: i64| Ok::<_, TaskError>(n + 1))
                .task(SUM, async |all: Vec<i64>| Ok::<_, TaskError>(all.iter().sum::<i64>()))
                .task(LATER, async |n: i64| Ok::<_, TaskError>(n))
                .task(FLAKY, async |State(on): State<Arc<AtomicBool>>, n: i64| {
                    if on.load(Ordering::Relaxed) { Ok(n) } else { Err(TaskError::permanent("off")) }
                })
                .task(ONE, async |n: i64, cx: TaskContext| Ok::<_, TaskError>(cx.continue_with(INC.call(n))?))
                .task(RISKY, async |n: i64, cx: TaskContext| {
                    Ok::<_, TaskError>(
                        cx.continue_with(chain(INC.call(n)).then(FLAKY.with(())).then(INC.with(())))?,
                    )
                })
                .task(SLOW, async |n: i64, cx: TaskContext| {
                    let later = LATER.with(()).options(|later| later.countdown(HOUR));
                    Ok::<_, TaskError>(cx.continue_with(chain(INC.call(n)).then(later))?)
                })
                .task(GREEDY, async |n: i64, cx: TaskContext| {
                    let _first = cx.continue_with(INC.call(n)).map_err(TaskError::permanent)?;
                    cx.continue_with(INC.call(n)).map_err(TaskError::permanent)
                })
                .task(TWICE, twice)
                .task(DOWN, down)
                .task(NOTE, note)
                .state(on.clone())
                .state(notes.clone());
        Self { worker: Running::start(builder), app, notes, on }
    }

    async fn status(&self, root: &TaskId) -> WorkflowStatus {
        self.app.client().workflow(root).await.unwrap().expect("a workflow")
    }

    /// Sends a workflow, and waits for its end.
    async fn ended(&self, workflow: Workflow) -> WorkflowStatus {
        let root = workflow.id().clone();
        let result = self.app.client().send(workflow).await.unwrap();
        result.wait_record(WAIT).await.unwrap();
        until(async || self.status(&root).await.state.is_final()).await;
        self.status(&root).await
    }

    fn noted(&self, step: &str) -> Vec<Vec<serde_json::Value>> {
        let notes = self.notes.lock().unwrap();
        notes.iter().filter(|(id, _)| id.ends_with(step)).map(|(_, args)| args.clone()).collect()
    }
}

fn call(task: &str, args: impl IntoIterator<Item = i64>) -> Signature {
    args.into_iter().fold(Signature::new(task), |signature, arg| signature.arg(arg))
}

fn each(args: impl IntoIterator<Item = i64>) -> Vec<Vec<Arg>> {
    args.into_iter().map(|arg| vec![Arg::from_value(arg)]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_task_has_the_result_of_what_replaces_it() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    for (task, result, last) in [(ONE, 6, "+1"), (TWICE, 12, "+1.s1"), (DOWN, 42, "+1")] {
        let sent = client.send(task.call(5)).await.unwrap();
        assert_eq!(sent.wait(WAIT).await.unwrap(), result, "{}", task.name());
        let record = sent.record().await.unwrap();
        assert_eq!(record.state, TaskState::Success);
        assert_eq!(record.continued_by.unwrap().as_str(), format!("{}{last}", sent.id()), "{}", task.name());
    }
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_task_follows_what_replaces_it() {
    let setting = Setting::new().await;
    let chained = chain(TWICE.call(5)).then(ONE.with(())).then(DOWN.with(())).then(INC.with(()));
    let client = setting.app.client();
    assert_eq!(client.send(chained).await.unwrap().wait(WAIT).await.unwrap(), 43);
    let status = setting
        .ended(
            Workflow::of_steps(vec![
                StepPlan::new("many", call("twice", [])).each(each(0..20)),
                StepPlan::new("down", call("down", [3])),
                StepPlan::new("end", call("note", [])).after(["many", "down"]),
            ])
            .unwrap(),
        )
        .await;
    assert_eq!(status.state, TaskState::Success);
    assert_eq!((status.progress.done, status.progress.total), (22, 22));
    let all: Vec<i64> = (0..20).map(|n| 2 * n + 2).collect();
    assert_eq!(setting.noted(".end"), [vec![serde_json::json!(all), 42.into()]]);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_what_replaces_a_task_is_the_failure_of_the_task() {
    let setting = Setting::new().await;
    let steps = || {
        vec![
            StepPlan::new("risky", call("risky", [1])).on_error(["page"]),
            StepPlan::new("page", call("note", [7])),
            StepPlan::new("next", call("note", [])).after(["risky"]),
            StepPlan::new("many", call("risky", [])).each(each([1, 2])).on_failure(Policy::Collect),
            StepPlan::new("end", call("note", [])).after(["many"]),
        ]
    };
    let failed = setting.ended(Workflow::of_steps(steps()).unwrap()).await;
    until(async || !setting.noted(".page").is_empty() && !setting.noted(".end").is_empty()).await;
    assert_eq!(failed.state, TaskState::Failure);
    let step = |name: &str| failed.steps.iter().find(|step| step.name == name).unwrap();
    assert_eq!(step("risky").kind, Some(FailureKind::Upstream));
    assert_eq!(step("next").kind, Some(FailureKind::Upstream));
    assert!(step("next").error.as_ref().unwrap().contains("off"), "{:?}", step("next").error);
    // Once, though three tasks of the workflow that replaces it never succeed.
    assert_eq!(setting.noted(".page"), [["off".into(), serde_json::json!(7)]]);
    let outcomes = &setting.noted(".end")[0][0];
    assert_eq!((&outcomes[0]["state"], &outcomes[1]["kind"]), (&"FAILURE".into(), &"upstream".into()));

    setting.on.store(true, Ordering::Relaxed);
    let again = setting.app.client().retry_workflow(&failed.root).await.unwrap();
    again.wait_record(WAIT).await.unwrap();
    until(async || !setting.noted(".next").is_empty()).await;
    assert_eq!(setting.noted(".next"), [[serde_json::json!(3)]]);
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn revoking_a_task_revokes_what_replaces_it() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let single = client.send(SLOW.call(1)).await.unwrap();
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("slow", call("slow", [1])),
        StepPlan::new("end", call("note", [])).after(["slow"]),
    ]);
    let workflow = workflow.unwrap();
    let root = workflow.id().clone();
    let end = client.send(workflow).await.unwrap();
    for parent in [single.id().to_string(), format!("{root}.slow")] {
        let first: TaskId = format!("{parent}+1.s0").try_into().unwrap();
        until(async || client.result(first.clone()).state().await.is_ok_and(|state| state.is_final())).await;
    }
    until(async || client.revoke(single.id()).await.is_ok()).await;
    client.revoke_workflow(&root).await.unwrap();
    assert_eq!(single.wait_record(2 * HOUR).await.unwrap().kind, Some(FailureKind::Revoked));
    assert_eq!(end.wait_record(2 * HOUR).await.unwrap().kind, Some(FailureKind::Upstream));
    assert_eq!(setting.status(&root).await.steps[0].kind, Some(FailureKind::Revoked));
    setting.worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_is_replaced_once() {
    let setting = Setting::new().await;
    let client = setting.app.client();
    let sent = client.send(GREEDY.call(1)).await.unwrap();
    let error = sent.wait(WAIT).await.unwrap_err().to_string();
    assert!(error.contains("a task is replaced once"), "{error}");
    setting.worker.stop().await;
}
