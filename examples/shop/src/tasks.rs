//! Tasks of the shop, and the errors that say what follows.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use machinist::{TaskFailure, WorkerBuilder, prelude::*};

/// An order, as it travels to the worker.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, WireArg)]
pub struct Order {
    /// Address of the customer.
    pub email: String,
    /// Price of each item, in cents.
    pub cents: Vec<u64>,
}

/// What the handlers share: here the charges that a bank knows, each under its own key.
pub type Charges = Arc<Mutex<BTreeSet<String>>>;

/// Error of a charge.
#[derive(Debug, TaskFailure, thiserror::Error)]
pub enum ChargeError {
    /// Nothing helps.
    #[error("the card was refused")]
    #[task_error(permanent)]
    Refused,
    /// The bank asks to come back.
    #[error("the bank is busy")]
    #[task_error(retry_in = "30s")]
    Busy,
}

/// Adds up an order.
#[machinist::task(queue = "orders")]
pub async fn total(order: Order) -> Result<u64, TaskError> {
    Ok(order.cents.iter().sum())
}

/// Charges an amount once, however often it runs.
#[machinist::task(queue = "orders", retries = 5, timeout = "30s")]
pub async fn charge(State(charges): State<Charges>, cx: TaskContext, cents: u64) -> Result<(), TaskError> {
    match cents {
        0 => Err(ChargeError::Refused)?,
        1 if cx.postponements() == 0 => Err(ChargeError::Busy)?,
        _ => charges.lock().map_err(|_| "poisoned")?.insert(cx.task_id().to_string()),
    };
    Ok(())
}

/// Sends a mail. The first server is away: the second attempt takes another one.
#[machinist::task(queue = "mail", retries = 3)]
pub async fn send_mail(to: String, cx: TaskContext) -> Result<String, TaskError> {
    if !to.contains('@') {
        return Err(TaskError::permanent(format!("{to} is no address")));
    }
    match cx.attempt() {
        1 => Err("the mail server did not answer".into()),
        _ => Ok(format!("sent to {to}")),
    }
}

/// Makes a report, on a thread of its own because it computes.
#[machinist::task(queue = "reports", timeout = "10m")]
pub fn report(year: u32) -> Result<u64, TaskError> {
    Ok((1..=u64::from(year)).sum())
}

/// Adds all tasks to a worker.
pub fn with_tasks(worker: WorkerBuilder, charges: Charges) -> WorkerBuilder {
    worker
        .state(charges)
        .failure::<ChargeError>()
        .task(TOTAL, total)
        .task(CHARGE, charge)
        .task(SEND_MAIL, send_mail)
        .task_blocking(REPORT, report)
}
