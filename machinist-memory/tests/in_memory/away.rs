//! What a worker does without its servers, over the in-memory adapters and under paused time: a backend that is away for
//! minutes, and for long, and what is told first when it is back.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::warm_up;
use async_trait::async_trait;
use machinist_conformance::eventually;
use machinist_core::{
    App, AsyncResult, State, TaskContext, TaskDef, TaskError, Worker, WorkerAction, WorkerBuilder,
    WorkerFilter, WorkerInfo,
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Delivery, Publish, PublishError,
        QueueDepth, SideQueue, SubscriptionHealth,
    },
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    event::{Event, EventKind},
    id::{QueueName, RecordId, RecordKind, SessionId},
    limit::Limit,
    record::{Facts, PresenceState, TaskState, WorkerHealth},
    sign::{Algorithm, Key, KeyState, Keyring},
    worker::{Drained, Health, TaskOptions},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

const WORK: TaskDef<(String,), String> = TaskDef::new("work");
const BLOCKS: TaskDef<(), ()> = TaskDef::new("blocks");

const LEASE: Duration = Duration::from_secs(15);
const HOUR: Duration = Duration::from_secs(3600);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

fn queue() -> QueueName {
    QueueName::parse("default").unwrap()
}

/// What handlers did, and when they may end.
#[derive(Debug, Clone, Default)]
struct TaskProbe {
    begun: Arc<AtomicU32>,
    /// Time of the last beginning.
    begun_at: Arc<Mutex<Option<Instant>>>,
    told: Arc<AtomicU32>,
    /// For those that listen.
    released: CancellationToken,
    /// For those that do not.
    may_end: CancellationToken,
}

impl TaskProbe {
    fn begun(&self) -> u32 {
        self.begun.load(Ordering::SeqCst)
    }

    /// How many were told to end.
    fn told(&self) -> u32 {
        self.told.load(Ordering::SeqCst)
    }
}

async fn work(cx: TaskContext, State(probe): State<TaskProbe>, how: String) -> Result<String, TaskError> {
    *probe.begun_at.lock().unwrap() = Some(Instant::now());
    let begun = probe.begun.fetch_add(1, Ordering::SeqCst);
    match how.as_str() {
        // Once only: who runs it again finds the way free.
        "listens" if begun == 0 => tokio::select! {
            () = cx.cancellation().cancelled() => {
                probe.told.fetch_add(1, Ordering::SeqCst);
                Err("told to end")?
            }
            () = probe.released.cancelled() => {}
        },
        "waits" => probe.may_end.cancelled().await,
        _ => {}
    }
    Ok(how)
}

/// A gate that blocks a thread.
#[derive(Debug, Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

