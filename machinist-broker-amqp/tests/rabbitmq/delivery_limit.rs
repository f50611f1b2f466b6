//! The delivery limit: the broker itself dead-letters a message that comes back a thousand times, and it goes back to its
//! queue, because everybody who can publish can put a copy among the dead letters. A lost connection counts as a return, so
//! the limit also ends a message that kills its processes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::support::{Harness, Raw, in_namespace};
use lapin::{
    options::{BasicGetOptions, BasicRejectOptions},
    types::AMQPValue,
};
use machinist_broker_amqp::{AmqpOptions, ExistingQueue};
use machinist_conformance::{Proxy, eventually, within};
use machinist_core::{
    App, DeadFilter, TaskDef,
    broker::{Broker, QueueDepth},
    id::QueueName,
    record::TaskState,
};
use machinist_memory::MemoryBackend;

/// Maximum time of the test.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);
/// Delivery limit of a task queue.
const DELIVERY_LIMIT: usize = 1000;
/// Delivery limit of the queue whose message ends connections.
const LOW_LIMIT: i64 = 3;
const DEADLY: TaskDef<(u32,), ()> = TaskDef::new("deadly");

#[tokio::test]
async fn a_message_at_the_delivery_limit_is_dead_lettered_and_goes_back_to_its_queue() {
    in_namespace(async |harness| {
        within(TEST_TIMEOUT, "a thousand deliveries", returned_until_it_is_gone(harness)).await;
    })
    .await;
}

async fn returned_until_it_is_gone(harness: &Harness) {
    let broker: Arc<dyn Broker> = Arc::new(harness.broker(harness.options()).await);
    let backend = Arc::new(MemoryBackend::new());
    let app = App::builder(Arc::clone(&broker), backend).allow_unsigned().build().await.unwrap();
    let queue = QueueName::parse("limited").unwrap();
    let client = app.client();
    let task = client.send(DEADLY.call((7,)).queue("limited")).await.unwrap();

    let depth = async || broker.depth(std::slice::from_ref(&queue)).await.unwrap().pop().unwrap();
    let raw = Raw::connect(&harness.url).await;
    let mut returned = 0;
    let dead_lettered = eventually(TEST_TIMEOUT, async || {
        // As if a process died of it: `reject` counts on every version, `nack` does not count on the newest.
        while let Some(got) = raw
            .channel
            .basic_get(harness.on_broker(&queue).into(), BasicGetOptions { no_ack: false })
            .await
            .unwrap()
        {
            returned += 1;
            assert!(returned <= 2 * DELIVERY_LIMIT, "it came {returned} times, and comes again");
            got.delivery.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
        }
        depth_of_dead(&depth().await) > 0
    });
    assert!(dead_lettered.await, "it came {returned} times, and is nowhere");
    assert!(returned > DELIVERY_LIMIT, "it was dead-lettered after {returned} deliveries");
    assert_eq!(depth().await.ready, Some(0));

    assert_eq!(client.index_dead_letters(&queue).await.unwrap(), 1);
    assert_eq!(client.index_dead_letters(&queue).await.unwrap(), 0, "once");
    assert!(
        eventually(TEST_TIMEOUT, async || depth().await.ready == Some(1)).await,
        "it goes back to its queue"
    );
    assert_eq!(depth_of_dead(&depth().await), 0);
    assert_eq!(client.dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap(), []);
    assert_eq!(task.record().await.unwrap().state, TaskState::Pending);
    broker.close().await;
}

#[tokio::test]
async fn a_message_that_ends_its_connections_is_dead_lettered() {
    in_namespace(async |harness| {
        within(TEST_TIMEOUT, "some lost connections", lost_until_it_is_gone(harness)).await;
    })
    .await;
}

async fn lost_until_it_is_gone(harness: &Harness) {
    let queue = QueueName::parse("deadly").unwrap();
    let name = harness.on_broker(&queue);
    let text = |text: &str| AMQPValue::LongString(text.into());
    let arguments = [
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", AMQPValue::LongLongInt(LOW_LIMIT)),
        ("x-dead-letter-exchange", text(&format!("{}.dead", harness.namespace))),
        ("x-dead-letter-routing-key", text(&name)),
    ];
    Raw::connect(&harness.url).await.declare(&name, &arguments).await;
    let existing_queues = HashMap::from([(queue.clone(), ExistingQueue::new(name.clone()))]);
    let broker: Arc<dyn Broker> =
        Arc::new(harness.broker(AmqpOptions { existing_queues, ..harness.options() }).await);
    let backend = Arc::new(MemoryBackend::new());
    let app = App::builder(Arc::clone(&broker), backend).allow_unsigned().build().await.unwrap();
    let client = app.client();
    let task = client.send(DEADLY.call((7,)).queue("deadly")).await.unwrap();

    let dead = async || {
        let depth = broker.depth(std::slice::from_ref(&queue)).await.unwrap().pop().unwrap();
        depth_of_dead(&depth)
    };
    // Processes that die say no goodbye: their connections are cut.
    let (proxy, url) = Proxy::before(&harness.url).await.expect("a free port");
    let mut lost = 0;
    let dead_lettered = eventually(TEST_TIMEOUT, async || {
        let died = Raw::connect(&url).await;
        let options = BasicGetOptions { no_ack: false };
        let got = died.channel.basic_get(name.as_str().into(), options).await.unwrap();
        // It is neither acknowledged nor handed back.
        if got.is_some() {
            lost += 1;
            assert!(lost <= 2 * LOW_LIMIT, "it came {lost} times, and comes again");
        }
        proxy.cut();
        dead().await > 0
    });
    assert!(dead_lettered.await, "{lost} connections were lost with it, and it is nowhere");
    assert!(lost > LOW_LIMIT, "it was dead-lettered after {lost} lost connections");
    assert_eq!(client.index_dead_letters(&queue).await.unwrap(), 1, "it goes back to its queue");
    assert_eq!(task.record().await.unwrap().state, TaskState::Pending);
    broker.close().await;
}

fn depth_of_dead(depth: &QueueDepth) -> u64 {
    depth.dead.unwrap_or_default()
}
