//! The history of tasks and queues, the marks in it, and what follows from it for queues.

use std::{sync::Arc, time::Duration};

use crate::support::Running;
use machinist_core::{
    App, HistoryCount, HistorySelection, HistoryStep, MarkError, TaskDef, TaskError, TaskHistory, Worker,
    backend::Backend, broker::Broker, event_stream::PublishedEvents,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::sleep;

const WORK: TaskDef<(bool,), ()> = TaskDef::new("work");
const SLEEP: TaskDef<(u64,), ()> = TaskDef::new("sleep");
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

async fn work(succeeds: bool) -> Result<(), TaskError> {
    sleep(Duration::from_millis(300)).await;
    if succeeds { Ok(()) } else { Err(TaskError::new("boom")) }
}

async fn sleep_for(seconds: u64) -> Result<(), TaskError> {
    sleep(Duration::from_secs(seconds)).await;
    Ok(())
}

async fn app(which: PublishedEvents) -> (App, Arc<MemoryBackend>) {
    let backend = Arc::new(MemoryBackend::new());
    let there = Arc::clone(&backend) as Arc<dyn Backend>;
    let builder = App::builder(Arc::new(MemoryBroker::new()) as Arc<dyn Broker>, there);
    (builder.events(which).build().await.unwrap(), backend)
}

fn worker(app: &App) -> Running {
    let worker = Worker::builder(app).name("one").concurrency(4);
    Running::start(worker.task(WORK, work).task(SLEEP, sleep_for))
}

/// Returns what happened since an age, and the length of the buckets that tell it.
async fn since(app: &App, age: Duration) -> (HistoryStep, TaskHistory) {
    let since = app.clock().now().minus(age);
    let history = app.client().history(since, &HistorySelection::new()).await.unwrap();
    let mut sum = TaskHistory::default();
    history.points.iter().for_each(|point| sum.merge(&point.sum()));
    (history.step, sum)
}

fn numbers(sum: &TaskHistory) -> [u64; 3] {
    [&sum.received, &sum.succeeded, &sum.failed].map(|count: &HistoryCount| count.count)
}

#[tokio::test(start_paused = true)]
async fn every_task_is_counted_once_in_buckets_of_every_length() {
    let (app, _) = app(PublishedEvents::Failures).await;
    let running = worker(&app);
    for number in 0..35 {
        app.client().send(WORK.call((number % 7 != 0,))).await.unwrap().wait_record(MINUTE).await.unwrap();
    }
    sleep(Duration::from_secs(20)).await;
    let (step, sum) = since(&app, 10 * MINUTE).await;
    assert_eq!((step, numbers(&sum)), (HistoryStep::TenSeconds, [35, 30, 5]));
    let took = sum.succeeded.times.quantile(0.95).unwrap();
    assert!((took.as_secs_f64() / 0.3 - 1.0).abs() < 0.2, "{took:?}");
    sleep(70 * MINUTE).await;
    let (step, sum) = since(&app, 2 * HOUR).await;
    assert_eq!((step, numbers(&sum)), (HistoryStep::Minute, [35, 30, 5]));
    // The last part is written at the end of the worker, and nobody merges for a day.
    app.client().send(WORK.call((true,))).await.unwrap().wait_record(MINUTE).await.unwrap();
    assert!(running.stop().await.is_clean());
    let (_, sum) = since(&app, 2 * HOUR).await;
    assert_eq!(numbers(&sum), [36, 31, 5]);
    sleep(26 * HOUR).await;
    let before = since(&app, 48 * HOUR).await;
    let running = worker(&app);
    sleep(MINUTE).await;
    for (step, sum) in [before, since(&app, 48 * HOUR).await] {
        assert_eq!((step, numbers(&sum)), (HistoryStep::TenMinutes, [36, 31, 5]));
    }
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_selection_marks_and_measurements() {
    let (app, _) = app(PublishedEvents::Failures).await;
    let client = app.client();
    let running = worker(&app);
    assert_eq!(client.mark("release 7").await.unwrap().text, "release 7");
    assert!(matches!(client.mark("two\nlines").await, Err(MarkError::Text(_))));
    for seconds in [60, 60, 60, 60, 1, 1] {
        client.send(SLEEP.call((seconds,))).await.unwrap();
    }
    sleep(Duration::from_secs(45)).await;
    let mut selection = HistorySelection::new();
    selection.queue = Some("default".try_into().unwrap());
    let since = app.clock().now().minus(MINUTE);
    let history = client.history(since, &selection).await.unwrap();
    let texts: Vec<&str> = history.marks.iter().map(|mark| mark.text.as_str()).collect();
    assert!(texts.contains(&"release 7"), "{texts:?}");
    assert!(texts.iter().any(|text| text.starts_with("first worker of version ")), "{texts:?}");
    let last = history.points.iter().rev().find_map(|point| point.queues.get("default")).unwrap();
    assert_eq!((last.consumers, last.busy, last.slots), (1, 4, 4), "{last:?}");
    selection.task = Some("work".try_into().unwrap());
    assert_eq!(client.history(since, &selection).await.unwrap().points, []);

    let details = client.queue_details(&["default".try_into().unwrap()]).await.unwrap().pop().unwrap();
    assert_eq!(details.out_rate.map(|rate| rate > 0.0), Some(true), "{details:?}");
    assert!(details.unacked >= Some(4), "{details:?}");
    assert!(!details.paused);
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_recorded_without_events() {
    let (app, _) = app(PublishedEvents::Off).await;
    let running = worker(&app);
    app.client().send(WORK.call((true,))).await.unwrap().wait_record(MINUTE).await.unwrap();
    sleep(MINUTE).await;
    assert!(running.stop().await.is_clean());
    let history =
        app.client().history(app.clock().now().minus(HOUR), &HistorySelection::new()).await.unwrap();
    assert_eq!((history.points, history.marks), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_look_at_a_queue_shows_its_tasks_and_leaves_them() {
    let (app, _) = app(PublishedEvents::Off).await;
    let (client, queue) = (app.client(), "default".try_into().unwrap());
    let mut ids = Vec::new();
    for succeeds in [true, false, true] {
        ids.push(client.send(WORK.call((succeeds,))).await.unwrap().id().clone());
    }
    client.send(WORK.call((true,)).countdown(HOUR)).await.unwrap();
    for _ in 0..20 {
        let peek = client.peek_queue(&queue, 2).await.unwrap();
        let seen: Vec<_> = peek.records.iter().map(|record| (&record.id, record.name.as_deref())).collect();
        assert_eq!(seen, [(&ids[0], Some("work")), (&ids[1], Some("work"))]);
        assert_eq!(peek.unnamed, 0);
    }
    let details = client.queue_details(std::slice::from_ref(&queue)).await.unwrap().pop().unwrap();
    assert_eq!((details.ready, details.delayed, details.unacked), (Some(3), Some(1), Some(0)));
    assert_eq!((details.in_rate, details.empty_in, details.oldest_age), (None, None, None), "nobody knows");
    let nowhere = client.peek_queue(&"nowhere".try_into().unwrap(), 2).await.unwrap();
    assert_eq!(nowhere.records, []);
}