fn blocks(State(gate): State<Gate>, State(probe): State<TaskProbe>) -> Result<(), TaskError> {
    probe.begun.fetch_add(1, Ordering::SeqCst);
    let (open, opened) = &*gate.0;
    drop(opened.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
    Ok(())
}

// ---- servers that can be away

/// The servers as one process sees them.
#[derive(Debug, Clone)]
struct View {
    broker: MemoryBroker,
    backend: MemoryBackend,
    away: Arc<AtomicBool>,
    /// `true` if the broker confirms no subscription.
    broker_away: Arc<AtomicBool>,
    /// `true` if the backend answers reads and refuses writes, as a Redis without memory does.
    refuses_writes: Arc<AtomicBool>,
    /// `false` while the backend takes its time with starts.
    may_start: Arc<watch::Sender<bool>>,
    /// Fact whose next write is done and not answered.
    unanswered: Arc<Mutex<Option<&'static str>>>,
    /// Time that a request for the time takes until the backend reads its clock.
    slow_time: Arc<Mutex<Duration>>,
    /// What it did to the servers, and that it was done.
    done: Arc<Mutex<Vec<String>>>,
    /// The states of its worker, as an observer saw them.
    states: Arc<Mutex<Vec<&'static str>>>,
}

impl View {
    fn of(broker: &MemoryBroker, backend: &MemoryBackend) -> Self {
        let (away, broker_away, refuses_writes, unanswered) = Default::default();
        let (slow_time, done, states) = Default::default();
        let (broker, backend) = (broker.connect(), backend.clone());
        let may_start = Arc::new(watch::Sender::new(true));
        Self {
            broker,
            backend,
            away,
            broker_away,
            refuses_writes,
            may_start,
            unanswered,
            slow_time,
            done,
            states,
        }
    }

    fn lose_backend(&self, away: bool) {
        self.done.lock().unwrap().clear();
        self.away.store(away, Ordering::SeqCst);
    }

    fn note(&self, what: impl Into<String>) {
        self.done.lock().unwrap().push(what.into());
    }

    fn has_done(&self, what: &str) -> bool {
        self.done.lock().unwrap().iter().any(|done| done == what)
    }

    /// How often it has done this.
    fn count(&self, what: &str) -> usize {
        self.done.lock().unwrap().iter().filter(|done| *done == what).count()
    }

    /// When it did this for the first time since the backend was lost or found.
    fn place(&self, what: &str) -> usize {
        let done = self.done.lock().unwrap();
        done.iter().position(|done| done == what).unwrap_or_else(|| panic!("no {what} in {done:?}"))
    }

    /// Returns when exactly these states of the worker were seen. Which of the last two comes first depends on who asks
    /// the backend first when it is back: the session, or a delivery that waits.
    async fn has_seen<const N: usize>(&self, mut expected: [&'static str; N]) {
        expected.sort_unstable();
        let seen = async || {
            let mut states = self.states.lock().unwrap().clone();
            states.sort_unstable();
            states
        };
        until("all states", async || seen().await.len() >= N).await;
        assert_eq!(seen().await, expected);
    }

    fn there(&self) -> Result<&MemoryBackend, BackendError> {
        if self.away.load(Ordering::SeqCst) {
            Err(BackendError::Unavailable("the test took it away".into()))
        } else {
            Ok(&self.backend)
        }
    }

    fn broker_there(&self) -> Result<&MemoryBroker, BrokerError> {
        if self.broker_away.load(Ordering::SeqCst) {
            Err(BrokerError::Unavailable("the test took it away".into()))
        } else {
            Ok(&self.broker)
        }
    }
}

impl View {
    fn refuse_writes(&self, refuse: bool) {
        self.refuses_writes.store(refuse, Ordering::SeqCst);
    }

    fn writable(&self) -> Result<&MemoryBackend, BackendError> {
        match self.there()? {
            _ if self.refuses_writes.load(Ordering::SeqCst) => {
                Err(BackendError::Unavailable("the test lets nothing be written".into()))
            }
            backend => Ok(backend),
        }
    }
}

/// Connection of a subscription, as one to RabbitMQ counts its losses.
#[derive(Debug, Default)]
struct Connection {
    away: Arc<AtomicBool>,
    /// `true` if the subscription ended while the broker was away: it has never learnt that the broker is back.
    ended_away: AtomicBool,
    losses: AtomicU64,
}

#[derive(Debug)]
struct ViewConsumer {
    inner: Box<dyn Consumer>,
    connection: Arc<Connection>,
}

#[async_trait]
impl Consumer for ViewConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        self.inner.next().await
    }
    async fn add_credit(&mut self, more: u16) {
        self.inner.add_credit(more).await;
    }
    async fn pause(&mut self) {
        self.inner.pause().await;
    }
    async fn stop(&mut self) {
        let Connection { away, ended_away, .. } = &*self.connection;
        ended_away.store(away.load(Ordering::SeqCst), Ordering::SeqCst);
        self.inner.stop().await;
    }
    fn health(&self) -> Box<dyn SubscriptionHealth> {
        Box::new(ViewHealth { inner: self.inner.health(), connection: Arc::clone(&self.connection) })
    }
}

#[derive(Debug)]
struct ViewHealth {
    inner: Box<dyn SubscriptionHealth>,
    connection: Arc<Connection>,
}

#[async_trait]
impl SubscriptionHealth for ViewHealth {
    async fn check(&self) -> Result<(), String> {
        self.inner.check().await
    }
    fn disconnects(&self) -> u64 {
        let Connection { away, ended_away, losses } = &*self.connection;
        if away.load(Ordering::SeqCst) || ended_away.load(Ordering::SeqCst) {
            losses.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.disconnects() + losses.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Diagnose for View {
    fn location(&self) -> String {
        "memory".to_owned()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        Vec::new()
    }
}

#[async_trait]
impl Backend for View {
    fn capabilities(&self) -> BackendCapabilities {
        self.backend.capabilities()
    }
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let names: Vec<_> = batch.iter().flat_map(|c| &c.facts).map(|(name, _)| name.to_string()).collect();
        if names.iter().any(|name| name.starts_with("s:")) {
            self.note("asks for a start");
            self.may_start.subscribe().wait_for(|may_start| *may_start).await.unwrap();
        }
        match self.writable() {
            Ok(backend) => {
                let mut answers = backend.commit(batch).await;
                let mut unanswered = self.unanswered.lock().unwrap();
                if unanswered.take_if(|fact| names.iter().any(|name| name == fact)).is_some() {
                    answers.fill_with(|| Err(BackendError::Unavailable("the answer is lost".into())));
                }
                names.into_iter().for_each(|name| self.note(name));
                answers
            }
            Err(_) => {
                names.into_iter().for_each(|name| self.note(format!("refused {name}")));
                batch.iter().map(|_| Err(self.writable().unwrap_err())).collect()
            }
        }
    }
    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        ids.iter().filter(|id| id.kind() == RecordKind::Task).for_each(|id| self.note(format!("read {id}")));
        self.there()?.read(ids).await
    }
    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.there()?.watch(id).await
    }
    async fn now(&self) -> Result<Timestamp, BackendError> {
        let slow = *self.slow_time.lock().unwrap();
        tokio::time::sleep(slow).await;
        self.there()?.now().await
    }
    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.writable()?.update_indexes(updates).await
    }
    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        self.there()?.list(index, after, limit).await
    }
}

