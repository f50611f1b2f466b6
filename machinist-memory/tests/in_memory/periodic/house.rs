//! Servers in this process, workers that can die, and the ticks that were run.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use machinist_conformance::arrows::{ArrowStep, Side, Witness, Witnessed};
use machinist_core::{
    App, AppBuilder, Client, Signature, State, TaskContext, TaskDef, TaskError, Worker, WorkerBuilder,
    backend::Backend,
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Publish, PublishError, QueueDepth,
        SideQueue,
    },
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    event::{Event, EventKind},
    id::{QueueName, RecordId, RecordKind},
    periodic::{Periodic, Schedule},
    record::Facts,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio_util::sync::CancellationToken;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Its argument is the time that it takes, in milliseconds.
pub(crate) const TICK: TaskDef<(u64,), ()> = TaskDef::new("tick");

/// Number of runs of each task, by id.
pub(crate) type Runs = Arc<Mutex<BTreeMap<String, u32>>>;

pub(crate) async fn tick(cx: TaskContext, State(runs): State<Runs>, millis: u64) -> Result<(), TaskError> {
    *runs.lock().unwrap().entry(cx.task_id().to_string()).or_default() += 1;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(millis)) => Ok(()),
        () = cx.cancellation().cancelled() => Err(TaskError::permanent("cancelled")),
    }
}

/// Ends a process at the n-th time of one of its steps.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    end: Option<(ArrowStep, Side, u32)>,
    times: Mutex<u32>,
    pub(crate) ended: CancellationToken,
}

#[async_trait]
impl Witness for Fate {
    async fn at(&self, step: ArrowStep, side: Side) {
        if let Some((at, on, nth)) = self.end
            && (at, on) == (step, side)
        {
            let mut times = self.times.lock().unwrap();
            *times += 1;
            if *times == nth {
                self.ended.cancel();
            }
        }
        if self.ended.is_cancelled() {
            std::future::pending().await
        }
    }
}

/// The servers.
pub(crate) struct House {
    pub(crate) broker: MemoryBroker,
    pub(crate) backend: MemoryBackend,
    pub(crate) runs: Runs,
    /// Number of times that each task was sent, by id.
    sent: Runs,
    /// `true` while the broker takes no messages from workers.
    pub(crate) closed: Arc<AtomicBool>,
}

/// Broker that takes no messages while it is closed.
#[derive(Debug)]
struct Closable {
    broker: MemoryBroker,
    closed: Arc<AtomicBool>,
}

#[async_trait]
impl Diagnose for Closable {
    fn location(&self) -> String {
        self.broker.location()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        self.broker.diagnose().await
    }
}

#[async_trait]
impl Broker for Closable {
    fn capabilities(&self) -> BrokerCapabilities {
        self.broker.capabilities()
    }
    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        if !self.closed.load(Ordering::SeqCst) {
            return self.broker.publish(batch).await;
        }
        batch.iter().map(|_| Err(PublishError::Unavailable("closed".into()))).collect()
    }
    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.broker.consume(what).await
    }
    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        self.broker.consume_side_queue(from, prefetch).await
    }
    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        self.broker.depth(queues).await
    }
    async fn close(&self) {
        self.broker.close().await;
    }
}

/// A worker in a separate process.
pub(crate) struct Process {
    pub(crate) fate: Arc<Fate>,
    stop: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
}

impl House {
    pub(crate) fn new() -> Self {
        Self::starting_at("2026-11-28T21:00:00Z")
    }

    /// Begins at this instant of backend time.
    pub(crate) fn starting_at(instant: &str) -> Self {
        let backend = MemoryBackend::starting_at(at(instant));
        Self {
            broker: MemoryBroker::new(),
            backend,
            runs: Runs::default(),
            sent: Runs::default(),
            closed: Arc::default(),
        }
    }

    pub(crate) fn builder(&self) -> AppBuilder {
        App::builder(Arc::new(self.broker.connect()), Arc::new(self.backend.clone()))
    }

    pub(crate) async fn client(&self) -> Client {
        self.builder().build().await.unwrap().client()
    }

    /// Starts a worker.
    pub(crate) async fn start(&self, name: &str) -> Process {
        self.start_with(name, None, |app| app, |worker| worker).await
    }

