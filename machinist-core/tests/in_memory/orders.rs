//! Orders that are written back to the backend after later ones: a worker goes by the newest, and restores it.

use std::{sync::Arc, time::Duration};

use crate::support::Running;
use bytes::Bytes;
use machinist_core::{
    App, Client, TaskDef, TaskError, Worker, WorkerAction, WorkerFilter,
    backend::{Backend, Commit},
    id::{RecordId, RecordKind, TaskName},
    record::PresenceState,
    sign::{Algorithm, Key},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

const WORK: TaskDef<(), ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);

async fn work() -> Result<(), TaskError> {
    Ok(())
}

struct Servers {
    app: App,
    backend: Arc<MemoryBackend>,
}

async fn servers() -> Servers {
    let backend = Arc::new(MemoryBackend::new());
    let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::<MemoryBackend>::clone(&backend))
        .keyring(key)
        .build()
        .await
        .unwrap();
    Servers { app, backend }
}

impl Servers {
    fn worker(&self) -> Running {
        Running::start(Worker::builder(&self.app).name("w").task(WORK, work))
    }

    async fn fact(&self, record: &RecordId, fact: &str) -> Option<Bytes> {
        self.backend.read(std::slice::from_ref(record)).await.unwrap()[0].get(fact).cloned()
    }

    /// Replaces a fact, as someone can who may write to the backend.
    async fn put(&self, record: &RecordId, fact: &'static str, value: Option<&Bytes>) {
        let mut commit = Commit::new(record.clone());
        commit.drop = vec![fact.into()];
        commit.facts = value.iter().map(|value| (fact.into(), Bytes::clone(value))).collect();
        commit.wake = true;
        self.backend.commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    }

    /// Waits until a fact has this value again.
    async fn restored(&self, record: &RecordId, fact: &str, value: &Bytes) {
        let restored = async {
            while self.fact(record, fact).await.as_ref() != Some(value) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(MINUTE, restored).await.expect("it is written back");
    }
}

async fn order(client: &Client, action: WorkerAction) {
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    let (_, results) = client.order_workers(&workers, action, false).await.unwrap();
    assert!(results.len() == 1 && results[0].done, "{results:?}");
}

async fn state(client: &Client) -> PresenceState {
    client.workers(&WorkerFilter::new()).await.unwrap()[0].state
}

async fn awake(client: &Client) {
    let awake = async {
        while client.workers(&WorkerFilter::new()).await.unwrap().first().map(|w| w.state)
            != Some(PresenceState::Awake)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(MINUTE, awake).await.expect("it is awake");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_order_that_is_written_back_changes_nothing() {
    let servers = servers().await;
    let client = servers.app.client();
    let worker = servers.worker();
    awake(&client).await;
    let record = RecordId::new(RecordKind::Worker, "w");
    order(&client, WorkerAction::Pause).await;
    let paused = servers.fact(&record, "wanted").await.unwrap();
    order(&client, WorkerAction::Resume).await;
    let resumed = servers.fact(&record, "wanted").await.unwrap();
    servers.put(&record, "wanted", Some(&paused)).await;
    servers.restored(&record, "wanted", &resumed).await;
    assert_eq!(state(&client).await, PresenceState::Awake);
    client.send(WORK.call(())).await.unwrap().wait(MINUTE).await.unwrap();
    // Nor does its loss: a worker that sleeps goes on sleeping, and so does the next of its name.
    order(&client, WorkerAction::Pause).await;
    let paused = servers.fact(&record, "wanted").await.unwrap();
    servers.put(&record, "wanted", None).await;
    servers.restored(&record, "wanted", &paused).await;
    worker.stop().await;
    let again = servers.worker();
    let asleep = async {
        while client.workers(&WorkerFilter::new()).await.unwrap().first().map(|w| w.state)
            != Some(PresenceState::Asleep)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(MINUTE, asleep).await.expect("it is asleep");
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_stays_disabled_when_someone_writes_the_earlier_setting_back() {
    let servers = servers().await;
    let client = servers.app.client();
    let worker = servers.worker();
    awake(&client).await;
    let name = TaskName::parse("work").unwrap();
    let record = RecordId::new(RecordKind::Control, "tasks");
    client.enable_task(&name).await.unwrap();
    let enabled = servers.fact(&record, "off:work").await.unwrap();
    client.disable_task(&name).await.unwrap();
    let disabled = servers.fact(&record, "off:work").await.unwrap();
    // The worker has read it.
    order(&client, WorkerAction::Ping).await;
    servers.put(&record, "off:work", Some(&enabled)).await;
    servers.restored(&record, "off:work", &disabled).await;
    let task = client.send(WORK.call(())).await.unwrap();
    let parked = async {
        while task.record().await.unwrap().parked.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(MINUTE, parked).await.expect("it waits");
    client.enable_task(&name).await.unwrap();
    task.wait(MINUTE).await.unwrap();
    worker.stop().await;
}
