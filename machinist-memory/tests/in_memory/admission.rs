//! Admission and parking: what may not start waits, costs nothing, holds up nobody, and is never lost.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use machinist_core::{
    App, AsyncResult, Client, RetryPolicy, State, TaskDef, TaskError, Worker,
    admission::{AdmissionDecision, AdmissionRequest, AdmissionRule, WaitReason},
    backend::{Backend, Commit, Index},
    broker::Broker,
    clock::Timestamp,
    event::{Event, EventKind},
    id::TaskName,
    record::TaskState,
    worker::Drained,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;

const WORK: TaskDef<(), ()> = TaskDef::new("work");
const OTHER: TaskDef<(), ()> = TaskDef::new("other");
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

type Runs = Arc<AtomicU32>;

async fn count(State(runs): State<Runs>) -> Result<(), TaskError> {
    runs.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

async fn nothing() -> Result<(), TaskError> {
    Ok(())
}

/// Refuses `work` as it is told.
#[derive(Debug, Clone)]
struct Gate(Arc<Mutex<AdmissionDecision>>);

impl Gate {
    fn closed() -> Self {
        Self(Arc::new(Mutex::new(AdmissionDecision::NotHere(reason()))))
    }

    fn set(&self, decision: AdmissionDecision) {
        *self.0.lock().unwrap() = decision;
    }
}

#[async_trait::async_trait]
impl AdmissionRule for Gate {
    async fn admit(&self, task: &AdmissionRequest<'_>) -> AdmissionDecision {
        if task.name.as_str() == "work" { self.0.lock().unwrap().clone() } else { AdmissionDecision::Now }
    }
}

fn reason() -> WaitReason {
    WaitReason::new("gate", "work")
}

/// A worker that counts its runs of `work`.
struct Counting {
    runs: Runs,
    running: Running,
}

impl Counting {
    fn start(app: &App, gate: Option<&Gate>) -> Self {
        let runs = Runs::default();
        let mut worker = Worker::builder(app)
            .concurrency(1)
            .look_ahead(4)
            .state(Arc::clone(&runs))
            .task(WORK, count)
            .task(OTHER, nothing);
        if let Some(gate) = gate {
            worker = worker.admission(gate.clone());
        }
        Self { runs, running: Running::start(worker) }
    }

    fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    async fn stop(self) -> Drained {
        self.running.stop().await
    }
}

struct Servers {
    app: App,
    broker: Arc<MemoryBroker>,
    backend: Arc<MemoryBackend>,
    parked: Arc<AtomicU32>,
}

async fn servers() -> Servers {
    let broker = Arc::new(MemoryBroker::new());
    let backend = Arc::new(MemoryBackend::new());
    let parked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&parked);
    let app = App::builder(broker.clone(), backend.clone())
        .observer(move |event: &Event<'_>| {
            if let EventKind::Parked { .. } = event.kind {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()
        .await
        .unwrap();
    Servers { app, broker, backend, parked }
}

impl Servers {
    /// Returns when the task is parked in the broker.
    async fn is_parked<R>(&self, task: &AsyncResult<R>) {
        for _ in 0..1000 {
            if task.record().await.is_ok_and(|record| record.parked.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} is not parked", task.id());
    }

    async fn ready(&self) -> u64 {
        let queue = self.app.default_queue().clone();
        self.broker.depth(&[queue]).await.unwrap()[0].ready.unwrap_or_default()
    }
}

/// A worker whose rule refuses `work`, and its servers.
struct Refused {
    servers: Servers,
    client: Client,
    gate: Gate,
    running: Counting,
}

async fn refused() -> Refused {
    let servers = servers().await;
    let gate = Gate::closed();
    let running = Counting::start(&servers.app, Some(&gate));
    Refused { client: servers.app.client(), servers, gate, running }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_refused_for_seconds_waits_in_the_process_and_holds_up_nobody() {
    let Refused { servers, client, gate, running } = refused().await;
    let task = client.send(WORK.call(())).await.unwrap();
    let other = client.send(OTHER.call(())).await.unwrap();
    other.wait(Duration::from_secs(1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((running.runs(), task.state().await.unwrap()), (0, TaskState::Pending));
    gate.set(AdmissionDecision::Now);
    task.wait(Duration::from_secs(1)).await.unwrap();
    assert_eq!(servers.parked.load(Ordering::SeqCst), 0, "it never left the process");
    assert_eq!(task.record().await.unwrap().attempt, 1);
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn many_refused_tasks_do_not_fill_the_look_ahead() {
    let Refused { servers, client, gate, running } = refused().await;
    let mut refused = Vec::new();
    for _ in 0..50 {
        refused.push(client.send(WORK.call(())).await.unwrap());
    }
    let other = client.send(OTHER.call(())).await.unwrap();
    other.wait(Duration::from_secs(1)).await.unwrap();
    for task in &refused {
        servers.is_parked(task).await;
    }
    gate.set(AdmissionDecision::Now);
    assert_eq!(client.release_parked(&reason(), Duration::ZERO).await.unwrap(), 50);
    for task in &refused {
        task.wait(MINUTE).await.unwrap();
    }
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!((running.runs(), servers.ready().await), (50, 0), "the guards found their tasks done");
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_parked_task_says_why_and_is_released_at_once() {
    let Refused { servers, client, gate, running } = refused().await;
    let task = client.send(WORK.call(())).await.unwrap();
    servers.is_parked(&task).await;
    let record = task.record().await.unwrap();
    let parked = record.parked.unwrap();
    assert_eq!((record.state, parked.reason.as_str(), parked.attempt), (TaskState::Pending, "gate:work", 1));
    // It is parked again and again, and has waited since the first time.
    tokio::time::sleep(HOUR).await;
    let later = client.parked(&reason(), 10).await.unwrap();
    assert_eq!((later.len(), &later[0].id), (1, task.id()));
    assert!(later[0].parked.since == parked.since && later[0].parked.until > parked.until);
    assert!(client.parked(&WaitReason::new("gate", "else"), 10).await.unwrap().is_empty());
    gate.set(AdmissionDecision::Now);
    let released = Instant::now();
    assert_eq!(client.release_parked(&reason(), Duration::ZERO).await.unwrap(), 1);
    task.wait(HOUR).await.unwrap();
    assert!(released.elapsed() < Duration::from_secs(1), "{:?}", released.elapsed());
    assert_eq!(client.release_parked(&reason(), Duration::ZERO).await.unwrap(), 0);
    let record = task.record().await.unwrap();
    assert_eq!((record.attempt, record.history.len(), record.parked), (1, 0, None));
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!((running.runs(), servers.ready().await), (1, 0));
    assert!(servers.backend.list(&Index::Parked("gate:work".into()), None, 9).await.unwrap().is_empty());
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn the_guard_alone_suffices() {
    let Refused { servers, client, gate, running } = refused().await;
    let task = client.send(WORK.call(())).await.unwrap();
    servers.is_parked(&task).await;
    let forget = Commit { drop: vec!["pk".into(), "pm".into(), "g:1:1".into()], ..Commit::new(task.id()) };
    servers.backend.commit(vec![forget.into()]).await;
    gate.set(AdmissionDecision::Now);
    assert_eq!(client.release_parked(&reason(), Duration::ZERO).await.unwrap(), 0);
    task.wait(HOUR).await.unwrap();
    assert_eq!(running.runs(), 1);
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_known_time_is_waited_for_and_spends_neither_attempt_nor_postponement() {
    let servers = servers().await;
    let client = servers.app.client();
    let at = |after: Duration| servers.app.clock().now().plus(after);
    for wait in [Duration::from_millis(1500), MINUTE, 3 * HOUR] {
        let gate = Gate::closed();
        let free = at(wait);
        gate.set(AdmissionDecision::NotBefore(free, reason()));
        let running = Counting::start(&servers.app, Some(&gate));
        let policy = RetryPolicy { max_postponements: 0, ..RetryPolicy::new(0) };
        let task = client.send(WORK.call(()).retry_policy(policy)).await.unwrap();
        task.wait(4 * HOUR).await.unwrap();
        let record = task.record().await.unwrap();
        let started: Timestamp = record.started_at.unwrap();
        assert!(
            started >= free && started.since(free) < Duration::from_secs(2),
            "{wait:?}: {started} {free}"
        );
        assert_eq!((record.attempt, record.history.len()), (1, 0));
        assert!(running.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_revoked_or_has_expired_is_not_parked_any_longer() {
    let Refused { servers, client, running, .. } = refused().await;
    let revoked = client.send(WORK.call(())).await.unwrap();
    let late = client.send(WORK.call(()).expires_in(MINUTE)).await.unwrap();
    servers.is_parked(&revoked).await;
    client.revoke(revoked.id()).await.unwrap();
    assert!(revoked.wait(MINUTE).await.is_err());
    assert!(late.wait(2 * HOUR).await.is_err());
    assert!(client.parked(&reason(), 9).await.unwrap().is_empty());
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!((running.runs(), servers.ready().await), (0, 0));
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_disabled_name_waits_everywhere_until_it_is_enabled() {
    let servers = servers().await;
    let client = servers.app.client();
    let work = TaskName::parse("work").unwrap();
    client.disable_task(&work).await.unwrap();
    assert_eq!(client.disabled_tasks().await.unwrap(), std::slice::from_ref(&work));
    // One worker that starts afterwards, and a second one.
    let workers = [Counting::start(&servers.app, None), Counting::start(&servers.app, None)];
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(client.send(WORK.call(())).await.unwrap());
    }
    client.send(OTHER.call(())).await.unwrap().wait(Duration::from_secs(1)).await.unwrap();
    for task in &tasks {
        servers.is_parked(task).await;
    }
    assert_eq!(tasks[0].record().await.unwrap().parked.unwrap().reason, "disabled:work");
    assert_eq!(client.enable_task(&work).await.unwrap(), 20);
    for task in &tasks {
        task.wait(MINUTE).await.unwrap();
    }
    assert!(client.disabled_tasks().await.unwrap().is_empty());
    // Workers that run hear of it within a second.
    client.disable_task(&work).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waits = client.send(WORK.call(())).await.unwrap();
    servers.is_parked(&waits).await;
    client.enable_task(&work).await.unwrap();
    waits.wait(MINUTE).await.unwrap();
    let runs: u32 = workers.iter().map(Counting::runs).sum();
    assert_eq!(runs, 21);
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_hands_back_what_waits_in_it() {
    let Refused { servers, client, running, .. } = refused().await;
    let task = client.send(WORK.call(())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(running.stop().await.is_clean());
    assert_eq!(servers.ready().await, 1);
    let open = Counting::start(&servers.app, None);
    task.wait(Duration::from_secs(1)).await.unwrap();
    assert!(open.stop().await.is_clean());
}
