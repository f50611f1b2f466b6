//! What a scrape shows of an application over the in-memory adapters.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use machinist_conformance::eventually;
use machinist_core::{
    App, Backoff, RetryPolicy, Signature, TaskDef, TaskError, Worker,
    backend::Backend,
    broker::{Broker, Message, Publish, Target},
    event::Event,
    id::QueueName,
    worker::Drained,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use machinist_metrics::{METRICS, Metrics};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const WORK: TaskDef<(bool,), ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);

async fn work(succeeds: bool) -> Result<(), TaskError> {
    if succeeds { Ok(()) } else { Err(TaskError::new("boom")) }
}

/// Broker and backend of a test.
struct Servers {
    broker: Arc<MemoryBroker>,
    backend: Arc<MemoryBackend>,
}

/// A process with metrics.
struct Process {
    metrics: Metrics,
    app: App,
}

impl Servers {
    fn new() -> Self {
        Self { broker: Arc::new(MemoryBroker::new()), backend: Arc::new(MemoryBackend::new()) }
    }

    async fn process(&self) -> Process {
        let metrics = Metrics::builder().build();
        let backend = metrics.timed(Arc::clone(&self.backend) as Arc<dyn Backend>);
        let builder = App::builder(Arc::clone(&self.broker) as Arc<dyn Broker>, backend);
        let app = builder.observer(metrics.clone()).build().await.unwrap();
        Process { metrics, app }
    }
}

impl Process {
    fn start(&self) -> (CancellationToken, JoinHandle<Drained>) {
        let worker = Worker::builder(&self.app).name("one").concurrency(3).task(WORK, work).build().unwrap();
        self.metrics.attach(worker.health());
        let stop = CancellationToken::new();
        let until = stop.clone().cancelled_owned();
        (stop, tokio::spawn(async move { worker.run_until(until).await.unwrap() }))
    }

    /// Returns the value of a series, if it is shown.
    fn value(&self, series: &str) -> Option<f64> {
        let text = self.metrics.prometheus();
        let found =
            text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        found.map(|value| value.parse().unwrap())
    }

    async fn until(&self, series: &str, value: f64) {
        let holds = eventually(MINUTE, async || self.value(series) == Some(value)).await;
        assert!(holds, "{series} is not {value} in\n{}", self.metrics.prometheus());
    }
}

