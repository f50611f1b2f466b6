//! Delayed tasks whose queue is gone when they are due.

use serde_json::json;

use crate::{long::Private, support::eventually};

#[test]
fn a_delayed_task_whose_queue_is_gone_arrives_or_ends() {
    let Some(mut private) = Private::start("a_delayed_task_whose_queue_is_gone_arrives_or_ends", "") else {
        return;
    };
    let send = |private: &Private, queue: &str| {
        let id = private.folder.send(&["add", "2", "3", "--queue", queue, "--countdown", "20s"]);
        private.delete_queue(queue);
        id
    };
    // If workers create missing queues, the queue comes back, and a worker of it runs the task.
    let worker = private.folder.worker(&["--demo"]);
    let late = send(&private, "made-again");
    eventually("its queue is there again", || {
        let queues = private.services.rabbitmqctl(&["list_queues", "-q", "name", "messages"]).unwrap();
        let messages = queues.lines().find_map(|line| line.strip_prefix("made-again\t"))?;
        assert!(matches!(messages, "0" | "1"), "{queues}");
        (messages == "1").then_some(())
    });
    let consumer = private.folder.worker(&["--demo", "--queue", "made-again"]);
    private.folder.run(&["status", &late, "--watch"]).ended(0);
    let task = private.folder.status(&late);
    assert_eq!((&task["results"], &task["attempt"]), (&json!([5]), &json!(1)));
    assert!(task["started_at"].as_str() >= task["eta"].as_str(), "{task}");
    consumer.stop().ended(0);
    worker.stop().ended(0);

    // If workers only check the queues, the task ends with the reason.
    let gone = private.folder.send(&["add", "2", "3", "--queue", "gone", "--countdown", "20s"]);
    private.folder.set("MACHINIST_TOPOLOGY", "verify");
    let worker = private.folder.worker(&["--demo"]);
    private.delete_queue("gone");
    private.folder.run(&["status", &gone, "--watch"]).ended(1);
    let task = private.folder.status(&gone);
    assert_eq!((&task["kind"], &task["code"]), (&json!("unroutable"), &json!(-202)), "{task}");
    assert!(task["error"]["message"].as_str().unwrap().contains("queue gone does not exist"), "{task}");
    worker.stop().ended(0);

    // A missing level of the delays holds up what waits longer. Without workers, nobody makes it again.
    let listed = private.services.rabbitmqctl(&["list_queues", "-q", "name"]).unwrap();
    let level = listed.lines().find(|name| name.ends_with(".delay.0.1")).unwrap();
    let delayed = private.folder.send(&["add", "2", "3", "--countdown", "1s"]);
    private.delete_queue(level);
    let missing = format!("delays: {level} do not exist");
    private.folder.run(&["queues"]).ended(0).reports(&[&missing]);
    eventually("status says what holds a task up after its time", || {
        let status = private.folder.run(&["status", &delayed, "--json"]).ended(2);
        status.stderr.contains(&missing).then_some(())
    });
}
