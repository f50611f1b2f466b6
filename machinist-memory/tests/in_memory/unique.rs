//! Unique tasks: one task for each key, whatever senders do and however they die.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use async_trait::async_trait;
use machinist_core::{
    App, Client, DeadFilter, OnConflict, SendError, Signature, State, TaskDef, TaskError, Unique,
    UniqueUntil, Worker,
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    broker::Broker,
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    id::{RecordId, RecordKind},
    record::{Facts, FailureKind, TaskState},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::{sync::Notify, time::sleep};

/// Runs for so many milliseconds.
const WORK: TaskDef<u64, ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

type Runs = Arc<AtomicU32>;

async fn work(millis: u64, State(runs): State<Runs>) -> Result<(), TaskError> {
    runs.fetch_add(1, Ordering::SeqCst);
    sleep(Duration::from_millis(millis)).await;
    Ok(())
}

struct House {
    app: App,
    broker: Arc<MemoryBroker>,
    backend: Arc<MemoryBackend>,
    runs: Runs,
}

impl House {
    async fn new() -> Self {
        let (broker, backend) = (Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
        let app = App::builder(broker.clone(), backend.clone()).build().await.unwrap();
        Self { app, broker, backend, runs: Runs::default() }
    }

    fn client(&self) -> Client {
        self.app.client()
    }

    fn worker(&self) -> Running {
        Running::start(Worker::builder(&self.app).state(Arc::clone(&self.runs)).task(WORK, work))
    }

    fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    async fn ready(&self) -> u64 {
        let queue = self.app.default_queue().clone();
        self.broker.depth(&[queue]).await.unwrap()[0].ready.unwrap_or_default()
    }
}

fn unique(millis: u64, rule: Unique) -> Signature<()> {
    WORK.call(millis).unique(rule)
}

#[tokio::test(start_paused = true)]
async fn there_is_one_task_until_it_ends() {
    let house = House::new().await;
    let client = house.client();
    let first = client.send(unique(1000, Unique::new())).await.unwrap();
    let second = client.send(unique(1000, Unique::new())).await.unwrap();
    assert_eq!((first.id(), first.is_duplicate(), second.is_duplicate()), (second.id(), false, true));
    let other = client.send(unique(999, Unique::new())).await.unwrap();
    assert_ne!(other.id(), first.id(), "other arguments are another key");
    let worker = house.worker();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(client.send(unique(1000, Unique::new())).await.unwrap().id(), first.id(), "it runs");
    first.wait(MINUTE).await.unwrap();
    let again = client.send(unique(1000, Unique::new())).await.unwrap();
    assert_ne!(again.id(), first.id());
    again.wait(MINUTE).await.unwrap();
    other.wait(MINUTE).await.unwrap();
    assert_eq!(house.runs(), 3);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn of_many_senders_at_once_one_sends() {
    let house = House::new().await;
    let client = house.client();
    let sends = (0..20).map(|_| client.send(unique(1, Unique::new().key("k"))));
    let sent: Vec<_> = futures_util::future::join_all(sends).await.into_iter().map(Result::unwrap).collect();
    assert!(sent.iter().all(|one| one.id() == sent[0].id()));
    assert_eq!((sent.iter().filter(|one| !one.is_duplicate()).count(), house.ready().await), (1, 1));
    let batch = client.send_all(vec![unique(1, Unique::new().key("b")); 3]).await;
    let batch: Vec<_> = batch.into_iter().map(Result::unwrap).collect();
    assert!(!batch[0].is_duplicate() && batch[0].id() == batch[2].id());
}

#[tokio::test(start_paused = true)]
async fn a_key_until_the_start_and_a_key_for_a_period() {
    let house = House::new().await;
    let client = house.client();
    let until_start = || unique(5000, Unique::new().until(UniqueUntil::Start));
    let for_a_minute =
        || unique(1, Unique::new().until(UniqueUntil::For(MINUTE)).on_conflict(OnConflict::Drop));
    let first = client.send(until_start()).await.unwrap();
    let minute = client.send(for_a_minute()).await.unwrap();
    assert!(client.send(until_start()).await.unwrap().is_duplicate());
    let revoked = client.send(unique(2, Unique::throttle(MINUTE))).await.unwrap();
    client.revoke(revoked.id()).await.unwrap();
    let again = client.send(unique(2, Unique::throttle(MINUTE))).await.unwrap();
    assert_eq!(again.id(), revoked.id(), "it was revoked, the minute is not over");
    let worker = house.worker();
    while first.state().await.unwrap() != TaskState::Started {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(!client.send(until_start()).await.unwrap().is_duplicate(), "it has started");
    minute.wait(MINUTE).await.unwrap();
    assert_eq!(
        client.send(for_a_minute()).await.unwrap().id(),
        minute.id(),
        "it has ended, the minute has not"
    );
    sleep(MINUTE).await;
    assert!(!client.send(for_a_minute()).await.unwrap().is_duplicate());
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_later_task_replaces_the_one_that_waits_but_not_one_that_runs() {
    let house = House::new().await;
    let client = house.client();
    let rule = Unique::new().key("page").on_conflict(OnConflict::Replace);
    let delayed = |millis| unique(millis, rule.clone()).countdown(Duration::from_secs(5));
    let mut all = Vec::new();
    for millis in 1..=3 {
        all.push(client.send(delayed(millis)).await.unwrap());
        sleep(Duration::from_secs(1)).await;
    }
    let worker = house.worker();
    all[2].wait(MINUTE).await.unwrap();
    for replaced in &all[..2] {
        let record = replaced.record().await.unwrap();
        assert_eq!((record.state, record.kind), (TaskState::Failure, Some(FailureKind::Replaced)));
    }
    assert_eq!(house.runs(), 1);
    assert!(client.dead_letters(&DeadFilter::default(), 9).await.unwrap().is_empty());
    let runs = client.send(unique(5000, rule.clone())).await.unwrap();
    while runs.state().await.unwrap() != TaskState::Started {
        sleep(Duration::from_millis(10)).await;
    }
    let refused = client.send(unique(1, rule)).await.unwrap_err();
    assert!(matches!(&refused, SendError::Duplicate { of, .. } if of == runs.id()), "{refused}");
    sleep(MINUTE).await;
    assert_eq!((house.runs(), house.ready().await), (2, 0), "the delayed copies found their tasks ended");
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_key_belongs_to_the_name_of_its_task() {
    let client = House::new().await.client();
    for (name, key) in [("index", "page:1"), ("index:page", "1"), ("index", "page%3A1")] {
        let task = Signature::new(name).unique(Unique::new().key(key));
        assert!(!client.send(task).await.unwrap().is_duplicate(), "{name} {key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_may_be_an_error() {
    let house = House::new().await;
    let client = house.client();
    let rule = Unique::new().on_conflict(OnConflict::Refuse);
    let first = client.send(unique(1, rule.clone())).await.unwrap();
    let again = client.send(unique(1, rule)).await.unwrap_err();
    assert!(!again.is_unknown() && again.to_string().contains(first.id().as_str()), "{again}");
    assert_eq!(house.ready().await, 1);
}

#[tokio::test(start_paused = true)]
async fn the_key_of_a_sender_that_died_is_free_after_a_while_and_its_message_does_not_run() {
    let house = House::new().await;
    let client = house.client();
    let rule = || Unique::new().key("k");
    // It died after the confirm and before it marked its claim.
    let first = client.send(unique(1, rule())).await.unwrap();
    let key = RecordId::new(RecordKind::Unique, "work:k");
    let unmark = Commit { drop: vec!["sent".into()], ..Commit::new(key) };
    house.backend.commit(vec![unmark.into()]).await;
    assert_eq!(client.send(unique(1, rule())).await.unwrap().id(), first.id());
    sleep(Duration::from_secs(31)).await;
    let second = client.send(unique(1, rule())).await.unwrap();
    assert_ne!(second.id(), first.id());
    let record = first.record().await.unwrap();
    assert_eq!((record.state, record.kind), (TaskState::Failure, Some(FailureKind::Duplicate)));
    let worker = house.worker();
    second.wait(MINUTE).await.unwrap();
    sleep(MINUTE).await;
    assert_eq!((house.runs(), house.ready().await), (1, 0), "one of the two messages");
    assert!(client.dead_letters(&DeadFilter::default(), 9).await.unwrap().is_empty());
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_result_that_has_expired_stays_so_when_its_key_is_used_again() {
    let house = House::new().await;
    let kept = 15 * MINUTE;
    let app = App::builder(house.broker.clone(), house.backend.clone()).results_ttl(kept);
    let house = House { app: app.build().await.unwrap(), ..house };
    let client = house.client();
    let until_end = || unique(1, Unique::new());
    let weekly = |conflict| {
        let week = UniqueUntil::For(7 * 24 * HOUR);
        unique(1, Unique::new().key("week").until(week).on_conflict(conflict))
    };
    let worker = house.worker();
    let first = client.send(until_end()).await.unwrap();
    let of_week = client.send(weekly(OnConflict::Drop)).await.unwrap();
    first.wait(MINUTE).await.unwrap();
    of_week.wait(MINUTE).await.unwrap();
    sleep(kept + MINUTE).await;
    let again = client.send(until_end()).await.unwrap();
    assert!(!again.is_duplicate(), "its task has ended");
    assert_eq!(
        client.send(weekly(OnConflict::Drop)).await.unwrap().id(),
        of_week.id(),
        "the week is not over"
    );
    let replacing = client.send(weekly(OnConflict::Replace)).await.unwrap();
    assert!(!replacing.is_duplicate());
    again.wait(MINUTE).await.unwrap();
    replacing.wait(MINUTE).await.unwrap();
    let ids = [first.id().into(), of_week.id().into()];
    let records = house.backend.read(&ids).await.unwrap();
    assert!(records.iter().all(Facts::is_empty), "they had succeeded: {records:?}");
    assert_eq!(house.runs(), 4);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_not_sent_in_any_case_finds_no_queue_full_and_fills_none() {
    let house = House::new().await;
    let app = App::builder(house.broker.clone(), house.backend.clone());
    let app = app.max_depth(house.app.default_queue().clone(), 2);
    let house = House { app: app.build().await.unwrap(), ..house };
    let client = house.client();
    let rule = |conflict| unique(1, Unique::new().key("k").on_conflict(conflict));
    let first = client.send(rule(OnConflict::Existing)).await.unwrap();
    for _ in 0..3 {
        assert!(client.send(rule(OnConflict::Existing)).await.unwrap().is_duplicate());
    }
    client.send(WORK.call(1)).await.expect("there is room for one more");
    let answers = client.send_all(vec![WORK.call(1), rule(OnConflict::Drop), WORK.call(1)]).await;
    let [Err(full), Ok(existing), Err(_)] = &answers[..] else { panic!("{answers:?}") };
    assert!(matches!(full, SendError::QueueFull { depth: 2, .. }), "{full}");
    assert_eq!((existing.id(), existing.is_duplicate()), (first.id(), true));
    let refused = client.send(rule(OnConflict::Refuse)).await.unwrap_err();
    assert!(matches!(&refused, SendError::Duplicate { of, .. } if of == first.id()), "{refused}");
    let full = client.send(rule(OnConflict::Replace)).await.unwrap_err();
    assert!(matches!(full, SendError::QueueFull { .. }), "{full}");
    assert_eq!(first.state().await.unwrap(), TaskState::Pending, "nothing could take its place");
    assert_eq!(house.ready().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_revoked_or_whose_record_was_lost_has_no_key() {
    let house = House::new().await;
    let client = house.client();
    let rule = || Unique::new().key("k");
    let first = client.send(unique(1, rule())).await.unwrap();
    client.revoke(first.id()).await.unwrap();
    let second = client.send(unique(1, rule())).await.unwrap();
    assert!(!second.is_duplicate());
    let facts = house.backend.read(&[second.id().into()]).await.unwrap().pop().unwrap();
    let drop = facts.iter().map(|(name, _)| name.to_owned().into()).collect();
    house.backend.commit(vec![Commit { drop, ..Commit::new(second.id()) }.into()]).await;
    sleep(Duration::from_secs(31)).await;
    assert!(!client.send(unique(1, rule())).await.unwrap().is_duplicate());
}

#[tokio::test(start_paused = true)]
async fn the_same_signature_sent_again_is_the_same_task() {
    let house = House::new().await;
    let signature = unique(1, Unique::new().on_conflict(OnConflict::Refuse));
    let first = house.client().send(signature.clone()).await.unwrap();
    let again = house.client().send(signature).await.unwrap();
    assert_eq!((first.id(), again.is_duplicate()), (again.id(), false));
}

#[tokio::test(start_paused = true)]
async fn the_last_task_of_a_debounce_counts_and_a_series_ends() {
    let house = House::new().await;
    let (client, worker) = (house.client(), house.worker());
    let secs = Duration::from_secs;
    let debounced = |millis| unique(millis, Unique::debounce(secs(5), secs(12)).key("page"));
    let mut all = Vec::new();
    for millis in 1..=9 {
        all.push(client.send(debounced(millis)).await.unwrap());
        sleep(secs(2)).await;
    }
    for task in &all {
        // One that was replaced ends in an error.
        let _outcome = task.wait(HOUR).await;
    }
    let mut ran = Vec::new();
    for (number, task) in all.iter().enumerate() {
        let record = task.record().await.unwrap();
        match record.state {
            TaskState::Success => ran.push((number, record.started_at.unwrap())),
            _ => assert_eq!(record.kind, Some(FailureKind::Replaced)),
        }
    }
    // Sent at 0 s, 2 s, and so on: the first series ends at 12 s, the second one 5 s after the last task.
    assert_eq!(ran.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [5, 8]);
    assert!(ran[1].1.since(ran[0].1) >= Duration::from_millis(8900), "{ran:?}");
    assert_eq!((house.runs(), house.ready().await), (2, 0));
    let wrong = client.send(debounced(1).countdown(secs(1))).await.unwrap_err();
    assert!(wrong.to_string().contains("leave the countdown"), "{wrong}");
    let wrong = client.send(unique(1, Unique::debounce(secs(5), secs(1)))).await.unwrap_err();
    assert!(wrong.to_string().contains("below its wait"), "{wrong}");
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_throttle_drops_what_comes_too_early() {
    let house = House::new().await;
    let client = house.client();
    let throttled = || unique(1, Unique::throttle(MINUTE));
    let first = client.send(throttled()).await.unwrap();
    sleep(Duration::from_secs(59)).await;
    assert_eq!(client.send(throttled()).await.unwrap().id(), first.id());
    sleep(Duration::from_secs(2)).await;
    assert!(!client.send(throttled()).await.unwrap().is_duplicate());
}

/// A backend whose process dies at a call: before it or after it.
#[derive(Debug)]
struct Dying {
    backend: MemoryBackend,
    calls: AtomicUsize,
    dies_at: (usize, bool),
    died: Arc<Notify>,
}

impl Dying {
    async fn call<T>(&self, call: impl Future<Output = T> + Send) -> T {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        if (number, true) == self.dies_at || number > self.dies_at.0 {
            self.die().await;
        }
        let answer = call.await;
        if (number, false) == self.dies_at {
            self.die().await;
        }
        answer
    }

    async fn die(&self) {
        self.died.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl Diagnose for Dying {
    fn location(&self) -> String {
        self.backend.location()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.backend.diagnose().await
    }
}

#[async_trait]
impl Backend for Dying {
    fn capabilities(&self) -> BackendCapabilities {
        self.backend.capabilities()
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        self.call(self.backend.commit(batch)).await
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        self.call(self.backend.read(ids)).await
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.backend.watch(id).await
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        self.backend.now().await
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.backend.update_indexes(updates).await
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        self.backend.list(index, after, limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_dies_at_any_step_leaves_one_task_for_the_next() {
    let rule = || unique(1, Unique::new().key("k"));
    let mut steps = 0;
    for dies_at in (0..).flat_map(|number| [(number, true), (number, false)]) {
        let house = House::new().await;
        let died = Arc::new(Notify::new());
        let (backend, calls) = (MemoryBackend::clone(&house.backend), AtomicUsize::new(0));
        let dying = Dying { backend, calls, dies_at, died: Arc::clone(&died) };
        let app = App::builder(house.broker.clone(), Arc::new(dying)).build().await.unwrap();
        let client = app.client();
        let sent = tokio::select! {
            sent = client.send(rule()) => Some(sent.unwrap()),
            () = died.notified() => None,
        };
        sleep(Duration::from_secs(31)).await;
        let second = house.client().send(rule()).await.unwrap();
        let worker = house.worker();
        second.wait(HOUR).await.unwrap();
        sleep(MINUTE).await;
        assert_eq!((house.runs(), house.ready().await), (1, 0), "died at {dies_at:?}");
        assert!(worker.stop().await.is_clean());
        if sent.is_some() {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 6, "{steps} steps");
}
