//! Tests of behavior that only this adapter can get wrong: one for each peculiarity of lapin and RabbitMQ.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::support::{AMQP_URL, Raw, in_namespace};
use bytes::Bytes;
use lapin::{
    BasicProperties,
    options::{ExchangeDeleteOptions, QueueBindOptions},
    types::{AMQPValue, FieldArray, FieldTable},
};
use machinist_broker_amqp::{AmqpBroker, AmqpOptions, ExistingQueue, QueueType, TopologyMode};
use machinist_conformance::{BrokerHarness as _, eventually, service_url, within};
use machinist_core::{
    broker::{
        Broker, BrokerError, Consume, Consumer, Delivery, HeaderValue, Headers, Message, Publish,
        PublishError, Settle, Settled, Target,
    },
    diagnose::Level,
    id::QueueName,
};
use tokio::net::TcpListener;

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(600);

fn queue(text: &str) -> QueueName {
    QueueName::parse(text).unwrap()
}

fn to(queue: &QueueName, body: impl Into<Bytes>) -> Publish {
    let message = Message { body: body.into(), ..Message::default() };
    Publish { target: Target::Queue(queue.clone()), message, delay: Duration::ZERO }
}

async fn publish(broker: &dyn Broker, publish: Publish) -> Result<(), PublishError> {
    within(2 * STEP_TIMEOUT, "a publish", broker.publish(vec![publish])).await.remove(0)
}

async fn consume(broker: &dyn Broker, queue: &QueueName) -> Box<dyn Consumer> {
    let what = Consume { queues: vec![queue.clone()], prefetch: 10 };
    within(STEP_TIMEOUT, "a subscription", broker.consume(what)).await.unwrap()
}

async fn next(consumer: &mut dyn Consumer) -> Delivery {
    within(STEP_TIMEOUT, "a delivery", consumer.next()).await.unwrap()
}

