//! What other programs write: rows, notifications, too many deliveries.

use std::time::Duration;

use machinist_conformance::within;
use machinist_core::{
    broker::{Broker, DeadLetterCause, Settle, SideQueue},
    diagnose::{Diagnose, Level},
};
use machinist_postgres::tokio_postgres::types::ToSql;

use crate::support::{Schema, consume, number_of, publish, queue};

/// A row that was changed by hand stops nothing: it is delivered as a message that no worker runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_read_does_not_stop_its_queue() {
    let Some(schema) = Schema::fresh() else { return };
    let queue = queue("work");
    let broker = schema.connect().await.broker();
    publish(&broker, &queue, 0..2).await;
    schema.run("UPDATE {s}.messages SET headers = 'x', kind = '\\x' WHERE body = '0'").await;
    let mut consumer = consume(&broker, &queue, 10).await;
    let damaged = within(Duration::from_secs(10), "a message", consumer.next()).await.unwrap();
    let found = damaged.message.headers.get("machinist-damaged").and_then(|found| found.as_text()).unwrap();
    assert!(found.contains("cannot read kind, headers"), "{found}");
    damaged.receipt.settle(Settle::Ack).await;
    let good = within(Duration::from_secs(10), "a message", consumer.next()).await.unwrap();
    assert_eq!(number_of(&good.message), 1);
    good.receipt.settle(Settle::Ack).await;
    schema.drop().await;
}

/// Anybody may notify. Nobody is stopped by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_of_strangers_harm_nothing() {
    let Some(schema) = Schema::fresh() else { return };
    let queue = queue("work");
    let broker = schema.connect().await.broker();
    let mut consumer = consume(&broker, &queue, 10).await;
    let door = schema.side_door().await;
    let channel = format!("machinist:{}", schema.name);
    for payload in ["", "*", "hello", "qzz d", "r-1 q18446744073709551616"] {
        let params: [&(dyn ToSql + Sync); 2] = [&channel, &payload];
        door.execute("SELECT pg_notify($1, $2)", &params).await.unwrap();
    }
    publish(&broker, &queue, 0..1).await;
    let delivery = within(Duration::from_secs(10), "a message", consumer.next()).await.unwrap();
    delivery.receipt.settle(Settle::Ack).await;
    schema.drop().await;
}

/// A message that ends its process before any code counts it becomes a dead letter in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_delivered_too_often_becomes_a_dead_letter() {
    let Some(schema) = Schema::fresh() else { return };
    let queue = queue("work");
    let broker = schema.connect().await.broker();
    publish(&broker, &queue, 0..2).await;
    schema.run("UPDATE {s}.messages SET deliveries = 1000 WHERE body = '0'").await;
    let mut consumer = consume(&broker, &queue, 10).await;
    let good = within(Duration::from_secs(10), "a message", consumer.next()).await.unwrap();
    assert_eq!(number_of(&good.message), 1);
    good.receipt.settle(Settle::Ack).await;
    let depth = broker.depth(std::slice::from_ref(&queue)).await.unwrap().remove(0);
    assert_eq!(depth.dead, Some(1));
    let mut dead = broker.consume_side_queue(SideQueue::DeadLetters(queue), 10).await.unwrap().unwrap();
    let letter = within(Duration::from_secs(10), "a dead letter", dead.next()).await.unwrap();
    assert_eq!((number_of(&letter.message), letter.cause), (0, Some(DeadLetterCause::DeliveryLimit)));
    letter.receipt.settle(Settle::Ack).await;
    schema.drop().await;
}

/// The examination of a server in order finds no fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_order_is_told() {
    let Some(schema) = Schema::fresh() else { return };
    let store = schema.connect().await;
    let findings = store.broker().diagnose().await;
    let subjects: Vec<&str> = findings.iter().map(|finding| finding.subject.as_str()).collect();
    for subject in ["server", "schema", "durability", "connections", "oldest transaction", "dead rows"] {
        assert!(subjects.contains(&subject), "{subject} is not among {subjects:?}");
    }
    assert!(findings.iter().all(|finding| finding.level != Level::Error), "{findings:?}");
    schema.drop().await;
}
