//! Dead letters over the in-memory adapters: listed without being taken, sent again once, thrown away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use machinist_core::{
    App, Client, DeadFilter, DeadLetter, DeadLetterOutcome, QueueName, State, TaskDef, TaskError, TaskId,
    Worker,
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    broker::{Broker, HeaderValue, Message, Publish, Target},
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    id::RecordId,
    record::{Facts, TaskState},
    sign::{Algorithm, Key},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::Running;

const FAIL: TaskDef<u32, u32> = TaskDef::new("fail");
const SOON: Duration = Duration::from_secs(60);

/// Fails the first so many times.
type Failures = Arc<AtomicU32>;

async fn fail(State(left): State<Failures>, n: u32) -> Result<u32, TaskError> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(TaskError::new(format!("no {n}"))),
        Err(_) => Ok(n),
    }
}

struct House {
    broker: MemoryBroker,
    app: App,
    client: Client,
    failures: Failures,
    stop: CancellationToken,
}

impl House {
    /// With a worker whose task fails so many times.
    async fn open(failures: u32) -> Self {
        let broker = MemoryBroker::new();
        let key = Key::generate(Algorithm::HmacSha256, "test").unwrap();
        let app = App::builder(Arc::new(broker.clone()), Arc::new(MemoryBackend::new())).keyring(key);
        let app = app.results_ttl(60 * SOON).build().await.unwrap();
        let failures = Arc::new(AtomicU32::new(failures));
        let worker = Worker::builder(&app).queue("q").task(FAIL, fail).state(Arc::clone(&failures));
        let stop = CancellationToken::new();
        tokio::spawn(worker.build().unwrap().run_until(stop.clone().cancelled_owned()));
        Self { broker, client: app.client(), app, failures, stop }
    }

