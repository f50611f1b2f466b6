//! Logs of tasks, over the in-memory adapters.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::Running;
use async_trait::async_trait;
use machinist_core::{
    App, AsyncResult, LogLevel, ResultError, TaskContext, TaskDef, TaskError, TaskId, TaskLog, Worker,
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    event::{Event, EventKind},
    id::{RecordId, RecordKind},
    record::{Facts, TaskState},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::{sync::Semaphore, time::Instant};

const SAY: TaskDef<(Vec<String>,), ()> = TaskDef::new("say");
const MINUTE: Duration = Duration::from_secs(60);

/// Logs each text, after a permit for it.
async fn say(texts: Vec<String>, cx: TaskContext) -> Result<(), TaskError> {
    let permits: Arc<Semaphore> = cx.state().unwrap();
    for text in texts {
        permits.acquire().await.unwrap().forget();
        match text.strip_prefix("fail ") {
            Some(why) if cx.attempt() == 1 => return Err(TaskError::new(why.to_owned())),
            _ => cx.log(text),
        }
    }
    Ok(())
}

async fn app(backend: Arc<dyn Backend>) -> App {
    App::builder(Arc::new(MemoryBroker::new()), backend).build().await.unwrap()
}

fn texts(texts: &[&str]) -> (Vec<String>,) {
    (texts.iter().map(|text| (*text).to_owned()).collect(),)
}

fn said(log: &TaskLog) -> Vec<&str> {
    log.lines.iter().map(|line| line.text.as_str()).collect()
}

/// Waits until the log has this many lines.
async fn until(task: &AsyncResult<()>, lines: usize) -> TaskLog {
    let mut log = task.log().await.unwrap();
    while log.lines.len() < lines {
        let newer = tokio::time::timeout(MINUTE, task.log_changed(&log, MINUTE)).await;
        log = newer.expect("it comes").unwrap();
    }
    log
}

#[tokio::test(start_paused = true)]
async fn lines_are_readable_while_the_task_runs_and_each_attempt_has_its_own() {
    let app = app(Arc::new(MemoryBackend::new())).await;
    let permits = Arc::new(Semaphore::new(1));
    let worker = Worker::builder(&app).state(Arc::clone(&permits)).task(SAY, say);
    let running = Running::start(worker);
    let call = SAY.call(texts(&["one", "fail boom", "two"])).retries(1);
    let task = app.client().send(call).await.unwrap();
    task.changed(None, MINUTE).await.unwrap();
    let early = until(&task, 1).await;
    assert_eq!((said(&early), task.state().await.unwrap()), (vec!["one"], TaskState::Started));
    permits.add_permits(4);
    task.wait(MINUTE).await.unwrap();
    let log = task.log().await.unwrap();
    assert_eq!(said(&log), ["one", "one", "fail boom", "two"]);
    assert_eq!(log.lines.iter().map(|line| line.attempt).collect::<Vec<_>>(), [1, 2, 2, 2]);
    assert!(log.lines.is_sorted_by_key(|line| line.at));
    assert_eq!((log.lines[0].level, log.all_missing()), (LogLevel::Info, 0));
    let unknown = app.client().log(&TaskId::fresh()).await;
    assert!(matches!(unknown, Err(ResultError::Unknown { .. })), "{unknown:?}");
    assert!(running.stop().await.is_clean());
    // It goes with the result.
    tokio::time::sleep(Duration::from_secs(25 * 3600)).await;
    assert!(matches!(task.log().await, Err(ResultError::Unknown { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_bounded_and_a_task_without_lines_stores_none() {
    let backend = Arc::new(MemoryBackend::new());
    let app = app(backend.clone()).await;
    let worker = Worker::builder(&app).state(Arc::new(Semaphore::new(1000))).task(SAY, say);
    let running = Running::start(worker);
    let flood = "x".repeat(1000) + "\n\u{1b}[31mred\u{0}";
    let task = app.client().send(SAY.call((vec![flood; 500],))).await.unwrap();
    task.wait(MINUTE).await.unwrap();
    let log = task.log().await.unwrap();
    assert_eq!(log.lines.len() as u64 + log.all_missing(), 1000);
    assert!(log.all_missing() > 0 && log.lines[0].missing > 0);
    assert_eq!(said(&log).last(), Some(&"\u{1b}[31mred\u{0}"));
    let bytes: usize = log.lines.iter().map(|line| line.text.len()).sum();
    assert!((40_000..=64 * 1024).contains(&bytes), "{bytes}");
    let silent = app.client().send(SAY.call((vec![],))).await.unwrap();
    silent.wait(MINUTE).await.unwrap();
    let record = RecordId::new(RecordKind::Log, silent.id().as_str());
    assert!(backend.read(&[record]).await.unwrap()[0].is_empty());
    assert!(silent.log().await.unwrap().lines.is_empty());
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn tracing_events_of_a_handler_are_lines_of_its_log() {
    use machinist_core::TaskLogLayer;
    use tracing::Instrument;
    use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt};

    const TRACE: TaskDef<(), ()> = TaskDef::new("trace");
    async fn trace() -> Result<(), TaskError> {
        tracing::warn!(n = 7, who = "me", "careful");
        tracing::debug!("too detailed");
        let part = tracing::info_span!("part");
        tokio::spawn(async { tracing::info!("elsewhere") }.instrument(part)).await?;
        tokio::spawn(async { tracing::error!("in the span of the task") }.in_current_span()).await?;
        tokio::task::yield_now().await;
        tracing::info!("two\nlines");
        Ok(())
    }

    let subscriber = tracing_subscriber::registry().with(TaskLogLayer::new().with_filter(LevelFilter::INFO));
    let _default = tracing::subscriber::set_default(subscriber);
    let app = app(Arc::new(MemoryBackend::new())).await;
    let running = Running::start(Worker::builder(&app).task(TRACE, trace));
    // A place that another test came to first, on a thread without a subscriber, is off until the places are asked again. After
    // this run all of them are known.
    app.client().send(TRACE.call(())).await.unwrap().wait(MINUTE).await.unwrap();
    tracing::callsite::rebuild_interest_cache();
    let task = app.client().send(TRACE.call(())).await.unwrap();
    task.wait(MINUTE).await.unwrap();
    let log = task.log().await.unwrap();
    let expected = ["careful n=7 who=\"me\"", "elsewhere", "in the span of the task", "two", "lines"];
    assert_eq!(said(&log), expected);
    let levels = [LogLevel::Warn, LogLevel::Info, LogLevel::Error, LogLevel::Info, LogLevel::Info];
    assert_eq!(log.lines.iter().map(|line| line.level).collect::<Vec<_>>(), levels);
    assert_eq!(task.record().await.unwrap().log, "", "the outcome repeats what `cx.log` was given");
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_cannot_be_stored_delays_an_outcome_by_seconds_and_changes_nothing() {
    let app = app(Arc::new(Deaf(MemoryBackend::new()))).await;
    let worker = Worker::builder(&app).state(Arc::new(Semaphore::new(1))).task(SAY, say);
    let running = Running::start(worker);
    let begun = Instant::now();
    let task = app.client().send(SAY.call(texts(&["one"]))).await.unwrap();
    task.wait(MINUTE).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(said(&task.log().await.unwrap()), Vec::<&str>::new());
    assert_eq!(task.record().await.unwrap().log, "one\n");
    assert!(running.stop().await.is_clean());
}

/// Backend that never answers to the commit of a log.
#[derive(Debug)]
struct Deaf(MemoryBackend);

#[async_trait]
impl Diagnose for Deaf {
    fn location(&self) -> String {
        self.0.location()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        self.0.diagnose().await
    }
}

#[async_trait]
impl Backend for Deaf {
    fn capabilities(&self) -> BackendCapabilities {
        self.0.capabilities()
    }
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        if batch.iter().any(|commit| commit.id.kind() == RecordKind::Log) {
            std::future::pending::<()>().await;
        }
        self.0.commit(batch).await
    }
    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        self.0.read(ids).await
    }
    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.0.watch(id).await
    }
    async fn now(&self) -> Result<Timestamp, BackendError> {
        self.0.now().await
    }
    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.0.update_indexes(updates).await
    }
    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        self.0.list(index, after, limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn observers_are_told_of_each_line_once() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&told);
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()))
        .observer(move |event: &Event<'_>| {
            if let EventKind::Logged { task, level, text, encrypted: false, .. } = event.kind {
                lines.lock().unwrap().push((task.attempt, level, text.to_owned()));
            }
        })
        .build()
        .await
        .unwrap();
    let worker = Worker::builder(&app).state(Arc::new(Semaphore::new(9))).task(SAY, say);
    let running = Running::start(worker);
    let call = SAY.call(texts(&["one", "fail boom", "two"])).retries(1);
    app.client().send(call).await.unwrap().wait(MINUTE).await.unwrap();
    assert!(running.stop().await.is_clean());
    let line = |attempt, text: &str| (attempt, LogLevel::Info, text.to_owned());
    let expected = [line(1, "one"), line(2, "one"), line(2, "fail boom"), line(2, "two")];
    assert_eq!(*told.lock().unwrap(), expected);
}
