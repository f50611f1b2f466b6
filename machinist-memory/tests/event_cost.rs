//! What events cost: no allocation, observed or not. Counted by an allocator that counts, so in a test program by itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, AppBuilder, TaskDef, TaskError, Worker, event::Event, event_stream::PublishedEvents,
};
use machinist_memory::{MemoryBackend, MemoryBroker};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const NOTHING: TaskDef<(), ()> = TaskDef::new("nothing");
const TASKS: usize = 100;

async fn nothing() -> Result<(), TaskError> {
    Ok(())
}

/// Sends and runs tasks, and returns the number of allocations meanwhile.
async fn allocations(configure: impl FnOnce(AppBuilder) -> AppBuilder) -> u64 {
    let builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    let app = configure(builder).build().await.unwrap();
    let worker = Worker::builder(&app).name("w").task(NOTHING, nothing).build().unwrap();
    let ready = worker.ready();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    ready.cancelled().await;
    let before = dhat::HeapStats::get().total_blocks;
    for _ in 0..TASKS {
        let task = app.client().send(NOTHING.call(())).await.unwrap();
        task.wait(Duration::from_secs(600)).await.unwrap();
    }
    let after = dhat::HeapStats::get().total_blocks;
    working.abort();
    after - before
}

#[tokio::test(start_paused = true)]
async fn events_allocate_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    // The first round fills what is filled once.
    allocations(|builder| builder).await;
    let unobserved = allocations(|builder| builder).await;
    let seen = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&seen);
    let observed = allocations(|builder| {
        builder.observer(move |_: &Event<'_>| {
            counted.fetch_add(1, Ordering::Relaxed);
        })
    })
    .await;
    // Sent, received, started, ended; and the start of the worker.
    assert_eq!(seen.load(Ordering::Relaxed), 4 * TASKS as u64 + 1);
    assert_eq!(observed, unobserved);
    // Failures are published, and there are none. The start of the worker is published in the meantime.
    let published = allocations(|builder| builder.events(PublishedEvents::Failures)).await;
    assert!(published < unobserved + TASKS as u64 / 2, "{published} instead of {unobserved}");
}
