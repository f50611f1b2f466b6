//! Periodic tasks over a backend: the turn and the cursor pass from worker to worker, and orders outlive lost records.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use machinist_core::{
    App, Client, State, TaskContext, TaskDef, TaskError, Worker,
    backend::{Backend, Commit, Index, IndexUpdate},
    id::{RecordId, RecordKind},
    periodic::{Periodic, Schedule},
};
use machinist_memory::MemoryBroker;
use tokio_util::task::AbortOnDropHandle;

use super::{expect_done, read_records};
use crate::{
    BackendHarness, eventually,
    wait::{RECOVERY_TIMEOUT, within},
};

const TICK: TaskDef<(), ()> = TaskDef::new("tick");
const SECOND: Duration = Duration::from_secs(1);

/// Number of runs of each tick, by id.
type TickRuns = Arc<Mutex<BTreeMap<String, u32>>>;

async fn tick(cx: TaskContext, State(runs): State<TickRuns>) -> Result<(), TaskError> {
    *runs.lock().expect("no panic").entry(cx.task_id().to_string()).or_default() += 1;
    Ok(())
}

/// The ticks of a periodic task are run once each and in a row, although the worker that has the turn dies. An order of
/// another connection reaches the workers.
pub async fn periodic_tasks_tick_once_and_pass_to_another_worker(harness: &dyn BackendHarness) {
    let (broker, runs) = (MemoryBroker::new(), TickRuns::default());
    let client = connect(&broker, harness.connect().await).await.client();
    let first = start("first", &broker, harness, &runs).await;
    client.add_periodic(&each_second("beat")).await.expect("it is added");
    assert!(ticks(&client, 3).await, "the first worker does not tick");
    let second = start("second", &broker, harness, &runs).await;
    drop(first);
    let before = sent(&client).await;
    let follows = eventually(RECOVERY_TIMEOUT, async || sent(&client).await != before).await;
    assert!(follows, "nobody follows the first worker");
    let triggered = within(RECOVERY_TIMEOUT, "an extra tick", client.trigger_periodic("beat")).await;
    let triggered = triggered.expect("it is sent").id.to_string();
    client.pause_periodic("beat").await.expect("it is paused");
    let ran_all = eventually(RECOVERY_TIMEOUT, async || {
        let sent = sent(&client).await;
        let runs = runs.lock().expect("no panic");
        sent.iter().all(|id| runs.contains_key(id)) && runs.contains_key(&triggered)
    });
    assert!(ran_all.await, "a tick is not run: {:?}", runs.lock());
    drop(second);
    let ran = runs.lock().expect("no panic").clone();
    let instants: Vec<jiff::Timestamp> = ran
        .keys()
        .filter(|id| **id != triggered)
        .map(|id| id.strip_prefix("tick.beat.").expect("a tick").parse().expect("an instant"))
        .collect();
    for pair in instants.windows(2) {
        assert_eq!(pair[0] + jiff::SignedDuration::from_secs(1), pair[1], "a tick is lost: {ran:?}");
    }
    // A run that was cut off with its process is the only one that is run again.
    assert!(ran.values().filter(|times| **times > 1).count() <= 1, "{ran:?}");
}

/// A live periodic task whose record is lost is written back by a worker that knows it, with its pause.
pub async fn a_lost_periodic_task_is_written_back(harness: &dyn BackendHarness) {
    let (broker, runs) = (MemoryBroker::new(), TickRuns::default());
    let backend = harness.connect().await;
    let client = connect(&broker, Arc::clone(&backend)).await.client();
    client.add_periodic(&each_second("beat")).await.expect("it is added");
    client.pause_periodic("beat").await.expect("it is paused");
    let worker = start("worker", &broker, harness, &runs).await;
    // A worker that sends an extra tick knows the order.
    within(RECOVERY_TIMEOUT, "an extra tick", client.trigger_periodic("beat")).await.expect("it is sent");
    let id = RecordId::new(RecordKind::Cursor, "beat");
    let mut loss = Commit::new(id.clone());
    let facts = read_records(&*backend, &[id]).await.remove(0);
    loss.drop = facts.iter().map(|(name, _)| name.to_owned().into()).collect();
    expect_done(&*backend, loss).await;
    let update = IndexUpdate::Remove { index: Index::Periodic, member: "beat".to_owned() };
    backend.update_indexes(vec![update]).await.expect("it is changed");
    let back = eventually(RECOVERY_TIMEOUT, async || {
        let all = client.periodic_tasks().await.unwrap_or_default();
        all.first().is_some_and(|task| task.restored.is_some() && task.paused.is_some())
    });
    assert!(back.await, "the periodic task is lost");
    drop(worker);
}

async fn connect(broker: &MemoryBroker, backend: Arc<dyn Backend>) -> App {
    App::builder(Arc::new(broker.connect()), backend).build().await.expect("an application")
}

/// Starts a worker with its own connection. It dies when the returned value is dropped.
async fn start(
    name: &str,
    broker: &MemoryBroker,
    harness: &dyn BackendHarness,
    runs: &TickRuns,
) -> AbortOnDropHandle<()> {
    let app = connect(broker, harness.connect().await).await;
    let worker = Worker::builder(&app).name(name).session_lease(3 * SECOND).state(Arc::clone(runs));
    let worker = worker.task(TICK, tick).build().expect("a worker");
    let ready = worker.ready();
    let worker = AbortOnDropHandle::new(tokio::spawn(async move {
        worker.run_until(std::future::pending()).await.expect("it works");
    }));
    within(RECOVERY_TIMEOUT, "a worker", ready.cancelled()).await;
    worker
}

fn each_second(name: &str) -> Periodic {
    let schedule = Schedule::every(SECOND).expect("a schedule");
    Periodic::new(name, schedule, TICK.call(())).expect("a periodic task")
}

/// Ids of the newest ticks.
async fn sent(client: &Client) -> Vec<String> {
    let shown = client.periodic_task("beat").await.ok().flatten();
    shown.map(|task| task.ticks.iter().map(|tick| tick.id.to_string()).collect()).unwrap_or_default()
}

async fn ticks(client: &Client, number: usize) -> bool {
    eventually(RECOVERY_TIMEOUT, async || sent(client).await.len() >= number).await
}
