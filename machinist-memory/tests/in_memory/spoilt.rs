//! Records and indexes in which another program has written, over the in-memory adapters and under paused time: none of
//! them stops a worker, and none ends the task of somebody else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_conformance::eventually;
use machinist_core::{
    App, AsyncResult, ResultError, State, TaskContext, TaskDef, TaskError, WhyReason, Worker, WorkerAction,
    WorkerBuilder, WorkerFilter,
    backend::Index,
    id::{RecordId, RecordKind, SessionId},
    limit::{Limit, Rate},
    periodic::{Periodic, Schedule},
    record::{FailureKind, TaskState},
    sign::{Algorithm, Key},
    worker::TaskOptions,
};
use machinist_memory::MemoryBroker;
use tokio::sync::Semaphore;

use crate::support::{Running, SpoiltBackend};

/// Ends when it is let go, or told to.
const HOLD: TaskDef<(), ()> = TaskDef::new("hold");
/// Takes ten seconds.
const LIMITED: TaskDef<(), ()> = TaskDef::new("limited");
const QUICK: TaskDef<(), ()> = TaskDef::new("quick");
/// Counts its runs.
const TICK: TaskDef<(), ()> = TaskDef::new("tick");
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
struct LetGo(Arc<Semaphore>);

#[derive(Debug, Clone, Default)]
struct Ticks(Arc<AtomicU32>);

async fn hold(cx: TaskContext, State(let_go): State<LetGo>) -> Result<(), TaskError> {
    tokio::select! {
        () = cx.cancellation().cancelled() => Err(TaskError::new("told to end")),
        permit = let_go.0.acquire() => {
            permit.unwrap().forget();
            Ok(())
        }
    }
}

async fn limited() -> Result<(), TaskError> {
    tokio::time::sleep(Duration::from_secs(10)).await;
    Ok(())
}

async fn tick(State(ticks): State<Ticks>) -> Result<(), TaskError> {
    ticks.0.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

async fn quick() -> Result<(), TaskError> {
    Ok(())
}

struct Installation {
    broker: MemoryBroker,
    backend: SpoiltBackend,
    app: App,
}

impl Installation {
    async fn new() -> Self {
        let (broker, backend) = (MemoryBroker::new(), SpoiltBackend::default());
        let builder = App::builder(Arc::new(broker.clone()), Arc::new(backend.clone()));
        let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
        Self { broker, backend, app: builder.keyring(key).build().await.unwrap() }
    }

    fn worker(&self, name: &str, limit: Limit) -> WorkerBuilder {
        Worker::builder(&self.app)
            .name(name)
            .concurrency(4)
            .state(LetGo(Arc::new(Semaphore::new(0))))
            .task(HOLD, hold)
            .task(LIMITED, limited)
            .task(QUICK, quick)
            .options("limited", TaskOptions::new().limit(limit))
    }

    async fn send(&self, task: &TaskDef<(), ()>) -> AsyncResult<()> {
        self.app.client().send(task.call(())).await.unwrap()
    }

    /// Names and sessions of the live workers.
    async fn workers(&self) -> Vec<(String, String)> {
        let workers = self.app.client().workers(&WorkerFilter::new()).await.unwrap();
        workers.into_iter().map(|worker| (worker.name, worker.incarnation)).collect()
    }
}

fn one_at_a_time() -> Limit {
    Limit::new().max_running(1)
}

fn places() -> RecordId {
    RecordId::new(RecordKind::Limit, "run/task:limited")
}

fn name(worker: &str) -> RecordId {
    RecordId::new(RecordKind::Worker, worker)
}

async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    assert!(eventually(HOUR, holds).await, "waited an hour for {what}");
}

