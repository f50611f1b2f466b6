//! The states through which tasks pass, as programs of Go see them.

use std::{sync::Arc, time::Duration};

use machinist::{TaskContext, TaskDef, TaskError, TaskId, worker::TaskOptions};
use machinist_conformance::eventually;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    fleet::{Fleet, int, start},
    go::{fresh, signature},
};

const BLOCKED: TaskDef<(), i64> = TaskDef::new("blocked");
const LATER: TaskDef<(), i64> = TaskDef::new("later");
/// Time for which a state is kept here. The model of Go keeps its own for an hour.
const KEPT: Duration = Duration::from_secs(600);

/// Asks for a later run, then fails, then succeeds.
async fn later(cx: TaskContext) -> Result<i64, TaskError> {
    match cx.attempt() {
        1 => Err(TaskError::retry_in(Duration::from_millis(100))),
        2 => Err(TaskError::new("not yet")),
        attempt => Ok(i64::from(attempt)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_pass_as_in_go_and_expire() {
    let Some(mut fleet) = Fleet::new("[\"*\"]").await else { return };
    fleet.toml.push_str("results_ttl = \"10m\"\n");
    let go = &fleet.go;
    let app = fleet.app().await;
    let gate = Arc::new(Semaphore::new(0));
    let gated = Arc::clone(&gate);
    let blocked = move |cx: TaskContext| {
        let gate = Arc::clone(&gated);
        async move {
            gate.acquire().await.unwrap().forget();
            if cx.attempt() == 1 { Err(TaskError::new("the first time")) } else { Ok(5) }
        }
    };
    let worker = fleet.builder(&app).task(BLOCKED, blocked).task(LATER, later);
    let worker = start(worker.options("blocked", TaskOptions::new().concurrency(1)));
    let kept = async |id: &str, state: &str| {
        go.until(id, state).await;
        let left = go.time_to_live(id).await;
        assert!(left <= KEPT && left > KEPT / 2, "{state} is kept for {left:?}");
    };

    let mut retried = signature("blocked", &[]);
    retried["RetryCount"] = 1.into();
    let retried = go.send(retried).await;
    kept(&retried, "STARTED").await;
    let failing = go.send(signature("blocked", &[])).await;
    kept(&failing, "RECEIVED").await;

    // As with `ErrRetryTaskLater`: the retry is still there for the error after it.
    let mut later = signature("later", &[]);
    later["RetryCount"] = 1.into();
    let later = go.send(later).await;
    // An ETA that is over, and one that lies beyond ten years.
    let over = fresh("task");
    let mut due = signature("add", &[int(2), int(3)]);
    (due["UUID"], due["ETA"]) = (over.as_str().into(), "2001-01-01T00:00:00Z".into());
    go.publish(&go.queue, due.to_string().as_bytes()).await;
    let beyond = fresh("task");
    (due["UUID"], due["ETA"]) = (beyond.as_str().into(), "9999-12-31T23:59:59Z".into());
    go.publish(&go.queue, due.to_string().as_bytes()).await;

    gate.add_permits(1);
    kept(&failing, "STARTED").await;
    gate.add_permits(1);
    assert_eq!(go.wait(&failing).await["Error"], "the first time");
    kept(&retried, "STARTED").await;
    gate.add_permits(1);
    assert_eq!(go.wait(&retried).await["Results"][0]["Value"], 5);
    kept(&retried, "SUCCESS").await;
    assert_eq!(go.wait(&later).await["Results"][0]["Value"], 3);
    assert_eq!(go.wait(&over).await["Results"][0]["Value"], 5);
    let error = go.wait(&beyond).await["Error"].as_str().unwrap().to_owned();
    assert!(error.contains("is more than ten years away"), "{error}");

    // A worker of Go that got the message of a worker that died: it fails once more, and sends the task again.
    let ended = TaskId::parse(&failing).unwrap();
    let is_followed = async || app.backend().read(&[(&ended).into()]).await.unwrap()[0].has("f");
    assert!(
        eventually(Duration::from_secs(60), is_followed).await,
        "the record tells that the dead letter is published"
    );
    let mut again: Value = signature("blocked", &[]);
    again["UUID"] = failing.as_str().into();
    go.send(again).await;
    let shown = go.wait(&failing).await;
    assert_eq!((&shown["State"], &shown["Error"]), (&json!("FAILURE"), &json!("the first time")));

    fleet.kill((app, worker)).await;
    fleet.clean_up().await;
}
