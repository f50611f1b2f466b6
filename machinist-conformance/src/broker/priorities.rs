//! Priorities: a broker that has them delivers the more urgent message first, wherever that message was before. A broker
//! that has none says so, and keeps the number.

use std::time::Duration;

use machinist_core::broker::{Broker, Consumer, Message, Settle, SideQueue};

use super::{
    BrokerHarness, consume, delayed, depth, drain, expect_empty, fresh_queue, next, number_of, numbered,
    publish, side_queue, to_dead, to_queue,
};
use crate::{eventually, service::say, wait::ANSWER_TIMEOUT};

/// Returns `true` if the broker honours priorities, and says it if nothing is tested because it does not.
async fn has_priorities(harness: &dyn BrokerHarness, broker: &dyn Broker) -> bool {
    let honoured = harness.orders_by_priority(broker).await;
    if !honoured {
        say(&format!("{}: has no priorities, so their order is not tested", broker.location()));
    }
    honoured
}

/// A message whose number is its priority.
fn of_priority(priority: u8) -> Message {
    Message { priority: Some(priority), ..numbered(usize::from(priority)) }
}

/// Takes so many messages, and returns their numbers in the order in which they came.
async fn in_order(consumer: &mut dyn Consumer, count: usize) -> Vec<usize> {
    let mut came = Vec::with_capacity(count);
    while came.len() < count {
        let delivery = next(consumer).await;
        came.push(number_of(&delivery.message));
        delivery.receipt.settle(Settle::Ack).await;
    }
    came
}

/// More urgent messages overtake waiting ones if the broker honours priorities.
pub async fn larger_priorities_come_sooner(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    if !has_priorities(harness, &*broker).await {
        return;
    }
    publish(&*broker, [0, 9, 5].into_iter().map(|p| to_queue(&queue, of_priority(p))).collect()).await;
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    let came = in_order(&mut *consumer, 3).await;
    // A broker may know fewer levels than we do: the extremes tell.
    let place = |number: usize| came.iter().position(|n| *n == number);
    assert!(place(9) < place(0), "came in the order {came:?}");
}

/// A message that comes due overtakes less urgent ones that wait, as if it had been published then.
pub async fn a_delayed_message_keeps_its_priority(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let (queue, other) = (fresh_queue(), fresh_queue());
    if !has_priorities(harness, &*broker).await {
        return;
    }
    publish(&*broker, (0..3).map(|_| to_queue(&queue, of_priority(0))).collect()).await;
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    let mut later = consume(&*broker, &[&other], 1).await;
    let held = next(&mut *consumer).await;
    // What is due later has been delivered: then what was due before waits for its consumer, which is at its prefetch.
    publish(&*broker, vec![delayed(&queue, of_priority(9), Duration::from_millis(50))]).await;
    publish(&*broker, vec![delayed(&other, numbered(1), Duration::from_millis(150))]).await;
    assert_eq!(drain(&mut *later, 1).await, [1]);
    let is_due = eventually(ANSWER_TIMEOUT, async || depth(&*broker, &queue).await.ready == Some(3)).await;
    assert!(is_due, "found {:?}", depth(&*broker, &queue).await);
    held.receipt.settle(Settle::Ack).await;
    let first = next(&mut *consumer).await;
    assert_eq!(first.message, of_priority(9), "two messages without priority wait");
    first.receipt.settle(Settle::Ack).await;
    assert_eq!(drain(&mut *consumer, 2).await, [0, 0]);
}

/// A message that comes back is as urgent as before: it goes before less urgent ones that wait, and not before more urgent
/// ones that have come meanwhile, unless the broker delivers returned ones first.
pub async fn a_message_that_is_handed_back_keeps_its_priority(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    if !has_priorities(harness, &*broker).await {
        return;
    }
    publish(&*broker, [0, 9, 0].into_iter().map(|p| to_queue(&queue, of_priority(p))).collect()).await;
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    for returns in 0..3 {
        let urgent = next(&mut *consumer).await;
        assert_eq!(urgent.message, of_priority(9), "it was handed back {returns} times");
        assert!(urgent.redelivered || returns == 0);
        urgent.receipt.settle(Settle::Requeue).await;
    }
    let dropped = next(&mut *consumer).await;
    assert_eq!(dropped.message, of_priority(9));
    drop(dropped);
    consumer.stop().await;
    let is_back = eventually(ANSWER_TIMEOUT, async || depth(&*broker, &queue).await.ready == Some(3)).await;
    assert!(is_back, "found {:?}", depth(&*broker, &queue).await);
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    let urgent = next(&mut *consumer).await;
    assert_eq!(urgent.message, of_priority(9), "its receipt was dropped");
    urgent.receipt.settle(Settle::Ack).await;

    let plain = next(&mut *consumer).await;
    assert_eq!(plain.message, of_priority(0));
    publish(&*broker, vec![to_queue(&queue, of_priority(9))]).await;
    plain.receipt.settle(Settle::Requeue).await;
    let order = if harness.delivers_returned_first() { [0, 9, 0] } else { [9, 0, 0] };
    assert_eq!(in_order(&mut *consumer, 3).await, order, "the urgent one came while a plain one was held");
    consumer.stop().await;
    expect_empty(harness, &queue).await;
}

/// The number stays on its message over delays, returns and among the dead letters, whatever the broker makes of it.
pub async fn a_priority_stays_on_its_message(harness: &dyn BrokerHarness) {
    let broker = harness.connect().await;
    let queue = fresh_queue();
    let all = [None, Some(0), Some(4), Some(9)];
    let of = |priority| Message { priority, ..numbered(0) };
    let mut consumer = consume(&*broker, &[&queue], 1).await;
    for priority in all {
        publish(&*broker, vec![delayed(&queue, of(priority), Duration::from_millis(20))]).await;
        let first = next(&mut *consumer).await;
        assert_eq!(first.message, of(priority), "after a delay");
        first.receipt.settle(Settle::Requeue).await;
        let again = next(&mut *consumer).await;
        assert_eq!(again.message, of(priority), "after a return");
        again.receipt.settle(Settle::Ack).await;
    }
    publish(&*broker, all.into_iter().map(|priority| to_dead(&queue, of(priority))).collect()).await;
    let mut dead =
        side_queue(&*broker, SideQueue::DeadLetters(queue.clone())).await.expect("every broker has them");
    let mut found = Vec::new();
    for _ in all {
        let delivery = next(&mut *dead).await;
        found.push(delivery.message.priority);
        delivery.receipt.settle(Settle::Ack).await;
    }
    // A broker may order them by it.
    found.sort_unstable();
    assert_eq!(found, all);
}
