//! Start and end of a worker.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Folder, contents, eventually, gone};

fn started(folder: &Folder, id: &str) {
    eventually("the task is started", || (folder.status(id)["state"] == "STARTED").then_some(()));
}

#[test]
fn a_drained_worker_finishes_what_runs() {
    let folder =
        Folder::with("[tasks.wait]\ncommand = [\"sh\", \"-c\", \"until [ -e go ]; do sleep 0.05; done\"]\n");
    let mut worker = folder.worker(&[]);
    let id = folder.send(&["wait"]);
    started(&folder, &id);
    worker.signal(Signal::SIGTERM);
    worker.stderr.until("stopping");
    folder.write("go", "");
    worker.end().ended(0).reports(&["everything that had started has ended"]);
    assert_eq!(folder.status(&id)["state"], "SUCCESS");
}

#[test]
fn what_does_not_end_in_time_is_handed_back_and_its_program_ended() {
    let folder = Folder::with("[tasks.wait]\ncommand = [\"sh\", \"-c\", \"echo $$ > leader; sleep 1000\"]\n");
    let worker = folder.worker(&["--grace", "100ms"]);
    let id = folder.send(&["wait"]);
    let leader = contents(&folder.path().join("leader"));
    worker.stop().ended(75).reports(&["1 running tasks were handed back"]);
    gone(&leader);
    assert_eq!(folder.status(&id)["state"], json!("PENDING"));
    assert_eq!(folder.status(&id)["attempt"], 1);
}

#[test]
fn each_signal_goes_one_stage_further() {
    let folder = Folder::new();
    let mut worker = folder.worker(&["--demo", "--grace", "1h"]);
    let id = folder.send(&["sleep", "1000"]);
    started(&folder, &id);
    worker.signal(Signal::SIGINT);
    worker.stderr.until("a second signal hands them back");
    worker.signal(Signal::SIGTERM);
    worker.end().ended(75);
    let next = folder.worker(&["--demo", "--name", "next", "--grace", "0s"]);
    eventually("the next worker runs it", || (folder.status(&id)["worker"] == "next").then_some(()));
    next.stop().ended(75);
}

#[test]
fn a_worker_without_tasks_does_not_start() {
    Folder::new().run(&["worker"]).ended(78).reports(&[
        "this worker would know no task",
        "machinist init",
        "--demo",
    ]);
}

#[test]
fn a_task_of_two_owners_is_refused() {
    let folder = Folder::with("[tasks.add]\ncommand = [\"true\"]\n");
    folder.run(&["worker", "--demo"]).ended(78).reports(&["\"add\" is registered twice"]);
}
