//! A worker ends exactly at one of the steps of a delivery, and another one takes over.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use machinist_conformance::{
    arrows::{ArrowStep, Side, Witness, Witnessed, WitnessedRuns},
    within,
};
use machinist_core::{
    App, Backoff, TaskContext, TaskDef, TaskError, Worker, backend::Backend, broker::Broker,
};
use tokio_util::sync::CancellationToken;

use crate::support::{STEP_TIMEOUT, Schema};

const TASK: TaskDef<(), u32> = TaskDef::new("task");
/// A task of a process that died is not run again sooner.
const LEASE: Duration = Duration::from_secs(3);

/// Fails at its first attempt, so that a retry is one of the steps.
async fn task(cx: TaskContext) -> Result<u32, TaskError> {
    if cx.attempt() == 1 { Err("once".into()) } else { Ok(cx.attempt()) }
}

/// Ends a process at one of the steps.
#[derive(Debug)]
struct Fate {
    end: (ArrowStep, Side),
    ended: CancellationToken,
}

#[async_trait]
impl Witness for Fate {
    async fn at(&self, step: ArrowStep, side: Side) {
        if self.end == (step, side) {
            self.ended.cancel();
        }
        if self.ended.is_cancelled() {
            std::future::pending().await
        }
    }
}

/// Every step of a task that is retried, before and after it: the task succeeds all the same, at its second attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_survives_the_end_of_its_worker_at_every_step() {
    use ArrowStep::{Ack, Follow, Mark, Receive, Record, Run, Start};
    if Schema::fresh().is_none() {
        return;
    }
    let steps = [Receive, Start, Run, Record, Follow, Mark, Ack];
    let both = steps.into_iter().flat_map(|step| [(step, Side::Before), (step, Side::After)]);
    let stories: Vec<_> =
        both.filter(|end| *end != (Receive, Side::Before)).map(|end| tokio::spawn(story(end))).collect();
    for told in stories {
        told.await.unwrap();
    }
}

async fn story(end: (ArrowStep, Side)) {
    let schema = Schema::fresh().unwrap();
    let fate = Arc::new(Fate { end, ended: CancellationToken::new() });
    let witness: Arc<dyn Witness> = Arc::clone(&fate) as _;
    let store = schema.connect().await;
    let (broker, backend): (Arc<dyn Broker>, Arc<dyn Backend>) =
        (Arc::new(store.broker()), Arc::new(store.backend()));
    let first = App::builder(
        Arc::new(Witnessed::new(Arc::clone(&witness), broker)),
        Arc::new(Witnessed::new(Arc::clone(&witness), backend)),
    );
    let first = first.allow_unsigned().build().await.unwrap();
    let worker =
        Worker::builder(&first).session_lease(LEASE).middleware(WitnessedRuns(witness)).task(TASK, task);
    let worker = worker.build().unwrap();
    let worker = tokio::spawn(worker.run_until(std::future::pending()));

    let other = schema.connect().await;
    let app = App::builder(Arc::new(other.broker()), Arc::new(other.backend())).allow_unsigned();
    let app = app.build().await.unwrap();
    let signature = TASK.call(()).retries(1).backoff(Backoff::fixed(Duration::from_millis(10)));
    let sent = app.client().send(signature).await.unwrap();
    within(STEP_TIMEOUT, &format!("the end at {end:?}"), fate.ended.cancelled()).await;
    worker.abort();
    drop((first, store));

    let second = Worker::builder(&app).session_lease(LEASE).task(TASK, task).build().unwrap();
    let second = tokio::spawn(second.run_until(std::future::pending()));
    let outcome = sent.wait(Duration::from_secs(60)).await;
    assert_eq!(outcome.unwrap_or_else(|error| panic!("{end:?}: {error}")), 2, "{end:?}");
    second.abort();
    schema.drop().await;
}
