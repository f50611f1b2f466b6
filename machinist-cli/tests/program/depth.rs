//! The maximum depth of a queue: what senders are told, and where it is shown.

use crate::support::Folder;

#[test]
fn a_full_queue_is_told_and_a_sender_may_wait_for_room() {
    let folder =
        Folder::with("[queues.small]\nmax_depth = 2\n[tasks.ok]\ncommand = [\"true\"]\nqueue = \"small\"\n");
    folder.run(&["send", "ok", "--count", "2"]).ended(0);
    let words = ["queue small has 2 tasks that wait, and 2 is its maximum", "--wait-for-room"];
    folder.run(&["send", "ok"]).ended(75).reports(&words);
    folder.run(&["send", "ok", "--wait-for-room", "1s"]).ended(75).reports(&words);
    let more = folder.run(&["send", "ok", "--count", "3", "--wait-for-room", "0s"]);
    more.ended(75).reports(&["0 of 3 were sent"]);
    let queues = folder.run(&["queues", "--json"]).ended(0).json();
    let small = queues.as_array().unwrap().iter().find(|row| row["queue"] == "small").unwrap().clone();
    assert_eq!((small["ready"].as_u64(), small["max_depth"].as_u64()), (Some(2), Some(2)), "{small}");
    let limits = folder.run(&["limits", "list", "--json"]).ended(0).json();
    let expected = serde_json::json!(
        [{ "target": "queue:small", "max_depth": 2, "waiting": 2, "source": "machinist.toml:2" }]
    );
    assert_eq!(limits, expected);
    let doctor = folder.run(&["doctor"]).stdout;
    assert!(doctor.contains("senders are refused (machinist.toml:2)"), "{doctor}");
    let worker = folder.worker(&[]);
    folder.run(&["send", "ok", "--count", "5", "--wait-for-room", "10m", "--wait=10m"]).ended(0);
    worker.stop();
    let doctor = folder.run(&["doctor"]).stdout;
    assert!(!doctor.contains("senders are refused"), "{doctor}");
}

#[test]
fn a_workflow_waits_for_room_too() {
    let folder =
        Folder::with("[queues.small]\nmax_depth = 1\n[tasks.ok]\ncommand = [\"true\"]\nqueue = \"small\"\n");
    let flow = folder.write(
        "flow.toml",
        "[steps.a]\ntask = \"ok\"\nqueue = \"small\"\n[steps.b]\ntask = \"ok\"\nafter = [\"a\"]\n",
    );
    let flow = flow.to_str().unwrap();
    folder.run(&["send", "--flow", flow]).ended(0);
    folder.run(&["send", "--flow", flow, "--wait-for-room", "1s"]).ended(75);
    let worker = folder.worker(&[]);
    folder.run(&["send", "--flow", flow, "--wait-for-room", "10m", "--wait=10m"]).ended(0);
    worker.stop();
}

#[test]
fn another_configuration_of_a_limit_is_told_in_the_log_and_the_list() {
    let folder = Folder::with("[tasks.ok]\ncommand = [\"true\"]\nmax_running = 1\n");
    let first = folder.worker(&["--name", "first"]);
    folder.write("machinist.toml", "[tasks.ok]\ncommand = [\"true\"]\nmax_running = 2\n");
    let second = folder.worker(&["--name", "second"]);
    let list = folder
        .run(&["limits", "list", "--json"])
        .ended(0)
        .reports(&["different limits for one target"])
        .json();
    let numbers: Vec<_> = list.as_array().unwrap().iter().map(|row| row["max_running"].as_u64()).collect();
    assert!(numbers.contains(&Some(1)) && numbers.contains(&Some(2)), "{list}");
    let shown = folder.run(&["workers", "show", "first"]).ended(0).stdout;
    assert!(shown.contains("limits       task:ok max_running=1\n"), "{shown}");
    let stderr = second.stop().stderr;
    assert!(stderr.contains("another worker has another limit"), "{stderr}");
    first.stop();
}
