//! Queues of Go machinery by the program: its configuration, a worker, a sender.

use machinist::{
    amqp::{AmqpBroker, AmqpOptions},
    broker::{Broker, Message, Publish, Target},
};
use serde_json::json;

use crate::{servers::servers, support::Folder};

/// Declares a queue that a folder's namespace does not know, in the exchange `machinist`.
fn existing_queue() -> String {
    let name = format!("go-{}", machinist::TaskId::fresh());
    let url = std::env::var("MACHINIST_TEST_AMQP_URL").unwrap();
    let declare = async {
        let broker = AmqpBroker::connect(&url, AmqpOptions::default()).await.unwrap();
        let target = Target::Queue(name.as_str().try_into().unwrap());
        let message = Message { body: "{}".into(), ..Message::default() };
        let publish = Publish { target, message, delay: std::time::Duration::ZERO };
        broker.publish(vec![publish]).await.pop().unwrap().unwrap();
        broker.close().await;
    };
    tokio::runtime::Runtime::new().unwrap().block_on(declare);
    name
}

#[test]
fn a_worker_with_the_configuration_of_go_serves_a_queue_of_go() {
    let Some(folder) = servers("a_worker_with_the_configuration_of_go_serves_a_queue_of_go") else { return };
    let queue = existing_queue();
    let url = |name: &str| std::env::var(name).unwrap();
    let yaml = format!(
        "broker: '{}'\ndefault_queue: {queue}\nresult_backend: '{}'\namqp:\n  exchange: machinist\n  \
         binding_key: {queue}\n  prefetch_count: 3\n",
        url("MACHINIST_TEST_AMQP_URL"),
        url("MACHINIST_TEST_REDIS_URL"),
    );
    folder.write("config.yml", &yaml);
    folder.script("add.sh", "echo $(($1 + $2))");
    let tasks =
        "[tasks.add]\ncommand = [\"./add.sh\", \"{0}\", \"{1}\"]\n[tasks.fail]\ncommand = [\"false\"]\n";
    folder.write("worker.toml", tasks);
    let sender =
        folder.run(&["config", "--from-machinery", "config.yml", "--config", "worker.toml"]).ended(0);
    assert!(sender.stdout.contains("# amqp.prefetch_count = 3: "), "{sender:?}");
    assert!(sender.stdout.contains("tasks = [\"add\", \"fail\"]"), "{sender:?}");
    folder.write("machinist.toml", &sender.stdout);
    let gaps = folder.run(&["config", "--from-machinery", "config.yml", "--json"]).ended(0).json();
    assert_eq!(gaps["no_counterpart"][0]["key"], "amqp.prefetch_count", "{gaps}");

    let worker = folder.worker(&["--machinery-config", "config.yml", "--config", "worker.toml"]);
    let sum = folder.outcome(&["add", "2", "3", "--queue", &queue]);
    assert_eq!(
        (&sum["state"], &sum["results"], &sum["queue"]),
        (&json!("SUCCESS"), &json!([5]), &json!(queue))
    );
    let failed = folder.outcome(&["fail", "--queue", &queue]);
    assert_eq!(failed["state"], "FAILURE", "{failed}");
    let id = folder.send(&["add", "2", "2", "--queue", &queue, "--countdown", "500ms"]);
    assert!(folder.run(&["status", &id, "--watch"]).ended(0).stdout.contains("results   4"));
    for (option, says) in [("--timeout=5s", "no timeout of a task"), ("--expires=5s", "no expiry of a task")]
    {
        folder.run(&["send", "add", "1", "1", "--queue", &queue, option]).ended(64).reports(&[says]);
    }
    let said = worker.stop().ended(0).stderr;
    let gaps = said.lines().filter(|line| line.contains("no counterpart")).collect::<Vec<_>>();
    assert!(gaps.len() == 1 && gaps[0].contains("amqp.prefetch_count"), "{gaps:?}");

    // Without machinist.toml and without a record of ours, the store of Go says it.
    let Some(stranger) = servers("a_worker_with_the_configuration_of_go_serves_a_queue_of_go") else {
        return;
    };
    let known = ["--profile", "machinery", "--queue", &queue, "--json"];
    let status = stranger.run(&[&["status", &id][..], &known].concat()).ended(0).json();
    assert_eq!((&status["state"], &status["results"]), (&json!("SUCCESS"), &json!([4])), "{status}");
    stranger.run(&["status", &id]).ended(3);
    // With it, the address of the queue is the one that it names.
    let sent = folder.run(&[&["send", "add", "1", "1"][..], &known].concat()).ended(0).json();
    let status = stranger.run(&[&["status", sent["id"].as_str().unwrap()][..], &known].concat()).ended(2);
    assert_eq!(status.json()["state"], "PENDING");
    folder.write("ours.toml", &format!("[queues.{queue}]\nallow_unsigned = true\ntasks = [\"add\"]\n"));
    let ours = [&["send", "add", "1", "1", "--config", "ours.toml"][..], &known].concat();
    folder.run(&ours).ended(64).reports(&["has no profile at ours.toml:3"]);
}

#[test]
fn a_configuration_of_go_that_is_wrong_is_named() {
    let folder = Folder::with("[tasks.add]\ncommand = [\"true\"]\n");
    folder.write("config.yml", "broker: 'redis://localhost'\n");
    folder.run(&["worker", "--machinery-config", "config.yml"]).ended(78).reports(&[
        "config.yml:1",
        "broker",
        "is no RabbitMQ",
    ]);
    folder.run(&["config", "--from-machinery", "missing.yml"]).ended(78).reports(&["missing.yml"]);
}
