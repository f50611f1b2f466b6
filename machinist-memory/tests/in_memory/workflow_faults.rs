//! Workflows whose data is lost, forged, too large or does not fit: what cannot go on ends and says why, and nothing else
//! ends.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use machinist_conformance::arrows::{ArrowStep, Side, Witness, Witnessed};
use machinist_core::{
    App, AppBuilder, Arg, DeadFilter, MaxSizes, Rest, Signature, State, TaskContext, TaskDef, TaskError,
    TaskId, Worker,
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    broker::Broker,
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    id::{QueueName, RecordId, RecordKind},
    record::{Facts, FailureKind, TaskState},
    sign::{Algorithm, Key},
    workflow::{Policy, StepPlan, Workflow, chain, group},
    workflow_status::StepStatus,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use crate::support::{Running, until};

const INC: TaskDef<i64, i64> = TaskDef::new("inc");
const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
type Anything = Rest<Value>;
const SOON: Duration = Duration::from_secs(120);
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than an unregistered task waits for a worker, and than lost results are waited for here.
const WAIT: Duration = Duration::from_secs(12 * 3600);

type Notes = Arc<Mutex<Vec<Vec<Value>>>>;

async fn inc(n: i64) -> Result<i64, TaskError> {
    Ok(n + 1)
}

async fn sum(all: Vec<i64>) -> Result<i64, TaskError> {
    Ok(all.iter().sum())
}

async fn note(State(notes): State<Notes>, Rest(args): Anything) -> Result<(), TaskError> {
    notes.lock().unwrap().push(args);
    Ok(())
}

/// Notes its arguments, and asks for a second run in a while.
async fn twice(cx: TaskContext, State(notes): State<Notes>, Rest(args): Anything) -> Result<(), TaskError> {
    notes.lock().unwrap().push(args);
    if cx.attempt() == 1 { Err(TaskError::retry_in(Duration::from_secs(600))) } else { Ok(()) }
}

/// Returns a text of so many bytes.
async fn text(bytes: i64) -> Result<String, TaskError> {
    Ok("x".repeat(usize::try_from(bytes)?))
}

/// Ends when the switch is on; 0 at once.
async fn gate(State(open): State<watch::Receiver<bool>>, n: i64) -> Result<i64, TaskError> {
    if n > 0 {
        drop(open.clone().wait_for(|open| *open).await);
    }
    Ok(n * 10)
}

/// Fails until the switch is on.
async fn flaky(State(on): State<Arc<AtomicBool>>, n: i64) -> Result<i64, TaskError> {
    if on.load(Ordering::Relaxed) { Ok(n * 10) } else { Err(TaskError::permanent("off")) }
}

/// An application in memory, and its worker once it is started.
struct Setting {
    app: App,
    backend: MemoryBackend,
    notes: Notes,
    open: watch::Sender<bool>,
    on: Arc<AtomicBool>,
}

impl Setting {
    async fn new(set: impl FnOnce(AppBuilder) -> AppBuilder) -> Self {
        let (broker, backend) = (MemoryBroker::new(), MemoryBackend::new());
        Self::over(Arc::new(broker), Arc::new(backend.clone()), backend, set).await
    }

    /// Over adapters that stand before this backend.
    async fn over(
        broker: Arc<dyn Broker>,
        front: Arc<dyn Backend>,
        backend: MemoryBackend,
        set: impl FnOnce(AppBuilder) -> AppBuilder,
    ) -> Self {
        let app = set(App::builder(broker, front)).build().await.unwrap();
        let (notes, on, open) = (Notes::default(), Arc::default(), watch::Sender::new(false));
        Self { app, backend, notes, open, on }
    }

    fn work(&self) -> Running {
        let builder = Worker::builder(&self.app)
            .task(INC, inc)
            .task(SUM, sum)
            .task(TaskDef::<Anything, ()>::new("note"), note)
            .task(TaskDef::<Anything, ()>::new("twice"), twice)
            .task(TaskDef::<i64, String>::new("text"), text)
            .task(TaskDef::<i64, i64>::new("gate"), gate)
            .task(TaskDef::<i64, i64>::new("flaky"), flaky)
            .state(self.notes.clone())
            .state(self.open.subscribe())
            .state(self.on.clone());
        Running::start(builder)
    }

    fn notes(&self) -> Vec<Vec<Value>> {
        self.notes.lock().unwrap().clone()
    }

    async fn facts(&self, id: &RecordId) -> Facts {
        self.backend.read(std::slice::from_ref(id)).await.unwrap().remove(0)
    }

    /// Lets the backend lose a record.
    async fn lose(&self, id: RecordId) {
        let facts = self.facts(&id).await;
        assert!(!facts.is_empty(), "{id} is there");
        let drop = facts.iter().map(|(name, _)| name.to_owned().into()).collect();
        self.change(Commit { drop, ..Commit::new(id) }).await;
    }

    async fn change(&self, commit: Commit) {
        self.backend.commit(vec![commit.into()]).await.remove(0).unwrap();
    }

    async fn has_ended(&self, id: &TaskId) -> bool {
        self.app.client().result(id.clone()).state().await.is_ok_and(TaskState::is_final)
    }

    async fn steps(&self, root: &TaskId) -> Vec<StepStatus> {
        self.app.client().workflow(root).await.unwrap().expect("a workflow").steps
    }
}

fn call(task: &str, args: impl IntoIterator<Item = i64>) -> Signature {
    args.into_iter().fold(Signature::new(task), |signature, arg| signature.arg(arg))
}

fn each(args: impl IntoIterator<Item = i64>) -> Vec<Vec<Arg>> {
    args.into_iter().map(|arg| vec![Arg::from_value(arg)]).collect()
}

/// A group of this task, and a step that waits for it.
fn chord(member: &str, args: [i64; 2], callback: &str) -> (Workflow, TaskId) {
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call(member, [])).each(each(args)),
        StepPlan::new("end", call(callback, [])).after(["many"]),
    ]);
    let workflow = workflow.unwrap();
    let root = workflow.id().clone();
    (workflow, root)
}

