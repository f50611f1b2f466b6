//! Upkeep of the broker: deleted queues of the delays are made again, and policies that drop messages are named.

use std::time::Duration;

use crate::support::{Raw, in_namespace};
use machinist_broker_amqp::{AmqpOptions, TopologyMode};
use machinist_conformance::{eventually, within};
use machinist_core::{
    broker::{Broker, Consume, Message, Publish, Settle, Target},
    diagnose::{Finding, Level},
    id::QueueName,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Delay that goes through queue 1 of level 2, and through queue 12 of level 1, also if a part of the rest has passed before the
/// message is on its way.
const DELAY: Duration = Duration::from_millis(256 * 16 + 12 * 256 + 255);

async fn of_subject(broker: &dyn Broker, subject: &str) -> Vec<Finding> {
    let findings = within(STEP_TIMEOUT, "a diagnosis", broker.diagnose()).await;
    findings.into_iter().filter(|finding| finding.subject == subject).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_of_the_delays_is_named_and_made_again() {
    in_namespace(async |harness| {
        let broker = harness.broker(AmqpOptions { management_port: None, ..harness.options() }).await;
        let queue = QueueName::parse("late").unwrap();
        let publish = async |body: &'static str| {
            let message = Message { body: body.into(), ..Message::default() };
            let publish = Publish { target: Target::Queue(queue.clone()), message, delay: DELAY };
            within(STEP_TIMEOUT, "a publish", broker.publish(vec![publish])).await.remove(0).unwrap();
        };
        // The first one makes the queues of the delays. The time that this takes is no longer its delay.
        publish("first").await;
        let raw = Raw::connect(&harness.url).await;
        publish("held up").await;
        let level = format!("{}.delay.1.12", harness.namespace);
        let above = format!("{}.delay.2.1", harness.namespace);
        raw.delete_queue(&level).await;
        // The message finds the queue missing.
        assert!(eventually(STEP_TIMEOUT, async || raw.ready(&above).await == 0).await);

        let told = of_subject(&broker, "delays").await;
        assert!(told[0].level == Level::Error && told[0].found.contains(&level), "{told:?}");
        let verifying =
            AmqpOptions { topology: TopologyMode::Verify, management_port: None, ..harness.options() };
        let verifying = harness.broker(verifying).await;
        let told = within(STEP_TIMEOUT, "upkeep", verifying.maintain()).await.unwrap();
        assert!(told[0].level == Level::Error && told[0].found.contains(&level), "{told:?}");

        let told = within(STEP_TIMEOUT, "upkeep", broker.maintain()).await.unwrap();
        assert!(told[0].found.contains(&level), "{told:?}");
        assert_eq!(within(STEP_TIMEOUT, "upkeep", broker.maintain()).await.unwrap(), [], "it is there again");
        assert_eq!(of_subject(&broker, "delays").await[0].level, Level::Good);
        let what = Consume { queues: vec![queue.clone()], prefetch: 1 };
        let mut consumer = within(STEP_TIMEOUT, "a subscription", broker.consume(what)).await.unwrap();
        for body in ["first", "held up"] {
            let Ok(delivery) = timeout(STEP_TIMEOUT, consumer.next()).await else {
                let mut held = Vec::new();
                for queue in [above, level, harness.on_broker(&queue)] {
                    held.push((raw.ready(&queue).await, queue));
                }
                panic!("message {body:?} does not arrive; messages: {held:?}");
            };
            let delivery = delivery.unwrap();
            assert_eq!(delivery.message.body, body);
            delivery.receipt.settle(Settle::Ack).await;
        }
    })
    .await;
}

/// Answers questions for the queues without statistics with the first JSON, and the others with the second.
async fn management_api(plain: String, with_statistics: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
            assert!(request.starts_with("get /api/queues/%2f?") && request.contains("authorization: basic "));
            let json = if request.contains("disable_stats=true") { &plain } else { &with_statistics };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", json.len());
            stream.write_all(format!("{head}{json}").as_bytes()).await.unwrap();
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_drops_messages_is_named() {
    in_namespace(async |harness| {
        let json = format!(
            r#"[{{"name":"{ns}:mail","policy":"all","operator_policy":null,"arguments":{{}},
                 "effective_policy_definition":{{"max-length":10}}}},
                {{"name":"other","policy":"all","operator_policy":null,"arguments":{{}},
                 "effective_policy_definition":{{"expires":10}}}}]"#,
            ns = harness.namespace
        );
        // RabbitMQ 3.10 leaves the definitions out where nobody asks for statistics.
        let plain =
            format!(r#"[{{"name":"{ns}:mail","policy":"all","arguments":{{}}}}]"#, ns = harness.namespace);
        let silent = management_api(plain.clone(), plain.clone()).await;
        let broker = harness.broker(AmqpOptions { management_port: Some(silent), ..harness.options() }).await;
        let told = of_subject(&broker, "policies").await;
        assert!(told[0].level == Level::Warning && told[0].found.contains("not seen"), "{told:?}");

        let port = management_api(plain, json).await;
        let broker = harness.broker(AmqpOptions { management_port: Some(port), ..harness.options() }).await;
        let told = of_subject(&broker, "policies").await;
        assert!(
            told[0].level == Level::Error && told[0].found.contains("policy all sets max-length"),
            "{told:?}"
        );
        assert!(!told[0].found.contains("expires"), "the queue of another program is none of ours: {told:?}");
        assert_eq!(within(STEP_TIMEOUT, "upkeep", broker.maintain()).await.unwrap(), told);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_the_delays_that_lets_nothing_through_is_named() {
    in_namespace(async |harness| {
        let queue = |digit: u8, due: u8| {
            let ns = &harness.namespace;
            format!(r#"{{"name":"{ns}.delay.0.{digit}","messages_ready":0,"messages_dlx":{due}}}"#)
        };
        let json = format!("[{},{}]", queue(1, 0), queue(2, 3));
        let port = management_api(json.clone(), json).await;
        let broker = harness.broker(AmqpOptions { management_port: Some(port), ..harness.options() }).await;
        let target = Target::Queue(QueueName::parse("late").unwrap());
        let publish = Publish { target, message: Message::default(), delay: DELAY };
        within(STEP_TIMEOUT, "a publish", broker.publish(vec![publish])).await.remove(0).unwrap();
        let told = of_subject(&broker, "delays").await;
        let stuck = format!("{}.delay.0.2 holds 3 messages whose time is over", harness.namespace);
        assert!(told.iter().any(|finding| finding.found.starts_with(&stuck)), "{told:?}");
        assert!(!told.iter().any(|finding| finding.found.contains("delay.0.1")), "{told:?}");
        let told = within(STEP_TIMEOUT, "upkeep", broker.maintain()).await.unwrap();
        assert!(told.iter().any(|finding| finding.found.starts_with(&stuck)), "{told:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_management_api_nobody_claims_to_know_the_policies() {
    in_namespace(async |harness| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = listener.local_addr().unwrap().port();
        drop(listener);
        let broker = harness.broker(AmqpOptions { management_port: Some(closed), ..harness.options() }).await;
        let told = of_subject(&broker, "policies").await;
        assert_eq!(told[0].level, Level::Warning);
        assert!(told[0].found.contains("not seen") && told[0].remedy.contains("expires"), "{told:?}");
    })
    .await;
}
