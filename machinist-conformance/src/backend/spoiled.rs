//! Records and indexes in which another program wrote.

use std::{sync::Arc, time::Duration};

use machinist_core::{
    App, DeadFilter, ResultError, State, TaskDef, TaskError, Worker, WorkerBuilder, WorkerFilter,
    backend::{Backend, BackendError, Index, IndexUpdate},
    clock::Timestamp,
    id::{RecordId, RecordKind, SessionId, TaskId},
    limit::Limit,
    record::FailureKind,
    worker::TaskOptions,
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
const LIMITED: TaskDef<(), ()> = TaskDef::new("limited");
const LEASE: Duration = Duration::from_secs(3);

/// Gate of the handlers, and the number of those that have begun.
#[derive(Debug, Clone)]
struct HandlerGate {
    begun: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl HandlerGate {
    fn closed() -> Self {
        Self { begun: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) }
    }

    async fn pass(&self) {
        self.begun.add_permits(1);
        drop(self.open.acquire().await);
    }
}

/// Gate of the handlers of the limited task.
#[derive(Debug, Clone)]
struct LimitedGate(HandlerGate);

async fn waits(State(gate): State<HandlerGate>) -> Result<(), TaskError> {
    gate.pass().await;
    Ok(())
}

async fn limited(State(gate): State<LimitedGate>) -> Result<(), TaskError> {
    gate.0.pass().await;
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
        Self::start_with(backend, |worker| worker).await
    }

    async fn start_with(
        backend: Arc<dyn Backend>,
        more: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
    ) -> Self {
        let broker = MemoryBroker::new();
        let app = App::builder(Arc::new(broker), backend).build().await.expect("an application");
        let gate = HandlerGate::closed();
        let worker = run(more(Worker::builder(&app).state(gate.clone()).task(WAITS, waits)));
        Self { app, gate, worker }
    }
}

/// Runs a worker until its task is aborted.
fn run(worker: WorkerBuilder) -> JoinHandle<()> {
    let worker = worker.session_lease(LEASE).build().expect("a worker");
    tokio::spawn(async move { drop(worker.run_until(std::future::pending()).await) })
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

/// Another program's data in the record of a limit's places, and in that of a worker's name, stops no worker: its lease
/// goes on, it obeys revocations, and a second worker of that name starts under another. The tasks of the limit wait,
/// and become no dead letters.
pub async fn a_worker_outlives_a_limit_and_a_name_that_cannot_be_used(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    if !harness.spoil(&RecordId::from(&TaskId::fresh())).await {
        return;
    }
    let limited_gate = LimitedGate(HandlerGate::closed());
    let state = limited_gate.clone();
    let WaitingTask { app, gate, worker } = WaitingTask::start_with(backend, |worker| {
        let options = TaskOptions::new().limit(Limit::new().max_running(2));
        let worker = worker.name("spoilt").concurrency(4).state(state);
        worker.task(LIMITED, limited).options("limited", options)
    })
    .await;
    let client = app.client();
    let held = client.send(WAITS.call(()).untyped()).await.expect("it is sent");
    let ends = client.send(LIMITED.call(()).untyped()).await.expect("it is sent");
    drop(within(ANSWER_TIMEOUT, "it to run", gate.begun.acquire()).await);
    drop(within(ANSWER_TIMEOUT, "it to run", limited_gate.0.begun.acquire()).await);
    assert!(harness.spoil(&RecordId::new(RecordKind::Limit, "run/task:limited")).await);
    assert!(harness.spoil(&RecordId::new(RecordKind::Worker, "spoilt")).await);

    // Its place cannot be freed.
    limited_gate.0.open.close();
    within(RECOVERY_TIMEOUT, "the limited task to end", ends.wait(RECOVERY_TIMEOUT)).await.expect("success");
    let waits = client.send(LIMITED.call(()).untyped()).await.expect("it is sent");
    let is_parked = eventually(RECOVERY_TIMEOUT, async || {
        waits.record().await.is_ok_and(|record| record.parked.is_some())
    });
    assert!(is_parked.await, "a task of the limit does not wait");
    let letters = client.dead_letters(&DeadFilter::default(), 10).await.expect("they can be listed");
    assert!(letters.is_empty(), "{letters:?}");

    let twin = run(Worker::builder(&app).name("spoilt").state(gate).task(WAITS, self::waits));
    let has_other_name = eventually(RECOVERY_TIMEOUT, async || {
        let workers = client.workers(&WorkerFilter::new()).await.expect("they can be listed");
        workers.iter().any(|worker| worker.name == "spoilt#2")
    });
    assert!(has_other_name.await, "no second worker of that name has started");

    client.revoke(held.id()).await.expect("it is revoked");
    let ended = within(2 * RECOVERY_TIMEOUT, "an answer", held.wait(RECOVERY_TIMEOUT)).await;
    assert!(matches!(ended, Err(ResultError::Failed { kind: FailureKind::Revoked, .. })), "{ended:?}");
    worker.abort();
    twin.abort();
}