fn member(root: &TaskId, index: u32) -> TaskId {
    format!("{root}.many.{index}").try_into().unwrap()
}

fn join_of(root: &TaskId) -> RecordId {
    RecordId::new(RecordKind::Join, &format!("{root}.end"))
}

fn step<'a>(steps: &'a [StepStatus], name: &str) -> &'a StepStatus {
    steps.iter().find(|step| step.name == name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_forged_member_counts_as_missing() {
    let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
    let setting = Setting::new(|app| app.keyring(key)).await;
    let (workflow, root) = chord("inc", [1, 2], "note");
    let result = setting.app.client().send(workflow).await.unwrap();
    // Somebody who can write to the backend, and has no key, joins in the place of the first member.
    let end = r#"{"at":1,"state":"SUCCESS","results":[{"type":"int64","value":666}]}"#;
    let forged = serde_json::json!({ "id": member(&root, 0), "end": end }).to_string();
    let mut write = Commit::new(join_of(&root));
    write.facts = vec![("m:0".into(), forged.into())];
    setting.change(write).await;
    let worker = setting.work();
    for index in 0..2 {
        until(async || setting.has_ended(&member(&root, index)).await).await;
    }
    // Long enough for several looks at the join.
    tokio::time::sleep(HOUR).await;
    assert!(!setting.has_ended(result.id()).await && setting.notes().is_empty());
    // Without the forged fact, the member joins from its own record.
    let mut remove = Commit::new(join_of(&root));
    remove.drop = vec!["m:0".into()];
    setting.change(remove).await;
    assert_eq!(result.wait_record(WAIT).await.unwrap().state, TaskState::Success);
    assert_eq!(setting.notes(), [[serde_json::json!([2, 3])]]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_member_is_lost_ends_after_a_while_and_names_it() {
    let setting = Setting::new(|app| app.results_ttl(HOUR)).await;
    let worker = setting.work();
    let (workflow, root) = chord("gate", [0, 1], "note");
    let result = setting.app.client().send(workflow).await.unwrap();
    until(async || setting.facts(&join_of(&root)).await.has("m:0")).await;
    setting.lose(join_of(&root)).await;
    setting.lose((&member(&root, 0)).into()).await;
    setting.open.send_replace(true);
    until(async || setting.has_ended(&member(&root, 1)).await).await;
    // The first look finds the member lost, and a later one may find it again.
    tokio::time::sleep(HOUR / 2).await;
    assert!(!setting.has_ended(result.id()).await);
    let ended = result.wait_record(WAIT).await.unwrap();
    assert_eq!((ended.state, ended.kind), (TaskState::Failure, Some(FailureKind::Lost)));
    let error = ended.error.unwrap();
    assert!(error.message().contains(member(&root, 0).as_str()), "{error:?}");
    assert!(!error.message().contains(member(&root, 1).as_str()), "{error:?}");
    assert!(setting.notes().is_empty());
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_join_is_made_again_from_the_records_of_its_members() {
    let setting = Setting::new(|app| app).await;
    let worker = setting.work();
    let (workflow, root) = chord("gate", [0, 1], "note");
    let result = setting.app.client().send(workflow).await.unwrap();
    until(async || setting.facts(&join_of(&root)).await.has("m:0")).await;
    setting.lose(join_of(&root)).await;
    setting.open.send_replace(true);
    assert_eq!(result.wait_record(WAIT).await.unwrap().state, TaskState::Success);
    assert_eq!(setting.notes(), [[serde_json::json!([0, 10])]]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_that_was_started_with_other_results_ends_as_lost() {
    for loses in [false, true] {
        let setting = Setting::new(|app| app).await;
        let worker = setting.work();
        let (workflow, root) = chord("inc", [1, 2], "twice");
        let result = setting.app.client().send(workflow).await.unwrap();
        until(async || matches!(result.state().await, Ok(TaskState::Retry))).await;
        let join = setting.facts(&join_of(&root)).await;
        setting.lose(join_of(&root)).await;
        if loses {
            // The member has run again, and has returned something else.
            let joined = join.text("m:0").unwrap();
            let mut joined: Value = serde_json::from_str(&joined).unwrap();
            let end = joined["end"].as_str().unwrap().replace(r#""value":2"#, r#""value":7"#);
            assert_ne!(Some(&*end), joined["end"].as_str());
            joined["end"] = end.into();
            let mut write = Commit::new(join_of(&root));
            write.facts = vec![("m:0".into(), joined.to_string().into())];
            setting.change(write).await;
        }
        let ended = result.wait_record(WAIT).await.unwrap();
        let runs = setting.notes();
        assert!(runs.iter().all(|args| *args == [serde_json::json!([2, 3])]), "{runs:?}");
        let expected = if loses { (Some(FailureKind::Lost), 1) } else { (None, 2) };
        assert_eq!((ended.kind, runs.len()), expected, "{:?}", ended.error);
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn results_that_are_too_large_together_end_the_step_and_not_the_worker() {
    let setting = Setting::new(|app| app.max_sizes(MaxSizes::default().gathered(1_000))).await;
    let worker = setting.work();
    let (workflow, _) = chord("text", [600, 600], "note");
    let ended = setting.app.client().send(workflow).await.unwrap().wait_record(WAIT).await.unwrap();
    assert_eq!((ended.state, ended.kind), (TaskState::Failure, Some(FailureKind::Malformed)));
    let error = ended.error.unwrap();
    assert!(error.message().contains("the maximum is 1000"), "{error:?}");
    let (workflow, _) = chord("text", [300, 300], "note");
    let ended = setting.app.client().send(workflow).await.unwrap().wait_record(WAIT).await.unwrap();
    assert_eq!(ended.state, TaskState::Success);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_that_cannot_run_ends_what_follows_it_and_calls_back() {
    // A task that nobody has, and one that takes something else than what it gets.
    for (bad, kind) in [("nobody", FailureKind::Unregistered), ("sum", FailureKind::Malformed)] {
        let setting = Setting::new(|app| app).await;
        let worker = setting.work();
        let workflow = Workflow::of_steps(vec![
            StepPlan::new("first", call("inc", [1])),
            StepPlan::new("bad", call(bad, [])).after(["first"]).on_error(["tell"]),
            StepPlan::new("never", call("inc", [])).after(["bad"]),
            StepPlan::new("last", call("note", [])).after(["never"]),
            StepPlan::new("tell", call("note", [])),
        ]);
        let result = setting.app.client().send(workflow.unwrap()).await.unwrap();
        let root = result.workflow_id().unwrap().clone();
        assert_eq!(result.wait_record(WAIT).await.unwrap().kind, Some(FailureKind::Upstream));
        let steps = setting.steps(&root).await;
        assert_eq!(step(&steps, "first").state, TaskState::Success);
        assert_eq!(step(&steps, "bad").kind, Some(kind), "{bad}");
        for name in ["never", "last"] {
            let step = step(&steps, name);
            assert_eq!(step.kind, Some(FailureKind::Upstream), "{name}");
            assert!(step.error.as_ref().unwrap().contains(&format!("{root}.bad")), "{:?}", step.error);
        }
        until(async || setting.has_ended(&step(&steps, "tell").id).await).await;
        let notes = setting.notes();
        let [told] = &notes[..] else { panic!("{notes:?}") };
        assert!(told.len() == 1 && told[0].as_str().is_some_and(|error| !error.is_empty()), "{told:?}");
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_failure_joins_when_its_dead_letter_is_replayed() {
    let setting = Setting::new(|app| app).await;
    let worker = setting.work();
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("flaky", [])).each(each([1, 2])).on_failure(Policy::Hold),
        StepPlan::new("end", call("note", [])).after(["many"]),
    ]);
    let client = setting.app.client();
    let result = client.send(workflow.unwrap()).await.unwrap();
    let letters = async || client.dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap();
    until(async || letters().await.len() == 2).await;
    assert!(!setting.has_ended(result.id()).await);
    setting.on.store(true, Ordering::Relaxed);
    client.replay_dead_letters(&letters().await, Duration::ZERO, |_, _| {}).await.unwrap();
    assert_eq!(result.wait_record(WAIT).await.unwrap().state, TaskState::Success);
    assert_eq!(setting.notes(), [[serde_json::json!([10, 20])]]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_member_of_several_steps_is_not_lost_while_it_is_on_its_way() {
    // Each step is published long after results are forgotten.
    let setting = Setting::new(|app| app.results_ttl(HOUR)).await;
    let worker = setting.work();
    let late = |step: Signature<i64>| step.countdown(3 * HOUR);
    let chains = [1, 2].map(|n| chain(late(INC.call(n))).then(INC.with(()).options(late)).then(INC.with(())));
    let total = setting.app.client().send(group(chains).then(SUM.with(()))).await.unwrap();
    assert_eq!(total.wait(WAIT).await.unwrap(), 4 + 5);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_the_message_does_not_end_a_task_that_runs() {
    let setting = Setting::new(|app| app).await;
    let worker = setting.work();
    let delay = Duration::from_secs(60);
    let workflow = Workflow::of_steps(vec![StepPlan::new("only", call("gate", [1]).countdown(delay))]);
    let client = setting.app.client();
    let result = client.send(workflow.unwrap()).await.unwrap();
    let root = result.workflow_id().unwrap().clone();
    // One copy runs at once; the other comes when the task is due.
    until(async || client.run_now(result.id()).await.is_ok()).await;
    until(async || matches!(result.state().await, Ok(TaskState::Started))).await;
    tokio::time::sleep(delay - Duration::from_secs(2)).await;
    // The run has five seconds to end by itself. Meanwhile the other copy finds that the workflow was revoked.
    client.revoke_workflow(&root).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    setting.open.send_replace(true);
    let ended = result.wait_record(WAIT).await.unwrap();
    assert_eq!((ended.state, ended.kind), (TaskState::Success, None));
    worker.stop().await;
}

/// Backend that is away when the sender of a member writes to the member's record, the first time. It counts how often joins
/// are read.
#[derive(Debug, Default)]
struct AwayOnce {
    inner: MemoryBackend,
    refused: Mutex<BTreeSet<RecordId>>,
    joins_read: AtomicUsize,
}

impl AwayOnce {
    fn refuses(&self, commit: &Commit) -> bool {
        let is_sender = commit.facts.iter().any(|(name, _)| name == "sent");
        let is_member = commit.id.kind() == RecordKind::Task && commit.id.id().contains(".many.");
        is_sender && is_member && self.refused.lock().unwrap().insert(commit.id.clone())
    }
}

#[async_trait]
impl Diagnose for AwayOnce {
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        self.inner.diagnose().await
    }
}

#[async_trait]
impl Backend for AwayOnce {
    fn capabilities(&self) -> BackendCapabilities {
        self.inner.capabilities()
    }
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let mut answers = Vec::with_capacity(batch.len());
        for commit in batch {
            if self.refuses(&commit) {
                answers.push(Err(BackendError::Unavailable("away for a moment".into())));
            } else {
                answers.extend(self.inner.commit(vec![commit]).await);
            }
        }
        answers
    }
    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        let joins = ids.iter().filter(|id| id.kind() == RecordKind::Join).count();
        self.joins_read.fetch_add(joins, Ordering::Relaxed);
        self.inner.read(ids).await
    }
    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.inner.watch(id).await
    }
    async fn now(&self) -> Result<Timestamp, BackendError> {
        self.inner.now().await
    }
    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.inner.update_indexes(updates).await
    }
    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        self.inner.list(index, after, limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_sender_could_not_write_its_record_is_not_lost() {
    let backend = MemoryBackend::new();
    let away = Arc::new(AwayOnce { inner: backend.clone(), ..AwayOnce::default() });
    let broker = Arc::new(MemoryBroker::new());
    let setting = Setting::over(broker, away.clone(), backend, |app| app.results_ttl(HOUR)).await;
    let worker = setting.work();
    // They wait for longer than results are kept, and nobody else writes to their records before they start.
    let workflow = Workflow::of_steps(vec![
        StepPlan::new("many", call("inc", []).countdown(6 * HOUR)).each(each([1, 2])),
        StepPlan::new("end", call("note", [])).after(["many"]),
    ]);
    let result = setting.app.client().send(workflow.unwrap()).await.unwrap();
    assert_eq!(result.wait_record(WAIT).await.unwrap().state, TaskState::Success);
    assert_eq!(setting.notes(), [[serde_json::json!([2, 3])]]);
    assert_eq!(away.refused.lock().unwrap().len(), 2);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_comes_after_the_end_of_a_step_does_not_look_at_what_it_has_waited_for() {
    let backend = MemoryBackend::new();
    let counting = Arc::new(AwayOnce { inner: backend.clone(), ..AwayOnce::default() });
    let broker = Arc::new(MemoryBroker::new());
    let setting = Setting::over(broker.clone(), counting.clone(), backend, |app| app).await;
    let worker = setting.work();
    let (workflow, _) = chord("inc", [1, 2], "note");
    let result = setting.app.client().send(workflow).await.unwrap();
    assert_eq!(result.wait_record(WAIT).await.unwrap().state, TaskState::Success);
    let queue = QueueName::parse("default").unwrap();
    let delayed = async || Broker::held(&*broker, std::slice::from_ref(&queue)).await.unwrap()[0].delayed;
    assert_eq!(delayed().await, Some(1), "the copy that was published with the group waits");
    let read = counting.joins_read.load(Ordering::Relaxed);
    assert!(read > 0);
    until(async || delayed().await == Some(0)).await;
    tokio::time::sleep(SOON).await;
    assert_eq!(counting.joins_read.load(Ordering::Relaxed), read);
    worker.stop().await;
}

/// Confirms what follows another task late: it has been in its queue for a while by then.
#[derive(Debug)]
struct SlowConfirms;

#[async_trait]
impl Witness for SlowConfirms {
    async fn at(&self, step: ArrowStep, side: Side) {
        if (step, side) == (ArrowStep::Continue, Side::After) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_step_that_waits_is_known_before_the_first_member_can_end() {
    let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new());
    let broker = Arc::new(Witnessed::new(Arc::new(SlowConfirms), broker));
    let backend = MemoryBackend::new();
    let setting = Setting::over(broker, Arc::new(backend.clone()), backend, |app| app).await;
    let worker = setting.work();
    let (workflow, _) = chord("inc", [1, 2], "note");
    let sent = Instant::now();
    let result = setting.app.client().send(workflow).await.unwrap();
    assert_eq!(result.wait_record(WAIT).await.unwrap().state, TaskState::Success);
    // The last member has published it. Its own copy comes back only after 15 seconds of paused time.
    assert!(sent.elapsed() < Duration::from_secs(15), "{:?}", sent.elapsed());
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_root_whose_id_leaves_no_room_for_its_steps_is_refused() {
    let setting = Setting::new(|app| app).await;
    let client = setting.app.client();
    let sent = async |bytes: usize| {
        let (workflow, _) = chord("inc", [1, 2], "note");
        client.send(workflow.with_id("r".repeat(bytes).try_into().unwrap())).await
    };
    assert!(sent(150).await.is_ok());
    let error = sent(151).await.unwrap_err().to_string();
    assert!(error.contains("151 bytes, and the maximum is 150"), "{error}");
}
