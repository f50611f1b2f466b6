//! Tasks that a sender leaves to the buffer of its application: confirmed when the broker is back, or told as dropped.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::send_within::Flaky;
use machinist_core::{
    App, AppBuilder, BufferLimits, FairShare, PublishHook, QueueName, SendError, Signature, TaskDef, TaskId,
    broker::{Broker, Consume},
    event::{Event, EventKind},
    limit::{LimitKey, Rate},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::{Instant, sleep, sleep_until};

const WORK: TaskDef<(u32,), ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// A number of refused publishes that no test reaches.
const AWAY: u32 = u32::MAX;

fn queue(name: &str) -> QueueName {
    name.try_into().unwrap()
}

async fn app(
    refusals: u32,
    limits: BufferLimits,
    adjust: impl FnOnce(AppBuilder) -> AppBuilder,
) -> (App, Arc<Flaky>) {
    let broker = Arc::new(Flaky { broker: MemoryBroker::new(), refusals: refusals.into() });
    let builder = App::builder(broker.clone(), Arc::new(MemoryBackend::new())).buffer(limits);
    (adjust(builder).build().await.unwrap(), broker)
}

/// Shares of a task a day for each first argument.
fn share() -> FairShare {
    let by = FairShare::by(LimitKey::template("{0}").unwrap());
    FairShare { rate: Rate::parse("1/d").unwrap(), burst: 1, ..by }
}

/// A hook that counts its calls.
struct Counting(Arc<AtomicU32>);

impl PublishHook for Counting {
    fn before_publish(&self, _: &TaskId, _: &str, _: &mut BTreeMap<String, String>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn ready(app: &App, name: &str) -> u64 {
    app.broker().depth(&[queue(name)]).await.unwrap()[0].ready.unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn tasks_are_accepted_while_the_broker_is_away_and_sent_about_in_their_order() {
    let (app, broker) = app(AWAY, BufferLimits::default(), |builder| builder).await;
    let client = app.client();
    let before = Instant::now();
    let mut sends = Vec::new();
    for number in 0..1000 {
        sends.push(client.send_buffered(WORK.call((number,))).await.unwrap());
    }
    assert!(before.elapsed().is_zero());
    let counts = client.buffer_counts();
    assert!(counts.waiting == 1000 && counts.bytes > 10_000, "{counts:?}");
    sleep(5 * SECOND).await;
    assert_eq!(ready(&app, "default").await, 0);
    broker.refusals.store(0, Ordering::SeqCst);
    let mut ids = Vec::new();
    for send in sends {
        let id = send.id().clone();
        assert_eq!(*send.confirmed().await.unwrap().id(), id);
        ids.push(id.to_string());
    }
    assert!(before.elapsed() < 15 * SECOND, "{:?}", before.elapsed());
    let counts = client.flush_buffer(MINUTE).await;
    assert_eq!((counts.waiting, counts.bytes, counts.refused, counts.dropped), (0, 0, 0, 0));
    let consume = Consume { queues: vec![queue("default")], prefetch: 1000 };
    let mut consumer = app.broker().consume(consume).await.unwrap();
    // Held, because a delivery that is dropped goes back to its queue.
    let mut deliveries = Vec::new();
    for _ in 0..1000 {
        deliveries.push(consumer.next().await.unwrap());
    }
    let sent: Vec<_> = deliveries.iter().filter_map(|delivery| delivery.message.id.clone()).collect();
    // Those that are sent at once may overtake each other.
    for (place, id) in ids.iter().enumerate() {
        let came = sent.iter().position(|sent| sent == id).unwrap();
        assert!(came.abs_diff(place) < 256, "the task accepted at {place} came at {came}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_accepts_no_more() {
    let two = BufferLimits { tasks: 2, ..BufferLimits::default() };
    let (app, broker) = app(AWAY, two, |builder| builder).await;
    let client = app.client();
    let sends = [
        client.send_buffered(WORK.call((1,))).await.unwrap(),
        client.send_buffered(WORK.call((2,))).await.unwrap(),
    ];
    let full = client.send_buffered(WORK.call((3,))).await.unwrap_err();
    assert!(matches!(full, SendError::BufferFull { tasks: 2, .. }) && !full.is_unknown(), "{full}");
    broker.refusals.store(0, Ordering::SeqCst);
    for send in sends {
        send.confirmed().await.unwrap();
    }
    client.send_buffered(WORK.call((4,))).await.unwrap().confirmed().await.unwrap();
    assert_eq!((client.buffer_counts().refused, ready(&app, "default").await), (1, 3));
    let small = BufferLimits { bytes: 10, ..BufferLimits::default() };
    let (app, _) = self::app(0, small, |builder| builder).await;
    let full = app.client().send_buffered(WORK.call((1,))).await.unwrap_err();
    assert!(matches!(full, SendError::BufferFull { tasks: 0, .. }), "{full}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_confirmed_in_time_is_told_as_dropped() {
    let limits = BufferLimits { keep_for: 10 * SECOND, ..BufferLimits::default() };
    let (events, mut told) = tokio::sync::mpsc::unbounded_channel();
    let observer = move |event: &Event<'_>| {
        if let EventKind::SendDropped { task, waited, may_be_queued, .. } = event.kind {
            events.send((task.id.clone(), task.queue.to_string(), waited.as_secs(), may_be_queued)).unwrap();
        }
    };
    let fair = |builder: AppBuilder| builder.observer(observer).fair_queue(queue("default"), share());
    let (app, _broker) = app(AWAY, limits, fair).await;
    let client = app.client();
    let before = Instant::now();
    let send = client.send_buffered(WORK.call((1,))).await.unwrap();
    let id = send.id().clone();
    let dropped = send.confirmed().await.unwrap_err();
    assert!(dropped.is_unknown(), "a try was not confirmed");
    let SendError::Dropped { id: of, waited, source, .. } = dropped else { panic!("{dropped}") };
    assert_eq!((&of, waited.as_secs(), source.is_some()), (&id, 10, true));
    // As the event `sent` names it.
    assert_eq!(told.try_recv().unwrap(), (id, "default+fair:share".to_owned(), 10, true));
    assert!(before.elapsed() >= 10 * SECOND && before.elapsed() < 11 * SECOND);
    let counts = client.buffer_counts();
    assert_eq!((counts.waiting, counts.bytes, counts.dropped), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flush_drops_what_it_cannot_send_and_says_so() {
    let (app, broker) = app(AWAY, BufferLimits::default(), |builder| builder).await;
    let client = app.client();
    let mut sends = Vec::new();
    for number in 0..300 {
        sends.push(client.send_buffered(WORK.call((number,))).await.unwrap());
    }
    let before = Instant::now();
    let counts = client.flush_buffer(2 * SECOND).await;
    assert_eq!((before.elapsed().as_secs(), counts.waiting, counts.bytes, counts.dropped), (2, 0, 0, 300));
    for send in sends {
        assert!(matches!(send.confirmed().await, Err(SendError::Dropped { .. })));
    }
    broker.refusals.store(0, Ordering::SeqCst);
    client.send_buffered(WORK.call((1,))).await.unwrap().confirmed().await.unwrap();
    assert_eq!(ready(&app, "default").await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_stops_its_own_tasks_alone() {
    let (app, broker) = app(0, BufferLimits::default(), |builder| builder.max_depth(queue("small"), 1)).await;
    let client = app.client();
    let small = |number| WORK.call((number,)).queue("small");
    client.send(small(0)).await.unwrap();
    let waiting = client.send_buffered(small(1)).await.unwrap();
    let other = client.send_buffered(WORK.call((2,))).await.unwrap();
    other.confirmed().await.unwrap();
    assert_eq!((client.buffer_counts().waiting, ready(&app, "small").await), (1, 1));
    let consume = Consume { queues: vec![queue("small")], prefetch: 1 };
    let mut consumer = broker.consume(consume).await.unwrap();
    consumer.next().await.unwrap().receipt.settle(machinist_core::broker::Settle::Ack).await;
    waiting.confirmed().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delay_counts_from_the_acceptance_and_a_wrong_task_is_told_at_once() {
    let (app, broker) = app(AWAY, BufferLimits::default(), |builder| builder).await;
    let client = app.client();
    let (now, before) = (app.clock().now(), Instant::now());
    let send = client.send_buffered(WORK.call((1,)).countdown(20 * SECOND)).await.unwrap();
    sleep(10 * SECOND).await;
    broker.refusals.store(0, Ordering::SeqCst);
    let record = send.confirmed().await.unwrap().record().await.unwrap();
    let eta = record.eta.unwrap();
    assert!(eta.since(now) < 21 * SECOND, "{:?}", eta.since(now));
    assert_eq!(ready(&app, "default").await, 0);
    sleep_until(before + 21 * SECOND).await;
    assert_eq!(ready(&app, "default").await, 1, "the broker keeps it for what is left of the delay");
    let wrong = client.send_buffered(Signature::new("work").priority(99)).await.unwrap_err();
    assert!(matches!(wrong, SendError::Invalid(_)), "{wrong}");
}

#[tokio::test(start_paused = true)]
async fn a_task_is_prepared_once_for_all_its_tries() {
    let calls = Arc::new(AtomicU32::new(0));
    let hook = Counting(Arc::clone(&calls));
    let fair = |builder: AppBuilder| builder.on_publish(hook).fair_queue(queue("default"), share());
    let (app, broker) = app(AWAY, BufferLimits::default(), fair).await;
    let client = app.client();
    let send = client.send_buffered(WORK.call((1,))).await.unwrap();
    sleep(5 * SECOND).await;
    broker.refusals.store(0, Ordering::SeqCst);
    let sent = send.confirmed().await.unwrap();
    assert_eq!(sent.queue().map(QueueName::as_str), Some("default+fair:share"), "its share is used once");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    broker.refusals.store(5, Ordering::SeqCst);
    let sent = client.send_within(WORK.call((2,)), MINUTE).await.unwrap();
    assert_eq!(sent.queue().map(QueueName::as_str), Some("default+fair:share"));
    assert_eq!((calls.load(Ordering::SeqCst), broker.refusals.load(Ordering::SeqCst)), (2, 0));
    assert_eq!((ready(&app, "default").await, ready(&app, "default+fair:share").await), (0, 2));
}
