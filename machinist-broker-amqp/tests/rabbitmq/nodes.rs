//! Several addresses of one broker: one that does not answer keeps nobody from the others.

use std::time::Duration;

use crate::support::{AMQP_URL, Raw, in_namespace};
use machinist_broker_amqp::{AmqpBroker, AmqpOptions};
use machinist_conformance::{Proxy, eventually, service_url, within};
use machinist_core::{
    broker::{Broker, BrokerError, Consume, Message, Publish, Settle, Target},
    diagnose::Diagnose as _,
    id::QueueName,
};
use tokio::net::TcpListener;

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(600);

/// A listener that accepts nothing: connections to it open and are never answered.
async fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:guest@{}/%2f", listener.local_addr().unwrap());
    (listener, url)
}

fn to(queue: &QueueName) -> Publish {
    Publish { target: Target::Queue(queue.clone()), message: Message::default(), delay: Duration::ZERO }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_address_that_does_not_answer_is_left_for_the_next() {
    let Some(server) = service_url(AMQP_URL) else { return };
    let (_listener, mute) = mute().await;
    let url = format!("{mute},{server}");
    let broker = within(STEP_TIMEOUT, "a connection", AmqpBroker::connect(&url, AmqpOptions::default()));
    let broker = broker.await.unwrap();
    assert!(broker.location().contains(','), "{}", broker.location());
    broker.close().await;
}

#[tokio::test]
async fn the_error_of_a_node_that_answers_is_the_one_that_is_told() {
    let Some(server) = service_url(AMQP_URL) else { return };
    let (_listener, mute) = mute().await;
    let url = format!("{},{mute}", server.replacen("guest:guest@", "guest:hunter2@", 1));
    let error = within(STEP_TIMEOUT, "an error", AmqpBroker::connect(&url, AmqpOptions::default())).await;
    assert!(matches!(error, Err(BrokerError::Refused { .. })), "{error:?}");
}

/// While a node is silent, the connections of a process move to another, and stay there when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_falls_silent_is_left_for_another() {
    in_namespace(async |harness| {
        let (second, second_url) = Proxy::before(&harness.url).await.unwrap();
        let (first, first_url) = Proxy::before(&harness.url).await.unwrap();
        let broker =
            AmqpBroker::connect(&format!("{first_url},{second_url}"), harness.options()).await.unwrap();
        let queue = QueueName::parse("q").unwrap();
        within(STEP_TIMEOUT, "a publish", broker.publish(vec![to(&queue)])).await.remove(0).unwrap();
        let what = Consume { queues: vec![queue.clone()], prefetch: 1 };
        let mut consumer = within(STEP_TIMEOUT, "a subscription", broker.consume(what)).await.unwrap();
        let delivery = within(STEP_TIMEOUT, "a delivery", consumer.next()).await.unwrap();
        delivery.receipt.settle(Settle::Ack).await;

        first.stall();
        let sent =
            eventually(STEP_TIMEOUT, async || broker.publish(vec![to(&queue)]).await.remove(0).is_ok());
        assert!(sent.await, "nothing is sent while one of two nodes is silent");
        within(STEP_TIMEOUT, "a delivery by the other node", consumer.next()).await.unwrap();
        broker.close().await;
        drop((first, second));
        let raw = Raw::connect(&harness.url).await;
        raw.delete_queue(&harness.on_broker(&queue)).await;
        raw.delete_queue(&format!("{}.dead", harness.on_broker(&queue))).await;
    })
    .await;
}
