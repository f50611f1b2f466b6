//! An application in memory whose worker runs when the test says so.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use machinist_conformance::arrows::{ArrowStep, Side, Witness, Witnessed, WitnessedRuns};
use machinist_core::{
    App, AppBuilder, AsyncResult, Client, QueueName, QueuePattern, TaskId, TaskMessage, Worker,
    WorkerBuilder, backend::Backend, broker::Broker, error::chain_text, event::Event, record::Record,
    workflow::Sendable,
};
use machinist_memory::{HeldMessage, MemoryBackend, MemoryBroker, MessagePlace};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    crash::Fate,
    enqueued::{Enqueued, EnqueuedPattern},
    run::TaskRun,
    seen::Seen,
};

/// Time for which tasks may run in one drain, unless set.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Longest wait between two looks at the broker.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// Maximum number of instants to which one call jumps.
const MAX_JUMPS: u32 = 10_000;

/// Adds the tasks of the application under test.
type SetUp = Box<dyn Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync>;
/// Changes the builder of the application.
type Adjust = Box<dyn Fn(AppBuilder) -> AppBuilder + Send + Sync>;

/// An application in memory, under paused time, with the real client and the real worker.
///
/// Tasks wait until the test runs them: [`drain`](Self::drain) runs what is due, and [`travel`](Self::travel) and
/// [`drain_scheduled`](Self::drain_scheduled) let time pass between runs, in which nothing happens and which costs nothing.
/// Each of them starts a worker and stops it again, so all promises of a worker hold: retries, expiries, time limits,
/// records, workflows. Periodic tasks are sent only while a worker runs.
///
/// # Examples
/// ```
/// use machinist_core::{TaskDef, TaskError};
/// use machinist_test::TestApp;
/// use std::time::Duration;
///
/// const REPORT: TaskDef<u32, String> = TaskDef::new("report");
///
/// async fn report(year: u32) -> Result<String, TaskError> {
///     Ok(format!("sales of {year}"))
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// const DAY: Duration = Duration::from_secs(24 * 3600);
/// let app = TestApp::new(|worker| worker.task(REPORT, report)).await;
/// let sent = app.send(REPORT.call(2026).countdown(DAY)).await;
///
/// assert!(app.drain().await.is_empty());
/// assert_eq!(app.travel(DAY).await.len(), 1);
/// assert_eq!(sent.wait(DAY).await?, "sales of 2026");
/// # Ok(())
/// # }
/// ```
pub struct TestApp {
    app: App,
    broker: MemoryBroker,
    backend: MemoryBackend,
    worker: SetUp,
    adjust: Adjust,
    patience: Duration,
    crash: Mutex<Option<(ArrowStep, Side)>>,
}

impl TestApp {
    /// Creates an application whose worker has these tasks. Pauses tokio's clock: call it in a test of one thread,
    /// `#[tokio::test]` or `#[tokio::test(start_paused = true)]`.
    ///
    /// # Panics
    /// In a runtime of several threads.
    pub async fn new(worker: impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static) -> Self {
        Self::with(|app| app, worker).await
    }

    /// Creates an application as [`new`](Self::new) does; `adjust` changes the builder of the application: hooks, codec,
    /// middleware, default queue, keys.
    ///
    /// # Panics
    /// In a runtime of several threads, and if the application cannot be built.
    pub async fn with(
        adjust: impl Fn(AppBuilder) -> AppBuilder + Send + Sync + 'static,
        worker: impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static,
    ) -> Self {
        clock::pause();
        let (broker, backend) = (MemoryBroker::new(), MemoryBackend::new());
        let builder = App::builder(Arc::new(broker.connect()), Arc::new(backend.clone()));
        let app = built(adjust(builder)).await;
        Self {
            app,
            broker,
            backend,
            worker: Box::new(worker),
            adjust: Box::new(adjust),
            patience: PATIENCE,
            crash: Mutex::new(None),
        }
    }

    /// Sets the time, in the test's own clock, for which one drain may last before it is an error. Default: a day.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the application.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Returns a client.
    pub fn client(&self) -> Client {
        self.app.client()
    }

    /// Sends a signature or a workflow.
    ///
    /// # Panics
    /// If it cannot be sent. [`client`](Self::client) returns the error.
    pub async fn send<S: Sendable>(&self, what: S) -> AsyncResult<S::ResultType> {
        match self.client().send(what).await {
            Ok(sent) => sent,
            Err(error) => panic!("cannot send: {error}"),
        }
    }

