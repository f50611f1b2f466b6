//! What a sender is told under RabbitMQ's memory alarm. On a RabbitMQ of its own: an alarm stops every sender of a server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use machinist::{
    QueueName,
    amqp::{AmqpBroker, AmqpOptions},
    broker::{Broker, Message, Publish, PublishError, Target},
};
use machinist_conformance::{service_url, within};
use xtask::{interrupt::Interrupt, services::Services};

const DEADLINE: Duration = Duration::from_secs(2);
const BOUND: Duration = Duration::from_secs(60);

async fn publish(broker: &AmqpBroker) -> Result<(), PublishError> {
    let message = Message { body: "work".into(), ..Message::default() };
    let target = Target::Queue(QueueName::parse("work").unwrap());
    let published = broker.publish(vec![Publish { target, message, delay: Duration::ZERO }]);
    within(BOUND, "an answer", published).await.pop().unwrap()
}

/// Ends the servers however the test ends.
struct Down(Services);

impl Drop for Down {
    fn drop(&mut self) {
        self.0.down().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_under_a_memory_alarm_is_told_that_it_is_blocked() {
    if service_url("MACHINIST_TEST_AMQP_URL").is_none() {
        return;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("blocked");
    let down = Down(Services::at(&dir).unwrap());
    let up = down.0.up(&Interrupt::listen().unwrap()).unwrap();
    let options = AmqpOptions { publish_deadline: DEADLINE, ..AmqpOptions::default() };
    let broker = AmqpBroker::connect(&up.endpoints.amqp_url, options).await.unwrap();
    publish(&broker).await.unwrap();

    down.0.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).unwrap();
    // RabbitMQ tells a connection of an alarm when it sends something: that may have arrived, and is unknown.
    let alarm = Instant::now();
    let reason = loop {
        match publish(&broker).await {
            Err(PublishError::Blocked { reason }) => break reason,
            Err(PublishError::Unknown(_)) | Ok(()) => {}
            other => panic!("{other:?}"),
        }
        assert!(alarm.elapsed() < BOUND, "nobody is blocked");
    };
    assert!(reason.contains("memory"), "{reason}");
    let began = Instant::now();
    assert!(matches!(publish(&broker).await, Err(PublishError::Blocked { .. })), "and so is the next");
    assert!(began.elapsed() >= DEADLINE / 2, "it is tried until its deadline");

    down.0.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).unwrap();
    let over = Instant::now();
    while let Err(error) = publish(&broker).await {
        assert!(over.elapsed() < BOUND, "the alarm is over: {error}");
    }
    broker.close().await;
}
