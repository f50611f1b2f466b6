//! Task of another program: a worker reads its line, fails once, and succeeds at the second attempt.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist_core::{
    App, Backoff, QueueName, QueueOptions, State, TaskDef, TaskError, TaskId, Worker,
    broker::{Broker, Message, Publish, Target},
    record::{Record, TaskState},
    worker::TaskOptions,
};
use machinist_memory::MemoryBroker;
use machinist_toy_adapter::{CsvProfile, ToyBackend};

const RESIZE: TaskDef<(String, i64), String> = TaskDef::new("resize");
const LIMIT: Duration = Duration::from_secs(60);

async fn resize(State(runs): State<Arc<AtomicU32>>, file: String, width: i64) -> Result<String, TaskError> {
    if runs.fetch_add(1, Ordering::Relaxed) == 0 {
        return Err(TaskError::new("the disk is full"));
    }
    Ok(format!("{width}-{file}"))
}

async fn application(broker: &MemoryBroker, queue: &QueueName) -> App {
    let options = QueueOptions::default().profile(CsvProfile).allow_unsigned(["resize"]);
    let builder = App::builder(Arc::new(broker.connect()), Arc::new(ToyBackend::default()));
    builder.queue(queue.clone(), options).build().await.unwrap()
}

fn worker(app: &App, runs: &Arc<AtomicU32>) -> Worker {
    let options = TaskOptions::new().retries(1).backoff(Backoff::fixed(Duration::from_millis(10)));
    let builder = Worker::builder(app).queue("images").state(runs.clone());
    builder.task(RESIZE, resize).options("resize", options).build().unwrap()
}

async fn publish(broker: &MemoryBroker, queue: QueueName, id: &str, line: &'static str) {
    let message = Message { id: Some(id.to_owned()), body: line.into(), ..Message::default() };
    let publish = Publish { target: Target::Queue(queue), message, delay: Duration::ZERO };
    broker.publish(vec![publish]).await.remove(0).unwrap();
}

async fn end_of_task(app: &App, id: &str) -> Record {
    let result = app.client().result(TaskId::parse(id).unwrap());
    result.changed(None, LIMIT).await.unwrap();
    result.wait_record(LIMIT).await.unwrap()
}

#[tokio::test]
async fn a_foreign_line_is_retried_and_succeeds() {
    let (broker, runs) = (MemoryBroker::new(), Arc::new(AtomicU32::new(0)));
    let queue = QueueName::parse("images").unwrap();
    let app = application(&broker, &queue).await;
    let worker = tokio::spawn(worker(&app, &runs).run_until(std::future::pending()));

    publish(&broker, queue, "photo-1", "resize,photo.jpg,200").await;

    let record = end_of_task(&app, "photo-1").await;
    assert_eq!((record.state, record.attempt), (TaskState::Success, 2));
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    let result = app.client().result(record.id).typed::<String>().wait(LIMIT).await.unwrap();
    assert_eq!(result, "200-photo.jpg");
    worker.abort();
}
