//! Events that processes publish for readers in other processes, over the in-memory adapters.

use std::{sync::Arc, time::Duration};

use crate::support::Running;
use machinist_core::{
    App, EventFilter, EventStream, TaskDef, TaskError, Worker,
    backend::{Backend, Index},
    broker::Broker,
    event_stream::{PublishedEvents, StreamedEvent},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::{Instant, timeout};

const WORK: TaskDef<(bool,), ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);

async fn work(succeeds: bool) -> Result<(), TaskError> {
    if succeeds { Ok(()) } else { Err(TaskError::new("boom")) }
}

#[derive(Clone)]
struct Servers {
    broker: Arc<MemoryBroker>,
    backend: Arc<MemoryBackend>,
}

impl Servers {
    fn new() -> Self {
        Self { broker: Arc::new(MemoryBroker::new()), backend: Arc::new(MemoryBackend::new()) }
    }

    async fn app(&self, which: PublishedEvents) -> App {
        let (broker, backend) = (Arc::clone(&self.broker), Arc::clone(&self.backend));
        let builder = App::builder(broker as Arc<dyn Broker>, backend as Arc<dyn Backend>);
        builder.events(which).build().await.unwrap()
    }
}

fn worker(app: &App) -> Running {
    Running::start(Worker::builder(app).name("one").task(WORK, work))
}

/// Reads until an event has this name, and returns the names on the way.
async fn until(events: &mut EventStream, name: &str) -> Vec<StreamedEvent> {
    let mut seen = Vec::new();
    loop {
        seen.push(timeout(MINUTE, events.next()).await.expect("an event").unwrap());
        if seen.last().is_some_and(|event| event.event == name) {
            return seen;
        }
    }
}

fn names(events: &[StreamedEvent]) -> Vec<&str> {
    events.iter().map(|event| event.event.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn every_change_reaches_a_reader_within_a_second() {
    let servers = Servers::new();
    let app = servers.app(PublishedEvents::All).await;
    let mut events = servers.app(PublishedEvents::Off).await.client().events(EventFilter::new());
    let running = worker(&app);
    until(&mut events, "worker_started").await;
    let begun = Instant::now();
    let task = app.client().send(WORK.call((true,))).await.unwrap();
    let seen = until(&mut events, "ended").await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let mut sorted = names(&seen);
    sorted.sort_unstable();
    assert_eq!(sorted, ["ended", "received", "sent", "started"]);
    let bytes: usize = seen.iter().map(|event| serde_json::to_vec(event).unwrap().len()).sum();
    assert!(
        bytes < 300 * seen.len(),
        "docs/observing.md promises less than {bytes} bytes for {}",
        seen.len()
    );
    let ended = seen.last().unwrap();
    assert_eq!(ended.id.as_deref(), Some(task.id().as_str()));
    assert_eq!((ended.task.as_deref(), ended.queue.as_deref()), (Some("work"), Some("default")));
    assert_eq!((ended.state.as_deref(), ended.worker.as_deref()), (Some("SUCCESS"), Some("one")));
    assert!(running.stop().await.is_clean());
    until(&mut events, "worker_ended").await;
}

#[tokio::test(start_paused = true)]
async fn failures_alone_are_published_and_filtered() {
    let servers = Servers::new();
    let app = servers.app(PublishedEvents::Failures).await;
    let mut filter = EventFilter::new();
    filter.state = Some("failure".to_owned());
    let mut events = app.client().events(filter);
    let running = worker(&app);
    for succeeds in [true, false] {
        app.client().send(WORK.call((succeeds,))).await.unwrap().wait_record(MINUTE).await.unwrap();
    }
    let seen = until(&mut events, "ended").await;
    assert_eq!(names(&seen), ["ended"]);
    assert_eq!((seen[0].kind.as_deref(), seen[0].error.as_deref()), (Some("error"), Some("boom")));
    let mut other = EventFilter::new();
    (other.worker, other.since) = (Some("two".to_owned()), MINUTE);
    let silence = timeout(Duration::from_secs(5), async { app.client().events(other).next().await }).await;
    assert!(silence.is_err(), "{silence:?}");
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_late_reader_sees_the_last_minute_and_what_is_over_leaves_nothing() {
    let servers = Servers::new();
    let app = servers.app(PublishedEvents::All).await;
    let send = async || app.client().send(WORK.call((true,))).await.unwrap();
    let early = send().await;
    tokio::time::sleep(MINUTE * 2).await;
    let late = send().await;
    app.flush_events().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut filter = EventFilter::new();
    filter.since = MINUTE * 10;
    let seen = until(&mut app.client().events(filter), "sent").await;
    assert_eq!(seen.last().unwrap().id.as_deref(), Some(late.id().as_str()), "not {}", early.id());
    assert_eq!(servers.backend.list(&Index::Events, None, 10).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_counted_and_a_reader_is_told_of_the_gap() {
    let servers = Servers::new();
    let app = servers.app(PublishedEvents::All).await;
    let mut events = app.client().events(EventFilter::new());
    // Sent at once: nothing is published in between.
    let many: Vec<_> = (0..6000).map(|_| WORK.call((true,))).collect();
    for sent in app.client().send_all(many).await {
        sent.unwrap();
    }
    let seen = until(&mut events, "gap").await;
    assert_eq!(seen.last().unwrap().missing, Some(2000));
    app.client().send(WORK.call((true,))).await.unwrap();
    let mut count = seen.len() - 1;
    while count < 4001 {
        let event = timeout(MINUTE, events.next()).await.expect("an event").unwrap();
        assert_eq!(event.event, "sent");
        count += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_publishes_nothing_writes_nothing() {
    let servers = Servers::new();
    let app = servers.app(PublishedEvents::Off).await;
    let running = worker(&app);
    app.client().send(WORK.call((false,))).await.unwrap().wait_record(MINUTE).await.unwrap();
    assert!(running.stop().await.is_clean());
    assert!(servers.backend.list(&Index::Events, None, 10).await.unwrap().is_empty());
}
