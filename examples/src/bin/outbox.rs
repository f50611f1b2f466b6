//! Exactly one task for each placed order: the order and its task are written in one transaction, and a relay sends the
//! task.
//!
//! ```text
//! cargo run -p machinist-examples --bin outbox -- lamp
//! ```
//!
//! places an order, sends the tasks of the outbox, and runs them. `outbox lamp crash` aborts between sending and deleting
//! the row: the next start sends the task again, under the same id, and it is run once. Orders and queue are files in the
//! current directory.

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use anyhow::Context;
use machinist::{TaskId, prelude::*};
use rusqlite::Connection;

const SHIP: TaskDef<String, ()> = TaskDef::new("ship");

async fn ship(cx: TaskContext, item: String) -> Result<(), TaskError> {
    println!("run of {}: shipped {item}", cx.task_id());
    Ok(())
}

/// Writes the order and the task, or neither.
fn place_order(shop: &mut Connection, item: &str) -> rusqlite::Result<TaskId> {
    let task = TaskId::fresh();
    let transaction = shop.transaction()?;
    transaction.execute("INSERT INTO orders (item) VALUES (?1)", [item])?;
    transaction.execute("INSERT INTO outbox (task_id, item) VALUES (?1, ?2)", (task.as_str(), item))?;
    transaction.commit()?;
    Ok(task)
}

/// Sends the rows of the outbox, oldest first. A row is deleted after the broker has confirmed its message, not before.
async fn relay(
    client: &Client,
    shop: &Connection,
    sent: impl Fn(&TaskId),
) -> anyhow::Result<Vec<AsyncResult<()>>> {
    let mut rows = shop.prepare("SELECT task_id, item FROM outbox ORDER BY rowid")?;
    let rows = rows.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
    let mut results = Vec::new();
    for (task, item) in rows {
        let id = TaskId::parse(&task)?;
        // After any error the row is still there, and the next relay sends the same task: it keeps its id.
        results.push(client.send(SHIP.call(item).queue("orders").with_id(id.clone())).await?);
        sent(&id);
        shop.execute("DELETE FROM outbox WHERE task_id = ?1", [&task])?;
    }
    Ok(results)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let item = arguments.next().context("name the item to order: outbox lamp")?;
    let crash = arguments.next().is_some_and(|word| word == "crash");
    let mut shop = Connection::open("shop.db")?;
    shop.execute_batch(
        "CREATE TABLE IF NOT EXISTS orders (item TEXT NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS outbox (task_id TEXT PRIMARY KEY, item TEXT NOT NULL) STRICT;",
    )?;
    println!("ordered {item}: {}", place_order(&mut shop, &item)?);

    let app = App::from_env().await?;
    let sent = |task: &TaskId| {
        println!("sent {task}");
        if crash {
            std::process::abort();
        }
    };
    let results = relay(&app.client(), &shop, sent).await?;

    let worker = Worker::builder(&app).queue("orders").task(SHIP, ship).build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    for result in results {
        result.wait(Duration::from_secs(60)).await?;
    }
    drop(stop);
    worker.await??;
    Ok(())
}
