//! Leaders and shards over a backend: slots are spread over the workers, and pass on when a worker dies.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use machinist_core::{
    App, Client, TaskDef, TaskError, Worker,
    worker::{HeldSlot, RunningRole},
};
use machinist_memory::MemoryBroker;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    BackendHarness, eventually,
    wait::{RECOVERY_TIMEOUT, within},
};

const IDLE: TaskDef<(), ()> = TaskDef::new("idle");
const SLOTS: u32 = 4;
const LEASE: Duration = Duration::from_secs(3);

/// Epochs with which each slot has run.
type SeenEpochs = Arc<Mutex<BTreeMap<u32, Vec<u64>>>>;

async fn idle() -> Result<(), TaskError> {
    Ok(())
}

/// The shards of a set are held by the live workers in equal parts, and those of a worker that dies are taken over, with
/// greater epochs.
pub async fn shards_are_spread_and_pass_on(harness: &dyn BackendHarness) {
    let (broker, seen) = (MemoryBroker::new(), SeenEpochs::default());
    // Its part in the set is kept: it does not leave, it dies.
    let (worker, _role, app) = start("first", &broker, harness, &seen).await;
    let client = app.client();
    assert!(held(&client, &[("first", 4)]).await, "one worker holds all");
    let second = start("second", &broker, harness, &seen).await;
    assert!(held(&client, &[("first", 2), ("second", 2)]).await, "two share");
    let client = second.2.client();
    drop(worker);
    assert!(held(&client, &[("second", 4)]).await, "the shards of the first pass on");
    for (slot, epochs) in seen.lock().expect("no panic").iter() {
        assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "slot {slot}: {epochs:?}");
    }
}

/// Starts a worker with its own connection. It dies when the returned value is dropped.
async fn start(
    name: &str,
    broker: &MemoryBroker,
    harness: &dyn BackendHarness,
    seen: &SeenEpochs,
) -> (AbortOnDropHandle<()>, RunningRole, App) {
    let backend = harness.connect().await;
    let app = App::builder(Arc::new(broker.connect()), backend).build().await.expect("an application");
    let worker = Worker::builder(&app).name(name).session_lease(LEASE).task(IDLE, idle);
    let worker = worker.build().expect("a worker");
    let (ready, seen) = (worker.ready(), Arc::clone(seen));
    let run = move |slot: HeldSlot| {
        seen.lock().expect("no panic").entry(slot.number()).or_default().push(slot.epoch());
        async move { slot.lost().await }
    };
    let role = worker.fleet().shards("set", SLOTS).run(run).expect("a role");
    let worker = AbortOnDropHandle::new(tokio::spawn(async move {
        worker.run_until(std::future::pending()).await.expect("it works");
    }));
    within(RECOVERY_TIMEOUT, "a worker", ready.cancelled()).await;
    (worker, role, app)
}

/// Returns `true` once these workers hold so many shards, and all are held.
async fn held(client: &Client, wanted: &[(&str, usize)]) -> bool {
    eventually(RECOVERY_TIMEOUT, async || {
        let shards = client.fleet_roles().await.map(|roles| roles.shards).unwrap_or_default();
        let of =
            |name: &str| shards.iter().filter(|shard| shard.slot.worker.as_deref() == Some(name)).count();
        wanted.iter().all(|(name, number)| of(name) == *number)
    })
    .await
}
