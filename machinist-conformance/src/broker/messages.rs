//! Publishing: what goes in comes out, and every answer is true.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use machinist_core::{
    broker::{HeaderValue, Headers, MAX_HEADER_DEPTH, Message, PublishError, Settle, SideQueue},
    clock::Timestamp,
};

use super::{
    BrokerHarness, consume, depth, drain, expect_empty, fresh_queue, next, numbered, publish,
    publish_numbers, side_queue, to_dead, to_queue, try_publish,
};
use crate::{
    eventually,
    wait::{ANSWER_TIMEOUT, within},
};

/// A message with everything that a message can have.
fn full_message() -> Message {
    let headers = [
        ("machinist-text", HeaderValue::from("plain")),
        ("machinist-utf8", HeaderValue::from("Grüße, 世界 🦀 \" \\ \n")),
        ("machinist-empty", HeaderValue::from("")),
        ("machinist-zero", HeaderValue::Int(0)),
        ("machinist-small", HeaderValue::Int(-1)),
        ("machinist-least", HeaderValue::Int(i64::MIN)),
        ("machinist-largest", HeaderValue::Int(i64::MAX)),
        ("machinist-true", HeaderValue::Bool(true)),
        ("machinist-false", HeaderValue::Bool(false)),
        ("machinist-bytes", HeaderValue::Bytes(Bytes::from((0..=255).collect::<Vec<u8>>()))),
        ("machinist-text-like-bytes", HeaderValue::Bytes(Bytes::from_static(b"text"))),
        ("machinist-no-bytes", HeaderValue::Bytes(Bytes::new())),
        ("machinist-long", HeaderValue::from("x".repeat(20_000))),
        ("traceparent", HeaderValue::from("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")),
        ("other", HeaderValue::from("not ours")),
        ("fraction", HeaderValue::Float(-2.5e-300)),
        ("nothing", HeaderValue::Null),
        ("empty-list", HeaderValue::List(Vec::new())),
        ("empty-table", HeaderValue::Table(BTreeMap::new())),
        ("list", HeaderValue::List(vec![HeaderValue::Int(1), HeaderValue::Null, "two".into(), true.into()])),
        ("table", nested(HeaderValue::from("leaf"), MAX_HEADER_DEPTH)),
    ];
    Message {
        id: Some("task_ü:4e57a8f0".to_owned()),
        kind: Some("images.resize größer".to_owned()),
        content_type: Some("application/msgpack".to_owned()),
        // Whole seconds: AMQP knows no others.
        timestamp: Some(Timestamp::from_micros(1_763_681_834_000_000)),
        priority: Some(7),
        app_id: Some("machinist/0.1".to_owned()),
        // Not a number: an adapter that matches its publishes by this property must fail.
        correlation_id: Some("c-ü".to_owned()),
        reply_to: Some("amq.rabbitmq.reply".to_owned()),
        content_encoding: Some("utf-8".to_owned()),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned().into(), value))
            .collect::<Headers>(),
        body: Bytes::from((0..=255).collect::<Vec<u8>>()),
    }
}

/// A value inside so many lists and tables.
fn nested(leaf: HeaderValue, levels: usize) -> HeaderValue {
    (0..levels).fold(leaf, |inner, level| match level % 2 {
        0 => HeaderValue::List(vec![HeaderValue::Float(0.5), inner]),
        _ => HeaderValue::Table([("in ü".to_owned(), inner), ("beside".to_owned(), 1.into())].into()),
    })
}

/// A header that no reader would descend into is refused, and its neighbours in the batch are not.
pub async fn a_header_that_is_nested_too_deep_is_refused(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let mut deep = numbered(1);
    deep.headers.insert("deep".into(), nested(HeaderValue::Null, MAX_HEADER_DEPTH + 1));
    let batch = [numbered(0), deep, numbered(2)].map(|message| to_queue(&queue, message));
    let answers = try_publish(&*broker, batch.into()).await;
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    assert!(
        matches!(&answers[1], Err(PublishError::Rejected { reason }) if reason.contains("\"deep\"")),
        "{answers:?}"
    );
    let mut consumer = consume(&*broker, &[&queue], 3).await;
    assert_eq!(drain(&mut *consumer, 2).await, [0, 2]);
}

/// Every property, every kind of header and every byte survives; what was absent stays absent.
pub async fn a_message_comes_back_unchanged(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let bare = Message { body: Bytes::from_static(b"bare"), ..Message::default() };
    let zero = Message { priority: Some(0), timestamp: Some(Timestamp::from_micros(0)), ..bare.clone() };
    for message in [full_message(), bare, zero] {
        publish(&*broker, vec![to_queue(&queue, message.clone())]).await;
        let mut consumer = consume(&*broker, &[&queue], 1).await;
        let delivery = next(&mut *consumer).await;
        assert_eq!(delivery.message, message);
        assert_eq!(delivery.queue, queue);
        assert!(!delivery.redelivered, "nobody had it before");
        delivery.receipt.settle(Settle::Ack).await;
        consumer.stop().await;
    }
}

