//! What metrics cost: no allocation for a task. Counted by an allocator that counts, so in a test program by itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{sync::Arc, time::Duration};

use machinist_core::{App, TaskDef, TaskError, Worker};
use machinist_memory::{MemoryBackend, MemoryBroker};
use machinist_metrics::Metrics;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const NOTHING: TaskDef<(), ()> = TaskDef::new("nothing");
const TASKS: u64 = 300;

async fn nothing() -> Result<(), TaskError> {
    Ok(())
}

/// Sends and runs tasks, and returns the number of allocations meanwhile.
async fn allocations(metrics: Option<Metrics>) -> u64 {
    let mut builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    if let Some(metrics) = metrics {
        builder = builder.observer(metrics);
    }
    let app = builder.build().await.unwrap();
    let worker = Worker::builder(&app).name("w").task(NOTHING, nothing).build().unwrap();
    let ready = worker.ready();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    ready.cancelled().await;
    let run = async || {
        let task = app.client().send(NOTHING.call(())).await.unwrap();
        task.wait(Duration::from_secs(600)).await.unwrap();
    };
    // The first ones make the series.
    for _ in 0..10 {
        run().await;
    }
    let before = dhat::HeapStats::get().total_blocks;
    for _ in 0..TASKS {
        run().await;
    }
    let after = dhat::HeapStats::get().total_blocks;
    working.abort();
    after - before
}

#[tokio::test(start_paused = true)]
async fn a_task_costs_no_allocation_more() {
    let _profiler = dhat::Profiler::builder().testing().build();
    allocations(None).await;
    let without = allocations(None).await;
    let with = allocations(Some(Metrics::builder().build())).await;
    // The measurement of the queues may fall in between.
    assert!(with < without + TASKS / 2, "{with} with metrics, {without} without");
}
