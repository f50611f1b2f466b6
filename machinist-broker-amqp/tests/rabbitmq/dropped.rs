//! Messages that the broker drops because of arguments or policies of a queue: they go back to it, and no task ends.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::support::{Harness, Raw, in_namespace};
use lapin::types::AMQPValue;
use machinist_broker_amqp::{AmqpOptions, ExistingQueue};
use machinist_conformance::eventually;
use machinist_core::{App, DeadFilter, TaskDef, id::QueueName, record::TaskState};
use machinist_memory::MemoryBackend;

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(600);
/// Number of tasks that are sent.
const SENT: usize = 3;
const IDLE: TaskDef<(), ()> = TaskDef::new("idle");

/// Sends tasks to a queue with this argument, and waits until the broker has dropped all of them but `kept`.
async fn are_dropped_and_return(harness: &Harness, argument: (&str, AMQPValue), kept: usize) {
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
    assert!(client.dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap().is_empty());
    assert_eq!(sent[0].state().await.unwrap(), TaskState::Pending, "nothing says that it cannot run");
    app.broker().close().await;
}

#[tokio::test]
async fn a_task_that_a_full_queue_dropped_goes_back_to_it() {
    in_namespace(async |harness| {
        let limit = ("x-max-length", AMQPValue::LongLongInt(1));
        are_dropped_and_return(harness, limit, 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_task_whose_time_in_the_queue_was_over_goes_back_to_it() {
    in_namespace(async |harness| {
        let ttl = ("x-message-ttl", AMQPValue::LongLongInt(1));
        are_dropped_and_return(harness, ttl, 0).await;
    })
    .await;
}
