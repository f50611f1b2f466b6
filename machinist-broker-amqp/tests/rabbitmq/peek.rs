//! Looks at messages that wait: they bury nothing and move nothing, and they stop long before a message is buried.

use std::{sync::Arc, time::Duration};

use crate::support::{Harness, Raw, in_namespace};
use lapin::{
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use machinist_conformance::{eventually, within};
use machinist_core::{
    App, PeekError, TaskDef,
    broker::{Broker, BrokerError},
    id::QueueName,
};
use machinist_memory::MemoryBackend;

/// Maximum time of a test.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Number of looks: more than the delivery limit of a task queue.
const LOOKS: usize = 1100;
const WAITS: TaskDef<(u32,), ()> = TaskDef::new("waits");

async fn app(harness: &Harness) -> (App, Arc<dyn Broker>) {
    let broker: Arc<dyn Broker> = Arc::new(harness.broker(harness.options()).await);
    let app = App::builder(Arc::clone(&broker), Arc::new(MemoryBackend::new()));
    (app.allow_unsigned().build().await.unwrap(), broker)
}

#[tokio::test]
async fn eleven_hundred_looks_bury_nothing_and_keep_the_order() {
    in_namespace(async |harness| {
        within(TEST_TIMEOUT, "many looks", async {
            let (app, broker) = app(harness).await;
            let (client, queue) = (app.client(), QueueName::parse("looked-at").unwrap());
            let mut sent = Vec::new();
            for number in 0..3 {
                sent.push(client.send(WAITS.call((number,)).queue("looked-at")).await.unwrap().id().clone());
            }
            let mut spent = 0;
            for _ in 0..LOOKS {
                match client.peek_queue(&queue, 3).await {
                    Ok(peek) => {
                        let seen: Vec<_> = peek.records.iter().map(|record| record.id.clone()).collect();
                        assert_eq!(seen, sent, "the order of before");
                        assert_eq!(spent, 0, "no look follows a refusal");
                    }
                    Err(PeekError::Spent { left, .. }) => {
                        assert!(left >= 100, "{left} deliveries are left");
                        spent += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            let depth = async || broker.depth(std::slice::from_ref(&queue)).await.unwrap().pop().unwrap();
            let all = eventually(TEST_TIMEOUT, async || depth().await.ready == Some(3)).await;
            assert!(all, "{:?}", depth().await);
            assert_eq!(depth().await.dead.unwrap_or(0), 0, "{spent} looks were refused");
            broker.close().await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_queue_with_another_limit_is_not_looked_at() {
    in_namespace(async |harness| {
        within(TEST_TIMEOUT, "a refusal", async {
            let (_, broker) = app(harness).await;
            let queue = QueueName::parse("strange").unwrap();
            let raw = Raw::connect(&harness.url).await;
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            let name = harness.on_broker(&queue);
            let declare =
                raw.channel.queue_declare(name.clone().into(), QueueDeclareOptions::durable(), arguments);
            declare.await.unwrap();
            let publish = raw.channel.basic_publish(
                "".into(),
                name.into(),
                lapin::options::BasicPublishOptions::default(),
                b"x",
                lapin::BasicProperties::default(),
            );
            publish.await.unwrap();
            let waits = eventually(TEST_TIMEOUT, async || {
                broker.depth(std::slice::from_ref(&queue)).await.unwrap()[0].ready == Some(1)
            });
            assert!(waits.await);
            let refused = broker.peek(&queue, 1).await;
            assert!(
                matches!(&refused, Err(BrokerError::Refused { reason }) if reason.contains("x-delivery-limit")
                    || reason.contains("x-dead-letter")),
                "{refused:?}"
            );
            broker.close().await;
        })
        .await;
    })
    .await;
}
