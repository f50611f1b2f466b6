//! Looking: a look spends no message and moves none.

use std::time::Duration;

use machinist_core::{
    broker::{Broker, PeekedMessage, Settle},
    id::QueueName,
};

use super::{
    BrokerHarness, consume, delayed, depth, fresh_queue, next, number_of, numbered, publish, publish_numbers,
};
use crate::{
    eventually,
    service::say,
    wait::{ANSWER_TIMEOUT, within},
};

/// Number of looks: far from every limit of a broker, and more than a look could lose a message in by chance.
const LOOKS: usize = 30;

async fn peek(broker: &dyn Broker, queue: &QueueName, limit: u16) -> Option<Vec<PeekedMessage>> {
    within(ANSWER_TIMEOUT, "a look", broker.peek(queue, limit)).await.expect("the broker lets us look")
}

fn numbers(peeked: &[PeekedMessage]) -> Vec<usize> {
    peeked.iter().map(|peeked| number_of(&peeked.message)).collect()
}

/// Many looks bury nothing, and the order before is the order after.
pub async fn many_looks_leave_every_message_in_its_place(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let Some(nothing) = peek(&*broker, &queue, 10).await else {
        return say(&format!("{}: messages cannot be looked at", broker.location()));
    };
    assert!(nothing.is_empty(), "a queue that does not exist is empty");
    publish_numbers(&*broker, &queue, 8).await;
    // Looks of several lengths: a short one must not put what it has seen behind what a long one has handed back.
    for limit in [5, 8, 2].into_iter().cycle().take(LOOKS) {
        let peeked = peek(&*broker, &queue, limit).await.expect("it could look before");
        let expected: Vec<usize> = (0..usize::from(limit)).collect();
        assert_eq!(numbers(&peeked), expected, "in the order of delivery, and no more than was asked for");
    }
    let left = eventually(ANSWER_TIMEOUT, async || depth(&*broker, &queue).await.ready == Some(8)).await;
    assert!(left, "all of them wait again");
    assert_eq!(depth(&*broker, &queue).await.dead.unwrap_or(0), 0, "none is buried");
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    for number in 0..8 {
        let delivery = next(&mut *consumer).await;
        assert_eq!(number_of(&delivery.message), number, "they are delivered in the order of before");
        delivery.receipt.settle(Settle::Ack).await;
    }
}

/// A message that a consumer holds, or that waits for its time, is not looked at; counts of them are true where they are
/// told.
pub async fn a_look_sees_only_what_waits(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    publish_numbers(&*broker, &queue, 2).await;
    publish(&*broker, vec![delayed(&queue, numbered(9), Duration::from_secs(3600))]).await;
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    let held = next(&mut *consumer).await;
    if let Some(peeked) = peek(&*broker, &queue, 10).await {
        assert_eq!(numbers(&peeked), [1 - number_of(&held.message)]);
    }
    let told = within(ANSWER_TIMEOUT, "counts", broker.held(std::slice::from_ref(&queue))).await;
    let told = told.expect("the broker tells what it knows");
    assert_eq!(told.len(), 1, "one answer for each queue");
    // What a broker does not count at once, it does not tell.
    assert!(told[0].delayed.is_none_or(|count| count == 1), "{told:?}");
    assert!(told[0].unacked.is_none_or(|count| count <= 1), "{told:?}");
    held.receipt.settle(Settle::Ack).await;
}
