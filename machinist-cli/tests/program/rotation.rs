//! Replacement of a key while messages of both keys are under way: no process stops, no task is lost.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    servers::servers_without_key,
    support::{Folder, Running, eventually},
};

const OLD_SIGNS: &str = "key_file = \"old.key\"\n[[keys]]\nfile = \"new.key\"\nstate = \"verify\"\n";
const NEW_SIGNS: &str = "key_file = \"new.key\"\n[[keys]]\nfile = \"old.key\"\nstate = \"verify\"\n";

/// Changes the file of a worker, and makes the worker reload its keys.
fn reload(folder: &Folder, worker: &mut Running, toml: &str) {
    folder.write("worker.toml", toml);
    worker.signal(Signal::SIGHUP);
    let line = worker.stderr.until("keys");
    assert!(line.contains("keys reloaded: new, old"), "{line}");
}

fn send_many(folder: &Folder, config: &str) -> Running {
    folder.start(&["send", "sleep", "5ms", "--count", "150", "--wait=10m", "--json", "--config", config])
}

fn a_key_is_replaced(folder: &Folder) {
    folder.key("old.key", "old");
    folder.key("new.key", "new");
    folder.write("worker.toml", "key_file = \"old.key\"\n");
    folder.write("before.toml", OLD_SIGNS);
    folder.write("after.toml", NEW_SIGNS);
    let mut workers: Vec<Running> =
        (0..2).map(|_| folder.worker(&["--demo", "--concurrency", "4", "--config", "worker.toml"])).collect();

    // The old key signs, also delayed tasks; the workers get the new one meanwhile.
    let late = folder.start(&[
        "send",
        "add",
        "1",
        "1",
        "--countdown",
        "3s",
        "--count",
        "20",
        "--wait=10m",
        "--json",
        "--config",
        "before.toml",
    ]);
    let of_old = send_many(folder, "before.toml");
    for worker in &mut workers {
        reload(folder, worker, OLD_SIGNS);
    }
    // Senders use both keys, and the workers change theirs.
    let of_new = send_many(folder, "after.toml");
    let still_of_old = send_many(folder, "before.toml");
    for worker in &mut workers {
        reload(folder, worker, NEW_SIGNS);
    }
    for (sent, count) in [(late, 20), (of_old, 150), (of_new, 150), (still_of_old, 150)] {
        let all = sent.end().ended(0).json();
        assert_eq!(all.as_array().unwrap().len(), count);
        assert!(all.as_array().unwrap().iter().all(|task| task["state"] == "SUCCESS"), "{all}");
    }
    let queues = folder.run(&["queues", "--json", "--config", "after.toml"]).ended(0).json();
    assert_eq!((&queues[0]["ready"], queues[0]["dead"].as_u64().unwrap_or(0)), (&json!(0), 0));

    // A key that cannot be used changes nothing.
    folder.write("worker.toml", "key_file = \"nowhere.key\"\n");
    workers[0].signal(Signal::SIGHUP);
    workers[0].stderr.until("keys unchanged: ");
    folder.run(&["send", "add", "1", "--wait=10m", "--config", "after.toml"]).ended(0);
    // The old key is removed, and is not valid any more.
    folder.write("worker.toml", "key_file = \"new.key\"\n[[keys]]\nid = \"old\"\nstate = \"revoked\"\n");
    for worker in &mut workers {
        worker.signal(Signal::SIGHUP);
        worker.stderr.until("keys reloaded: new, old");
    }
    folder.send(&["add", "1", "--config", "before.toml"]);
    eventually("what the old key signed is a dead letter", || {
        let queues = folder.run(&["queues", "--json", "--config", "after.toml"]).ended(0).json();
        (queues[0]["dead"] == 1).then_some(())
    });
    for worker in workers {
        worker.stop().ended(0);
    }
}

#[test]
fn a_key_is_replaced_on_the_embedded_file() {
    a_key_is_replaced(&Folder::new());
}

#[test]
fn a_key_is_replaced_on_rabbitmq_and_redis() {
    if let Some(folder) = servers_without_key("a_key_is_replaced_on_rabbitmq_and_redis") {
        a_key_is_replaced(&folder);
    }
}
