//! Members of chords that workers of Go run once more, after a worker of ours that died.

use std::{sync::Arc, time::Duration};

use machinist::{TaskDef, TaskError, TaskId};
use machinist_conformance::eventually;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    fleet::{Fleet, int},
    go::{fresh, signature},
};

const BLOCKED: TaskDef<(), i64> = TaskDef::new("blocked");
/// Maximum time for what a busy host may delay.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chord_follows_although_go_ran_a_member_again_while_the_last_one_ended() {
    let Some(fleet) = Fleet::new("[\"*\"]").await else { return };
    let go = &fleet.go;
    let app = fleet.app().await;
    let gate = Arc::new(Semaphore::new(0));
    let gated = Arc::clone(&gate);
    let blocked = move || {
        let gate = Arc::clone(&gated);
        async move {
            gate.acquire().await.map_err(TaskError::new)?.forget();
            Ok::<_, TaskError>(5)
        }
    };
    let worker = fleet.builder(&app).task(BLOCKED, blocked).build().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));

    // The first member is followed by a task, so its record says that all that follows it was published.
    let (then, callback) = (fresh("task"), fresh("chord"));
    let mut first = signature("add", &[int(1), int(2)]);
    let mut next = signature("add", &[int(10)]);
    next["UUID"] = then.as_str().into();
    first["OnSuccess"] = json!([next]);
    let mut sum = signature("add", &[int(100)]);
    sum["UUID"] = callback.as_str().into();
    let members = vec![first.clone(), signature("blocked", &[])];
    let group = fresh("group");
    let ids = go.send_group_as(&group, members, Some(sum.clone())).await;
    assert_eq!(go.wait(&then).await["Results"][0]["Value"], 13);
    let id = TaskId::parse(&ids[0]).unwrap();
    let record = async || app.backend().read(&[(&id).into()]).await.unwrap().remove(0);
    assert!(eventually(PATIENCE, async || record().await.has("f")).await, "all that follows it is published");
    go.until(&ids[1], "STARTED").await;

    // Our worker dies before it acknowledges the message, and a worker of Go gets it. The other member ends meanwhile.
    go.write(&ids[0], "add", "STARTED", Value::Null, "").await;
    gate.add_permits(1);
    go.until(&ids[1], "SUCCESS").await;
    // Its worker sees that the first one runs, and has no reason to look again.
    drop(stop);
    assert!(worker.await.unwrap().unwrap().is_clean());
    assert_eq!(go.state(&group).await.unwrap()["ChordTriggered"], false);

    // The worker of Go dies, and the message comes to ours again.
    (first["UUID"], first["GroupUUID"]) = (ids[0].as_str().into(), group.as_str().into());
    (first["GroupTaskCount"], first["ChordCallback"]) = (2.into(), sum);
    first["RoutingKey"] = go.queue.as_str().into();
    let worker = fleet.work().await;
    go.publish(&go.queue, first.to_string().as_bytes()).await;
    assert_eq!(go.wait(&callback).await["Results"][0]["Value"], 108);
    assert_eq!(go.state(&ids[0]).await.unwrap()["State"], "SUCCESS", "its end is shown again");
    assert_eq!(go.state(&group).await.unwrap()["TriggeredBy"], ids[0].as_str());
    // The record tells later copies that nothing is owed.
    assert!(eventually(PATIENCE, async || record().await.has("fs")).await);

    fleet.kill(worker).await;
    app.broker().close().await;
    fleet.clean_up().await;
}
