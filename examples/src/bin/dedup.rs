//! A task that runs twice but has its effect once: the effect and the task's id are written in one transaction.
//!
//! ```text
//! cargo run -p machinist-examples --bin dedup
//! ```
//!
//! The first run fails after its transaction, as if the answer of the database was lost, and the task is run again. With
//! `crash` at the end of the command the process aborts there instead; a second start without it takes the task over.
//! Queue and accounts are files in the current directory.

#![allow(clippy::print_stdout, reason = "it shows what it does")]
#![allow(clippy::needless_pass_by_value, reason = "a handler owns its arguments")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use machinist::{Backoff, TaskId, prelude::*};
use rusqlite::Connection;

/// Deposits cents to an account; returns `true` if this run made the deposit.
const DEPOSIT: TaskDef<(String, i64), bool> = TaskDef::new("deposit");

#[derive(Clone)]
struct Bank {
    accounts: Arc<Mutex<Connection>>,
    crash: bool,
}

/// Adds to an account, once for each task.
fn deposit_once(
    accounts: &mut Connection,
    task: &TaskId,
    account: &str,
    cents: i64,
) -> rusqlite::Result<bool> {
    let transaction = accounts.transaction()?;
    // A second run finds the row. One at the same time waits here for the end of the first.
    let sql = "INSERT INTO done (task_id) VALUES (?1) ON CONFLICT DO NOTHING";
    let first = transaction.execute(sql, [task.as_str()])? == 1;
    if first {
        let sql = "UPDATE accounts SET cents = cents + ?2 WHERE name = ?1";
        transaction.execute(sql, (account, cents))?;
    }
    transaction.commit()?;
    Ok(first)
}

fn deposit(
    State(bank): State<Bank>,
    cx: TaskContext,
    account: String,
    cents: i64,
) -> Result<bool, TaskError> {
    let mut accounts = bank.accounts.lock().map_err(|_| "another run panicked")?;
    let first = deposit_once(&mut accounts, cx.task_id(), &account, cents)?;
    println!(
        "run of {}, attempt {}, token {}: {}",
        cx.task_id(),
        cx.attempt(),
        cx.fencing_token(),
        if first { "deposited" } else { "was done before" }
    );
    if first && bank.crash {
        std::process::abort();
    }
    if first {
        return Err(TaskError::from("the answer of the database was lost"));
    }
    Ok(first)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let accounts = Connection::open("bank.db")?;
    accounts.execute_batch(
        "CREATE TABLE IF NOT EXISTS done (task_id TEXT PRIMARY KEY) STRICT;
         CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, cents INTEGER NOT NULL) STRICT;
         INSERT INTO accounts VALUES ('ada', 0) ON CONFLICT DO NOTHING;",
    )?;
    let accounts = Arc::new(Mutex::new(accounts));
    let bank = Bank { accounts: Arc::clone(&accounts), crash: std::env::args().any(|arg| arg == "crash") };

    let app = App::from_env().await?;
    let worker = Worker::builder(&app)
        .queue("bank")
        // Short, so that a run after `crash` starts soon.
        .session_lease(Duration::from_secs(3))
        .state(bank)
        .task_blocking(DEPOSIT, deposit)
        .build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));

    // The id names the purpose, so that a second send is the same task.
    let signature = DEPOSIT.call(("ada", 100)).queue("bank").with_id(TaskId::parse("deposit-4711")?);
    let retried = signature.retries(3).backoff(Backoff::fixed(Duration::from_millis(100)));
    app.client().send(retried).await?.wait(Duration::from_secs(60)).await?;

    drop(stop);
    worker.await??;
    let accounts = accounts.lock().map_err(|_| anyhow::anyhow!("a run panicked"))?;
    let cents: i64 = accounts
        .query_row("SELECT cents FROM accounts WHERE name = 'ada'", (), |row| row.get(0))
        .context("the account")?;
    println!("ada has {cents} cents");
    Ok(())
}
