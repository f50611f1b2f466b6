//! Consuming: every message is somebody's until it is settled.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use machinist_core::broker::{Consumer, Settle, Settled};
use tokio::time::{sleep, timeout};

use super::{
    BrokerHarness, consume, drain, expect_empty, fresh_queue, next, number_of, numbered, publish,
    publish_numbers, to_queue,
};
use crate::wait::{ANSWER_TIMEOUT, within};

/// Time during which nothing must happen. A shorter time may miss a fault and never invents one.
const SILENCE: Duration = Duration::from_millis(300);

/// Acked is done: no later consumer gets it.
pub async fn what_was_acked_does_not_come_again(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 1).await;
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    let delivery = next(&mut *consumer).await;
    assert_eq!(delivery.receipt.settle(Settle::Ack).await, Settled::Done);
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// A receipt dropped unsettled hands its message back, at the latest when the consumer stops, and the next to
/// get it is told that somebody may have begun.
pub async fn a_receipt_that_is_dropped_brings_the_message_again(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 1).await;
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    drop(next(&mut *consumer).await);
    consumer.stop().await;
    drop(consumer);
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    let again = next(&mut *consumer).await;
    assert_eq!(number_of(&again.message), 0);
    assert!(again.redelivered, "it was handed out before");
    assert_eq!(again.receipt.settle(Settle::Ack).await, Settled::Done);
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// A message that is handed back comes again at once, to any consumer, flagged.
pub async fn a_requeued_message_comes_again(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 1).await;
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    let first = next(&mut *consumer).await;
    assert!(!first.redelivered);
    let message = first.message.clone();
    assert_eq!(first.receipt.settle(Settle::Requeue).await, Settled::Done);
    for _ in 0..3 {
        let again = next(&mut *consumer).await;
        assert_eq!(again.message, message, "unchanged however often it comes");
        assert!(again.redelivered);
        assert_eq!(again.receipt.settle(Settle::Requeue).await, Settled::Done);
    }
    assert_eq!(drain(&mut *consumer, 1).await, [0]);
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// A message goes to one consumer only; the other takes what the first has no room for.
pub async fn two_consumers_share_a_queue(harness: &dyn BrokerHarness) {
    let one = harness.connect().await;
    let two = harness.connect().await;
    let queue = fresh_queue();
    let mut first = consume(&*one, &[&queue], 1).await;
    let mut second = consume(&*two, &[&queue], 1).await;
    publish_numbers(&*one, &queue, 2).await;
    // Each holds its one message, so each can only have got a different one.
    let a = next(&mut *first).await;
    let b = next(&mut *second).await;
    assert_eq!(BTreeSet::from([number_of(&a.message), number_of(&b.message)]), BTreeSet::from([0, 1]));
    a.receipt.settle(Settle::Ack).await;
    b.receipt.settle(Settle::Ack).await;

    let taken = Arc::new(AtomicUsize::new(0));
    let receive = |mut consumer: Box<dyn Consumer>| {
        let taken = Arc::clone(&taken);
        async move {
            let mut numbers = Vec::new();
            while taken.load(Ordering::Relaxed) < 200 {
                let Ok(delivery) = timeout(SILENCE, consumer.next()).await else { continue };
                let delivery = delivery.expect("the subscription goes on");
                numbers.push(number_of(&delivery.message));
                taken.fetch_add(1, Ordering::Relaxed);
                delivery.receipt.settle(Settle::Ack).await;
            }
            consumer.stop().await;
            numbers
        }
    };
    publish_numbers(&*one, &queue, 200).await;
    let both = async { tokio::join!(tokio::spawn(receive(first)), tokio::spawn(receive(second))) };
    let (a, b) = within(3 * ANSWER_TIMEOUT, "200 messages", both).await;
    let mut all = [a.expect("no panic"), b.expect("no panic")].concat();
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>(), "each message once");
}

/// One subscription serves several queues and says which one a delivery came from.
pub async fn one_consumer_serves_several_queues(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queues = [fresh_queue(), fresh_queue(), fresh_queue()];
    let mut consumer = consume(&*broker, &queues.each_ref(), 10).await;
    for _ in 0..2 {
        let batch = queues.iter().enumerate().map(|(number, queue)| to_queue(queue, numbered(number)));
        publish(&*broker, batch.collect()).await;
    }
    let mut came = Vec::new();
    for _ in 0..6 {
        let delivery = next(&mut *consumer).await;
        assert_eq!(delivery.queue, queues[number_of(&delivery.message)]);
        came.push(number_of(&delivery.message));
        delivery.receipt.settle(Settle::Ack).await;
    }
    came.sort_unstable();
    assert_eq!(came, [0, 0, 1, 1, 2, 2]);
}

