//! Connections: they end, and what was confirmed does not end with them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use machinist_core::{
    broker::{Broker, Consume, Consumer, Delivery, Settle, Settled},
    id::QueueName,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    BrokerHarness, consume, depth, drain, expect_empty, fresh_queue, next, number_of, numbered, publish,
    publish_numbers, to_queue, try_publish,
};
use crate::{
    eventually,
    wait::{ANSWER_TIMEOUT, RECOVERY_TIMEOUT, within},
};

async fn next_after_interruption(consumer: &mut dyn Consumer) -> Delivery {
    within(RECOVERY_TIMEOUT, "a delivery after an interruption", consumer.next())
        .await
        .expect("a consumer heals itself")
}

/// Publishes until it is confirmed, as a caller would: the answer may be *unavailable* or *unknown* for a while.
async fn publish_stubbornly(broker: &dyn Broker, queue: &QueueName, number: usize) {
    let end = Instant::now() + RECOVERY_TIMEOUT;
    loop {
        match try_publish(broker, vec![to_queue(queue, numbered(number))]).await.remove(0) {
            Ok(()) => return,
            Err(error) if error.is_certain() => {
                panic!("a lost connection is not the message's fault: {error}")
            }
            Err(error) => assert!(Instant::now() < end, "not confirmed after an interruption: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Cut in the middle of consuming, a consumer goes on, and everything comes, at least once.
pub async fn a_consumer_survives_an_interruption(harness: &dyn BrokerHarness) {
    const COUNT: usize = 300;
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, COUNT).await;
    let mut consumer = consume(&*broker, &[&queue], 20).await;
    let mut came = BTreeSet::new();
    let mut interrupted = 0;
    while came.len() < COUNT {
        if came.len() >= 100 * (interrupted + 1) {
            interrupted += 1;
            // One is unsettled and several are on their way while the connection goes.
            let held = next_after_interruption(&mut *consumer).await;
            if !harness.interrupt().await {
                return;
            }
            drop(held);
        }
        let delivery = next_after_interruption(&mut *consumer).await;
        let number = number_of(&delivery.message);
        match delivery.receipt.settle(Settle::Ack).await {
            Settled::Done => drop(came.insert(number)),
            // It comes again; were it lost, the loop would wait for it in vain.
            Settled::Lost => {}
        }
    }
    // An ack that was on its way may have been lost, so stragglers are allowed here, strangers are not.
    let empty = eventually(ANSWER_TIMEOUT, async || {
        while let Ok(Some(delivery)) = timeout(ANSWER_TIMEOUT / 50, consumer.next()).await {
            assert!(number_of(&delivery.message) < COUNT && delivery.redelivered, "{delivery:?}");
            delivery.receipt.settle(Settle::Ack).await;
        }
        depth(&*broker, &queue).await.ready == Some(0)
    });
    assert!(empty.await, "{queue} never became empty");
}

/// A broker whose connection was cut publishes again, without help.
pub async fn publishing_works_after_an_interruption(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 1).await;
    if !harness.interrupt().await {
        return;
    }
    publish_stubbornly(&*broker, &queue, 1).await;
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    let mut came = BTreeSet::new();
    while came.len() < 2 {
        let delivery = next(&mut *consumer).await;
        came.insert(number_of(&delivery.message));
        delivery.receipt.settle(Settle::Ack).await;
    }
}

/// `Ok` is `Ok` also when connections are cut between the frames: whatever was confirmed comes.
pub async fn publishing_through_interruptions_loses_nothing(harness: &dyn BrokerHarness) {
    const TASKS: usize = 8;
    const EACH: usize = 50;
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 0).await;
    let publishers = (0..TASKS).map(|task| {
        let broker = Arc::clone(&broker);
        let queue = queue.clone();
        tokio::spawn(async move {
            for number in (0..EACH).map(|number| task * EACH + number) {
                publish_stubbornly(&*broker, &queue, number).await;
            }
        })
    });
    let publishers: Vec<_> = publishers.collect();
    for _ in 0..3 {
        sleep(ANSWER_TIMEOUT / 100).await;
        if !harness.interrupt().await {
            break;
        }
    }
    for publisher in publishers {
        publisher.await.expect("every publish is confirmed in the end");
    }
    let reader = harness.connect().await;
    let mut consumer = consume(&*reader, &[&queue], 50).await;
    let mut came = BTreeSet::new();
    while came.len() < TASKS * EACH {
        let delivery = next(&mut *consumer).await;
        came.insert(number_of(&delivery.message));
        delivery.receipt.settle(Settle::Ack).await;
    }
}

/// An old receipt says that it is lost, and cannot settle what somebody else holds by now.
pub async fn settling_after_an_interruption_is_lost_and_harmless(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 1).await;
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    let old = next(&mut *consumer).await;
    if !harness.interrupt().await {
        return;
    }
    let new = next_after_interruption(&mut *consumer).await;
    assert_eq!(new.message, old.message, "what was unsettled comes again");
    assert!(new.redelivered);
    assert_eq!(old.receipt.settle(Settle::Ack).await, Settled::Lost);
    assert_eq!(new.receipt.settle(Settle::Requeue).await, Settled::Done);
    let again = next(&mut *consumer).await;
    assert_eq!(again.message, numbered(0), "the old ack settled nothing");
    assert_eq!(again.receipt.settle(Settle::Ack).await, Settled::Done);
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// Waiters end, and a second close is nothing.
pub async fn close_ends_consumers_and_may_be_repeated(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let mut idle = consume(&*broker, &[&queue], 1).await;
    let mut later = consume(&*broker, &[&queue], 1).await;
    let waiting = tokio::spawn(async move { idle.next().await.is_none() });
    within(ANSWER_TIMEOUT, "close", broker.close()).await;
    assert!(within(ANSWER_TIMEOUT, "the waiter's end", waiting).await.expect("no panic"), "a waiter ends");
    assert!(within(ANSWER_TIMEOUT, "the end", later.next()).await.is_none(), "a later call ends too");
    within(ANSWER_TIMEOUT, "a second close", broker.close()).await;
    within(ANSWER_TIMEOUT, "stop", later.stop()).await;
}

/// A health is good while the subscription stands, again after an interruption, and not after the end. It counts the
/// interruption.
pub async fn a_pulse_tells_whether_a_subscription_stands(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let consumer = consume(&*broker, &[&queue], 1).await;
    let health = consumer.health();
    assert_eq!(within(ANSWER_TIMEOUT, "a health", health.check()).await, Ok(()));
    let disconnects = health.disconnects();
    assert_eq!(health.disconnects(), disconnects, "nothing was lost");
    if harness.interrupt().await {
        assert!(
            eventually(ANSWER_TIMEOUT, async || health.disconnects() > disconnects).await,
            "its connection was lost"
        );
    }
    let again = eventually(ANSWER_TIMEOUT, async || health.check().await.is_ok());
    assert!(again.await, "it stands again: {:?}", health.check().await);
    within(ANSWER_TIMEOUT, "close", broker.close()).await;
    assert!(within(ANSWER_TIMEOUT, "a health", health.check()).await.is_err(), "it has ended");
}

/// Deliveries that a process held when it closed go to another consumer.
pub async fn close_hands_back_what_is_unsettled(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let other = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 3).await;
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    let held = next(&mut *consumer).await;
    within(ANSWER_TIMEOUT, "close", broker.close()).await;
    let mut second = consume(&*other, &[&queue], 10).await;
    assert_eq!(drain(&mut *second, 3).await, [0, 1, 2]);
    assert_eq!(held.receipt.settle(Settle::Ack).await, Settled::Lost);
}

/// A closed broker answers, and does not say `Ok`.
pub async fn nothing_is_published_after_close(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 1).await;
    within(ANSWER_TIMEOUT, "close", broker.close()).await;
    assert!(try_publish(&*broker, vec![to_queue(&queue, numbered(1))]).await[0].is_err());
    let what = Consume { queues: vec![queue.clone()], prefetch: 1 };
    assert!(within(ANSWER_TIMEOUT, "a refusal", broker.consume(what)).await.is_err());
}

/// The publisher's connection ends, its messages do not.
pub async fn what_was_confirmed_outlives_the_connection(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish(&*broker, (0..20).map(|number| to_queue(&queue, numbered(number))).collect()).await;
    within(ANSWER_TIMEOUT, "close", broker.close()).await;
    drop(broker);
    let fresh = harness.connect().await;
    let mut consumer = consume(&*fresh, &[&queue], 10).await;
    assert_eq!(drain(&mut *consumer, 20).await, (0..20).collect::<Vec<_>>());
}
