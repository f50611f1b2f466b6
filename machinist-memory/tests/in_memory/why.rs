//! The answers to "why does it not run?", in situations that senders and workers bring about over the in-memory adapters.

use std::{sync::Arc, time::Duration};

use crate::support::Running;
use machinist_conformance::eventually;
use machinist_core::{
    App, AsyncResult, Backoff, Client, RetryPolicy, TaskDef, TaskError, Why, WhyReason, Worker,
    WorkerBuilder,
    id::{QueueName, TaskId},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

/// Sleeps for this many milliseconds; fails if there are none.
const SLOW: TaskDef<(u64,), ()> = TaskDef::new("slow");
const OTHER: TaskDef<(), ()> = TaskDef::new("other");
const MINUTE: Duration = Duration::from_secs(60);

async fn slow(millis: u64) -> Result<(), TaskError> {
    if millis == 0 {
        return Err(TaskError::new("boom"));
    }
    tokio::time::sleep(Duration::from_millis(millis)).await;
    Ok(())
}

async fn app() -> App {
    let builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    builder.build().await.unwrap()
}

fn worker(app: &App) -> WorkerBuilder {
    Worker::builder(app).name("one").concurrency(1).task(SLOW, slow)
}

/// Returns the answer about a task, once its reason is this one.
async fn why<R>(client: &Client, task: &AsyncResult<R>, reason: WhyReason) -> Why {
    let mut last = client.why(task.id()).await.unwrap();
    let is_so = eventually(MINUTE, async || {
        last = client.why(task.id()).await.unwrap();
        last.reason == reason
    });
    assert!(is_so.await, "{last:?}");
    last
}

#[tokio::test(start_paused = true)]
async fn the_reasons_follow_the_life_of_tasks() {
    let app = app().await;
    let client = app.client();
    let first = client.send(SLOW.call((5_000,))).await.unwrap();
    let none = why(&client, &first, WhyReason::NoConsumer).await;
    assert_eq!((none.evidence.consumers, none.evidence.ready), (0, Some(1)));
    let late = client.send(SLOW.call((1,)).countdown(MINUTE * 60)).await.unwrap();
    let delayed = why(&client, &late, WhyReason::Delayed).await;
    assert_eq!(delayed.also, [WhyReason::NoConsumer]);

    let running = Running::start(worker(&app));
    let runs = why(&client, &first, WhyReason::Running).await;
    assert!(runs.sentence.starts_with("worker one runs attempt 1 since"), "{runs:?}");
    let second = client.send(SLOW.call((10,))).await.unwrap();
    let busy = why(&client, &second, WhyReason::Busy).await;
    assert!(busy.sentence.contains("has a free slot; they run slow (1)"), "{busy:?}");
    let strange = client.send(OTHER.call(())).await.unwrap();
    let unknown = why(&client, &strange, WhyReason::UnknownTask).await;
    assert!(unknown.sentence.contains("knows the task other"), "{unknown:?}");

    second.wait(MINUTE).await.unwrap();
    let ended = why(&client, &second, WhyReason::Ended).await;
    assert!(ended.sentence.ends_with("for a worker); its run took 10 ms"), "{ended:?}");
    let retries = SLOW.call((0,)).retry_policy(RetryPolicy::new(1).backoff(Backoff::fixed(MINUTE)));
    let retried = client.send(retries).await.unwrap();
    let waits = why(&client, &retried, WhyReason::Retry).await;
    assert!(waits.sentence.starts_with("attempt 1 has failed (boom)"), "{waits:?}");
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_queue_and_an_unknown_id_have_answers() {
    let app = app().await;
    let client = app.client();
    let id = TaskId::parse("nobody").unwrap();
    assert_eq!(client.why(&id).await.unwrap().reason, WhyReason::UnknownId);
    let queue = QueueName::parse("default").unwrap();
    client.send(SLOW.call((1,))).await.unwrap();
    let none = client.why_queue(&queue).await.unwrap();
    assert_eq!((none.reason, none.queue.as_deref()), (WhyReason::NoConsumer, Some("default")));
    let meant = client.why_queue(&QueueName::parse("defualt").unwrap()).await.unwrap();
    assert_eq!((meant.reason, &*meant.advice), (WhyReason::UnknownId, "did you mean default?"));
    client.pause_queue(&queue).await.unwrap();
    let paused = client.why_queue(&queue).await.unwrap();
    assert_eq!((paused.reason, &*paused.also), (WhyReason::Paused, &[WhyReason::NoConsumer][..]));
}