/// A paused consumer takes nothing: what it was sent and has not returned goes to others. Credit lets it take as many as it
/// says, whatever was unsettled before the pause; more credit adds to it.
pub async fn credit_bounds_what_a_consumer_takes(harness: &dyn BrokerHarness) {
    let (one, two) = (harness.connect().await, harness.connect().await);
    let queue = fresh_queue();
    publish_numbers(&*one, &queue, 6).await;
    let mut consumer = consume(&*one, &[&queue], 4).await;
    let held = next(&mut *consumer).await;
    within(ANSWER_TIMEOUT, "a pause", consumer.pause()).await;
    assert!(timeout(SILENCE, consumer.next()).await.is_err(), "it has no credit");
    let mut other = consume(&*two, &[&queue], 10).await;
    let mut taken = Vec::new();
    for _ in 0..5 {
        taken.push(next(&mut *other).await);
    }
    // Settled after the pause, it gives no credit.
    assert_eq!(held.receipt.settle(Settle::Ack).await, Settled::Done);
    other.stop().await;
    drop(taken);
    assert!(timeout(SILENCE, consumer.next()).await.is_err(), "it has no credit");

    within(ANSWER_TIMEOUT, "credit", consumer.add_credit(1)).await;
    let first = next(&mut *consumer).await;
    assert!(timeout(SILENCE, consumer.next()).await.is_err(), "its credit is used");
    within(ANSWER_TIMEOUT, "credit", consumer.add_credit(2)).await;
    let (second, third) = (next(&mut *consumer).await, next(&mut *consumer).await);
    assert!(timeout(SILENCE, consumer.next()).await.is_err(), "its credit is used");
    for delivery in [first, second, third] {
        assert_eq!(delivery.receipt.settle(Settle::Ack).await, Settled::Done);
    }
    drain(&mut *consumer, 2).await;
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// No more than `prefetch` messages of a queue are unsettled here; each settlement makes room for one.
pub async fn prefetch_bounds_what_is_unsettled(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 5).await;
    let mut consumer = consume(&*broker, &[&queue], 2).await;
    let mut held = vec![next(&mut *consumer).await, next(&mut *consumer).await];
    for _ in 0..3 {
        assert!(timeout(SILENCE, consumer.next()).await.is_err(), "a third unsettled delivery came");
        assert_eq!(held.remove(0).receipt.settle(Settle::Ack).await, Settled::Done);
        held.push(next(&mut *consumer).await);
    }
    for delivery in held {
        assert_eq!(delivery.receipt.settle(Settle::Ack).await, Settled::Done);
    }
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// A consumer at its prefetch continues when another task settles, and a consumer of an empty queue when
/// a message is handed back.
pub async fn a_settlement_wakes_a_waiting_next(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 2).await;
    let mut full = consume(&*broker, &[&queue], 1).await;
    let first = next(&mut *full).await;
    let waiting = tokio::spawn(async move { (next(&mut *full).await, full) });
    sleep(SILENCE).await;
    assert_eq!(first.receipt.settle(Settle::Ack).await, Settled::Done);
    let (second, mut full) = waiting.await.expect("the settlement woke it");

    let other = harness.connect().await;
    let mut empty = consume(&*other, &[&queue], 1).await;
    let waiting = tokio::spawn(async move { (next(&mut *empty).await, empty) });
    sleep(SILENCE).await;
    full.stop().await;
    assert_eq!(second.receipt.settle(Settle::Requeue).await, Settled::Done);
    let (again, mut empty) = waiting.await.expect("the message woke it");
    assert_eq!(again.message, second.message);
    again.receipt.settle(Settle::Ack).await;
    empty.stop().await;
    expect_empty(harness, &queue).await;
}

/// A loop that waits for several things drops `next()` all the time. Nothing may be in the future that is not in
/// the consumer.
pub async fn a_dropped_next_loses_nothing(harness: &dyn BrokerHarness) {
    const COUNT: usize = 200;
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let mut consumer = consume(&*broker, &[&queue], 20).await;
    let publisher = tokio::spawn({
        let broker = Arc::clone(&broker);
        let queue = queue.clone();
        async move {
            for number in 0..COUNT {
                publish(&*broker, vec![to_queue(&queue, numbered(number))]).await;
            }
        }
    });
    let mut came = Vec::new();
    let receive = async {
        let mut patience = 0;
        while came.len() < COUNT {
            patience = (patience + 1) % 4;
            // Between "polled once" and a few hundred microseconds.
            let next = timeout(Duration::from_micros(patience * 150), consumer.next());
            if let Ok(delivery) = next.await {
                let delivery = delivery.expect("the subscription goes on");
                came.push(number_of(&delivery.message));
                delivery.receipt.settle(Settle::Ack).await;
            }
        }
    };
    within(3 * ANSWER_TIMEOUT, "200 messages", receive).await;
    publisher.await.expect("every publish is confirmed");
    came.sort_unstable();
    assert_eq!(came, (0..COUNT).collect::<Vec<_>>());
}

/// After `stop`, what was not returned is somebody else's; what was returned is still ours to settle.
pub async fn stop_hands_back_what_was_not_returned(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 10).await;
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut *consumer).await);
    }
    within(ANSWER_TIMEOUT, "stop", consumer.stop()).await;
    assert!(within(ANSWER_TIMEOUT, "the end", consumer.next()).await.is_none(), "a stopped consumer ends");
    within(ANSWER_TIMEOUT, "a second stop", consumer.stop()).await;

    let other = harness.connect().await;
    let mut second = consume(&*other, &[&queue], 10).await;
    let rest = drain(&mut *second, 7).await;
    let ours: Vec<usize> = held.iter().map(|delivery| number_of(&delivery.message)).collect();
    assert!(rest.iter().all(|number| !ours.contains(number)), "{ours:?} are held, and {rest:?} came");
    for delivery in held {
        assert_eq!(delivery.receipt.settle(Settle::Ack).await, Settled::Done, "still ours after stop");
    }
    second.stop().await;
    expect_empty(harness, &queue).await;
}

/// Without a `stop` it is the same, only later.
pub async fn a_dropped_consumer_loses_nothing(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 10).await;
    let mut consumer = consume(&*broker, &[&queue], 5).await;
    drop(next(&mut *consumer).await);
    drop(consumer);
    let mut second = consume(&*broker, &[&queue], 10).await;
    assert_eq!(drain(&mut *second, 10).await, (0..10).collect::<Vec<_>>());
}
