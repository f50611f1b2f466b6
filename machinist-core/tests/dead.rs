//! Dead letters over the in-memory adapters: listed without being taken, sent again once, thrown away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, Client, DeadFilter, DeadLetter, DeadLetterOutcome, QueueName, State, TaskDef, TaskError, TaskId,
    Worker,
    broker::{Broker, HeaderValue, Message, Publish, Target},
    record::{FailureKind, TaskState},
    sign::{Algorithm, Key},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
        let app = app.build().await.unwrap();
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
    tokio::time::sleep(Duration::from_secs(3 * 24 * 3600)).await;
    let letters = house.letters().await;
    let again = successor(&house.replay(&letters).await);
    assert_eq!(house.app.result(again).typed::<u32>().wait(SOON).await.unwrap(), 0);
    assert!(house.app.result(letters[0].task.clone().unwrap()).record().await.is_err(), "not made anew");
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

#[tokio::test(start_paused = true)]
async fn a_worker_lists_what_a_broker_buried_by_itself() {
    let house = House::open(1).await;
    house.fail(0..1).await;
    let (known, mut bare) = (house.letters().await, house.broker.dead_letters(&queue()).remove(0));
    bare.headers.retain(|name, _| !name.starts_with("machinist-dead-"));
    let publish = Publish { target: Target::DeadLetters(queue()), message: bare, delay: Duration::ZERO };
    house.broker.publish(vec![publish]).await.into_iter().for_each(Result::unwrap);
    // The same task and attempt: the same letter, once more.
    assert_eq!(house.lying().await, 2);
    tokio::time::sleep(2 * SOON).await;
    assert_eq!(house.broker.dead_letters(&queue()).len(), 2);
    let listed = house.letters().await;
    assert_eq!((listed.len(), &listed[0].dead_id), (1, &known[0].dead_id));
    for letter in house.broker.dead_letters(&queue()) {
        assert!(letter.headers.contains_key("machinist-dead-id"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_buried_by_itself_is_listed_and_its_task_ends() {
    let house = House::open(0).await;
    house.stop.cancel();
    tokio::time::sleep(SOON).await;
    let task = house.client.send(FAIL.call(7).queue("q")).await.unwrap();
    // What RabbitMQ does at a queue's delivery limit: the bare message goes to the dead letters.
    let mut consumer = house
        .app
        .broker()
        .consume(machinist_core::broker::Consume { queues: vec![queue()], prefetch: 1 })
        .await
        .unwrap();
    let delivery = consumer.next().await.unwrap();
    let publish =
        Publish { target: Target::DeadLetters(queue()), message: delivery.message, delay: Duration::ZERO };
    house.broker.publish(vec![publish]).await.into_iter().for_each(Result::unwrap);
    delivery.receipt.settle(machinist_core::broker::Settle::Ack).await;
    consumer.stop().await;
    assert_eq!(house.letters().await, []);
    assert_eq!(house.client.index_dead_letters(&queue()).await.unwrap(), 1);
    assert_eq!(house.client.index_dead_letters(&queue()).await.unwrap(), 0, "once");
    let letters = house.letters().await;
    assert_eq!((letters[0].reason.as_str(), letters[0].task.as_ref()), ("lost", Some(task.id())));
    assert_eq!(house.lying().await, 1);
    let record = task.record().await.unwrap();
    assert_eq!((record.state, record.kind), (TaskState::Failure, Some(FailureKind::Lost)));
    let running = Worker::builder(&house.app).queue("q").task(FAIL, fail).state(Failures::default());
    let running = tokio::spawn(running.build().unwrap().run_until(std::future::pending()));
    let again = successor(&house.replay(&letters).await);
    assert_eq!(house.app.result(again).typed::<u32>().wait(SOON).await.unwrap(), 7);
    running.abort();
}
