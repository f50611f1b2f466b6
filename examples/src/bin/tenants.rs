//! A service that allows each customer five calls in a second, and 20 customers who have more to do than that.
//!
//! ```text
//! cargo run -p machinist-examples --bin tenants
//! ```
//!
//! Two workers share one limit for each customer. The service counts the calls and says how many came at once.

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use machinist::{
    TaskDef,
    limit::{Limit, LimitKey, Rate},
    prelude::*,
    worker::TaskOptions,
};

const CALL: TaskDef<(String, u32), ()> = TaskDef::new("call");
const CUSTOMERS: u32 = 20;
const CALLS: u32 = 15;
const SECOND: Duration = Duration::from_secs(1);

/// The service: the times of the calls of each customer.
#[derive(Clone, Default)]
struct Service(Arc<Mutex<HashMap<String, Vec<Instant>>>>);

impl Service {
    fn call(&self, customer: String) {
        let mut calls = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        calls.entry(customer).or_default().push(Instant::now());
    }

    /// Returns the number of calls, and the most that one customer made within a second.
    fn seen(&self) -> (usize, usize) {
        let calls = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let within = |times: &[Instant]| {
            let from =
                |at: &Instant| times.iter().filter(|other| *other >= at && **other < *at + SECOND).count();
            times.iter().map(from).max().unwrap_or(0)
        };
        (calls.values().map(Vec::len).sum(), calls.values().map(|times| within(times)).max().unwrap_or(0))
    }
}

async fn call(State(service): State<Service>, customer: String, _page: u32) -> Result<(), TaskError> {
    service.call(customer);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = App::from_env().await?;
    let service = Service::default();
    let limit = Limit::new().rate(Rate::parse("5/s").map_err(anyhow::Error::msg)?).key(key("{0}")?);
    let mut workers = Vec::new();
    let stop = tokio::sync::watch::Sender::new(false);
    for name in ["one", "two"] {
        let worker = Worker::builder(&app)
            .name(name)
            .queue("tenants")
            .concurrency(32)
            .state(service.clone())
            .task(CALL, call)
            .options("call", TaskOptions::new().limit(limit.clone()))
            .build()?;
        let mut stopped = stop.subscribe();
        workers
            .push(tokio::spawn(worker.run_until(async move { drop(stopped.wait_for(|stop| *stop).await) })));
    }

    let client = app.client();
    let before = Instant::now();
    let all = (0..CALLS).flat_map(|page| {
        (0..CUSTOMERS).map(move |customer| CALL.call((format!("customer-{customer}"), page)).queue("tenants"))
    });
    let mut tasks = Vec::new();
    for sent in client.send_all(all.collect()).await {
        tasks.push(sent?);
    }
    for task in &tasks {
        task.wait(Duration::from_secs(120)).await?;
    }
    let (calls, most) = service.seen();
    println!("{calls} calls of {CUSTOMERS} customers in {:.1} s", before.elapsed().as_secs_f64());
    println!("at most {most} of one customer within a second");

    stop.send_replace(true);
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

fn key(template: &str) -> anyhow::Result<LimitKey> {
    LimitKey::template(template).map_err(anyhow::Error::msg)
}