/// Bodies of 1 MiB and of nothing.
pub async fn a_body_of_a_mebibyte_and_an_empty_one_come_back(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let large = Bytes::from((0..1 << 20).map(|at: u32| (at % 251) as u8).collect::<Vec<u8>>());
    let bodies = [large, Bytes::new()];
    let message = |body: &Bytes| Message { body: body.clone(), ..full_message() };
    publish(&*broker, bodies.iter().map(|body| to_queue(&queue, message(body))).collect()).await;
    let mut consumer = consume(&*broker, &[&queue], 2).await;
    let first = next(&mut *consumer).await;
    let second = next(&mut *consumer).await;
    let came: HashSet<Bytes> = [first, second].into_iter().map(|delivery| delivery.message.body).collect();
    assert!(came == HashSet::from(bodies), "lengths {:?}", came.iter().map(Bytes::len).collect::<Vec<_>>());
}

/// A task sent before the first worker ever ran is kept.
pub async fn a_message_is_kept_until_somebody_consumes(harness: &dyn BrokerHarness) {
    let sender = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*sender, &queue, 3).await;
    let worker = harness.connect().await;
    let mut consumer = consume(&*worker, &[&queue], 10).await;
    assert_eq!(drain(&mut *consumer, 3).await, [0, 1, 2]);
}

/// A batch far larger than any window.
pub async fn a_batch_of_two_thousand_is_confirmed_and_delivered(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 2000).await;
    let mut consumer = consume(&*broker, &[&queue], 200).await;
    assert_eq!(drain(&mut *consumer, 2000).await, (0..2000).collect::<Vec<_>>());
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// No message, no answer, no wait.
pub async fn an_empty_batch_has_no_answers(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    assert!(try_publish(&*broker, Vec::new()).await.is_empty());
    assert!(
        within(ANSWER_TIMEOUT, "a depth", broker.depth(&[])).await.expect("no queue, no fault").is_empty()
    );
}