fn queue(name: &str) -> QueueName {
    QueueName::parse(name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn tasks_are_counted_where_they_ended() {
    let servers = Servers::new();
    let process = servers.process().await;
    let (stop, worker) = process.start();
    let client = process.app.client();
    process.until("machinist_slots_limit", 3.0).await;
    let policy = RetryPolicy::new(1).backoff(Backoff::fixed(MINUTE));
    let mut sent = Vec::new();
    for succeeds in [true, true, false] {
        sent.push(client.send(WORK.call((succeeds,)).retry_policy(policy.clone())).await.unwrap());
    }
    for task in &sent {
        task.wait_record(MINUTE * 10).await.unwrap();
    }
    for (series, value) in [
        (r#"machinist_task_ended_total{queue="default",state="SUCCESS",task="work"}"#, 2.0),
        (r#"machinist_task_ended_total{kind="error",queue="default",state="FAILURE",task="work"}"#, 1.0),
        (r#"machinist_task_retries_total{queue="default",task="work"}"#, 1.0),
        (
            r#"messaging_client_sent_messages_total{messaging_destination_name="default",messaging_system="machinist"}"#,
            3.0,
        ),
        (
            r#"messaging_client_consumed_messages_total{messaging_destination_name="default",messaging_system="machinist"}"#,
            4.0,
        ),
        (
            r#"messaging_process_duration_seconds_count{messaging_destination_name="default",messaging_system="machinist"}"#,
            2.0,
        ),
        (r#"machinist_task_wait_duration_seconds_count{queue="default",stage="run",task="work"}"#, 4.0),
        (r#"machinist_slots_busy"#, 0.0),
    ] {
        process.until(series, value).await;
    }
    // The back-off was asked for: no wait is as long.
    let waited = process
        .value(r#"machinist_task_wait_duration_seconds_sum{queue="default",stage="broker",task="work"}"#)
        .unwrap();
    assert!(waited < 5.0, "{waited}");
    assert!(process.value(r#"db_client_operation_duration_seconds_count{db_operation_name="commit",db_system_name="memory"}"#).unwrap() > 3.0);
    stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropped_sends_are_counted_in_a_process_that_only_sends() {
    let metrics = Metrics::builder().build();
    let builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    let builder = builder.max_depth(queue("full"), 1).observer(metrics.clone());
    let process = Process { metrics, app: builder.build().await.unwrap() };
    let client = process.app.client();
    client.send(WORK.call((true,)).queue("full")).await.unwrap();
    let waiting = client.send_buffered(WORK.call((true,)).queue("full")).await.unwrap();
    client.flush_buffer(Duration::from_secs(1)).await;
    assert!(waiting.confirmed().await.is_err());
    assert_eq!(process.value(r#"machinist_send_dropped_total{queue="full"}"#), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_fails_changes_nothing_and_is_counted() {
    let servers = Servers::new();
    let metrics = Metrics::builder().build();
    let (broker, backend) = (Arc::clone(&servers.broker), Arc::clone(&servers.backend));
    let builder = App::builder(broker as Arc<dyn Broker>, backend as Arc<dyn Backend>)
        .observer(|event: &Event<'_>| assert_ne!(event.name(), "sent", "as if the observer were wrong"))
        .observer(metrics.clone());
    let process = Process { metrics, app: builder.build().await.unwrap() };
    let (stop, worker) = process.start();
    let task = process.app.client().send(WORK.call((true,))).await.unwrap();
    task.wait_record(MINUTE).await.unwrap();
    process.until("machinist_hook_failures_total", 1.0).await;
    stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_scrape_shows_what_the_catalog_lists() {
    let servers = Servers::new();
    let process = servers.process().await;
    let (stop, worker) = process.start();
    let task = process.app.client().send(WORK.call((false,))).await.unwrap();
    task.wait_record(MINUTE).await.unwrap();
    process.until(r#"machinist_queue_messages{queue="default",state="ready"}"#, 0.0).await;
    let text = process.metrics.prometheus();
    let mut types: BTreeSet<&str> = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let metric = METRICS.iter().find(|metric| metric.prometheus_name() == name);
        assert_eq!(
            metric.unwrap_or_else(|| panic!("{name} is not in the catalog")).kind.as_str(),
            kind,
            "{name}"
        );
        types.insert(name);
    }
    for expected in
        ["machinist_build_info", "machinist_queue_oldest_age_seconds", "machinist_dead_letters_total"]
    {
        assert!(types.contains(expected), "{expected} is not in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        for word in ["one", "boom", task.id().as_str()] {
            assert!(!line.contains(&format!("\"{word}\"")), "{line}");
        }
    }
    stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn names_that_strangers_make_up_make_no_series() {
    let servers = Servers::new();
    let process = servers.process().await;
    let (stop, worker) = process.start();
    let client = process.app.client();
    let many = (0..10_000).map(|n| Signature::new(format!("task{n}")).queue(format!("queue{n}")));
    for sent in client.send_all(many.collect()).await {
        sent.unwrap();
    }
    let unknown = (0..300).map(|n| Signature::new(format!("unknown{n}")));
    for sent in client.send_all(unknown.collect()).await {
        sent.unwrap();
    }
    // Messages that are not believed, each with an error that names it.
    let strange = (0..300).map(|n| Publish {
        target: Target::Queue(queue("default")),
        message: Message {
            id: Some(format!("id{n}")),
            kind: Some(format!("strange{n}")),
            ..Message::default()
        },
        delay: Duration::ZERO,
    });
    for published in servers.broker.publish(strange.collect()).await {
        published.unwrap();
    }
    let refused = eventually(MINUTE, async || {
        process.metrics.prometheus().contains("machinist_task_refused_total{queue=\"default\"")
    });
    assert!(refused.await);
    let text = process.metrics.prometheus();
    for metric in METRICS {
        let name = metric.prometheus_name();
        let series =
            |suffix: &str| text.lines().filter(|line| line.starts_with(&format!("{name}{suffix}{{"))).count();
        let count = series("").max(series("_count"));
        assert!(count <= 2000, "{name} has {count} series");
    }
    assert!(!text.contains("task17") && !text.contains("unknown17") && !text.contains("strange17"));
    assert!(text.contains(r#"task="_unknown""#) && text.contains(r#"messaging_destination_name="_other""#));
    assert!(process.value("machinist_series_dropped_total").unwrap() > 9000.0);
    stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_queue_grows_while_nothing_is_taken_from_it() {
    let servers = Servers::new();
    let process = servers.process().await;
    let client = process.app.client();
    client.send(WORK.call((true,)).queue("stuck")).await.unwrap();
    let (stop, worker) = process.start();
    let age = r#"machinist_queue_oldest_age_seconds{queue="stuck"}"#;
    process.until(r#"machinist_queue_messages{queue="stuck",state="ready"}"#, 1.0).await;
    process.until(r#"machinist_queue_consumers{queue="stuck"}"#, 0.0).await;
    let before = process.value(age).unwrap();
    tokio::time::sleep(MINUTE * 5).await;
    let after = process.value(age).unwrap();
    assert!((280.0..320.0).contains(&(after - before)), "{before} {after}");
    assert_eq!(
        process.value(r#"machinist_queue_oldest_age_seconds{queue="default"}"#),
        Some(0.0),
        "it is empty"
    );

    // Another process goes on from here, also after the first one is gone.
    stop.cancel();
    worker.await.unwrap();
    let next = servers.process().await;
    let (stop, worker) = next.start();
    let shown = eventually(MINUTE, async || next.value(age).is_some_and(|age| age >= after)).await;
    assert!(shown, "{:?} after {after}", next.value(age));
    assert_eq!(process.value(age), None, "the first one shows nothing any more");
    stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_queue_that_is_worked_on_is_that_of_what_was_taken_last() {
    let servers = Servers::new();
    let process = servers.process().await;
    let (stop, worker) = process.start();
    process.until(r#"machinist_queue_messages{queue="default",state="ready"}"#, 0.0).await;
    let client = process.app.client();
    client.pause_queue(&queue("default")).await.unwrap();
    client.send(WORK.call((true,))).await.unwrap();
    tokio::time::sleep(MINUTE * 3).await;
    let age = process.value(r#"machinist_queue_oldest_age_seconds{queue="default"}"#).unwrap();
    assert!((170.0..200.0).contains(&age), "{age}");
    client.resume_queue(&queue("default")).await.unwrap();
    process.until(r#"machinist_queue_oldest_age_seconds{queue="default"}"#, 0.0).await;
    stop.cancel();
    worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_process_at_a_time_shows_the_queues() {
    let servers = Servers::new();
    let (first, second) = (servers.process().await, servers.process().await);
    let (stop_first, first_ended) = first.start();
    let (stop_second, second_ended) = second.start();
    let series = r#"machinist_queue_messages{queue="default",state="ready"}"#;
    let mut shown_by_second = false;
    for second_number in 0..120 {
        let shown = [first.value(series), second.value(series)];
        assert!(shown.iter().flatten().count() <= 1, "{shown:?} after {second_number} s");
        shown_by_second |= second_number > 60 && (shown[1].is_some() || shown[0].is_some());
        if second_number == 60 {
            stop_first.cancel();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(shown_by_second, "the right to measure has moved");
    first_ended.await.unwrap();
    stop_second.cancel();
    second_ended.await.unwrap();
}
