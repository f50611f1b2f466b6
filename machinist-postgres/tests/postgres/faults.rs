//! Servers and processes that end in the middle of the work.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use machinist_conformance::{eventually, service_url, within};
use machinist_core::{
    backend::{Backend, Commit, Committed},
    broker::{Broker, Settle, Settled},
    id::TaskId,
};
use machinist_postgres::{PostgresOptions, PostgresStore};
use xtask::services::PostgresServer;

use crate::support::{
    POSTGRES_URL, STEP_TIMEOUT, Schema, consume, number_of, publish, queue, side_door, try_publish,
};

/// A server that is killed and comes back loses nothing that was confirmed: messages, settlements, facts. The processes are
/// not started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_twice_under_load_loses_nothing() {
    if service_url(POSTGRES_URL).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let mut server =
        tokio::task::spawn_blocking(move || PostgresServer::start(&path).unwrap()).await.unwrap();
    let connect = async || PostgresStore::connect(&server.url(), PostgresOptions::default()).await.unwrap();
    let (sender, worker) = (connect().await, connect().await);
    let queue = queue("work");
    let published = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let publisher = tokio::spawn({
        let (broker, queue) = (sender.broker(), queue.clone());
        let (published, over) = (Arc::clone(&published), Arc::clone(&over));
        async move {
            let mut number = 0;
            while !over.load(Ordering::SeqCst) {
                match try_publish(&broker, &queue, number).await {
                    Ok(()) => {
                        number += 1;
                        published.store(number, Ordering::SeqCst);
                    }
                    Err(error) => {
                        assert!(
                            !error.is_certain(),
                            "a server that is away is not the message's fault: {error}"
                        );
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            number
        }
    });
    let (broker, backend) = (worker.broker(), worker.backend());
    let mut consumer = consume(&broker, &queue, 20).await;
    let mut came = BTreeSet::new();
    for kill in 0..2 {
        while came.len() < 200 * (kill + 1) {
            let delivery = within(STEP_TIMEOUT, "a message", consumer.next()).await.unwrap();
            if delivery.receipt.settle(Settle::Ack).await == Settled::Done {
                came.insert(number_of(&delivery.message));
            }
        }
        server = tokio::task::spawn_blocking(move || {
            server.kill().unwrap();
            server.start_again().unwrap();
            server
        })
        .await
        .unwrap();
        let id = TaskId::fresh();
        let commit = Commit { facts: vec![("name".into(), "add".into())], ..Commit::new(&id) };
        let written = eventually(STEP_TIMEOUT, async || {
            let answers = backend.commit(vec![commit.clone().into()]).await;
            matches!(answers[..], [Ok(Committed::Done { .. })])
        });
        assert!(written.await, "no commit after a restart");
    }
    over.store(true, Ordering::SeqCst);
    let count = within(STEP_TIMEOUT, "the publisher", publisher).await.unwrap();
    let all = async {
        while came.len() < count {
            let delivery = consumer.next().await.unwrap();
            if delivery.receipt.settle(Settle::Ack).await == Settled::Done {
                came.insert(number_of(&delivery.message));
            }
        }
    };
    within(Duration::from_secs(60), "every confirmed message", all).await;
    // Settlements that were on their way reach the server, too.
    let url = server.url();
    let empty = eventually(STEP_TIMEOUT, async || {
        let row =
            side_door(&url).await.query_one("SELECT count(*) FROM machinist.messages", &[]).await.unwrap();
        row.get::<_, i64>(0) == 0
    });
    assert!(empty.await, "settled messages are left");
    broker.close().await;
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

/// Messages of a process that is gone come back when its lease is over; a process that lives keeps what it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_over_gives_its_messages_to_others() {
    let Some(schema) = Schema::fresh() else { return };
    let queue = queue("work");
    let (gone, other) = (schema.connect().await.broker(), schema.connect().await.broker());
    publish(&gone, &queue, 0..3).await;
    let mut held = consume(&gone, &queue, 3).await;
    let first = held.next().await.unwrap();
    // As if the process did not renew: its row is too old, and what it believes does not count.
    schema.run("UPDATE {s}.holders SET expires = clock_timestamp() - interval '1 second'").await;
    let mut consumer = consume(&other, &queue, 10).await;
    let mut came = BTreeSet::new();
    while came.len() < 3 {
        let delivery = within(STEP_TIMEOUT, "a message", consumer.next()).await.unwrap();
        assert!(delivery.redelivered);
        came.insert(number_of(&delivery.message));
        assert_eq!(delivery.receipt.settle(Settle::Ack).await, Settled::Done);
    }
    // It learns of its loss with the next renewal, and settles nothing by then.
    first.receipt.settle(Settle::Requeue).await;
    let lost = eventually(Duration::from_secs(10), async || held.health().disconnects() == 1).await;
    assert!(lost, "the loss is not counted");
    let empty = eventually(Duration::from_secs(10), async || {
        other.depth(std::slice::from_ref(&queue)).await.unwrap()[0].ready == Some(0)
    });
    assert!(empty.await, "the old receipt has settled a message of another process");
    schema.drop().await;
}

/// The answer to a claim was lost: only the server knows of the messages. They come with a renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_was_lost_is_found() {
    let Some(schema) = Schema::fresh() else { return };
    let queue = queue("work");
    let broker = schema.connect().await.broker();
    let mut consumer = consume(&broker, &queue, 10).await;
    schema
        .run(
            "INSERT INTO {s}.messages (due, holder, deliveries, rank, dead, delayed, queue, body) \
             SELECT 0, max(id), 1, 0, false, false, 'work', '7' FROM {s}.holders",
        )
        .await;
    let delivery = within(STEP_TIMEOUT, "the message", consumer.next()).await.unwrap();
    assert_eq!((number_of(&delivery.message), delivery.redelivered), (7, true));
    delivery.receipt.settle(Settle::Ack).await;
    schema.drop().await;
}

/// A connection that is cut ends no lease: what the process holds stays its own, and settles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_keeps_what_is_held() {
    let Some(schema) = Schema::fresh() else { return };
    let queue = queue("work");
    let (proxy, through) = crate::support::proxy(&schema.url).await;
    let broker = schema.connect_through(&through).await.broker();
    publish(&broker, &queue, 0..2).await;
    let mut consumer = consume(&broker, &queue, 1).await;
    let held = consumer.next().await.unwrap();
    proxy.cut();
    assert_eq!(held.receipt.settle(Settle::Ack).await, Settled::Done);
    let next = within(STEP_TIMEOUT, "the next message", consumer.next()).await.unwrap();
    assert_eq!((number_of(&next.message), next.redelivered), (1, false));
    assert_eq!(next.receipt.settle(Settle::Ack).await, Settled::Done);
    assert_eq!(consumer.health().disconnects(), 0);
    let empty = eventually(Duration::from_secs(10), async || {
        schema.count("SELECT count(*) FROM {s}.messages").await == 0
    });
    assert!(empty.await, "a settlement was lost");
    schema.drop().await;
}