/// An error with its sources, as a program would print it.
fn all_of(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(" {error} {error:?}"));
        source = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_callers_gets_the_outcome_of_its_own_message() {
    in_namespace(async |harness| {
        let there = queue("there");
        let maker = harness.broker(harness.options()).await;
        publish(&maker, to(&there, "first")).await.unwrap();
        let options = AmqpOptions { topology: TopologyMode::Verify, ..harness.options() };
        let broker = Arc::new(harness.broker(options).await);
        let callers = (0..64).map(|caller| {
            let broker = Arc::clone(&broker);
            let there = there.clone();
            let missing = queue(&format!("missing.{caller}"));
            tokio::spawn(async move {
                for round in 0..30 {
                    let routable = (caller + round) % 3 != 0;
                    let target = if routable { &there } else { &missing };
                    match publish(&*broker, to(target, format!("{caller}.{round}"))).await {
                        Ok(()) => assert!(routable, "{caller}.{round} went nowhere and was called sent"),
                        Err(PublishError::Unroutable { queue }) => {
                            assert!(!routable, "{caller}.{round} was sent and called unroutable");
                            assert_eq!(queue, missing);
                        }
                        Err(other) => panic!("{}", all_of(&other)),
                    }
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        let depth = within(STEP_TIMEOUT, "the depth", maker.depth(&[there])).await.unwrap();
        assert_eq!(depth[0].ready, Some(1 + 64 * 30 * 2 / 3));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_refused_at_once_and_the_password_is_kept() {
    let Some(server) = service_url(AMQP_URL) else { return };
    let wrong = server.replacen("guest:guest@", "guest:hunter2@", 1);
    let connect = AmqpBroker::connect(&wrong, AmqpOptions::default());
    let error = within(STEP_TIMEOUT, "a refusal", connect).await.unwrap_err();
    assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
    let said = all_of(&error);
    assert!(said.contains("USER and PASSWORD") && !said.contains("hunter2"), "{said}");

    let (start, _) = server.rsplit_once('/').unwrap();
    let nowhere = format!("{start}/no-such-vhost");
    let connect = AmqpBroker::connect(&nowhere, AmqpOptions::default());
    let error = within(STEP_TIMEOUT, "a refusal", connect).await.unwrap_err();
    assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
    let said = all_of(&error);
    assert!(said.contains("add_vhost no-such-vhost"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_is_unavailable_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("amqp://user:hunter2@127.0.0.1:{port}");
    let error = within(STEP_TIMEOUT, "an error", AmqpBroker::connect(&url, AmqpOptions::default()))
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Unavailable(_)), "{error:?}");
    assert!(!all_of(&error).contains("hunter2"), "{}", all_of(&error));
}

/// Several TLS providers may be compiled in; if none is chosen, rustls panics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_where_none_is_spoken_is_an_error_and_no_panic() {
    let Some(server) = service_url(AMQP_URL) else { return };
    let encrypted = server.replacen("amqp://", "amqps://", 1);
    let connect = AmqpBroker::connect(&encrypted, AmqpOptions::default());
    let error = within(STEP_TIMEOUT, "an error", connect).await.unwrap_err();
    assert!(all_of(&error).contains("does not speak TLS on this port"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mute_peer_does_not_hold_us_and_leaves_no_thread() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://user:hunter2@{}", listener.local_addr().unwrap());
    let (connected, accepted) = tokio::join!(
        within(STEP_TIMEOUT, "an error", AmqpBroker::connect(&url, AmqpOptions::default())),
        within(STEP_TIMEOUT, "a connection", listener.accept()),
    );
    let error = connected.unwrap_err();
    assert!(matches!(error, BrokerError::Unavailable(_)), "{error:?}");
    // Our side shuts the socket down, which ends lapin's thread.
    let (mut peer, _) = accepted.unwrap();
    let mut said = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut peer, &mut said);
    within(STEP_TIMEOUT, "the end of the connection", end).await.unwrap();
    assert_eq!(said, b"AMQP\x00\x00\x09\x01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_refused_and_explained() {
    in_namespace(async |harness| {
        let name = queue("classic");
        let raw = Raw::connect(&harness.url).await;
        raw.declare(&harness.on_broker(&name), &[("x-queue-type", AMQPValue::LongString("classic".into()))])
            .await;
        let broker = harness.broker(harness.options()).await;
        let what = Consume { queues: vec![name.clone()], prefetch: 1 };
        let refused = within(STEP_TIMEOUT, "a refusal", broker.consume(what)).await.unwrap_err();
        let BrokerError::Refused { reason } = refused else { panic!("{refused:?}") };
        let publishing = publish(&broker, to(&name, "x")).await.unwrap_err();
        let PublishError::Rejected { reason: same } = publishing else { panic!("{publishing:?}") };
        assert_eq!(reason, same);
        for part in
            [harness.on_broker(&name).as_str(), " with x-", "is declared here with", "classic", "topology"]
        {
            assert!(reason.contains(part), "{reason}");
        }
        // The publisher has survived it, and a broker that expects a classic queue can use it.
        publish(&broker, to(&queue("other"), "x")).await.unwrap();
        let options = AmqpOptions { queue_type: QueueType::Classic, ..harness.options() };
        publish(&harness.broker(options).await, to(&name, "x")).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_declares_nothing_and_names_what_is_missing() {
    in_namespace(async |harness| {
        let options = AmqpOptions { topology: TopologyMode::Verify, ..harness.options() };
        let broker = harness.broker(options).await;
        let name = queue("nobody.made");
        let error = publish(&broker, to(&name, "x")).await.unwrap_err();
        let PublishError::Nacked { reason } = error else { panic!("{error:?}") };
        assert!(reason.contains(&format!("exchange {}", harness.namespace)), "{reason}");
        assert!(reason.contains("topology"), "{reason}");
        let what = Consume { queues: vec![name.clone()], prefetch: 1 };
        let error = within(STEP_TIMEOUT, "a refusal", broker.consume(what)).await.unwrap_err();
        assert!(
            matches!(&error, BrokerError::Refused { reason } if reason.contains("topology")),
            "{error:?}"
        );

        publish(&harness.broker(harness.options()).await, to(&queue("made"), "x")).await.unwrap();
        for delay in [Duration::ZERO, Duration::from_millis(1)] {
            let error = publish(&broker, Publish { delay, ..to(&name, "x") }).await.unwrap_err();
            assert!(matches!(&error, PublishError::Unroutable { queue } if *queue == name), "{error:?}");
        }
        publish(&broker, to(&queue("made"), "x")).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_made_again_for_consumers_and_publishers() {
    in_namespace(async |harness| {
        let name = queue("deleted");
        let quiet = queue("quiet");
        let broker = harness.broker(harness.options()).await;
        let what = Consume { queues: vec![name.clone(), quiet.clone()], prefetch: 10 };
        let mut consumer = broker.consume(what).await.unwrap();
        // A publisher that knows the queue waits before it declares the queue again.
        publish(&broker, to(&name, "known")).await.unwrap();
        next(&mut *consumer).await.receipt.settle(Settle::Ack).await;
        publish(&broker, to(&quiet, "held")).await.unwrap();
        let held = next(&mut *consumer).await;
        for round in 0..2 {
            assert!(harness.delete_queue(&name).await);
            publish(&broker, to(&name, format!("{round}"))).await.unwrap();
            let delivery = next(&mut *consumer).await;
            assert_eq!(delivery.message.body, format!("{round}"));
            delivery.receipt.settle(Settle::Ack).await;
        }
        // The neighbour's subscription was not disturbed: it would have been redelivered.
        held.receipt.settle(Settle::Ack).await;
        publish(&broker, to(&quiet, "last")).await.unwrap();
        let last = next(&mut *consumer).await;
        assert_eq!((last.message.body.as_ref(), last.redelivered), (&b"last"[..], false));
    })
    .await;
}

/// RabbitMQ (seen on 3.10) does not tell a consumer of its queue's end if the queue is there again 30 ms later, and
/// swallows the deliveries of the new queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_the_broker_did_not_tell_of_its_end_comes_back() {
    in_namespace(async |harness| {
        let name = queue("replaced");
        let broker = harness.broker(harness.options()).await;
        let mut consumer = consume(&broker, &name).await;
        let raw = Raw::connect(&harness.url).await;
        let other = harness.broker(harness.options()).await;
        publish(&other, to(&queue("warm.up"), "x")).await.unwrap();
        raw.delete_queue(&harness.on_broker(&name)).await;
        // Another process, which does not know that the queue existed, declares it at once.
        publish(&other, to(&name, "x")).await.unwrap();
        let delivery = within(2 * STEP_TIMEOUT, "a delivery", consumer.next()).await.unwrap();
        delivery.receipt.settle(Settle::Ack).await;
    })
    .await;
}

/// RabbitMQ refuses messages for a quorum queue that another client is declaring at this moment (seen on 3.10).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_many_processes_declare_at_once_takes_the_messages_of_all() {
    in_namespace(async |harness| {
        const PROCESSES: usize = 8;
        let mut processes = Vec::new();
        for _ in 0..PROCESSES {
            let broker = Arc::new(harness.broker(harness.options()).await);
            publish(&*broker, to(&queue("known"), "x")).await.unwrap();
            processes.push(broker);
        }
        for round in 0..6 {
            let name = queue(&format!("new.{round}"));
            let senders = processes.iter().map(|broker| {
                let broker = Arc::clone(broker);
                let name = name.clone();
                tokio::spawn(async move {
                    let batch = (0..20).map(|number| to(&name, number.to_string())).collect();
                    within(2 * STEP_TIMEOUT, "a batch", broker.publish(batch)).await
                })
            });
            for sender in senders.collect::<Vec<_>>() {
                for result in sender.await.unwrap() {
                    result.unwrap();
                }
            }
            let depth = within(STEP_TIMEOUT, "the depth", processes[0].depth(&[name])).await.unwrap();
            assert!(depth[0].ready >= Some(PROCESSES as u64 * 20), "{depth:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_its_sender_learns_why() {
    in_namespace(async |harness| {
        let name = queue("full");
        publish(&harness.broker(harness.options()).await, to(&queue("makes.exchanges"), "x")).await.unwrap();
        let raw = Raw::connect(&harness.url).await;
        let limits = [
            ("x-max-length", AMQPValue::LongLongInt(1)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ];
        let on_broker = harness.on_broker(&name);
        raw.declare(&on_broker, &limits).await;
        raw.bind(&on_broker, &harness.namespace, &on_broker).await;
        let options = AmqpOptions { topology: TopologyMode::Verify, ..harness.options() };
        let broker = harness.broker(options).await;
        publish(&broker, to(&name, "fits")).await.unwrap();
        let error = publish(&broker, to(&name, "does not")).await.unwrap_err();
        assert!(matches!(&error, PublishError::Nacked { reason } if reason.contains("limit")), "{error:?}");
        assert!(!error.is_certain(), "it may be taken later");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_closed_by_an_error_costs_no_neighbour_its_message() {
    in_namespace(async |harness| {
        let name = queue("innocents");
        let broker = Arc::new(harness.broker(harness.options()).await);
        publish(&*broker, to(&name, "first")).await.unwrap();
        let raw = Raw::connect(&harness.url).await;
        for _ in 0..3 {
            // The next publish finds no exchange, and RabbitMQ closes its channel with everything in flight.
            let exchange = harness.namespace.as_str();
            raw.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
            let batch = (0..200).map(|number| to(&name, number.to_string())).collect();
            for result in within(STEP_TIMEOUT, "a batch", broker.publish(batch)).await {
                result.unwrap();
            }
        }
        let depth = within(STEP_TIMEOUT, "the depth", broker.depth(&[name])).await.unwrap();
        assert!(depth[0].ready >= Some(1 + 3 * 200), "{depth:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_does_not_fit_is_refused_before_it_costs_anything() {
    in_namespace(async |harness| {
        let name = queue("large");
        let options = AmqpOptions { max_message_size: 1000, ..harness.options() };
        let broker = harness.broker(options).await;
        let error = publish(&broker, to(&name, vec![0; 1001])).await.unwrap_err();
        assert!(matches!(error, PublishError::TooLarge { size: 1001, limit: 1000 }), "{error:?}");
        publish(&broker, to(&name, vec![0; 1000])).await.unwrap();
        let letter = Publish { target: Target::DeadLetters(name.clone()), ..to(&name, vec![0; 1001]) };
        publish(&broker, letter).await.expect("a dead letter of another client is kept at any size");

        let mut headers = to(&name, "x");
        headers.message.headers.insert("machinist-long".into(), HeaderValue::Text("x".repeat(200_000)));
        let error = publish(&broker, headers).await.unwrap_err();
        assert!(matches!(error, PublishError::TooLarge { size, .. } if size > 200_000), "{error:?}");
        let mut id = to(&name, "x");
        id.message.id = Some("x".repeat(300));
        let error = publish(&broker, id).await.unwrap_err();
        assert!(matches!(&error, PublishError::Rejected { reason } if reason.contains("255")), "{error:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_another_client_is_delivered_as_far_as_it_can_be_read() {
    in_namespace(async |harness| {
        let name = queue("strange");
        let broker = harness.broker(harness.options()).await;
        let mut consumer = consume(&broker, &name).await;
        let raw = Raw::connect(&harness.url).await;
        let mut nested = FieldTable::default();
        for _ in 0..100 {
            let mut outer = FieldTable::default();
            outer.insert("t".into(), AMQPValue::FieldTable(nested));
            nested = outer;
        }
        let mut headers = FieldTable::default();
        headers.insert("nested".into(), AMQPValue::FieldTable(nested));
        headers.insert("list".into(), AMQPValue::FieldArray(FieldArray::default()));
        headers.insert("void".into(), AMQPValue::Void);
        headers.insert("fraction".into(), AMQPValue::Double(2.5));
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::default()));
        headers.insert("count".into(), AMQPValue::LongInt(-7));
        headers.insert("name".into(), AMQPValue::LongString("zoë".into()));
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_timestamp(u64::MAX)
            .with_priority(200)
            .with_message_id("".into())
            .with_reply_to("somewhere".into());
        let exchange = harness.namespace.clone();
        raw.publish(&exchange, &harness.on_broker(&name), properties, b"odd").await;
        raw.publish(&exchange, &harness.on_broker(&name), BasicProperties::default(), b"").await;

        let odd = next(&mut *consumer).await;
        assert_eq!(odd.message.reply_to.as_deref(), Some("somewhere"));
        let expected = Headers::from([
            ("list".into(), HeaderValue::List(Vec::new())),
            ("void".into(), HeaderValue::Null),
            ("fraction".into(), HeaderValue::Float(2.5)),
            ("count".into(), HeaderValue::Int(-7)),
            ("name".into(), HeaderValue::Text("zoë".to_owned())),
        ]);
        assert_eq!(odd.message.headers, expected);
        assert_eq!((odd.message.body.as_ref(), odd.message.timestamp), (&b"odd"[..], None));
        odd.receipt.settle(Settle::Ack).await;
        let bare = next(&mut *consumer).await;
        assert_eq!(bare.message, Message::default());
        bare.receipt.settle(Settle::Ack).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_broker_is_noticed_and_nothing_is_lost() {
    in_namespace(async |harness| {
        let name = queue("stalled");
        let broker = Arc::new(harness.broker(harness.options()).await);
        let mut consumer = consume(&*broker, &name).await;
        publish(&*broker, to(&name, "held")).await.unwrap();
        let held = next(&mut *consumer).await;
        harness.proxy.stall();
        let sending = tokio::spawn({
            let broker = Arc::clone(&broker);
            let name = name.clone();
            async move { publish(&*broker, to(&name, "during")).await }
        });
        // An unanswered question takes longer than an unanswered probe.
        within(2 * STEP_TIMEOUT, "an error", broker.depth(&[name])).await.unwrap_err();
        harness.proxy.pass();
        within(2 * STEP_TIMEOUT, "the publish", sending).await.unwrap().unwrap();
        // It comes again only because the stalled connection was given up.
        let mut came = Vec::new();
        while !(came.contains(&Bytes::from("held")) && came.contains(&Bytes::from("during"))) {
            let delivery = next(&mut *consumer).await;
            came.push(delivery.message.body.clone());
            delivery.receipt.settle(Settle::Ack).await;
        }
        assert_eq!(held.receipt.settle(Settle::Ack).await, Settled::Lost);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_a_publish_ends_at_its_deadline() {
    in_namespace(async |harness| {
        let name = queue("unreachable");
        let options = AmqpOptions { publish_deadline: Duration::from_secs(1), ..harness.options() };
        let broker = harness.broker(options).await;
        publish(&broker, to(&name, "x")).await.unwrap();
        harness.proxy.refuse();
        let ended = eventually(STEP_TIMEOUT, async || {
            matches!(publish(&broker, to(&name, "x")).await, Err(PublishError::Unavailable(_)))
        });
        assert!(ended.await, "a publish without a connection is unavailable");
        harness.proxy.pass();
        assert!(
            eventually(STEP_TIMEOUT, async || publish(&broker, to(&name, "x")).await.is_ok()).await,
            "it heals"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_looks_into_the_broker() {
    in_namespace(async |harness| {
        let broker = harness.broker(harness.options()).await;
        publish(&broker, Publish { delay: Duration::from_millis(100), ..to(&queue("q"), "x") })
            .await
            .unwrap();
        let diagnosis: &dyn machinist_core::diagnose::Diagnose = &broker;
        let findings = within(STEP_TIMEOUT, "a diagnosis", diagnosis.diagnose()).await;
        for subject in ["connection", "version", "heartbeat", "permissions", "delays", "undelivered"] {
            let found = findings.iter().find(|finding| finding.subject == subject);
            assert!(found.is_some_and(|finding| finding.level == Level::Good), "{subject}: {findings:#?}");
        }
        let version = findings.iter().find(|finding| finding.subject == "version").unwrap();
        assert!(version.found.starts_with("RabbitMQ "), "{version:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_another_program_is_used_as_it_stands() {
    in_namespace(async |harness| {
        let theirs = format!("{}-theirs", harness.namespace);
        let go = queue("go");
        let existing = ExistingQueue::new(&theirs).through("amq.direct", format!("{theirs}-key"));
        let existing_queues = HashMap::from([(go.clone(), existing)]);
        let broker = harness.broker(AmqpOptions { existing_queues, ..harness.options() }).await;
        let missing = broker.consume(Consume { queues: vec![go.clone()], prefetch: 1 }).await.unwrap_err();
        assert!(all_of(&missing).contains("belongs to another program and does not exist"), "{missing:?}");

        let raw = Raw::connect(&harness.url).await;
        // A classic queue with an argument that ours never have.
        raw.declare(&theirs, &[("x-max-priority", AMQPValue::ShortShortInt(3))]).await;
        let (from, key) = ("amq.direct", format!("{theirs}-key"));
        let bind = QueueBindOptions::default();
        let bound = raw.channel.queue_bind(
            theirs.as_str().into(),
            from.into(),
            key.as_str().into(),
            bind,
            FieldTable::default(),
        );
        bound.await.unwrap();
        let mut consumer = consume(&broker, &go).await;
        raw.publish(from, &key, BasicProperties::default(), b"theirs").await;
        let delivery = next(&mut *consumer).await;
        assert_eq!((&delivery.queue, &delivery.message.body[..]), (&go, &b"theirs"[..]));
        delivery.receipt.settle(Settle::Ack).await;
        publish(&broker, to(&go, "ours")).await.unwrap();
        let delayed = Publish { delay: Duration::from_millis(200), ..to(&go, "delayed") };
        publish(&broker, delayed).await.unwrap();
        for expected in ["ours", "delayed"] {
            let delivery = next(&mut *consumer).await;
            assert_eq!((&delivery.queue, &delivery.message.body[..]), (&go, expected.as_bytes()));
            delivery.receipt.settle(Settle::Ack).await;
        }
        let letter = Publish { target: Target::DeadLetters(go.clone()), ..to(&go, "dead") };
        publish(&broker, letter).await.unwrap();
        let depth = broker.depth(std::slice::from_ref(&go)).await.unwrap().remove(0);
        assert_eq!((depth.ready, depth.dead), (Some(0), Some(1)));
        consumer.stop().await;
        for leftover in [theirs.clone(), format!("{theirs}.dead")] {
            raw.delete_queue(&leftover).await;
        }
    })
    .await;
}
