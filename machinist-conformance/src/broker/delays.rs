//! Delays: never early, and they arrive. How late is not a promise, so it is not tested.

use std::time::Duration;

use machinist_core::broker::Settle;
use tokio::time::Instant;

use super::{
    BrokerHarness, consume, delayed, drain, expect_empty, fresh_queue, next, number_of, numbered, publish,
};
use crate::{
    service::say,
    wait::{RECOVERY_TIMEOUT, within},
};

/// Zero is at once, on the same path as everything else.
pub async fn a_delay_of_nothing_is_none(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let mut consumer = consume(&*broker, &[&queue], 10).await;
    publish(&*broker, vec![delayed(&queue, numbered(0), Duration::ZERO)]).await;
    assert_eq!(drain(&mut *consumer, 1).await, [0]);
}

/// Short and long delays at once, published out of order. By the monotonic clock of this process.
pub async fn delayed_messages_are_not_early_and_arrive(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let delays = [2000, 1, 700, 0, 50, 333, 16, 1100, 3].map(Duration::from_millis);
    let mut consumer = consume(&*broker, &[&queue], 20).await;
    let published = Instant::now();
    let batch = delays.iter().enumerate().map(|(number, delay)| delayed(&queue, numbered(number), *delay));
    publish(&*broker, batch.collect()).await;
    let mut came = Vec::new();
    for _ in delays {
        let delivery =
            within(RECOVERY_TIMEOUT, "a delayed message", consumer.next()).await.expect("it goes on");
        let after = published.elapsed();
        let number = number_of(&delivery.message);
        assert!(after >= delays[number], "{:?} early: it came after {after:?}", delays[number]);
        assert!(!delivery.redelivered, "a delay is not a delivery");
        assert_eq!(delivery.message, numbered(number), "the ride leaves nothing in the message");
        came.push(number);
        delivery.receipt.settle(Settle::Ack).await;
    }
    came.sort_unstable();
    assert_eq!(came, (0..delays.len()).collect::<Vec<_>>(), "each once");
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// The longest delay is kept, as far as a test can wait, and a longer one is as good as the longest: neither is refused,
/// and neither comes out at once. The log says how long it is.
pub async fn the_longest_delay_is_told_and_kept(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let longest = broker.capabilities().max_delay;
    let told = longest.map_or_else(|| "of any length".to_owned(), |longest| format!("up to {longest:?}"));
    say(&format!("{}: keeps delays {told}", broker.location()));
    let longest = longest.unwrap_or(Duration::MAX);
    assert!(longest >= Duration::from_secs(1), "a shorter one costs too many publishes");
    let mut consumer = consume(&*broker, &[&queue], 20).await;
    let published = Instant::now();
    let delays = [longest, longest.saturating_sub(Duration::from_millis(1)), Duration::MAX];
    let batch = delays.iter().enumerate().map(|(number, delay)| delayed(&queue, numbered(number), *delay));
    publish(&*broker, batch.collect()).await;
    let kept = longest.min(Duration::from_secs(2)).saturating_sub(Duration::from_millis(1));
    if let Ok(early) = tokio::time::timeout(kept, consumer.next()).await {
        panic!("{early:?} came after {:?}", published.elapsed());
    }
}

/// A message due in an hour does not hold up one that is due now.
pub async fn delayed_messages_do_not_wait_for_each_other(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let mut consumer = consume(&*broker, &[&queue], 20).await;
    let hour = Duration::from_secs(3600);
    publish(&*broker, vec![delayed(&queue, numbered(1), hour)]).await;
    publish(&*broker, vec![delayed(&queue, numbered(2), Duration::from_millis(100))]).await;
    let delivery = next(&mut *consumer).await;
    assert_eq!(number_of(&delivery.message), 2);
    delivery.receipt.settle(Settle::Ack).await;
}

/// Delayed messages wait in the broker, not in a connection.
pub async fn a_delayed_message_survives_an_interruption(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let mut consumer = consume(&*broker, &[&queue], 20).await;
    let published = Instant::now();
    let delay = Duration::from_millis(1500);
    publish(&*broker, (0..5).map(|number| delayed(&queue, numbered(number), delay)).collect()).await;
    if !harness.interrupt().await {
        return;
    }
    let mut came = std::collections::BTreeSet::new();
    while came.len() < 5 {
        let delivery =
            within(RECOVERY_TIMEOUT, "a delayed message", consumer.next()).await.expect("it goes on");
        assert!(published.elapsed() >= delay, "early after an interruption");
        came.insert(number_of(&delivery.message));
        delivery.receipt.settle(Settle::Ack).await;
    }
    assert_eq!(came.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}