    /// Returns everything that is known about a task: state, results, error, history, log.
    ///
    /// # Panics
    /// If the task is unknown.
    pub async fn record(&self, id: &TaskId) -> Record {
        match self.app.result(id.clone()).record().await {
            Ok(record) => record,
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns the tasks that wait in their queues, those that are due first.
    ///
    /// # Panics
    /// If a message is not one of machinist.
    pub fn enqueued(&self) -> Vec<Enqueued> {
        let now = Instant::now();
        let mut all: Vec<_> = self.broker.held().into_iter().filter_map(|held| enqueued(held, now)).collect();
        all.sort_by_key(|one| one.due);
        all
    }

    /// Asserts that a task waits that fits a pattern.
    ///
    /// # Panics
    /// If none does.
    #[track_caller]
    pub fn assert_enqueued(&self, pattern: &EnqueuedPattern) {
        if let Some(problem) = pattern.problem(&self.enqueued(), true) {
            panic!("{problem}");
        }
    }

    /// Asserts that no task waits that fits a pattern.
    ///
    /// # Panics
    /// If one does.
    #[track_caller]
    pub fn refute_enqueued(&self, pattern: &EnqueuedPattern) {
        if let Some(problem) = pattern.problem(&self.enqueued(), false) {
            panic!("{problem}");
        }
    }

    /// Ends the worker of the next drain at this step of the delivery protocol, as if its process were killed there. The
    /// drain returns then; the next one runs another worker, which takes the tasks over once the lease of the dead one is
    /// over.
    ///
    /// # Examples
    /// A worker dies after the handler has run and before that is recorded, so the handler runs again:
    /// ```
    /// use machinist_core::{State, TaskDef, TaskError};
    /// use machinist_test::{ArrowStep, Side, TestApp};
    /// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
    ///
    /// const CHARGE: TaskDef<u64, ()> = TaskDef::new("charge");
    ///
    /// async fn charge(State(charged): State<Arc<AtomicU32>>, _cents: u64) -> Result<(), TaskError> {
    ///     charged.fetch_add(1, Ordering::SeqCst);
    ///     Ok(())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let charged = Arc::new(AtomicU32::new(0));
    /// let state = Arc::clone(&charged);
    /// let app = TestApp::new(move |worker| worker.task(CHARGE, charge).state(Arc::clone(&state))).await;
    /// let sent = app.send(CHARGE.call(500)).await;
    /// app.crash_at(ArrowStep::Record, Side::Before);
    /// app.drain().await;
    /// assert!(app.drain().await[0].is_success());
    /// assert_eq!(charged.load(Ordering::SeqCst), 2);
    /// # let _ = sent;
    /// # }
    /// ```
    pub fn crash_at(&self, step: ArrowStep, side: Side) {
        *self.crash.lock().unwrap_or_else(PoisonError::into_inner) = Some((step, side));
    }

    /// Runs the tasks that are due, and what they send, until none is left. Returns the ends of their attempts, in their
    /// order.
    ///
    /// # Panics
    /// If the worker cannot be built, or tasks still run when the [`patience`](Self::patience) is over.
    ///
    /// # Cancel safety
    /// The worker is ended as if its process were killed.
    pub async fn drain(&self) -> Vec<TaskRun> {
        self.drained().await.0
    }

    /// Runs all tasks, also those that wait for their time or their next attempt, until none is left.
    ///
    /// # Panics
    /// As [`drain`](Self::drain), and if that does not end.
    ///
    /// # Cancel safety
    /// As [`drain`](Self::drain).
    pub async fn drain_scheduled(&self) -> Vec<TaskRun> {
        self.run_up_to(None).await
    }

    /// Lets this time pass, and runs each task when it is due.
    ///
    /// # Panics
    /// As [`drain`](Self::drain).
    ///
    /// # Cancel safety
    /// As [`drain`](Self::drain).
    pub async fn travel(&self, time: Duration) -> Vec<TaskRun> {
        let end = Instant::now() + time;
        let runs = self.run_up_to(Some(end)).await;
        tokio::time::advance(end.saturating_duration_since(Instant::now())).await;
        runs
    }

    async fn run_up_to(&self, end: Option<Instant>) -> Vec<TaskRun> {
        let mut all = Vec::new();
        for _ in 0..MAX_JUMPS {
            let (runs, queues) = self.drained().await;
            all.extend(runs);
            let due = self.broker.held().into_iter().filter(|held| queues.contains(&held.queue));
            let next = due.filter_map(|held| match held.place {
                MessagePlace::Delayed(due) => Some(due),
                _ => None,
            });
            match next.min().filter(|due| end.is_none_or(|end| *due <= end)) {
                None => return all,
                Some(due) => tokio::time::advance(due.saturating_duration_since(Instant::now())).await,
            }
        }
        panic!("tasks still wait after {MAX_JUMPS} jumps in time: {}", list(&self.enqueued()));
    }

    /// Runs a worker until its queues are empty. Returns its runs and its queues.
    async fn drained(&self) -> (Vec<TaskRun>, Vec<QueueName>) {
        let end = self.crash.lock().unwrap_or_else(PoisonError::into_inner).take();
        let fate = Arc::new(Fate::new(end));
        let witness = || -> Arc<dyn Witness> { Arc::clone(&fate) as _ };
        let connection = self.broker.connect();
        let broker: Arc<dyn Broker> = Arc::new(connection.clone());
        let backend: Arc<dyn Backend> = Arc::new(self.backend.clone());
        let builder = App::builder(
            Arc::new(Witnessed::new(witness(), broker)),
            Arc::new(Witnessed::new(witness(), backend)),
        );
        let seen = Arc::new(Seen::default());
        let observer = Arc::clone(&seen);
        let app = built((self.adjust)(builder).observer(move |event: &Event<'_>| observer.see(event))).await;
        // A copy in place of a held delivery would look as if nothing ran any more.
        let builder = Worker::builder(&app).consumer_timeout(self.patience.saturating_mul(4));
        let builder = (self.worker)(builder).middleware(WitnessedRuns(witness()));
        let worker = match builder.build() {
            Ok(worker) => worker,
            Err(error) => panic!("the worker cannot be built: {error}"),
        };
        let queues: Vec<_> = worker.queues().iter().filter_map(QueuePattern::queue).collect();
        let _ended_with_this_future = EndOnDrop(Arc::clone(&fate));
        let stop = CancellationToken::new();
        let working = tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
        let died = tokio::select! {
            () = self.idle(&queues, &seen.changed) => false,
            () = fate.died() => true,
        };
        if died {
            working.abort();
        } else {
            stop.cancel();
            tokio::select! {
                ended = working => match ended {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => panic!("the worker ended with an error: {error}"),
                    Err(error) => panic!("the worker ended: {error}"),
                },
                () = fate.died() => {}
            }
        }
        connection.close().await;
        (seen.take_runs(), queues)
    }

    /// Completes when no message of these queues is due or held by a worker.
    async fn idle(&self, queues: &[QueueName], changed: &Notify) {
        let deadline = Instant::now() + self.patience;
        let mut look = Duration::from_millis(1);
        loop {
            let busy = |held: &HeldMessage| {
                queues.contains(&held.queue)
                    && !matches!(held.place, MessagePlace::Delayed(due) if due > Instant::now())
            };
            if !self.broker.held().iter().any(busy) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "tasks still run after {:?}: {}",
                self.patience,
                list(&self.enqueued())
            );
            tokio::select! {
                () = changed.notified() => look = Duration::from_millis(1),
                () = tokio::time::sleep(look) => look = (look * 2).min(LONGEST_LOOK),
            }
        }
    }
}

impl fmt::Debug for TestApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestApp").field("app", &self.app).finish_non_exhaustive()
    }
}

/// Ends a worker when the future that runs it is dropped.
struct EndOnDrop(Arc<Fate>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Builds an application of a test.
pub(crate) async fn built(builder: AppBuilder) -> App {
    match builder.build().await {
        Ok(app) => app,
        Err(error) => panic!("the application cannot be built: {}", chain_text(&error)),
    }
}

/// Returns the task of a message, unless the message is a copy for the case that a worker dies.
fn enqueued(held: HeldMessage, now: Instant) -> Option<Enqueued> {
    let generation = held.message.headers.get("machinist-generation").and_then(|value| value.as_int());
    if generation.is_some_and(|generation| generation > 0) {
        return None;
    }
    let due = match held.place {
        MessagePlace::Delayed(due) => due.saturating_duration_since(now),
        _ => Duration::ZERO,
    };
    match TaskMessage::read(&held.message) {
        Ok(task) => Some(Enqueued { task, queue: held.queue, due }),
        Err(error) => panic!("a message in queue {} cannot be read: {error}", held.queue),
    }
}

fn list(all: &[Enqueued]) -> String {
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    if all.is_empty() { "no task waits".to_owned() } else { all.join("; ") }
}