#[async_trait]
impl Broker for View {
    fn capabilities(&self) -> BrokerCapabilities {
        self.broker.capabilities()
    }
    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        self.broker.publish(batch).await
    }
    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.note("subscription");
        let inner = self.broker_there()?.consume(what).await?;
        let connection =
            Arc::new(Connection { away: Arc::clone(&self.broker_away), ..Connection::default() });
        Ok(Box::new(ViewConsumer { inner, connection }))
    }
    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        self.broker.consume_side_queue(from, prefetch).await
    }
    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        self.broker_there()?.depth(queues).await
    }
    async fn close(&self) {
        Broker::close(&self.broker).await;
    }
}

// ---- a worker with such a view

struct Running {
    view: View,
    probe: TaskProbe,
    gate: Gate,
    health: Health,
    stop: CancellationToken,
    worker: tokio::task::JoinHandle<Drained>,
}

impl Running {
    async fn start(
        broker: &MemoryBroker,
        backend: &MemoryBackend,
        adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
    ) -> Self {
        let view = View::of(broker, backend);
        let states = Arc::clone(&view.states);
        let builder = App::builder(Arc::new(view.clone()), Arc::new(view.clone()));
        let observed = builder.observer(move |event: &Event<'_>| {
            if let EventKind::WorkerState { state, .. } = event.kind {
                states.lock().unwrap().push(state.name());
            }
        });
        let app = observed.build().await.unwrap();
        let (probe, gate) = (TaskProbe::default(), Gate::default());
        let worker = Worker::builder(&app)
            .name("w")
            .concurrency(2)
            .session_lease(LEASE)
            .state(probe.clone())
            .state(gate.clone())
            .task(WORK, work)
            .task_blocking(BLOCKS, blocks);
        let worker = adjust(worker).build().unwrap();
        let (stop, health) = (CancellationToken::new(), worker.health());
        let until = stop.clone().cancelled_owned();
        let worker = tokio::spawn(async move { worker.run_until(until).await.unwrap() });
        Self { view, probe, gate, health, stop, worker }
    }

    /// Runs short tasks, so that the worker holds more deliveries than it has slots.
    async fn warm_up(&self, harness: &Harness) {
        warm_up(&harness.app.client(), || WORK.call(("quick".to_owned(),))).await;
        self.probe.begun.store(0, Ordering::SeqCst);
    }

    async fn stops(self) -> Drained {
        self.stop.cancel();
        tokio::time::timeout(secs(30), self.worker).await.expect("it ends within 28 s").unwrap()
    }
}

struct Harness {
    broker: MemoryBroker,
    backend: MemoryBackend,
    app: App,
}

impl Harness {
    async fn new() -> Self {
        let (broker, backend) = (MemoryBroker::new(), MemoryBackend::new());
        let app = App::builder(Arc::new(broker.connect()), Arc::new(backend.clone())).build().await.unwrap();
        Self { broker, backend, app }
    }

    async fn worker(&self) -> Running {
        Running::start(&self.broker, &self.backend, |worker| worker).await
    }

    /// A worker of this queue that runs one task at a time, in all workers together.
    async fn limited_worker(&self, queue: &str) -> Running {
        let limit = TaskOptions::new().limit(Limit::new().max_running(1));
        Running::start(&self.broker, &self.backend, |worker| worker.queue(queue).options("work", limit)).await
    }

    async fn send(&self, how: &str) -> AsyncResult<String> {
        self.send_to("default", how).await
    }

    async fn send_to(&self, queue: &str, how: &str) -> AsyncResult<String> {
        self.app.client().send(WORK.call((how.to_owned(),)).queue(queue)).await.unwrap()
    }

    /// How many wait in the queue, and how many subscriptions it has.
    async fn queue(&self) -> (u64, u64) {
        let depth = self.broker.depth(&[queue()]).await.unwrap().pop().unwrap();
        (depth.ready.unwrap_or_default(), depth.consumers.unwrap_or_default())
    }

    /// The live workers, by name.
    async fn workers(&self) -> Vec<WorkerInfo> {
        self.app.client().workers(&WorkerFilter::new()).await.unwrap()
    }

    /// Waits until exactly these workers live, in these states.
    async fn lists(&self, wanted: &[(&str, PresenceState)]) {
        let listed = async || {
            let workers = self.workers().await;
            workers.iter().map(|worker| (&*worker.name, worker.state)).eq(wanted.iter().copied())
        };
        until("the workers", listed).await;
    }

    async fn orders(&self, worker: &str, action: WorkerAction) -> bool {
        let mut workers = self.workers().await;
        workers.retain(|live| live.name == worker);
        let (_, results) = self.app.client().order_workers(&workers, action, false).await.unwrap();
        results[0].done
    }

    async fn facts<R>(&self, task: &AsyncResult<R>) -> Facts {
        self.backend.read(&[task.id().into()]).await.unwrap().pop().unwrap()
    }
}

