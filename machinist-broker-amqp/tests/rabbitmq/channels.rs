//! Channels that the broker closes: a question for something that is missing costs nothing that lasts.

use std::{collections::HashMap, time::Duration};

use crate::support::{Raw, in_namespace};
use machinist_broker_amqp::{AmqpOptions, ExistingQueue};
use machinist_conformance::within;
use machinist_core::{
    broker::{Broker, Consume, Message, Publish, Target},
    id::QueueName,
};

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

fn queue(text: &str) -> QueueName {
    QueueName::parse(text).unwrap()
}

fn to(queue: &QueueName) -> Publish {
    Publish { target: Target::Queue(queue.clone()), message: Message::default(), delay: Duration::ZERO }
}

async fn publish(broker: &dyn Broker, publish: Publish) {
    within(STEP_TIMEOUT, "a publish", broker.publish(vec![publish])).await.remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_for_a_missing_queue_costs_no_channel() {
    in_namespace(async |harness| {
        let broker = harness.broker(harness.options()).await;
        let there = queue("there");
        publish(&broker, to(&there)).await;
        let raw = Raw::connect(&harness.url).await;
        let mut names: Vec<_> =
            (0..raw.max_channels() / 2 + 50).map(|number| queue(&format!("gone.{number}"))).collect();
        names.push(there.clone());
        for _ in 0..2 {
            // Two questions for each name: the dead letters are missing too.
            let depths = within(STEP_TIMEOUT, "the depths", broker.depth(&names)).await.unwrap();
            let found: Vec<_> = depths.iter().filter(|depth| depth.ready.is_some()).collect();
            assert_eq!((found.len(), found[0].ready, depths.len()), (1, Some(1), names.len()));
        }
        let what = Consume { queues: vec![there], prefetch: 1 };
        let mut consumer = within(STEP_TIMEOUT, "a subscription", broker.consume(what)).await.unwrap();
        within(STEP_TIMEOUT, "a delivery", consumer.next()).await.unwrap();
        raw.declare(&harness.on_broker(&names[7]), &[]).await;
        let back = within(STEP_TIMEOUT, "a depth", broker.depth(&names[7..8])).await.unwrap();
        assert_eq!(back[0].ready, Some(0), "a queue that is there again is found");
        raw.delete_queue(&harness.on_broker(&names[7])).await;
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_has_no_channel_left_is_replaced() {
    in_namespace(async |harness| {
        let bad = queue("bad");
        let missing = ExistingQueue::new("there.is.none").through("there.is.no.exchange", "x");
        let existing_queues = HashMap::from([(bad.clone(), missing)]);
        let broker = harness.broker(AmqpOptions { existing_queues, ..harness.options() }).await;
        let batch = || (0..16).map(|_| to(&bad)).collect();
        for _ in 0..Raw::connect(&harness.url).await.max_channels() + 10 {
            // The broker closes the channel on which the missing queue is checked.
            let answers = within(STEP_TIMEOUT, "a refusal", broker.publish(batch())).await;
            assert!(answers.iter().all(Result::is_err));
        }
        publish(&broker, to(&queue("good"))).await;
    })
    .await;
}
