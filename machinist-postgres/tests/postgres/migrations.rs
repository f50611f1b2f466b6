//! The schema: the first process creates it, and every process checks it.

use machinist_core::broker::{Broker, Settle};
use machinist_postgres::{Migrations, PostgresOptions, PostgresStore, SchemaMode};

use crate::support::{Schema, consume, publish, queue, side_door};

fn migrations(schema: &Schema) -> Migrations {
    Migrations::new(&schema.url, schema.options()).unwrap()
}

async fn refusal(url: &str, options: PostgresOptions) -> String {
    match PostgresStore::connect(url, options).await {
        Ok(_) => panic!("it connects"),
        Err(error) => error.to_string(),
    }
}

fn verify(schema: &Schema) -> PostgresOptions {
    PostgresOptions { schema_mode: SchemaMode::Verify, ..schema.options() }
}

/// Processes that start at once do not meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_create_one_schema() {
    let Some(schema) = Schema::fresh() else { return };
    let starts: Vec<_> = (0..6)
        .map(|_| {
            let (url, options) = (schema.url.clone(), schema.options());
            tokio::spawn(async move { PostgresStore::connect(&url, options).await.map(drop) })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let state = migrations(&schema).check().await.unwrap();
    assert_eq!((state.found, state.needed), (1, 1));
    assert!(migrations(&schema).apply(None).await.unwrap().is_empty(), "nothing is left to do");
    schema.drop().await;
}

/// A user without the right to create tables works once somebody else has created them, with the rights that are printed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_printed_rights_are_enough() {
    let Some(schema) = Schema::fresh() else { return };
    let user = format!("app-{}", schema.name);
    let door = schema.side_door().await;
    door.batch_execute(&format!("CREATE ROLE \"{user}\" LOGIN")).await.unwrap();
    let as_user = schema.url.replacen("postgres@", &format!("{user}@"), 1);

    let missing = refusal(&as_user, verify(&schema)).await;
    assert!(missing.contains("does not exist") && missing.contains("machinist migrate"), "{missing}");
    assert_eq!(migrations(&schema).apply(Some(1)).await.unwrap().len(), 1);
    let denied = refusal(&as_user, verify(&schema)).await;
    assert!(denied.contains("lacks a right") && denied.contains("--print"), "{denied}");

    let script = migrations(&schema).script(0);
    let rights: Vec<&str> = script.lines().filter_map(|line| line.strip_prefix("-- GRANT ")).collect();
    assert_eq!(rights.len(), 4);
    for right in rights {
        let grant = format!("GRANT {}", right.replace(" TO app", &format!(" TO \"{user}\"")));
        door.batch_execute(&grant).await.unwrap();
    }
    let broker = PostgresStore::connect(&as_user, verify(&schema)).await.unwrap().broker();
    let queue = queue("work");
    publish(&broker, &queue, 0..1).await;
    let mut consumer = consume(&broker, &queue, 1).await;
    consumer.next().await.unwrap().receipt.settle(Settle::Ack).await;
    broker.close().await;
    schema.drop().await;
    door.batch_execute(&format!("DROP ROLE \"{user}\"")).await.unwrap();
}

/// The printed script makes the same schema by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_printed_script_creates_the_schema() {
    let Some(schema) = Schema::fresh() else { return };
    schema.side_door().await.batch_execute(&migrations(&schema).script(0)).await.unwrap();
    PostgresStore::connect(&schema.url, verify(&schema)).await.unwrap();
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_somebody_else_is_refused() {
    let Some(schema) = Schema::fresh() else { return };
    schema.run("CREATE SCHEMA {s}; CREATE TABLE {s}.users (name text)").await;
    let foreign = refusal(&schema.url, schema.options()).await;
    assert!(foreign.contains("tables of another program"), "{foreign}");
    schema.drop().await;

    drop(schema.connect().await);
    let other = PostgresOptions { namespace: "other".to_owned(), ..schema.options() };
    let url = format!("{}?schema={}", schema.url, schema.name);
    let belongs = refusal(&url, other).await;
    assert!(belongs.contains("belongs to the namespace"), "{belongs}");

    schema.run("UPDATE {s}.meta SET version = 99").await;
    let newer = refusal(&schema.url, schema.options()).await;
    assert!(newer.contains("version 99") && newer.contains("a newer program"), "{newer}");
    assert!(migrations(&schema).apply(None).await.unwrap_err().to_string().contains("version 99"));
    schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_another_encoding_is_refused() {
    let Some(schema) = Schema::fresh() else { return };
    let name = schema.name.replace('-', "_");
    let door = side_door(&schema.url).await;
    let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    door.batch_execute(&create).await.unwrap();
    let (server, _) = schema.url.rsplit_once('/').unwrap();
    let refused = refusal(&format!("{server}/{name}"), schema.options()).await;
    door.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    assert!(refused.contains("LATIN1") && refused.contains("createdb --encoding=UTF8"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_is_told_with_the_remedy() {
    let Some(schema) = Schema::fresh() else { return };
    let (server, _) = schema.url.rsplit_once('/').unwrap();
    let missing = refusal(&format!("{server}/nowhere"), schema.options()).await;
    assert!(missing.contains("create the database"), "{missing}");
    let plain = refusal(&format!("{}?sslmode=require", schema.url), schema.options()).await;
    assert!(plain.contains("does not speak TLS"), "{plain}");
}
