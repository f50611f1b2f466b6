//! What the session of a worker tells other processes: its tasks, and its health.

use std::{sync::Arc, time::Duration};

use machinist_conformance::eventually;
use machinist_core::{
    App, Arg, Results, Signature, TaskContext, TaskError, Worker, WorkerFilter, id::TaskName,
};
use machinist_memory::{MemoryBackend, MemoryBroker};

use crate::support::Running;

const MINUTE: Duration = Duration::from_secs(60);

async fn echo(_: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
    Ok(Results(args))
}

#[tokio::test(start_paused = true)]
async fn a_task_that_a_session_leaves_out_has_a_worker() {
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build();
    let app = app.await.unwrap();
    let client = app.client();
    let mut builder = Worker::builder(&app);
    for number in 0..=500 {
        builder = builder.task_dyn(format!("t{number:03}"), echo);
    }
    let worker = Running::start(builder);
    let mut filter = WorkerFilter::new();
    let listed = async |filter: &WorkerFilter| client.workers(filter).await.unwrap();
    assert!(eventually(MINUTE, async || listed(&filter).await.len() == 1).await);
    assert_eq!(listed(&filter).await[0].tasks.len(), 500);
    filter.task = Some(TaskName::parse("t500").unwrap());
    assert_eq!(listed(&filter).await.len(), 1);
    let task = Signature::new("t500").arg(1).require_worker();
    client.send(task).await.unwrap().wait(MINUTE).await.unwrap();
    worker.stop().await;
}