/// 64 tasks publish over one connection, each to a queue that only it uses and to one that they share.
pub async fn concurrent_publishers_get_their_own_answers(harness: &dyn BrokerHarness) {
    const TASKS: usize = 64;
    const EACH: usize = 10;
    let broker = harness.connect().await;
    let shared = fresh_queue();
    let publishers = (0..TASKS).map(|task| {
        let broker = Arc::clone(&broker);
        let shared = shared.clone();
        tokio::spawn(async move {
            for number in 0..EACH {
                publish(&*broker, vec![to_queue(&shared, numbered(task * EACH + number))]).await;
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.expect("every publish is confirmed");
    }
    let mut consumer = consume(&*broker, &[&shared], 100).await;
    assert_eq!(drain(&mut *consumer, TASKS * EACH).await, (0..TASKS * EACH).collect::<Vec<_>>());
}

/// Only queued messages are confirmed while a queue vanishes under 64 publishers: each publisher
/// gets its own answer, not its neighbour's.
pub async fn only_what_is_queued_is_confirmed_when_a_queue_vanishes(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let good = fresh_queue();
    let bad = fresh_queue();
    // The adapter has declared both and believes that it need not do it again.
    publish(&*broker, vec![to_queue(&good, numbered(0)), to_queue(&bad, numbered(0))]).await;
    if !harness.delete_queue(&bad).await {
        return;
    }
    let publishers = (1..=64).map(|number| {
        let broker = Arc::clone(&broker);
        let queue = if number % 3 == 0 { bad.clone() } else { good.clone() };
        tokio::spawn(async move {
            let answers = try_publish(&*broker, vec![to_queue(&queue, numbered(number))]).await;
            (number, answers.into_iter().next().expect("one answer"))
        })
    });
    let mut confirmed = [BTreeSet::from([0]), BTreeSet::new()];
    for publisher in publishers.collect::<Vec<_>>() {
        let (number, answer) = publisher.await.expect("a publish never panics");
        match answer {
            Ok(()) => drop(confirmed[usize::from(number % 3 == 0)].insert(number)),
            Err(PublishError::Unroutable { queue }) => assert_eq!(queue, bad),
            Err(other) => panic!("message {number}: {other}"),
        }
    }
    // This connection still believes that the queue is there; what it then says to a consumer is not the point.
    let reader = harness.connect().await;
    for (queue, confirmed) in [good, bad].iter().zip(confirmed) {
        let mut consumer = consume(&*reader, &[queue], 100).await;
        let came = drain(&mut *consumer, confirmed.len()).await;
        assert_eq!(came, confirmed.into_iter().collect::<Vec<_>>());
        consumer.stop().await;
        expect_empty(harness, queue).await;
    }
}

/// Dead letters are kept, unchanged, and no consumer of the queue gets them.
pub async fn dead_letters_are_kept_beside_the_queue(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let dead = full_message();
    let alive = numbered(1);
    publish(&*broker, vec![to_dead(&queue, dead.clone()), to_queue(&queue, alive.clone())]).await;
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    assert_eq!(drain(&mut *consumer, 1).await, [1]);
    consumer.stop().await;
    expect_empty(harness, &queue).await;
    assert_eq!(within(ANSWER_TIMEOUT, "the dead letters", harness.dead_letters(&queue)).await, [dead]);
}

/// Dead letters can be taken one by one: what is acknowledged is gone, everything else stays, in its order.
pub async fn dead_letters_are_taken_and_handed_back(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish(&*broker, (0..4).map(|number| to_dead(&queue, numbered(number))).collect()).await;
    let mut held = Vec::new();
    let mut consumer =
        side_queue(&*broker, SideQueue::DeadLetters(queue.clone())).await.expect("every broker has them");
    for number in 0..4 {
        let delivery = next(&mut *consumer).await;
        assert_eq!((&delivery.queue, &delivery.message), (&queue, &numbered(number)));
        if number % 2 == 0 {
            delivery.receipt.settle(Settle::Ack).await;
        } else {
            held.push(delivery);
        }
    }
    drop(held);
    consumer.stop().await;
    drop(consumer);
    let left = eventually(ANSWER_TIMEOUT, async || depth(&*broker, &queue).await.dead == Some(2));
    assert!(left.await, "found {:?}", depth(&*broker, &queue).await);
    let mut consumer =
        side_queue(&*broker, SideQueue::DeadLetters(queue.clone())).await.expect("every broker has them");
    assert_eq!(drain(&mut *consumer, 2).await, [1, 3]);
}

/// Ready messages, dead letters and consumers are counted, and looking changes nothing.
pub async fn depth_counts_and_consumes_nothing(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 3).await;
    publish(&*broker, vec![to_dead(&queue, numbered(7))]).await;
    let observer = harness.connect().await;
    for _ in 0..3 {
        let counted = eventually(ANSWER_TIMEOUT, async || {
            let depth = depth(&*observer, &queue).await;
            depth.ready == Some(3) && depth.dead == Some(1) && matches!(depth.consumers, None | Some(0))
        });
        assert!(counted.await, "found {:?}", depth(&*observer, &queue).await);
    }
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    let seen = eventually(ANSWER_TIMEOUT, async || {
        matches!(depth(&*observer, &queue).await.consumers, None | Some(1))
    });
    assert!(seen.await, "found {:?}", depth(&*observer, &queue).await);
    assert_eq!(drain(&mut *consumer, 3).await, [0, 1, 2]);
    let empty = eventually(ANSWER_TIMEOUT, async || depth(&*observer, &queue).await.ready == Some(0)).await;
    assert!(empty, "found {:?}", depth(&*observer, &queue).await);
}

/// A queue that nobody declared is an answer, in its place, and asking does not make it.
pub async fn depth_of_an_unknown_queue_is_none(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let known = fresh_queue();
    let unknown = fresh_queue();
    publish_numbers(&*broker, &known, 1).await;
    for _ in 0..2 {
        let queues = [unknown.clone(), known.clone(), unknown.clone()];
        let depths =
            within(ANSWER_TIMEOUT, "a depth", broker.depth(&queues)).await.expect("an answer for each");
        assert_eq!(depths.iter().map(|depth| depth.queue.clone()).collect::<Vec<_>>(), queues);
        let exist: Vec<bool> = depths.iter().map(|depth| depth.ready.is_some()).collect();
        assert_eq!(exist, [false, true, false]);
        assert!(depths.iter().all(|depth| depth.dead.unwrap_or(0) == 0), "{depths:?}");
    }
    // Asking about a queue that does not exist must not have broken the connection for others.
    let mut consumer = consume(&*broker, &[&known], 1).await;
    assert_eq!(drain(&mut *consumer, 1).await, [0]);
}

/// A queue at its limit says *not now* and nothing worse, says it of no neighbour, and takes the same message later.
pub async fn a_full_queue_refuses_for_now_and_takes_more_later(harness: &dyn BrokerHarness) {
    const LIMIT: u32 = 3;
    const MANY: usize = 100;
    let (queue, neighbour) = (fresh_queue(), fresh_queue());
    let Some(broker) = harness.connect_with_limit(&queue, LIMIT).await else { return };
    let mut taken = 0;
    let refusal = loop {
        match try_publish(&*broker, vec![to_queue(&queue, numbered(taken))]).await.remove(0) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < MANY, "a queue with a limit of {LIMIT} has taken {taken} messages");
    };
    assert!(matches!(refusal, PublishError::Nacked { .. }) && !refusal.is_certain(), "{refusal:?}");
    let mut answers =
        try_publish(&*broker, vec![to_queue(&neighbour, numbered(0)), to_queue(&queue, numbered(taken))])
            .await;
    assert!(matches!(answers.pop(), Some(Err(PublishError::Nacked { .. }))));
    assert!(answers.pop().is_some_and(|answer| answer.is_ok()), "a full queue is not its neighbour's fault");
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    assert_eq!(drain(&mut *consumer, taken).await, (0..taken).collect::<Vec<_>>());
    let taken_later = crate::eventually(ANSWER_TIMEOUT, async || {
        try_publish(&*broker, vec![to_queue(&queue, numbered(taken))]).await.remove(0).is_ok()
    });
    assert!(taken_later.await, "an empty queue takes no message");
    assert_eq!(drain(&mut *consumer, 1).await, [taken]);
}
