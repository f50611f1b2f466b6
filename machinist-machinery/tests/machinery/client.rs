//! A client of ours whose tasks a worker of Go runs.

use std::{collections::HashMap, time::Duration};

use machinist::{
    AsyncResult, Client, ResultError, SendError, TaskDef,
    record::{FailureKind, TaskState},
    workflow::{chain, chord, group},
};
use serde_json::{Value, json};

use crate::{
    fleet::{Fleet, handlers},
    go::Handler,
};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("add");
const FAIL: TaskDef<(), i64> = TaskDef::new("fail");
const ON_ERROR: TaskDef<(String, String), String> = TaskDef::new("on_error");

const SOON: Duration = Duration::from_secs(60);

fn with_failures() -> HashMap<&'static str, Handler> {
    let mut handlers = handlers();
    handlers.insert("fail", |_| Err("boom <&> in Go".to_owned()));
    handlers.insert("on_error", |args| {
        let text = args.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        Ok(vec![("string", text.into())])
    });
    handlers
}

/// Opens a result by its id, as another process does.
fn opened<R>(client: &Client, result: &AsyncResult<R>) -> AsyncResult<R> {
    client.result(result.id().clone()).typed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_go_serves_a_client_of_ours() {
    let Some(fleet) = Fleet::new("[\"*\"]").await else { return };
    let go = &fleet.go;
    let (app, other) = (fleet.app().await, fleet.app().await);
    let (client, reader) = (app.client(), other.client());
    let queue = go.queue.as_str();

    // Before any worker of Go is there, its clients see what is sent.
    let sum = client.send(ADD.call((2, 3)).queue(queue)).await.unwrap();
    let state = go.state(sum.id().as_str()).await.unwrap();
    let created = state["CreatedAt"].clone();
    let expected = json!({
        "TaskUUID": sum.id(), "TaskName": "add", "State": "PENDING", "Results": null, "Error": "",
        "CreatedAt": created, "TTL": 0,
    });
    assert_eq!(state, expected);
    assert_eq!(opened(&reader, &sum).state().await.unwrap(), TaskState::Pending);

    let theirs = tokio::spawn(go.clone().work(with_failures()));
    assert_eq!(sum.wait(SOON).await.unwrap(), 5);
    let record = opened(&reader, &sum).wait_record(SOON).await.unwrap();
    assert!(record.mirrored && record.state == TaskState::Success, "{record:?}");
    assert_eq!(record.results.unwrap().0[0].kind, "int64");

    let failed = client.send(FAIL.call(()).queue(queue)).await.unwrap();
    let Err(ResultError::Failed { kind, message, .. }) = failed.wait(SOON).await else { panic!() };
    assert_eq!((kind, message.as_str()), (FailureKind::Error, "boom <&> in Go"));

    let steps = chain(ADD.call((1, 1)).queue(queue)).then(ADD.with((5,)).options(|o| o.queue(queue)));
    let steps = steps.then(ADD.with((100,)).options(|o| o.queue(queue)));
    let steps = client.send(steps).await.unwrap();
    assert_eq!(steps.wait(SOON).await.unwrap(), 107);
    let status = reader.workflow(steps.workflow_id().unwrap()).await.unwrap().unwrap();
    assert_eq!((status.state, status.progress.done, status.progress.total), (TaskState::Success, 3, 3));

    let members: Vec<_> = (1..=3).map(|n| ADD.call((n, n)).queue(queue)).collect();
    let results = client.send(group(members.clone())).await.unwrap();
    assert_eq!(results.wait(SOON).await.unwrap(), [2, 4, 6]);
    assert_eq!(opened(&reader, &results).wait(SOON).await.unwrap(), [2, 4, 6]);

    // Go gives the results of members as single arguments.
    let total = chord(members.clone(), SUM.with(()).options(|o| o.queue(queue)));
    let total = client.send(total.then(ADD.with((1000,)).options(|o| o.queue(queue)))).await.unwrap();
    assert_eq!(total.wait(SOON).await.unwrap(), 1012);

    let called = ON_ERROR.call(("extra".to_owned(), String::new())).queue(queue);
    let broken = chain(FAIL.call(()).queue(queue)).then(ADD.with((5,)).options(|o| o.queue(queue)));
    let broken = client.send(broken.on_error(called)).await.unwrap();
    let Err(ResultError::Failed { kind, message, .. }) = opened(&reader, &broken).wait(SOON).await else {
        panic!("nobody in Go says that the second task never runs")
    };
    assert_eq!(kind, FailureKind::Upstream);
    assert!(message.contains("boom"), "{message}");
    let status = reader.workflow(broken.workflow_id().unwrap()).await.unwrap().unwrap();
    let callback = status.steps.iter().find(|step| step.is_error_callback).unwrap();
    let said: String = client.result(callback.id.clone()).typed::<String>().wait(SOON).await.unwrap();
    assert!(said.starts_with("boom <&> in Go extra"), "{said}");

    let failing = group((ADD.call((1, 1)).queue(queue), FAIL.call(()).queue(queue)));
    let failing = client.send(failing.then(ADD.with(()).options(|o| o.queue(queue)))).await.unwrap();
    let Err(ResultError::Failed { kind, .. }) = failing.wait(SOON).await else { panic!() };
    assert_eq!(kind, FailureKind::Upstream);

    // Short delays, which the queues of Go lose.
    let delayed =
        (0..20).map(|n| ADD.call((n, 1)).queue(queue).countdown(Duration::from_millis(5 + n as u64)));
    let sent = client.send_all(delayed.collect()).await;
    for (n, sent) in (0..).zip(sent) {
        assert_eq!(sent.unwrap().wait(SOON).await.unwrap(), n + 1);
    }

    theirs.abort();
    fleet.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workflows_of_our_client_run_in_a_worker_of_ours_too() {
    let Some(fleet) = Fleet::new("[\"*\"]").await else { return };
    let queue = fleet.go.queue.as_str();
    let worker = fleet.work().await;
    let client = fleet.app().await.client();
    let members: Vec<_> = (1..=3).map(|n| ADD.call((n, n)).queue(queue)).collect();
    let total = chord(members, SUM.with(()).options(|o| o.queue(queue)));
    let total = client.send(total.then(ADD.with((1000,)).options(|o| o.queue(queue)))).await.unwrap();
    assert_eq!(total.wait(SOON).await.unwrap(), 1012);
    let again = chain(ADD.call((1, 1)).queue(queue)).then(ADD.with((5,)).options(|o| o.queue(queue)));
    let sent = client.send(again.clone()).await.unwrap();
    assert_eq!(sent.wait(SOON).await.unwrap(), 7);
    let twice = client.send(again).await.unwrap();
    assert_eq!((twice.id(), twice.wait(SOON).await.unwrap()), (sent.id(), 7), "the same workflow");
    fleet.kill(worker).await;
    fleet.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_go_has_no_word_for_is_not_sent() {
    let Some(fleet) = Fleet::new("[\"*\"]").await else { return };
    let queue = fleet.go.queue.as_str();
    let client = fleet.app().await.client();
    let two = || [1, 2].map(|n| ADD.call((n, n)).queue(queue));
    let refused = [
        client.send(group(two()).tolerate(1).then(SUM.with(()))).await.map(drop),
        client
            .send(chain(ADD.call((1, 1)).queue(queue)).then(ADD.with((5,)).options(|o| o.queue("ours"))))
            .await
            .map(drop),
        client
            .send(
                chain(ADD.call((1, 1)).queue(queue))
                    .expires_in(SOON)
                    .then(ADD.with((5,)).options(|o| o.queue(queue))),
            )
            .await
            .map(drop),
        client.send(ADD.call((1, 1)).queue(queue).timeout(SOON)).await.map(drop),
        client.send(ADD.call((1, 1)).queue(queue).limit_key("x")).await.map(drop),
    ];
    let says = [
        "no policy for failures",
        "which has another format",
        "has no expiry",
        "no timeout of a task",
        "limits have no place",
    ];
    for (refused, says) in refused.into_iter().zip(says) {
        let error = refused.unwrap_err();
        assert!(!matches!(error, SendError::Publish { ref source, .. } if !source.is_certain()), "{error}");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let text = format!("{error}: {source}");
        assert!(text.contains(says), "{text}");
    }
    fleet.clean_up().await;
}
