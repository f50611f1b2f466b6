//! Records and indexes in which another program wrote.

use std::{sync::Arc, time::Duration};

use machinist_core::{
    App, DeadFilter, State, TaskDef, TaskError, Worker,
    backend::{Backend, BackendError, Index, IndexUpdate},
    clock::Timestamp,
    id::{RecordId, SessionId, TaskId},
};
use machinist_memory::MemoryBroker;
use tokio::{sync::Semaphore, task::JoinHandle};

use super::{DONE, commit, facts, put, read};
use crate::{
    BackendHarness, eventually,
    wait::{ANSWER_TIMEOUT, RECOVERY_TIMEOUT, within},
};

/// A record that cannot be used fails only the commit and the read of that record, also in a batch: the others are written
/// and read.
pub async fn a_record_that_cannot_be_used_harms_no_other(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let ids: Vec<TaskId> = (0..5).map(|_| TaskId::fresh()).collect();
    if !harness.spoil(&RecordId::from(&ids[2])).await {
        return;
    }
    let is_bad = |error: &BackendError| matches!(error, BackendError::Record { .. });
    for round in ["1", "2"] {
        let batch = ids.iter().map(|id| put(id, &[("name", "add"), (round, round)]).into()).collect();
        let answers = within(ANSWER_TIMEOUT, "a commit", backend.commit(batch)).await;
        for (at, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(done) => assert!(at != 2 && done == DONE, "{at}: {done:?}"),
                Err(error) => assert!(at == 2 && is_bad(&error), "{at}: {error:?}"),
            }
        }
    }
    let records: Vec<_> = ids.iter().map(RecordId::from).collect();
    let each =
        within(ANSWER_TIMEOUT, "a read", backend.read_each(&records)).await.expect("the backend answers");
    for (at, record) in each.into_iter().enumerate() {
        match record {
            Ok(record) => {
                assert_ne!(at, 2);
                assert_eq!(record, facts(&[("name", "add"), ("1", "1"), ("2", "2")]));
            }
            Err(error) => assert!(at == 2 && is_bad(&error), "{at}: {error:?}"),
        }
    }
    let all = within(ANSWER_TIMEOUT, "a read", backend.read(&records)).await;
    assert!(all.as_ref().is_err_and(is_bad), "{all:?}");
    // The connection is as good as before.
    assert_eq!(commit(&*backend, put(&ids[0], &[("3", "3")])).await, DONE);
    assert_eq!(read(&*backend, &ids[0]).await.len(), 4);
}

/// An index that cannot be used harms no record, and no other index.
pub async fn an_index_that_cannot_be_used_harms_no_other(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    if !harness.spoil_index(&Index::Sessions).await {
        return;
    }
    let at = Timestamp::from_micros(1);
    let update = |index| IndexUpdate::Put { index, at, member: "m".to_owned() };
    let updates = vec![update(Index::Queues), update(Index::Sessions), update(Index::Scheduled)];
    let updated = within(ANSWER_TIMEOUT, "an update", backend.update_indexes(updates)).await;
    assert!(updated.is_ok() || updated.is_err_and(|error| error.is_of_one_record()));
    for index in [Index::Queues, Index::Scheduled] {
        let listed = within(ANSWER_TIMEOUT, "a list", backend.list(&index, None, 10)).await;
        assert_eq!(listed.expect("the other indexes"), [(at, "m".to_owned())]);
    }
    let listed = within(ANSWER_TIMEOUT, "a list", backend.list(&Index::Sessions, None, 10)).await;
    assert!(listed.is_ok() || listed.is_err_and(|error| error.is_of_one_record()));
}

const WAITS: TaskDef<(), ()> = TaskDef::new("waits");
const LEASE: Duration = Duration::from_secs(3);

