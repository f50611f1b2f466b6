//! A worker whose handlers block its runtime.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_core::{App, State, TaskDef, TaskError, Worker, WorkerBuilder, backend::Backend};
use machinist_memory::MemoryBroker;
use tokio::sync::oneshot;

use crate::{
    BackendHarness, eventually,
    wait::{ANSWER_TIMEOUT, RECOVERY_TIMEOUT, within},
};

const BLOCKS: TaskDef<(), ()> = TaskDef::new("blocks");
/// Others ask again after this and sooner, and a lease that is not renewed is known to be over well before.
const LEASE: Duration = Duration::from_secs(3);

/// Handler that blocks its thread, which handlers must not do.
async fn blocks(State(runs): State<Arc<AtomicU32>>) -> Result<(), TaskError> {
    runs.fetch_add(1, Ordering::SeqCst);
    std::thread::sleep(3 * LEASE);
    Ok(())
}

/// A handler that blocks its runtime does not cost the worker its session: nobody else runs the task meanwhile. Where
/// the backend is in one process only, this is not promised.
pub async fn a_worker_whose_runtime_is_blocked_keeps_its_session(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    if !backend.capabilities().shared {
        return;
    }
    let broker = MemoryBroker::new();
    let runs = Arc::new(AtomicU32::new(0));
    let app = connect(&broker, backend).await;
    let signature = BLOCKS.call(()).untyped();
    let sent = app.client().send(signature.clone()).await.expect("it is sent");

    let (stop, stopped) = oneshot::channel::<()>();
    let blocked = worker("blocked", &app, &runs).build().expect("a worker");
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(blocked.run_until(async { drop(stopped.await) })).expect("it works")
    });
    let begun = eventually(ANSWER_TIMEOUT, async || runs.load(Ordering::SeqCst) == 1).await;
    assert!(begun, "the task is not run");

    // A second message of the same task, which only the other can receive now.
    let other = connect(&broker, harness.connect().await).await;
    let other_worker = worker("other", &other, &runs).build().expect("a worker");
    let other_worker = tokio::spawn(other_worker.run_until(std::future::pending()));
    other.client().send(signature).await.expect("it is sent again");

    within(RECOVERY_TIMEOUT, "the task to end", sent.wait(RECOVERY_TIMEOUT)).await.expect("it succeeds");
    let record = sent.record().await.expect("its record");
    assert_eq!((runs.load(Ordering::SeqCst), record.worker.as_deref()), (1, Some("blocked")));
    other_worker.abort();
    drop(stop);
    let drained =
        within(RECOVERY_TIMEOUT, "a worker to stop", tokio::task::spawn_blocking(|| thread.join())).await;
    assert!(drained.expect("no panic").expect("no panic").is_clean());
}

async fn connect(broker: &MemoryBroker, backend: Arc<dyn Backend>) -> App {
    App::builder(Arc::new(broker.connect()), backend).build().await.expect("an application")
}

fn worker(name: &str, app: &App, runs: &Arc<AtomicU32>) -> WorkerBuilder {
    Worker::builder(app).name(name).session_lease(LEASE).state(Arc::clone(runs)).task(BLOCKS, blocks)
}
