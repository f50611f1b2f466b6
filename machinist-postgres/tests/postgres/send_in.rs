//! Sends in a transaction of the application: committed is sent, rolled back never was.

use std::{sync::Arc, time::Duration};

use machinist::{
    App, TaskDef, TaskError, Unique, Worker,
    broker::Broker,
    memory::MemoryBroker,
    postgres::{SendIn, SendInError, tokio_postgres},
};
use machinist_conformance::{eventually, within};

use crate::support::{STEP_TIMEOUT, Schema, side_door};

const DOUBLE: TaskDef<(i64,), i64> = TaskDef::new("double");

async fn double(number: i64) -> Result<i64, TaskError> {
    Ok(2 * number)
}

async fn app(schema: &Schema) -> App {
    let store = schema.connect().await;
    let app = App::builder(Arc::new(store.broker()), Arc::new(store.backend()));
    app.allow_unsigned().build().await.unwrap()
}

async fn tables(schema: &Schema) -> (tokio_postgres::Client, String) {
    let table = format!("\"{}\".orders", schema.name);
    let db = schema.side_door().await;
    db.batch_execute(&format!("CREATE TABLE {table} (number bigint)")).await.unwrap();
    (db, table)
}

/// The task and the row of the application are there together or not at all. The state is known from the commit on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_send_is_delivered_and_one_that_is_rolled_back_never_was() {
    let Some(schema) = Schema::fresh() else { return };
    let app = app(&schema).await;
    let (mut db, table) = tables(&schema).await;
    let worker = Worker::builder(&app).task(DOUBLE, double).build().unwrap();
    let worker = tokio::spawn(worker.run_until(std::future::pending()));

    let mut tx = db.transaction().await.unwrap();
    tx.execute(&format!("INSERT INTO {table} VALUES (1)"), &[]).await.unwrap();
    let ghost = app.client().send_in(&mut tx, DOUBLE.call((1,))).await.unwrap();
    tx.rollback().await.unwrap();

    let mut tx = db.transaction().await.unwrap();
    tx.execute(&format!("INSERT INTO {table} VALUES (2)"), &[]).await.unwrap();
    let sent = app.client().send_in(&mut tx, DOUBLE.call((2,))).await.unwrap();
    let early = schema.count("SELECT count(*) FROM {s}.messages").await;
    assert_eq!(early, 0, "nobody sees it before the commit");
    tx.commit().await.unwrap();
    let outcome = within(STEP_TIMEOUT, "the result", sent.wait(STEP_TIMEOUT)).await;
    assert_eq!(outcome.unwrap(), 4);

    let ghosts = format!("SELECT count(*) FROM {{s}}.records WHERE name = '{}'", ghost.id());
    assert_eq!(schema.count(&ghosts).await, 0, "nothing of a send that was rolled back is left");
    let orders = format!("SELECT count(*) FROM {table} WHERE number = 2");
    assert_eq!(schema.count(&orders).await, 1);
    worker.abort();
    schema.drop().await;
}

/// The application ends between the send and the commit: its connection is lost, and the task with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_ends_before_the_commit_has_sent_nothing() {
    let Some(schema) = Schema::fresh() else { return };
    let app = app(&schema).await;
    let (proxy, through) = crate::support::proxy(&schema.url).await;
    let mut db = side_door(&through).await;
    let mut tx = db.transaction().await.unwrap();
    app.client().send_in(&mut tx, DOUBLE.call((1,))).await.unwrap();
    let open = "SELECT count(*) FROM pg_locks WHERE relation = '{s}.messages'::regclass AND mode = 'RowExclusiveLock'";
    assert!(schema.count(open).await > 0, "the transaction has written");
    proxy.cut();
    drop(tx);
    let ended = eventually(STEP_TIMEOUT, async || schema.count(open).await == 0).await;
    assert!(ended, "the server has not noticed");
    assert_eq!(schema.count("SELECT count(*) FROM {s}.messages").await, 0);
    assert_eq!(schema.count("SELECT count(*) FROM {s}.records WHERE kind = 'task'").await, 0);
    schema.drop().await;
}

/// What a transaction cannot promise is refused before anything is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_transaction_cannot_promise_is_refused() {
    let Some(schema) = Schema::fresh() else { return };
    let store = schema.connect().await;
    let app = app(&schema).await;
    let mut db = schema.side_door().await;

    let mut tx = db.transaction().await.unwrap();
    let unique = app.client().send_in(&mut tx, DOUBLE.call((1,)).unique(Unique::new())).await.unwrap_err();
    assert!(matches!(unique, SendInError::Send(_)) && unique.to_string().contains("unique"), "{unique}");
    let delayed = DOUBLE.call((1,)).countdown(Duration::from_secs(3600));
    app.client().send_in(&mut tx, delayed).await.unwrap();
    tx.commit().await.unwrap();
    let listed = "SELECT count(*) FROM {s}.notes WHERE list = 'scheduled'";
    assert_eq!(schema.count(listed).await, 1, "a delayed task is listed");

    let memory =
        App::builder(Arc::new(MemoryBroker::new()), Arc::new(store.backend())).build().await.unwrap();
    let mut tx = db.transaction().await.unwrap();
    let other = memory.client().send_in(&mut tx, DOUBLE.call((1,))).await.unwrap_err();
    assert!(matches!(other, SendInError::OtherBroker { .. }), "{other}");
    drop(tx);

    // A schema of the same name in another database is not the broker's.
    let name = schema.name.replace('-', "_");
    db.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (server, _) = schema.url.rsplit_once('/').unwrap();
    let url = format!("{server}/{name}");
    drop(schema.connect_through(&url).await);
    let mut elsewhere = side_door(&url).await;
    let mut tx = elsewhere.transaction().await.unwrap();
    let wrong = app.client().send_in(&mut tx, DOUBLE.call((1,))).await.unwrap_err();
    drop(tx);
    drop(elsewhere);
    db.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    assert!(wrong.to_string().contains("another database"), "{wrong}");
    store.broker().close().await;
    schema.drop().await;
}
