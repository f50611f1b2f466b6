//! One test per arrow of the places of a limit: a process ends exactly there, and what waits for its place goes on. Under
//! paused time, over the adapters in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fate;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use machinist_conformance::{
    arrows::{ArrowStep, Side, Witness, Witnessed, WitnessedRuns},
    within,
};
use machinist_core::{
    App, AsyncResult, State, TaskDef, TaskError, Worker, backend::Backend, broker::Broker, limit::Limit,
    record::TaskState, worker::TaskOptions,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::{ArrowStep::*, Side::*, fate::Fate};

const HOUR: Duration = Duration::from_secs(3600);
/// Time after which the tasks of a process that died are taken over: a lease, and the checks.
const TAKEN_OVER: Duration = Duration::from_secs(15 + 10);

/// Its argument is its name.
const TASK: TaskDef<(String,), ()> = TaskDef::new("task");

/// What the handlers did.
#[derive(Debug, Clone, Default)]
struct Runs {
    begun: Arc<Mutex<BTreeMap<String, Vec<Instant>>>>,
    running: Arc<Mutex<(usize, usize)>>,
    /// `true` if the one that holds the place may end.
    released: Arc<AtomicBool>,
}

/// Ends a run in the count of those that run, also if its process dies.
struct Counted(Runs);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.lock().unwrap().0 -= 1;
    }
}

async fn task(State(runs): State<Runs>, name: String) -> Result<(), TaskError> {
    runs.begun.lock().unwrap().entry(name.clone()).or_default().push(Instant::now());
    {
        let mut running = runs.running.lock().unwrap();
        running.0 += 1;
        running.1 = running.1.max(running.0);
    }
    let _counted = Counted(runs.clone());
    while name == "holds" && !runs.released.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A worker in a process of its own.
struct Process {
    fate: Arc<Fate>,
    stop: CancellationToken,
    worker: tokio::task::JoinHandle<bool>,
}

async fn start(
    broker: &MemoryBroker,
    backend: &MemoryBackend,
    runs: &Runs,
    concurrency: usize,
    end: Option<(ArrowStep, Side)>,
) -> Process {
    let fate = Arc::new(Fate { end, ..Fate::default() });
    let witness: Arc<dyn Witness> = Arc::clone(&fate) as _;
    let broker: Arc<dyn Broker> = Arc::new(broker.connect());
    let backend: Arc<dyn Backend> = Arc::new(backend.clone());
    let broker = Witnessed::new(Arc::clone(&witness), broker);
    let backend = Witnessed::new(Arc::clone(&witness), backend);
    let app = App::builder(Arc::new(broker), Arc::new(backend)).build().await.unwrap();
    let worker = Worker::builder(&app)
        .concurrency(concurrency)
        .look_ahead(0)
        .middleware(WitnessedRuns(witness))
        .state(runs.clone())
        .task(TASK, task)
        .options("task", TaskOptions::new().limit(Limit::new().max_running(1)));
    let worker = worker.build().unwrap();
    let stop = CancellationToken::new();
    let until = stop.clone().cancelled_owned();
    let worker = async move { worker.run_until(until).await.unwrap().is_clean() };
    Process { fate, stop, worker: tokio::spawn(worker) }
}

impl Process {
    /// Waits for its end at the step that it was meant to end at; nothing of it is left then.
    async fn ends(self) {
        within(HOUR, "the process to come to its end", self.fate.ended.cancelled()).await;
        self.worker.abort();
        assert!(self.worker.await.unwrap_err().is_cancelled());
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    within(HOUR, what, async {
        while !is_so().await {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

async fn is_parked(task: &AsyncResult<()>) -> bool {
    task.record().await.is_ok_and(|record| record.parked.is_some())
}

/// A process dies at this step of the task that holds the only place. Returns the time until a task that waits for the place
/// begins, and the number of deliveries that the other process returned.
async fn dies(step: ArrowStep, side: Side) -> (Duration, usize) {
    let (broker, backend, runs) = (MemoryBroker::new(), MemoryBackend::new(), Runs::default());
    let app = App::builder(Arc::new(broker.connect()), Arc::new(backend.clone())).build().await.unwrap();
    let send = async |name: &str| app.client().send(TASK.call((name.to_owned(),))).await.unwrap();
    let first = start(&broker, &backend, &runs, 1, Some((step, side))).await;
    let holds = send("holds").await;
    let runs_first = !matches!((step, side), (TakePlace | Start, _) | (Run, Before));
    let (second, waits);
    if runs_first {
        until("it runs", async || runs.begun.lock().unwrap().contains_key("holds")).await;
        second = start(&broker, &backend, &runs, 4, None).await;
        waits = send("waits").await;
        until("the other one is parked", async || is_parked(&waits).await).await;
        // It has come back and was parked again, for longer.
        sleep(Duration::from_secs(42)).await;
        runs.released.store(true, Ordering::SeqCst);
        first.ends().await;
    } else {
        first.ends().await;
        runs.released.store(true, Ordering::SeqCst);
        second = start(&broker, &backend, &runs, 4, None).await;
        waits = send("waits").await;
    }
    let died = Instant::now();
    for task in [&holds, &waits] {
        within(HOUR, "a task to end", task.wait(HOUR)).await.unwrap();
        assert_eq!(task.record().await.unwrap().state, TaskState::Success);
    }
    let began = runs.begun.lock().unwrap()["waits"][0];
    assert_eq!(runs.running.lock().unwrap().1, 1, "one at a time");
    // What was published for later comes back and goes.
    sleep(HOUR).await;
    second.stop.cancel();
    assert!(within(HOUR, "a worker to stop", second.worker).await.unwrap(), "it left something behind");
    assert_eq!(broker.depth(&[app.default_queue().clone()]).await.unwrap()[0].ready, Some(0));
    let seen = second.fate.seen.lock().unwrap();
    assert!(seen.len() < 1000, "it goes round in circles");
    let returned = seen.iter().filter(|step| **step == GiveBack).count();
    (began.saturating_duration_since(died), returned)
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_not_taken_or_is_free_again_is_used_soon() {
    for (step, side) in [(TakePlace, Before), (Ack, Before), (Ack, After)] {
        let (waited, _) = dies(step, side).await;
        assert!(waited < Duration::from_secs(2), "{side:?} {step:?}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_of_a_dead_process_is_used_when_its_tasks_are_taken_over() {
    for (step, side) in [
        (TakePlace, After),
        (Start, Before),
        (Start, After),
        (Run, Before),
        (Run, After),
        (Record, Before),
        (Record, After),
        (FreePlace, Before),
    ] {
        let (waited, returned) = dies(step, side).await;
        // Two tasks may wait for the place, one after the other.
        assert!(waited < TAKEN_OVER + Duration::from_secs(2), "{side:?} {step:?}: {waited:?}");
        assert!(returned < 5, "{side:?} {step:?}: it came {returned} times");
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_freed_without_waking_anybody_is_used_after_two_looks() {
    let (waited, _) = dies(FreePlace, After).await;
    assert!(waited < Duration::from_secs(12), "{waited:?}");
}