    /// Starts a worker with options, which ends at a step.
    pub(crate) async fn start_with(
        &self,
        name: &str,
        end: Option<(ArrowStep, Side, u32)>,
        app: impl FnOnce(AppBuilder) -> AppBuilder,
        options: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
    ) -> Process {
        let fate = Arc::new(Fate { end, ..Fate::default() });
        let witness: Arc<dyn Witness> = Arc::clone(&fate) as _;
        let broker = self.broker.connect();
        let broker: Arc<dyn Broker> = Arc::new(Closable { broker, closed: Arc::clone(&self.closed) });
        let backend: Arc<dyn Backend> = Arc::new(self.backend.clone());
        let broker = Witnessed::new(Arc::clone(&witness), broker);
        let backend = Witnessed::new(witness, backend);
        let sent = Arc::clone(&self.sent);
        let app =
            app(App::builder(Arc::new(broker), Arc::new(backend))).observer(move |event: &Event<'_>| {
                if let EventKind::Sent { task, .. } = &event.kind {
                    *sent.lock().unwrap().entry(task.id.to_string()).or_default() += 1;
                }
            });
        let app = app.build().await.unwrap();
        let worker = Worker::builder(&app).name(name).state(Arc::clone(&self.runs)).task(TICK, tick);
        let worker = options(worker).build().unwrap();
        let stop = CancellationToken::new();
        let until = stop.clone().cancelled_owned();
        let worker = async move {
            worker.run_until(until).await.unwrap();
        };
        Process { fate, stop, worker: tokio::spawn(worker) }
    }

    /// Record of a periodic task.
    pub(crate) async fn facts(&self, name: &str) -> Facts {
        let id = RecordId::new(RecordKind::Cursor, name);
        self.backend.read(&[id]).await.unwrap().pop().unwrap()
    }

    /// Ids of the ticks that were run, sorted, and the number of their runs.
    pub(crate) fn ran(&self) -> Vec<(String, u32)> {
        self.runs.lock().unwrap().iter().map(|(id, times)| (id.clone(), *times)).collect()
    }

    /// Ids of the ticks that were sent twice.
    pub(crate) fn sent_twice(&self) -> Vec<String> {
        let sent = self.sent.lock().unwrap();
        sent.iter().filter(|(_, times)| **times > 1).map(|(id, _)| id.clone()).collect()
    }

    /// Ids of the ticks that were run, sorted. Fails the test if one was run twice.
    #[track_caller]
    pub(crate) fn ran_once(&self) -> Vec<String> {
        let ran = self.ran();
        assert!(ran.iter().all(|(_, times)| *times == 1), "{ran:?}");
        ran.into_iter().map(|(id, _)| id).collect()
    }
}

impl Process {
    /// Ends the process without a word.
    pub(crate) async fn kill(self) {
        self.fate.ended.cancel();
        self.worker.abort();
        assert!(self.worker.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(MINUTE, self.worker).await.unwrap().unwrap();
    }
}

/// Reads an instant.
pub(crate) fn at(text: &str) -> Timestamp {
    Timestamp::from_micros(text.parse::<jiff::Timestamp>().unwrap().as_microsecond())
}

/// Returns a task that ticks at equal intervals, and runs for this time.
pub(crate) fn every(name: &str, interval: Duration, takes: Duration) -> Periodic {
    let call = TICK.call((u64::try_from(takes.as_millis()).unwrap(),));
    Periodic::new(name, Schedule::every(interval).unwrap(), call).unwrap()
}

/// Returns a task with a cron expression in Berlin.
pub(crate) fn berlin(name: &str, cron: &str) -> Periodic {
    let schedule = Schedule::cron(cron).unwrap().time_zone("Europe/Berlin").unwrap();
    Periodic::new(name, schedule, TICK.call((0,))).unwrap()
}

/// Ids of the ticks of a second each, from `first` on after 21:00:00.
pub(crate) fn seconds(name: &str, range: std::ops::RangeInclusive<u32>) -> Vec<String> {
    let id = |second: u32| format!("tick.{name}.2026-11-28T21:{:02}:{:02}Z", second / 60, second % 60);
    range.map(id).collect()
}

/// Signature of the task with an argument that does not fit.
pub(crate) fn untyped() -> Signature {
    Signature::new("tick").arg(0)
}