/// Gate of the handlers, and the number of those that have begun.
#[derive(Debug, Clone)]
struct HandlerGate {
    begun: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

async fn waits(State(gate): State<HandlerGate>) -> Result<(), TaskError> {
    gate.begun.add_permits(1);
    drop(gate.open.acquire().await);
    Ok(())
}

/// A worker of tasks that wait, over a broker in this process.
struct WaitingTask {
    app: App,
    gate: HandlerGate,
    worker: JoinHandle<()>,
}

impl WaitingTask {
    async fn start(backend: Arc<dyn Backend>) -> Self {
        let broker = MemoryBroker::new();
        let app = App::builder(Arc::new(broker), backend).build().await.expect("an application");
        let gate = HandlerGate { begun: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) };
        let worker = Worker::builder(&app).session_lease(LEASE).state(gate.clone()).task(WAITS, waits);
        let worker = worker.build().expect("a worker");
        let worker = tokio::spawn(async move { drop(worker.run_until(std::future::pending()).await) });
        Self { app, gate, worker }
    }
}

/// Another program's data in the record of a running task, and in the index of sessions, stops no worker: its lease goes
/// on, the other tasks end as they should, and the message of that task is set aside as a dead letter, from which the task
/// runs again once the record can be used.
pub async fn a_worker_outlives_records_that_cannot_be_used(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    if !harness.spoil_index(&Index::Sessions).await {
        return;
    }
    let WaitingTask { app, gate, worker } = WaitingTask::start(backend).await;
    let client = app.client();
    let good = client.send(WAITS.call(()).untyped()).await.expect("it is sent");
    let bad = client.send(WAITS.call(()).untyped()).await.expect("it is sent");
    drop(within(ANSWER_TIMEOUT, "both to run", gate.begun.acquire_many(2)).await);
    assert!(harness.spoil(&RecordId::from(bad.id())).await);

    // The lease is renewed all the while: a later start needs a session that is alive.
    tokio::time::sleep(2 * LEASE).await;
    let later = client.send(WAITS.call(()).untyped()).await.expect("it is sent");
    gate.open.close();
    for sent in [&good, &later] {
        within(RECOVERY_TIMEOUT, "the other tasks to end", sent.wait(RECOVERY_TIMEOUT))
            .await
            .expect("success");
    }
    assert_eq!(gate.begun.available_permits(), 3, "each ran once");
    let waited = within(ANSWER_TIMEOUT, "an answer", bad.wait(2 * RECOVERY_TIMEOUT)).await;
    assert!(waited.is_err(), "who waits for that task is told: {waited:?}");
    let which = DeadFilter::default();
    let set_aside = eventually(RECOVERY_TIMEOUT, async || {
        let letters = client.dead_letters(&which, 10).await.expect("they can be listed");
        letters.iter().any(|l| l.task.as_ref() == Some(bad.id()) && l.reason == "undecodable")
    });
    assert!(set_aside.await, "the message is not among the dead letters");
    assert!(!worker.is_finished(), "the worker works on");
    worker.abort();
}

/// A worker whose own session cannot be used opens another, and its runs go on.
pub async fn a_worker_whose_session_cannot_be_used_opens_another(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    if !harness.spoil(&RecordId::from(&TaskId::fresh())).await {
        return;
    }
    let WaitingTask { app, gate, worker } = WaitingTask::start(Arc::clone(&backend)).await;
    let sent = app.client().send(WAITS.call(()).untyped()).await.expect("it is sent");
    drop(within(ANSWER_TIMEOUT, "it to run", gate.begun.acquire()).await);
    let session = async |start: &str| {
        let start: serde_json::Value = read(&*backend, sent.id()).await.read(start)?;
        Some(SessionId::from(start["session"].as_str()?))
    };
    let first = session("s:1:1").await.expect("its start");
    assert!(harness.spoil(&RecordId::from(&first)).await);
    let adopted = eventually(RECOVERY_TIMEOUT, async || session("s:1:2").await.is_some()).await;
    assert!(adopted, "no other session has adopted the run");
    gate.open.close();
    within(RECOVERY_TIMEOUT, "the task to end", sent.wait(RECOVERY_TIMEOUT)).await.expect("success");
    assert_eq!(gate.begun.available_permits(), 1, "it ran once");
    worker.abort();
}