async fn runs(task: &AsyncResult<()>) {
    until("a task to run", async || task.state().await.unwrap() == TaskState::Started).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_and_a_name_that_cannot_be_used_cost_a_worker_no_renewal() {
    let here = Installation::new().await;
    // Few renewals in a day.
    let running = Running::start(here.worker("w", one_at_a_time()).session_lease(10 * MINUTE));
    let (held, limited) = (here.send(&HOLD).await, here.send(&LIMITED).await);
    runs(&held).await;
    runs(&limited).await;
    here.backend.spoil(places());
    here.backend.spoil(name("w"));
    // Its place cannot be freed, and after a day its worker's name cannot be kept.
    limited.wait(MINUTE).await.unwrap();
    tokio::time::sleep(25 * HOUR).await;
    here.send(&QUICK).await.wait(MINUTE).await.unwrap();
    here.app.client().revoke(held.id()).await.unwrap();
    let ended = held.wait(MINUTE).await;
    assert!(matches!(ended, Err(ResultError::Failed { kind: FailureKind::Revoked, .. })), "{ended:?}");
    // The place is free when the record can be used again.
    here.backend.mend();
    here.send(&LIMITED).await.wait(HOUR).await.unwrap();
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_starts_under_another_name_if_its_own_cannot_be_used() {
    let here = Installation::new().await;
    here.backend.spoil(name("w"));
    let running = Running::start(here.worker("w", one_at_a_time()));
    here.send(&QUICK).await.wait(MINUTE).await.unwrap();
    assert_eq!(here.workers().await[0].0, "w#2");
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_session_that_cannot_be_used_is_free() {
    let here = Installation::new().await;
    let first = Running::start(here.worker("w", one_at_a_time()));
    until("the first worker", async || here.workers().await.len() == 1).await;
    let dead = here.workers().await.remove(0).1;
    first.worker.abort();
    here.backend.spoil(SessionId::from(&*dead));
    let second = Running::start(here.worker("w", one_at_a_time()));
    until("the second worker", async || here.workers().await.len() == 1).await;
    let (name, session) = here.workers().await.remove(0);
    assert!(name == "w" && session != dead, "{name} {session}");
    assert!(second.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn tasks_wait_for_a_limit_whose_record_cannot_be_used_and_others_do_not() {
    let rate = Limit::new().rate(Rate::parse("100/s").unwrap());
    let of_rate = RecordId::new(RecordKind::Limit, "rate/task:limited");
    for (limit, record, reason) in
        [(one_at_a_time(), places(), "max_running:task:limited"), (rate, of_rate, "rate:task:limited")]
    {
        let here = Installation::new().await;
        here.backend.spoil(record);
        let running = Running::start(here.worker("w", limit));
        let waits = here.send(&LIMITED).await;
        until("it to wait", async || {
            let parked = waits.record().await.unwrap().parked;
            parked.is_some_and(|parked| parked.reason == reason)
        })
        .await;
        here.send(&QUICK).await.wait(MINUTE).await.unwrap();
        tokio::time::sleep(HOUR).await;
        assert!(!waits.state().await.unwrap().is_final(), "{reason}");
        assert!(here.broker.dead_letters(here.app.default_queue()).is_empty(), "{reason}");
        here.backend.mend();
        waits.wait(5 * MINUTE).await.unwrap();
        let record = waits.record().await.unwrap();
        assert_eq!((record.attempt, record.history.len()), (1, 0), "a wait spends no attempt");
        assert!(running.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_only_shown_is_left_out_of_an_answer() {
    let here = Installation::new().await;
    let client = here.app.client();
    let waits = here.send(&QUICK).await;
    here.backend.spoil(RecordId::new(RecordKind::Control, "refused"));
    here.backend.spoil_index(Index::Queues);
    assert_eq!(client.why(waits.id()).await.unwrap().reason, WhyReason::NoConsumer);
    assert_eq!(client.why_queue(here.app.default_queue()).await.unwrap().reason, WhyReason::NoConsumer);

    let _running = Running::start(here.worker("w", one_at_a_time()));
    waits.wait(MINUTE).await.unwrap();
    here.backend.spoil(places());
    let limits = client.limits().await.unwrap();
    assert_eq!((limits.len(), limits[0].running), (1, None));
}

#[tokio::test(start_paused = true)]
async fn a_role_whose_record_cannot_be_used_hides_no_other() {
    let here = Installation::new().await;
    let worker = here.worker("w", one_at_a_time()).build().unwrap();
    let lead = |name: &str| worker.fleet().leader(name).run(|slot| async move { slot.lost().await }).unwrap();
    let (_good, _spoilt) = (lead("good"), lead("spoilt"));
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    let leaders = async || here.app.client().fleet_roles().await.unwrap().leaders;
    until("both leaders", async || {
        leaders().await.iter().filter(|leader| leader.worker.is_some()).count() == 2
    })
    .await;
    here.backend.spoil(RecordId::new(RecordKind::Lock, "leader/spoilt"));
    assert_eq!(leaders().await.iter().map(|leader| &*leader.name).collect::<Vec<_>>(), ["good"]);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn an_order_reaches_the_workers_whose_names_can_be_used() {
    let here = Installation::new().await;
    let _running = ["a", "b"].map(|worker| Running::start(here.worker(worker, one_at_a_time())));
    until("both workers", async || here.workers().await.len() == 2).await;
    here.backend.spoil(name("a"));
    let client = here.app.client();
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    let (id, results) = client.order_workers(&workers, WorkerAction::Pause, false).await.unwrap();
    let done = |worker: &str| results.iter().any(|result| result.worker == worker && result.done);
    assert_eq!((done("a"), done("b")), (false, true), "{results:?}");
    let report = client.order(&id).await.unwrap().unwrap();
    let answered = report.results.iter().filter(|result| result.at.is_some());
    assert_eq!(answered.map(|result| &*result.worker).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_task_is_published_again_although_nobody_can_take_the_turn() {
    let here = Installation::new().await;
    here.backend.spoil(RecordId::new(RecordKind::Lock, "overdue"));
    let _running = ["a", "b"].map(|worker| Running::start(here.worker(worker, one_at_a_time())));
    let delayed = here.app.client().send(QUICK.call(()).countdown(MINUTE)).await.unwrap();
    assert_eq!(here.broker.lose_delayed(), 1);
    delayed.wait(HOUR).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn periodic_tasks_tick_once_although_their_turns_and_their_list_cannot_be_used() {
    let here = Installation::new().await;
    here.backend.spoil(RecordId::new(RecordKind::Lock, "periodic.one"));
    here.backend.spoil_index(Index::Periodic);
    let ticks = Ticks::default();
    let _running = ["a", "b"].map(|worker| {
        let every_minute =
            |name| Periodic::new(name, Schedule::every(MINUTE).unwrap(), TICK.call(())).unwrap();
        let worker = here.worker(worker, one_at_a_time()).state(ticks.clone()).task(TICK, tick);
        Running::start(worker.periodic(every_minute("one")).periodic(every_minute("two")))
    });
    tokio::time::sleep(HOUR).await;
    let ticked = ticks.0.load(Ordering::SeqCst);
    assert!((116..=121).contains(&ticked), "{ticked} ticks of two tasks in an hour");
}
