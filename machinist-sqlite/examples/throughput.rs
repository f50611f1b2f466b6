//! Measures the throughput of one file, its latency and the cost of waiting, with a sending and a working process.
//!
//! `cargo run --release -p machinist-sqlite --example throughput -- 20000 full`

#![expect(clippy::print_stdout, reason = "a program that prints its measurements")]

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use machinist_core::{
    backend::{Backend, Commit, Expiry},
    broker::{Broker, Consume, Message, Publish, Settle, Target},
    error::BoxError,
    id::{QueueName, TaskId},
    record::FactName,
};
use machinist_sqlite::{SqliteOptions, SqliteStore, Synchronous};
use tokio::sync::Semaphore;

/// Time after which records expire.
const RECORD_EXPIRY: Duration = Duration::from_secs(3600);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().as_deref().unwrap_or("20000").parse()?;
    let synchronous = args.next().unwrap_or_else(|| "full".to_owned());
    let concurrency: usize = args.next().as_deref().unwrap_or("64").parse()?;
    let options = SqliteOptions {
        synchronous: if synchronous == "normal" { Synchronous::Normal } else { Synchronous::Full },
        ..SqliteOptions::default()
    };
    if let Some(path) = args.next() {
        return send(&SqliteStore::open(path, options).await?, count, concurrency).await;
    }
    let directory = tempfile::tempdir_in(".")?;
    let path = directory.path().join("machinist.db");
    let store = SqliteStore::open(&path, options).await?;
    let started = Instant::now();
    let mut sender = start_sender(&path, count, &synchronous, concurrency)?;
    work(&store, count, concurrency).await?;
    let took = started.elapsed();
    sender.wait()?;
    println!("send + drain: {count} in {took:.2?}, {:.0} tasks/s", count as f64 / took.as_secs_f64());
    measure_latency(&store).await?;
    measure_idle(&store).await
}

fn start_sender(
    path: &Path,
    count: usize,
    synchronous: &str,
    concurrency: usize,
) -> Result<std::process::Child, BoxError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(count.to_string()).arg(synchronous).arg(concurrency.to_string()).arg(path);
    Ok(command.spawn()?)
}

fn queue() -> Result<QueueName, BoxError> {
    Ok(QueueName::parse("throughput")?)
}

fn fact(name: &str, value: &str) -> (FactName, Bytes) {
    (name.to_owned().into(), Bytes::copy_from_slice(value.as_bytes()))
}

fn commit(id: &TaskId, facts: Vec<(FactName, Bytes)>) -> Commit {
    Commit { facts, expiry: Expiry::After(RECORD_EXPIRY), ..Commit::new(id.clone()) }
}

async fn send_one(store: &SqliteStore) -> Result<TaskId, BoxError> {
    let broker = store.broker();
    let backend = store.backend();
    let id = TaskId::fresh();
    let mut message =
        Message { id: Some(id.to_string()), body: Bytes::from(vec![b'x'; 200]), ..Message::default() };
    for name in ["machinist-signature", "machinist-issued", "machinist-queue", "machinist-eta"] {
        message.headers.insert(name.to_owned().into(), "0123456789abcdef0123456789abcdef".into());
    }
    let facts =
        ["name", "queue", "root", "trace", "sent"].map(|name| fact(name, "\"0123456789abcdef0123456789\""));
    let publish = Publish { target: Target::Queue(queue()?), message, delay: Duration::ZERO };
    let (recorded, published) =
        tokio::join!(backend.commit(vec![commit(&id, facts.into()).into()]), broker.publish(vec![publish]));
    recorded.into_iter().next().ok_or("no answer")??;
    published.into_iter().next().ok_or("no answer")??;
    Ok(id)
}

async fn send(store: &SqliteStore, count: usize, concurrency: usize) -> Result<(), BoxError> {
    let started = Instant::now();
    let senders = (0..concurrency).map(|sender| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in (sender..count).step_by(concurrency) {
                send_one(&store).await?;
            }
            Ok::<_, BoxError>(())
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await??;
    }
    println!("sent in {:.2?}", started.elapsed());
    store.close().await;
    Ok(())
}

async fn work(store: &SqliteStore, count: usize, concurrency: usize) -> Result<(), BoxError> {
    let mut consumer =
        store.broker().consume(Consume { queues: vec![queue()?], prefetch: 2 * concurrency as u16 }).await?;
    let slots = Arc::new(Semaphore::new(concurrency));
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..count {
        let delivery = consumer.next().await.ok_or("the store was closed")?;
        let slot = slots.clone().acquire_owned().await?;
        let backend = store.backend();
        let done = done.clone();
        tokio::spawn(async move {
            let id = TaskId::parse(delivery.message.id.as_deref().unwrap_or_default())?;
            let start =
                fact("s:1:1", "{\"session\":\"0123456789abcdef\",\"run\":\"0123456789abcdef\",\"token\":1}");
            let end = fact("end", "{\"kind\":\"success\",\"results\":[5],\"at\":1234567890123456}");
            for (fact, wake) in [(start, false), (end, true)] {
                let commit = Commit { wake, unless: vec!["end".into()], ..commit(&id, vec![fact]) };
                backend.commit(vec![commit.into()]).await.remove(0)?;
            }
            delivery.receipt.settle(Settle::Ack).await;
            done.fetch_add(1, Ordering::Relaxed);
            drop(slot);
            Ok::<_, BoxError>(())
        });
    }
    drop(slots.acquire_many(concurrency as u32).await?);
    assert_eq!(done.load(Ordering::Relaxed), count);
    Ok(())
}

/// Measures the latency of one task at a time, sent by another store as by another process.
async fn measure_latency(store: &SqliteStore) -> Result<(), BoxError> {
    let other = SqliteStore::open(store.path(), SqliteOptions::default()).await?;
    let mut consumer = store.broker().consume(Consume { queues: vec![queue()?], prefetch: 1 }).await?;
    let mut latencies = Vec::new();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let started = Instant::now();
        send_one(&other).await?;
        let delivery = consumer.next().await.ok_or("closed")?;
        latencies.push(started.elapsed());
        delivery.receipt.settle(Settle::Ack).await;
    }
    latencies.sort_unstable();
    println!("single task, send to delivery: p50 {:.2?}, p99 {:.2?}", latencies[50], latencies[99]);
    Ok(())
}

/// Measures the processor time of a consumer that waits.
async fn measure_idle(store: &SqliteStore) -> Result<(), BoxError> {
    let _consumer = store.broker().consume(Consume { queues: vec![queue()?], prefetch: 1 }).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Processor time is read from /proc, which only Linux has.
    let Ok(before) = cpu_seconds() else { return Ok(()) };
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("idle: {:.2} % of a core", (cpu_seconds()? - before) / 10.0 * 100.0);
    Ok(())
}

/// Processor time that this process has used, in seconds.
fn cpu_seconds() -> Result<f64, BoxError> {
    let mut nanos = 0u64;
    for task in std::fs::read_dir("/proc/self/task")? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += stat.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e9)
}