    /// Sends tasks that fail.
    async fn fail(&self, numbers: std::ops::Range<u32>) -> Vec<TaskId> {
        let mut ids = Vec::new();
        for n in numbers {
            let task = self.client.send(FAIL.call(n).queue("q")).await.unwrap();
            assert!(task.wait(SOON).await.is_err());
            ids.push(task.id().clone());
            self.listed(ids.len()).await;
            // Each of another age.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        ids
    }

    async fn letters(&self) -> Vec<DeadLetter> {
        self.client.dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap()
    }

    async fn listed(&self, count: usize) -> Vec<DeadLetter> {
        loop {
            let letters = self.letters().await;
            if letters.len() >= count {
                return letters;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn lying(&self) -> u64 {
        self.app.broker().depth(&[queue()]).await.unwrap()[0].dead.unwrap_or_default()
    }

    async fn replay(&self, letters: &[DeadLetter]) -> Vec<DeadLetterOutcome> {
        let mut told = Vec::new();
        let done = self.client.replay_dead_letters(letters, Duration::ZERO, |_, settlement| {
            told.push(settlement);
        });
        done.await.unwrap();
        told
    }

    async fn purge(&self, letters: &[DeadLetter]) -> Vec<DeadLetterOutcome> {
        let mut told = Vec::new();
        let done =
            self.client.purge_dead_letters(letters, Duration::ZERO, |_, settlement| told.push(settlement));
        done.await.unwrap();
        told
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn queue() -> QueueName {
    QueueName::parse("q").unwrap()
}

fn one(settlements: &[DeadLetterOutcome]) -> DeadLetterOutcome {
    let [one] = settlements else { panic!("{settlements:?}") };
    one.clone()
}

fn successor(settlements: &[DeadLetterOutcome]) -> TaskId {
    match one(settlements) {
        DeadLetterOutcome::Replayed(id) => id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn listing_takes_nothing_and_filters() {
    let house = House::open(3).await;
    let ids = house.fail(0..3).await;
    let letters = house.letters().await;
    assert_eq!(house.lying().await, 3);
    for (n, (letter, id)) in letters.iter().zip(&ids).enumerate() {
        assert_eq!((letter.dead_id.as_str(), letter.reason.as_str()), (&*format!("{id}!1"), "failed"));
        assert_eq!(letter.error.chain, [format!("no {n}")]);
        assert_eq!((letter.task.as_ref(), letter.attempt), (Some(id), Some(1)));
        assert_eq!((letter.name.as_ref().unwrap().as_str(), letter.queue.as_str()), ("fail", "q"));
        assert!(letter.size > 0);
    }
    let count = async |which: DeadFilter| house.client.dead_letters(&which, 9).await.unwrap().len();
    let all = DeadFilter::default;
    assert_eq!(count(DeadFilter { queue: Some(queue()), ..all() }).await, 3);
    assert_eq!(count(DeadFilter { queue: Some(QueueName::parse("other").unwrap()), ..all() }).await, 0);
    assert_eq!(count(DeadFilter { reason: Some("lost".into()), ..all() }).await, 0);
    assert_eq!(count(DeadFilter { name: Some("fail".try_into().unwrap()), ..all() }).await, 3);
    assert_eq!(count(DeadFilter { name: Some("else".try_into().unwrap()), ..all() }).await, 0);
    assert_eq!(count(DeadFilter { until: Some(letters[1].at), ..all() }).await, 2);
    assert_eq!(count(DeadFilter { since: Some(letters[1].at), ..all() }).await, 1);
    assert_eq!(count(DeadFilter { dead_ids: Some(vec![letters[2].dead_id.clone()]), ..all() }).await, 1);
    assert_eq!(house.client.dead_letters(&all(), 2).await.unwrap(), letters[..2]);
}

#[tokio::test(start_paused = true)]
async fn a_letter_is_replayed_as_a_task_of_its_own_and_is_gone() {
    let house = House::open(2).await;
    let ids = house.fail(0..2).await;
    let letters = house.letters().await;
    let again = successor(&house.replay(&letters[1..]).await);
    assert_eq!(house.app.result(again.clone()).typed::<u32>().wait(SOON).await.unwrap(), 1);
    let record = house.app.result(again.clone()).record().await.unwrap();
    assert_eq!((record.retry_of.as_ref(), record.attempt), (Some(&ids[1]), 1));
    let first = house.app.result(ids[1].clone()).record().await.unwrap();
    assert_eq!((first.state, first.retried_as), (TaskState::Failure, Some(again)));
    assert_eq!((house.letters().await, house.lying().await), (letters[..1].to_vec(), 1));
    // The same letter once more, from a list that is old by now.
    assert_eq!(one(&house.replay(&letters[1..]).await), DeadLetterOutcome::Missing);
}

#[tokio::test(start_paused = true)]
async fn replaying_twice_is_one_task() {
    let house = House::open(1).await;
    let ids = house.fail(0..1).await;
    let letters = house.letters().await;
    // As if the first replay had been interrupted after its publish: the letter is still there.
    let copy = house.broker.dead_letters(&queue()).remove(0);
    let again = successor(&house.replay(&letters).await);
    house.app.result(again.clone()).typed::<u32>().wait(SOON).await.unwrap();
    let publish = Publish { target: Target::DeadLetters(queue()), message: copy, delay: Duration::ZERO };
    house.broker.publish(vec![publish]).await.into_iter().for_each(Result::unwrap);
    assert_eq!(successor(&house.replay(&letters).await), again);
    assert_eq!(house.lying().await, 0);
    assert_eq!(house.client.retry(&ids[0]).await.unwrap().id(), &again, "and so is `retry`");
    assert_eq!(house.failures.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_named_and_never_published_is_published() {
    let house = House::open(1).await;
    let ids = house.fail(0..1).await;
    let letters = house.letters().await;
    // A first replay that ended between its record and its publish: nobody else will send this task.
    let named = TaskId::fresh();
    let mut commit = machinist_core::backend::Commit::new(ids[0].clone());
    commit.facts = vec![("retried_as".into(), named.to_string().into())];
    let mut sent = machinist_core::backend::Commit::new(named.clone());
    sent.facts = vec![("name".into(), "fail".into()), ("queue".into(), "q".into())];
    house
        .app
        .backend()
        .commit(vec![commit.into(), sent.into()])
        .await
        .into_iter()
        .for_each(|done| drop(done.unwrap()));
    assert_eq!(successor(&house.replay(&letters).await), named);
    assert_eq!(house.app.result(named).typed::<u32>().wait(SOON).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_letter_outlives_the_record_of_its_task() {
    let house = House::open(1).await;
    house.fail(0..1).await;
    tokio::time::sleep(90 * SOON).await;
    let letters = house.letters().await;
    let again = successor(&house.replay(&letters).await);
    assert_eq!(house.app.result(again).typed::<u32>().wait(SOON).await.unwrap(), 0);
    assert!(house.app.result(letters[0].task.clone().unwrap()).record().await.is_err(), "not made again");
}

#[tokio::test(start_paused = true)]
async fn purging_takes_what_is_meant_and_leaves_the_rest() {
    let house = House::open(4).await;
    house.fail(0..4).await;
    let letters = house.letters().await;
    let meant = [letters[0].clone(), letters[2].clone()];
    assert_eq!(house.purge(&meant).await, [DeadLetterOutcome::Purged, DeadLetterOutcome::Purged]);
    assert_eq!(house.letters().await, [letters[1].clone(), letters[3].clone()]);
    assert_eq!(house.lying().await, 2);
    let left: Vec<_> = house.broker.dead_letters(&queue()).iter().map(|m| m.id.clone().unwrap()).collect();
    let expected = [&letters[1], &letters[3]].map(|letter| letter.task.as_ref().unwrap().to_string());
    assert_eq!(left, expected, "in their order");
    // On the list, and not there: purging it takes it off.
    machinist_core::broker::Consumer::stop(&mut *take_all(&house).await).await;
    assert_eq!(house.purge(&letters[1..2]).await, [DeadLetterOutcome::Missing]);
    assert_eq!(house.letters().await, letters[3..].to_vec());
}

/// Takes everything away behind the list's back.
async fn take_all(house: &House) -> Box<dyn machinist_core::broker::Consumer> {
    let side_queue = machinist_core::broker::SideQueue::DeadLetters(queue());
    let mut consumer = house.app.broker().consume_side_queue(side_queue, 9).await.unwrap().unwrap();
    for _ in 0..house.lying().await {
        let delivery = consumer.next().await.unwrap();
        delivery.receipt.settle(machinist_core::broker::Settle::Ack).await;
    }
    consumer
}

#[tokio::test(start_paused = true)]
async fn what_nobody_vouches_for_is_not_sent_again() {
    let house = House::open(0).await;
    let forged = Message {
        id: Some("forged".to_owned()),
        kind: Some("fail".to_owned()),
        headers: [("machinist-queue".into(), HeaderValue::from("q"))].into(),
        ..Message::default()
    };
    let publish = Publish { target: Target::Queue(queue()), message: forged, delay: Duration::ZERO };
    house.broker.publish(vec![publish]).await.into_iter().for_each(Result::unwrap);
    let letters = house.listed(1).await;
    assert_eq!(
        (letters[0].reason.as_str(), letters[0].task.as_ref().unwrap().as_str()),
        ("unsigned", "forged")
    );
    match one(&house.replay(&letters).await) {
        DeadLetterOutcome::Refused(why) => assert!(why.contains("no signature"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!((house.letters().await.len(), house.lying().await), (1, 1));
    assert_eq!(house.purge(&letters).await, [DeadLetterOutcome::Purged]);
    assert_eq!(house.lying().await, 0);
}

#[tokio::test(start_paused = true)]
async fn replaying_keeps_its_pace() {
    let house = House::open(4).await;
    house.fail(0..4).await;
    let letters = house.letters().await;
    let began = Instant::now();
    let mut told = 0;
    let done = house.client.replay_dead_letters(&letters, Duration::from_secs(10), |_, _| told += 1);
    done.await.unwrap();
    assert_eq!(told, 4);
    assert!(began.elapsed() >= Duration::from_secs(30), "{:?}", began.elapsed());
}

/// Puts a message among the dead letters, as a broker does at the delivery limit of a queue, and as everybody can who may
/// publish.
async fn bury(house: &House, message: Message) {
    let publish = Publish { target: Target::DeadLetters(queue()), message, delay: Duration::ZERO };
    house.broker.publish(vec![publish]).await.into_iter().for_each(Result::unwrap);
}

/// Takes a message out of the queue.
async fn take_one(house: &House) -> Message {
    let what = machinist_core::broker::Consume { queues: vec![queue()], prefetch: 1 };
    let mut consumer = house.app.broker().consume(what).await.unwrap();
    let delivery = consumer.next().await.unwrap();
    delivery.receipt.settle(machinist_core::broker::Settle::Ack).await;
    consumer.stop().await;
    delivery.message
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_buried_by_itself_goes_back_and_runs() {
    let house = House::open(0).await;
    house.stop.cancel();
    tokio::time::sleep(SOON).await;
    let task = house.client.send(FAIL.call(7).queue("q")).await.unwrap();
    let message = take_one(&house).await;
    bury(&house, message).await;
    let running = Worker::builder(&house.app).queue("q").task(FAIL, fail).state(Failures::default());
    let running = tokio::spawn(running.build().unwrap().run_until(std::future::pending()));
    assert_eq!(task.wait(5 * SOON).await.unwrap(), 7);
    assert_eq!((house.lying().await, house.letters().await), (0, vec![]));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_copy_among_the_dead_letters_does_not_end_the_task() {
    let house = House::open(0).await;
    let late = house.client.send(FAIL.call(7).queue("q").countdown(60 * SOON)).await.unwrap();
    // The record of a delayed task holds its message, and so does the broker, from which a stranger copies it.
    let facts = house.app.backend().read(&[late.id().into()]).await.unwrap().remove(0);
    let stored: serde_json::Value = serde_json::from_slice(facts.get("msg").unwrap()).unwrap();
    let header = |value: &serde_json::Value| match value {
        value if value.get("text").is_some() => HeaderValue::from(value["text"].as_str().unwrap()),
        value => HeaderValue::from(value["int"].as_i64().unwrap()),
    };
    let text = |name: &str| stored[name].as_str().map(str::to_owned);
    let headers = stored["headers"].as_object().unwrap().iter();
    let copy = Message {
        id: text("id"),
        kind: text("kind"),
        content_type: text("content_type"),
        headers: headers.map(|(name, value)| (name.clone().into(), header(value))).collect(),
        body: base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text("body").unwrap())
            .unwrap()
            .into(),
        ..Message::default()
    };
    for _ in 0..5 {
        bury(&house, copy.clone()).await;
    }
    tokio::time::sleep(30 * SOON).await;
    assert_eq!((late.state().await.unwrap(), house.lying().await), (TaskState::Pending, 0));
    assert_eq!(late.wait(60 * SOON).await.unwrap(), 7);
    assert_eq!(house.failures.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn what_no_worker_buried_is_shown_and_not_believed() {
    let house = House::open(1).await;
    house.fail(0..1).await;
    let letter = house.broker.dead_letters(&queue()).remove(0);
    let unverified = |why: &'static str, message: Message| (why, message);
    let with = |name: &'static str, value: &str| {
        let mut message = letter.clone();
        message.headers.insert(name.into(), value.into());
        message
    };
    let mut unsigned = letter.clone();
    unsigned.headers.remove("machinist-dead-signature");
    let mut of_other = letter.clone();
    of_other.body = [&letter.body[..], b" "].concat().into();
    for (what, message) in [
        unverified("another id", with("machinist-dead-id", "t!1")),
        unverified("another reason", with("machinist-dead-reason", "lost")),
        unverified("another error", with("machinist-dead-error", "made up")),
        unverified("no signature", unsigned),
        unverified("another message", of_other),
    ] {
        bury(&house, message).await;
        house.client.index_dead_letters(&queue()).await.unwrap();
        let which = DeadFilter { reason: Some("unverified".to_owned()), ..DeadFilter::default() };
        let shown = house.client.dead_letters(&which, 9).await.unwrap();
        assert_eq!(shown.len(), 1, "{what}: {shown:?}");
        assert!(shown[0].dead_id.starts_with("unverified-"), "{what}");
        let refused = one(&house.replay(&shown).await);
        assert!(matches!(refused, DeadLetterOutcome::Refused(_)), "{what}: {refused:?}");
        assert_eq!(house.purge(&shown).await, [DeadLetterOutcome::Purged], "{what}");
        let left = house.letters().await;
        assert_eq!((left.len(), left[0].reason.as_str(), house.lying().await), (1, "failed", 1), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn copies_of_one_letter_are_one_task_even_after_its_records_are_forgotten() {
    let house = House::open(1).await;
    let ids = house.fail(0..1).await;
    let letter = house.broker.dead_letters(&queue()).remove(0);
    let letters = house.letters().await;
    let again = successor(&house.replay(&letters).await);
    house.app.result(again.clone()).typed::<u32>().wait(SOON).await.unwrap();
    tokio::time::sleep(90 * SOON).await;
    assert!(house.app.result(ids[0].clone()).record().await.is_err(), "it is forgotten");
    for _ in 0..3 {
        bury(&house, letter.clone()).await;
        house.client.index_dead_letters(&queue()).await.unwrap();
        assert_eq!(successor(&house.replay(&house.letters().await).await), again);
        tokio::time::sleep(SOON).await;
        assert!(house.app.result(again.clone()).record().await.is_err(), "it does not run again");
    }
    assert_eq!(house.lying().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_letter_behind_thousands_is_found_and_the_others_stay() {
    let house = House::open(2).await;
    house.fail(0..1).await;
    let first = house.broker.dead_letters(&queue()).remove(0);
    for n in 0..3000i64 {
        let mut other = first.clone();
        other.headers.insert("machinist-dead-error".into(), format!("{n}").into());
        bury(&house, other).await;
    }
    let last = house.client.send(FAIL.call(7).queue("q")).await.unwrap();
    assert!(last.wait(SOON).await.is_err());
    house.listed(2).await;
    let letters = house.letters().await;
    let wanted: Vec<_> = letters.into_iter().filter(|l| l.task.as_ref() == Some(last.id())).collect();
    let again = successor(&house.replay(&wanted).await);
    assert_eq!(house.app.result(again).typed::<u32>().wait(SOON).await.unwrap(), 7);
    assert_eq!(house.lying().await, 3001);
}

#[tokio::test(start_paused = true)]
async fn a_scan_keeps_few_letters_that_are_larger_than_ours() {
    let house = House::open(1).await;
    house.fail(0..1).await;
    house.stop.cancel();
    tokio::time::sleep(SOON).await;
    let first = house.broker.dead_letters(&queue()).remove(0);
    // 72 MiB, put there by a stranger: the application allows no message that large.
    let large = Message { body: vec![0; 8 << 20].into(), ..first.clone() };
    for n in 0..9i64 {
        let mut letter = large.clone();
        letter.headers.insert("machinist-dead-error".into(), format!("{n}").into());
        bury(&house, letter).await;
    }
    assert_eq!(house.client.index_dead_letters(&queue()).await.unwrap(), 9);
    let lying = house.broker.dead_letters(&queue());
    assert_eq!(lying.len(), 10, "all are there");
    assert!(
        lying[0].body.len() > first.body.len(),
        "it had no room, and moved those that it had seen behind the rest"
    );
}

/// A backend that counts how often the letters of tasks are listed from the beginning.
#[derive(Debug)]
struct Counting {
    backend: MemoryBackend,
    lists: Arc<AtomicU32>,
}

#[async_trait]
impl Diagnose for Counting {
    fn location(&self) -> String {
        self.backend.location()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.backend.diagnose().await
    }
}

#[async_trait]
impl Backend for Counting {
    fn capabilities(&self) -> BackendCapabilities {
        self.backend.capabilities()
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        self.backend.commit(batch).await
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        self.backend.read(ids).await
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
        if *index == Index::DeadLetters && after.is_none() {
            self.lists.fetch_add(1, Ordering::SeqCst);
        }
        self.backend.list(index, after, limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn one_worker_of_many_looks_after_the_letters() {
    const WORKERS: u32 = 5;
    let (broker, lists) = (MemoryBroker::new(), Arc::<AtomicU32>::default());
    let backend = Counting { backend: MemoryBackend::new(), lists: Arc::clone(&lists) };
    let key = Key::generate(Algorithm::HmacSha256, "test").unwrap();
    let app = App::builder(Arc::new(broker.clone()), Arc::new(backend)).keyring(key).build().await.unwrap();
    let failures = Failures::new(AtomicU32::new(1));
    let start = |n: u32| {
        let worker = Worker::builder(&app).name(format!("w{n}")).queue("q").task(FAIL, fail);
        Running::start(worker.state(Arc::clone(&failures)))
    };
    let workers: Vec<Running> = (0..WORKERS).map(start).collect();
    let client = app.client();
    assert!(client.send(FAIL.call(7).queue("q")).await.unwrap().wait(SOON).await.is_err());
    tokio::time::sleep(2 * SOON).await;
    lists.store(0, Ordering::SeqCst);
    tokio::time::sleep(10 * SOON).await;
    let counts = lists.load(Ordering::SeqCst);
    assert!(
        (1..=12).contains(&counts),
        "{WORKERS} workers counted the letters {counts} times in ten minutes"
    );

    // What nobody has listed is found all the same.
    let mut copy = broker.dead_letters(&queue()).remove(0);
    copy.headers.insert("machinist-dead-error".into(), "made up".into());
    let publish = Publish { target: Target::DeadLetters(queue()), message: copy, delay: Duration::ZERO };
    broker.publish(vec![publish]).await.into_iter().for_each(Result::unwrap);
    tokio::time::sleep(3 * SOON).await;
    assert_eq!(client.dead_letters(&DeadFilter::default(), 9).await.unwrap().len(), 2);
    for worker in workers {
        worker.stop().await;
    }
}
