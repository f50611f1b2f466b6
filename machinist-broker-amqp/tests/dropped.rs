//! Messages that the broker drops because of arguments or policies of a queue: the end of their tasks says why.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::{collections::HashMap, sync::Arc, time::Duration};

use lapin::types::AMQPValue;
use machinist_broker_amqp::{AmqpOptions, ExistingQueue};
use machinist_conformance::eventually;
use machinist_core::{
    App, DeadFilter, TaskDef,
    id::QueueName,
    record::{FailureKind, TaskState},
};
use machinist_memory::MemoryBackend;
use support::{Harness, Raw, in_namespace};

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of tasks that are sent.
const SENT: usize = 3;
const IDLE: TaskDef<(), ()> = TaskDef::new("idle");

/// Sends tasks to a queue with this argument, and waits until the broker has dropped all of them but `kept`.
async fn end_as_dropped(harness: &Harness, argument: (&str, AMQPValue), kept: usize, why: &str) {
    let queue = QueueName::parse("dropping").unwrap();
    let name = harness.on_broker(&queue);
    let text = |text: &str| AMQPValue::LongString(text.into());
    let raw = Raw::connect(&harness.url).await;
    let dead = format!("{}.dead", harness.namespace);
    let arguments = [
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text(&dead)),
        ("x-dead-letter-routing-key", text(&name)),
        argument,
    ];
    raw.declare(&name, &arguments).await;
    let existing_queues = HashMap::from([(queue.clone(), ExistingQueue::new(name))]);
    let broker = Arc::new(harness.broker(AmqpOptions { existing_queues, ..harness.options() }).await);
    let backend = Arc::new(MemoryBackend::new());
    let app = App::builder(broker, backend).allow_unsigned().build().await.unwrap();
    let client = app.client();
    let mut sent = Vec::new();
    for _ in 0..SENT {
        sent.push(client.send(IDLE.call(()).queue("dropping")).await.unwrap());
    }
    let mut dropped = 0;
    let all = eventually(STEP_TIMEOUT, async || {
        dropped += client.index_dead_letters(&queue).await.unwrap();
        dropped == SENT - kept
    });
    assert!(all.await, "{dropped} of {SENT} were dropped");
    let letters = client.dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap();
    assert!(letters.iter().all(|letter| letter.error.message().contains(why)), "{letters:?}");
    let record = sent[0].record().await.unwrap();
    assert_eq!((record.state, record.kind), (TaskState::Failure, Some(FailureKind::Lost)));
    assert!(record.error.is_some_and(|error| error.message().contains(why)), "its end says why");
    app.broker().close().await;
}

#[tokio::test]
async fn a_task_that_a_full_queue_dropped_ends_with_that_reason() {
    in_namespace(async |harness| {
        let limit = ("x-max-length", AMQPValue::LongLongInt(1));
        end_as_dropped(harness, limit, 1, "max-length").await;
    })
    .await;
}

#[tokio::test]
async fn a_task_whose_time_in_the_queue_was_over_ends_with_that_reason() {
    in_namespace(async |harness| {
        let ttl = ("x-message-ttl", AMQPValue::LongLongInt(1));
        end_as_dropped(harness, ttl, 0, "message-ttl").await;
    })
    .await;
}
