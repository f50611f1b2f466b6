//! Events that processes publish for readers in other processes, over the in-memory adapters.

use std::{sync::Arc, time::Duration};

use crate::support::Running;
use machinist_core::{
    App, EventFilter, EventStream, FailureGroup, TaskDef, TaskError, TaskFilter, TaskSearch, Worker,
    backend::{Backend, Index},
    broker::Broker,
    event_stream::{PublishedEvents, StreamedEvent},
    record::TaskState,
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

/// Sends tasks and waits for their ends.
async fn run_all(app: &App, count: usize, succeeds: bool, label: &str) {
    let call = |_| WORK.call((succeeds,)).label("tenant", label);
    let sent = app.client().send_all((0..count).map(call).collect()).await;
    for task in sent {
        task.unwrap().wait_record(MINUTE).await.unwrap();
    }
    app.flush_events().await;
}

fn failed() -> TaskSearch {
    let mut filter = TaskFilter::new();
    (filter.state, filter.error) = (Some(TaskState::Failure), Some("boom".to_owned()));
    TaskSearch::new(filter)
}

async fn listed(servers: &Servers) -> usize {
    servers.backend.list(&Index::Ended, None, 1000).await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_are_listed_in_batches_and_found_page_by_page() {
    let servers = Servers::new();
    let app = servers.app(PublishedEvents::Failures).await;
    let running = worker(&app);
    for round in 0..3 {
        run_all(&app, 40, false, &format!("t{round}")).await;
        run_all(&app, 5, true, "t").await;
        tokio::time::sleep(MINUTE).await;
    }
    assert!(listed(&servers).await <= 30, "{}", listed(&servers).await);
    let mut search = failed();
    search.limit = 7;
    let mut seen = Vec::new();
    loop {
        let page = app.client().search_tasks(&search).await.unwrap();
        assert!(page.looked_at <= page.listed && page.cut == 0, "{page:?}");
        seen.extend(page.records.iter().map(|record| (record.ended_at.unwrap(), record.id.to_string())));
        search.after = page.next;
        if search.after.is_none() {
            break;
        }
        assert_eq!(page.records.len(), 7);
    }
    assert_eq!(seen.len(), 120);
    assert!(seen.is_sorted_by(|a, b| a > b), "the newest first, each once");

    let count = async |search: &TaskSearch| app.client().search_tasks(search).await.unwrap().records.len();
    let mut of_label = failed();
    of_label.labels.insert("tenant".to_owned(), "t1".to_owned());
    assert_eq!(count(&of_label).await, 40);
    let with = |change: &dyn Fn(&mut TaskFilter)| {
        let mut search = failed();
        change(&mut search.filter);
        search
    };
    let since = app.clock().now().minus(MINUTE + Duration::from_secs(1));
    for (search, expected) in [
        (with(&|filter| filter.since = Some(since)), 40),
        (with(&|filter| filter.worker = Some("one".to_owned())), 100),
        (with(&|filter| filter.worker = Some("two".to_owned())), 0),
        (with(&|filter| filter.name = Some("other".to_owned())), 0),
        (with(&|filter| filter.error = Some("bang".to_owned())), 0),
        (with(&|filter| (filter.state, filter.error) = (Some(TaskState::Success), None)), 0),
        (with(&|filter| (filter.state, filter.error) = (None, None)), 100),
    ] {
        assert_eq!(count(&search).await, expected, "{search:?}");
    }
    assert!(running.stop().await.is_clean());
    drop(app);

    // What was listed outlives the records, and nothing outlives its time.
    tokio::time::sleep(Duration::from_secs(26 * 3600)).await;
    let page = servers.app(PublishedEvents::Off).await.client().search_tasks(&failed()).await.unwrap();
    assert_eq!((page.records.len(), page.records[0].sent_at), (100, None));
    assert_eq!(page.records[0].error.as_ref().unwrap().message(), "boom");
    tokio::time::sleep(Duration::from_secs(7 * 24 * 3600)).await;
    let app = servers.app(PublishedEvents::Failures).await;
    let after = worker(&app);
    tokio::time::sleep(MINUTE * 3).await;
    assert_eq!(listed(&servers).await, 0);
    assert!(app.client().search_tasks(&failed()).await.unwrap().records.is_empty());
    assert!(after.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn successes_push_no_failure_out_and_the_list_can_be_off() {
    let servers = Servers::new();
    let off = servers.app(PublishedEvents::Off).await;
    let running = worker(&off);
    run_all(&off, 5, false, "t").await;
    assert_eq!(listed(&servers).await, 0);
    assert!(running.stop().await.is_clean());

    let app = servers.app(PublishedEvents::All).await;
    let running = worker(&app);
    run_all(&app, 100, true, "t").await;
    run_all(&app, 1, false, "t").await;
    let mut search = TaskSearch::new(TaskFilter::new());
    search.filter.error = Some("nobody says this".to_owned());
    let all = app.client().search_tasks(&search).await.unwrap();
    assert_eq!((all.records.len(), all.looked_at, all.listed, all.next), (0, 101, 101, None));
    let failed = app.client().search_tasks(&failed()).await.unwrap();
    assert_eq!((failed.records.len(), failed.listed), (1, 1));
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn waiting_tasks_that_are_known_are_listed_and_the_rest_is_a_number() {
    let servers = Servers::new();
    let app = servers.app(PublishedEvents::Off).await;
    let client = app.client();
    for hours in 1..=3 {
        let late = WORK.call((true,)).countdown(MINUTE * 60 * hours);
        client.send(late).await.unwrap();
    }
    client.send(WORK.call((true,))).await.unwrap();
    let mut filter = TaskFilter::new();
    filter.state = Some(TaskState::Pending);
    let mut search = TaskSearch::new(filter);
    search.limit = 2;
    let first = client.search_tasks(&search).await.unwrap();
    assert_eq!((first.records.len(), first.queued), (2, Some(1)));
    assert!(first.records[0].eta < first.records[1].eta);
    search.after = first.next;
    let second = client.search_tasks(&search).await.unwrap();
    assert_eq!((second.records.len(), second.next), (1, None));
}

#[tokio::test(start_paused = true)]
async fn failures_are_grouped_by_cause() {
    const BREAK: TaskDef<(String,), ()> = TaskDef::new("break");
    async fn fail(why: String) -> Result<(), TaskError> {
        Err(TaskError::new(why))
    }

    let servers = Servers::new();
    let app = servers.app(PublishedEvents::Failures).await;
    let running = Running::start(Worker::builder(&app).task(WORK, work).task(BREAK, fail));
    run_all(&app, 2, false, "t").await;
    tokio::time::sleep(MINUTE * 120).await;
    for why in ["no file 'a 1'", "no file 'b'", "other"] {
        let task = app.client().send(BREAK.call((why.to_owned(),))).await.unwrap();
        task.wait_record(MINUTE).await.unwrap();
    }
    app.flush_events().await;
    let found = app.client().failures(None).await.unwrap();
    let of = |group: &FailureGroup| (group.task.clone(), group.error.clone(), group.count, group.last_hour);
    let mut groups: Vec<_> = found.groups.iter().map(of).collect();
    groups.sort_unstable();
    let group =
        |task: &str, error: &str, count, last_hour| (task.to_owned(), error.to_owned(), count, last_hour);
    let expected =
        [group("break", "no file \"…\"", 2, 2), group("break", "other", 1, 1), group("work", "boom", 2, 0)];
    assert_eq!(groups, expected);
    assert_eq!((found.looked_at, found.listed, found.other, found.cut), (5, 5, 0, 0));
    assert_eq!(found.groups[2].kind, "error");
    let recent = app.client().failures(Some(app.clock().now().minus(MINUTE * 60))).await.unwrap();
    assert_eq!(recent.groups.len(), 2);
    assert!(running.stop().await.is_clean());
}