/// Waits, for an hour at most, until something holds.
async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    assert!(eventually(HOUR, holds).await, "waited an hour for {what}");
}

async fn succeeds(task: &AsyncResult<String>) {
    task.wait(HOUR).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_away_for_minutes_costs_no_run_and_no_message() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    worker.warm_up(&harness).await;
    let (a, b) = (harness.send("listens").await, harness.send("waits").await);
    until("both to run", async || worker.probe.begun() == 2).await;
    let waiting = harness.send("quick").await;
    worker.view.lose_backend(true);
    tokio::time::sleep(minutes(9)).await;
    assert_eq!(
        (worker.probe.told(), worker.probe.begun()),
        (0, 2),
        "cancelled, or started without a backend"
    );
    assert_eq!(harness.queue().await, (0, 1), "what is held is kept");
    worker.view.lose_backend(false);
    worker.probe.released.cancel();
    worker.probe.may_end.cancel();
    for task in [&a, &b, &waiting] {
        succeeds(task).await;
    }
    assert_eq!(worker.probe.begun(), 3, "something ran twice");
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn after_ten_minutes_what_runs_is_cancelled_and_what_is_held_goes_back() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    worker.warm_up(&harness).await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    let ends = harness.send("waits").await;
    until("both to run", async || worker.probe.begun() == 2).await;
    let waits = [harness.send("quick").await, harness.send("quick").await];
    until("all to be held", async || harness.queue().await.0 == 0).await;
    worker.view.lose_backend(true);
    tokio::time::sleep(minutes(1)).await;
    // Its outcome is known here alone from now on.
    worker.probe.may_end.cancel();
    tokio::time::sleep(minutes(8)).await;
    assert_eq!(harness.queue().await, (0, 1));
    until("the queue to be left", async || harness.queue().await.1 == 0).await;
    until("what is held to be handed back", async || harness.queue().await.0 == 3).await;
    assert!(worker.health.troubles().await.is_empty(), "ended, it would lose what it knows");
    assert!(worker.health.obstacles().await.iter().any(|o| o.contains("handed back")));
    tokio::time::sleep(HOUR).await;
    assert_eq!(harness.queue().await, (3, 0), "it stays away as long as the backend");
    assert!(!harness.facts(&ends).await.has("end"));
    worker.view.lose_backend(false);
    for task in [&runs, &ends, &waits[0], &waits[1]] {
        succeeds(task).await;
    }
    // The one that was cancelled ran twice.
    assert_eq!(worker.probe.begun(), 5, "an outcome was lost, and its task ran again");
    assert!(worker.view.place("end") < worker.view.place("lease"), "outcomes come first");
    assert!(worker.view.place("lease") < worker.view.place("subscription"));
    worker
        .view
        .has_seen(["backend_away", "withdrawn", "session_expired", "backend_back", "resubscribed"])
        .await;
    assert!(worker.health.obstacles().await.is_empty());
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_cancelled_then_is_given_back_when_the_backend_is_there() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    worker.view.lose_backend(true);
    until("it to be cancelled", async || worker.probe.told() == 1).await;
    until("its message to be there", async || harness.queue().await == (1, 0)).await;
    assert!(!harness.facts(&runs).await.has("r:1:1"), "there was nobody to tell");
    worker.view.lose_backend(false);
    succeeds(&runs).await;
    assert!(harness.facts(&runs).await.has("r:1:1"), "it counts against the task that it was cancelled");
    assert!(worker.view.place("r:1:1") < worker.view.place("lease"));
    assert_eq!(worker.probe.begun(), 2);
    let drained = worker.stops().await;
    assert!(drained.is_clean(), "{drained:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_the_backend_takes_over_what_another_gave_up() {
    let harness = Harness::new().await;
    let cut_off = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || cut_off.probe.begun() == 1).await;
    cut_off.view.lose_backend(true);
    let other = harness.worker().await;
    tokio::time::sleep(minutes(9)).await;
    assert_eq!(other.probe.begun(), 0, "it runs, and its message is held");
    // Its session has expired, and two looks find that.
    other.probe.released.cancel();
    succeeds(&runs).await;
    assert_eq!((cut_off.probe.told(), other.probe.begun()), (1, 1));
    let facts = harness.facts(&runs).await;
    assert!(facts.has("s:1:2") && !facts.has("r:1:1"), "{facts:?}");
    cut_off.view.lose_backend(false);
    until("it to subscribe again", async || harness.queue().await.1 == 2).await;
    let state = runs.record().await.unwrap().state;
    assert_eq!(state, TaskState::Success);
    assert!(!harness.facts(&runs).await.has("r:1:1"), "it has ended, and there is nothing to give back");
    assert!(cut_off.stops().await.is_clean());
    assert!(other.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_place_was_taken_while_its_worker_was_away_is_cancelled_and_not_adopted() {
    let harness = Harness::new().await;
    let cut_off = harness.limited_worker("default").await;
    let first = harness.send("listens").await;
    until("it to run", async || cut_off.probe.begun() == 1).await;
    cut_off.view.lose_backend(true);
    let other = harness.limited_worker("other").await;
    let second = harness.send_to("other", "waits").await;
    until("the place to be taken", async || other.probe.begun() == 1).await;
    assert_eq!(cut_off.probe.told(), 0);
    cut_off.view.lose_backend(false);
    until("the first to be told", async || cut_off.probe.told() == 1).await;
    assert!(!harness.facts(&first).await.has("s:1:2"), "it was adopted without its place");
    other.probe.may_end.cancel();
    succeeds(&second).await;
    succeeds(&first).await;
    assert_eq!((cut_off.probe.begun(), other.probe.begun()), (2, 1));
    assert!(cut_off.stops().await.is_clean());
    assert!(other.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_outlives_its_session_keeps_its_place() {
    let harness = Harness::new().await;
    let worker = harness.limited_worker("default").await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    worker.view.lose_backend(true);
    tokio::time::sleep(minutes(1)).await;
    worker.view.lose_backend(false);
    until("it to be adopted", async || worker.view.has_done("s:1:2")).await;
    assert!(worker.view.place("p0") < worker.view.place("s:1:2"), "its place comes first");
    let other = harness.limited_worker("other").await;
    let waits = harness.send_to("other", "quick").await;
    tokio::time::sleep(minutes(2)).await;
    assert_eq!((worker.probe.told(), other.probe.begun()), (0, 0), "two at once");
    worker.probe.released.cancel();
    succeeds(&runs).await;
    succeeds(&waits).await;
    assert_eq!((worker.probe.begun(), other.probe.begun()), (1, 1));
    assert!(worker.stops().await.is_clean());
    assert!(other.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stopped_is_not_given_to_others_while_it_runs() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let blocks = harness.app.client().send(BLOCKS.call(())).await.unwrap();
    // Blocking threads stop paused time from running by itself.
    while worker.probe.begun() == 0 {
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    worker.view.lose_backend(true);
    while harness.queue().await.1 > 0 {
        tokio::time::advance(secs(1)).await;
    }
    for _ in 0..100 {
        tokio::time::advance(secs(1)).await;
    }
    assert_eq!(harness.queue().await.0, 0, "it would run beside itself");
    worker.view.lose_backend(false);
    *worker.gate.0.0.lock().unwrap() = true;
    worker.gate.0.1.notify_all();
    blocks.wait(HOUR).await.unwrap();
    assert_eq!(worker.probe.begun(), 1);
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_outlives_its_worker_behind_a_guard_is_unfinished_and_keeps_the_session() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let blocks = harness.app.client().send(BLOCKS.call(())).await.unwrap();
    // Blocking threads stop paused time from running by itself.
    while worker.probe.begun() == 0 {
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    while !harness.facts(&blocks).await.has("g:1:1") {
        tokio::time::advance(secs(1)).await;
    }
    let gate = worker.gate.clone();
    let mut stops = std::pin::pin!(worker.stops());
    let drained = loop {
        tokio::select! {
            biased;
            drained = &mut stops => break drained,
            () = tokio::time::advance(Duration::from_millis(100)) => {}
        }
    };
    let sessions = harness.backend.list(&Index::Sessions, None, 10).await.unwrap();
    // First: a runtime does not end before its blocking threads.
    *gate.0.0.lock().unwrap() = true;
    gate.0.1.notify_all();
    assert_eq!((drained.handed_back, drained.unfinished), (0, 1), "{drained:?}");
    assert_eq!(sessions.len(), 1, "others would run the task beside it");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_given_up_still_stops_in_time() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    worker.view.lose_backend(true);
    until("its message to be there", async || harness.queue().await == (1, 0)).await;
    let drained = worker.stops().await;
    assert_eq!((drained.handed_back, drained.unfinished), (0, 0), "it left nothing");
    let other = harness.worker().await;
    other.probe.begun.store(1, Ordering::SeqCst);
    succeeds(&runs).await;
    assert!(other.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn without_both_servers_what_runs_is_cancelled_when_the_lease_is_over() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    worker.view.lose_backend(true);
    tokio::time::sleep(LEASE / 3).await;
    let lost = Instant::now();
    harness.broker.interrupt();
    until("it to be cancelled", async || worker.probe.told() == 1).await;
    assert!(lost.elapsed() < minutes(1), "others may have run it for long");
    assert_eq!(harness.queue().await.1, 1, "it waits for both");
    worker.view.lose_backend(false);
    succeeds(&runs).await;
    assert_eq!(worker.probe.begun(), 2);
    let states = ["backend_away", "broker_away", "broker_back", "cut_off", "session_expired", "backend_back"];
    worker.view.has_seen(states).await;
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn one_server_that_is_away_cancels_nothing() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    // The broker alone, again and again; then the backend alone, longer than the lease.
    for _ in 0..10 {
        harness.broker.interrupt();
        tokio::time::sleep(LEASE).await;
    }
    worker.view.lose_backend(true);
    tokio::time::sleep(minutes(5)).await;
    worker.view.lose_backend(false);
    // And one after the other: in between somebody vouched for what runs.
    tokio::time::sleep(LEASE).await;
    harness.broker.interrupt();
    tokio::time::sleep(LEASE).await;
    worker.view.lose_backend(true);
    tokio::time::sleep(minutes(5)).await;
    worker.view.lose_backend(false);
    assert_eq!(worker.probe.told(), 0);
    worker.probe.released.cancel();
    succeeds(&runs).await;
    assert_eq!(worker.probe.begun(), 1);
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_only_reads_cancels_no_run_that_nobody_has_taken() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    worker.view.refuse_writes(true);
    tokio::time::sleep(LEASE / 3).await;
    harness.broker.interrupt();
    // Longer than the lease, and longer than deliveries are kept.
    tokio::time::sleep(minutes(15)).await;
    assert_eq!(worker.probe.told(), 0, "its record says that it is ours");
    worker.probe.released.cancel();
    tokio::time::sleep(minutes(1)).await;
    worker.view.refuse_writes(false);
    succeeds(&runs).await;
    assert_eq!(worker.probe.begun(), 1);
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_revoked_while_the_backend_only_reads_is_told() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    worker.view.refuse_writes(true);
    harness.app.client().revoke(runs.id()).await.unwrap();
    until("it to be told", async || worker.probe.told() == 1).await;
    worker.view.refuse_writes(false);
    runs.wait(HOUR).await.unwrap_err();
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_revoked_while_a_start_waits_for_the_backend_starts_nothing() {
    let (broker, backend) = (MemoryBroker::new(), MemoryBackend::new());
    let view = View::of(&broker, &backend);
    let [own, stolen] = ["own", "stolen"].map(|id| Key::generate(Algorithm::HmacSha256, id).unwrap());
    let trusted = Keyring::new([own.clone(), stolen.clone().with_state(KeyState::Verify)]).unwrap();
    let app = App::builder(Arc::new(view.clone()), Arc::new(view.clone())).keyring(trusted);
    let app = app.build().await.unwrap();
    let thief = App::builder(Arc::new(broker.connect()), Arc::new(backend)).keyring(stolen);
    let thief = thief.build().await.unwrap();
    let probe = TaskProbe::default();
    let worker = Worker::builder(&app).session_lease(LEASE).state(probe.clone()).task(WORK, work);
    let running = crate::support::Running::start(worker);
    until("the worker", async || broker.depth(&[queue()]).await.unwrap()[0].consumers == Some(1)).await;

    view.refuse_writes(true);
    thief.client().send(WORK.call(("quick".to_owned(),))).await.unwrap();
    until("its start to be requested", async || view.has_done("refused s:1:1")).await;
    app.replace_keyring(Keyring::new([own, Key::revoked("stolen").unwrap()]).unwrap()).unwrap();
    view.refuse_writes(false);
    until("its message to be a dead letter", async || broker.dead_letters(&queue()).len() == 1).await;
    assert_eq!(probe.begun(), 0, "a revoked key has started a task");
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn when_a_backend_writes_again_the_owner_comes_before_those_who_saw_its_session_expire() {
    let harness = Harness::new().await;
    let owner = harness.worker().await;
    let runs = harness.send("listens").await;
    until("it to run", async || owner.probe.begun() == 1).await;
    let other = harness.worker().await;
    until("the other to hold the message", async || {
        harness.broker.interrupt();
        other.view.has_done("s:1:1")
    })
    .await;
    owner.view.refuse_writes(true);
    other.view.refuse_writes(true);
    tokio::time::sleep(minutes(1)).await;
    other.view.refuse_writes(false);
    tokio::time::sleep(secs(2)).await;
    owner.view.refuse_writes(false);
    tokio::time::sleep(minutes(2)).await;
    assert_eq!((owner.probe.told(), other.probe.begun()), (0, 0), "it was taken from a worker that lives");
    owner.probe.released.cancel();
    succeeds(&runs).await;
    assert!(owner.stops().await.is_clean());
    assert!(other.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn no_task_starts_early_however_slowly_the_backend_tells_the_time() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    *worker.view.slow_time.lock().unwrap() = Duration::from_millis(60);
    // The worker follows the slow answers once the exact one is old.
    tokio::time::sleep(minutes(1)).await;
    let due = harness.backend.now().await.unwrap().plus(secs(10));
    let task = harness.app.client().send(WORK.call(("quick".to_owned(),)).eta(due)).await.unwrap();
    until("it to run", async || worker.probe.begun() == 1).await;
    let begun = worker.probe.begun_at.lock().unwrap().unwrap();
    succeeds(&task).await;
    let truth = harness.backend.now().await.unwrap().minus(begun.elapsed());
    assert!(truth >= due, "started {:?} early", due.since(truth));
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn workers_of_one_name_that_have_lost_their_sessions_keep_their_names_and_their_pauses() {
    let harness = Harness::new().await;
    let states = [("w", PresenceState::Awake), ("w#2", PresenceState::Asleep)];
    let first = harness.worker().await;
    harness.lists(&states[..1]).await;
    let second = harness.worker().await;
    until("both", async || harness.workers().await.len() == 2).await;
    assert!(harness.orders("w#2", WorkerAction::Pause).await);
    harness.lists(&states).await;
    first.view.lose_backend(true);
    second.view.lose_backend(true);
    harness.lists(&[]).await;
    // The second comes back first.
    second.view.lose_backend(false);
    harness.lists(&states[1..]).await;
    first.view.lose_backend(false);
    harness.lists(&states).await;
    harness.send("quick").await;
    until("it to run", async || first.probe.begun() == 1).await;
    assert!(first.stops().await.is_clean());
    assert!(second.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_not_told_that_it_has_its_name_keeps_it() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    assert!(harness.orders("w", WorkerAction::Pause).await);
    worker.view.lose_backend(true);
    harness.lists(&[]).await;
    *worker.view.unanswered.lock().unwrap() = Some("holder");
    worker.view.lose_backend(false);
    until("its session", async || harness.workers().await.iter().any(|w| w.state == PresenceState::Asleep))
        .await;
    tokio::time::sleep(LEASE).await;
    assert!(worker.view.unanswered.lock().unwrap().is_none());
    harness.lists(&[("w", PresenceState::Asleep)]).await;
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_gets_another_name_goes_by_what_is_wanted_of_that_name() {
    let harness = Harness::new().await;
    let [w, of_two, of_three] = ["w", "w#2", "w#3"];
    let (awake, asleep) = (PresenceState::Awake, PresenceState::Asleep);
    let first = harness.worker().await;
    harness.lists(&[(w, awake)]).await;
    let second = harness.worker().await;
    harness.lists(&[(w, awake), (of_two, awake)]).await;
    assert!(harness.orders(of_two, WorkerAction::Pause).await);
    second.view.lose_backend(true);
    harness.lists(&[(w, awake)]).await;
    // The next process takes the name that is free, and with it the pause.
    let third = harness.worker().await;
    harness.lists(&[(w, awake), (of_two, asleep)]).await;
    second.view.lose_backend(false);
    harness.lists(&[(w, awake), (of_two, asleep), (of_three, awake)]).await;
    tokio::time::sleep(LEASE).await;
    let name = harness.backend.read(&[RecordId::new(RecordKind::Worker, of_three)]).await.unwrap().remove(0);
    assert!(!name.has("wanted"), "the pause of another name was written there");
    for worker in [first, second, third] {
        assert!(worker.stops().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_paused_without_its_broker_is_well_when_it_has_subscribed_again() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    until("it to show that", async || {
        harness.broker.interrupt();
        harness.workers().await[0].health == WorkerHealth::Yellow
    })
    .await;
    assert_eq!(harness.workers().await[0].health_reason.as_deref(), Some("the broker is away"));
    // Between two looks at the connection.
    assert!(harness.orders("w", WorkerAction::Pause).await);
    assert!(harness.orders("w", WorkerAction::Resume).await);
    let report = worker.health.report().await;
    assert_eq!((report.color, report.reason), (WorkerHealth::Green, None));
    until("it to show that", async || harness.workers().await[0].health == WorkerHealth::Green).await;
    worker.view.has_seen(["broker_away", "asleep", "broker_back", "resubscribed"]).await;
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_granted_after_a_pause_is_handed_back_before_it_runs() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    worker.view.may_start.send_replace(false);
    let task = harness.send("quick").await;
    until("it to ask", async || worker.view.has_done("asks for a start")).await;
    assert!(harness.orders("w", WorkerAction::Pause).await);
    worker.view.may_start.send_replace(true);
    until("it to be back in its queue", async || harness.queue().await == (1, 0)).await;
    assert_eq!(worker.probe.begun(), 0, "it was paused");
    assert!(harness.orders("w", WorkerAction::Resume).await);
    succeeds(&task).await;
    assert_eq!((worker.probe.begun(), task.record().await.unwrap().attempt), (1, 1));
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn the_record_of_a_run_is_read_once_in_a_lease_or_when_the_session_is_woken() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let task = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    let read = format!("read {}", RecordId::from(task.id()));
    let before = worker.view.count(&read);
    tokio::time::sleep(20 * LEASE).await;
    let reads = worker.view.count(&read) - before;
    assert!((15..=21).contains(&reads), "{reads} in 20 leases");
    harness.app.client().revoke(task.id()).await.unwrap();
    until("it to be told", async || worker.probe.told() == 1).await;
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_revocation_that_wakes_nobody_is_seen_within_a_lease() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let task = harness.send("listens").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    tokio::time::sleep(LEASE).await;
    // As a process that dies before it wakes the session.
    let mut revoked = Commit::new(task.id());
    revoked.facts = vec![("rv".into(), "1".into())];
    harness.backend.commit(vec![revoked.into()]).await.remove(0).unwrap();
    let asked = Instant::now();
    until("it to be told", async || worker.probe.told() == 1).await;
    assert!(asked.elapsed() <= LEASE + LEASE / 3, "{:?}", asked.elapsed());
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_on_whose_record_was_not_read_when_the_session_was_lost() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    let task = harness.send("waits").await;
    until("it to run", async || worker.probe.begun() == 1).await;
    let sessions = async || {
        let workers = harness.workers().await;
        workers.into_iter().map(|worker| worker.incarnation).collect::<Vec<_>>()
    };
    let before = sessions().await;
    let mut gone = Commit::new(SessionId::from(before[0].as_str()));
    gone.drop = vec!["lease".into()];
    harness.backend.commit(vec![gone.into()]).await.remove(0).unwrap();
    until("another session", async || sessions().await.len() == 1 && sessions().await != before).await;
    let adopted = async || harness.facts(&task).await.has("s:1:2");
    until("it to be adopted", adopted).await;
    worker.probe.may_end.cancel();
    succeeds(&task).await;
    assert_eq!((worker.probe.begun(), worker.probe.told()), (1, 0));
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stays_paused_is_well_as_soon_as_its_broker_answers() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    worker.view.broker_away.store(true, Ordering::SeqCst);
    until("it to show that", async || {
        harness.broker.interrupt();
        harness.workers().await[0].health == WorkerHealth::Yellow
    })
    .await;
    // It waits for a subscription in between.
    assert!(harness.orders("w", WorkerAction::Pause).await);
    assert!(!harness.orders("w", WorkerAction::Resume).await);
    assert!(harness.orders("w", WorkerAction::Pause).await);
    tokio::time::sleep(minutes(5)).await;
    assert_eq!(harness.workers().await[0].health, WorkerHealth::Yellow, "it is away");
    worker.view.broker_away.store(false, Ordering::SeqCst);
    until("it to show that", async || harness.workers().await[0].health == WorkerHealth::Green).await;
    assert_eq!(harness.workers().await[0].state, PresenceState::Asleep);
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_paused_while_its_broker_is_away_is_well_as_soon_as_the_broker_answers() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    worker.view.broker_away.store(true, Ordering::SeqCst);
    until("it to show that", async || harness.workers().await[0].health == WorkerHealth::Yellow).await;
    assert!(harness.orders("w", WorkerAction::Pause).await);
    tokio::time::sleep(minutes(5)).await;
    assert_eq!(harness.workers().await[0].health, WorkerHealth::Yellow, "it is away");
    worker.view.broker_away.store(false, Ordering::SeqCst);
    until("it to show that", async || harness.workers().await[0].health == WorkerHealth::Green).await;
    assert_eq!(harness.workers().await[0].state, PresenceState::Asleep);
    worker.view.has_seen(["broker_away", "asleep", "broker_back"]).await;
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_waits_for_its_broker_hears_orders_and_says_what_it_waits_for() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    let says = async |part: &str| {
        let asleep = async || harness.workers().await.remove(0).asleep;
        until(part, async || asleep().await.is_some_and(|asleep| asleep.contains(part))).await;
    };
    assert!(harness.orders("w", WorkerAction::Pause).await);
    worker.view.broker_away.store(true, Ordering::SeqCst);
    assert!(!harness.orders("w", WorkerAction::Resume).await, "it takes no tasks yet");
    says("the broker has not confirmed").await;
    assert!(harness.orders("w", WorkerAction::Pause).await);
    says("it was paused").await;
    worker.view.broker_away.store(false, Ordering::SeqCst);
    assert!(harness.orders("w", WorkerAction::Resume).await);
    succeeds(&harness.send("quick").await).await;
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_end_after_its_cancellation_makes_its_worker_yellow() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    let waits = WORK.call(("waits".to_owned(),)).soft_timeout(secs(1));
    let waits = harness.app.client().send(waits).await.unwrap();
    until("it to show that", async || harness.workers().await[0].health == WorkerHealth::Yellow).await;
    let shown = harness.workers().await.remove(0).health_reason;
    assert_eq!(shown.as_deref(), Some("cancelled handlers that have not ended: 1"));
    let report = worker.health.report().await;
    assert_eq!((report.color, report.reason), (WorkerHealth::Yellow, shown));
    worker.probe.may_end.cancel();
    succeeds(&waits).await;
    until("it to be well", async || harness.workers().await[0].health == WorkerHealth::Green).await;
    assert_eq!(worker.health.report().await.color, WorkerHealth::Green);
    assert!(worker.stops().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_backend_is_away_reports_itself_yellow() {
    let harness = Harness::new().await;
    let worker = harness.worker().await;
    harness.lists(&[("w", PresenceState::Awake)]).await;
    worker.view.lose_backend(true);
    let report = worker.health.report().await;
    let reason = report.reason.unwrap();
    assert!(report.color == WorkerHealth::Yellow && reason.starts_with("backend: "), "{reason}");
    worker.view.lose_backend(false);
    assert_eq!(worker.health.report().await.color, WorkerHealth::Green);
    assert!(worker.stops().await.is_clean());
}
