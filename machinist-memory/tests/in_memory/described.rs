//! What the session of a worker tells other processes: its tasks, and its health.

use std::{sync::Arc, time::Duration};

use machinist_conformance::eventually;
use machinist_core::{
    App, Arg, OrderError, Results, Signature, State, TaskContext, TaskDef, TaskError, Worker, WorkerFilter,
    id::TaskName,
    record::{TaskState, WorkerHealth},
    sign::{Algorithm, Key},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio_util::sync::CancellationToken;

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

#[tokio::test(start_paused = true)]
async fn a_worker_without_a_key_that_signs_is_red_until_it_has_another() {
    let [own, next] = ["own", "next"].map(|id| Key::generate(Algorithm::HmacSha256, id).unwrap());
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).keyring(own);
    let app = app.build().await.unwrap();
    let client = app.client();
    let worker = Worker::builder(&app).name("w").task_dyn("echo", echo).build().unwrap();
    let (health, stages) = (worker.health(), worker.stages());
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    let shows = async |color| {
        let shown = async || client.workers(&WorkerFilter::new()).await.unwrap().pop();
        let shows = async || shown().await.is_some_and(|worker| worker.health == color);
        assert!(eventually(MINUTE, shows).await, "{color:?}");
        shown().await.unwrap().health_reason
    };
    assert_eq!(shows(WorkerHealth::Green).await, None);
    app.replace_keyring(Key::revoked("own").unwrap()).unwrap_err();
    let reason = shows(WorkerHealth::Red).await;
    assert_eq!(reason.as_deref(), Some("no key signs, so it takes no tasks"));
    let report = health.report().await;
    assert_eq!((report.color, report.reason), (WorkerHealth::Red, reason));
    app.replace_keyring(next).unwrap();
    assert_eq!(shows(WorkerHealth::Green).await, None);
    stages.advance();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_names_some_of_its_runs_and_all_of_them_when_it_is_asked() {
    const RUNS: usize = 250;
    let key = Key::generate(Algorithm::HmacSha256, "own").unwrap();
    let backend = Arc::new(MemoryBackend::new());
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::<MemoryBackend>::clone(&backend));
    let app = app.keyring(key.clone()).build().await.unwrap();
    let client = app.client();
    let may_end = CancellationToken::new();
    let hold = async |_: TaskContext, State(may_end): State<CancellationToken>| {
        may_end.cancelled().await;
        Ok::<_, TaskError>(())
    };
    const HOLD: TaskDef<(), ()> = TaskDef::new("hold");
    let builder = Worker::builder(&app).name("w").concurrency(RUNS).state(may_end.clone());
    let worker = Running::start(builder.task(HOLD, hold));
    let mut tasks = Vec::new();
    for _ in 0..RUNS {
        tasks.push(client.send(HOLD.call(())).await.unwrap());
    }
    let shown = async || client.workers(&WorkerFilter::new()).await.unwrap().pop();
    let runs_all = async || shown().await.is_some_and(|worker| worker.running as usize == RUNS);
    assert!(eventually(MINUTE, runs_all).await);
    assert!(eventually(MINUTE, async || shown().await.unwrap().runs.len() == 20).await);
    let named = shown().await.unwrap();
    let mut sent: Vec<String> = tasks.iter().map(|task| task.id().to_string()).collect();
    sent.sort_unstable();
    assert_eq!(named.runs, sent[..20], "the oldest ones");
    let all = client.all_worker_runs(&named).await.unwrap();
    assert!(all.iter().map(|record| record.id.as_str()).eq(sent.iter().map(String::as_str)));
    assert!(all.iter().all(|record| record.state == TaskState::Started && record.name.is_some()));

    let other = App::builder(Arc::new(MemoryBroker::new()), backend).keyring(key.for_control(false));
    let refused = other.build().await.unwrap().client().all_worker_runs(&named).await;
    assert!(matches!(refused, Err(OrderError::Key(_))), "{refused:?}");

    may_end.cancel();
    for task in tasks {
        task.wait(MINUTE).await.unwrap();
    }
    assert!(client.all_worker_runs(&named).await.unwrap().is_empty());
    assert!(client.worker_runs(&named).await.unwrap().is_empty(), "none of those that were named runs now");
    worker.stop().await;
    let gone = client.all_worker_runs(&named).await;
    assert!(matches!(gone, Err(OrderError::NotTold { .. })), "{gone:?}");
}
